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
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from piccolo_st.cache import content_digest, digest, entry
from piccolo_st.data.cells import to_table
from piccolo_st.data.chunks import NOT_UTF8, Chunk, excerpt
from piccolo_st.data.columns import Columns, Survey, required_roles, role_columns
from piccolo_st.data.misread import looks_like
from piccolo_st.data.presets import apply_preset
from piccolo_st.data.report import Counts, suggestions
from piccolo_st.data.shapes import unfold
from piccolo_st.data.sources import Location, read_chunks
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.validation import Checked, check_rows
from piccolo_st.errors import MixtureError
from piccolo_st.hashing import text_ids

# Raise when the rows that come out of the same input change.
LAYOUT = 8

# Settings that do not change the rows of a dataset, only what is done with them.
_NOT_ROWS = (
    "name", "holdout", "mining", "instruction", "weight", "repeats", "batch_multiple", "query_length",
    "document_length", "loss", "licence", "note", "policy", "max_rejected", "source",
)  # fmt: skip

# Keys that only sources of these formats have; the others have their default.
_READ_OF = {
    "revision": ("hub",), "subset": ("hub",), "split": ("hub", "saved", "beir"),
    "encoding": ("jsonl", "json", "csv", "tsv"),
}  # fmt: skip
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(DatasetSpec)}


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
    content = location.version or content_digest(location.files, cache)
    return digest([LAYOUT, location.format, content, settings])


@dataclass(frozen=True)
class Prepared:
    """A dataset that has been read, checked and written.

    Attributes:
        key: the fingerprint of its rows.
        folder: the cache entry that holds them.
        counts: what was counted on the way.
    """

    key: str
    folder: Path
    counts: Counts

    def rows(self) -> Dataset:
        """The rows, memory-mapped."""
        return open_arrow(self.folder / "data.arrow")


def prepare(spec: DatasetSpec, location: Location, cache: Path) -> Prepared:
    """Read and check a dataset that lies at a location of ``locate``, or find it done.

    Raises:
        MixtureError: a column is missing, the preset leaves no row, or the cache cannot be written.
    """
    for name, formats in _READ_OF.items():
        value = getattr(spec, name)
        if value != _DEFAULTS[name] and location.format not in formats:
            raise MixtureError(
                f"{name} of dataset {spec.name!r} must be left out, got {value!r}: a source of the format "
                f"{location.format} has none"
            )
    try:
        key = row_key(spec, location, cache)
        folder = entry(cache, key, lambda aside: _write(spec, location, aside))
    except OSError as error:
        raise MixtureError(
            f"the cache {cache} cannot be written: {error}; choose another with cache_dir (or HF_DATASETS_CACHE)"
        ) from error
    return Prepared(key, folder, Counts.read(folder))


class _ColumnsChanged(Exception):
    """A chunk has shown that the columns are not what they were read as."""


def _write(spec: DatasetSpec, location: Location, folder: Path) -> None:
    survey = Survey()
    while True:
        try:
            return _write_rows(spec, location, folder, survey)
        except _ColumnsChanged:  # once for each thing that a survey can learn, mostly never
            continue


def _write_rows(spec: DatasetSpec, location: Location, folder: Path, survey: Survey) -> None:
    counts = Counts()
    with open(folder / "rejects.jsonl", "w", encoding="utf-8") as rejects:
        tables: Iterator[pa.Table] = (
            _ordered(_spread_positives(spec, checked.table, counts))
            for checked in _checked(spec, location, counts, survey)
            if _count(checked, rejects, counts)
        )
        if spec.preset is not None and spec.use == "train":
            parts = [part for part in tables if part.num_rows]
            if parts:  # else the faults are to be told, not what the preset misses in nothing
                table, left_out = apply_preset(spec, spec.preset, pa.concat_tables(parts))
                counts.left_out += Counter(left_out)
                tables = iter([_ordered(table)])
        counts.kept = write_arrow(folder / "data.arrow", tables)
    if counts.rejected.total() > counts.rows / 2 and location.files:
        counts.misread = looks_like(location.files[0], location.format, spec.encoding)
        if counts.rejected[NOT_UTF8] > counts.rows / 2 and location.format in ("parquet", "arrow", "saved"):
            counts.misread = "its texts must be UTF-8, as the format requires: write it anew"
    counts.write(folder)


def _checked(spec: DatasetSpec, location: Location, counts: Counts, survey: Survey) -> Iterator[Checked]:
    columns: Columns | None = None
    labelled = required_roles(spec)[0] == "query" and "negative" not in spec.columns
    for raw in _first_rows(read_chunks(spec, location), spec.max_rows):
        chunk = unfold(raw, role_columns(spec), labelled)
        counts.rows += len(chunk.rows) + len(chunk.rejects) + sum(chunk.left_out.values())
        counts.left_out += Counter(chunk.left_out)
        if not len(chunk.rows):  # nothing readable: no columns to go by
            yield Checked(pa.table({}), chunk.rejects, [])
            continue
        try:
            now = survey.add(spec, chunk)
        except MixtureError as error:  # no column for a role: the file may be another than it was read as
            misread = looks_like(Path(chunk.file), location.format, spec.encoding)
            raise MixtureError(f"{error}; {misread}") if misread else error from None
        if columns is not None and now != dataclasses.replace(columns, mixed=now.mixed, unused=now.unused):
            raise _ColumnsChanged
        columns = now
        table, reasons = to_table(spec, columns, chunk)
        yield check_rows(spec, columns, chunk, table, reasons)
    if columns is not None:
        counts.unused_columns = [excerpt(name) for name in columns.unused]
        counts.written = sorted({excerpt(columns.names[role]) for role in columns.written})
        counts.suggestions = [excerpt(one, 400) for one in suggestions(spec, columns)]


def _first_rows(chunks: Iterator[Chunk], limit: int | None) -> Iterator[Chunk]:
    """Chunks until so many rows have been read, rejects among them; nothing beyond is read."""
    if limit is None:
        yield from chunks
        return
    while limit > 0 and (chunk := next(chunks, None)) is not None:
        yield chunk.head(limit)
        limit -= len(chunk.rows) + len(chunk.rejects)


def _count(checked: Checked, rejects: TextIO, counts: Counts) -> bool:
    """Count and write down what was left out of a chunk; whether it had any columns."""
    losses = (("row rejected", checked.rejects, counts.rejected), ("item removed", checked.removed, counts.removed))
    for action, lost, counter in losses:
        for reject in lost:
            line = {"action": action, **dataclasses.asdict(reject)}
            rejects.write(json.dumps(line, ensure_ascii=False) + "\n")
            counter[reject.reason] += 1
    counts.misfits += checked.misfits
    if checked.scores is not None:
        known = counts.scores or checked.scores
        counts.scores = [min(known[0], checked.scores[0]), max(known[1], checked.scores[1])]
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


def _spread_positives(spec: DatasetSpec, table: pa.Table, counts: Counts) -> pa.Table:
    """One row for each listed positive, or the first alone, or the list as it is."""
    if "positive" not in table.column_names or not pa.types.is_list(table.schema.field("positive").type):
        return table
    if spec.positives == "list":
        return table
    lists = table["positive"].combine_chunks()
    flat = pc.list_flatten(lists)
    further = len(flat) - table.num_rows
    counts.added += further
    if spec.positives == "first":
        counts.left_out += Counter({"a further positive of its row (positives: first)": further})
        return table.set_column(table.column_names.index("positive"), "positive", pc.list_element(lists, 0))
    spread = table.drop_columns(["positive"]).take(pc.list_parent_indices(lists))
    return spread.append_column("positive", flat)
