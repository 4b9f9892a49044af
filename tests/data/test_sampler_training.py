"""The sampler under the stock SentenceTransformerTrainer, on real ranks: datasets, epochs, resuming."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn

from piccolo_st.data.sampler import HomogeneousBatchSampler
from tests.ranks import run_ranks

SIZES = {"a": 60, "b": 37, "c": 21}
QUIET = {
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}


class RecordingLoss(nn.Module):
    """A ranking loss that keeps the labels it is given, which are the rows' numbers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.loss = MultipleNegativesRankingLoss(model, gather_across_devices=True)
        self.seen: list[list[int]] = []

    def forward(self, features: list[dict[str, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        self.seen.append(labels.tolist())
        self.loss.model = self.model
        return self.loss(features, None)


def _texts(count: int, mark: str) -> list[str]:
    return [f"{mark} {index} 天气 {index * 7 % 13}" for index in range(count)]


def _dataset(sizes: dict[str, int]) -> DatasetDict:
    """Row r of dataset number d has the label 1000 d + r."""
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {
                    "query": _texts(size, f"q{name}"),
                    "positive": _texts(size, f"p{name}"),
                    "label": [1000 * number + row for row in range(size)],
                }
            )
            for number, (name, size) in enumerate(sizes.items())
        }
    )


def _run(
    rank: int,
    world: int,
    make_model: Callable[..., Any],
    folder: Path,
    sampler: Any,
    options: dict[str, Any],
    resume: str | None = None,
) -> list[list[int]]:
    model = make_model()
    loss = RecordingLoss(model)
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "multi_dataset_batch_sampler": sampler,
        "seed": 5,
        **QUIET,
    }
    args = SentenceTransformerTrainingArguments(**{**arguments, **options})
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=_dataset(SIZES), loss=loss)
    trainer.train(resume_from_checkpoint=resume)
    return loss.seen


def _steps(per_rank: list[list[list[int]]]) -> list[list[int]]:
    """The rows of all ranks, step by step."""
    return [[row for batch in step for row in batch] for step in zip(*per_rank, strict=True)]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_resume_inside_a_later_epoch_where_they_stopped(
    make_model: Callable[..., Any], tmp_path: Path, accumulation: int
) -> None:
    sampler = partial(HomogeneousBatchSampler, small_datasets="repeat", accumulation_steps=accumulation)
    plan = HomogeneousBatchSampler(
        _concatenate(),
        batch_size=4,
        world_size=2,
        seed=5,
        drop_last=True,
        small_datasets="repeat",
        accumulation_steps=accumulation,
    ).plan
    stop = plan.steps() // accumulation + 3  # inside epoch 1
    options = {"save_strategy": "steps", "save_steps": stop, "gradient_accumulation_steps": accumulation}
    whole = _steps(run_ranks(_run, 2, make_model, tmp_path, sampler, options))
    resumed = _steps(
        run_ranks(_run, 2, make_model, tmp_path / "b", sampler, {**options, "save_strategy": "no"},
                  str(tmp_path / f"checkpoint-{stop}"))
    )  # fmt: skip
    assert len(whole) == 3 * plan.steps()
    assert all(len({row // 1000 for row in step}) == 1 for step in whole)
    assert whole == [_labels(plan.step(*divmod(step, plan.steps()))) for step in range(len(whole))]
    assert resumed == whole[stop * accumulation :]


def _labels(step: Any) -> list[int]:
    return [1000 * step.dataset + row for row in step.rows.tolist()]


def _concatenate() -> Any:
    from torch.utils.data import ConcatDataset

    return ConcatDataset(_dataset(SIZES).values())
