"""The command launch: one sentence of one process, its exit code, and SIGTERM handed on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from piccolo_st.training.guards import STOPPED
from tests.helpers.resume_cases import make_datasets

ROOT = Path(__file__).parent.parent.parent


def start(world: int, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    zero1 = ["--config_file", str(ROOT / "recipes" / "accelerate" / "cpu_zero1.yaml"), "--main_process_port", port]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "piccolo_st", "launch", *(zero1 if world == 2 else []), *arguments],
            stdout=subprocess.DEVNULL, stderr=log, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip


def test_what_accelerate_refuses_is_a_sentence(command: Callable[..., tuple[int, str, str]]) -> None:
    assert command("launch", "--config_file", "no.yaml", "finetune")[2].count("\n") == 1
    assert "launch finetune CONFIG" in command("launch", "--help")[1]


def test_the_rank_that_ends_first_speaks_and_alone(tmp_path: Path) -> None:
    """torchrun ends the first rank while it is still on its way; where all come there, the sentence stands once."""
    (tmp_path / "rank.py").write_text(
        "import os, sys, time\nfrom piccolo_st.commands.exit import run_command\n"
        "from piccolo_st.errors import InputError\n"
        "def main(arguments):\n    time.sleep(float(arguments[int(os.environ['RANK'])]))\n"
        "    raise InputError('no such pear')\nrun_command(main, sys.argv[1:])\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "rank.py"]
    for seconds in ("60", "0"), ("0", "0"):
        done = subprocess.run(
            [*torchrun, *seconds],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=50,
        )  # fmt: skip
        assert done.stderr.splitlines().count("error: no such pear") == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_bad_input_is_the_sentence_and_the_code_of_the_process(world: int, tmp_path: Path) -> None:
    if world == 2:
        pytest.importorskip("deepspeed")
    process = start(world, tmp_path, "finetune", "--data.batch_size", "-1")
    code, said = process.wait(timeout=300), (tmp_path / "log").read_text()
    lines = [line for line in said.splitlines() if "real_accelerator.py" not in line]  # DeepSpeed's own word
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: data.batch_size"), said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("world", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGKILL)])
def test_a_signal(world: int, number: int, tmp_path: Path, encoder_dir: Path) -> None:
    """SIGTERM to the launcher saves a checkpoint; a process that kill -9 ended is named."""
    if world == 2:
        pytest.importorskip("deepspeed")
    rows = make_datasets(64)["pairs"].to_list()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    content = {
        "model": {"name_or_path": str(encoder_dir), "query_length": 16, "document_length": 32},
        "data": {"mixture": {"datasets": {"a": {"source": "rows.jsonl", "task": "retrieval"}}}, "batch_size": 4},
        "train": {"output_dir": "run", "num_train_epochs": 200, "save_steps": 5, "disable_tqdm": True},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    process, log = start(world, tmp_path, "finetune", "run.yaml"), tmp_path / "log"
    end = time.monotonic() + 300
    while not list(tmp_path.glob("run/checkpoint-*")):
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    target = psutil.Process(process.pid).children()[0].pid if number == signal.SIGKILL else process.pid
    os.kill(target, number)
    code, said = process.wait(timeout=120), log.read_text()
    if number == signal.SIGKILL:
        assert code == 137 and "error: the process was ended by SIGKILL" in said, said
    else:
        assert code == (STOPPED if world == 1 else 143) and "stopped by SIGTERM at step" in said, said
    assert "Traceback" not in said, said
