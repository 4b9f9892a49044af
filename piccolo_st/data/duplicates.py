"""Hashes of texts, and rows that change places so that no batch holds a text twice.

A text that stands twice in a batch is a false negative of itself. Instead of dropping rows, or searching the whole
dataset for others, rows change places inside a *window* of consecutive blocks of one pass:

    (1) a row is in the way if one of its texts, in whichever column, stands in its block already, in an earlier row;
    (2) in window order, each such row looks for the next block, cyclically, that has none of its texts, and there for
        the next row, from its own place on, none of whose texts would then stand in the first block twice; these two
        rows change places;
    (3) a row that finds no partner stays where it is.

No exchange makes a new repetition. The result depends on the rows of the window alone, so it is the same on every rank
and in every run; every row is still read exactly as often, and texts are read only once, before training, to hash them.
A text in more rows of a window than the window has blocks cannot be kept apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import xxhash
from numpy.typing import NDArray

from piccolo_st.errors import InputError

_READ = 10_000  # rows read at a time to hash them
_KNOWN: WeakKeyDictionary[Any, dict[tuple[str, ...], NDArray[np.int64]]] = WeakKeyDictionary()


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
        _, texts, counts = np.unique(self.identities[dataset][rows.ravel()], return_inverse=True, return_counts=True)
        texts = texts.reshape(rows.size, -1)  # the hashes as small numbers
        common = counts[texts] > 1  # the others cannot repeat anything
        for column in range(1, texts.shape[1]):  # a row that holds a text twice does not repeat another
            common[:, column] &= ~(texts[:, :column] == texts[:, column : column + 1]).any(axis=1)
        # A number for each common text of each block, and how many rows of the block hold it.
        places = texts + np.repeat(np.arange(blocks) * len(counts), size)[:, None]
        held, first, holders = np.unique(places[common], return_index=True, return_counts=True)
        later = np.ones(int(common.sum()), bool)
        later[first] = False
        in_the_way = np.unique(np.nonzero(common)[0][later])  # step (1)
        exchange = _Exchange(blocks, size, len(counts), dict(zip(held.tolist(), holders.tolist(), strict=True)))
        exchange.texts = lambda row: texts[row][common[row]].tolist()
        for row in in_the_way.tolist():
            exchange.settle(row)
        return rows.ravel()[exchange.order].reshape(rows.shape)


class _Exchange:
    """Steps (2) and (3) for one window: which row stands at which place, and which texts stand in which block."""

    texts: Callable[[int], list[int]]

    def __init__(self, blocks: int, size: int, texts_in_all: int, held: dict[int, int]) -> None:
        self.blocks, self.size, self.texts_in_all, self.held = blocks, size, texts_in_all, held
        self.order = np.arange(blocks * size)

    def settle(self, row: int) -> None:
        """Let a row, which has not been moved, change places with another if that helps."""
        home, place = divmod(row, self.size)
        texts = self.texts(row)
        if self.order[row] != row or all(self._count(home, text) < 2 for text in texts):
            return  # an earlier exchange has helped it
        for step in range(1, self.blocks):
            block = (home + step) % self.blocks
            if any(self._count(block, text) for text in texts):
                continue
            for offset in range(self.size):
                other = block * self.size + (place + offset) % self.size
                others = self.texts(self.order[other])
                if all(self._count(home, text) == (text in texts) for text in others):
                    self._move(texts, home, block)
                    self._move(others, block, home)
                    self.order[row], self.order[other] = self.order[other], self.order[row]
                    return

    def _count(self, block: int, text: int) -> int:
        return self.held.get(block * self.texts_in_all + text, 0)

    def _move(self, texts: list[int], source: int, target: int) -> None:
        for text in texts:
            self.held[source * self.texts_in_all + text] = self._count(source, text) - 1
            self.held[target * self.texts_in_all + text] = self._count(target, text) + 1


def dataset_identities(dataset: Any, columns: Sequence[str] | None = None) -> NDArray[np.int64]:
    """Hash the texts of a dataset: int64 (rows, columns), 8 bytes a text in memory, kept as long as the dataset is.

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
            f"avoiding duplicates needs columns of text in the dataset, got {missing or 'none'}; its columns are "
            f"{', '.join(dataset.column_names)}"
        )
    known = _KNOWN.setdefault(dataset, {})
    if tuple(columns) in known:  # a trainer may make its dataloader, and so its sampler, more than once
        return known[tuple(columns)]
    identities = np.empty((len(dataset), len(columns)), np.int64)
    plain = dataset.with_format(None).select_columns(list(columns))
    for start in range(0, len(dataset), _READ):
        read = plain[start : start + _READ]
        for position, column in enumerate(columns):
            identities[start : start + _READ, position] = text_identities(read[column])
    known[tuple(columns)] = identities
    return identities
