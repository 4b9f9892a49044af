"""Datasets read, checked and written once: a folder of Arrow files named by the fingerprint of what went in.

    (1) the fingerprint covers the contents of the source files and every setting that changes the rows;
    (2) an entry is written aside and renamed when complete, under a lock, so that two processes or a killed run never
        leave half of one;
    (3) a complete entry is opened memory-mapped: loading costs the same for a thousand rows and for a billion.

An entry holds ``data.arrow`` (Arrow's streaming format), ``rejects.jsonl`` (file, row, reason, excerpt; one line each)
and ``report.json``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from piccolo_st.cache import content_digest, digest, entry
from piccolo_st.data.chunks import Chunk, Reject
from piccolo_st.data.columns import Roles
from piccolo_st.data.presets import apply_preset
from piccolo_st.data.report import score_note
from piccolo_st.data.sources import Location, locate, read_chunks
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.survey import Survey, suggestions
from piccolo_st.data.validation import Checked, check_chunk
from piccolo_st.errors import MixtureError
from piccolo_st.hashing import text_ids

# Raise when the rows that come out of the same input change.
LAYOUT = 6

# Settings that do not change the rows of a dataset, only what is done with them.
_NOT_ROWS = (
    "name", "holdout", "mining", "instruction", "weight", "repeats", "batch_multiple", "query_length",
    "document_length", "loss", "licence", "note", "policy", "max_rejected", "source",
)  # fmt: skip

# Keys that only sources of these formats have; `split` of the others is "train", its default.
_READ_OF = {"revision": ("hub",), "subset": ("hub",), "split": ("hub", "saved", "beir")}


def write_arrow(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write tables of one schema as one file that ``Dataset.from_file`` opens memory-mapped; returns the rows."""
    rows, writer = 0, None
    with pa.OSFile(str(path), "wb") as sink:
        for table in tables:
            if writer is None:
                writer = pa.ipc.new_stream(sink, table.schema)
            writer.write_table(table)
            rows += table.num_rows
        if writer is not None:
            writer.close()
    return rows


def open_arrow(path: Path) -> Dataset:
    """The dataset in a file of ``write_arrow``, memory-mapped."""
    return Dataset.from_file(str(path))


def row_key(spec: DatasetSpec, location: Location, cache: Path) -> str:
    """The fingerprint of a dataset's rows: contents of its sources, and the settings that change what is kept."""
    settings = {k: v for k, v in dataclasses.asdict(spec).items() if k not in _NOT_ROWS}
    if location.format == "jionlp":
        settings["set"] = spec.source
    content = location.identity or content_digest(location.files, cache)
    return digest([LAYOUT, location.format, content, settings])


def prepare(spec: DatasetSpec, root: Path, cache: Path) -> tuple[Path, str]:
    """Read and check a dataset, or find it done; returns its entry's folder and its key.

    Raises:
        MixtureError: the source or a column is missing, no row is left, a row is faulty under the policy ``error``,
            or more rows are than ``max_rejected`` allows; or the cache cannot be written.
    """
    location = locate(spec, root)
    for name, formats in _READ_OF.items():
        value = getattr(spec, name)
        if value not in (None, "train") and location.format not in formats:
            raise MixtureError(
                f"{name} of dataset {spec.name!r} must be left out, got {value!r}: a source of the format "
                f"{location.format} has none"
            )
    try:
        key = row_key(spec, location, cache)
        folder = entry(cache, key, lambda aside: _write_entry(spec, location, aside))
    except OSError as error:
        raise MixtureError(
            f"the cache {cache} cannot be written: {error}; choose another with cache_dir (or HF_DATASETS_CACHE)"
        ) from error
    return folder, key


def read_report(folder: Path) -> dict[str, Any]:
    """The numbers of an entry."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


class _RolesChanged(Exception):
    """A chunk has shown that the columns are not what they were read as."""


def _write_entry(spec: DatasetSpec, location: Location, folder: Path) -> None:
    survey = Survey()
    while True:
        try:
            return _write_rows(spec, location, folder, survey)
        except _RolesChanged:  # once for each thing that a survey can learn, mostly never
            continue


def _write_rows(spec: DatasetSpec, location: Location, folder: Path, survey: Survey) -> None:
    report: dict[str, Any] = {
        "rows": 0,
        "rejected": {},
        "removed": {},
        "left_out": {},
        "added": 0,
        "kept": 0,
        "unused_columns": [],
        "written": [],
        "suggestions": [],
        "scores": None,
        "misfits": 0,
    }
    with open(folder / "rejects.jsonl", "w", encoding="utf-8") as rejects:
        tables: Iterator[pa.Table] = (
            _ordered(_spread_positives(spec, checked.table, report))
            for checked in _checked(spec, location, report, survey)
            if _log(rejects, checked, report)
        )
        if spec.preset is not None and spec.use == "train":
            parts = [part for part in tables if part.num_rows]
            if parts:  # else the faults are to be told, not what the preset misses in nothing
                table, left_out = apply_preset(spec, spec.preset, pa.concat_tables(parts))
                report["left_out"].update({reason: n for reason, n in left_out.items() if n})
                tables = iter([_ordered(table)])
        report["kept"] = write_arrow(folder / "data.arrow", tables)
    (folder / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")


def _checked(spec: DatasetSpec, location: Location, report: dict[str, Any], survey: Survey) -> Iterator[Checked]:
    roles: Roles | None = None
    for chunk in _first_rows(read_chunks(spec, location), spec.max_rows):
        report["rows"] += len(chunk) + sum(chunk.left_out.values())
        report["left_out"].update({reason: n for reason, n in chunk.left_out.items() if n})
        if not len(chunk.rows):  # nothing readable: no columns to go by
            yield Checked(pa.table({}), chunk.rows, chunk.rejects, [])
            continue
        now = survey.add(spec, chunk)
        if roles is not None and (now.columns, now.lists, now.written) != (roles.columns, roles.lists, roles.written):
            raise _RolesChanged
        roles = now
        yield check_chunk(spec, roles, chunk)
    if roles is not None:
        report["unused_columns"] = list(roles.unused)
        report["written"] = sorted({roles.columns[role] for role in roles.written})
        report["suggestions"] = suggestions(spec, roles)


def _first_rows(chunks: Iterator[Chunk], limit: int | None) -> Iterator[Chunk]:
    """Chunks until so many rows have been read, rejects among them; nothing beyond is read."""
    if limit is None:
        yield from chunks
        return
    while limit > 0 and (chunk := next(chunks, None)) is not None:
        yield chunk.head(limit)
        limit -= len(chunk)


def _log(file: Any, checked: Checked, report: dict[str, Any]) -> bool:
    for kind, rejects in (("rejected", checked.rejects), ("removed", checked.removed)):
        for reject in rejects:
            line = {"action": "row " + kind if kind == "rejected" else "item " + kind, **dataclasses.asdict(reject)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            report[kind][reject.reason] = report[kind].get(reject.reason, 0) + 1
    report["misfits"] += checked.misfits
    if checked.scores is not None:
        known = report["scores"] or checked.scores
        report["scores"] = [min(known[0], checked.scores[0]), max(known[1], checked.scores[1])]
    return checked.table.num_columns > 0


_ORDER = ("query", "positive", "sentence1", "sentence2", "premise", "hypothesis", "text", "negative", "label")


def _ordered(table: pa.Table) -> pa.Table:
    """Columns as sentence-transformers reads them: anchor, positive, negatives, label.

    The class of a query becomes a number, since a batch's labels are a tensor: its hash, the same in every chunk and
    file. Which classes are equal is all that a loss asks.
    """
    if {"query", "label"} <= set(table.column_names):
        place = table.column_names.index("label")
        table = table.set_column(place, "label", pa.array(text_ids(table["label"].to_pylist())))
    names = sorted(
        table.column_names,
        key=lambda name: (_ORDER.index(name.split("_")[0]), int(name.rpartition("_")[2]) if "_" in name else 0),
    )
    return table.select(names)


def _spread_positives(spec: DatasetSpec, table: pa.Table, report: dict[str, Any]) -> pa.Table:
    """One row for each listed positive, or the first alone, or the list as it is."""
    if "positive" not in table.column_names or not pa.types.is_list(table.schema.field("positive").type):
        return table
    if spec.positives == "list":
        return table
    import pyarrow.compute as pc

    lists = table["positive"].combine_chunks()
    flat = pc.list_flatten(lists)
    further = len(flat) - table.num_rows
    report["added"] += further
    if spec.positives == "first":
        if further:
            reason = "a further positive of its row (positives: first)"
            report["left_out"][reason] = report["left_out"].get(reason, 0) + further
        return table.set_column(table.column_names.index("positive"), "positive", pc.list_element(lists, 0))
    spread = table.drop_columns(["positive"]).take(pc.list_parent_indices(lists))
    return spread.append_column("positive", flat)


def read_rejects(folder: Path) -> Iterator[Reject]:
    """The rejects of an entry, rows and items alike."""
    with open(folder / "rejects.jsonl", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            record.pop("action")
            yield Reject(**record)


def enforce(spec: DatasetSpec, folder: Path, policy: str) -> None:
    """Apply the dataset's policy to what was found.

    Raises:
        MixtureError: a row is faulty and the policy is ``error``; too many are; none is left.
    """
    report = read_report(folder)
    rejected = sum(report["rejected"].values())
    found = ", ".join(
        f"{n} {reason}" for reason, n in sorted(report["rejected"].items(), key=lambda item: -item[1])[:5]
    )
    if report["rows"] == 0:
        raise MixtureError(f"dataset {spec.name!r} is empty: {spec.source} has no rows; remove it or give it data")
    if policy == "error" and (rejected or report["removed"]):
        first = next(read_rejects(folder))
        others = rejected + sum(report["removed"].values()) - 1
        more = f" and {others} more" * (others > 0)
        raise MixtureError(
            f"dataset {spec.name!r} has a faulty row and the policy 'error': {first.file}, row {first.row}: "
            f"{first.reason} ({first.excerpt}){more}; mend such rows or set `policy: drop`"
        )
    if rejected > spec.max_rejected * report["rows"]:
        raise MixtureError(
            f"{rejected} of the {report['rows']} rows of dataset {spec.name!r} are faulty ({found}), more than "
            f"max_rejected={spec.max_rejected:g}; look at {folder / 'rejects.jsonl'}, and check "
            + (f"its scale: {note}" if (note := score_note(spec, report)) else "`columns` and `task`")
        )
    if report["kept"] == 0:
        raise MixtureError(f"dataset {spec.name!r} has no row left of {report['rows']}: {found or report['left_out']}")
