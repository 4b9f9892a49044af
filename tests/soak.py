"""Runs that are disturbed at random for as long as is asked for, and compared with the same runs left alone.

python -m tests.soak --hours 1 --seed 7      the table: rounds, events, starts, equal or not; 1 if one is not
python -m tests.soak --list 20 --seed 7      what a seed draws, without running it

(1) a round is drawn from the seed and its number: mixture, settings, one or two processes, DDP or ZeRO-1, LoRA, a
    stream, caching, accumulation, and a list of events. The same seed draws the same rounds. Most fork their ranks from
    this process; some are the command finetune behind accelerate launch or torchrun;
(2) its run is trained once without interruption;
(3) the same run is trained in a new directory, and each event disturbs it: kill -9, SIGTERM, SIGINT or SIGSTOP of
    one process, all or the launcher, at a random time or inside a save; a disk that takes no file of the size of a
    model; a newest checkpoint that is cut, changed, or lacks a file; a clock that jumps a day, another way in each
    process (Python's time.time: the machine's own stays), with new times on all files; in an elastic round, 1 and 2
    processes in turn;
(4) what every optimizer step read must be equal, row for row, and the weights bit for bit, but for elastic rounds,
    whose sums are rounded in another order. Of a command only the weights are seen.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from piccolo_st.training.guards import STOPPED
from tests.conftest import build_encoder  # first: it limits torch to one thread before torch is imported
from tests.helpers.kill_test import saving
from tests.helpers.resume_cases import Case
from tests.helpers.soak_runs import PATIENCE, Fault, Launched, Run, age, damage

SIGNALS = {
    "kill": signal.SIGKILL,
    "damage": signal.SIGKILL,
    "term": signal.SIGTERM,
    "int": signal.SIGINT,
    "stop": signal.SIGSTOP,
    "clock": signal.SIGUSR1,
}
# An event takes place after as many saves at least: before it trains, a signal ends a run as any process, and without
# an older checkpoint nothing is damaged.
SAVES = {"term": 1, "int": 1, "clock": 1, "damage": 2}


@dataclass(frozen=True)
class Event:
    """One disturbance.

    Attributes:
        what: kill, term, int, stop, disk, damage or clock.
        whom: one of the processes, all of them, or their launcher.
        saves: checkpoints that this start has written before it.
        in_save: while the next one is being written.
    """

    what: str
    whom: str
    saves: int
    in_save: bool


@dataclass(frozen=True)
class Round:
    """A run and what becomes of it.

    Attributes:
        elastic: see Run.
        launched: the command behind a launcher, not ranks of this process.
    """

    case: Case
    elastic: bool
    launched: bool
    events: tuple[Event, ...]

    def __str__(self) -> str:
        settings = {**self.case.options, **self.case.loss}
        shown = " ".join(f"{name}={value}" for name, value in settings.items())
        how = ", elastic" * self.elastic + ", launched" * self.launched
        return f"{self.case.name}{how}, {self.case.rows} rows, {shown}"


def draw(seed: int, number: int) -> Round:
    """Step (1)."""
    dice = random.Random(f"{seed} {number}")
    launched = dice.random() < 0.12
    engine, world = ("zero1", 2) if dice.random() < 0.2 else ("ddp", dice.choice([1, 2, 2]))
    if engine == "zero1" and not launched:
        world = dice.choice([1, 2])
    lora, streamed = dice.random() < 0.25, engine == "ddp" and not launched and dice.random() < 0.2
    elastic = engine == "ddp" and not launched and not streamed and dice.random() < 0.3
    case = Case(
        world,
        engine,
        batch_size=4 // world,
        accumulation=dice.choice([1, 1, 2]),
        rows=dice.choice([24, 32, 40]),
        options={
            "seed": dice.randrange(100),
            "lr_scheduler_type": dice.choice(["linear", "cosine", "constant"]),
            "dataloader_drop_last": True,  # as several processes have it anyway, so that one may go on from theirs
        },
        loss=dice.choice([{}, {"mini_batch_size": 2}]),
        lora=lora,
        streamed=streamed,
    )
    kinds = ["kill", "kill", "kill", "term", "int", "stop", "damage", "damage"] + ["disk", "clock"] * (not launched)
    whom = ["one", "all"] + ["launcher"] * launched
    events = [
        Event(dice.choice(kinds), dice.choice(whom), dice.randrange(3), dice.random() < 0.4)
        for _ in range(dice.randrange(2, 4) if launched else dice.randrange(3, 7))
    ]
    return Round(case, elastic, launched, tuple(events))


def disturb(run: Run, event: Event, dice: random.Random) -> bool:
    """Step (3), one event; whether it took place: a run may have ended before."""
    if event.what == "disk":
        if run.alive():
            run.end()
        run.begin(small_disk=True)
        run.wait({0, 1})  # 0: nothing was left to be written
        if 1 in run.codes.values() and "ulimit -f" not in run.log():
            raise Fault(f"start {run.starts} did not say that the disk was full\n{run.log()[-3000:]}")
        return 1 in run.codes.values()
    if not run.alive():
        run.begin()
    if not _moment(run, event, dice):
        run.wait({0})
        return False
    number, ranks = SIGNALS[event.what], run.ranks()
    if event.whom == "launcher" and isinstance(run, Launched) and event.what != "stop":
        run.lose_the_launcher(number)
        return event.what != "damage" or damage(run.output, dice)
    whom = {"all": ranks, "one": [dice.choice(ranks)], "launcher": run.pids}[event.whom]
    run.send(number, whom)
    if event.what == "stop":
        time.sleep(dice.uniform(0.3, 1.5))
        run.send(signal.SIGCONT, whom)
    elif event.what == "clock":
        age(run.output, dice)
    elif event.what in ("kill", "damage"):
        time.sleep(dice.uniform(0, 0.3))  # until a launcher ends the others
        run.end(1)
        return event.what == "kill" or damage(run.output, dice)
    else:
        run.wait({STOPPED, 0, 1} if isinstance(run, Launched) else {STOPPED, 0})
    return True


def _moment(run: Run, event: Event, dice: random.Random) -> bool:
    """Wait until an event is due; whether the run still runs then."""
    before = {path.name for path in run.output.glob("checkpoint-*")}
    saves, written, end = max(event.saves, SAVES.get(event.what, 0)), set[str](), time.monotonic() + PATIENCE
    while len(written) < saves or (event.in_save and not saving(run.output)):
        written |= {path.name for path in run.output.glob("checkpoint-*")} - before
        if not run.alive():
            return False
        if time.monotonic() > end:
            run.send(signal.SIGKILL, [*run.ranks(), *run.pids])
            raise Fault(f"start {run.starts} came to nothing in {PATIENCE:.0f} s\n{run.log()[-3000:]}")
        time.sleep(0.002)
    time.sleep(dice.uniform(0, 0.06 if event.in_save else 0.5))
    return run.alive() and bool(run.ranks())


def soak(drawn: Round, encoder: Path, folder: Path, dice: random.Random, done: Counter[str]) -> tuple[Run, bool, bool]:
    """Steps (2) to (4): the run, and whether rows and weights are equal."""
    kind = Launched if drawn.launched else Run
    left = kind(drawn.case, encoder, folder / "left alone")
    left.begin()
    left.wait({0})
    run = kind(drawn.case, encoder, folder / "disturbed", drawn.elastic)
    for event in drawn.events:
        done[f"{event.what}{' of the launcher' * (event.whom == 'launcher')}"] += disturb(run, event, dice)
    if run.alive():
        run.wait({0})
    if not run.codes or set(run.codes.values()) != {0}:
        run.begin()
        run.wait({0})
    equal = drawn.elastic or (run.weights() == left.weights() and len(run.weights()) == 1)
    return run, run.rows() == left.rows(), equal


def main(arguments: list[str]) -> int:
    """Run rounds until the time is over; print the table; return 0 if all were equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="begin with this round of the seed")
    parser.add_argument("--list", type=int, metavar="N", help="print N rounds and end")
    options, say = parser.parse_args(arguments), partial(print, flush=True)
    number = options.first
    if options.list:
        for one in range(number, number + options.list):
            drawn = draw(options.seed, one)
            say(f"{one}: {drawn}: {', '.join(event.what for event in drawn.events)}")
        return 0
    end, unequal, done = time.monotonic() + 3600 * options.hours, 0, Counter[str]()
    say(f"{'round':>5} {'events':>6} {'starts':>6} {'rows':>5} {'weights':>7} {'seconds':>7}  run")
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        encoder = build_encoder(Path(temporary) / "encoder")
        while number == options.first or time.monotonic() < end:
            folder, began, drawn = Path(temporary) / str(number), time.monotonic(), draw(options.seed, number)
            folder.mkdir()
            before, label = done.total(), f"{number:>5}"
            try:
                run, rows, weights = soak(drawn, encoder, folder, random.Random(f"{options.seed} {number} when"), done)
            except Fault as fault:
                rows = weights = False
                say(f"{label} {done.total() - before:>6} FAULT of seed {options.seed}, {drawn}: {fault}")
            else:
                read = "-" if drawn.launched else "yes" if rows else "NO"
                hashed = "-" if drawn.elastic else "yes" if weights else "NO"
                took = time.monotonic() - began
                say(f"{label} {done.total() - before:>6} {run.starts:>6} {read:>5} {hashed:>7} {took:>7.0f}  {drawn}")
            unequal += not (rows and weights)
            shutil.rmtree(folder, ignore_errors=True)  # a process that was given up may still write there
            number += 1
    kinds = ", ".join(f"{count} {what}" for what, count in sorted(done.items()) if count)
    say(f"{number - options.first} rounds, {done.total()} events ({kinds}): {unequal} not equal")
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
