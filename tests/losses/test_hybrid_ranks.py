"""The losses of the other tasks on real gloo ranks, and ranks that meet in different losses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from piccolo_st.losses import OwnNegativesLoss, PiccoloLoss, ScoredPairsLoss, SINCERELoss
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
