"""The best model is loaded, measured and kept beside the last; a run that is stopped is saved once, and goes on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import TrainerCallback

from piccolo_st.config import parse_run
from piccolo_st.evaluation import held_out_evaluators
from piccolo_st.modeling import load_portable
from piccolo_st.training import FinetuneConfig, TrainingRun
from piccolo_st.training.guards import TrainingStopped
from tests.helpers.mixtures import jsonl
from tests.helpers.resume_cases import Case, at_step, make_trainer, record_rows, weights_hash

DIGITS = "一二三四五六七八九十"


class Search(BaseEvaluator):
    """A search that is the better the nearer a step is to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        self.steps.append(steps)
        return {"score": float(-abs(steps - 2))}


class Saves(TrainerCallback):
    """The steps of a run's checkpoints."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


def searching(encoder: Path, output: Path, **options: Any) -> Any:
    """A trainer of 8 steps, 9 of which are an epoch, that searches every 2 and loads the best at its end."""
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True,
                "metric_for_best_model": "score", "max_steps": 8, "evaluator": Search(), **options}  # fmt: skip
    return make_trainer(encoder, output, Case(batch_size=4), **settings)


def left(output: Path) -> set[str]:
    return {path.name for path in output.glob("checkpoint-*")}


def signalled() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_a_stopped_run_goes_on_from_is_kept_beside_the_best(encoder_dir: Path, tmp_path: Path) -> None:
    def start(action: Callable[[], object] | None = None) -> tuple[Any, list[int]]:
        trainer = searching(encoder_dir, tmp_path, save_total_limit=1)
        seen = record_rows(trainer)
        if action is not None:
            at_step(trainer, 4, action)
            with pytest.raises(TrainingStopped, match="at step 5 of 8; the same command goes on"):
                trainer.train()
        else:
            trainer.train()
        return trainer, [step for step, *_ in seen]

    start(signalled)
    assert left(tmp_path) == {"checkpoint-2", "checkpoint-5"}
    ended, steps = start()
    assert steps == [5, 6, 7] and ended.best_loaded == 2 and not ended.finished_before
    assert left(tmp_path) == {"checkpoint-2", "checkpoint-8"}
    again, steps = start()
    assert steps == [] and again.finished_before and again.best_loaded == 2
    assert weights_hash(again.model) == weights_hash(ended.model)


def test_the_best_step_is_saved_where_saves_are_rarer_than_searches(
    encoder_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = searching(encoder_dir, tmp_path, save_steps=8)
    best: list[str] = []
    at_step(trainer, 2, lambda: best.append(weights_hash(trainer.model)))
    at_step(trainer, 5, signalled)
    with pytest.raises(TrainingStopped):
        trainer.train()
    assert trainer.best_loaded == 2 and [weights_hash(trainer.model)] == best
    assert left(tmp_path) == {"checkpoint-2", "checkpoint-6"} and "there is none" not in caplog.text

    shutil.rmtree(tmp_path / "checkpoint-2")  # as after a clearing-up by hand
    trainer = searching(encoder_dir, tmp_path, save_steps=8)
    trainer.train()
    assert trainer.best_loaded is None and [weights_hash(trainer.model)] != best
    assert "loads the checkpoint of the best search, and there is none of step 2; the weights are those" in caplog.text


@pytest.mark.parametrize("signal_", [False, True], ids=["clock", "signal"])
@pytest.mark.parametrize("strategy", ["best", "epoch"])
def test_a_run_that_is_stopped_is_saved_there_once(
    encoder_dir: Path, tmp_path: Path, strategy: str, signal_: bool
) -> None:
    options: dict[str, Any] = {"save_strategy": strategy, "eval_strategy": "epoch" if strategy == "epoch" else "steps"}
    trainer, saves = searching(encoder_dir, tmp_path, **options), Saves()
    trainer.add_callback(saves)
    at_step(trainer, 4, signalled if signal_ else lambda: setattr(trainer.args, "max_seconds", 1e-9))
    if signal_:
        with pytest.raises(TrainingStopped):
            trainer.train()
    else:
        trainer.train()
    assert trainer.evaluator.steps == ([2, 4] if strategy == "best" else []) + ([] if signal_ else [5])
    assert saves.steps == ([2] if strategy == "best" else []) + [5]

    trainer = searching(encoder_dir, tmp_path, **options)
    seen = record_rows(trainer)
    trainer.train()
    assert [step for step, *_ in seen] == [5, 6, 7]
    again = searching(encoder_dir, tmp_path, **options)
    again.train()
    assert again.finished_before and weights_hash(again.model) == weights_hash(trainer.model)


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_after_is_a_search_with_the_model_that_is_left(encoder_dir: Path, tmp_path: Path, average: float) -> None:
    """Over two sets, whose mean is sequential_score; the lowest is taken for the best, so that it is not the last."""
    sets = {}
    for name in ("words", "numbers"):
        rows = [{"query": f"{name}{a}{b}", "positive": f"{a}{b}的结果{name}"} for a in DIGITS for b in DIGITS]
        sets[name] = {"source": str(jsonl(tmp_path / f"{name}.jsonl", rows)), "task": "retrieval",
                      "holdout": {"queries": 10, "min_corpus": 20}}  # fmt: skip
    content = {
        "model": {"name_or_path": str(encoder_dir)},
        "data": {"mixture": {"datasets": sets}, "batch_size": 16},
        "train": {"output_dir": str(tmp_path / "run"), "max_steps": 6, "learning_rate": 3e-3, "save_steps": 2,
                  "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": False,
                  "metric_for_best_model": "sequential_score", "average_with_start": average, "disable_tqdm": True},
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    tables = []
    for _ in range(2):  # the second finds a run that has ended
        run = TrainingRun(parse_run([str(path)], FinetuneConfig, path))
        run.train()
        assert run.trainer.best_loaded != 6
        tables.append(run.summary().partition("\n\n")[0].splitlines())
    assert run.trainer.finished_before and tables[0] == tables[1]

    searches = [entry for entry in run.trainer.state.log_history if "eval_sequential_score" in entry]
    for entry in searches:
        scores = [entry["eval_words_ndcg@10"], entry["eval_numbers_ndcg@10"]]
        assert entry["eval_sequential_score"] == pytest.approx(sum(scores) / 2)
    assert entry["eval_words_ndcg@10"] != entry["eval_numbers_ndcg@10"]
    model = load_portable(tmp_path / "run" / "model", device="cpu")
    found = [one(model)[f"{one.name}_ndcg@10"] for one in held_out_evaluators(run.mixture, write_csv=False)]
    head, _, row, *_ = tables[0]
    assert "first search (step 2)" in head and row.startswith("nDCG@10")
    first, after = map(float, row.split()[1:3])
    assert first == pytest.approx(100 * searches[0]["eval_sequential_score"], abs=0.01)
    assert (
        after
        == pytest.approx(50 * sum(found), abs=0.01)
        != pytest.approx(100 * searches[2]["eval_sequential_score"], abs=0.01)
    )
