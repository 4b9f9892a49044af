"""ZeRO in half precision trains float32 weights, and these are what a run saves, averages and finds again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from piccolo_st.config import parse_run
from piccolo_st.training import FinetuneConfig, TrainingRun
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import ZERO1_ENVIRONMENT, make_datasets

Weights = dict[int, dict[str, np.ndarray]]


def _masters(rank: int, world: int, path: str) -> tuple[Weights, bool]:
    """Of each step the float32 weights that the ranks hold together; and whether nothing was trained."""
    from deepspeed.utils import safe_get_full_fp32_param

    os.environ |= ZERO1_ENVIRONMENT
    found: Weights = {}
    run = TrainingRun(parse_run([path], FinetuneConfig, Path(path)))

    class Masters(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            encoder = run.model[0].model
            named = ((name, safe_get_full_fp32_param(one)) for name, one in encoder.named_parameters())
            found[state.global_step] = {name: one.numpy() for name, one in named if "pooler" not in name}

    run.trainer.add_callback(Masters())
    run.train()
    return found, run.trainer.finished_before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_model_is_float32_and_what_was_trained(encoder_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    rows = make_datasets(100)["pairs"].to_list()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    faq = {"source": "rows.jsonl", "task": "retrieval", "holdout": {"queries": 5, "min_corpus": 10}}
    content: dict[str, Any] = {
        "model": {"name_or_path": str(encoder_dir), "instructions": "none"},
        "data": {"mixture": {"root": str(tmp_path), "datasets": {"faq": faq}}, "batch_size": 8},
        "train": {"bf16": True, "max_steps": 3, "save_steps": 1, "learning_rate": 1e-4, "eval_strategy": "steps",
                  "eval_steps": 1, "metric_for_best_model": "faq_ndcg@10"},
    }  # fmt: skip
    start = load_file(encoder_dir / "model.safetensors")

    def train(name: str, **settings: Any) -> tuple[Weights, dict[str, torch.Tensor], bool]:
        content["train"] |= {"output_dir": str(tmp_path / name), "average_with_start": 0.0, "save_strategy": "steps"}
        content["train"] |= settings
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        (masters, finished), *_ = run_ranks(_masters, 2, str(tmp_path / "run.yaml"), timeout=280)
        left = load_file(tmp_path / name / "model" / "model.safetensors")
        return masters, {key: one for key, one in left.items() if "pooler" not in key}, finished

    masters, left, _ = train("last")
    assert {one.dtype for one in left.values()} == {torch.float32}
    assert left.keys() == masters[3].keys() and all(np.array_equal(left[key], masters[3][key]) for key in left)
    assert not all(one.equal(one.bfloat16().float()) for one in left.values())  # not vacuous

    _, unsaved, _ = train("unsaved", save_strategy="no")
    assert all(unsaved[key].equal(left[key]) for key in left), "saving changes nothing of what is trained"

    (tmp_path / "last" / "model" / "model.safetensors").unlink()
    _, again, finished = train("last")
    assert finished and all(again[key].equal(left[key]) for key in left)

    masters, averaged, _ = train("averaged", average_with_start=0.5)
    for key, one in averaged.items():
        torch.testing.assert_close(one, 0.5 * start[key] + 0.5 * torch.from_numpy(masters[3][key]), rtol=0, atol=1e-7)

    masters, best, _ = train("best", load_best_model_at_end=True, greater_is_better=False)
    [step] = [step for step, one in masters.items() if all(np.array_equal(best[key], one[key]) for key in best)]
    state = json.loads((tmp_path / "best" / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    assert step == state["best_global_step"] < 3
