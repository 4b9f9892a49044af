"""Hashes of texts, and rows that change places so that no block holds a text twice."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.data.duplicates import DuplicateAvoidance, dataset_identities, text_identities
from piccolo_st.data.plan import BatchPlan
from piccolo_st.errors import InputError


def _repeats(keys: np.ndarray, rows: np.ndarray) -> int:
    """Rows of a block that share a text with an earlier row of it."""
    seen: set[int] = set()
    repeated = 0
    for texts in keys[rows].tolist():
        repeated += not seen.isdisjoint(texts)
        seen.update(texts)
    return repeated


@given(
    blocks=st.integers(1, 6), size=st.integers(1, 12), texts=st.integers(1, 60), columns=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_window_keeps_its_rows_and_never_gets_worse(
    blocks: int, size: int, texts: int, columns: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    keys = random.integers(0, texts, (blocks * size + 5, columns))
    rows = random.permutation(len(keys))[: blocks * size].reshape(blocks, size)
    before = rows.copy()
    arranged = DuplicateAvoidance([keys])(0, rows)
    assert np.array_equal(rows, before)
    assert arranged.shape == rows.shape
    assert sorted(arranged.ravel().tolist()) == sorted(rows.ravel().tolist())
    assert sum(_repeats(keys, block) for block in arranged) <= sum(_repeats(keys, block) for block in rows)
    assert np.array_equal(DuplicateAvoidance([keys])(0, rows), arranged)


@given(blocks=st.integers(2, 8), size=st.integers(2, 30), data=st.data())
def test_texts_in_no_more_rows_than_half_the_blocks_are_kept_apart(blocks: int, size: int, data: st.DataObject) -> None:
    """With one text a row and room to move, every row finds a partner."""
    total = blocks * size
    copies = data.draw(st.integers(1, max(1, blocks // 2)))
    keys = (np.arange(total) // copies)[:, None]
    rows = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(total).reshape(blocks, size)
    arranged = DuplicateAvoidance([keys])(0, rows)
    assert sum(_repeats(keys, block) for block in arranged) == 0


def test_a_text_counts_in_whichever_column_it_stands() -> None:
    keys = np.array([[0, 1], [1, 2], [3, 4], [5, 6]])  # row 1's query is row 0's positive
    arranged = DuplicateAvoidance([keys])(0, np.array([[0, 1], [2, 3]]))
    assert _repeats(keys, arranged[0]) == _repeats(keys, arranged[1]) == 0


def test_a_row_that_holds_a_text_twice_stays() -> None:
    keys = np.array([[7, 7], [1, 2], [3, 4], [5, 6]])
    rows = np.array([[0, 1], [2, 3]])
    assert DuplicateAvoidance([keys])(0, rows).tolist() == rows.tolist()


@given(
    groups=st.integers(5, 60), copies=st.integers(1, 6), batch_size=st.integers(1, 4), world=st.sampled_from([1, 2, 4]),
    epoch=st.integers(0, 2), window=st.integers(2, 16),
)  # fmt: skip
def test_a_plan_still_visits_each_row_once_and_shares_each_step(
    groups: int, copies: int, batch_size: int, world: int, epoch: int, window: int
) -> None:
    size = groups * copies + 4 * 4
    keys = (np.arange(size) // copies)[:, None]
    plan = BatchPlan([size], batch_size, world_size=world, arrange=DuplicateAvoidance([keys]), window=window)
    alone = BatchPlan([size], batch_size * world, arrange=DuplicateAvoidance([keys]), window=window)
    visits: Counter[int] = Counter()
    for step in np.random.default_rng(0).permutation(plan.steps()).tolist():
        whole = plan.step(epoch, step)
        visits.update(whole.rows.tolist())
        parts = [plan.step(epoch, step, rank).rows for rank in range(world)]
        assert np.concatenate(parts).tolist() == whole.rows.tolist() == alone.step(epoch, step).rows.tolist()
    assert set(visits.values()) == {1}
    assert sum(visits.values()) == plan.steps() * batch_size * world


def test_duplicates_vanish_at_a_realistic_rate() -> None:
    """Each query in five rows, as in retrieval data with several passages a query; 64 rows a step over all ranks."""
    size = 20_000
    keys = np.stack([np.arange(size) // 5, size + np.random.default_rng(0).integers(0, size, size)], axis=1)
    plain = BatchPlan([size], 32, world_size=2)
    apart = BatchPlan([size], 32, world_size=2, arrange=DuplicateAvoidance([keys]))

    def repeats(plan: BatchPlan) -> int:
        return sum(_repeats(keys, plan.step(0, step).rows) for step in range(plan.steps()))

    assert repeats(plain) > 50
    assert repeats(apart) == 0


# Hashes


def test_identities_are_equal_where_texts_are_and_the_same_in_every_process() -> None:
    texts = ["天气", "查询", "天气", "", "天气 "]
    identities = text_identities(texts)
    assert identities.dtype == np.int64 and identities.shape == (5,)
    assert identities[0] == identities[2]
    assert len(set(identities.tolist())) == 4
    code = f"from piccolo_st.data.duplicates import text_identities; print(text_identities({texts!r}).tolist())"
    for hash_seed in ("1", "2"):
        output = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert output.stdout.strip() == str(identities.tolist())


def test_the_first_two_columns_of_text_are_hashed() -> None:
    dataset = Dataset.from_dict(
        {"label": [1, 2], "query": ["a", "b"], "positive": ["b", "c"], "negative": ["x", "y"]}
    ).with_transform(lambda batch: {"query": ["changed"] * len(batch["query"])})
    identities = dataset_identities(dataset)
    assert identities.tolist() == np.stack([text_identities(["a", "b"]), text_identities(["b", "c"])], axis=1).tolist()
    assert identities[1, 0] == identities[0, 1]
    assert dataset_identities(dataset, ["negative"]).shape == (2, 1)


def test_long_datasets_are_hashed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piccolo_st.data.duplicates._READ", 3)
    texts = [f"t{i}" for i in range(10)]
    assert np.array_equal(dataset_identities(Dataset.from_dict({"query": texts}))[:, 0], text_identities(texts))


def test_a_dataset_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.from_dict({"query": ["a", "b"], "positive": ["c", "d"]})
    first = dataset_identities(dataset)
    monkeypatch.setattr("piccolo_st.data.duplicates.text_identities", None)  # not called again
    assert dataset_identities(dataset) is first
    with pytest.raises(TypeError):
        dataset_identities(dataset, ["query"])


def test_a_dataset_without_texts_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs columns of text in the dataset, got none; its columns are label"):
        dataset_identities(Dataset.from_dict({"label": [1]}))
    with pytest.raises(InputError, match=r"in the dataset, got \['title'\]; its columns are"):
        dataset_identities(Dataset.from_dict({"query": ["a"]}), ["title"])
