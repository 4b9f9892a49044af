"""A Hub that takes requests and never answers: data that is only there is one sentence, in seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub_routes import ROUTES
from tests.helpers.hub_server import HubServer

pytest_plugins = ["tests.helpers.hub_clients"]
ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prepare", "evaluate"])
def test_data_of_a_hub_that_does_not_answer(command: str, hub: HubServer, released_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mixture.yaml").write_text(
        "datasets: {a: {source: someone/pairs, format: hub, split: train, revision: main, task: retrieval}}"
    )
    arguments = {
        "prepare": ["check", str(tmp_path / "mixture.yaml"), "--data.output", str(tmp_path / "out")],
        "evaluate": [str(released_model), "--benchmark", "ATEC", "--output", str(tmp_path / "results")],
    }[command]
    for route in ["unknown_head", "unknown", *(name for name, _, _ in ROUTES)]:
        hub.fail(route, "stall", times=None)
    environment = dict(hub.environment(tmp_path / "home"), PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "piccolo_st", command, *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    assert "the Hub was silent for 10 s, at HEAD http://127.0.0.1" in done.stdout + done.stderr, done.stderr
    assert [(call.method, call.path) for call in hub.calls] == [("HEAD", "/")]  # which is given up after 10 s
