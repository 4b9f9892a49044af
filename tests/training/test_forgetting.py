"""A run compares its end with its start on general tasks and held-out queries, and trains as it would without."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("mteb")

from piccolo_st.config import parse_run
from piccolo_st.training import FinetuneConfig, TrainingRun
from tests.helpers.evaluation_data import write_local_tasks
from tests.helpers.mixtures import jsonl
from tests.helpers.ranks import run_ranks

DIGITS = "一二三四五六七八九十"
TEXTS = [a + b + c for a in DIGITS for b in DIGITS for c in "天月年"]


def write_data(folder: Path) -> tuple[dict[str, Any], Path, list[dict[str, Any]]]:
    """A mixture with held-out queries, a file of general tasks, and these tasks."""
    tasks = yaml.safe_load(write_local_tasks(folder / "tasks").read_text("utf-8"))["tasks"]
    general = folder / "tasks" / "general.yaml"
    some = [task for task in tasks if task["type"] in ("Retrieval", "STS")]
    general.write_text(yaml.safe_dump({"tasks": some}, allow_unicode=True), "utf-8")
    rows = [{"query": f"问{text}", "positive": f"{text}答"} for text in TEXTS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    faq = {"source": "rows.jsonl", "task": "retrieval", "holdout": {"queries": 30, "min_corpus": 30}}
    return {"root": str(folder), "datasets": {"faq": faq}}, general, some


def test_a_run_says_what_it_gained_and_lost(
    encoder_dir: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    mixture, general, some = write_data(tmp_path)
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, evaluation in {"plain": {}, "compared": {"general": str(general)}}.items():
        content: dict[str, Any] = {
            "model": {"name_or_path": str(encoder_dir)},
            "data": {"mixture": mixture},
            "evaluation": evaluation,
            "train": {"output_dir": str(tmp_path / name), "max_steps": 4, "learning_rate": 1e-3, "packing": False},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
        code, out, err = command("finetune", tmp_path / "run.yaml")
        assert code == 0, err
        found[name] = out, json.loads((tmp_path / name / "run.json").read_text("utf-8"))
    (plain, alone), (out, record) = found.values()
    # Training has the same random numbers, and the padding that it was asked for.
    assert alone["content_hash"] == record["content_hash"]
    assert not alone["gains"] and "gained:" not in plain
    named = [(row["of"], row["task"]) for row in record["gains"]]
    assert named == [
        ("held-out", "faq"), ("held-out", "mean of 1"),
        *(("general", task) for task in (*[task["name"] for task in some], "mean of 2")),
    ]  # fmt: skip
    for row in record["gains"]:
        assert row["low"] <= row["after"] - row["before"] <= row["high"]
    assert any(row["after"] != row["before"] for row in record["gains"])
    assert out.count("gained: ") == 2 and "after is" in out
    card = (tmp_path / "compared" / "model" / "README.md").read_text("utf-8")
    assert "### 得与失 · Gained and lost" in card and f"| general: {some[0]['name']} |" in card
    assert str(tmp_path) not in card.partition("### 得与失")[2]


def test_weights_that_do_not_move_gain_and_lose_nothing(
    encoder_dir: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """Although sentence-transformers alone would give the saved model more of each text than the run does."""
    cut = ["的结果" * 8 + text for text in TEXTS]
    rows = [{"query": f"问{text}", "positive": text + behind} for text, behind in zip(TEXTS, cut[::-1], strict=True)]
    faq = {"source": str(jsonl(tmp_path / "rows.jsonl", rows)), "task": "retrieval",
           "holdout": {"queries": 30, "min_corpus": 30}}  # fmt: skip
    search = tmp_path / "search"
    search.mkdir()
    jsonl(search / "corpus.jsonl", [{"_id": f"d{i}", "text": row["positive"]} for i, row in enumerate(rows)])
    jsonl(search / "queries.jsonl", [{"_id": f"q{i}", "text": row["query"]} for i, row in enumerate(rows[:30])])
    (search / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(30)))
    pairs = [{"sentence1": row["positive"], "sentence2": "天月年", "score": i % 7} for i, row in enumerate(rows)]
    jsonl(tmp_path / "pairs.jsonl", pairs)
    general = tmp_path / "general.yaml"
    general.write_text(
        "tasks: [{name: Far, type: Retrieval, data: search}, {name: Near, type: STS, data: pairs.jsonl}]\n", "utf-8"
    )
    content = {
        "model": {"name_or_path": str(encoder_dir), "query_length": 12, "document_length": 16,
                  "include_instruction": False},
        "data": {"mixture": {"datasets": {"faq": faq}}},
        "evaluation": {"general": str(general)},
        "train": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "learning_rate": 0.0},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    code, _, err = command("finetune", tmp_path / "run.yaml")
    assert code == 0, err
    gains = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["gains"]
    assert [row["task"] for row in gains] == ["faq", "mean of 1", "Far", "Near", "mean of 2"]
    assert all(row["after"] == row["before"] and row["low"] == row["high"] == 0 for row in gains), gains


def _start(rank: int, world: int, path: str, killed_at: int | None) -> tuple[str, int | None, float | None]:
    """Train on one rank; what the run says at its end, its best step, and how good that was."""
    run = TrainingRun(parse_run([path], FinetuneConfig, Path(path)))
    stock = run.trainer.training_step

    def training_step(*given: Any, **options: Any) -> Any:
        if run.trainer.state.global_step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return stock(*given, **options)

    run.trainer.training_step = training_step  # type: ignore[method-assign]
    run.train()
    state = run.trainer.state
    return run.summary().partition("\nmodel ")[0], state.best_global_step, state.best_metric


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_to_the_same_best_step_and_table_on_any_ranks(
    encoder_dir_no_dropout: Path, tmp_path: Path
) -> None:
    mixture, general, _ = write_data(tmp_path)
    gains = {}
    for world in (1, 2):

        def start(name: str, killed_at: int | None = None, world: int = world) -> list[Any]:
            content: dict[str, Any] = {
                "model": {"name_or_path": str(encoder_dir_no_dropout)},
                "data": {"mixture": mixture, "batch_size": 8 // world},
                "evaluation": {"general": str(general)},
                "train": {
                    "output_dir": str(tmp_path / f"{name} {world}"), "max_steps": 8, "learning_rate": 3e-3,
                    "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True,
                    "metric_for_best_model": "eval_faq_ndcg@10", "disable_tqdm": True,
                },
            }  # fmt: skip
            path = tmp_path / f"{name} {world}.yaml"
            path.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
            return run_ranks(_start, world, str(path), killed_at)

        whole = start("whole")
        with pytest.raises(RuntimeError, match="died without a result"):
            start("killed", killed_at=5)
        for again in (start("killed"), start("killed")):  # the second finds a run that has ended
            assert again == whole and all(one[1:] == whole[0][1:] for one in again)
        assert whole[0][0].count("gained: ") == 2 and whole[0][1]
        records = [json.loads((tmp_path / f"{name} {world}" / "run.json").read_text("utf-8"))
                   for name in ("whole", "killed")]  # fmt: skip
        assert records[0]["gains"] == records[1]["gains"] and records[0]["content_hash"] == records[1]["content_hash"]
        gains[world] = records[0]["gains"]
    for one, two in zip(gains[1], gains[2], strict=True):
        assert one["task"] == two["task"] and one["before"] == two["before"]
        assert one["after"] == pytest.approx(two["after"], abs=0.5)
