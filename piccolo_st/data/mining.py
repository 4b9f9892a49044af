"""Hard negatives: texts that look like the answer to a query and are not.

    (1) rows of one query stay together, so that none of its positives is taken for a negative; shards of whole
        queries bound the memory;
    (2) each shard goes through sentence-transformers' ``mine_hard_negatives`` against the whole corpus: every distinct
        positive of the dataset, or a seeded pool of them; or, where queries and positives share no words, against the
        other queries, whose positives then are the negatives;
    (3) a cross-encoder, where one is given, drops what it finds as good an answer as the positive: false negatives;
    (4) what is left is joined to the rows again as a ragged column ``negative``: a row for which nothing was found
        keeps an empty list, it is not lost; a text equal to the query is never its negative.

The model is any SentenceTransformer, or one of two that need no training (``piccolo_st.data.lexical``): ``lexical``, a
random projection of TF-IDF, and ``bm25``. Several rounds: mine, train, mine again with the model that came out, keeping
the negatives of before or replacing them (``existing``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from piccolo_st.data.lexical import Bm25, lexical_encoder
from piccolo_st.data.specs import MixtureError, build

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer
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
        pool: search among so many random positives and the shard's own instead of all, which bounds memory and time
            on large sets; None: all.
        shard_rows: rows searched at a time, as whole queries.
        batch_size: texts encoded at a time.
        dimensions: width of the lexical encoder's vectors.
        oversample: with a cross-encoder, candidates a negative that it may choose from.
        reranker_margin: a candidate is dropped if the cross-encoder scores it above the positive's score less this.
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
    oversample: int = 3
    reranker_margin: float = 0.0

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
        at_least = {"num_negatives": 0, "range_min": 0, "shard_rows": 1, "batch_size": 1, "dimensions": 1, "pool": 1,
                    "oversample": 1}  # fmt: skip
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
    model: SentenceTransformer | Literal["lexical", "bm25"],
    settings: MiningSettings | None = None,
    *,
    tokenizer: Tokenizer | PreTrainedTokenizerFast | None = None,
    corpus: Sequence[str] | None = None,
    reranker: CrossEncoder | None = None,
    query_prompt_name: str | None = None,
    corpus_prompt_name: str | None = None,
) -> Dataset:
    """The dataset with a column ``negative``: for every row a list of 0 to ``num_negatives`` mined texts.

    Args:
        dataset: rows of ``query`` and ``positive`` (one text each), perhaps with ``negative``; other columns stay.
        model: the encoder; ``"lexical"`` and ``"bm25"`` need nothing trained.
        settings: how negatives are chosen.
        tokenizer: of the lexical encoder; None: one learned from the dataset.
        corpus: further texts to search among, beside the positives of the dataset.
        reranker: a cross-encoder that drops false negatives.
        query_prompt_name, corpus_prompt_name: of ``model.prompts``; None: what encode_query and encode_document take.

    Raises:
        MixtureError: a column is missing or holds something else than text, or no such model.
    """
    settings = settings or MiningSettings()
    prompts = {"query_prompt_name": query_prompt_name, "corpus_prompt_name": corpus_prompt_name}
    miner = Miner(dataset, model, settings, tokenizer=tokenizer, corpus=corpus, reranker=reranker, prompts=prompts)
    mined: list[list[str]] = [[] for _ in range(len(dataset))]
    for number, rows in enumerate(miner.shards):
        for row, texts in zip(rows, miner.mine(number), strict=True):
            mined[row] = texts
    return Dataset(with_negatives(dataset.with_format("arrow")[:], mined, settings.existing))


class Miner:
    """Negatives of one dataset, shard by shard; each shard depends on nothing but the arguments and its number.

    Args:
        dataset, model, settings, tokenizer, corpus, reranker: as ``mine_negatives``.
        prompts: ``query_prompt_name`` and ``corpus_prompt_name`` of the model.
        cache_folder: where ST keeps the embeddings of the corpus between shards; of this model and no other.

    Attributes:
        shards: the rows of each shard, whole queries together.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: SentenceTransformer | Literal["lexical", "bm25"],
        settings: MiningSettings,
        *,
        tokenizer: Tokenizer | PreTrainedTokenizerFast | None = None,
        corpus: Sequence[str] | None = None,
        reranker: CrossEncoder | None = None,
        prompts: Mapping[str, str | None] | None = None,
        cache_folder: str | None = None,
    ) -> None:
        self.settings, self.reranker, self.prompts, self.cache_folder = settings, reranker, prompts or {}, cache_folder
        self.queries, self.positives = _texts(dataset, "query"), _texts(dataset, "positive")
        self.shards = list(shard_rows(self.queries, settings.shard_rows))
        documents = list(dict.fromkeys([*pc.unique(self.positives).to_pylist(), *(corpus or [])]))
        self.answers: dict[str, list[str]] = {}  # all positives of every query, for searching among queries
        if settings.search == "queries":
            for query, positive in zip(self.queries.to_pylist(), self.positives.to_pylist(), strict=True):
                self.answers.setdefault(query, []).append(positive)
            documents = list(self.answers)
            self.prompts = {**self.prompts, "corpus_prompt_name": self.prompts.get("query_prompt_name")}
        if settings.pool is not None and settings.pool < len(documents):
            chosen = np.random.default_rng(settings.seed).choice(len(documents), settings.pool, replace=False)
            documents = [documents[index] for index in np.sort(chosen)]
        self.documents = documents
        self.model: SentenceTransformer | Bm25
        if not isinstance(model, str):
            self.model = model
        elif model == "lexical":
            texts = pc.unique(pa.concat_arrays([self.queries, self.positives])).to_pylist()
            self.model = lexical_encoder(texts, tokenizer, dimensions=settings.dimensions, seed=settings.seed)
            self.settings = replace(settings, batch_size=max(settings.batch_size, 1024))
        elif model == "bm25":
            self.model = Bm25(documents)
        else:
            raise MixtureError(f"model of mining is {model!r}; give a SentenceTransformer, 'lexical' or 'bm25'")

    def mine(self, number: int) -> list[list[str]]:
        """The negatives of each row of a shard."""
        if not self.settings.num_negatives:
            return [[] for _ in self.shards[number]]
        rows = pa.array(self.shards[number])
        own, right = self.queries.take(rows).to_pylist(), self.positives.take(rows).to_pylist()
        targets = own if self.answers else right
        count = self.settings.num_negatives * (self.settings.oversample if self.reranker is not None else 1)
        if isinstance(self.model, Bm25):
            found = self._search_terms(own, targets, count)
        else:
            found = self._search(own, targets, count)
        if self.answers:
            found = {pair: _answers_of(pair[0], similar, self.answers) for pair, similar in found.items()}
        negatives = [found.get(pair, []) for pair in zip(own, targets, strict=True)]
        if self.reranker is not None:
            negatives = drop_false_negatives(own, right, negatives, self.reranker, self.settings)
        return [texts[: self.settings.num_negatives] for texts in negatives]

    def _search(self, queries: list[str], targets: list[str], count: int) -> dict[tuple[str, str], list[str]]:
        """(query, target) -> texts found for it by ST's miner, most similar first, the query itself left out."""
        from sentence_transformers.util import mine_hard_negatives

        settings = self.settings
        # ST leaves out a query's positives, but not a document that is the query itself; ask for one more to drop it.
        count += not set(self.documents).isdisjoint(queries)
        least = settings.range_min + count
        with _seeded(settings.seed):
            result = mine_hard_negatives(
                Dataset(pa.table({"query": queries, "positive": targets})),
                self.model,
                anchor_column_name="query",
                positive_column_name="positive",
                corpus=self.documents,
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
                faiss_batch_size=max(64, _SIMILARITIES // len(self.documents)),
                use_faiss=settings.use_faiss,
                cache_folder=self.cache_folder,
                verbose=False,
                **self.prompts,
            )
        columns = result.with_format("arrow")[:].to_pydict()
        return {
            (query, texts[0]): [text for text in texts[1:] if text != query]
            for query, texts in zip(columns.get("query", []), columns.get("positive", []), strict=True)
        }

    def _search_terms(self, queries: list[str], targets: list[str], count: int) -> dict[tuple[str, str], list[str]]:
        """The same by BM25: ranks, range and sampling as above; scores, which have no scale here, play no part."""
        assert isinstance(self.model, Bm25)
        settings = self.settings
        right: dict[str, set[str]] = {}
        for query, target in zip(queries, targets, strict=True):
            right.setdefault(query, set()).add(target)
        last = max(settings.range_max or 0, settings.range_min + count)
        generator = np.random.default_rng(settings.seed)
        most = max(len(texts) for texts in right.values()) + 1
        found: dict[str, list[str]] = {}
        for query, texts in zip(right, self.model.search(list(right), last + most), strict=True):
            wrong = [text for text in texts if text != query and text not in right[query]][settings.range_min : last]
            if settings.sampling == "random" and len(wrong) > count:
                wrong = [wrong[place] for place in np.sort(generator.choice(len(wrong), count, replace=False))]
            found[query] = wrong[:count]
        return {(query, target): found[query] for query, target in zip(queries, targets, strict=True)}


def drop_false_negatives(
    queries: Sequence[str],
    positives: Sequence[str],
    negatives: Sequence[Sequence[str]],
    reranker: CrossEncoder,
    settings: MiningSettings,
) -> list[list[str]]:
    """The negatives that the cross-encoder scores below the positive, by ``reranker_margin`` or more."""
    pairs = [(query, text) for query, texts in zip(queries, negatives, strict=True) for text in texts]
    right = list(zip(queries, positives, strict=True))
    scores = np.asarray(reranker.predict([*right, *pairs], batch_size=settings.batch_size, show_progress_bar=False))
    limits, rest = scores[: len(right)] - settings.reranker_margin, iter(scores[len(right) :].tolist())
    return [
        [text for text in texts if next(rest) <= limit] for texts, limit in zip(negatives, limits.tolist(), strict=True)
    ]


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


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """ST samples with Python's global generator: seed it, and leave it as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def with_negatives(table: pa.Table, mined: Sequence[Sequence[str]], existing: str = "keep") -> pa.Table:
    """The table with one ragged column ``negative``: the rows' own negatives first (``keep``), then the mined."""
    names = [name for name in table.column_names if name.partition("_")[0] == "negative"]
    merged = [list(texts) for texts in mined]
    if existing == "keep":
        for column in reversed(names):
            merged = [
                list(dict.fromkeys([*([own] if isinstance(own, str) else own or []), *texts]))
                for own, texts in zip(table[column].to_pylist(), merged, strict=True)
            ]
    return table.drop_columns(names).append_column("negative", pa.array(merged, type=pa.list_(pa.string())))
