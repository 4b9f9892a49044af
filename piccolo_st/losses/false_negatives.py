"""Which candidates are no negatives of which row, from whole numbers alone.

A batch of N rows has queries, positives and M hard negatives, each hard negative owned by a row. Two texts of one role
are the same text when their ids are equal; without ids every text is its own. Write Q(i) and P(i) for the
id of row i's query and positive, T(d) for that of a document d (positive or hard negative), and call (Q(j), P(j))
for every row j of the batch a *known pair*. For row i, beside its own positive, a candidate is not a negative when:

query_to_doc    anchor q_i, document d:  (Q(i), T(d)) is a known pair: d has the text of i's positive, or of the
                positive of a row with the same query.
query_to_query  anchor q_i, query q_j:   Q(j) = Q(i), the query itself included.
doc_to_query    anchor p_i, query q_j:   (Q(j), P(i)) is a known pair, j = i aside: q_j has the text of i's query, or
                of the query of a row with the same positive. The own query stays: GTE's formula counts it here too.
doc_to_doc      anchor p_i, document d:  d belongs to a row with the same query (its positive and its hard negatives,
                those of row i itself included), or (Q(i), T(d)) is a known pair.

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
        queries: (N,) int64 ids of the queries; None: all differ.
        documents: (N + M,) int64 ids of the positives and then the hard negatives; None: all differ.

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
        total = rows + len(owner)
        queries = torch.arange(rows) if queries is None else torch.unique(queries.cpu(), return_inverse=True)[1]
        documents = torch.arange(total) if documents is None else torch.unique(documents.cpu(), return_inverse=True)[1]
        self._queries, self._positives = queries, documents[:rows]
        self._owners_query = torch.cat([queries, queries[owner]])
        known = torch.unique(queries * total + self._positives)
        self._known_query, self._known_positive = known // total, known % total

        self._by_query = _Index(queries)
        self._by_document = _Index(documents)
        self._by_owners_query = _Index(self._owners_query)
        self._known_by_query = _Index(self._known_query)
        self._known_by_positive = _Index(self._known_positive)

        self._owner = owner
        self._own_documents = 1 + torch.bincount(owner, minlength=rows)
        documents_at_most = self._known_by_query.most * self._by_document.most + self._by_owners_query.most
        queries_at_most = self._known_by_positive.most * self._by_query.most
        self._block = max(1, _PAIRS // max(documents_at_most, queries_at_most))

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
        row, document = self._known_documents(rows)
        others = document != rows[row]
        return row[others], document[others]

    def _query_to_query(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self._by_query.matches(self._queries[rows])

    def _doc_to_query(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        row, known = self._known_by_positive.matches(self._positives[rows])
        which, query = self._by_query.matches(self._known_query[known])
        row = row[which]
        others = query != rows[row]
        return row[others], query[others]

    def _doc_to_doc(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        row, document = self._known_documents(rows)
        elsewhere = self._owners_query[document] != self._queries[rows[row]]
        own_row, own_document = self._by_owners_query.matches(self._queries[rows])
        return torch.cat([own_row, row[elsewhere]]), torch.cat([own_document, document[elsewhere]])

    def _known_documents(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Documents with the text of a positive of a row with the same query; the own positive is among them."""
        row, known = self._known_by_query.matches(self._queries[rows])
        which, document = self._by_document.matches(self._known_positive[known])
        return row[which], document


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
