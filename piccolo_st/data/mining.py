"""Hard negatives: texts that look like the answer to a query and are not.

    (1) rows of one query stay together, so that none of its positives is taken for a negative; shards of whole
        queries bound the memory;
    (2) each shard goes through sentence-transformers' ``mine_hard_negatives`` against the whole corpus: every distinct
        positive of the dataset, or a seeded pool of them; or, where queries and positives share no words, against the
        other queries, whose positives then are the negatives;
    (3) what it finds is joined to the rows again as a ragged column ``negative``: a row for which nothing was found
        keeps an empty list, it is not lost; a text equal to the query is never its negative.

The model is any SentenceTransformer, or ``lexical`` (``piccolo_st.data.lexical``), which needs no training.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from piccolo_st.data.lexical import lexical_encoder
from piccolo_st.data.specs import MixtureError, build

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


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
        pool: search among so many random positives and the shard's own instead of all; None: all.
        shard_rows: rows searched at a time, as whole queries.
        batch_size: texts encoded at a time.
        dimensions: width of the lexical encoder's vectors.
    """

    num_negatives: int = 4
    search: Literal["positives", "queries"] = "positives"
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling: Literal["top", "random"] = "top"
    use_faiss: bool = False
    seed: int = 13
    existing: Literal["keep", "replace"] = "keep"
    pool: int | None = None
    shard_rows: int = 200_000
    batch_size: int = 256
    dimensions: int = 256

    @classmethod
    def of(cls, *mappings: Mapping[str, Any] | None, place: str = "mining") -> MiningSettings:
        """From mappings as a configuration holds them, later ones over earlier ones.

        Raises:
            MixtureError: an unknown key, a value of the wrong type or out of range.
        """
        merged: dict[str, Any] = {}
        for mapping in mappings:
            merged.update(mapping or {})
        return build(cls, merged, place)

    def __post_init__(self) -> None:
        at_least = {"num_negatives": 0, "range_min": 0, "shard_rows": 1, "batch_size": 1, "dimensions": 1, "pool": 1}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise MixtureError(f"{name} of mining must be at least {least}, got {value}")
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise MixtureError(
                f"range_min={self.range_min} to range_max={self.range_max} of mining leaves fewer candidates than "
                f"num_negatives={self.num_negatives}; raise range_max"
            )


def mine_negatives(
    dataset: Dataset,
    model: SentenceTransformer | Literal["lexical"],
    settings: MiningSettings | None = None,
    *,
    tokenizer: Tokenizer | PreTrainedTokenizerFast | None = None,
    corpus: Sequence[str] | None = None,
    query_prompt_name: str | None = None,
    corpus_prompt_name: str | None = None,
) -> Dataset:
    """The dataset with a column ``negative``: for every row a list of 0 to ``num_negatives`` mined texts.

    Args:
        dataset: rows of ``query`` and ``positive`` (one text each), perhaps with ``negative``; other columns stay.
        model: the encoder, or ``"lexical"``, which needs ``tokenizer`` and nothing trained.
        settings: how negatives are chosen.
        tokenizer: of the lexical encoder.
        corpus: further texts to search among, beside the positives of the dataset.
        query_prompt_name, corpus_prompt_name: of ``model.prompts``; None: what encode_query and encode_document take.

    Raises:
        MixtureError: a column is missing or holds something else than text, or ``lexical`` has no tokenizer.
    """
    settings = settings or MiningSettings()
    mined: list[list[str]] = [[] for _ in range(len(dataset))]
    for rows, negatives in mine_shards(
        dataset,
        model,
        settings,
        tokenizer=tokenizer,
        corpus=corpus,
        query_prompt_name=query_prompt_name,
        corpus_prompt_name=corpus_prompt_name,
    ):
        for row, texts in zip(rows, negatives, strict=True):
            mined[row] = texts
    return with_negatives(dataset, mined, settings.existing)


def mine_shards(
    dataset: Dataset,
    model: SentenceTransformer | Literal["lexical"],
    settings: MiningSettings,
    *,
    tokenizer: Tokenizer | PreTrainedTokenizerFast | None = None,
    corpus: Sequence[str] | None = None,
    query_prompt_name: str | None = None,
    corpus_prompt_name: str | None = None,
    done: Container[int] = (),
) -> Iterator[tuple[np.ndarray, list[list[str]]]]:
    """Mine shard by shard: the rows of each, whole queries together, and their negatives.

    The shards depend on the dataset and on ``shard_rows`` alone; the ones whose number is in ``done`` are passed over
    with no work, yielding (rows, []), so that an interrupted run can go on.

    Args and raises: as ``mine_negatives``.
    """
    queries, positives = _texts(dataset, "query"), _texts(dataset, "positive")
    if isinstance(model, str):
        if model != "lexical" or tokenizer is None:
            raise MixtureError(
                f"model of mining is {model!r}; give a SentenceTransformer, or 'lexical' together with a tokenizer"
            )
        texts = pc.unique(pa.concat_arrays([queries, positives])).to_pylist()
        model = lexical_encoder(tokenizer, texts, dimensions=settings.dimensions, seed=settings.seed)
        settings = replace(settings, batch_size=max(settings.batch_size, 1024))
    documents = list(dict.fromkeys([*pc.unique(positives).to_pylist(), *(corpus or [])]))
    answers: dict[str, list[str]] = {}  # all positives of every query, for searching among queries
    if settings.search == "queries":
        for query, positive in zip(queries.to_pylist(), positives.to_pylist(), strict=True):
            answers.setdefault(query, []).append(positive)
        documents = list(answers)
    prompts = {
        "query_prompt_name": query_prompt_name,
        "corpus_prompt_name": query_prompt_name if answers else corpus_prompt_name,
    }
    generator = np.random.default_rng(settings.seed)
    for number, rows in enumerate(shard_rows(queries, settings.shard_rows)):
        if number in done or not settings.num_negatives:
            yield rows, []
            continue
        taken = pa.array(rows)
        own, targets = queries.take(taken), (queries if answers else positives).take(taken)
        pool = documents
        if settings.pool is not None and settings.pool < len(documents):
            chosen = np.sort(generator.choice(len(documents), settings.pool, replace=False))
            pool = [documents[index] for index in chosen]
        pairs = Dataset(pa.table({"query": own, "positive": targets}))
        found = _mine_shard(pairs, pool, model, settings, prompts)
        if answers:
            found = {pair: _answers_of(pair[0], similar, answers) for pair, similar in found.items()}
        keys = zip(own.to_pylist(), targets.to_pylist(), strict=True)
        yield rows, [found.get(key, [])[: settings.num_negatives] for key in keys]


def _answers_of(query: str, similar: Sequence[str], answers: Mapping[str, Sequence[str]]) -> list[str]:
    """A positive of each similar query that is no positive of this one."""
    own = {query, *answers[query]}
    texts = (next((text for text in answers[other] if text not in own), None) for other in similar)
    return list(dict.fromkeys(text for text in texts if text is not None))


def _texts(dataset: Dataset, column: str) -> pa.Array:
    if column not in dataset.column_names:
        raise MixtureError(
            f"mining needs the column {column!r}, but the dataset has {', '.join(dataset.column_names)}; "
            "only retrieval data can be mined"
        )
    texts = dataset.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    if not pa.types.is_string(texts.type):
        raise MixtureError(f"mining needs one text a row in {column!r}, but it holds {texts.type}")
    return texts


def shard_rows(queries: pa.Array, size: int) -> Iterator[np.ndarray]:
    """Row numbers in shards of at most ``size`` rows; the rows of one query are never parted."""
    codes = queries.dictionary_encode().indices.to_numpy(False)
    order = np.argsort(codes, kind="stable")
    begins = np.flatnonzero(np.diff(codes[order], prepend=-1))  # where each query begins in that order
    ends = np.append(begins[1:], len(order))
    cut = 0
    while cut < len(order):
        last = np.searchsorted(ends, cut + size, side="right") - 1  # the last query that ends within the size
        end = int(ends[max(last, np.searchsorted(begins, cut))])
        yield order[cut:end]
        cut = end


def _mine_shard(
    pairs: Dataset, corpus: list[str], model: SentenceTransformer, settings: MiningSettings, prompts: dict[str, Any]
) -> dict[tuple[str, str], list[str]]:
    """(query, positive) -> texts found for it, most similar first, the query itself left out."""
    from sentence_transformers.util import mine_hard_negatives

    # ST leaves out a query's positives, but not a document that is the query itself; ask for one more to drop it.
    count = settings.num_negatives + (not set(corpus).isdisjoint(pairs["query"]))
    range_max = (
        settings.range_max if settings.range_max is None else max(settings.range_max, settings.range_min + count)
    )
    with _seeded(settings.seed):
        result = mine_hard_negatives(
            pairs,
            model,
            anchor_column_name="query",
            positive_column_name="positive",
            corpus=corpus,
            range_min=settings.range_min,
            range_max=range_max,
            max_score=settings.max_score,
            min_score=settings.min_score,
            absolute_margin=settings.absolute_margin,
            relative_margin=settings.relative_margin,
            num_negatives=count,
            sampling_strategy=settings.sampling,
            output_format="labeled-list",
            batch_size=settings.batch_size,
            faiss_batch_size=max(64, _SIMILARITIES // len(corpus)),
            use_faiss=settings.use_faiss,
            verbose=False,
            **prompts,
        )
    columns = result.with_format("arrow")[:].to_pydict()
    return {
        (query, texts[0]): [text for text in texts[1:] if text != query]
        for query, texts in zip(columns.get("query", []), columns.get("positive", []), strict=True)
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """ST samples with Python's global generator: seed it, and leave it as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def with_negatives(dataset: Dataset, mined: Sequence[Sequence[str]], existing: str = "keep") -> Dataset:
    """The dataset with one ragged column ``negative``: the rows' own negatives first (``keep``), then the mined."""
    names = [name for name in dataset.column_names if name.partition("_")[0] == "negative"]
    merged = [list(texts) for texts in mined]
    if existing == "keep":
        for column in reversed(names):
            given = dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()
            merged = [
                list(dict.fromkeys([*([own] if isinstance(own, str) else own), *texts]))
                for own, texts in zip(given, merged, strict=True)
            ]
    return dataset.remove_columns(names).add_column("negative", pa.array(merged, type=pa.list_(pa.string())))
