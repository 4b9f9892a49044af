"""A dataset is refused where the gradient of its loss is 0 in every row, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

from piccolo_st.errors import InputError
from piccolo_st.losses import DistillationLoss, OwnNegativesLoss, PiccoloLoss, ScoredPairsLoss, SINCERELoss
from piccolo_st.losses.hybrid import WeightedLoss
from piccolo_st.losses.needs import check_needs, negatives_from

PAIRS = {"query": ["今天天气好", "水果"], "positive": ["很晴朗的天", "苹果"]}
NEGATIVES = {"negative": ["下雨了", "石头"]}
TAUGHT = {"distillation": {"contrastive_weight": 0}}
ONE = {"directions": ["query_to_doc"]}

# loss, its options, further columns, rows of a batch, what the refusal says or None
CASES: list[tuple[type, dict[str, Any], dict[str, Any], int, str | None]] = [
    (PiccoloLoss, {}, {}, 1, "a batch of all processes has 1; raise the batch size"),
    (PiccoloLoss, ONE, {}, 1, "a batch of all processes has 1; raise the batch size"),
    (PiccoloLoss, {"gather_across_devices": False}, {}, 1, "a batch of one process has 1; raise the batch size"),
    (PiccoloLoss, {}, NEGATIVES, 1, None),
    (PiccoloLoss, ONE, NEGATIVES, 1, None),
    (PiccoloLoss, {}, {}, 2, None),
    (PiccoloLoss, ONE, {}, 2, None),
    (OwnNegativesLoss, {}, {}, 2, "no row has one; give it a column of negatives"),
    (OwnNegativesLoss, {}, NEGATIVES, 1, None),
    (
        DistillationLoss,
        TAUGHT,
        {"label": [[1.0], [2.0]]},
        2,
        "scores of each row's negatives alone, and no row has one",
    ),
    (DistillationLoss, TAUGHT, {**NEGATIVES, "label": [[1.0, 2.0], [2.0, -1.0]]}, 1, None),
    (SINCERELoss, {}, {"label": [1, 1]}, 2, "different labels, and all rows have the same; check `columns`"),
    (SINCERELoss, {}, {"label": [1, 2]}, 1, "a batch of all processes has 1"),
    (SINCERELoss, {}, {"label": [1, 2]}, 2, None),
    (ScoredPairsLoss, {}, {"score": [0.5, 0.5]}, 2, "different scores, and all rows have the same; check `columns`"),
    (ScoredPairsLoss, {}, {"score": [0.5, 1.0]}, 1, "a batch of all processes has 1"),
    (ScoredPairsLoss, {}, {"score": [0.5, 1.0]}, 2, None),
]


@pytest.mark.parametrize(("kind", "options", "columns", "rows", "refusal"), CASES)
def test_refused_is_what_has_no_gradient(
    make_model: Callable[..., Any],
    kind: Any,
    options: dict[str, Any],
    columns: dict[str, Any],
    rows: int,
    refusal: str | None,
) -> None:
    model = make_model()
    loss = kind(model, **options)
    texts = [column[:rows] for name, column in {**PAIRS, **columns}.items() if name not in ("label", "score")]
    labels = next((torch.tensor(columns[name][:rows]) for name in ("label", "score") if name in columns), None)
    loss([model.preprocess(column) for column in texts], labels).backward()
    steepest = max(float(weight.grad.abs().max()) for weight in model.parameters() if weight.grad is not None)
    assert (steepest < 1e-12) == (refusal is not None)

    data = Dataset.from_dict({**PAIRS, **columns})
    for wrapped in (loss, WeightedLoss(MatryoshkaLoss(model, loss, [8, 32]), 0.5)):
        if refusal is None:
            check_needs("faq", wrapped, data, rows, 1)
        else:
            with pytest.raises(InputError, match=f"the loss of dataset 'faq', {kind.__name__}, .*{refusal}"):
                check_needs("faq", wrapped, data, rows, 1)


def test_a_process_with_one_row_learns_from_the_others(make_model: Callable[..., Any]) -> None:
    data = Dataset.from_dict(PAIRS)
    check_needs("faq", PiccoloLoss(make_model()), data, 1, 2)
    with pytest.raises(InputError, match="of one process has 1"):
        check_needs("faq", PiccoloLoss(make_model(), gather_across_devices=False), data, 1, 2)


@pytest.mark.parametrize(
    ("cells", "some"),
    [
        ([[], []], False),
        ([[], [None]], False),
        ([None, None], False),
        ([[], ["错"]], True),
        ([None, "错"], True),
    ],
)
def test_one_negative_in_the_last_row_is_enough(make_model: Callable[..., Any], cells: list[Any], some: bool) -> None:
    many = 10_001  # more than are read at a time
    columns = {"query": ["问"] * many, "positive": ["答"] * many, "negative": [cells[0]] * (many - 1) + [cells[1]]}
    data, loss = Dataset.from_dict(columns), OwnNegativesLoss(make_model())
    if some:
        check_needs("faq", loss, data, 8, 1)
        with pytest.raises(InputError, match="no row has one"):
            check_needs("faq", loss, data.select(range(many - 1)), 8, 1)
    else:
        with pytest.raises(InputError, match="no row has one"):
            check_needs("faq", loss, data, 8, 1)


def test_nothing_is_said_of_what_cannot_be_judged(make_model: Callable[..., Any]) -> None:
    model, data = make_model(), Dataset.from_dict(PAIRS)
    check_needs("faq", MultipleNegativesRankingLoss(model), data, 1, 1)
    check_needs("faq", PiccoloLoss(model), data.to_iterable_dataset(), 1, 1)
    check_needs("faq", OwnNegativesLoss(model), data.with_transform(lambda rows: {**rows, **NEGATIVES}), 1, 1)


def test_where_negatives_come_from(make_model: Callable[..., Any]) -> None:
    model = make_model()
    pairs, own = Dataset.from_dict(PAIRS), Dataset.from_dict({**PAIRS, "negative": [["错"], ["错", "误"]]})
    assert negatives_from(PiccoloLoss(model), pairs) == "in batch"
    assert negatives_from(PiccoloLoss(model), own) == "in batch, own: 1 to 2"
    assert negatives_from(OwnNegativesLoss(model), pairs) == "own: none"
    assert negatives_from(OwnNegativesLoss(model), Dataset.from_dict({**PAIRS, **NEGATIVES})) == "own: 1"
    assert negatives_from(WeightedLoss(SINCERELoss(model), 0.2), pairs) == "other labels"
    assert negatives_from(ScoredPairsLoss(model), pairs) == "other scores"
