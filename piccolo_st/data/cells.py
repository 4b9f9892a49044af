"""The cells of a chunk as one Arrow array of one type a role; a cell that does not fit becomes null, with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from piccolo_st.data.chunks import Chunk, Record, excerpt
from piccolo_st.data.columns import Columns, has_scores, is_list, is_text
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.strict import parse_list, parse_number
from piccolo_st.data.tasks import SCORED_TASKS
from piccolo_st.errors import MixtureError

Kind = Literal["text", "label", "number", "list", "written", "scores"]
"""What the cells of a column are read as; ``written``: as lists that are written as text; ``scores``: as numbers."""

Reasons = NDArray[np.object_]
"""(n,): None, or the first reason against each row."""

MISSING, NULL, WRONG_TYPE, NOT_ENCODABLE, NO_NUMBER, WRITTEN = (
    "missing column",
    "null",
    "wrong type",
    "broken encoding",
    "not a number",
    "a list written as text",
)


def to_table(spec: DatasetSpec, columns: Columns, chunk: Chunk) -> tuple[pa.Table, Reasons]:
    """The chunk's cells as one array a role, and the first reason against each row.

    Returns:
        A table of n rows (string, list<string>, for numeric labels double, for scores list<double>) and an (n,) object
        array that holds None or a reason.

    Raises:
        MixtureError: a columnar source has a column of a type that cannot play its role.
    """
    reasons = np.full(len(chunk.rows), None, dtype=object)
    numeric = spec.task in SCORED_TASKS if spec.preset is None else spec.preset.name == "scored_pairs"
    arrays = {}
    for role, column in columns.names.items():
        kind: Kind = "text" if role != "label" else "number" if numeric else "label"
        kind = "written" if role in columns.written else "list" if role in columns.lists else kind
        kind = "scores" if has_scores(spec, role) else kind
        if isinstance(chunk.records, pa.Table):
            arrays[role] = _cast(chunk, column, kind, spec, role, reasons)
            if kind != "scores" and (role != "negative" or role not in columns.lists):
                _note(reasons, np.flatnonzero(arrays[role].is_null().to_numpy(False)), f"{role}: {NULL}")
            cells = chunk.records.column(column).to_pylist() if role in columns.mixed else []
        else:
            arrays[role] = _from_records(chunk.records, column, kind, role, reasons)
            cells = [record.get(column) for record in chunk.records] if role in columns.mixed else []
        lists = (row for row, cell in enumerate(cells) if isinstance(cell, str) and parse_list(cell) is not None)
        _note(reasons, lists, f"{role}: {WRITTEN}")
    return pa.table(arrays), reasons


def _note(reasons: Reasons, rows: Iterable[int], reason: str) -> None:
    for row in rows:
        if reasons[row] is None:
            reasons[row] = reason


def _cast(chunk: Chunk, column: str, kind: Kind, spec: DatasetSpec, role: str, reasons: Reasons) -> pa.Array:
    assert not isinstance(chunk.records, list)  # a columnar format
    if column not in chunk.records.column_names:  # a later file of the same source with another schema
        raise MixtureError(
            f"every file of dataset {spec.name!r} must have the column {column!r}, as another has, got {chunk.file} "
            f"with the columns {', '.join(chunk.records.column_names)}; rename it there"
        )
    array = chunk.records.column(column).combine_chunks()
    target = _TYPES[kind]
    given = array.type
    if kind in ("written", "list") and is_text(given):  # lists written as text, or one negative or none
        split = parse_list if kind == "written" else lambda text: [text]
        lists = [None if cell is None else split(cell) or [] for cell in array.to_pylist()]
        return _array([[] if one is None and role == "negative" else one for one in lists], target, role, reasons)
    if kind == "scores" and not (is_list(given) and _is_number(given.value_type)):
        array, given = _as_lists(array, role, reasons), target
    fits = {
        "scores": True,
        "text": is_text(given),
        "label": is_text(given) or pa.types.is_integer(given),
        "number": _is_number(given),
    }.get(kind, is_list(given) and is_text(given.value_type))
    if not fits and not pa.types.is_null(given):
        wanted = {"number": "numbers", "list": "lists of text", "written": "lists of text"}.get(kind, "text")
        raise MixtureError(
            f"column {column!r} of {chunk.file} must hold {wanted} to be the {role} of dataset {spec.name!r}, got the "
            f"type {excerpt(str(given), 200)}; convert it, or name another in `columns`"
        )
    return array.cast(target, safe=kind != "number")  # of a number that float64 cannot hold, the nearest one


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _as_lists(array: pa.Array, role: str, reasons: Reasons) -> pa.Array:
    """Scores that are no lists of numbers, as those are."""
    return _from_records([{role: cell} for cell in array.to_pylist()], role, "scores", role, reasons)


_ABSENT = object()


def _from_records(records: Sequence[Record], column: str, kind: Kind, role: str, reasons: Reasons) -> pa.Array:
    convert, target = _CONVERTERS[kind], _TYPES[kind]
    values: list[object] = []
    for row, record in enumerate(records):
        value = record.get(column, _ABSENT)
        if type(value) is str and kind == "text":  # the common case, kept short
            values.append(value)
            continue
        if (value is _ABSENT or value is None) and pa.types.is_list(target) and role == "negative":
            values.append([])
            continue
        if value is _ABSENT or value is None:
            reason: str | None = MISSING if value is _ABSENT else NULL
            reason = None if kind == "scores" else reason  # a row without texts has none, and others are found by that
            values.append(None)
        else:
            converted, reason = convert(value)
            values.append(converted)
        if reason is not None and reasons[row] is None:
            reasons[row] = f"{role}: {reason}"
    return _array(values, target, role, reasons)


def _array(values: list[object], target: pa.DataType, role: str, reasons: Reasons) -> pa.Array:
    try:
        return pa.array(values, type=target)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        for row, value in enumerate(values):
            if not _encodable(value):
                values[row] = None
                _note(reasons, [row], f"{role}: {NOT_ENCODABLE}")
        return pa.array(values, type=target)


def _encodable(value: object) -> bool:
    try:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _as_text(value: object) -> tuple[str | None, str | None]:
    return (value, None) if isinstance(value, str) else (None, WRONG_TYPE)


def _as_label(value: object) -> tuple[str | None, str | None]:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None, WRONG_TYPE
    return str(value), None


def _as_number(value: object) -> tuple[float | None, str | None]:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None, WRONG_TYPE
    try:
        number = parse_number(value) if isinstance(value, str) else float(value)
    except OverflowError:
        number = None
    return number, None if number is not None else NO_NUMBER


def _as_scores(value: object) -> tuple[list[float | None] | None, str | None]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None, NO_NUMBER
    read = [_as_number(item) for item in (value if isinstance(value, list) else [value])]
    fault = next((reason for _, reason in read if reason is not None), None)
    return ([number for number, _ in read], None) if fault is None else (None, fault)


def _as_list(value: object) -> tuple[list[str | None] | None, str | None]:
    if isinstance(value, str):
        return [value], None
    if not isinstance(value, list):
        return None, WRONG_TYPE
    return [item if isinstance(item, str) else None for item in value], None


def _as_written(value: object) -> tuple[list[str] | None, str | None]:
    if not isinstance(value, str):
        return None, WRONG_TYPE
    return parse_list(value) or [], None


_CONVERTERS: dict[Kind, Callable[[object], tuple[object, str | None]]] = {
    "text": _as_text,
    "label": _as_label,
    "number": _as_number,
    "list": _as_list,
    "written": _as_written,
    "scores": _as_scores,
}
_LISTS = pa.list_(pa.string())
_TYPES: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "label": pa.string(),
    "number": pa.float64(),
    "list": _LISTS,
    "written": _LISTS,
    "scores": pa.list_(pa.float64()),
}
