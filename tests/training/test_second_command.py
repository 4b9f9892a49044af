"""A second command in the directory of a run: it goes on, finds the run finished, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

DIGITS = "一二三四五六七八九十"


@pytest.fixture
def finetune(tmp_path: Path, encoder_dir: Path, command: Callable[..., Any]) -> Callable[..., tuple[int, str]]:
    """A run of two steps, by the changes that a command has: exit code and what it said on stderr."""
    rows = [{"query": f"数{a}{b}", "positive": f"{a}{b}的结果"} for a in DIGITS for b in DIGITS]
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = {"source": "faq.jsonl", "task": "retrieval", "holdout": {"queries": 10, "min_corpus": 20}}
    content = {
        "model": {"name_or_path": str(encoder_dir), "instructions": "none"},
        "data": {"mixture": {"root": str(tmp_path), "datasets": {"faq": own}}, "batch_size": 16},
        "train": {"output_dir": str(tmp_path / "run"), "max_steps": 2, "save_steps": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")

    def run(*changes: object) -> tuple[int, str]:
        code, _, error = command("finetune", path, *changes)
        return code, error

    return run


@pytest.fixture
def stopped(finetune: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The same, which must end after its first step."""

    def run(*changes: object) -> None:
        monkeypatch.setenv("PICCOLO_ST_MAX_SECONDS", "1e-9")
        assert finetune(*changes)[0] == 0
        monkeypatch.delenv("PICCOLO_ST_MAX_SECONDS")

    return run


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return found


def test_a_run_goes_on_where_a_mini_batch_may_have_another_size(
    finetune: Callable[..., tuple[int, str]],
    stopped: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fits: list[int | None] = [200, 150, None]  # what three GPUs have room for
    monkeypatch.setattr("piccolo_st.training.assembly.mini_batch_tokens", lambda *given: fits[0])
    auto = ("--loss.mini_batch_num_tokens", "auto", "--train.max_steps", 3)
    stopped(*auto)
    fits.pop(0)
    stopped(*auto)
    assert "not bit for bit: trainer.loss.faq.mini_batch_num_tokens was 200 and is 150" in caplog.text
    fits.pop(0)
    code, error = finetune(*auto)
    assert code == 0, error
    assert "trainer.loss.faq.uses_gradient_cache was True and is False" in caplog.text
    assert record(tmp_path / "run")["log"][-1]["step"] == 3

    monkeypatch.undo()
    code, error = finetune("--loss.mini_batch_num_tokens", 150, "--train.max_steps", 3)
    assert code == 2 and "configuration.loss.mini_batch_num_tokens was auto and is 150" in error
