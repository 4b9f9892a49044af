"""Kill a training run again and again, start it again each time, and compare its weights with a run left alone.

    python -m tests.helpers.kill_test                          every case, 20 kills each
    python -m tests.helpers.kill_test --kills 5 --cases ddp    one case, fewer kills
    python -m tests.helpers.kill_test --list

    (1) train each case once without interruption; three epochs, dropout on;
    (2) start it in a new directory and kill -9 all its processes, or one of them, at a random time; every second time
        while a checkpoint is being written, as soon as its hidden folder appears or a random moment later;
    (3) start it again with the same arguments, until it has been killed ``kills`` times; then let it end. A run that
        ends before is followed by another one in a new directory;
    (4) compare the hashes of the weights, bit for bit.

The processes are forked from one that has imported everything, and joined into a process group of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from piccolo_st.training.trainer import PiccoloTrainer
from tests.conftest import build_encoder  # first: it limits torch to one thread before torch is imported
from tests.helpers.resume_cases import Case, make_trainer, weights_hash

CASES = {
    "alone": Case(batch_size=4, rows=40),
    "alone-zero1": Case(1, "zero1", batch_size=4, rows=40),
    "ddp": Case(2, batch_size=2, rows=40),
    "ddp-accumulated": Case(2, batch_size=2, rows=40, accumulation=2),
    "zero1": Case(2, "zero1", batch_size=2, rows=40),
}
ATTEMPT_SECONDS = 600.0


@dataclass
class Result:
    """What became of a case."""

    case: str
    kills: int = 0
    inside_saves: int = 0
    runs: int = 0
    equal: bool = True


def start(
    case: Case, encoder: Path, output: Path, log: Path, prepare: Callable[[int, PiccoloTrainer], None] | None = None
) -> list[int]:
    """Fork the ranks of a run; each writes the hash of its weights to ``output/hash-RANK`` when it is done.

    ``prepare`` gets rank and trainer in each of them, before it trains.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(case.world):
        pid = os.fork()
        if pid == 0:
            _rank(case, rank, port, encoder, output, log, prepare)
        children.append(pid)
    return children


def _rank(
    case: Case, rank: int, port: int, encoder: Path, output: Path, log: Path,
    prepare: Callable[[int, PiccoloTrainer], None] | None,
) -> None:  # fmt: skip
    code = 1
    try:
        tqdm.set_lock(
            threading.RLock()
        )  # its own is of all forked ranks, and of those after one that was killed with it
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if case.world > 1 or case.engine == "zero1":
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(case.world))
            os.environ.update(LOCAL_WORLD_SIZE=str(case.world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        trainer = make_trainer(encoder, output, case)
        if prepare is not None:
            prepare(rank, trainer)
        trainer.train()
        (output / f"hash-{rank}").write_text(weights_hash(trainer.model))
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        logging.exception("rank %d", rank)
    finally:
        os._exit(code)


def alive(children: list[int]) -> bool:
    """Whether a process still runs; the ended ones are taken out of the list.

    Raises:
        RuntimeError: one ended with an error of its own.
    """
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.remove(pid)
            if os.waitstatus_to_exitcode(status) != 0:
                kill(children)
                raise RuntimeError(f"a rank ended with exit code {os.waitstatus_to_exitcode(status)}")
    return bool(children)


def kill(children: list[int], first: int = 0) -> None:
    """kill -9: one rank, and the others an instant later, as a launcher does."""
    for pid in [*children[first:], *children[:first]]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    children.clear()


def saving(output: Path) -> bool:
    """Whether a checkpoint is being written."""
    return output.is_dir() and any(name.endswith((".partial", ".deleted", ".replaced")) for name in os.listdir(output))


def finish(children: list[int]) -> None:
    """Wait for the ranks."""
    deadline = time.monotonic() + ATTEMPT_SECONDS
    while alive(children):
        if time.monotonic() > deadline:
            kill(children)
            raise TimeoutError(f"a run was not done after {ATTEMPT_SECONDS} s")
        time.sleep(0.02)


def attempt(children: list[int], output: Path, saves: int, in_save: bool, dice: random.Random) -> bool | None:
    """Kill a run a random moment after it has written ``saves`` checkpoints, or inside the next save after that.

    Counting saves and not seconds, the kills spread over a run on a machine of any speed.

    Returns:
        Whether the kill fell into a save; None if the run ended before it.
    """
    written: set[str] = set()
    before = {path.name for path in output.glob("checkpoint-*")}
    moment = None
    while alive(children):
        written |= {path.name for path in output.glob("checkpoint-*")} - before
        if moment is None and len(written) >= saves:
            moment = time.monotonic() + dice.uniform(0, 0.5)
        if moment is not None and time.monotonic() > moment and (not in_save or saving(output)):
            if in_save:
                time.sleep(dice.uniform(0, 0.06))
            if not alive(children):
                return None
            inside = saving(output)
            kill(children, dice.randrange(len(children)))
            return inside
        time.sleep(0.001)
    return None


def kill_case(name: str, case: Case, kills: int, encoder: Path, folder: Path, dice: random.Random) -> Result:
    """Steps (1) to (4) for one case."""
    log = folder / f"{name}.log"
    finish(start(case, encoder, folder / f"{name}-whole", log))
    expected = [(folder / f"{name}-whole" / f"hash-{rank}").read_text() for rank in range(case.world)]
    result = Result(name)
    while result.kills < kills:
        output = folder / f"{name}-{result.runs}"
        result.runs += 1
        while True:
            children = start(case, encoder, output, log)
            if result.kills >= kills:
                finish(children)
                break
            inside = attempt(children, output, dice.randrange(4), result.kills % 2 == 0, dice)
            if inside is None:
                break
            result.kills += 1
            result.inside_saves += inside
        found = [(output / f"hash-{rank}").read_text() for rank in range(case.world)]
        result.equal = result.equal and found == expected
        shutil.rmtree(output)
    return result


def main(arguments: list[str]) -> int:
    """Run the cases, print the table, return 0 if every run was equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each case")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{name:<16} {case.name}" for name, case in CASES.items()))
        return 0
    dice = random.Random(options.seed)
    unequal = 0
    print(f"{'case':<16} {'kills':>5} {'in saves':>8} {'runs':>4} {'seconds':>7}  equal", flush=True)
    with tempfile.TemporaryDirectory(prefix="kill-test-") as temporary:
        folder = Path(temporary)
        encoder = build_encoder(folder / "encoder")
        for name in options.cases:
            began = time.monotonic()
            try:
                result = kill_case(name, CASES[name], options.kills, encoder, folder, dice)
            except (RuntimeError, TimeoutError):
                print((folder / f"{name}.log").read_text()[-3000:], file=sys.stderr)
                raise
            unequal += not result.equal
            print(
                f"{name:<16} {result.kills:>5} {result.inside_saves:>8} {result.runs:>4} "
                f"{time.monotonic() - began:>7.0f}  {'yes' if result.equal else 'NO'}",
                flush=True,
            )
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
