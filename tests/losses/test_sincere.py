"""SINCERELoss against its formula written out with autograd, text by text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from piccolo_st.losses import PiccoloLoss, SINCERELoss
from piccolo_st.losses.sincere import sincere_loss

TEXTS = ["今天下雨", "明天天气好", "猫", "大狗和小猫", "红黄蓝绿", "山川河海", "雨"]
OTHERS = ["云", *TEXTS[:0:-1]]
CLASSES = [7, 7, -3, 5, 7, -3, 7]


def written_out(texts: Tensor, labels: list[int], anchors: list[int], temperature: float) -> Tensor:
    """The mean over the anchors, as the formula has it."""
    losses = []
    for i in anchors:
        own = [p for p, label in enumerate(labels) if label == labels[i] and p != i]
        against = [texts[i] @ texts[d] / temperature for d, label in enumerate(labels) if label != labels[i]]
        terms = []
        for p in own:
            score = texts[i] @ texts[p] / temperature
            terms.append(torch.logsumexp(torch.stack([score, *against]), 0) - score)
        losses.append(torch.stack(terms).mean() if terms else texts.sum() * 0)
    return torch.stack(losses).mean()


def vectors(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rows = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    return torch.nn.functional.normalize(rows, dim=-1).to(dtype).requires_grad_()


@given(
    labels=st.lists(st.integers(-1, 3), min_size=2, max_size=12),
    cut=st.tuples(st.integers(0, 11), st.integers(1, 12)),
    temperature=st.sampled_from([0.01, 0.05, 1.0]),
    tile_rows=st.sampled_from([None, 1, 3]),
)
def test_loss_and_gradient_are_the_formula(
    labels: list[int], cut: tuple[int, int], temperature: float, tile_rows: int | None
) -> None:
    first = min(cut[0], len(labels) - 1)
    last = min(first + cut[1], len(labels))
    texts = vectors(len(labels))
    # Two ranges, as the two columns of a rank's rows are.
    middle = (first + last) // 2
    anchors = [slice(first, middle), slice(middle, last)] if first < middle else [slice(first, last)]
    value = sincere_loss(texts, torch.tensor(labels), anchors, temperature, tile_rows=tile_rows)
    reference = written_out(texts, labels, list(range(first, last)), temperature)
    torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-13)
    (found,) = torch.autograd.grad(value, texts)
    (wanted,) = torch.autograd.grad(reference, texts)
    assert (found - wanted).norm() <= 1e-11 * max(1.0, float(wanted.norm()))


def test_float32_is_near_float64_where_exponentials_underflow() -> None:
    labels = torch.arange(64) % 5
    exact, rough = vectors(64), vectors(64, torch.float32)
    anchors = [slice(0, 64)]
    results = []
    for texts in (exact, rough):
        value = sincere_loss(texts, labels, anchors, 0.01)
        results.append((value, *torch.autograd.grad(value, texts)))
    assert results[0][0] > 1
    torch.testing.assert_close(results[1][0].double(), results[0][0], rtol=1e-5, atol=0)
    assert (results[1][1] - results[0][1]).norm() < 1e-4 * results[0][1].norm()


def test_without_another_class_or_another_text_of_the_class_there_is_nothing_to_learn() -> None:
    for labels in ([4] * 5, [0, 1, 2, 3, 4]):
        texts = vectors(5, torch.float32)
        value = sincere_loss(texts, torch.tensor(labels), [slice(0, 5)], 0.05)
        (gradient,) = torch.autograd.grad(value, texts)
        assert value == 0 and not gradient.any()


def test_what_is_not_finite_is_not_hidden() -> None:
    texts = vectors(6, torch.float32).detach()
    texts[2, 0] = torch.nan
    assert sincere_loss(texts, torch.tensor([0, 0, 1, 1, 2, 2]), [slice(0, 6)], 0.05).isnan()


def test_shapes_and_temperature_are_checked() -> None:
    with pytest.raises(ValueError, match=r"a label for each text, got texts of shape \(4, 6\) and labels of shape \(3"):
        sincere_loss(vectors(4), torch.zeros(3, dtype=torch.int64), [slice(0, 4)], 0.05)
    with pytest.raises(ValueError, match="temperature must be a positive number, got 0"):
        sincere_loss(vectors(4), torch.zeros(4, dtype=torch.int64), [slice(0, 4)], 0)


@pytest.mark.parametrize("caching", [{}, {"mini_batch_size": 2}, {"mini_batch_num_tokens": 9}])
def test_the_module_is_the_formula_over_the_texts_of_both_columns(
    make_model: Callable[..., Any], caching: dict[str, int]
) -> None:
    model = make_model().double()

    def features() -> list[dict[str, Tensor]]:
        return [dict(model.preprocess(texts)) for texts in (TEXTS, OTHERS)]

    embedded = [model(dict(one))["sentence_embedding"] for one in features()]
    texts = torch.nn.functional.normalize(torch.cat(embedded), dim=-1)
    reference = written_out(texts, CLASSES * 2, list(range(14)), 0.05)
    loss = SINCERELoss(model, **caching)
    value = loss(features(), torch.tensor(CLASSES))
    torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-12)
    gradients = []
    for one in (reference, value):
        model.zero_grad()
        one.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].norm() > 1e-3
    assert (gradients[1] - gradients[0]).norm() <= 1e-10 * gradients[0].norm()
    assert abs(PiccoloLoss(model, 0.05)(features()) - reference) > 1e-3, "the labels must matter"
    assert loss.pop_statistics() == {}  # nothing is masked: the labels decide
    assert "SINCERE" in loss.citation and loss.get_config_dict()["temperature"] == 0.05


def test_each_row_needs_a_whole_number(make_model: Callable[..., Any]) -> None:
    model = make_model()
    loss, labels = SINCERELoss(model), torch.tensor(CLASSES)
    for wrong, found in ((None, "no labels"), (labels.float(), r"labels of shape \(7,\) and type torch.float32")):
        with pytest.raises(ValueError, match=f"a whole number for each row, got 2 columns, 7 rows and {found}"):
            loss([dict(model.preprocess(texts)) for texts in (TEXTS, OTHERS)], wrong)
