"""Ctrl-C and SIGTERM in the middle of a command: one sentence, its code, nothing half-written; then it completes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.evaluation_data import write_local_tasks
from tests.helpers.hub_clients import REPO, TOKEN
from tests.helpers.hub_server import HubServer

pytest_plugins = ["tests.helpers.hub_clients"]
ROOT = Path(__file__).parent.parent
ROWS = 6_000


def corpus(folder: Path) -> str:
    """A mixture that takes seconds to read and to mine."""
    rows = (
        {"query": f"第{n}个问题是什么", "positive": f"第{n}个答案，在第{n % 97}页的第{n % 31}行"} for n in range(ROWS)
    )
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (folder / "mixture.yaml").write_text("datasets: {a: {source: a.jsonl, task: retrieval}}")
    return str(folder / "mixture.yaml")


@contextmanager
def started(arguments: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "piccolo_st", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stop_and_complete(
    arguments: list[str], number: int, begun: Callable[[], object], folder: Path, environment: dict[str, str]
) -> None:
    with started(arguments, environment) as process:
        end = time.monotonic() + 120
        while not begun():
            assert process.poll() is None and process.stderr, process.stderr and process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        start = time.monotonic()
        said = process.communicate(timeout=60)[1]
    how = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    assert f"{how}; what is finished is kept, and the same command goes on from there\n" in said, said
    assert "Traceback" not in said, said
    assert process.returncode == 128 + number and time.monotonic() - start < 20
    left = [path for path in folder.rglob("*") if path.suffix == ".partial" or ".owner" in path.name]
    assert not left, "half-written, or locked"


def completes(arguments: list[str], environment: dict[str, str]) -> None:
    with started(arguments, environment) as process:
        said = process.communicate(timeout=280)[1]
    assert process.returncode == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["building", "mining"])
def test_preparing_data(tmp_path: Path, stage: str, number: int) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    arguments = ["prepare", "mine", corpus(tmp_path), "--data.output", str(out), "--data.cache", str(cache)]
    begun = {"building": lambda: list(cache.rglob("*.partial")), "mining": (out / "mine" / "made_of.json").exists}
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    stop_and_complete(arguments, number, begun[stage], tmp_path, environment)
    completes(arguments, environment)
    assert (out / "mine" / "report.json").is_file()


@pytest.mark.slow
def test_evaluating(tmp_path: Path, released_model: Path) -> None:
    pytest.importorskip("mteb")
    (tmp_path / "tasks").mkdir()
    tasks, results = write_local_tasks(tmp_path / "tasks"), tmp_path / "results"
    arguments = ["evaluate", str(released_model), "--benchmark", str(tasks), "--output", str(results)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    stop_and_complete(arguments, signal.SIGTERM, lambda: list(results.rglob("*.owner.lock")), tmp_path, environment)
    completes(arguments, environment)
    assert len(list(results.rglob("Own*.json"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_releasing(hub: HubServer, released_model: Path, tmp_path: Path, number: int) -> None:
    environment = dict(hub.environment(tmp_path / "home", TOKEN), PYTHONPATH=str(ROOT))
    arguments = ["release", str(released_model), REPO, "--push"]
    hub.fail("lfs_upload", "drip", times=None)
    begun = lambda: any(call.fault and call.status for call in hub.calls)  # noqa: E731
    stop_and_complete(arguments, number, begun, tmp_path, environment)
    repo = hub.repos["model", REPO]
    assert len(repo.commits) == 1
    hub.faults.clear()
    completes(arguments, environment)
    assert len(repo.commits) == 2
