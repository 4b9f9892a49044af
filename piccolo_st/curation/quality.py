"""Which rows are worth training on: by their length, their language, repetition, and consistency.

Functions of tables and arrays, with no files and no state:

    (1) ``text_statistics`` and ``heuristic_faults`` judge length, language and repetition;
    (2) ``simplified`` writes one Chinese script;
    (3) ``consistent`` keeps a pair if its positive is among the ``top_k`` of a random pool for its query, as E5 does
        (Wang et al. 2022, arXiv 2212.03533, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from piccolo_st.curation.duplicates import identity_columns
from piccolo_st.data import DatasetSpec
from piccolo_st.errors import MixtureError, optional
from piccolo_st.schema import Count, Natural, Share, Whole, setting


@dataclass(frozen=True)
class FilterSettings:
    """Which rows are kept; None switches a rule off. Lengths are in characters.

    Attributes:
        min_characters, max_query_characters, max_document_characters: limits of length.
        min_han: least share of Chinese characters among letters and digits.
        max_kana: largest share of Japanese kana among them.
        max_repetition: largest share of a text's commonest character, in texts of 10 characters or more.
        simplify: write traditional characters as simplified ones (OpenCC).
        top_k: keep a pair if its positive is among the k of the pool most similar to its query.
        pool: positives drawn at random to rank among.
        model: encoder for ``top_k``: ``lexical``, or a SentenceTransformer's Hub id or folder.
        batch_size: texts encoded at a time.
        part_rows: rows a task and an output file.
        seed: of the pool.
    """

    min_characters: Natural | None = setting(None, "Shorter texts go.")
    max_query_characters: Natural | None = setting(None, "Longer queries and sentences go.")
    max_document_characters: Natural | None = setting(None, "Longer positives go.")
    min_han: Share | None = setting(0.3, "Least share of Chinese among letters and digits.")
    max_kana: Share | None = setting(0.1, "Largest share of kana among letters and digits.")
    max_repetition: Share | None = setting(0.5, "Largest share of the commonest character.")
    simplify: bool = setting(False, "Write traditional characters as simplified ones.")
    top_k: Count | None = setting(None, "Consistency: the positive is among the k nearest.")
    pool: Count = setting(100_000, "Positives drawn to rank among.")
    model: str = setting("lexical", "Encoder for top_k: lexical, a Hub id or a folder.")
    batch_size: Count = setting(256, "Texts encoded at a time.")
    part_rows: Count = setting(200_000, "Rows a task and an output file.")
    seed: Whole = setting(13, "Of the pool.")

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k > self.pool:
            raise MixtureError(
                f"filter.top_k must be at most filter.pool={self.pool}, beyond which every row is kept, "
                f"got {self.top_k}"
            )


@dataclass(frozen=True)
class TextStatistics:
    """Of n texts: length in characters, shares of Han and kana among letters and digits, and of the commonest
    character; (n,) each."""

    length: np.ndarray
    han: np.ndarray
    kana: np.ndarray
    repetition: np.ndarray


def text_statistics(texts: pa.Array) -> TextStatistics:
    """Count characters by kind; a text without letters and digits has shares of 0."""
    length = pc.utf8_length(texts).to_numpy(False).astype(np.int64)

    def count(pattern: str) -> np.ndarray:
        return pc.count_substring_regex(texts, pattern).to_numpy(False)

    letters = np.maximum(count(r"[\p{L}\p{Nd}]"), 1)
    codes = np.frombuffer("".join(texts.to_pylist()).encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    owners = np.repeat(np.arange(len(length)), length)
    _, first, repeats = np.unique(owners << 21 | codes, return_index=True, return_counts=True)
    commonest = np.zeros(len(length), dtype=np.int64)
    np.maximum.at(commonest, owners[first], repeats)
    return TextStatistics(
        length,
        count(r"\p{Han}") / letters,
        count(r"[\p{Hiragana}\p{Katakana}]") / letters,
        commonest / np.maximum(length, 1),
    )


def heuristic_faults(spec: DatasetSpec, table: pa.Table, settings: FilterSettings) -> np.ndarray:
    """(n,) object: None, or the first rule that a text of the row breaks."""
    faults = np.full(table.num_rows, None, dtype=object)
    for column, texts in enumerate(identity_columns(spec, table)):
        found = text_statistics(texts)
        long = (
            settings.max_document_characters if column and spec.task == "retrieval" else settings.max_query_characters
        )
        rules: tuple[tuple[str, float | None, Callable[[float, TextStatistics], np.ndarray]], ...] = (
            ("too short", settings.min_characters, lambda limit, s: s.length < limit),
            ("too long", long, lambda limit, s: s.length > limit),
            ("too little Chinese", settings.min_han, lambda limit, s: s.han < limit),
            ("Japanese", settings.max_kana, lambda limit, s: s.kana > limit),
            (
                "one character repeated",
                settings.max_repetition,
                lambda limit, s: (s.repetition > limit) & (s.length >= 10),
            ),
        )
        for reason, limit, broken in rules:
            if limit is not None:
                faults[broken(limit, found) & (faults == None)] = reason  # noqa: E711  (elementwise)
    return faults


def simplified(table: pa.Table) -> pa.Table:
    """The table with traditional characters written as simplified ones.

    Raises:
        MissingPackage: OpenCC is not installed.
    """
    with optional("simplify", "OpenCC", "data"):
        from opencc import OpenCC
    convert = OpenCC("t2s").convert

    def column(array: pa.ChunkedArray) -> pa.Array:
        if pa.types.is_list(array.type):
            return pa.array([[convert(text) for text in texts] for texts in array.to_pylist()], type=array.type)
        return pa.array([convert(text) for text in array.to_pylist()], type=array.type)

    kinds = [kind.value_type if pa.types.is_list(kind) else kind for kind in table.schema.types]
    textual = [pa.types.is_string(kind) for kind in kinds]
    columns = [column(array) if text else array for array, text in zip(table.columns, textual, strict=True)]
    return pa.table(columns, names=table.column_names)


def consistent(query: np.ndarray, positive: np.ndarray, pool: np.ndarray, top_k: int) -> np.ndarray:
    """Whether each positive is among the ``top_k`` of pool and positive that are most similar to the query.

    Args:
        query: (n, d) float32, normalized.
        positive: (n, d) float32, normalized.
        pool: (m, d) float32, normalized.
        top_k: ranks that count.

    Raises:
        MissingPackage: faiss is not installed.
    """
    with optional("the consistency filter", "faiss", "data"):
        import faiss
    if top_k > len(pool):
        return np.ones(len(query), dtype=bool)
    index: faiss.Index = faiss.IndexFlatIP(pool.shape[1])
    if getattr(faiss, "get_num_gpus", lambda: 0)():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(np.ascontiguousarray(pool, dtype=np.float32))
    nearest, _ = index.search(np.ascontiguousarray(query, dtype=np.float32), top_k)
    own = np.einsum("nd,nd->n", query, positive)
    # The positive itself may stand in the pool: rounding must not rank it below itself.
    return own >= nearest[:, -1] - 1e-5
