"""Search with small vectors: fewer dimensions, one byte or one bit for each, and what is lost by it.

The embeddings are those of the one encoding; only what a search keeps of the corpus changes:

- float32: the numbers as they are, 4 bytes a dimension;
- int8: each in 256 steps between the smallest and the largest that the corpus has in its dimension (faiss' scalar
  quantiser, calibrated on the corpus), compared with queries in float32;
- binary: one bit, whether it is above the corpus' mean of its dimension. The mean is taken off the query too. The
  nearest by differing bits are found first, and of those the best 40, four times the ten that count, are put in the
  order of the query's own numbers against the signs. What the mean adds to a similarity is the same for
  every document, so nothing is lost with it; left in, many bits would only repeat its sign.

:class:`SmallVectorIndex` is the index that mteb's own search then searches in; :func:`read_vector_rows` finds in the
result files what came of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from sentence_transformers.util.quantization import quantize_embeddings

from piccolo_st.errors import optional
from piccolo_st.evaluation.benchmarks import Benchmark
from piccolo_st.evaluation.results import ResultFile, from_mteb, task_scores

Precision = Literal["float32", "int8", "binary"]
PRECISIONS: tuple[Precision, ...] = ("float32", "int8", "binary")
RESCORED = 40
"""How many of the nearest by bits are put in order with the query's own numbers."""
FACTS = ("bytes_per_vector", "search_seconds_per_1000")
"""What a result says of the search in this index; mteb's own search leaves none."""


class SmallVectorIndex:
    """mteb's protocol of an index, exact: every document is compared.

    Args:
        precision: what is kept of the documents.
        normalize: whether only the direction of an embedding counts, as with the cosine.

    Raises:
        MissingPackage: faiss is not installed.
    """

    def __init__(self, precision: Precision, normalize: bool = True) -> None:
        with optional("a search with small vectors", "faiss", "data"):
            import faiss  # noqa: F401
        self.precision = precision
        self.normalize = normalize
        self.facts: dict[str, float] = {}
        self._index: Any = None  # faiss's of floats or of bits
        self._bits = np.zeros((0, 0), dtype=np.uint8)
        self._mean = np.zeros(0, dtype=np.float32)  # of the documents

    def add_documents(self, embeddings: np.ndarray, idxs: Sequence[str]) -> None:
        """Take all documents, (documents, dimension), and build the index."""
        import faiss

        documents = self._directions(embeddings)
        dimension = documents.shape[1]
        if self.precision == "binary":
            self._mean = documents.mean(axis=0)
            self._bits = _signs(documents - self._mean)
            self._index = faiss.IndexBinaryFlat(8 * self._bits.shape[1])
            self._index.add(self._bits)
            self.facts = {"bytes_per_vector": self._bits.shape[1]}
            return
        inner, kind = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
        int8 = self.precision == "int8"
        self._index = faiss.IndexScalarQuantizer(dimension, kind, inner) if int8 else faiss.IndexFlatIP(dimension)
        self._index.train(documents)
        self._index.add(documents)
        self.facts = {"bytes_per_vector": dimension if int8 else 4 * dimension}

    def search(
        self, embeddings: np.ndarray, top_k: int, similarity_fn: Callable[..., object], **_: object
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Similarities and places of the nearest documents of each query, (queries, top_k), best first."""
        assert self._index is not None, "documents come first"
        queries, nearest = self._directions(embeddings), min(top_k, self._index.ntotal)
        start = time.perf_counter()
        if self.precision == "binary":
            queries = queries - self._mean
            distances, places = self._index.search(_signs(queries), nearest)
            found = self._rescored(queries, -distances.astype(np.float32), places)
        else:
            found = self._index.search(queries, nearest)
        self.facts["search_seconds_per_1000"] = 1000 * (time.perf_counter() - start) / max(1, len(queries))
        return found[0].tolist(), found[1].tolist()

    def clear(self) -> None:
        """Forget the documents, not the facts of the last search."""
        self._index, self._bits = None, np.zeros((0, 0), dtype=np.uint8)

    def _directions(self, embeddings: np.ndarray) -> np.ndarray:
        floats = np.ascontiguousarray(embeddings, dtype=np.float32)
        if not self.normalize:
            return floats
        return floats / np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-12)

    def _rescored(self, queries: np.ndarray, scores: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first places in the order of the query against the signs, still before those behind them."""
        first = places[:, :RESCORED]  # (queries, 40)
        signs = 2.0 * np.unpackbits(self._bits[first], axis=-1)[..., : queries.shape[1]] - 1
        finer = np.einsum("qd,qkd->qk", queries, signs).astype(np.float32)
        order = np.argsort(-finer, axis=1, kind="stable")
        ahead = np.take_along_axis(finer, order, axis=1)
        ahead = ahead - ahead.min(axis=1, keepdims=True) + scores.max() + 1
        return (
            np.concatenate([ahead, scores[:, RESCORED:]], axis=1),
            np.concatenate([np.take_along_axis(first, order, axis=1), places[:, RESCORED:]], axis=1),
        )


def _signs(floats: np.ndarray) -> np.ndarray:
    """One bit a dimension, eight to a byte."""
    return cast(np.ndarray, quantize_embeddings(floats, "ubinary"))


@dataclass(frozen=True)
class VectorRow:
    """What came of searching with vectors of one size.

    Attributes:
        dimension: numbers of a vector.
        precision: what is kept of each.
        size: bytes of a vector in the index.
        score: the mean over the retrieval tasks, in percent.
        share: of the score with all dimensions in float32, in percent; None where that was not measured.
        seconds: of a search for 1,000 queries, the mean over the tasks; None where it was not measured.
    """

    dimension: int
    precision: Precision
    size: int
    score: float
    share: float | None
    seconds: float | None


def read_vector_rows(folder: str | Path, benchmark: Benchmark, dtype: str | None = None) -> list[VectorRow]:
    """The rows of one model's results, largest vectors first; none where nothing but float32 was measured.

    Args:
        folder: results of one revision, ``.../org__name/REVISION``, with mteb's ``experiments`` in it.
        benchmark: the definition by which the retrieval tasks are scored.
        dtype: that the evaluation encoded in; None: that of the weights.
    """
    base = Path(folder)
    found: dict[tuple[int | None, Precision], tuple[float, dict[str, float]]] = {}
    for place in [base, *sorted((base / "experiments").glob("*"))]:
        meta = place / "model_meta.json"
        settings = json.loads(meta.read_text(encoding="utf-8")).get("experiment_kwargs") or {} if meta.exists() else {}
        if settings.get("dtype") != dtype or (place != base and not settings):
            continue
        files = [json.loads(file.read_text("utf-8")) for file in place.glob("*.json") if file.name != meta.name]
        if measured := _measured(files, benchmark):
            found[settings.get("truncate_dim"), settings.get("precision", "float32")] = measured
    if {precision for _, precision in found} <= {"float32"}:
        return []
    whole = found.get((None, "float32"))
    rows = [
        VectorRow(
            int(dimension or facts["bytes_per_vector"] * {"float32": 0.25, "int8": 1, "binary": 8}[precision]),
            precision,
            int(facts["bytes_per_vector"]),
            score,
            100 * score / whole[0] if whole else None,
            facts["search_seconds_per_1000"],
        )
        for (dimension, precision), (score, facts) in found.items()
        if facts
    ]
    return sorted(rows, key=lambda row: (-row.dimension, -row.size))


def _measured(files: Iterable[ResultFile], benchmark: Benchmark) -> tuple[float, dict[str, float]] | None:
    """The mean score of the retrieval tasks and the mean of each fact; None where a task is missing."""
    names = [task.name for task in benchmark.of_type("Retrieval")]
    files = [file for file in files if file["task_name"] in names]
    scores = task_scores([one for file in files for one in from_mteb(file, benchmark)], benchmark)
    if not names or any(name not in scores for name in names):
        return None
    entries = [entry for file in files for split in file["scores"].values() for entry in split]
    known = all(set(FACTS) <= set(entry) for entry in entries)
    facts = {fact: fsum(entry[fact] for entry in entries) / len(entries) for fact in FACTS} if known else {}
    return fsum(scores[name] for name in names) / len(names), facts
