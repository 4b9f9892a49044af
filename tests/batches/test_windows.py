"""The shuffle of rows that are read by groups: every row once, and near each other what is kept at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.batches.windows import Groups, Windows


@given(rows=st.lists(st.integers(1, 40), min_size=1, max_size=30), window=st.integers(1, 100), key=st.integers(0, 99))
def test_every_row_stands_once_within_a_window(rows: list[int], window: int, key: int) -> None:
    shuffle = Windows(Groups(tuple(rows), window), key)
    order = shuffle(np.arange(sum(rows)))
    assert sorted(order.tolist()) == list(range(sum(rows)))
    owners = np.searchsorted(np.cumsum(rows), order, side="right")
    for group in range(len(rows)):  # a window has fewer rows than its size and the largest group
        places = np.flatnonzero(owners == group)
        assert places.max() - places.min() < window + max(rows)
    some = np.random.default_rng(key).permutation(sum(rows))[:9]
    assert (shuffle(some) == order[some]).all()  # any position alone


def test_another_key_is_another_order_of_groups_and_rows() -> None:
    groups = Groups((50,) * 40, 200)
    one, other = (Windows(groups, key)(np.arange(2000)) for key in (1, 2))
    assert (one == Windows(groups, 1)(np.arange(2000))).all()
    assert (one == other).mean() < 0.01
    assert len(set((one[:200] // 50).tolist())) == 4  # four groups, from everywhere
    assert np.abs(np.diff(one[:200])).max() > 200
