"""Hard negatives: texts that look like the answer to a query and are not.

    (1) rows of one query stay together, so that none of its positives is taken for a negative; shards of whole
        queries bound the memory;
    (2) each shard goes through sentence-transformers' ``mine_hard_negatives`` against the whole corpus: every distinct
        positive of the dataset, or a seeded pool of them; or, where queries and positives share no words, against the
        other queries, whose positives then are the negatives;
    (3) a cross-encoder, where one is given, drops what it finds as good an answer as the positive: false negatives;
    (4) what is left is joined to the rows again as a ragged column ``negative``: a row for which nothing was found
        keeps an empty list, it is not lost; a text equal to the query is never its negative.

The model is any SentenceTransformer, or one that needs no training (``piccolo_st.mining.lexical``): ``lexical``, a
random projection of TF-IDF, or ``bm25``; ``random`` draws at random, to compare with. Several rounds: mine, train, mine
again with the model that came out, keeping the negatives of before or replacing them (``existing``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, load_from_disk

from piccolo_st import cache
from piccolo_st.data import DatasetSpec
from piccolo_st.errors import MixtureError
from piccolo_st.mining.candidates import MiningSettings, draw, search_embeddings, search_terms
from piccolo_st.mining.lexical import Bm25, lexical_encoder
from piccolo_st.mining.limits import reading

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from piccolo_st.data import Mixture


def mine_negatives(
    dataset: Dataset,
    model: SentenceTransformer | Literal["lexical", "bm25", "random"],
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
        model: the encoder; ``"lexical"``, ``"bm25"`` and ``"random"`` need nothing trained.
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


def mine_mixture(
    mixture: Mixture,
    model: SentenceTransformer | Literal["lexical", "bm25", "random"],
    settings: Mapping[str, Any] | None,
    folder: Path,
    *,
    tokenizer: Tokenizer | PreTrainedTokenizerFast | None = None,
    made_of: Sequence[Any] = (),
) -> DatasetDict:
    """The training sets of a mixture, with mined negatives where the rows are (query, positive).

    What has been mined before is read again. A dataset's own instruction and lengths hold here as well.

    Args:
        mixture: the datasets; their ``mining`` goes before the settings of all.
        model, tokenizer: as ``mine_negatives``.
        settings: of ``MiningSettings``.
        folder: where the results lie, each named after all that it is made of.
        made_of: further parts of a result's key, such as fingerprints of the model and the tokenizer.

    Raises:
        InputError: an unknown setting.
    """
    mined = {}
    for name, dataset in mixture.train.items():
        spec = mixture.specs[name]
        if spec.task != "retrieval" or isinstance(dataset[0]["positive"], list):
            mined[name] = dataset
            continue
        chosen = MiningSettings.of(settings, spec.mining, place=f"mining of dataset {name!r}")
        key = cache.digest(["mined", name, mixture.fingerprint, *made_of, asdict(chosen)])

        def mine(
            target: Path, dataset: Dataset = dataset, chosen: MiningSettings = chosen, spec: DatasetSpec = spec
        ) -> None:
            with nullcontext() if isinstance(model, str) else reading(model, spec):
                mine_negatives(dataset, model, chosen, tokenizer=tokenizer).save_to_disk(str(target))

        mined[name] = load_from_disk(str(cache.entry(folder, key, mine)))
    return DatasetDict(mined)


class Miner:
    """Negatives of one dataset, shard by shard; each shard depends on nothing but the arguments and its number.

    Args:
        dataset, model, settings, tokenizer, corpus, reranker: as ``mine_negatives``.
        prompts: ``query_prompt_name`` and ``corpus_prompt_name`` of the model.
        cache_folder: where ST keeps the embeddings of the corpus between shards; of this model and no other.

    Attributes:
        encoder: the model as given.
        shards: the rows of each shard, whole queries together.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: SentenceTransformer | Literal["lexical", "bm25", "random"],
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
        self.encoder = model
        self.model: SentenceTransformer | Bm25 | None
        if not isinstance(model, str):
            self.model = model
        elif model == "lexical":
            texts = pc.unique(pa.concat_arrays([self.queries, self.positives])).to_pylist()
            self.model = lexical_encoder(texts, tokenizer, dimensions=settings.dimensions, seed=settings.seed)
            self.settings = replace(settings, batch_size=max(settings.batch_size, 1024))
        elif model == "bm25":
            self.model = Bm25(documents)
        elif model == "random":
            self.model = None
        else:
            raise MixtureError(
                f"model of mining must be a SentenceTransformer, 'lexical', 'bm25' or 'random', got {model!r}"
            )

    def mine(self, number: int) -> list[list[str]]:
        """The negatives of each row of a shard."""
        if not self.settings.num_negatives:
            return [[] for _ in self.shards[number]]
        rows = pa.array(self.shards[number])
        own, right = self.queries.take(rows).to_pylist(), self.positives.take(rows).to_pylist()
        targets = own if self.answers else right
        count = self.settings.num_negatives * (self.settings.oversample if self.reranker is not None else 1)
        if self.model is None:
            found = draw(own, targets, self.documents, count, (self.settings.seed, number))
        elif isinstance(self.model, Bm25):
            found = search_terms(own, targets, self.model, self.settings, count)
        else:
            further = {**self.prompts, "cache_folder": self.cache_folder}
            found = search_embeddings(own, targets, self.documents, self.model, self.settings, count, **further)
        if self.answers:
            found = {pair: _answers_of(pair[0], similar, self.answers) for pair, similar in found.items()}
        negatives = [found.get(pair, []) for pair in zip(own, targets, strict=True)]
        if self.reranker is not None:
            negatives = drop_false_negatives(own, right, negatives, self.reranker, self.settings)
        return [texts[: self.settings.num_negatives] for texts in negatives]


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
            f"mining needs the column {column!r}, got the columns {', '.join(dataset.column_names)}; "
            "only retrieval data can be mined"
        )
    texts = dataset.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    if not pa.types.is_string(texts.type):
        raise MixtureError(f"mining needs one text a row in {column!r}, got {texts.type}")
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
