"""Rearranging rows among neighbouring blocks so that no batch holds a text twice.

A text that stands twice in a batch is a false negative of itself. Instead of dropping rows, or searching the whole
dataset for others, rows change places inside a *window* of consecutive blocks of one pass:

    (1) a row conflicts with another if they share a text, in whichever columns; rows without a conflict in the window
        are free;
    (2) in window order, each conflicting row stays in its block if no text of it stands there yet, else it goes to the
        next block, cyclically, where that holds and room is left;
    (3) the free rows fill the blocks up, in window order;
    (4) where that leaves no fewer repetitions than there were, the window stays as it was.

The result depends on the rows of the window alone, so it is the same on every rank and in every run, every row is still
read exactly as often, and the text of a dataset is read once, before training, to hash it. A text in more rows of a
window than the window has blocks cannot be kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from piccolo_st.errors import InputError

_READ = 10_000  # rows read at a time to hash them


def text_identities(texts: Sequence[str]) -> NDArray[np.int64]:
    """A 64-bit hash (XXH3) of each text: (texts,). The same text has the same hash in every process."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(text.encode()) for text in texts), np.uint64, len(texts)).view(np.int64)


class DuplicateAvoidance:
    """An ``arrange`` of BatchPlan that keeps equal texts of a dataset out of one block.

    Args:
        identities: for each dataset the hashes of its texts, int64 (rows, columns); see ``dataset_identities``.
    """

    def __init__(self, identities: Sequence[NDArray[np.int64]]) -> None:
        self.identities = identities

    def __call__(self, dataset: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rearrange the rows of a window, (blocks, rows of a block)."""
        blocks, size = rows.shape
        flat = rows.ravel()
        keys = self.identities[dataset][flat]
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        keys = inverse.reshape(keys.shape)  # small numbers, equal where the hashes are
        # A row that holds one text twice conflicts with nobody for that alone.
        repeated = counts[keys] - (keys[:, :, None] == keys[:, None, :]).sum(axis=2) > 0
        conflicting = np.flatnonzero(repeated.any(axis=1))  # step (1)
        if blocks == 1 or not len(conflicting):
            return rows
        destination = np.full(len(flat), -1)
        room = [size] * blocks
        present: list[set[int]] = [set() for _ in range(blocks)]
        before: list[set[int]] = [set() for _ in range(blocks)]
        fewer = 0
        for index, texts in zip(conflicting.tolist(), keys[conflicting].tolist(), strict=True):  # step (2)
            home = index // size
            fewer += not before[home].isdisjoint(texts)
            before[home].update(texts)
            for block in (*range(home, blocks), *range(home)):
                if room[block] and present[block].isdisjoint(texts):
                    break
            else:
                block = next(b for b in (*range(home, blocks), *range(home)) if room[b])
                fewer -= 1
            destination[index] = block
            room[block] -= 1
            present[block].update(texts)
        if fewer <= 0:  # step (4)
            return rows
        destination[destination < 0] = np.repeat(np.arange(blocks), room)  # step (3)
        return flat[np.argsort(destination, kind="stable")].reshape(rows.shape)


def dataset_identities(dataset: Any, columns: Sequence[str] | None = None) -> NDArray[np.int64]:
    """Hash the texts of a dataset: int64 (rows, columns), 8 bytes a text in memory.

    Args:
        dataset: a ``datasets.Dataset``.
        columns: columns of texts. Default: the first two that hold plain text.

    Raises:
        InputError: there is no such column.
    """
    if columns is None:
        columns = [name for name, kind in dataset.features.items() if getattr(kind, "dtype", None) == "string"][:2]
    missing = [name for name in columns if name not in dataset.column_names]
    if missing or not columns:
        raise InputError(
            f"avoiding duplicates needs columns of text, but {missing or 'none'} of them are in the dataset, which has "
            f"{dataset.column_names}"
        )
    identities = np.empty((len(dataset), len(columns)), np.int64)
    plain = dataset.with_format(None).select_columns(list(columns))
    for start in range(0, len(dataset), _READ):
        read = plain[start : start + _READ]
        for position, column in enumerate(columns):
            identities[start : start + _READ, position] = text_identities(read[column])
    return identities
