"""Negatives that change in a run: which rows are judged, by which rule, and what a step sees of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset

from piccolo_st.batches import BatchPlan, HomogeneousBatchSampler
from piccolo_st.batches.reading import HomogeneousDataset
from piccolo_st.data import DatasetSpec
from piccolo_st.mining import MiningSettings, NegativesInUse, ReminingSettings, due
from piccolo_st.mining.in_use import RowNegatives
from piccolo_st.mining.remining import hardest, without_easy

ROWS = 24


def state(settings: ReminingSettings, candidates: int = 5, used: int = 2) -> NegativesInUse:
    """Of rows whose i-th candidate is called after the row and i; the dataset after it is not re-mined."""
    rows = {"query": [f"{i}" for i in range(ROWS)], "positive": [f"{i}+" for i in range(ROWS)]}
    mined = Dataset.from_dict({**rows, "negative": [[f"{i}-{j}" for j in range(candidates)] for i in range(ROWS)]})
    spec, mining = DatasetSpec("faq", source="", task="retrieval"), MiningSettings(num_negatives=used)
    own = RowNegatives.of(mined, Dataset.from_dict(rows), spec, mining)
    return NegativesInUse(settings, ["faq", "other"], {"faq": own})


@given(
    sizes=st.lists(st.integers(16, 40), min_size=1, max_size=3),
    share=st.sampled_from([0.2, 1.0]),
    steps=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    world=st.sampled_from([1, 2, 4]),
)
def test_the_rows_that_are_judged_are_those_of_the_steps_in_any_world(
    sizes: list[int], share: float, steps: tuple[int, int], world: int
) -> None:
    plan, begin, end = BatchPlan(sizes, 8 // world, world, 2), steps[0], sum(steps)
    read: dict[int, set[int]] = {}
    for number in range(2 * begin, 2 * end):
        found = plan.step(*divmod(number, plan.steps()))
        read.setdefault(found.dataset, set()).update(found.rows.tolist())
    judged = due(plan, begin, end, share)
    assert {name: rows.tolist() for name, rows in judged.items()} == {
        name: rows.tolist() for name, rows in due(BatchPlan(sizes, 8, 1, 2), begin, end, share).items()
    }
    assert judged.keys() == read.keys()
    for dataset, rows in judged.items():
        assert rows.tolist() == sorted(set(rows.tolist())) and read[dataset] >= set(rows.tolist())
        assert share < 1 or read[dataset] == set(rows.tolist())
    assert due(BatchPlan([4000], 8), 0, 500, 0.2)[0].size == pytest.approx(800, abs=100)


@given(data=st.data())
def test_what_has_become_easy_gives_its_place_to_the_next_candidate(data: st.DataObject) -> None:
    """Against the rule in a loop, over several judgements."""
    settings = ReminingSettings(decline=data.draw(st.sampled_from([1.0, 1.15, 2.0])), ceiling=0.8)
    lengths, counts = [5, 2, 0, 3], [2, 2, 0, 1]
    places = np.array([[0, 1], [0, 1], [-1, -1], [0, -1]], np.int32)
    first = np.full((4, 2), np.nan, np.float32)
    for _ in range(4):
        numbers = st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8)
        scores = np.array(data.draw(numbers), np.float32).reshape(4, 2)
        scores[places < 0] = np.nan
        expected, expected_first = places.copy(), first.copy()
        for row in range(4):
            following = max(places[row]) + 1
            for slot in range(counts[row]):
                score, before = scores[row, slot], first[row, slot]
                if np.isnan(before):
                    expected_first[row, slot] = score
                elif score * np.float32(settings.decline) < before and score < settings.ceiling:
                    if following < lengths[row]:
                        expected[row, slot], expected_first[row, slot] = following, np.nan
                    following += 1
        places, first = without_easy(places, first, scores, np.array(lengths, np.int32), settings)
        np.testing.assert_array_equal(places, expected)
        np.testing.assert_array_equal(first, expected_first)


def test_the_hardest_are_those_most_like_the_query_that_stay_below_the_positive() -> None:
    scores = np.array([[0.1, 0.96, 0.5, 0.7], [0.3, 0.2, np.nan, np.nan], [0.9, 0.9, 0.9, 0.9]], np.float32)
    right, counts = np.array([1.0, 0.9, 0.5], np.float32), np.array([2, 1, 2], np.int32)
    places = np.array([[0, 1], [1, -1], [2, 3]], np.int32)
    assert hardest(places, counts, scores, right, 0.05).tolist() == [[3, 2], [0, -1], [2, 3]]
    assert hardest(places, counts, scores, right, None).tolist() == [[1, 3], [0, -1], [0, 1]]


@pytest.mark.parametrize("rule", ["easy", "hardest"])
def test_a_judgement_has_the_texts_of_some_rows_in_memory_at_once(
    rule: Any, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = make_model(), ReminingSettings(rule=rule)
    own = state(settings).datasets["faq"]
    rows = np.arange(1, ROWS)
    expected = own.judge(model, rows, settings)
    asked: list[int] = []
    encode = model.encode_query
    monkeypatch.setattr(model, "encode_query", lambda texts, **how: asked.append(len(texts)) or encode(texts, **how))
    monkeypatch.setattr("piccolo_st.mining.in_use._ROWS", 7)
    found = own.judge(model, rows, settings)
    assert asked == [7, 7, 7, 2]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.isfinite(found[0]).all() and np.isfinite(found[1]).all() == (rule == "hardest")


def test_own_negatives_are_in_use_beside_the_mined() -> None:
    rows: dict[str, Any] = {"query": ["a", "b"], "positive": ["x", "y"], "negative": [["n", "m"], []]}
    mined = Dataset.from_dict({**rows, "negative": [["n", "m", "1", "2", "3"], ["1"]]})
    spec = DatasetSpec("faq", source="", task="retrieval")
    for existing, expected in (("keep", [[0, 1, 2], [0, -1, -1]]), ("replace", [[0], [0]])):
        mining = MiningSettings(num_negatives=1, existing=existing)  # type: ignore[arg-type]
        assert RowNegatives.of(mined, Dataset.from_dict(rows), spec, mining).places.tolist() == expected


def test_a_batch_has_the_negatives_of_its_step_however_early_it_is_read() -> None:
    """A judgement holds from its step on: what is read for an earlier one has the negatives from before."""
    negatives = state(ReminingSettings(every=4))
    own = negatives.datasets["faq"]
    own.first[:] = 1.0
    rows = np.arange(0, ROWS, 2)
    changed = own.update(
        rows, np.zeros((len(rows), 2), np.float32), np.zeros(len(rows), np.float32), negatives.settings
    )
    negatives.held_from = 2
    assert changed == 2 * len(rows)
    parts = [own.dataset, Dataset.from_dict({"query": ["q"] * 8, "positive": ["p"] * 8})]
    sampler = HomogeneousBatchSampler(ConcatDataset(parts), batch_size=4, names=["faq", "other"], accumulation_steps=2)
    sampler.in_use = negatives
    seen = set()
    for number, batch in enumerate(sampler):
        found = HomogeneousDataset(parts, ["faq", "other"]).__getitems__(batch)
        if found.dataset_name == "other":
            assert "negative" not in found.columns
            continue
        later = number // 2 >= 2
        for query, texts in zip(found.columns["query"], found.columns["negative"], strict=True):
            places = (2, 3) if later and int(query) % 2 == 0 else (0, 1)  # type: ignore[call-overload]
            assert texts == [f"{query}-{place}" for place in places]
            seen.add((later, places))
        assert HomogeneousDataset(parts, ["faq", "other"]).__getitems__(batch[1:3]).columns["negative"] == list(
            found.columns["negative"][1:3]
        )
    assert len(seen) == 3


def test_the_state_comes_back_from_its_file(tmp_path: Any) -> None:
    negatives = state(ReminingSettings())
    own = negatives.datasets["faq"]
    own.first[:] = 0.9
    own.update(np.array([3, 7]), np.full((2, 2), 0.1, np.float32), np.zeros(2, np.float32), negatives.settings)
    negatives.held_from, negatives.seconds = 7, 1.5
    negatives.save(tmp_path)
    again = state(ReminingSettings())
    again.load(tmp_path)
    for key in ("places", "first", "changed", "before"):
        np.testing.assert_array_equal(getattr(again.datasets["faq"], key), getattr(own, key))
    assert (again.held_from, again.seconds) == (7, 1.5)
    with pytest.raises(ValueError, match="has other rows or candidates than dataset 'faq'"):
        state(ReminingSettings(), candidates=3).load(tmp_path)
