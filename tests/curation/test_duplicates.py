"""Duplicates and evaluation texts: exact where it is promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piccolo_st.curation import shingles
from piccolo_st.curation.duplicates import (
    DedupSettings,
    band_keys,
    contaminated,
    first_of_each,
    greedy_duplicates,
    identity_keys,
    row_keys,
    similar_rows,
    without_tests,
)
from piccolo_st.curation.shingles import Collection, Shingles, bands_for, jaccard, merge, shingle
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.errors import InputError, MixtureError
from piccolo_st.hashing import text_key
from piccolo_st.schema import build

RETRIEVAL = DatasetSpec("a", "x", "retrieval")
PAIR = DatasetSpec("p", "x", "pair")
CLASSES = DatasetSpec("c", "x", "classification")

TEXTS = st.lists(st.text(st.sampled_from("天气晴雨风云，。 aＡ"), max_size=9), min_size=1, max_size=12)


def _keys(texts: list[str]) -> list[str]:
    return text_key(pa.array(texts, type=pa.string())).to_pylist()


def _grams(text: str, n: int) -> set[str]:
    (key,) = _keys([text])
    return {key[i : i + n] for i in range(len(key) - n + 1)} if len(key) >= n else {key} - {""}


def _similarity(one: str, other: str, n: int) -> float:
    a, b = _grams(one, n), _grams(other, n)
    return len(a & b) / len(a | b) if a | b else 1.0


def test_texts_are_the_same_without_case_width_space_and_punctuation() -> None:
    assert len(set(_keys(["今天，ABC！", " 今天ａｂｃ", "今 天\u3000abc。", "「今天」Abc"]))) == 1
    assert len(set(_keys(["。", "！", "今天", "今日", "１", "2"]))) == 6, "different texts stay different"


@given(first=TEXTS, second=TEXTS, n=st.integers(1, 4))
@settings(max_examples=100)
def test_overlaps_are_those_of_sets_of_character_n_grams(first: list[str], second: list[str], n: int) -> None:
    rows = min(len(first), len(second))
    a, b = pa.array(first[:rows], type=pa.string()), pa.array(second[:rows], type=pa.string())
    expected = [_similarity(one, other, n) for one, other in zip(first, second, strict=False)]
    assert np.allclose(jaccard(shingle(text_key(a), n), shingle(text_key(b), n)), expected)


@given(texts=TEXTS, tests=TEXTS, n=st.integers(1, 4))
@settings(max_examples=100)
def test_the_most_similar_text_of_a_collection_is_never_missed(texts: list[str], tests: list[str], n: int) -> None:
    best, which = Collection(pa.array(tests, type=pa.string()), n).best_overlap(pa.array(texts, type=pa.string()))
    for text, found, index in zip(texts, best, which, strict=True):
        # A text without n-grams is like nothing at all, here.
        every = [_similarity(text, test, n) if _grams(text, n) and _grams(test, n) else 0.0 for test in tests]
        assert found == pytest.approx(max(every))
        assert (index == -1) == (max(every) == 0)
        if index >= 0:
            assert every[index] == pytest.approx(max(every))


def test_merged_columns_keep_their_rows_and_their_n_grams_apart() -> None:
    one, two = pa.array(["天气", "", "晴雨风"]), pa.array(["", "云", "天气晴"])
    both = merge([shingle(one, 2, 0), shingle(two, 2, 1)])
    for row in range(3):
        expected = {
            *shingle(one.slice(row, 1), 2, 0).hashes.tolist(),
            *shingle(two.slice(row, 1), 2, 1).hashes.tolist(),
        }
        assert set(both.hashes[both.offsets[row] : both.offsets[row + 1]].tolist()) == expected
    assert jaccard(shingle(one, 2, tag=0), shingle(one, 2, tag=1)).tolist() == [0.0, 1.0, 0.0], (
        "two empty ones are equal"
    )


@pytest.mark.parametrize(("threshold", "permutations"), [(0.9, 128), (0.8, 128), (0.7, 128), (0.5, 128), (0.8, 64)])
def test_bands_promise_their_recall_and_no_shorter_ones_are_taken(threshold: float, permutations: int) -> None:
    bands, rows = bands_for(threshold, permutations, recall=0.99)
    assert bands * rows <= permutations
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    longer = permutations // (rows + 1)
    assert 1 - (1 - threshold ** (rows + 1)) ** longer < 0.99


def test_bands_that_cannot_keep_the_promise_say_so() -> None:
    with pytest.raises(
        MixtureError, match=r"finding pairs of similarity 0\.1 .* needs more permutations, got 4; raise `perm"
    ):
        bands_for(0.1, 4)


def test_missing_rensa_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rensa", None)
    with pytest.raises(InputError, match=r'needs rensa; run: pip install "piccolo_st\[data\]"'):
        shingles.band_hashes(Shingles(np.zeros(1, dtype=np.uint64), np.array([0, 1])), 2, 2, 0)


def test_similar_rows_share_a_band_and_other_groups_never_do() -> None:
    pytest.importorskip("rensa")
    generator = np.random.default_rng(0)
    alphabet = [chr(0x4E00 + i) for i in range(2000)]
    texts = ["".join(generator.choice(alphabet, 60)) for _ in range(300)]
    near = [text[:25] + "新" + text[26:] for text in texts]  # 3 of 58 trigrams change: 55 / 61 = 0.90
    settings = DedupSettings(near=0.8)
    bands, rows = bands_for(0.8, settings.permutations)

    def keys(own: list[str], group: int) -> np.ndarray:
        table = pa.table({"query": own, "positive": [text[::-1] for text in own]})
        return band_keys(identity_keys(RETRIEVAL, table), group, settings, bands, rows)

    first, second = keys(texts, 0), keys(near, 0)
    assert first.shape == (bands, 300)
    assert (first == second).any(axis=0).mean() > 0.99
    assert not (keys(texts, 1) == first).any()
    other = keys(texts[::-1], 0)
    unlike = [i for i in range(300) if i != 299 - i]
    assert (first == other)[:, unlike].any(axis=0).mean() < 0.01


def test_rows_are_as_similar_as_their_least_similar_column() -> None:
    one = pa.table({"query": ["天气怎么样", "天气怎么样"], "positive": ["今天是晴天", "今天是晴天"]})
    other = pa.table({"query": ["天气怎么样", "股票怎么样"], "positive": ["今天是晴天", "今天是晴天"]})
    keys = [identity_keys(RETRIEVAL, table) for table in (one, other)]
    assert similar_rows(*keys, 2) == pytest.approx([1.0, 2 / 6])


def test_row_keys_are_equal_for_equal_rows_of_a_group() -> None:
    table = pa.table(
        {"query": ["甲", "甲。", "乙", "甲"], "positive": ["乙", "乙", "甲", "丙"], "negative": [["x"], [], [], []]}
    )
    texts = identity_keys(RETRIEVAL, table)
    keys = row_keys(RETRIEVAL, texts, 0)
    assert keys[0] == keys[1], "negatives do not make a row another one"
    assert len({*keys.tolist()}) == 3, "the query is not the positive"
    assert row_keys(RETRIEVAL, texts, 1)[0] != keys[0]
    sentences = pa.table({"sentence1": ["甲", "乙"], "sentence2": ["乙", "甲"], "label": [1.0, 1.0]})
    first, second = row_keys(PAIR, identity_keys(PAIR, sentences), 0)
    assert first == second, "the sentences of a pair may change places"
    drawn = pa.table({"query": ["甲", "甲"], "positive": ["乙", "丙"]})
    first, second = row_keys(CLASSES, identity_keys(CLASSES, drawn), 0)
    assert first == second, "companions drawn for a text do not make it another one"


@given(keys=st.lists(st.integers(0, 5), max_size=30))
def test_the_first_of_each_key(keys: list[int]) -> None:
    found = first_of_each(np.array(keys, dtype=np.uint64))
    assert found.tolist() == [keys.index(key) for key in keys]


@given(pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] < p[1]), max_size=30))
@settings(max_examples=200)
def test_of_similar_rows_one_stays_and_who_goes_has_one_that_stays(pairs: list[tuple[int, int]]) -> None:
    gone, kept = greedy_duplicates(np.array(pairs, dtype=np.int64).reshape(-1, 2))
    left = set(range(13)) - set(gone.tolist())
    assert not any(one in left and other in left for one, other in pairs)
    for row, stays in zip(gone.tolist(), kept.tolist(), strict=True):
        assert stays in left
        assert (stays, row) in pairs


TESTS = ["测试集里的一句话", "另一句测试的话"]


def test_rows_with_evaluation_texts_are_found_in_every_column_but_negatives() -> None:
    table = pa.table(
        {
            "query": ["无关的问题", TESTS[0], "别的问题", "第四问"],
            "positive": [["好的", f"「{TESTS[1]}」"], ["回答"], ["答案"], ["答四"]],
            "negative": [["甲"], ["乙"], [TESTS[0], "丙"], []],
            "label": pa.array([0.0, 0.0, 0.0, 0.0]),
        }
    )
    tests = Collection(pa.array(TESTS), 3)
    best, which = contaminated(table, tests)
    assert (best >= 0.8).tolist() == [True, True, False, False]
    assert which[:2].tolist() == [1, 0]
    cleaned, bad = without_tests(table, tests, 0.8)
    assert cleaned["negative"].to_pylist() == [["甲"], ["乙"], ["丙"], []]
    assert not bad.any()
    single = table.select(["query"]).append_column("negative", pa.array(["甲", "乙", TESTS[0], "丁"]))
    assert without_tests(single, tests, 0.8)[1].tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decontaminate": 1.2}, r"dedup.decontaminate must be above 0 and at most 1, got 1\.2"),
        ({"shingle": 0}, r"dedup.shingle must be a whole number of at least 1, got 0"),
    ],
)
def test_dedup_settings_that_cannot_be_say_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(DedupSettings, changes, "dedup", section="dedup")
