"""A second command in the directory of a run: it goes on, finds the run finished, or is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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


SEARCHED = ("--train.eval_strategy", "steps", "--train.eval_steps", 1)
OTHERS: list[tuple[tuple[object, ...], tuple[object, ...], str]] = [
    ((), ("--train.average_with_start", 0.5), r"train\.average_with_start was 0\.0 and is 0\.5"),
    (SEARCHED, ("--train.load_best_model_at_end", "true", "--train.metric_for_best_model", "faq_ndcg@10"),
     r"train\.load_best_model_at_end was False and is True"),
    (("--train.save_only_model", "true"), ("--train.average_with_start", 0.5), r"train\.average_with_start was 0"),
    (("--train.save_strategy", "no"), ("--train.learning_rate", 1e-3), r"train\.learning_rate was \S+ and is 0\.001"),
    (("--train.save_strategy", "no"), ("--train.average_with_start", 0.5), r"train\.average_with_start was 0\.0 and"),
    (("--train.save_strategy", "no", "--lora.rank", 4), ("--train.seed", 7), r"train\.seed was 42 and is 7"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "other", "message"), OTHERS)
def test_the_same_command_trains_nothing_and_another_is_refused(
    first: tuple[object, ...],
    other: tuple[object, ...],
    message: str,
    finetune: Callable[..., tuple[int, str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert finetune(*first)[0] == 0
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, error = finetune(*first, *other)
    assert code == 2 and re.search(rf"another run, which has ended: .*{message}.*--train\.resume never", error), error
    assert "nothing is trained" not in caplog.text
    assert finetune(*first)[0] == 0 and "nothing is trained" in caplog.text
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_what_is_missing_is_written_again_and_more_steps_go_on(
    finetune: Callable[..., tuple[int, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unsaved, weights = ("--train.save_strategy", "no"), tmp_path / "run" / "model" / "model.safetensors"
    assert finetune(*unsaved)[0] == 0
    before = record(tmp_path / "run")["content_hash"]
    weights.unlink()
    assert finetune(*unsaved)[0] == 0
    assert weights.exists() and record(tmp_path / "run")["content_hash"] == before
    assert "nothing is trained" not in caplog.text
    assert finetune("--train.resume", "never", "--train.average_with_start", 0.5)[0] == 0
    more = ("--train.max_steps", 3, "--train.accept_changes", "true")
    assert finetune(*more)[0] == 0  # the record is of the two steps, and of another average
    assert record(tmp_path / "run")["steps"] == 3


@pytest.mark.parametrize("kind", ["guide", "teacher"])
def test_a_run_whose_guide_or_teacher_has_changed_is_refused(
    kind: str,
    finetune: Callable[..., tuple[int, str]],
    stopped: Callable[..., None],
    make_model: Callable[..., Any],
    tmp_path: Path,
) -> None:
    other, folder = make_model(dropout=True), str(tmp_path / "other")
    other.save_pretrained(folder)
    taught = ("--loss.distillation", json.dumps({"teachers": [{"name_or_path": folder}], "similarity_weight": 1.0}))
    looking = ("--loss.guide", folder) if kind == "guide" else taught
    stopped(*looking)
    with torch.no_grad():
        other[0].auto_model.encoder.layer[1].output.dense.weight[3, 5] += 0.01
    other.save_pretrained(folder)
    code, error = finetune(*looking)
    assert code == 2 and re.search(rf"another run: trainer\.collator\.{kind}\.\S+ was \w+ and is \w+; ", error), error
    make_model(dropout=True).save_pretrained(folder)
    code, error = finetune(*looking)
    assert code == 0, error
