"""Candidates for negatives: settings, and three ways to find what looks like an answer.

Each function takes parallel lists of queries and of their positives (``targets``), whole queries together, and returns
for every (query, target) the texts found for the query, best first, none of them the query or one of its targets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset

from piccolo_st.errors import MixtureError
from piccolo_st.mining.lexical import Bm25
from piccolo_st.schema import Count, Natural, Number, Whole, build

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Candidates = dict[tuple[str, str], list[str]]

# Without faiss the similarities of a batch of queries to the whole corpus stand in memory at once: so many float32.
_SIMILARITIES = 1 << 26


@dataclass(frozen=True)
class MiningSettings:
    """How hard negatives are chosen; many fields mean what they mean to ST's ``mine_hard_negatives``.

    Attributes:
        num_negatives: negatives a row, at most; 0 mines none.
        search: ``positives``: texts like the query; ``queries``: the positives of queries like the query.
        range_min: the nearest candidates to skip; they are the likeliest to be right answers.
        range_max: how far down the ranking to look; None: ST's choice.
        max_score, min_score: candidates more or less similar to the query than this are skipped.
        absolute_margin, relative_margin: how far below the positive a negative's similarity must stay. Leave both
            None with the lexical encoder, to which a good answer without a shared token has similarity 0.
        sampling: ``top``, or ``random`` among the candidates in range.
        use_faiss: search with faiss instead of one matrix product a batch.
        seed: of random sampling, of the pool and of the lexical encoder's vectors.
        existing: what becomes of negatives the rows have already: mined ones come after them (``keep``) or in their
            place (``replace``).
        pool: search among so many random positives and the shard's own instead of all, which bounds memory and time
            on large sets; None: all.
        shard_rows: rows searched at a time, as whole queries.
        batch_size: texts encoded at a time.
        dimensions: width of the lexical encoder's vectors.
        oversample: with a cross-encoder, candidates a negative that it may choose from.
        reranker_margin: a candidate is dropped if the cross-encoder scores it above the positive's score less this.
    """

    num_negatives: Natural = 4
    search: Literal["positives", "queries"] = "positives"
    range_min: Natural = 0
    range_max: Count | None = None
    max_score: Number | None = None
    min_score: Number | None = None
    absolute_margin: Number | None = None
    relative_margin: Number | None = None
    sampling: Literal["top", "random"] = "top"
    use_faiss: bool = False
    seed: Whole = 13
    existing: Literal["keep", "replace"] = "keep"
    pool: Count | None = None
    shard_rows: Count = 200_000
    batch_size: Count = 256
    dimensions: Count = 256
    oversample: Count = 3
    reranker_margin: Number = 0.0

    @classmethod
    def of(cls, *mappings: Mapping[str, object] | None, place: str = "mining") -> MiningSettings:
        """From mappings as a configuration holds them, later ones over earlier ones.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range.
        """
        merged: dict[str, object] = {}
        for mapping in mappings:
            merged.update(mapping or {})
        return build(cls, merged, place)

    def __post_init__(self) -> None:
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise MixtureError(
                f"range_min={self.range_min} to range_max={self.range_max} of mining leaves fewer candidates than "
                f"num_negatives={self.num_negatives}; raise range_max"
            )


def search_embeddings(
    queries: list[str],
    targets: list[str],
    documents: list[str],
    model: SentenceTransformer,
    settings: MiningSettings,
    count: int,
    **miner_arguments: Any,
) -> Candidates:
    """What ST's miner finds, most similar first, the query itself left out; further arguments are the miner's."""
    from sentence_transformers.util import mine_hard_negatives

    # ST leaves out a query's positives, but not a document that is the query itself; ask for one more to drop it.
    count += not set(documents).isdisjoint(queries)
    least = settings.range_min + count
    with _seeded(settings.seed):
        result = mine_hard_negatives(
            Dataset(pa.table({"query": queries, "positive": targets})),
            model,
            anchor_column_name="query",
            positive_column_name="positive",
            corpus=documents,
            range_min=settings.range_min,
            range_max=None if settings.range_max is None else max(settings.range_max, least),
            max_score=settings.max_score,
            min_score=settings.min_score,
            absolute_margin=settings.absolute_margin,
            relative_margin=settings.relative_margin,
            num_negatives=count,
            sampling_strategy=settings.sampling,
            output_format="labeled-list",
            batch_size=settings.batch_size,
            faiss_batch_size=max(64, _SIMILARITIES // len(documents)),
            use_faiss=settings.use_faiss,
            verbose=False,
            **miner_arguments,
        )
    columns = result.with_format("arrow")[:].to_pydict()
    return {
        (query, texts[0]): [text for text in texts[1:] if text != query]
        for query, texts in zip(columns.get("query", []), columns.get("positive", []), strict=True)
    }


def search_terms(
    queries: list[str], targets: list[str], index: Bm25, settings: MiningSettings, count: int
) -> Candidates:
    """The same by BM25: ranks, range and sampling as above; scores, which have no scale here, play no part."""
    right: dict[str, set[str]] = {}
    for query, target in zip(queries, targets, strict=True):
        right.setdefault(query, set()).add(target)
    last = max(settings.range_max or 0, settings.range_min + count)
    generator = np.random.default_rng(settings.seed)
    most = max(len(texts) for texts in right.values()) + 1
    found: dict[str, list[str]] = {}
    for query, texts in zip(right, index.search(list(right), last + most), strict=True):
        wrong = [text for text in texts if text != query and text not in right[query]][settings.range_min : last]
        if settings.sampling == "random" and len(wrong) > count:
            wrong = [wrong[place] for place in np.sort(generator.choice(len(wrong), count, replace=False))]
        found[query] = wrong[:count]
    return {(query, target): found[query] for query, target in zip(queries, targets, strict=True)}


def draw(queries: list[str], targets: list[str], documents: list[str], count: int, seed: Sequence[int]) -> Candidates:
    """Documents at random, but for the query and its positives."""
    right: dict[str, set[str]] = {}
    for query, target in zip(queries, targets, strict=True):
        right.setdefault(query, {query}).add(target)
    generator = np.random.default_rng(seed)
    found: dict[str, list[str]] = {}
    for query, texts in right.items():
        drawn = generator.integers(len(documents), size=count + len(texts)).tolist()
        others = dict.fromkeys(documents[place] for place in drawn)
        found[query] = [text for text in others if text not in texts][:count]
    return {(query, target): found[query] for query, target in zip(queries, targets, strict=True)}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """ST samples with Python's global generator: seed it, and leave it as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
