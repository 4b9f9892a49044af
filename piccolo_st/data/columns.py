"""Which column of a source plays which role, and its cells as typed Arrow arrays.

Roles of a row, before any preset: ``query, positive[, negative | negative_1..n]`` (retrieval), ``sentence1,
sentence2, label`` (sts, pair, preset scored_pairs), ``text, label`` (classification, clustering, preset classes),
``premise, hypothesis, label`` (preset nli). Pairs for classification or clustering may have a ``label``, which is
looked for only where the mixture names it.

    (1) ``find_columns`` maps roles to column names: those the mixture names, else the usual names, the peers' own
        formats among them (FlagEmbedding's query, pos, neg; uniem's and piccolo-embedding's text, text_pos, text_neg,
        text_pair, label);
    (2) ``Survey`` (survey.py) says which of them hold lists, by all rows seen so far and not by the first ones;
    (3) ``to_table`` turns the cells of a chunk into arrays of one type a role; a cell that does not fit becomes null
        and its row gets a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from piccolo_st.config import unknown_key
from piccolo_st.data.chunks import Chunk
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.strict import parse_list, parse_number
from piccolo_st.data.tasks import LABELLED_TASKS, SCORED_TASKS
from piccolo_st.errors import MixtureError
from piccolo_st.modeling import COLUMNS, NUMBERED_NEGATIVE

# Usual column names, by role, in the order in which they are tried.
ALIASES: dict[str, tuple[str, ...]] = {
    **COLUMNS,
    "query": (*COLUMNS["query"], "text"),
    "sentence1": ("sentence1", "sentence_1", "text1", "text"),
    "sentence2": ("sentence2", "sentence_2", "text2", "text_pair", "text_pos"),
    "text": ("text", "sentence"),
    "premise": ("premise", "sentence1"),
    "hypothesis": ("hypothesis", "sentence2"),
}

MISSING, NULL, WRONG_TYPE, NOT_ENCODABLE, NO_NUMBER, WRITTEN = (
    "missing column",
    "null",
    "wrong type",
    "broken encoding",
    "not a number",
    "a list written as text",
)


@dataclass(frozen=True)
class Roles:
    """The columns of a source by role.

    Attributes:
        columns: role -> column name; negatives in several columns are ``negative_1``, ``negative_2``, ...
        lists: the roles whose cells are lists of texts.
        written: those of them whose lists are written as text, in every row.
        mixed: roles in which such a list stands among other cells, where it is a fault.
        unused: the source's other columns.
    """

    columns: Mapping[str, str]
    lists: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The roles that hold text, in column order."""
        return tuple(role for role in self.columns if role != "label")


def required_roles(spec: DatasetSpec) -> tuple[str, ...]:
    """The roles a source must have before its preset."""
    if spec.preset is not None:
        return {
            "nli": ("premise", "hypothesis", "label"),
            "classes": ("text", "label"),
            "scored_pairs": ("sentence1", "sentence2", "label"),
        }[spec.preset.name]
    if spec.task in SCORED_TASKS:
        return ("sentence1", "sentence2", "label")
    if spec.task == "retrieval" or "query" in spec.columns:  # triplets made elsewhere serve classification as well
        return ("query", "positive")
    return ("text", "label")


def optional_roles(spec: DatasetSpec) -> tuple[str, ...]:
    """The roles a source may have beside the required ones."""
    if required_roles(spec)[0] != "query":
        return ()
    return ("negative", "label") if spec.task in LABELLED_TASKS else ("negative",)


def find_columns(spec: DatasetSpec, present: Sequence[str], file: str) -> dict[str, str]:
    """Role -> the column that plays it, of those present.

    Raises:
        MixtureError: a role named in ``columns`` that the task does not have, a column that the source does not have,
            or a required role that no column plays.
    """
    required, optional = required_roles(spec), optional_roles(spec)
    place = f"columns of dataset {spec.name!r}"
    listed = ", ".join(present) or "(none)"
    for role in spec.columns:
        if role not in required and role not in optional:
            raise unknown_key(role, [*required, *optional], place)
    columns: dict[str, str] = {}
    for role in (*required, *optional):
        named = spec.columns.get(role)
        names = [named] if isinstance(named, str) else list(named or [])
        for name in names:
            if name not in present:
                raise MixtureError(
                    f"{role} of {place} must be a column of {file}, got {name!r}; its columns are {listed}"
                )
        if not names and (role in required or role == "negative"):
            taken = set(columns.values())
            names = [name for name in ALIASES[role] if name in present and name not in taken][:1]
        if not names and role == "negative":
            numbers = {name: int(found[1]) for name in present if (found := NUMBERED_NEGATIVE.fullmatch(name))}
            names = sorted(numbers, key=numbers.__getitem__)
        if not names and role in required:
            raise MixtureError(
                f"dataset {spec.name!r} is for {spec.task}"
                + (f" by the preset {spec.preset.name!r}" if spec.preset else "")
                + f" and needs a column for {role!r}, got {file} with the columns {listed}; "
                f"say which with `columns: {{{role}: NAME}}`"
            )
        if len(names) == 1:
            columns[role] = names[0]
        else:
            columns.update({f"{role}_{index}": name for index, name in enumerate(names, start=1)})
    return columns


def may_list(role: str) -> bool:
    """Whether the cells of a role may be lists of texts."""
    return role.partition("_")[0] in ("positive", "negative")


def to_table(spec: DatasetSpec, roles: Roles, chunk: Chunk) -> tuple[pa.Table, np.ndarray]:
    """The chunk's cells as one array a role, and the first reason against each row.

    Returns:
        A table of n rows (string, list<string> or, for numeric labels, double) and an (n,) object array that holds
        None or a reason.

    Raises:
        MixtureError: a columnar source has a column of a type that cannot play its role.
    """
    reasons = np.full(len(chunk.rows), None, dtype=object)
    numeric = spec.task in SCORED_TASKS or (spec.preset is not None and spec.preset.name == "scored_pairs")
    arrays = {}
    for role, column in roles.columns.items():
        kind = "number" if role == "label" and numeric else "label" if role == "label" else "text"
        kind = "written" if role in roles.written else "list" if role in roles.lists else kind
        if isinstance(chunk.records, pa.Table):
            arrays[role] = _cast(chunk, column, kind, spec, role)
            if role != "negative" or role not in roles.lists:
                _note(reasons, np.flatnonzero(arrays[role].is_null().to_numpy(False)), f"{role}: {NULL}")
        else:
            arrays[role] = _from_records(chunk.records, column, kind, role, reasons)
        if role in roles.mixed:
            cells = chunk.cells(column)
            lists = (row for row, cell in enumerate(cells) if isinstance(cell, str) and parse_list(cell) is not None)
            _note(reasons, lists, f"{role}: {WRITTEN}")
    return pa.table(arrays), reasons


def _note(reasons: np.ndarray, rows: Iterable[int], reason: str) -> None:
    for row in rows:
        if reasons[row] is None:
            reasons[row] = reason


def _cast(chunk: Chunk, column: str, kind: str, spec: DatasetSpec, role: str) -> pa.Array:
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
        return pa.array([[] if one is None and role == "negative" else one for one in lists], target)
    fits = {
        "text": is_text(given),
        "label": is_text(given) or pa.types.is_integer(given),
        "number": pa.types.is_integer(given) or pa.types.is_floating(given) or pa.types.is_decimal(given),
    }.get(kind, is_list(given) and is_text(given.value_type))
    if not fits and not pa.types.is_null(given):
        wanted = {"number": "numbers", "list": "lists of text", "written": "lists of text"}.get(kind, "text")
        raise MixtureError(
            f"column {column!r} of {chunk.file} must hold {wanted} to be the {role} of dataset {spec.name!r}, got the "
            f"type {given}; convert it, or name another in `columns`"
        )
    if pa.types.is_dictionary(given):
        array = array.dictionary_decode()
    return array.cast(target)


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is that of lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is that of text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


_ABSENT = object()


def _from_records(
    records: Sequence[Mapping[str, Any]], column: str, kind: str, role: str, reasons: np.ndarray
) -> pa.Array:
    convert, target = _CONVERTERS[kind], _TYPES[kind]
    values: list[Any] = []
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
            value = None
        else:
            value, reason = convert(value)
        values.append(value)
        if reason is not None and reasons[row] is None:
            reasons[row] = f"{role}: {reason}"
    try:
        return pa.array(values, type=target)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        for row, value in enumerate(values):
            if value is not None and not _encodable(value):
                values[row] = None
                _note(reasons, [row], f"{role}: {NOT_ENCODABLE}")
        return pa.array(values, type=target)


def _encodable(value: str | list[str | None]) -> bool:
    try:
        for text in [value] if isinstance(value, str) else value:
            (text or "").encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _as_text(value: Any) -> tuple[str | None, str | None]:
    return (value, None) if isinstance(value, str) else (None, WRONG_TYPE)


def _as_label(value: Any) -> tuple[str | None, str | None]:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None, WRONG_TYPE
    return str(value), None


def _as_number(value: Any) -> tuple[float | None, str | None]:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None, WRONG_TYPE
    try:
        number = parse_number(value) if isinstance(value, str) else float(value)
    except OverflowError:
        number = None
    return number, None if number is not None else NO_NUMBER


def _as_list(value: Any) -> tuple[list[str | None] | None, str | None]:
    if isinstance(value, str):
        return [value], None
    if not isinstance(value, list):
        return None, WRONG_TYPE
    return [item if isinstance(item, str) else None for item in value], None


def _as_written(value: Any) -> tuple[list[str] | None, str | None]:
    if not isinstance(value, str):
        return None, WRONG_TYPE
    return parse_list(value) or [], None


_CONVERTERS: dict[str, Callable[[Any], tuple[Any, str | None]]] = {
    "text": _as_text,
    "label": _as_label,
    "number": _as_number,
    "list": _as_list,
    "written": _as_written,
}
_LISTS = pa.list_(pa.string())
_TYPES = {"text": pa.string(), "label": pa.string(), "number": pa.float64(), "list": _LISTS, "written": _LISTS}


def flatten(array: pa.ListArray) -> tuple[pa.Array, np.ndarray]:
    """The texts of a list column, and the (m,) row each belongs to."""
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return pc.list_flatten(array), pc.list_parent_indices(array).to_numpy(False)
