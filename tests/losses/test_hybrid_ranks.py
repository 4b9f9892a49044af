"""The losses of the other tasks on real gloo ranks, and ranks that meet in different losses."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.nn.parallel import DistributedDataParallel

from piccolo_st import HomogeneousBatchSampler, PiccoloTrainer, PiccoloTrainingArguments
from piccolo_st.losses import OwnNegativesLoss, PiccoloLoss, ScoredPairsLoss, SINCERELoss, build_losses
from tests.helpers.ranks import run_ranks
from tests.losses.test_piccolo_ranks import features, load, share, text

LOSSES = {"own": OwnNegativesLoss, "scored": ScoredPairsLoss, "classes": SINCERELoss}
CLASSES = [0, 1, 1, 2, 0, 1, 2, 2]
SCORES = [0.1, 0.9, 0.4, 0.4, 0.8, 0.0, 0.5, 0.7]


def one_step(rank: int, world: int, path: str, sizes: tuple[int, ...], kind: str) -> dict[str, Any]:
    model = load(path).double()
    batch = features(model, share(rank, sizes))
    first = sum(sizes[:rank])
    labels = torch.tensor((CLASSES if kind == "classes" else SCORES)[first : first + sizes[rank]])
    loss: Any = LOSSES[kind](model)
    if world > 1:
        loss.model = DistributedDataParallel(model, find_unused_parameters=True)
    value = loss(batch, labels) if kind == "own" else loss(batch[:2], labels)
    value.backward()
    return {
        "value": value.item(),
        "gradient": torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]),
    }


@pytest.mark.parametrize("kind", list(LOSSES))
@pytest.mark.parametrize("sizes", [(4, 4), (5, 3)])
def test_two_ranks_equal_one(encoder_dir_no_dropout: Path, kind: str, sizes: tuple[int, ...]) -> None:
    path = str(encoder_dir_no_dropout)
    (alone,) = run_ranks(one_step, 1, path, (8,), kind)
    results = run_ranks(one_step, 2, path, sizes, kind)
    assert sum(result["value"] for result in results) / 2 == pytest.approx(alone["value"], rel=1e-12)
    assert alone["gradient"].norm() > 1e-3
    for result in results:
        assert (result["gradient"] - alone["gradient"]).norm() <= 1e-10 * alone["gradient"].norm()


def different_losses(rank: int, world: int, path: str) -> None:
    model = load(path)
    pairs = features(model, share(rank, (4, 4)))[:2]
    loss: Any = PiccoloLoss(model) if rank else ScoredPairsLoss(model)
    loss(pairs, torch.tensor(SCORES[:4]))


def test_ranks_in_different_losses_raise_on_each(encoder_dir_no_dropout: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        run_ranks(different_losses, 2, str(encoder_dir_no_dropout), timeout=20)
    for rank in (0, 1):
        message = rf"rank {rank} of 2 raised ValueError: .*the loss is ScoredPairsLoss on rank 0, PiccoloLoss on rank 1"
        assert re.search(message, str(error.value)), str(error.value)


def unlabelled(rank: int, world: int, path: str, kind: str) -> None:
    model = load(path)
    pairs = [dict(model.preprocess([text(0), text(1)])) for _ in range(2)]
    LOSSES[kind](model)(pairs, torch.tensor((CLASSES if kind == "classes" else SCORES)[: 2 - rank]))


@pytest.mark.parametrize("kind", ["scored", "classes"])
def test_a_missing_label_on_one_rank_raises_on_each(encoder_dir_no_dropout: Path, kind: str) -> None:
    with pytest.raises(RuntimeError, match=r"rank 0 .*labelled.* is True on rank 0, False on rank 1(?s:.*)rank 1"):
        run_ranks(unlabelled, 2, str(encoder_dir_no_dropout), kind, timeout=20)


WEIGHTS = {"faq": 1.0, "graded": 0.5}


def one_update(rank: int, world: int, path: str, output: str) -> torch.Tensor:
    """What an update of retrieval rows and scored rows together adds to the weights."""
    model = load(path).double()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    pairs = {"query": [text(n) for n in range(8)], "positive": [text(n + 30) for n in range(8)]}
    scored = {"sentence1": [text(n) for n in range(8)], "sentence2": [text(n + 9) for n in range(8)], "label": SCORES}
    tasks = {"faq": ("retrieval", {"weight": WEIGHTS["faq"]}), "graded": ("sts", {"weight": WEIGHTS["graded"]})}
    trainer = PiccoloTrainer(
        model=model,
        args=PiccoloTrainingArguments(
            output,
            per_device_train_batch_size=8 // world,
            gradient_accumulation_steps=2,
            multi_dataset_batch_sampler=partial(HomogeneousBatchSampler, accumulation_steps=2, together=[0, 1]),
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            warmup_steps=0,
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=DatasetDict(faq=Dataset.from_dict(pairs), graded=Dataset.from_dict(scored)),
        loss=build_losses(model, tasks, temperature=0.05),
    )
    trainer.train()
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - before


def test_retrieval_and_scored_rows_in_one_update_on_1_2_and_4_ranks(
    encoder_dir_no_dropout: Path, tmp_path: Path
) -> None:
    path = str(encoder_dir_no_dropout)
    model = load(path).double()
    column = lambda first: dict(model.preprocess([text(n + first) for n in range(8)]))  # noqa: E731
    retrieval = PiccoloLoss(model, temperature=0.05)([column(0), column(30)])
    scored = ScoredPairsLoss(model)([column(0), column(9)], torch.tensor(SCORES))
    ((WEIGHTS["faq"] * retrieval + WEIGHTS["graded"] * scored) / 2).backward()
    expected = -torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                           for p in model.parameters()])  # fmt: skip
    assert expected.norm() > 1e-3
    for world in (1, 2, 4):
        for found in run_ranks(one_update, world, path, str(tmp_path / str(world)), timeout=120):
            assert (found - expected).norm() <= 1e-6 * expected.norm()
