"""The best model is loaded, measured and kept beside the last; a run that is stopped is saved once, and goes on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import TrainerCallback

from piccolo_st.training.guards import TrainingStopped
from tests.helpers.resume_cases import Case, at_step, make_trainer, record_rows, weights_hash


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
