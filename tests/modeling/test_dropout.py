"""Fast dropout is dropout: the same distribution, repeatable by torch's generator, and gone outside training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import nn
from torch.utils.checkpoint import checkpoint

from piccolo_st.modeling.packed.dropout import FastDropout, fast_dropout, use_fast_dropout
from piccolo_st.modeling.portable.saving import save_portable


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_mean_are_those_of_dropout(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 1001)  # not a multiple of the four numbers that a word gives

    y = fast_dropout(x, p)

    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=5 * deviation)
    assert float(y.max()) == pytest.approx(1 / (1 - p), rel=1e-4) and set(y.unique().tolist()) == {0.0, float(y.max())}
    assert float(y.mean()) == pytest.approx(1, abs=5 * deviation / (1 - p))
    neighbours = ((y[:, 1:] == 0) & (y[:, :-1] == 0)).float().mean()
    assert float(neighbours) == pytest.approx(p * p, abs=0.005), "neighbours are not independent"


def test_gradient_goes_through_what_stayed() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)

    y = fast_dropout(x, 0.5)
    y.sum().backward()

    assert torch.allclose(x.grad * x, y) and torch.equal(x.grad == 0, y == 0)
    assert 0 < int((y == 0).sum()) < y.numel()


def test_torchs_generator_repeats_a_mask() -> None:
    x = torch.ones(64, 64)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = fast_dropout(x, 0.3), fast_dropout(x, 0.3)
    torch.set_rng_state(state)

    assert torch.equal(fast_dropout(x, 0.3), first)
    assert not torch.equal(first, second)


def test_checkpointing_repeats_a_mask() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), FastDropout(0.5), nn.Linear(8, 8))
    x = torch.randn(16, 8)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(1)
        layer.zero_grad()
        (checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)).square().sum().backward()
        gradients.append(layer[0].weight.grad.clone())

    assert torch.equal(*gradients)


def test_outside_training_and_at_the_ends_it_is_torchs() -> None:
    x = torch.randn(8, 8)

    assert fast_dropout(x, 0.5, training=False) is x
    assert torch.equal(fast_dropout(x, 0.0), x) and not fast_dropout(x, 1.0).any()
    assert torch.equal(FastDropout(0.5).eval()(x), x)


def test_a_model_keeps_its_embeddings_and_leaves_no_trace(
    make_model: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    model = make_model(dropout=True)
    texts = ["天气今明", "雨", "山川河海春夏秋冬"]
    before = model.encode(texts)
    state = list(model.state_dict())

    replaced = use_fast_dropout(model)

    assert replaced == sum(isinstance(module, FastDropout) for module in model.modules()) > 0
    assert (before == model.encode(texts)).all() and list(model.state_dict()) == state
    model.train()
    features = model.preprocess(texts)
    one, two = (model(dict(features))["sentence_embedding"] for _ in range(2))
    assert not torch.allclose(one, two), "it does not drop anything in training"
    save_portable(model, tmp_path / "model")
    assert (SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts) == before).all()


def test_gradient_caching_repeats_the_masks(make_model: Callable[..., SentenceTransformer]) -> None:
    model = make_model(dropout=True)
    use_fast_dropout(model)
    model.train()
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
    columns = [model.preprocess(["天气", "雨风", "山"]), model.preprocess(["今明", "云", "川河海"])]
    seen: list[torch.Tensor] = []
    handle = model.register_forward_hook(
        lambda module, args, output: seen.append(output["sentence_embedding"].detach())
    )

    loss(columns, None).backward()
    handle.remove()

    assert len(seen) == 8, "two passes of two mini-batches for each column"
    assert all(torch.equal(seen[index], seen[index + 4]) for index in range(4))
