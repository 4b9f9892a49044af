"""The runs of tests/soak.py: forked ranks of a trainer, or a command behind its launcher; and damage to their files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import torch
import yaml

from piccolo_st.training import checkpoint, manifest
from piccolo_st.training.guards import STOPPED
from piccolo_st.training.trainer import PiccoloTrainer
from tests.helpers.kill_test import start
from tests.helpers.resume_cases import LAUNCHER, ROOT, Case, make_datasets, tensor_hash

PATIENCE = 400.0  # seconds for a run that is not disturbed to end, and for one that is told to
SMALL = 60_000  # bytes: less than a model takes
DAY = 86_400.0


class Fault(Exception):
    """A run that did what it should not."""


@dataclass
class Run:
    """The processes of a start, and the directory of a run over all its starts.

    Attributes:
        case: of its first start.
        elastic: whether every start has the other number of processes, of 1 and 2, than the one before.
    """

    case: Case
    encoder: Path
    output: Path
    elastic: bool = False
    starts: int = 0
    pids: list[int] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)

    def begin(self, small_disk: bool = False) -> None:
        """Start the run, perhaps on a disk that takes only small files."""
        world = self.case.world if not self.elastic or self.starts % 2 == 0 else 3 - self.case.world
        self.starts += 1
        self.output.mkdir(exist_ok=True)
        case = replace(self.case, world=world, batch_size=self.case.batch_size * self.case.world // world)

        def prepare(rank: int, trainer: PiccoloTrainer) -> None:
            _record(trainer, self.output / f"rows-{self.starts:03}-{rank}")
            _let_the_clock_move(DAY if rank else -DAY)
            if small_disk:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))

        self.codes = {}
        self.pids = start(case, self.encoder, self.output, self.output / f"log-{self.starts:03}", prepare)

    def alive(self) -> bool:
        """Whether a process still runs."""
        for pid in self.pids:
            if pid not in self.codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                self.codes[pid] = os.waitstatus_to_exitcode(ended[1])
        return len(self.codes) < len(self.pids)

    def ranks(self) -> list[int]:
        """The processes that train."""
        return [pid for pid in self.pids if pid not in self.codes]

    def send(self, number: int, pids: Iterable[int]) -> None:
        for pid in pids:
            if pid not in self.codes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def end(self, *others: int) -> None:
        """kill -9 what is left."""
        self.send(signal.SIGKILL, self.pids)
        self.wait({-signal.SIGKILL, 0, *others})

    def wait(self, allowed: set[int]) -> None:
        """Wait until all have ended, each with one of these exit codes."""
        deadline = time.monotonic() + PATIENCE
        while self.alive():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL, self.pids)
                raise Fault(f"start {self.starts} did not end in {PATIENCE:.0f} s")
            time.sleep(0.02)
        if wrong := sorted(set(self.codes.values()) - allowed):
            raise Fault(f"start {self.starts} ended with {wrong}\n{self.log()[-3000:]}")

    def log(self) -> str:
        """What all processes of the start have said."""
        return (self.output / f"log-{self.starts:03}").read_text(errors="replace")

    def rows(self) -> dict[str, list[object]]:
        """Step -> the rows that the last start which took it has read there, of all ranks."""
        found: dict[str, tuple[str, list[object]]] = {}
        for path in sorted(self.output.glob("rows-*")):
            number = path.name.split("-")[1]
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # the last line of a process that was killed
                    step, name, rows = json.loads(line)
                    before = found.get(str(step))
                    kept = before[1] if before and before[0] == number else []
                    found[str(step)] = number, [*kept, *([name, row] for row in rows)]
        return {step: sorted(rows, key=str) for step, (_, rows) in found.items()}

    def weights(self) -> set[str]:
        return {path.read_text() for path in self.output.glob("hash-*")}


def _record(trainer: PiccoloTrainer, path: Path) -> None:
    """Let a trainer write what each of its micro-steps reads: numbers of rows, or of a stream a hash of the tokens."""
    stock = trainer.training_step

    def training_step(model: object, inputs: dict[str, object], *args: object, **kwargs: object) -> object:
        ids = inputs.get("row_ids")
        tensors = [value for _, value in sorted(inputs.items()) if isinstance(value, torch.Tensor)]
        rows = ids.tolist() if isinstance(ids, torch.Tensor) else [tensor_hash(tensor)[:16] for tensor in tensors]
        with path.open("a") as file:
            file.write(json.dumps([trainer.state.global_step, inputs.get("dataset_name"), rows]) + "\n")
        return stock(model, inputs, *args, **kwargs)  # type: ignore[arg-type]

    trainer.training_step = training_step  # type: ignore[method-assign, assignment]


def _let_the_clock_move(by: float) -> None:
    """Let SIGUSR1 move what Python's time.time tells this process; the machine's own clock is everybody's."""
    clock, clock_ns, moved = time.time, time.time_ns, [0.0]

    def move(number: int, frame: object) -> None:
        moved[0] += by

    time.time = lambda: clock() + moved[0]
    time.time_ns = lambda: clock_ns() + int(moved[0] * 1e9)
    signal.signal(signal.SIGUSR1, move)


@dataclass
class Launched(Run):
    """The same data and encoder through the command finetune, behind a launcher; only its model is compared."""

    def begin(self, small_disk: bool = False) -> None:
        self.starts += 1
        self.output.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        ours = ["-m", "piccolo_st", "finetune", str(self._configuration())]
        launcher = {
            (1, "ddp"): ["accelerate.commands.launch", "--config_file", str(LAUNCHER.with_name("cpu.yaml"))],
            (2, "ddp"): ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port],
            (2, "zero1"): [
                "accelerate.commands.launch", "--main_process_port", port, "--config_file", str(LAUNCHER)
            ],
        }[self.case.world, self.case.engine]  # fmt: skip
        with (self.output / f"log-{self.starts:03}").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *launcher, *ours],
                stdout=log, stderr=log, cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)),
            )  # fmt: skip
        self.codes, self.pids, self._ranks = {}, [process.pid], []
        process.returncode = 0  # which is waited for here

    def _configuration(self) -> Path:
        folder = self.output.parent
        sources = {}
        for name, dataset in make_datasets(self.case.rows).items():
            rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in dataset.to_list()]
            (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
            sources[name] = {"source": str(folder / f"{name}.jsonl"), "task": "retrieval"}
        content = {
            "model": {"name_or_path": str(self.encoder), "query_length": 16, "document_length": 24},
            "data": {"mixture": {"datasets": sources}, "batch_size": self.case.batch_size * self.case.world},
            "loss": self.case.loss,
            "lora": {"rank": 4} if self.case.lora else {},
            "train": {
                "output_dir": str(self.output), "num_train_epochs": 3, "save_steps": 4, "learning_rate": 1e-3,
                "disable_tqdm": True, "gradient_accumulation_steps": self.case.accumulation, **self.case.options,
            },
        }  # fmt: skip
        path = folder / f"{self.output.name}.yaml"
        path.write_text(yaml.safe_dump({name: section for name, section in content.items() if section}), "utf-8")
        return path

    def ranks(self) -> list[int]:
        """Those behind the launcher, also when it has gone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.pids[0]).children(recursive=True)
            self._ranks = [one.pid for one in below if "piccolo_st" in " ".join(one.cmdline())] or self._ranks
        return [pid for pid in self._ranks if _runs(pid)]

    def end(self, *others: int) -> None:
        self.send(signal.SIGKILL, [*self.ranks(), *self.pids])
        self.wait({-signal.SIGKILL, 0, 1, *others})
        while self.ranks():
            time.sleep(0.02)

    def lose_the_launcher(self, number: int) -> None:
        """End the launcher alone; what it leaves behind keeps a second start out, in a sentence.

        Raises:
            Fault: both write to the directory.
        """
        left = self.ranks()
        self.send(number, self.pids)
        self.wait({-number, 0, 1, 128 + number, STOPPED})
        if any(_runs(pid) for pid in left):
            self.begin()
            self.wait({0, 1, 2})
            if self.codes[self.pids[0]] and "is being written to by process" not in self.log():
                raise Fault(f"start {self.starts} did not say that an orphan has the directory\n{self.log()[-3000:]}")
        self.send(signal.SIGKILL, left)
        while any(_runs(pid) for pid in left):
            time.sleep(0.02)

    def rows(self) -> dict[str, list[object]]:
        return {}

    def weights(self) -> set[str]:
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in self.output.glob("model/*.safetensors")}


def _runs(pid: int) -> bool:
    """Not one that has ended and that nobody has asked about yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def age(output: Path, dice: random.Random) -> None:
    """Give every file of a run a time of its own, up to two days off either way."""
    for path in output.rglob("*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            now = time.time() + dice.uniform(-2 * DAY, 2 * DAY)
            os.utime(path, (now, now))


def damage(output: Path, dice: random.Random) -> bool:
    """Damage the newest checkpoint, where there is an older one to go back to."""
    checkpoint.recover(output)
    whole = [path for path in checkpoint.checkpoints(output) if manifest.sizes_fit(path)]
    if len(whole) < 2:
        return False
    path = dice.choice(sorted(path for path in whole[-1].rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    what = dice.choice(["cut", "flip", "gone"])
    if what == "gone" or not content:
        path.unlink()
    elif what == "cut":
        path.write_bytes(content[: dice.randrange(len(content))])
    else:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
    return True
