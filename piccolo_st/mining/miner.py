"""Hard negatives: texts that look like the answer to a query and are not.

    (1) rows of one query stay together, so that none of its positives is taken for a negative; shards of whole
        queries bound the memory;
    (2) each miner searches for the queries of a shard among every distinct positive of the dataset and the documents
        that are given, or a seeded pool of them; or, where queries and positives share no words, among the other
        queries, whose positives then are the negatives (``search``);
    (3) what is found and is too like the positive is dropped (``candidates``); of several miners each gives its best,
        then its second best, and so on, and the first that was trained says how like the query they all are;
    (4) a cross-encoder or a guide, where one is given, drops what it finds as good an answer as the positive
        (``judge``);
    (5) what is left is joined to the rows again as a ragged column ``negative``: a row for which nothing was found
        keeps an empty list, it is not lost; what was dropped and why is reported.

A miner is any SentenceTransformer, or one that needs no training (``piccolo_st.mining.lexical``): ``lexical``, a
random projection of TF-IDF, or ``bm25``; ``random`` draws at random, to compare with. Several rounds: mine, train, mine
again with the model that came out, keeping the negatives of before or replacing them (``existing``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint

from piccolo_st.data import arrow_parts, is_scored
from piccolo_st.errors import MixtureError
from piccolo_st.hashing import text_hashes
from piccolo_st.mining.candidates import JUDGE, MiningSettings, choose
from piccolo_st.mining.judge import Judge, by_cross_encoder, load_judge
from piccolo_st.mining.lexical import lexical_encoder
from piccolo_st.mining.report import Example, MiningReport
from piccolo_st.mining.search import ChanceSearch, EmbeddingSearch, Search, Side, TermSearch

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

UNTRAINED = ("lexical", "bm25", "random")
"""Miners that need no model."""

Model: TypeAlias = "SentenceTransformer | Literal['lexical', 'bm25', 'random']"
Models: TypeAlias = "Model | Sequence[Model]"

_QUERIES = 4096  # whose candidates stand in memory at once
_ROWS = 20_000  # that are joined with their negatives at once
_LISTS = 1_000  # of negatives in one Arrow array, which holds 2 GiB of texts


def mine_negatives(
    dataset: Dataset, model: Models, settings: MiningSettings | None = None, *, reranker: CrossEncoder | None = None
) -> Dataset:
    """The dataset with a column ``negative``: for every row a list of 0 to ``num_negatives`` texts; see ``Miner``."""
    with TemporaryDirectory() as folder:
        miner = Miner(dataset, model, settings or MiningSettings(), reranker=reranker, folder=Path(folder))
        tables, _ = miner.mine_all(dataset)
    # Without a fingerprint ``datasets`` would make one of a copy of all the texts.
    return Dataset(pa.concat_tables(tables), fingerprint=generate_random_fingerprint())


class Miner:
    """Negatives of one dataset, shard by shard; each shard depends on nothing but the arguments and its number.

    Args:
        dataset: rows of ``query`` and ``positive`` (one text each), perhaps with ``negative``; other columns stay.
        model: the encoder, or several; ``"lexical"``, ``"bm25"`` and ``"random"`` need nothing trained.
        settings: how negatives are chosen.
        folder: where embeddings are kept.
        tokenizer: of the lexical encoder; None: one learned from the dataset.
        corpus: further texts to search among, beside the positives of the dataset.
        reranker: a cross-encoder that judges in place of ``settings.judge``.

    Attributes:
        encoders: the models as given.
        shards: the rows of each shard, whole queries together.

    Raises:
        MixtureError: a column is missing or holds something else than text, or no such model.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: Models,
        settings: MiningSettings,
        *,
        folder: Path,
        tokenizer: Tokenizer | PreTrainedTokenizerFast | None = None,
        corpus: Sequence[str] | None = None,
        reranker: CrossEncoder | None = None,
    ) -> None:
        self.settings = settings
        self.second: Judge | None = None  # opinion, on what the searches and the rules leave
        if reranker is not None:
            self.second = by_cross_encoder(reranker, settings.batch_size)
        elif settings.judge is not None:
            self.second = load_judge(settings.judge, settings, folder)
        self.queries, self.positives = column_texts(dataset, "query"), column_texts(dataset, "positive")
        self.rows = dataset.select_columns(["query", "positive"]).with_format("arrow")
        self.shards = list(shard_rows(self.queries, settings.shard_rows))
        documents = list(dict.fromkeys([*pc.unique(self.positives).to_pylist(), *(corpus or [])]))
        self.answers: dict[str, list[str]] = {}  # all positives of every query, for searching among queries
        if settings.search == "queries":
            for query, positive in zip(self.queries.to_pylist(), self.positives.to_pylist(), strict=True):
                self.answers.setdefault(query, []).append(positive)
            documents = list(self.answers)
        if settings.pool is not None and settings.pool < len(documents):
            chosen = np.random.default_rng(settings.seed).choice(len(documents), settings.pool, replace=False)
            documents = [documents[index] for index in np.sort(chosen)]
        self.documents = documents
        self.places = {text: place for place, text in enumerate(documents)}
        encoders = [model] if isinstance(model, str) or not isinstance(model, Sequence) else model
        self.encoders = cast("Sequence[Model]", encoders)
        self.searches = [self._search(one, folder, tokenizer) for one in self.encoders]
        trained = (one for one in self.searches if isinstance(one, EmbeddingSearch) and one.trained)
        self.judge: EmbeddingSearch | None = next(trained, None)

    def _search(self, model: Model, folder: Path, tokenizer: Tokenizer | PreTrainedTokenizerFast | None) -> Search:
        if model == "bm25":
            return TermSearch(self.documents)
        if model == "random":
            return ChanceSearch(self.documents, self.settings.seed)
        settings = self.settings
        if model == "lexical":
            texts = pc.unique(pa.chunked_array([*self.queries.chunks, *self.positives.chunks])).to_pylist()
            model = lexical_encoder(texts, tokenizer, dimensions=settings.dimensions, seed=settings.seed)
            settings = replace(settings, batch_size=max(settings.batch_size, 1024))
            return EmbeddingSearch(model, self.documents, settings, None, trained=False)
        if isinstance(model, str):
            raise MixtureError(
                f"model of mining must be a SentenceTransformer, 'lexical', 'bm25' or 'random', got {model!r}"
            )
        second: Side = "query" if self.answers else "document"
        return EmbeddingSearch(model, self.documents, settings, folder, sides=("query", second))

    def mine_all(self, dataset: Dataset) -> tuple[Iterator[pa.Table], MiningReport]:
        """The rows of the dataset with their negatives, some at a time, and what was dropped and why."""
        mined: list[list[str]] = [[] for _ in range(len(dataset))]
        report = MiningReport()
        for number, rows in enumerate(self.shards):
            found, own = self.mine(number)
            report.add(own)
            for row, texts in zip(rows, found, strict=True):
                mined[row] = texts
        parts = zip(arrow_parts(dataset, _ROWS), range(0, len(mined), _ROWS), strict=True)
        existing = self.settings.existing
        return (with_negatives(table, mined[start : start + _ROWS], existing) for table, start in parts), report

    def mine(self, number: int) -> tuple[list[list[str]], MiningReport]:
        """The negatives of each row of a shard, and what was dropped and why."""
        report, count = MiningReport(), self.settings.num_negatives
        rows = self.rows[self.shards[number]]
        own, right = rows["query"].to_pylist(), rows["positive"].to_pylist()
        negatives: list[list[str]] = [[] for _ in own]
        if count:
            asked: dict[str, list[str]] = {}
            for query, positive in zip(own, right, strict=True):
                asked.setdefault(query, []).append(positive)
            found: dict[str, list[str]] = {}
            queries = list(asked)
            for start in range(0, len(queries), _QUERIES):
                part = queries[start : start + _QUERIES]
                found.update(zip(part, self._found(part, [asked[query] for query in part], report), strict=True))
            negatives = [found[query] for query in own]
            if self.second is not None:
                kept = drop_false_negatives(own, right, negatives, self.second, self.settings.reranker_margin)
                for query, positive, before, after in zip(own, right, negatives, kept, strict=True):
                    for text in set(before).difference(after):
                        report.drop(JUDGE, Example(query, positive, text))
                negatives = kept
        negatives = [texts[:count] for texts in negatives]
        report.negatives.update(map(len, negatives))
        return negatives, report

    def _found(self, queries: list[str], positives: list[list[str]], report: MiningReport) -> list[list[str]]:
        """What the searches find for some queries and the rules leave, best first."""
        count = self.settings.num_negatives * (self.settings.oversample if self.second is not None else 1)
        targets = [[query] for query in queries] if self.answers else positives
        right = [[self.places.get(text, -1) for text in {query, *texts}]
                 for query, texts in zip(queries, targets, strict=True)]  # fmt: skip
        deep = self.settings.depth + max(sum(place >= 0 for place in own) for own in right)
        size, owners = len(self.documents), np.repeat(np.arange(len(right)), [len(own) for own in right])
        keys = owners * size + np.concatenate([np.array(own, np.int64) for own in right])
        keys = keys[np.concatenate(right) >= 0]
        hashes, found = text_hashes(queries), []
        report.queries += len(queries)
        for search in self.searches:
            hits = search.find(queries, targets, deep)
            if self.judge is not None and self.judge is not search:
                hits = self.judge.judged(queries, targets, hits)
            known = np.isin(np.arange(len(queries))[:, None] * size + hits.places, keys)
            chosen, dropped = choose(hits, known, self.settings, count, hashes)
            report.count(hits, known, dropped, queries, positives, self.documents)
            if search is (self.judge or self.searches[0]):
                unknown = np.full_like(hits.right, np.nan)  # among queries positives have no rank
                report.rank(replace(hits, right=unknown) if self.answers else hits, known)
            found.append(np.pad(chosen, ((0, 0), (0, count - chosen.shape[1])), constant_values=-1))
        ranked = np.stack(found, axis=2).reshape(len(queries), -1)  # the best of each search, the second best, ...
        texts = [[self.documents[place] for place in dict.fromkeys(row) if place >= 0] for row in ranked.tolist()]
        if self.answers:
            texts = [_answers_of(query, similar, self.answers)
                     for query, similar in zip(queries, texts, strict=True)]  # fmt: skip
        return [own[:count] for own in texts]


def drop_false_negatives(
    queries: Sequence[str],
    positives: Sequence[str],
    negatives: Sequence[Sequence[str]],
    judge: Judge,
    margin: float,
) -> list[list[str]]:
    """The negatives that the judge scores below the positive, by ``margin`` or more."""
    owners = [query for query, texts in zip(queries, negatives, strict=True) for _ in texts]
    scores = judge([*queries, *owners], [*positives, *(text for texts in negatives for text in texts)])
    limits, rest = scores[: len(queries)] - margin, iter(scores[len(queries) :].tolist())
    return [
        [text for text in texts if next(rest) <= limit] for texts, limit in zip(negatives, limits.tolist(), strict=True)
    ]


def _answers_of(query: str, similar: Sequence[str], answers: Mapping[str, Sequence[str]]) -> list[str]:
    """A positive of each similar query that is no positive of this one."""
    own = {query, *answers[query]}
    texts = (next((text for text in answers[other] if text not in own), None) for other in similar)
    return list(dict.fromkeys(text for text in texts if text is not None))


def column_texts(dataset: Dataset, column: str) -> pa.ChunkedArray:
    """The texts of a column as they lie on the disk, with offsets of 64 bits: there may be more than 2 GiB of them.

    Raises:
        MixtureError: there is no such column, or it holds something else than texts.
    """
    if column not in dataset.column_names:
        raise MixtureError(
            f"mining needs the column {column!r}, got the columns {', '.join(dataset.column_names)}; "
            "only retrieval data can be mined"
        )
    texts = dataset.select_columns([column]).with_format("arrow")[:][column]
    if not pa.types.is_string(texts.type):
        raise MixtureError(f"mining needs one text a row in {column!r}, got {texts.type}")
    return texts.cast(pa.large_string())


def shard_rows(queries: pa.Array | pa.ChunkedArray, size: int) -> Iterator[np.ndarray]:
    """Row numbers in shards of at most ``size`` rows; the rows of one query are never parted."""
    codes = np.asarray(pc.index_in(queries, pc.unique(queries)))
    order = np.argsort(codes, kind="stable")
    begins = np.flatnonzero(np.diff(codes[order], prepend=-1))  # where each query begins in that order
    ends = np.append(begins[1:], len(order))
    cut = 0
    while cut < len(order):
        last = np.searchsorted(ends, cut + size, side="right") - 1  # the last query that ends within the size
        end = int(ends[max(last, np.searchsorted(begins, cut))])
        yield order[cut:end]
        cut = end


def with_negatives(table: pa.Table, mined: Sequence[Sequence[str]], existing: str = "keep") -> pa.Table:
    """The table with one ragged column ``negative``: the rows' own negatives first (``keep``), then the mined."""
    names = [name for name in table.column_names if name.partition("_")[0] == "negative"]
    if is_scored(table) and (existing != "keep" or any(mined)):
        raise MixtureError(
            "rows with a teacher's scores must keep the negatives that it scored, got mined ones; set num_negatives of "
            "mining to 0 for their dataset, or leave its scores out, mine, and score what came of it"
        )
    merged = [list(texts) for texts in mined]
    if existing == "keep":
        for column in reversed(names):
            merged = [
                [*([own] if isinstance(own, str) else own or []), *texts]
                for own, texts in zip(table[column].to_pylist(), merged, strict=True)
            ]
        if not is_scored(table):  # each text has its score, there twice or not
            merged = [list(dict.fromkeys(texts)) for texts in merged]
    kind = pa.list_(pa.string())
    lists = [pa.array(merged[start : start + _LISTS], type=kind) for start in range(0, len(merged), _LISTS)]
    return table.drop_columns(names).append_column("negative", pa.chunked_array(lists, type=kind))
