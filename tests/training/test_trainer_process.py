"""A recipe as a scheduler sees it: started, asked to stop, started again with the same command, finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.helpers.resume_cases import ROOT, make_datasets


@pytest.fixture
def config(tmp_path: Path, encoder_dir: Path) -> Path:
    rows = make_datasets(64)["pairs"].to_list()
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    content = {
        "model": {"name_or_path": str(encoder_dir), "query_length": 16, "document_length": 32},
        "data": {
            "mixture": {"datasets": {"faq": {"source": str(data), "task": "retrieval"}}, "root": str(tmp_path)},
            "batch_size": 8,
        },
        "train": {"num_train_epochs": 6, "save_steps": 5, "logging_steps": 5, "disable_tqdm": True},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def start(config: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "recipes/finetune.py", str(config), "--train.output_dir", str(output), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_command_until_it_is_done(config: Path, tmp_path: Path) -> None:
    whole = start(config, tmp_path / "whole")
    text = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, text
    output = tmp_path / "run"
    stopped = start(config, output)
    deadline = time.monotonic() + 200
    while not list(output.glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    text = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 75, text
    assert "stopped by SIGTERM at step" in text and "the same command goes on" in text
    assert not (output / "model").exists()

    changed = start(config, output, "--loss.temperature", "0.5")
    text = changed.communicate(timeout=200)[0]
    assert changed.returncode == 2, text
    assert "loss.temperature was 0.01 and is 0.5" in text

    again = start(config, output)
    text = again.communicate(timeout=300)[0]
    assert again.returncode == 0, text
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "whole", output))
    assert all(first[name].equal(second[name]) for name in first)

    finished = start(config, output)
    text = finished.communicate(timeout=200)[0]
    assert finished.returncode == 0, text
    assert "nothing is trained" in text
