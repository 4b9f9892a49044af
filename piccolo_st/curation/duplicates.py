"""Which rows are duplicates of others, or hold texts of evaluation sets.

Functions of tables and arrays, with no files and no state:

    (1) ``row_keys`` and ``band_keys`` are what duplicates agree on; ``similar_rows`` checks candidates exactly;
    (2) ``contaminated`` and ``without_tests`` find texts of evaluation sets, exact or nearly so, and miss none.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from piccolo_st.curation.shingles import Collection, band_hashes, jaccard, merge, shingle
from piccolo_st.data import LABELLED_TASKS, SCORED_TASKS, DatasetSpec, flatten, keep_joined
from piccolo_st.hashing import combine, scramble, text_hashes, text_key
from piccolo_st.schema import Count, PositiveShare, Whole, setting

# Pairs looked at in one piece.
_PAIRS = 100_000


@dataclass(frozen=True)
class DedupSettings:
    """What counts as a duplicate; texts are compared as ``text_key`` has them.

    Attributes:
        near: two rows are near duplicates if each of their texts reaches this Jaccard similarity of character n-grams;
            None: exact duplicates only.
        decontaminate: texts as similar as this to a text of an evaluation set are removed; None: none are.
        shingle: characters an n-gram.
        permutations: length of the MinHash signatures that find candidates.
        across: whether datasets of the same task are compared with each other; the first in the mixture keeps the row.
            Labelled texts never are: two datasets may ask different things of one text.
        part_rows: rows a task and an output file.
        seed: of the signatures.
    """

    near: PositiveShare | None = setting(0.8, "Jaccard similarity of near duplicates; empty: exact only.")
    decontaminate: PositiveShare | None = setting(
        0.8, "Jaccard similarity to an evaluation text that removes; empty: none."
    )
    shingle: Count = setting(3, "Characters an n-gram.")
    permutations: Count = setting(64, "Length of the MinHash signatures.")
    across: bool = setting(True, "Whether datasets of one task are compared with each other.")
    part_rows: Count = setting(200_000, "Rows a task and an output file.")
    seed: Whole = setting(13, "Of the signatures.")


def identity_columns(spec: DatasetSpec, table: pa.Table) -> list[pa.Array]:
    """The texts that make a row what it is: query and positive, both sentences, or the text alone of labelled texts
    (whose positive and negatives were drawn for it)."""
    names = [name for name in table.column_names if name in ("query", "positive", "sentence1", "sentence2", "text")]
    if spec.task in LABELLED_TASKS:
        names = names[:1]
    columns = []
    for name in names:
        column = table[name].combine_chunks()
        columns.append(pc.binary_join(column, "\n") if pa.types.is_list(column.type) else column)
    return columns


def identity_keys(spec: DatasetSpec, table: pa.Table) -> list[pa.Array]:
    """Those texts as they are compared."""
    return [text_key(column) for column in identity_columns(spec, table)]


def row_keys(spec: DatasetSpec, keys: list[pa.Array], group: int) -> np.ndarray:
    """(n,) uint64, equal for rows of one group with equal texts; the sentences of a pair may change places.

    Args:
        spec: of their dataset.
        keys: ``identity_keys`` of the rows.
        group: rows of different groups are never equal.
    """
    parts = [text_hashes(key) for key in keys]
    if spec.task in SCORED_TASKS:
        parts = [np.minimum(*parts), np.maximum(*parts)]
    hashes = np.full(len(parts[0]), group, dtype=np.uint64)
    for part in parts:
        hashes = combine(hashes, part)
    return hashes


def band_keys(keys: list[pa.Array], group: int, settings: DedupSettings, bands: int, rows: int) -> np.ndarray:
    """(bands, n) uint64: rows of a group whose texts are similar agree in at least one band, with the probability that
    ``bands_for`` promises. If every column of two rows reaches a similarity, so does the union of their n-grams."""
    union = merge([shingle(key, settings.shingle, tag) for tag, key in enumerate(keys)])
    return band_hashes(union, bands, rows, settings.seed) ^ scramble(np.array([group], dtype=np.uint64))


def similar_rows(first: list[pa.Array], second: list[pa.Array], n: int) -> np.ndarray:
    """(n,) float64: similarity of row i of both lists of ``identity_keys``, that of their least similar column."""
    columns = zip(first, second, strict=True)
    return np.min([jaccard(shingle(one, n), shingle(other, n)) for one, other in columns], axis=0)


def distinct_pairs(pairs: np.ndarray, rows: int) -> np.ndarray:
    """(k, 2) int64: pairs of numbers below ``rows``, each once, in ascending order."""
    return np.stack(np.divmod(np.unique(pairs[:, 0] * rows + pairs[:, 1]), rows), axis=1)


def greedy_duplicates(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows go, so that of every similar pair at most one stays and every row that goes has one that stays.

    Args:
        pairs: (m, 2) int64, row numbers of similar rows, the smaller first.

    Returns:
        (k,) rows that go, ascending, and (k,) a row that stays for each.
    """
    rows, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(-1, 2)
    kept = array("q", bytes(8 * len(rows)))  # one more than the place of the row that stays for it; 0: it stays itself
    order = np.lexsort((places[:, 0], places[:, 1]))
    for start in range(0, len(order), _PAIRS):  # Python's numbers of all pairs at once would take ten times the memory
        for earlier, later in places[order[start : start + _PAIRS]].tolist():
            if not kept[earlier] and not kept[later]:
                kept[later] = earlier + 1
    stays = np.frombuffer(kept, dtype=np.int64) if len(rows) else np.zeros(0, dtype=np.int64)
    gone = np.flatnonzero(stays)
    return rows[gone], rows[stays[gone] - 1]


def contaminated(table: pa.Table, tests: Collection) -> tuple[np.ndarray, np.ndarray]:
    """How much the texts of each row resemble texts of the evaluation sets; negatives do not count.

    Returns:
        (n,) float64, the highest similarity of any text of the row, and (n,) int64, to which of ``tests`` (-1: none).
    """
    best, which = np.zeros(table.num_rows), np.full(table.num_rows, -1, dtype=np.int64)
    for name in table.column_names:
        kind = table.schema.field(name).type
        text = kind.value_type if pa.types.is_list(kind) else kind
        if name.startswith("negative") or not pa.types.is_string(text):
            continue
        if pa.types.is_list(kind):
            texts, owners = flatten(table[name])
        else:
            texts, owners = table[name].combine_chunks(), np.arange(table.num_rows)
        overlap, text = tests.best_overlap(texts)
        order = np.argsort(overlap, kind="stable")  # the last assignment to a row is its highest
        order = order[overlap[order] > best[owners[order]]]
        best[owners[order]], which[owners[order]] = overlap[order], text[order]
    return best, which


def without_tests(table: pa.Table, tests: Collection, threshold: float) -> tuple[pa.Table, np.ndarray]:
    """The table without negatives that resemble texts of the evaluation sets.

    Returns:
        The table, lists without such items, and (n,) bool: a single negative of the row resembles one, so it must go.
    """
    bad = np.zeros(table.num_rows, dtype=bool)
    before, stay = table, {}
    for index, name in enumerate(table.column_names):
        if not name.startswith("negative"):
            continue
        if pa.types.is_list(table.schema.field(name).type):
            texts, owners = flatten(table[name])
            good = stay[name] = tests.best_overlap(texts)[0] < threshold
            counts = np.bincount(owners[good], minlength=table.num_rows)
            offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
            table = table.set_column(index, name, pa.ListArray.from_arrays(offsets, texts.filter(pa.array(good))))
        else:
            bad |= tests.best_overlap(table[name].combine_chunks())[0] >= threshold
    return keep_joined(table, before, stay), bad


def first_of_each(keys: np.ndarray) -> np.ndarray:
    """(n,) int64: the first place where the same key stands."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]
