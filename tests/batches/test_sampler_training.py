"""The sampler under the stock SentenceTransformerTrainer, on real ranks: datasets, epochs, resuming."""

from __future__ import annotations

from collections import Counter
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

from piccolo_st.batches import HomogeneousBatchSampler, PiccoloDataCollator
from piccolo_st.losses import PiccoloLoss
from tests.helpers.ranks import run_ranks

SIZES = {"a": 60, "b": 37, "c": 21}
QUIET = {
    "use_cpu": True,  # the stock trainer does not see by itself that there is nothing else
    "report_to": "none",
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


# A dict of losses over datasets of different columns. With ST's samplers the ranks of a step draw from different
# datasets, enter different collectives, and the run hangs.


def _mixture() -> DatasetDict:
    pairs = {"query": _texts(40, "q"), "positive": _texts(40, "p")}
    ragged = [[f"n {row} {index}" for index in range(row % 4)] for row in range(40)]
    return DatasetDict(
        {
            "pairs": Dataset.from_dict(pairs),
            "triplets": Dataset.from_dict({**pairs, "negative": _texts(40, "n")}),
            "ragged": Dataset.from_dict({**pairs, "negative": ragged}),
        }
    )


def _run_mixture(
    rank: int, world: int, make_model: Callable[..., Any], folder: Path, options: dict[str, Any]
) -> tuple[int, list[str], dict[str, torch.Tensor]]:
    model = make_model()
    losses = {
        "pairs": PiccoloLoss(model),
        "triplets": MultipleNegativesRankingLoss(model, gather_across_devices=True),
        "ragged": PiccoloLoss(model),
    }
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8 // world,
        num_train_epochs=2,
        learning_rate=1e-3,
        multi_dataset_batch_sampler=HomogeneousBatchSampler,
        dataloader_drop_last=True,
        **{**QUIET, **options},
    )
    collator = PiccoloDataCollator(model.preprocess, prompts={"query": "查询："})
    names: list[str] = []

    class Trainer(SentenceTransformerTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
            names.append(inputs["dataset_name"])
            return super().compute_loss(model, inputs, **kwargs)

    trainer = Trainer(model=model, args=args, train_dataset=_mixture(), loss=losses, data_collator=collator)
    trainer.train()
    return trainer.state.global_step, names, {key: value.cpu() for key, value in model.state_dict().items()}


def test_two_ranks_train_a_dict_of_losses_over_2_3_and_ragged_columns_to_the_end(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    (steps, names, weights), (_, other_names, other_weights) = run_ranks(_run_mixture, 2, make_model, tmp_path, {})
    assert steps == len(names) == 2 * 3 * 5
    assert names == other_names
    assert Counter(names) == {"pairs": 10, "triplets": 10, "ragged": 10}
    start = make_model().state_dict()
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)
    assert max(float((weights[key] - start[key]).abs().max()) for key in weights) > 1e-3  # it did train
    # One process with the global batch reads the same rows, so it ends at the same weights.
    [(_, alone_names, alone)] = run_ranks(_run_mixture, 1, make_model, tmp_path, {})
    assert alone_names == names
    for key in weights:
        torch.testing.assert_close(weights[key], alone[key], rtol=0, atol=2e-4)


@pytest.mark.slow
def test_two_ranks_train_a_dict_of_losses_to_the_end_under_zero_1(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    config = {
        "zero_optimization": {"stage": 1},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }
    options = {"deepspeed": config}
    results = run_ranks(_run_mixture, 2, make_model, tmp_path, options, timeout=280.0)
    (steps, names, weights), (_, other_names, other_weights) = results
    assert steps == len(names) == 2 * 3 * 5
    assert names == other_names
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)
    [(_, _, ddp), _] = run_ranks(_run_mixture, 2, make_model, tmp_path, {})
    for key in weights:
        torch.testing.assert_close(weights[key], ddp[key], rtol=0, atol=2e-4)
