"""QuantisedLoss: bytes and bits against a float64 reference, with caching, MRL and real ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch.nn.parallel import DistributedDataParallel

from piccolo_st.losses import PiccoloLoss, QuantisedLoss, build_losses
from piccolo_st.losses.choices import DIRECTIONS
from piccolo_st.losses.quantised import Calibration
from tests.helpers.ranks import run_ranks
from tests.losses.reference import naive_loss
from tests.losses.test_piccolo import CACHING, NEGATIVES, POSITIVES, QUERIES, assert_same, preprocess, run
from tests.losses.test_piccolo_ranks import features, load, share

BOTH = ("int8", "binary")


def quantised(x: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) vectors quantised number by number, in float64, and where the gradient passes."""
    kept, passes = np.empty(x.shape), np.ones(x.shape)
    for d, column in enumerate(x.T.astype(np.float64)):
        low, high, mean, one = column.min(), column.max(), column.mean(), x.shape[1] ** -0.5
        for n, value in enumerate(column):
            if precision == "int8":
                levels = low + (high - low) * np.arange(256) / 255
                kept[n, d] = levels[abs(levels - value).argmin()]
            else:
                kept[n, d] = one if value > mean else -one
                passes[n, d] = abs(value - mean) <= one
    return kept, passes


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**32 - 1), st.sampled_from(BOTH), st.floats(-2, 2))
def test_values_and_gradients_are_those_of_the_reference(
    rows: int, dimension: int, seed: int, precision: Any, offset: float
) -> None:
    numbers = np.random.default_rng(seed).normal(offset, 1, (rows, dimension))
    vectors = torch.nn.functional.normalize(torch.from_numpy(numbers), dim=1).requires_grad_()
    expected, passes = quantised(vectors.detach().numpy(), precision)
    if precision == "binary" and rows == 1:  # its own mean
        expected[:] = -(dimension**-0.5)
    found = Calibration.of(vectors.detach()).quantise(vectors, precision)
    span = float(vectors.detach().max() - vectors.detach().min())
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-12 + span / 255 * 1e-6)
    weights = torch.rand_like(found, generator=torch.manual_seed(seed))
    (found * weights).sum().backward()
    np.testing.assert_allclose(vectors.grad.numpy(), weights.numpy() * passes)


def reference(model: Any, columns: list[dict[str, Any]], dims: list[int]) -> tuple[float, torch.Tensor]:
    """The loss of each dimension as it is and in both precisions, each gradient taken through by hand."""
    model.zero_grad()
    total, sizes = 0.0, [len(column["input_ids"]) for column in columns]
    for dim in dims:
        rows = torch.cat([model(dict(column))["sentence_embedding"][:, :dim] for column in columns])
        vectors = torch.nn.functional.normalize(rows, dim=1)
        gradient = torch.zeros_like(vectors)
        for precision in ("float", *BOTH):
            kept, passes = vectors.detach().clone(), np.ones(1)
            if precision != "float":
                numbers, passes = quantised(vectors.detach().numpy(), precision)
                kept = torch.from_numpy(numbers)
            leaf = kept.requires_grad_()
            q, p, *h = leaf.split(sizes)
            owner = [i for _ in h for i in range(len(q))]
            value = naive_loss(q, p, torch.cat([q[:0], *h]), owner, temperature=0.05, directions=DIRECTIONS)
            value.backward()
            total += value.item()
            gradient += leaf.grad * torch.as_tensor(passes)
        vectors.backward(gradient)
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("dims", [[32], [32, 12]])
@pytest.mark.parametrize("settings", [*CACHING, {"chunk_tokens": 12}])
def test_the_loss_is_the_reference_with_caching_chunks_and_mrl(
    make_model: Callable[..., Any], settings: dict[str, int], dims: list[int]
) -> None:
    model = make_model().double()
    columns = preprocess(model, QUERIES, POSITIVES, NEGATIVES[0])
    options: dict[str, Any] = {"quantised": BOTH, "matryoshka_dims": dims if len(dims) > 1 else None}
    (loss,) = build_losses(model, {"a": "retrieval"}, temperature=0.05, **options, **settings).values()
    expected = reference(model, columns, dims)
    assert_same(run(loss, columns), expected, 1e-9)
    plain = run(PiccoloLoss(model, 0.05), columns)
    assert abs(expected[0] / len(dims) / 3 - plain[0]) > 1e-3, "bits and bytes changed nothing"
    with torch.no_grad():
        assert loss([dict(column) for column in columns], None).item() == pytest.approx(expected[0])


def test_sentence_transformers_own_losses_take_it(make_model: Callable[..., Any]) -> None:
    model = make_model().double()
    columns = preprocess(model, QUERIES, POSITIVES, NEGATIVES[0])
    whole = run(QuantisedLoss(model, MultipleNegativesRankingLoss(model), BOTH), columns)
    cached = QuantisedLoss(model, CachedMultipleNegativesRankingLoss(model, mini_batch_size=2), BOTH)
    assert_same(run(cached, columns), whole)
    assert_same(run(MatryoshkaLoss(model, cached, [32]), columns), whole)
    assert cached.get_config_dict()["quantised"] == list(BOTH) and "1308.3432" in cached.citation


def one_step(rank: int, world: int, path: str, sizes: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
    model = load(path).double()
    loss = QuantisedLoss(model, PiccoloLoss(model, temperature=0.05, **settings), BOTH)
    if world > 1:
        loss.model = loss.loss.model = DistributedDataParallel(model, find_unused_parameters=True)
    value = loss(features(model, share(rank, sizes)), None)
    value.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"value": value.item(), "gradient": gradient}


@pytest.mark.parametrize("settings", [{}, {"mini_batch_size": 2}])
def test_two_ranks_equal_one(encoder_dir_no_dropout: Path, settings: dict[str, Any]) -> None:
    path = str(encoder_dir_no_dropout)
    (alone,) = run_ranks(one_step, 1, path, (8,), settings)
    results = run_ranks(one_step, 2, path, (5, 3), settings)
    assert sum(result["value"] for result in results) / 2 == pytest.approx(alone["value"], rel=1e-12)
    assert alone["gradient"].norm() > 1e-3
    for result in results:
        assert (result["gradient"] - alone["gradient"]).norm() <= 1e-10 * alone["gradient"].norm()


@pytest.mark.parametrize("precisions", [[], ["int8", "int8"], ["int4"]])
def test_what_it_does_not_know_is_refused(make_model: Callable[..., Any], precisions: list[Any]) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"quantised must be different names of \('int8', 'binary'\), at least one, g"):
        QuantisedLoss(model, PiccoloLoss(model), precisions)
