"""A teacher's scores of a row's texts: one number for each positive and each negative.

They come in two columns (``positive_score`` and ``negative_score``, FlagEmbedding's pos_scores and neg_scores) or in
one (``label``, as sentence-transformers has them: the positive's score and then the negatives', or, of one positive,
how far each negative is below it).

    (1) ``align`` makes of either two lists a row, as long as the row's texts are many, and says which rows have others;
    (2) ``keep`` leaves out the scores of texts that leave their list;
    (3) ``join`` makes one column ``label`` of both, the positives' scores and then the negatives': what
        sentence-transformers' MarginMSELoss and DistillKLDivLoss read as it is;
    (4) ``keep_joined`` is (2) for rows that have been joined.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from piccolo_st.data.cells import Reasons

SIDES = ("positive", "negative")
NOT_ONE_EACH, NOT_FINITE = "not one score for each text", "not finite"

Counts = NDArray[np.int64]


def align(arrays: Mapping[str, pa.Array]) -> tuple[dict[str, pa.Array], dict[str, Reasons]]:
    """Step (1).

    Args:
        arrays: role -> cells; the scores are lists of numbers, null where a row has none.

    Returns:
        ``positive_score`` and ``negative_score``, lists of float32; where a row is faulty they are zeros. And for each
        role of scores None or the reason against each row.
    """
    texts = {side: _texts_of(arrays, side) for side in SIDES}
    if "label" not in arrays:
        laid = {f"{side}_score": _lay_out(arrays[f"{side}_score"], texts[side]) for side in SIDES}
        return {role: lists for role, (lists, _) in laid.items()}, {role: faults for role, (_, faults) in laid.items()}
    given = pc.fill_null(pc.list_value_length(arrays["label"]), 0).to_numpy(False)
    margins = (given == texts["negative"]) & (texts["positive"] == 1) & (given > 0)
    total = texts["positive"] + texts["negative"]
    lists, faults = _lay_out(arrays["label"], total, margins)
    first = np.arange(len(pc.list_flatten(lists))) - np.repeat(_starts(total), total) < np.repeat(
        texts["positive"], total
    )
    values = pc.list_flatten(lists)
    sides = {"positive_score": (first, texts["positive"]), "negative_score": (~first, texts["negative"])}
    return {role: lists_of(values.filter(pa.array(part)), count) for role, (part, count) in sides.items()}, {
        "label": faults
    }


def _texts_of(arrays: Mapping[str, pa.Array], side: str) -> Counts:
    """(n,) How many texts of a side each row has."""
    columns = [array for role, array in arrays.items() if role.split("_")[0] == side and not role.endswith("_score")]
    rows = len(next(iter(arrays.values())))
    counts = np.zeros(rows, dtype=np.int64)
    for array in columns:
        listed = pa.types.is_list(array.type)
        counts += pc.fill_null(pc.list_value_length(array), 0).to_numpy(False) if listed else 1
    return counts


def _lay_out(given: pa.ListArray, counts: Counts, margins: NDArray[np.bool_] | None = None) -> tuple[pa.Array, Reasons]:
    """The given lists, and zeros in place of one that is faulty; with the reasons.

    Args:
        given: lists of numbers; null is an empty one.
        counts: how long they must be.
        margins: rows whose numbers say how far each text after the first is below it.
    """
    margins = np.zeros(len(counts), dtype=bool) if margins is None else margins
    lengths = pc.fill_null(pc.list_value_length(given), 0).to_numpy(False)
    with np.errstate(over="ignore"):  # what float32 cannot hold is not finite there
        numbers = pc.list_flatten(given).to_numpy(False).astype(np.float32)
    owners = pc.list_parent_indices(given).to_numpy(False)
    faults = np.full(len(counts), None, dtype=object)
    faults[np.bincount(owners[~np.isfinite(numbers)], minlength=len(counts)) > 0] = NOT_FINITE
    faults[lengths + margins != counts] = NOT_ONE_EACH
    taken = (faults == None)[owners]  # noqa: E711  (elementwise)
    place = np.arange(len(numbers)) - np.repeat(_starts(lengths), lengths) + margins[owners] + _starts(counts)[owners]
    values = np.zeros(int(counts.sum()), dtype=np.float32)
    values[place[taken]] = np.where(margins[owners], -numbers, numbers)[taken]
    return lists_of(pa.array(values), counts), faults


def lists_of(values: pa.Array, counts: Counts) -> pa.ListArray:
    """Values one after the other as lists of these lengths."""
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)), values)


def _starts(counts: Counts) -> Counts:
    return np.cumsum(counts) - counts


def keep(scores: pa.ListArray, kept: NDArray[np.bool_]) -> pa.ListArray:
    """Step (2): the scores of the texts that are kept, (m,) bool over the texts of all rows."""
    counts = np.bincount(pc.list_parent_indices(scores).to_numpy(False)[kept], minlength=len(scores))
    return lists_of(pc.list_flatten(scores).filter(pa.array(kept)), counts)


def join(table: pa.Table) -> pa.Table:
    """Step (3); a table without scores as it is."""
    if "positive_score" not in table.column_names:
        return table
    sides = [table[f"{side}_score"].combine_chunks() for side in SIDES]
    lengths = [pc.list_value_length(side).to_numpy(False).astype(np.int64) for side in sides]
    total = lengths[0] + lengths[1]
    values = np.empty(int(total.sum()), dtype=np.float32)
    for side, before in zip(sides, (np.zeros_like(total), lengths[0]), strict=True):
        owners = pc.list_parent_indices(side).to_numpy(False)
        length = pc.list_value_length(side).to_numpy(False)
        place = np.arange(len(owners)) - np.repeat(_starts(length), length)
        values[(_starts(total) + before)[owners] + place] = pc.list_flatten(side).to_numpy(False)
    left = table.drop_columns([f"{side}_score" for side in SIDES])
    return left.append_column("label", lists_of(pa.array(values), total))


def keep_joined(table: pa.Table, before: pa.Table, kept: Mapping[str, NDArray[np.bool_]]) -> pa.Table:
    """Step (4): the table with the scores of the texts that are kept; without scores as it is.

    Args:
        table: rows some of whose texts went.
        before: the same rows before: a query, columns of texts and of lists, ``label``.
        kept: list column -> which of its texts stayed, over all rows.
    """
    if not kept or not is_scored(before):
        return table
    scores = before["label"].combine_chunks()
    next_place = _starts(pc.list_value_length(scores).to_numpy(False).astype(np.int64))
    mask = np.ones(len(pc.list_flatten(scores)), dtype=bool)
    for column in (name for name in before.column_names if name.split("_")[0] in SIDES):
        counts = np.ones(before.num_rows, dtype=np.int64)
        if pa.types.is_list(before.schema.field(column).type):
            counts = pc.list_value_length(before[column].combine_chunks()).to_numpy(False).astype(np.int64)
        if column in kept:
            within = np.arange(int(counts.sum())) - np.repeat(_starts(counts), counts)
            mask[np.repeat(next_place, counts) + within] = kept[column]
        next_place = next_place + counts
    return table.set_column(table.column_names.index("label"), "label", keep(scores, mask))


def is_scored(table: pa.Table) -> bool:
    """Whether rows have scores that have been joined."""
    return "label" in table.column_names and pa.types.is_list(table.schema.field("label").type)
