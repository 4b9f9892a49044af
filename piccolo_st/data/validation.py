"""Every row is checked once: what is broken, in which file and row.

The checks of a chunk are column-wise (Arrow's compute functions), so that good rows cost no Python:

    (1) text: empty, whitespace or invisible characters only, control characters, U+FFFD and other signs of a broken
        encoding, shorter or longer than the limits;
    (2) pairs: a positive equal to its query; a negative equal to the positive, to the query or to another negative;
        equal sentences with a score in the lower half;
    (3) labels: not finite, out of range, not 0 or 1 for ``pair``, not among the allowed ones; a teacher's scores: not
        finite, or not one for each text.

In a list of positives or negatives only the faulty item is left out, with its score, and its row only if no positive
remains. The
text that is kept is the text that came, without the whitespace around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from piccolo_st.data import scores
from piccolo_st.data.cells import Reasons
from piccolo_st.data.chunks import Chunk, Reject, excerpt
from piccolo_st.data.columns import SCORE_ROLES, Columns, has_scores
from piccolo_st.data.specs import DatasetSpec

EMPTY, INVISIBLE = "empty", "only whitespace or invisible characters"
CONTROL, REPLACEMENT, MOJIBAKE = "control character", "replacement character U+FFFD", "mojibake"
SHORT, LONG = "shorter than min_characters", "longer than max_characters"

# One regular expression (RE2 syntax) finds every suspicious text; only those few are then looked at for the reason.
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}\x{fdd0}-\x{fdef}\x{fffe}\x{ffff}]"
# UTF-8 read as Windows-1252 (two or more characters of three bytes), and read as GBK (the commonest results).
_CP1252 = r"(?:[\x{e3}-\x{e9}\x{ef}][\x{a0}-\x{bf}€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]{2}){2}"
_GBK = r"锟斤拷|烫烫烫|屯屯屯|锘挎|涓€|銆傚|鐨勪|鈥[溾濇]"
_MOJIBAKE = f"{_CP1252}|{_GBK}"
_SUSPICIOUS = f"{_CONTROL}|\\x{{fffd}}|{_MOJIBAKE}"
_INVISIBLE = r"^[\p{Z}\p{C}\s]*$"


@dataclass(frozen=True)
class Checked:
    """What is left of a chunk.

    Attributes:
        table: the good rows, one column a role.
        rejects: rows left out, one each.
        removed: items left out of lists whose rows were kept.
        scores: the lowest and the highest score of the chunk, before scaling; None without a score.
        misfits: scores out of ``score_range``, or of a pair and neither end of it.
    """

    table: pa.Table
    rejects: list[Reject]
    removed: list[Reject]
    scores: tuple[float, float] | None = None
    misfits: int = 0


def text_faults(texts: pa.Array, spec: DatasetSpec) -> tuple[pa.Array, Reasons]:
    """The texts without surrounding whitespace, and for each None or the reason against it; nulls have none."""
    trimmed = pc.utf8_trim_whitespace(texts)
    length = pc.fill_null(pc.utf8_length(trimmed), 0).to_numpy(False)
    faults = np.full(len(texts), None, dtype=object)
    faults[length > spec.max_characters] = LONG
    faults[(length < spec.min_characters) & trimmed.is_valid().to_numpy(False)] = SHORT
    for row in np.flatnonzero(_matches(trimmed, _SUSPICIOUS)):
        one = pa.array([trimmed[row].as_py()])
        patterns = ((_CONTROL, CONTROL), (r"\x{fffd}", REPLACEMENT), (_MOJIBAKE, MOJIBAKE))
        faults[row] = next(reason for pattern, reason in patterns if _matches(one, pattern)[0])
    # A text of nothing but zero-width characters is not empty to the trimming above.
    faults[_matches(trimmed, _INVISIBLE)] = INVISIBLE
    faults[pc.fill_null(pc.equal(pc.binary_length(texts), 0), False).to_numpy(False)] = EMPTY
    return trimmed, faults


def _matches(texts: pa.Array, pattern: str) -> NDArray[np.bool_]:
    return pc.fill_null(pc.match_substring_regex(texts, pattern), False).to_numpy(False)


def check_rows(spec: DatasetSpec, columns: Columns, chunk: Chunk, table: pa.Table, reasons: Reasons) -> Checked:
    """Check and clean the rows of a chunk; rows in and rows out add up.

    Args:
        spec: limits, labels and the range of scores.
        columns: which column plays which role.
        chunk: the raw rows.
        table, reasons: its cells and the first fault of each row, of ``to_table``; further faults are added.
    """
    arrays: dict[str, pa.Array] = {role: table.column(role).combine_chunks() for role in table.column_names}
    removed: list[tuple[int, str, str]] = []
    texts = [role for role in columns.names if role not in SCORE_ROLES]
    if any(has_scores(spec, role) for role in arrays):
        found, wrong = scores.align(arrays)
        arrays = {role: arrays[role] for role in texts} | found
        for role, faults in wrong.items():
            _add(reasons, faults, role)
    for role in texts:
        if role not in columns.lists:
            arrays[role], faults = text_faults(arrays[role], spec)
            _add(reasons, faults, role)
    for role in texts:
        if role in columns.lists:
            arrays[role], gone, kept = clean_list(spec, role, arrays)
            removed += gone
            if f"{role}_score" in arrays:
                arrays[f"{role}_score"] = scores.keep(arrays[f"{role}_score"], kept)
            if role == "positive":
                _add(reasons, _emptied(arrays[role], gone), role)
    for role, other, reason in _EQUALITIES:
        for name in (one for one in texts if one == role or one.startswith(f"{role}_")):
            if other in arrays and name not in columns.lists and other not in columns.lists:
                equal = pc.fill_null(pc.equal(arrays[name], arrays[other]), False).to_numpy(False)
                _add(reasons, np.where(equal, reason, np.array(None)).astype(object), name)
    span, misfits = None, 0
    if "label" in arrays:
        span = _span(arrays["label"])
        arrays["label"], faults = _check_label(spec, arrays)
        _add(reasons, faults, "label")
        misfits = int(np.isin(faults, _misfits(spec)).sum())

    good = np.array([reason is None for reason in reasons], dtype=bool)
    rejects = [
        Reject(chunk.file, int(chunk.rows[row]), reasons[row], _row_excerpt(chunk, columns, row))
        for row in np.flatnonzero(~good).tolist()
    ]
    notes = [Reject(chunk.file, int(chunk.rows[row]), reason, text) for row, reason, text in removed if good[row]]
    return Checked(pa.table(arrays).filter(pa.array(good)), [*chunk.rejects, *rejects], notes, span, misfits)


_EQUALITIES = (
    ("positive", "query", "equal to the query"),
    ("negative", "positive", "equal to the positive"),
    ("negative", "query", "equal to the query"),
)


def _add(reasons: Reasons, faults: Reasons, role: str) -> None:
    for row in np.flatnonzero(faults != None):  # noqa: E711  (elementwise)
        if reasons[row] is None:
            reasons[row] = f"{role}: {faults[row]}"


def clean_list(
    spec: DatasetSpec, role: str, columns: dict[str, pa.Array]
) -> tuple[pa.ListArray, list[tuple[int, str, str]], NDArray[np.bool_]]:
    """A list column without its faulty items, (row, reason, text) of each item left out, and which items stay.

    Args:
        spec: limits of length.
        role: ``positive`` or ``negative``.
        columns: the list column under its role, and those its items must differ from.
    """
    texts, owners = flatten(columns[role])
    trimmed, faults = text_faults(texts, spec)
    faults[texts.is_null().to_numpy(False)] = "null or not text"
    taken = pa.array(owners)
    against = {"positive": ("query",), "negative": ("positive", "query")}[role]
    for other in (name for name in against if name in columns):
        if pa.types.is_list(columns[other].type):
            equal = _in_own_list(trimmed, owners, columns[other])
        else:
            equal = pc.fill_null(pc.equal(trimmed, pc.take(columns[other], taken)), False).to_numpy(False)
        _set(faults, equal, f"equal to the {other}")
    _set(faults, _repeated(trimmed, owners), "twice in the list")
    bad = faults != None  # noqa: E711  (elementwise)
    gone = [(int(owners[i]), f"{role}: {faults[i]}", excerpt(texts[i].as_py())) for i in np.flatnonzero(bad)]
    counts = np.bincount(owners[~bad], minlength=len(columns[role]))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = trimmed.filter(pa.array(~bad))
    mask = columns[role].is_null() if role == "positive" else None  # no list of negatives is an empty one
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask), gone, ~bad


def _emptied(lists: pa.ListArray, gone: list[tuple[int, str, str]]) -> Reasons:
    """(n,) object: None, or why a list of positives has no text left: what was wrong with its first item."""
    counts = pc.fill_null(pc.list_value_length(lists), 1).to_numpy(False)
    faults = np.where(counts == 0, "an empty list", np.array(None)).astype(object)
    for row, reason, _ in reversed(gone):
        if counts[row] == 0:
            faults[row] = f"no text is left in the list ({reason.partition(': ')[2]})"
    return faults


def _set(faults: Reasons, where: NDArray[np.bool_], reason: str) -> None:
    faults[where & (faults == None)] = reason  # noqa: E711  (elementwise)


def _codes(texts: pa.Array) -> NDArray[np.int64]:
    """Equal numbers for equal texts; nulls get -1."""
    return pc.fill_null(texts.dictionary_encode().indices, -1).to_numpy(False).astype(np.int64)


def _repeated(texts: pa.Array, owners: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(m,) bool: the item stands earlier in its own list."""
    codes = _codes(texts)
    order = np.lexsort((np.arange(len(codes)), codes, owners))
    repeated = np.zeros(len(codes), dtype=bool)
    same = (codes[order][1:] == codes[order][:-1]) & (owners[order][1:] == owners[order][:-1])
    repeated[order[1:][same]] = True
    return repeated


def _in_own_list(texts: pa.Array, owners: NDArray[np.int64], lists: pa.ListArray) -> NDArray[np.bool_]:
    """(m,) bool: the item stands in the other list of its row."""
    others, other_owners = flatten(lists)
    codes = _codes(pa.concat_arrays([texts, others]))
    width = int(codes.max(initial=0)) + 2
    keys = np.concatenate([owners, other_owners]) * width + codes + 1
    return np.isin(keys[: len(texts)], keys[len(texts) :])


def _span(labels: pa.Array) -> tuple[float, float] | None:
    """The lowest and highest finite score; None where labels are no scores, or none is finite."""
    if not pa.types.is_floating(labels.type):
        return None
    values = labels.to_numpy(False)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else None


def _misfits(spec: DatasetSpec) -> tuple[str, str]:
    """The reasons against a score that does not fit ``score_range``: out of it, and of a pair neither end of it."""
    low, high = spec.score_range
    return f"out of range {low:g}..{high:g}", f"not {low:g} or {high:g}"


def _check_label(spec: DatasetSpec, columns: dict[str, pa.Array]) -> tuple[pa.Array, Reasons]:
    """The labels, scores scaled to 0..1 as float32, and None or the reason against each."""
    labels = columns["label"]
    faults = np.full(len(labels), None, dtype=object)
    if not pa.types.is_floating(labels.type):
        labels = pc.utf8_trim_whitespace(labels)
        if spec.labels is not None:
            known = pc.is_in(labels, pa.array(spec.labels, type=pa.string())).to_numpy(False)
            faults[~known] = "unknown label"
        faults[pc.fill_null(pc.equal(pc.binary_length(labels), 0), False).to_numpy(False)] = EMPTY
        return labels, faults
    low, high = spec.score_range
    values = labels.to_numpy(False)
    null = labels.is_null().to_numpy(False)
    _set(faults, ~np.isfinite(values) & ~null, "not finite")
    with np.errstate(invalid="ignore"):
        outside, between = _misfits(spec)
        _set(faults, (values < low) | (values > high), outside)
        if spec.task == "pair":
            _set(faults, (values != low) & (values != high), between)
        equal = pc.fill_null(pc.equal(columns["sentence1"], columns["sentence2"]), False).to_numpy(False)
        _set(faults, equal & (values < (low + high) / 2), "in the lower half for equal sentences")
    return pa.array((values - low) / (high - low), type=pa.float32(), mask=null), faults


def _row_excerpt(chunk: Chunk, columns: Columns, row: int) -> str:
    if isinstance(chunk.records, pa.Table):
        record = {role: chunk.records.column(name)[row].as_py() for role, name in columns.names.items()}
    else:
        record = {role: chunk.records[row].get(name) for role, name in columns.names.items()}
    return excerpt(" | ".join(f"{role}={value!r}" for role, value in record.items()), 240)


def flatten(array: pa.ListArray | pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """The texts of a list column, and the (m,) row each belongs to."""
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return pc.list_flatten(array), pc.list_parent_indices(array).to_numpy(False)
