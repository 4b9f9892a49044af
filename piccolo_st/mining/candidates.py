"""Which of the texts found for a query become its negatives: the settings, and the rule.

(1) a query and its own positives are no candidates;
(2) a candidate that is nearly as like the query as its positive is, is likely an answer that nobody has marked: by
    default one above 95% of the positive's similarity goes (TopK-PercPos of NV-Retriever, arXiv 2407.15831); of
    several positives the least similar counts, as in sentence-transformers' ``mine_hard_negatives``, whose rules
    and names these are;
(3) of those that are left, in the order of the search, the first ``range_min`` are skipped, and negatives are taken
    or drawn from the next, up to ``range_max``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from piccolo_st.errors import MixtureError
from piccolo_st.hashing import combine, mix_array
from piccolo_st.schema import Count, Natural, NotNegative, Number, Overlaid, Whole

REASONS = ("relative_margin", "absolute_margin", "max_score", "min_score", "range_min")
"""Why a candidate is dropped: the setting that does it. The judge, who comes later, is the last reason."""
JUDGE = "judge"


@dataclass(frozen=True)
class MiningSettings(Overlaid):
    """How hard negatives are chosen; many fields mean what they mean to ST's ``mine_hard_negatives``.

    Attributes:
        num_negatives: negatives a row, at most; 0 mines none.
        search: ``positives``: texts like the query; ``queries``: the positives of queries like the query, and margins
            are below its similarity to itself.
        range_min: the nearest candidates to skip, of those that the rules below leave.
        range_max: how far down the ranking to look; None: ten times ``num_negatives`` beyond ``range_min``.
        max_score, min_score: candidates more or less similar to the query than this are skipped.
        absolute_margin: how far below its positive's similarity a negative's must stay.
        relative_margin: the same as a share of the positive's; None: nothing is left out for it.
        sampling: ``top``, or ``random`` among the candidates in range.
        corpus: a file, or a glob, of documents to search among beside the positives, such as those that nobody asked
            for; rows of ``text`` and perhaps ``title``; relative to the mixture's ``root``.
        use_faiss: search with faiss instead of one matrix product a batch.
        seed: of random sampling, of the pool and of the lexical encoder's vectors.
        existing: what becomes of negatives the rows have already: mined ones come after them (``keep``) or in their
            place (``replace``).
        pool: search among so many texts drawn at random instead of all, which bounds memory and time
            on large sets; None: all.
        shard_rows: rows searched at a time, as whole queries.
        batch_size: texts encoded at a time.
        dimensions: width of the lexical encoder's vectors.
        judge: a cross-encoder, or another encoder, that judges what the rules above leave: a directory or a Hub id.
        oversample: candidates a negative that the judge may choose from.
        reranker_margin: a candidate is dropped if the judge scores it above the positive's score less this.
    """

    PLACE: ClassVar[str] = "mining"

    num_negatives: Natural = 4
    search: Literal["positives", "queries"] = "positives"
    range_min: Natural = 0
    range_max: Count | None = None
    max_score: Number | None = None
    min_score: Number | None = None
    absolute_margin: Number | None = None
    relative_margin: NotNegative | None = 0.05
    sampling: Literal["top", "random"] = "top"
    corpus: str | None = None
    use_faiss: bool = False
    seed: Whole = 13
    existing: Literal["keep", "replace"] = "keep"
    pool: Count | None = None
    shard_rows: Count = 200_000
    batch_size: Count = 256
    dimensions: Count = 256
    judge: str | None = None
    oversample: Count = 3
    reranker_margin: Number = 0.0

    def __post_init__(self) -> None:
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise MixtureError(
                f"range_min={self.range_min} to range_max={self.range_max} of mining leaves fewer candidates than "
                f"num_negatives={self.num_negatives}; raise range_max"
            )
        if self.search == "queries" and self.corpus is not None:
            raise MixtureError(
                "corpus of mining must be empty with search: queries, whose negatives are positives of other queries, "
                f"got {self.corpus!r}; set it to null, or search: positives"
            )

    @property
    def depth(self) -> int:
        """How many candidates of a query that no rule drops are looked at."""
        return self.range_max if self.range_max is not None else self.range_min + 10 * max(1, self.num_negatives)


@dataclass(frozen=True)
class Hits:
    """What a search finds for some queries.

    Attributes:
        places: (queries, k) int64, documents by their number, best first; -1 where there are no more.
        scores: (queries, k) float32, how like the query they are; NaN where the search has no scores.
        right: (queries,) float32, the same of the positive, the least similar of several; NaN where it is not known.
    """

    places: NDArray[np.int64]
    scores: NDArray[np.float32]
    right: NDArray[np.float32]


def choose(
    hits: Hits, known: NDArray[np.bool_], settings: MiningSettings, count: int, queries: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Negatives among what was found.

    Args:
        hits: k candidates of each of n queries.
        known: (n, k), which of them are the query itself or its positives.
        settings: the rules.
        count: how many negatives a query gets at most.
        queries: (n,), a hash of each query; what is drawn depends on it and on the seed, not on its neighbours.

    Returns:
        (n, count) int64 of documents, best first, -1 where there are no more; and (n, k) int8, for each candidate that
        was dropped the number of its reason in ``REASONS``, -1 for others.
    """
    right, scores = hits.right[:, None], hits.scores
    rules: dict[str, Callable[[float], NDArray[np.bool_]]] = {
        "relative_margin": lambda share: scores > right - np.abs(right) * share,
        "absolute_margin": lambda margin: scores > right - margin,
        "max_score": lambda limit: scores > limit,
        "min_score": lambda limit: scores < limit,
    }
    alive = (hits.places >= 0) & ~known
    dropped = np.full(hits.places.shape, -1, np.int8)
    for name, rule in rules.items():
        if (limit := getattr(settings, name)) is not None:
            taken = alive & rule(limit)
            dropped[taken], alive = REASONS.index(name), alive & ~taken
    rank = np.cumsum(alive, axis=1) - 1
    early = alive & (rank < settings.range_min)
    dropped[early] = REASONS.index("range_min")
    inside = alive & ~early & (rank < settings.depth)
    if settings.sampling == "random":
        drawn = mix_array(settings.seed, combine(queries[:, None], hits.places.astype(np.uint64)))
        drawn[~inside] = np.iinfo(np.uint64).max
        last = np.sort(drawn, axis=1)[:, min(count, drawn.shape[1]) - 1]
        inside &= drawn <= last[:, None]
    order = np.argsort(~inside, axis=1, kind="stable")[:, :count]
    chosen = np.take_along_axis(hits.places, order, axis=1)
    return np.where(np.take_along_axis(inside, order, axis=1), chosen, -1), dropped
