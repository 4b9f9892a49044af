"""A corpus embedded once by each model, with and without its instructions, and searched at any dimension.

Numpy only, and exact: a matrix product scores every text. A dimension means the first ones of the embedding, made
length 1 again, as Matryoshka training (MRL) lets them be used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Projection:
    """The two directions in which a corpus varies most (PCA), of its vectors at one dimension.

    Attributes:
        mean: (dimension,) the centre.
        axes: (dimension, 2) the directions, each of length 1.
        points: (texts, 2) where each text lies.
        explained: share of the variance along each of the two, 0 to 1.
    """

    mean: Vectors
    axes: Vectors
    points: Vectors
    explained: tuple[float, float]

    def place(self, query: Vectors) -> Vectors:
        """Where a query lies, (2,), from its embedding, (at least dimension,)."""
        own: Vectors = (_unit(query[None, : len(self.mean)])[0] - self.mean) @ self.axes
        return own


class EmbeddedCorpus:
    """The embeddings of a corpus, searched by cosine similarity at any dimension.

    Args:
        embeddings: (texts, dimension), of any length; a text with only zeros scores 0.
    """

    def __init__(self, embeddings: NDArray[np.floating]) -> None:
        self.embeddings: Vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
        if self.embeddings.ndim != 2 or not self.embeddings.size:
            raise ValueError(f"embeddings must be (texts, dimension) and not empty, got shape {embeddings.shape}")
        self._lengths = lru_cache(maxsize=64)(self._measure)
        self.projection = lru_cache(maxsize=16)(self._project)

    @property
    def dimension(self) -> int:
        """The whole dimension."""
        return self.embeddings.shape[1]

    def scores(self, query: Vectors, dimension: int) -> Vectors:
        """The cosine similarity of every text, (texts,), with a query, (dimension,), at the first ``dimension``."""
        part = _unit(query[None, :dimension])[0]
        found: Vectors = (self.embeddings[:, :dimension] @ part) / self._lengths(dimension)
        return found

    def _measure(self, dimension: int) -> Vectors:
        return _lengths(self.embeddings[:, :dimension])

    def _project(self, dimension: int) -> Projection:
        """The map of the corpus; the larger part of each axis points to plus, so that the same data look the same."""
        vectors = _unit(self.embeddings[:, :dimension])
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        variances, directions = np.linalg.eigh(centred.T @ centred)  # ascending
        axes = directions[:, : -min(2, dimension) - 1 : -1]
        axes = axes * np.where(axes.sum(axis=0) < 0, -1, 1)
        if dimension == 1:
            axes = np.hstack([axes, np.zeros_like(axes)])
        total = max(float(variances.sum()), 1e-12)
        largest = [*variances[::-1][:2], 0.0]
        explained = (float(largest[0]) / total, float(largest[1]) / total)
        return Projection(mean, axes.astype(np.float32), (centred @ axes).astype(np.float32), explained)


def _lengths(vectors: Vectors) -> Vectors:
    """The length of each row, 1 for rows of zeros, so that dividing by it is safe."""
    lengths: Vectors = np.linalg.norm(vectors, axis=1)
    return np.where(lengths > 0, lengths, np.float32(1))


def _unit(vectors: Vectors) -> Vectors:
    return vectors / _lengths(vectors)[:, None]


@dataclass(frozen=True)
class Variant:
    """One way to search: a model, with its instructions or without.

    Attributes:
        model: the model's name.
        instruction: the instruction of queries, or "" for none.
        embed: text of a query -> its embedding, (dimension,).
        corpus: the texts, embedded in the same way.
    """

    model: str
    instruction: str
    embed: Callable[[str], Vectors]
    corpus: EmbeddedCorpus


@dataclass(frozen=True)
class Hit:
    """A text that was found: its index, and its score and rank (1 is the best) in each variant."""

    index: int
    scores: tuple[float, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        hits: the best texts of every variant, in the order of the first variant.
        vectors: the query's embedding in each variant.
        embedding_seconds: time to embed the query, all variants together.
        search_seconds: time to score and rank every text, all variants together.
    """

    hits: list[Hit]
    vectors: list[Vectors]
    embedding_seconds: float
    search_seconds: float


class Searcher:
    """Texts, and the variants they are searched with, side by side."""

    def __init__(self, texts: Sequence[str], variants: Sequence[Variant]) -> None:
        self.texts = list(texts)
        self.variants = list(variants)

    @classmethod
    def of(cls, models: Mapping[str, SentenceTransformer], texts: Sequence[str], progress: bool = False) -> Searcher:
        """Embed the texts with each model: as a document with its instruction and, where it has one, without.

        Args:
            models: name -> model.
            texts: the corpus.
            progress: show a bar for each pass.
        """
        return cls(texts, [each for name, model in models.items() for each in _variants(name, model, texts, progress)])

    @property
    def dimension(self) -> int:
        """The largest dimension of any variant."""
        return max(variant.corpus.dimension for variant in self.variants)

    def search(self, query: str, dimension: int, top: int = 10) -> Found:
        """Search for a query.

        Args:
            query: its text, without an instruction.
            dimension: how many dimensions to use; a variant that has fewer uses all it has.
            top: how many texts to take of each variant.
        """
        start = time.perf_counter()
        vectors = [variant.embed(query) for variant in self.variants]
        embedded = time.perf_counter()
        scores = [v.corpus.scores(vector, dimension) for v, vector in zip(self.variants, vectors, strict=True)]
        orders = [np.argsort(-score, kind="stable") for score in scores]
        ranks = [np.empty(len(order), dtype=np.int64) for order in orders]
        for rank, order in zip(ranks, orders, strict=True):
            rank[order] = np.arange(1, len(order) + 1)
        chosen = sorted({int(index) for order in orders for index in order[:top]}, key=lambda i: int(ranks[0][i]))
        hits = [Hit(i, tuple(float(s[i]) for s in scores), tuple(int(r[i]) for r in ranks)) for i in chosen]
        return Found(hits, vectors, embedded - start, time.perf_counter() - embedded)


def _variants(name: str, model: SentenceTransformer, texts: Sequence[str], progress: bool) -> list[Variant]:
    query, document = (model.prompts.get(kind) or "" for kind in ("query", "document"))
    pairs = [(query, document)] + ([("", "")] if query or document else [])
    return [
        Variant(
            name,
            before_query,
            _embedder(model, before_query),
            EmbeddedCorpus(model.encode_document(list(texts), prompt=before_document, show_progress_bar=progress)),
        )
        for before_query, before_document in pairs
    ]


def _embedder(model: SentenceTransformer, instruction: str) -> Callable[[str], Vectors]:
    def embed(text: str) -> Vectors:
        found = model.encode_query([text], prompt=instruction, show_progress_bar=False)[0]
        return np.asarray(found, dtype=np.float32)

    return embed
