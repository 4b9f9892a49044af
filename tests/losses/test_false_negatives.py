"""The excluded pairs against the rules written as conditions, and the ids that texts are compared by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.losses import false_negatives
from piccolo_st.losses.choices import DIRECTIONS
from piccolo_st.losses.false_negatives import Exclusions
from piccolo_st.losses.text_ids import column_text_ids, has_text_ids
from tests.losses.reference import allowed_candidates


@given(st.data())
def test_pairs_are_those_of_the_rules_each_once(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 8))
    owner = data.draw(st.lists(st.integers(0, rows - 1), max_size=10))
    texts = data.draw(st.sampled_from([st.just(5), st.integers(0, 3), st.integers(0, 30)]))
    queries = data.draw(st.lists(texts, min_size=rows, max_size=rows))
    documents = data.draw(st.lists(texts, min_size=rows + len(owner), max_size=rows + len(owner)))
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(false_negatives, "_PAIRS", data.draw(st.sampled_from([1, 8, 1 << 20])))
        exclusions = Exclusions(
            rows, torch.tensor(owner, dtype=torch.int64), torch.tensor(queries), torch.tensor(documents)
        )
    for direction in DIRECTIONS:
        parts = list(exclusions.pairs(direction, start, stop))
        listed = [(int(r) + start, int(c)) for row, candidate in parts for r, c in zip(row, candidate, strict=True)]
        candidates = rows if direction.endswith("query") else rows + len(owner)
        expected = {
            (row, candidate)
            for row in range(start, stop)
            for candidate in set(range(candidates))
            - set(allowed_candidates(row, [direction], owner, queries, documents)[direction])
        }
        assert len(listed) == len(set(listed))
        assert set(listed) == expected
    alone = Exclusions(rows, torch.tensor(owner, dtype=torch.int64))
    for direction in DIRECTIONS:
        assert alone.unavoidable(direction, start, stop) == sum(len(r) for r, _ in alone.pairs(direction, start, stop))


def test_a_text_that_is_a_query_here_and_a_document_there_stands_against_neither() -> None:
    """Rows A -> B and C -> A: A is related to B and to C, and B is not to C, but it is an answer to A."""
    a, b, c = 1, 2, 3
    exclusions = Exclusions(2, torch.empty(0, dtype=torch.int64), torch.tensor([a, c]), torch.tensor([b, a]))
    found = {name: [torch.stack(part).T.tolist() for part in exclusions.pairs(name, 0, 2)] for name in DIRECTIONS}
    everything = [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found == {
        "query_to_doc": [[[0, 1]]],  # A against itself
        "query_to_query": [everything],
        "doc_to_query": [[[1, 0]]],  # A against itself; B against C stays
        "doc_to_doc": [everything],
    }


def test_a_popular_text_is_not_multiplied_with_its_copies() -> None:
    """Few answers to many questions, as of classes: blocks of rows stay large."""
    few = 2000 + torch.arange(2000) % 2
    exclusions = Exclusions(2000, torch.empty(0, dtype=torch.int64), torch.arange(2000), few)
    assert len(list(exclusions.pairs("query_to_doc", 0, 2000))) < 10


def test_nearly_equal_texts_everywhere_stay_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(false_negatives, "_PAIRS", 1000)
    same = torch.zeros(200, dtype=torch.int64)
    exclusions = Exclusions(200, torch.empty(0, dtype=torch.int64), same, same)
    parts = [row for row, _ in exclusions.pairs("query_to_query", 0, 200)]
    assert sum(map(len, parts)) == 200 * 200
    assert max(map(len, parts)) <= 1000


def tokens(*rows: list[int], left: bool = False) -> dict[str, torch.Tensor]:
    width = max(map(len, rows)) + 2
    pad = [[0] * (width - len(row)) for row in rows]
    ids = [p + r if left else r + p for r, p in zip(rows, pad, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for r, p in zip(rows, pad, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@given(st.lists(st.lists(st.integers(0, 25000), min_size=1, max_size=12), min_size=1, max_size=8))
def test_ids_are_equal_exactly_when_the_tokens_are(rows: list[list[int]]) -> None:
    rows = [*rows, rows[0], [*rows[0], 0], [0, *rows[0]], rows[0][::-1]]
    ids = column_text_ids(tokens(*rows)).tolist()
    assert len(set(ids)) == len({tuple(row) for row in rows})
    assert ids[len(rows) - 4] == ids[0]
    assert column_text_ids(tokens(*rows, left=True)).tolist() == ids
    borders = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()], dtype=torch.int32)
    flat = {"input_ids": torch.tensor([[token for row in rows for token in row]]), "cu_seq_lens_q": borders}
    assert column_text_ids(flat).tolist() == ids


def splitmix64(place: int) -> int:
    number = (place + 1) * 0x9E3779B97F4A7C15 % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def test_ids_are_the_documented_sum() -> None:
    """In whole numbers without a limit; every process must get the same, they are compared across ranks."""
    rows = [[101, 2769, 102], [101, 102], list(range(20000, 20050))]
    expected = [sum((token + 1) * splitmix64(k) for k, token in enumerate(row)) % 2**64 for row in rows]
    assert [number % 2**64 for number in column_text_ids(tokens(*rows)).tolist()] == expected


def test_the_collators_id_wins_and_unknown_inputs_have_none() -> None:
    given_text_id = torch.tensor([4, 4])
    assert column_text_ids({**tokens([1], [2]), "text_id": given_text_id}) is given_text_id
    assert has_text_ids(tokens([1], [2]))
    assert not has_text_ids({"pixel_values": torch.zeros(2, 3, 4, 4)})
    bag = {"input_ids": torch.tensor([1, 2, 3, 4, 5]), "offsets": torch.tensor([0, 3])}  # of a StaticEmbedding
    assert has_text_ids(bag) and torch.equal(column_text_ids(bag), column_text_ids(tokens([1, 2, 3], [4, 5])))


@pytest.mark.parametrize("owner", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2)])
def test_owners_are_whole_numbers_in_one_dimension(owner: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"owner must be whole numbers, one for each hard negative"):
        Exclusions(3, owner)
