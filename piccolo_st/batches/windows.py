"""A seeded shuffle of rows that are read by groups, as a Parquet file's are: near each other in a file, near in time.

    (1) the groups are put into a seeded order, and this order is cut into windows of about ``window`` rows: a group
        belongs to the window in which its first row falls;
    (2) within a window the rows of all its groups are shuffled.

Who keeps ``window`` rows and one more group in memory reads each group once in a pass.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from piccolo_st.batches.permutation import permutation
from piccolo_st.errors import InputError
from piccolo_st.hashing import mix


class Groups(NamedTuple):
    """How a dataset is read by groups.

    Attributes:
        rows: of each group, in the order in which they follow each other; at least 1.
        window: how many rows are shuffled among each other, and kept in memory.
    """

    rows: tuple[int, ...]
    window: int


def row_groups(dataset: object) -> Groups | None:
    """The groups by which a dataset is read, as its ``data`` says (``data.streamed``).

    None: any row is read alone, or the dataset is only a part of what its ``data`` has.
    """
    data = getattr(dataset, "data", None)
    rows: tuple[int, ...] | None = getattr(data, "group_rows", None)
    if data is None or rows is None or sum(rows) != len(dataset):  # type: ignore[arg-type]
        return None
    return Groups(rows, data.window_rows)


def check_groups(groups: Groups | None, size: int, called: str) -> None:
    """Refuse groups that are not those of a dataset of ``size`` rows.

    Raises:
        InputError: naming what is wrong.
    """
    if groups is not None and (sum(groups.rows) != size or min(groups.rows) < 1 or groups.window < 1):
        raise InputError(
            f"groups of {called} must have at least 1 row each, {size} in all, and a window of at least 1, got "
            f"{sum(groups.rows)} rows in {len(groups.rows)} groups and a window of {groups.window}"
        )


class Windows:
    """A bijection of the rows of a dataset, chosen by ``key``.

    Args:
        groups: of the dataset; a window has at most as many rows as it says and those of the largest group.
        key: any integer; another key gives another order.
    """

    def __init__(self, groups: Groups, key: int) -> None:
        rows = np.asarray(groups.rows, dtype=np.int64)
        order = permutation(len(rows), mix(key, 0))(np.arange(len(rows)))
        self._key = key
        self._firsts = (np.cumsum(rows) - rows)[order]  # of each group in the new order, its first row
        self._starts = np.cumsum(rows[order]) - rows[order]  # and the position where it begins
        _, begins = np.unique(self._starts // groups.window, return_index=True)
        self._windows = np.append(self._starts[begins], rows.sum())  # where the windows begin, and the last one ends

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows at the given positions: (n,)."""
        owners = np.searchsorted(self._windows, positions, side="right") - 1
        shuffled = np.empty_like(positions)
        for window in np.unique(owners).tolist():  # step (2)
            start, stop = self._windows[window : window + 2].tolist()
            mine = owners == window
            shuffled[mine] = start + permutation(stop - start, mix(self._key, 1, window))(positions[mine] - start)
        groups = np.searchsorted(self._starts, shuffled, side="right") - 1
        return self._firsts[groups] + shuffled - self._starts[groups]


@lru_cache(maxsize=64)
def windows(groups: Groups, key: int) -> Windows:
    """A :class:`Windows`, kept for the next batch."""
    return Windows(groups, key)
