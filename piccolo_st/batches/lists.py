"""Which texts of a row's lists a batch takes, whose they are, and what a teacher scores them.

Steps (2), (3) and (5) of the collator, with its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import cast

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from piccolo_st.errors import InputError
from piccolo_st.hashing import mix, mix_array, text_hashes

logger = logging.get_logger(__name__)

FIRST_NEGATIVE = 2
"""Of the texts of a row, the columns before this position give one, those from it on as many as are asked for."""


class ListSampler:
    """The texts of one batch.

    Args:
        columns: the columns of texts.
        seed, num_negatives: as the collator's.
        row_ids, visit: the rows' numbers, and how often they were read before, where that is known.
        where: says where the row at a place of the batch stands, in words.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[object]],
        seed: int,
        num_negatives: int | None,
        row_ids: NDArray[np.int64] | None,
        visit: int | None,
        where: Callable[[int], str],
    ) -> None:
        self.columns, self.seed, self.num_negatives = columns, seed, num_negatives
        self.row_ids, self.visit, self.where = row_ids, visit, where
        self.lengths: dict[str, NDArray[np.int64]] = {}  # of each column, the texts of each row
        self.taken: dict[str, NDArray[np.int64]] = {}  # of a column, which of its texts were taken
        self.lists = False

    def texts_of(
        self, column: str, position: int, cells: Sequence[object]
    ) -> tuple[Sequence[object], NDArray[np.int64] | None]:
        """The texts of a column in row order and, for a column with any number of texts a row, the row of each."""
        one_each = position < FIRST_NEGATIVE
        listed = isinstance(next((cell for cell in cells if cell is not None), None), (list, tuple))
        self.lengths[column] = np.ones(len(cells), dtype=np.int64)
        if not listed and (one_each or None not in cells):
            return cells, None
        self.lists = True
        lists = [present(cell) for cell in cells]
        lengths = self.lengths[column] = np.fromiter(map(len, lists), np.int64, len(lists))
        if one_each and not lengths.all():
            raise InputError(
                f"{self.where(int(lengths.argmin()))} must list at least one text in column {column!r}, got none; drop "
                "such rows"
            )
        texts = list(chain.from_iterable(lists))
        owners = np.repeat(np.arange(len(lists)), lengths)
        count = 1 if one_each else self.num_negatives
        if count is not None and lengths.max() > count:
            chosen = self.taken[column] = sample_from_lists(lengths, count, self._keys(), self._visit(), position)
            texts, owners = [texts[index] for index in chosen], owners[chosen]
        return texts, None if one_each else owners

    def scores_of(self, labels: Sequence[object] | None) -> dict[str, NDArray[np.float32]]:
        """Column -> the scores of the texts that were taken; empty where the labels list no score for each text."""
        if labels is None or not all(isinstance(cell, (list, tuple)) for cell in labels):
            return {}
        cells = cast(Sequence[Sequence[float]], labels)
        counts = np.fromiter(map(len, cells), np.int64, len(cells))
        scored = list(self.columns)[1:]
        texts = np.sum([self.lengths[column] for column in scored], axis=0, dtype=np.int64)
        if not scored or not np.array_equal(texts, counts):
            return {}
        flat = np.fromiter(chain.from_iterable(cells), np.float32, int(counts.sum()))
        first, scores = np.cumsum(counts) - counts, {}
        for column in scored:
            lengths = self.lengths[column]
            within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            own = flat[np.repeat(first, lengths) + within]
            scores[column] = own[self.taken[column]] if column in self.taken else own
            first = first + lengths
        return scores

    def draw(self, wordings: Sequence[str], position: int, owners: NDArray[np.int64] | None) -> list[str]:
        """One of the wordings for each text of a column, the same for the texts of a row."""
        drawn = mix_array(mix(self._visit(), position), self._keys()) % np.uint64(len(wordings))
        return [wordings[index] for index in (drawn if owners is None else drawn[owners])]

    def _keys(self) -> NDArray[np.uint64]:
        """A 64-bit key of each row: (rows,). From its number or, where that is not known, its first text."""
        if self.row_ids is None:
            words = text_hashes(str(cell) for cell in next(iter(self.columns.values())))
        else:
            words = np.asarray(self.row_ids, dtype=np.int64).view(np.uint64)
        return mix_array(mix(self.seed), words)

    def _visit(self) -> int:
        if self.visit is None:
            logger.warning_once(
                "Texts are sampled from lists, but the batches do not say how often their rows were read before, so "
                "every epoch samples the same; read them with piccolo_st.batches.reading.homogeneous_dataloader."
            )
        return self.visit or 0


def present(cell: object) -> Sequence[object]:
    """The texts of a cell that is a list of texts, one text or None, in which any may be missing."""
    cell = cell if isinstance(cell, (list, tuple)) else (cell,)
    return [text for text in cell if text is not None] if None in cell else cell


def sample_from_lists(
    lengths: NDArray[np.int64], count: int, keys: NDArray[np.uint64], visit: int, column: int
) -> NDArray[np.int64]:
    """Choose ``count`` elements of each list, or all of a shorter one.

    Each list is shuffled once, by its key; visit v takes the elements v*count to (v+1)*count of the shuffled list, and
    begins again behind its end.

    Args:
        lengths: of the lists: (rows,).
        count: elements wanted of each.
        keys: of the rows: (rows,).
        visit: how many times the rows have been read before.
        column: position of the column, so that two columns are sampled independently.

    Returns:
        int64 indices into the concatenation of the lists, ascending.
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    elements = np.arange(len(owners)) - starts[owners]
    noise = mix_array(mix(column), keys[owners] + elements.astype(np.uint64))
    ranks = np.empty_like(elements)
    ranks[np.lexsort((noise, owners))] = elements
    turn = (ranks - visit * count) % lengths[owners]
    return np.flatnonzero(turn < count)
