"""Three ways to find what looks like an answer: by embeddings, by BM25, and at random.

Each gives the documents most like a query, and, if it can tell, how like the query they and its positives are. A
trained encoder can tell. A search by words cannot: a good answer may share no word with its question, so where it does
not find the positive among the candidates it says nothing of how like the query that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from piccolo_st.cache import digest
from piccolo_st.errors import optional
from piccolo_st.hashing import combine, mix_array, text_hashes
from piccolo_st.mining.candidates import Hits, MiningSettings
from piccolo_st.mining.embeddings import stored_embeddings
from piccolo_st.mining.lexical import Bm25

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

_QUERIES = 1024  # searched, or scored, at a time
_SIMILARITIES = 1 << 26  # of a batch of queries to the corpus, that stand in memory at once

Side = Literal["query", "document"]


class Search(Protocol):
    """Finds documents for queries."""

    def find(self, queries: list[str], positives: Sequence[Sequence[str]], k: int) -> Hits:
        """The ``k`` documents most like each query, and how like it its positives are."""


class EmbeddingSearch:
    """Search by the inner product of unit embeddings.

    Args:
        model: the encoder.
        documents: what is searched.
        settings: batch_size and use_faiss.
        folder: where embeddings are kept, of all models and ways of reading; None: encoded whenever asked for.
        sides: as what queries and documents are read.
        trained: whether the encoder was trained, and can tell how like a query its positive is.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        documents: Sequence[str],
        settings: MiningSettings,
        folder: Path | None,
        *,
        sides: tuple[Side, Side] = ("query", "document"),
        trained: bool = True,
    ) -> None:
        self.model, self.documents, self.settings, self.folder = model, documents, settings, folder
        self.sides, self.trained = sides, trained

    @cached_property
    def key(self) -> str:
        """The model as it reads texts now: its prompts and lengths are part of its content."""
        from piccolo_st.modeling import content_hash

        return content_hash(self.model)

    @cached_property
    def corpus(self) -> Tensor:
        """(documents, dimensions) on the model's device."""
        import torch

        return torch.from_numpy(self.embed(self.documents, self.sides[1])).to(self.model.device)

    @cached_property
    def index(self) -> Any:
        """faiss's, of the same."""
        with optional("mining with use_faiss", "faiss-cpu", "data"):
            import faiss
        index = faiss.IndexFlatIP(self.corpus.shape[1])
        index.add(self.corpus.cpu().numpy())
        return index

    def reading(self, side: Side) -> str:
        """The name of this model and its way of reading a side."""
        return digest([self.key, side, None])  # None: what was kept before is found

    def encode(self, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        """Unit embeddings, (texts, dimensions), made anew."""
        encode = self.model.encode_query if side == "query" else self.model.encode_document
        vectors: Any = encode(
            list(texts),
            batch_size=self.settings.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)

    def embed(self, texts: Sequence[str], side: Side) -> NDArray[np.float32]:
        """The same, kept in the folder, if there is one, and found again."""
        if self.folder is None:
            return self.encode(texts, side)
        return stored_embeddings(self.folder / self.reading(side), texts, partial(self.encode, side=side))

    def find(self, queries: list[str], positives: Sequence[Sequence[str]], k: int) -> Hits:
        """As ``Search``."""
        import torch
        from sentence_transformers.util import dot_score, semantic_search
        from sentence_transformers.util.quantization import semantic_search_faiss

        k = min(k, len(self.documents))
        vectors = self.embed(queries, self.sides[0])
        places, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for start in range(0, len(queries), _QUERIES):
            part = vectors[start : start + _QUERIES]
            if self.settings.use_faiss:
                found, _ = semantic_search_faiss(part, corpus_index=self.index, top_k=k, rescore=False)[:2]
            else:
                chunk = max(1, _SIMILARITIES // min(len(self.documents), 500_000))
                found = semantic_search(torch.from_numpy(part), self.corpus, chunk, top_k=k, score_function=dot_score)
            for row, hits in enumerate(found, start):
                places[row] = [hit["corpus_id"] for hit in hits]
                scores[row] = [hit["score"] for hit in hits]
        order = np.lexsort((places, -scores))  # of equal ones the first, however many are asked for
        places, scores = np.take_along_axis(places, order, 1), np.take_along_axis(scores, order, 1)
        right = self.right(vectors, positives)
        if not self.trained:
            right = np.where(right < scores[:, -1], np.float32(np.nan), right)
        return Hits(places, scores, right)

    def right(self, queries: NDArray[np.float32], positives: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """How like a query its least similar positive is, (queries,)."""
        owners = np.repeat(np.arange(len(positives)), [len(texts) for texts in positives])
        vectors = self.embed([text for texts in positives for text in texts], self.sides[1])
        right = np.full(len(positives), np.inf, np.float32)
        np.minimum.at(right, owners, np.einsum("nd,nd->n", queries[owners], vectors))
        return right

    def judged(self, queries: list[str], positives: Sequence[Sequence[str]], found: Hits) -> Hits:
        """What another search found, with the scores of this one."""
        vectors = self.embed(queries, self.sides[0])
        scores = np.empty(found.places.shape, np.float32)
        for start in range(0, len(queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            documents = self.corpus[found.places[part]].cpu().numpy()
            scores[part] = np.einsum("qd,qkd->qk", vectors[part], documents)
        return Hits(found.places, scores, self.right(vectors, positives))


class TermSearch:
    """Search by BM25.

    Args:
        documents: what is searched.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self.documents, self.index = documents, Bm25(documents)

    def find(self, queries: list[str], positives: Sequence[Sequence[str]], k: int) -> Hits:
        """As ``Search``; a positive that is not among the k has no score."""
        places, scores = self.index.search(queries, k)
        right = np.full(len(queries), np.nan, np.float32)
        for row, texts in enumerate(positives):
            own = [score for place, score in zip(places[row], scores[row], strict=True)
                   if place >= 0 and self.documents[place] in texts]  # fmt: skip
            if len(own) == len(texts):
                right[row] = min(own)
        return Hits(places, scores, right)


class ChanceSearch:
    """Documents at random, to compare with: the same for a query whoever its neighbours are.

    Args:
        documents: what is drawn from.
        seed: of the draws.
    """

    def __init__(self, documents: Sequence[str], seed: int) -> None:
        self.documents, self.seed = documents, seed

    def find(self, queries: list[str], positives: Sequence[Sequence[str]], k: int) -> Hits:
        """As ``Search``; nothing has a score. Fewer than ``k`` where a document is drawn twice."""
        words: NDArray[np.uint64] = combine(text_hashes(queries)[:, None], np.arange(k, dtype=np.uint64))
        places = (mix_array(self.seed, words) % np.uint64(len(self.documents))).astype(np.int64)
        for row in places:
            first = np.zeros(k, np.bool_)
            first[np.unique(row, return_index=True)[1]] = True
            row[~first] = -1
        return Hits(places, np.full(places.shape, np.nan, np.float32), np.full(len(queries), np.nan, np.float32))
