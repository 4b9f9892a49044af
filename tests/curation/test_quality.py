"""Filters: what they count is counted again in plain Python, what they rank is ranked again by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piccolo_st.curation.quality import FilterSettings, consistent, heuristic_faults, simplified, text_statistics
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.errors import InputError
from piccolo_st.schema import build

RETRIEVAL = DatasetSpec("a", "x", "retrieval")
PAIR = DatasetSpec("p", "x", "pair")


def test_statistics_of_texts() -> None:
    found = text_statistics(pa.array(["天气good", "こんにちは", "哈哈哈哈", "", "１２天", "😀😀!"]))
    assert found.length.tolist() == [6, 5, 4, 0, 3, 3]
    assert found.han.tolist() == pytest.approx([2 / 6, 0, 1, 0, 1 / 3, 0])
    assert found.kana.tolist() == pytest.approx([0, 1, 0, 0, 0, 0])
    assert found.repetition.tolist() == pytest.approx([1 / 6 * 2, 1 / 5, 1, 0, 1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("settings_", "texts", "expected"),
    [
        ({"min_characters": 3}, ["天气", "天气好"], ["too short", None]),
        ({"max_query_characters": 2}, ["天气", "天气好"], [None, "too long"]),
        ({"min_han": 0.5}, ["天气good", "天气go", "1234"], ["too little Chinese", None, "too little Chinese"]),
        ({"max_kana": 0.1}, ["天気がいい", "天气"], ["Japanese", None]),
        ({"max_repetition": 0.5}, ["哈" * 9 + "好吗", "哈哈哈"], ["one character repeated", None]),
        ({"min_han": None, "max_kana": None, "max_repetition": None}, ["abc", "ハ" * 20], [None, None]),
    ],
)  # fmt: skip
def test_rules_of_length_language_and_repetition(settings_: dict[str, Any], texts: list[str], expected: list) -> None:
    off = {"min_han": None, "max_kana": None, "max_repetition": None}
    table = pa.table({"query": texts, "positive": ["这是一个正常的回答"] * len(texts)})
    assert heuristic_faults(RETRIEVAL, table, FilterSettings(**{**off, **settings_})).tolist() == expected


def test_documents_have_a_limit_of_their_own_and_sentences_that_of_queries() -> None:
    chosen = FilterSettings(max_query_characters=4, max_document_characters=6)
    table = pa.table({"query": ["天气", "天气好不好", "天气"], "positive": ["今天是晴天", "好", "今天是大晴天的"]})
    assert heuristic_faults(RETRIEVAL, table, chosen).tolist() == [None, "too long", "too long"]
    sentences = pa.table({"sentence1": ["天气"], "sentence2": ["今天是晴天"], "label": [0.0]})
    assert heuristic_faults(PAIR, sentences, chosen).tolist() == ["too long"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_han": 1.5}, r"filter.min_han must be at least 0 and at most 1, got 1\.5"),
        ({"top_k": 0}, r"filter.top_k must be a whole number of at least 1, got 0"),
        ({"top_k": 9, "pool": 5}, r"filter.top_k must be at most filter.pool=5, beyond which every row is kept, got 9"),
    ],
)
def test_filter_settings_that_cannot_be_say_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(FilterSettings, changes, "filter", section="filter")


def test_traditional_characters_become_simplified_in_texts_and_lists() -> None:
    pytest.importorskip("opencc")
    table = pa.table({"query": ["電腦"], "negative": [["軟體", "天气"]], "label": pa.array([0.5], pa.float32())})
    converted = simplified(table)
    assert converted.to_pylist() == [{"query": "电脑", "negative": ["软体", "天气"], "label": 0.5}]
    assert converted.schema == table.schema


@given(seed=st.integers(0, 50), top_k=st.integers(1, 12))
@settings(max_examples=40)
def test_a_pair_is_consistent_if_its_positive_ranks_within_the_pool(seed: int, top_k: int) -> None:
    pytest.importorskip("faiss")
    generator = np.random.default_rng(seed)

    def unit(rows: int) -> np.ndarray:
        vectors = generator.normal(size=(rows, 8)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    query, positive, pool = unit(9), unit(9), unit(12)
    pool[:3] = positive[:3]  # some positives stand in the pool themselves
    own = (query * positive).sum(axis=1)
    better = ((query @ pool.T) > own[:, None] + 1e-5).sum(axis=1)
    assert consistent(query, positive, pool, top_k).tolist() == (better < top_k).tolist()
