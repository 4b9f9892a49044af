"""The ranks of a run end together: none has gone before all is written, and none is taken along by one that has."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml

from piccolo_st import tables
from piccolo_st.commands.exit import run_command
from piccolo_st.config import parse_run
from piccolo_st.training import FinetuneConfig, TrainingRun
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import ROOT, make_datasets


def _train(rank: int, world: int, path: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the picture, the last file of a run, is there when this rank leaves; the first one is slow to draw it."""
    picture = tables.picture

    def slow(*args: Any) -> None:
        time.sleep(2)
        picture(*args)

    monkeypatch.setattr(tables, "picture", slow)
    run = TrainingRun(parse_run([path], FinetuneConfig, Path(path)))
    run.train()
    return (run.output / "curves.png").exists()


def test_no_rank_leaves_before_the_first_has_written_all(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    rows = make_datasets(64)["pairs"].to_list()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    datasets = {"faq": {"source": str(tmp_path / "rows.jsonl"), "task": "retrieval"}}
    content = {
        "model": {"name_or_path": str(encoder_dir)},
        "data": {"mixture": {"datasets": datasets}, "batch_size": 8},
        "train": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "logging_steps": 1, "save_strategy": "no"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    assert run_ranks(_train, 2, str(tmp_path / "run.yaml"), monkeypatch) == [True, True]


def _end(rank: int, world: int, folder: str) -> bool:
    with pytest.raises(SystemExit):
        run_command(lambda arguments: None, [])
    ended = not dist.is_initialized()
    dist.init_process_group("gloo", init_method=f"file://{folder}/again", rank=rank, world_size=world)
    return ended


def test_a_command_ends_its_process_group(tmp_path: Path) -> None:
    assert run_ranks(_end, 2, str(tmp_path)) == [True, True]


@pytest.mark.slow
def test_a_rank_whose_others_never_come_says_so(tmp_path: Path) -> None:
    """On a CPU too, where the stock arguments leave ``ddp_timeout`` out and half an hour would pass."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "piccolo_st", "finetune", "--train.ddp_timeout", "4"],
        env={**os.environ, **alone, "MASTER_PORT": port, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"error: all 2 processes must meet at 127.0.0.1:{port} within train.ddp_timeout, 4 s, got " in done.stderr
    assert "1/2 clients joined" in done.stderr and "Traceback" not in done.stderr
