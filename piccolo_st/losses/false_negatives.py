"""Which candidates are no negatives of which row, from whole numbers alone.

A batch of N rows has queries q, positives p and M hard negatives, each hard negative owned by a row. Two texts are the
same when their ids are equal, whatever their roles; without ids every text is its own. Two texts are *related* when
they are the same, or when one is the query of a row and the other its positive. For row i, beside its own positive, a
candidate is not a negative when:

query_to_doc    anchor q_i, document d:  they are related: d has the text of q_i, of i's positive, of the positive of
                a row with the same query, or of a query whose positive q_i is in another row.
query_to_query  anchor q_i, query q_j:   they are related, the query itself included.
doc_to_query    anchor p_i, query q_j:   they are related, j = i aside. The own query stays: GTE's formula counts it
                here too.
doc_to_doc      anchor p_i, document d:  d is related to p_i or to q_i, or belongs to a row with the same query (its
                hard negatives, those of row i itself included).

Without equal ids these are the exclusions of ST's MultipleNegativesRankingLoss: the query itself, and in
doc_to_doc all documents of the row itself.

Every rule is a join of columns of whole numbers on equality, so the excluded pairs are listed without looking at all
N x (N + M) of them: (1) sort the candidates by id once; (2) for some rows, find the range of equal candidates by
binary search; (3) write the ranges out. The work is done on the CPU, next to a GPU that computes embeddings meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

# Pairs listed at once: bounds the memory where nearly all texts are the same.
_PAIRS = 1 << 20


class _Index:
    """Numbers sorted once, to list all places that hold a given number. Steps (1) to (3)."""

    def __init__(self, numbers: Tensor) -> None:
        self.values, self.places = torch.sort(numbers, stable=True)
        self.most = int(torch.unique_consecutive(self.values, return_counts=True)[1].max()) if len(numbers) else 0

    def matches(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """All (i, place) with ``numbers[place] == wanted[i]``, as two index tensors, in the order of i."""
        low = torch.searchsorted(self.values, wanted)
        count = torch.searchsorted(self.values, wanted, right=True) - low
        which = torch.repeat_interleave(count)
        within = torch.arange(len(which)) - torch.repeat_interleave(count.cumsum(0) - count, count)
        return which, self.places[low[which] + within]


class Exclusions:
    """The pairs (row, candidate) that are no negatives, for each direction; see the module docstring.

    Args:
        rows: N, the number of rows.
        owner: (M,) int64, the row that owns each hard negative.
        queries: (N,) int64 ids of the queries; None, with those of the documents: all texts differ.
        documents: (N + M,) int64 ids of the positives and then the hard negatives.

    Attributes:
        rows, negatives: N and M.

    Raises:
        ValueError: an owner that is no row, or ids that are not one for each text.
    """

    def __init__(
        self, rows: int, owner: Tensor, queries: Tensor | None = None, documents: Tensor | None = None
    ) -> None:
        self.rows, self.negatives = rows, len(owner)
        owner = owner.cpu()
        _check(rows, owner, queries, documents)
        total = 2 * rows + len(owner)
        texts = torch.arange(total)
        if queries is not None and documents is not None:
            texts = torch.unique(torch.cat([queries.cpu(), documents.cpu()]), return_inverse=True)[1]
        self._queries, self._positives = queries, positives = texts[:rows], texts[rows : 2 * rows]
        pairs = torch.unique(
            torch.cat([queries * total + positives, positives * total + queries, texts * total + texts])
        )
        self._one, self._other = _Index(pairs // total), pairs % total  # of all related texts, both ways round
        self._by_query = _Index(queries)
        self._by_document = _Index(texts[rows:])
        self._by_owners_query = _Index(torch.cat([queries, queries[owner]]))

        self._owner = owner
        self._own_documents = 1 + torch.bincount(owner, minlength=rows)
        times = torch.stack([torch.bincount(one, minlength=total) for one in (queries, texts[rows:])])
        related = torch.zeros_like(times).index_add_(1, self._one.values, times[:, self._other])
        self._block = max(1, _PAIRS // (2 * int(related.max()) + self._by_owners_query.most))

    def unavoidable(self, direction: str, start: int, stop: int) -> int:
        """How many pairs of these rows are excluded although no text occurs twice: the query itself, own documents."""
        if direction == "query_to_query":
            return stop - start
        return int(self._own_documents[start:stop].sum()) if direction == "doc_to_doc" else 0

    @cached_property
    def _by_owner(self) -> _Index:
        return _Index(self._owner)

    def own_negatives(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Where rows ``start`` to ``stop`` have hard negatives of their own: (row - start, document)."""
        row, negative = self._by_owner.matches(torch.arange(start, stop))
        return row, negative + self.rows

    def pairs(self, direction: str, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The excluded pairs of rows ``start`` to ``stop``, in parts: (row - start, candidate).

        Candidates are rows for query_to_query and doc_to_query, and documents (positives 0 to N - 1, then hard
        negatives) for the other two. No pair is listed twice.
        """
        for first in range(start, stop, self._block):
            rows = torch.arange(first, min(stop, first + self._block))
            row, candidate = getattr(self, f"_{direction}")(rows)
            yield row + (first - start), candidate

    def _query_to_doc(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return _of_others(rows, *self._related(self._queries[rows], self._by_document))

    def _query_to_query(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self._related(self._queries[rows], self._by_query)

    def _doc_to_query(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return _of_others(rows, *self._related(self._positives[rows], self._by_query))

    def _doc_to_doc(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        found = (
            self._related(self._positives[rows], self._by_document),
            self._related(self._queries[rows], self._by_document),
            self._by_owners_query.matches(self._queries[rows]),
        )
        row, document = (torch.cat(part) for part in zip(*found, strict=True))
        size = self.rows + self.negatives
        once = torch.unique(row * size + document)
        return once // size, once % size

    def _related(self, texts: Tensor, candidates: _Index) -> tuple[Tensor, Tensor]:
        """All (i, place) where the candidate at ``place`` is related to ``texts[i]``, each once."""
        which, pair = self._one.matches(texts)
        found, place = candidates.matches(self._other[pair])
        return which[found], place


def _of_others(rows: Tensor, row: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs without the own one of each row."""
    others = candidate != rows[row]
    return row[others], candidate[others]


def _check(rows: int, owner: Tensor, queries: Tensor | None, documents: Tensor | None) -> None:
    if owner.ndim != 1 or owner.is_floating_point():
        raise ValueError(f"owner must be whole numbers, one for each hard negative, got {owner.shape} {owner.dtype}")
    bad = ((owner < 0) | (owner >= rows)).nonzero()
    if len(bad):
        place = int(bad[0])
        raise ValueError(
            f"owner must name one of the {rows} rows, from 0 to {rows - 1}, got {owner[place]} for hard negative "
            f"{place}"
        )
    for name, ids, size in (("query", queries, rows), ("document", documents, rows + len(owner))):
        if ids is not None and ids.shape != (size,):
            raise ValueError(f"there must be one {name} id for each of {size} texts, got {ids.shape}")
    if (queries is None) != (documents is None):
        raise ValueError("there must be ids of queries and of documents, or of neither, got those of one")
