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
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from piccolo_st.cache import content_digest, digest, entry
from piccolo_st.data.by_id import UNKNOWN
from piccolo_st.data.cells import to_table
from piccolo_st.data.chunks import NOT_UTF8, Chunk, excerpt
from piccolo_st.data.columns import Columns, Survey, is_text, required_roles, role_columns
from piccolo_st.data.misread import looks_like
from piccolo_st.data.presets import apply_preset
from piccolo_st.data.report import Counts, suggestions
from piccolo_st.data.scores import join, lists_of
from piccolo_st.data.shapes import unfold
from piccolo_st.data.sources import Location, read_chunks
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.validation import Checked, check_rows
from piccolo_st.errors import MixtureError
from piccolo_st.hashing import text_ids

logger = logging.getLogger(__name__)

# Raise when the rows that come out of the same input change.
LAYOUT = 9

# Settings that do not change the rows of a dataset, only what is done with them.
_NOT_ROWS = (
    "name", "holdout", "mining", "instruction", "weight", "repeats", "batch_multiple", "query_length",
    "document_length", "loss", "licence", "note", "policy", "max_rejected", "source", "streaming",
    "corpus", "queries",
)  # fmt: skip

# Keys that only sources of these formats have; the others have their default.
_READ_OF = {
    "revision": ("hub",), "subset": ("hub",), "split": ("hub", "saved", "beir"),
    "encoding": ("jsonl", "json", "csv", "tsv", "beir"),
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


def arrow_parts(dataset: Dataset, rows: int) -> Iterator[pa.Table]:
    """The rows of a dataset as tables that ``write_arrow`` takes, so many at a time."""
    for table in dataset.with_format("arrow").iter(rows):
        yield pa.Table.from_batches(table.to_batches())


def open_arrow(path: Path) -> Dataset:
    """The dataset in a file of ``write_arrow``, memory-mapped."""
    return Dataset.from_file(str(path))


def row_key(spec: DatasetSpec, location: Location, cache: Path) -> str:
    """The fingerprint of a dataset's rows: contents of its sources, and the settings that change what is kept."""
    settings = {k: v for k, v in dataclasses.asdict(spec).items() if k not in _NOT_ROWS}
    if location.format == "jionlp":
        settings["set"] = spec.source
    content = location.version or content_digest(location.files, cache)
    if location.version and location.files:  # rows here, and their corpus on the Hub
        content = digest([content, content_digest(location.files, cache)])
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
    check_keys(spec, location)
    try:
        key = row_key(spec, location, cache)
        _say_if_old(spec, location, cache / key)

        def write(aside: Path) -> None:
            surveyed(lambda survey: _write_rows(spec, location, aside, survey))

        folder = entry(cache, key, write)
    except OSError as error:
        raise unwritable(cache, error) from error
    return Prepared(key, folder, Counts.read(folder))


def _say_if_old(spec: DatasetSpec, location: Location, folder: Path) -> None:
    """The Hub is not asked whether a dataset without a revision has changed: the run that goes on must not be refused,
    nor two machines read different rows."""
    if "@None/" in location.version and folder.is_dir():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.stat().st_mtime))
        rows = f"dataset {spec.name!r} has the rows of {spec.source} as they were read on {when}"
        logger.warning("%s; set its `revision` to a newer commit for those of now", rows)


def unwritable(cache: Path, error: OSError) -> MixtureError:
    """What to say of a cache that cannot be written."""
    return MixtureError(
        f"the cache {cache} cannot be written: {error}; choose another with cache_dir (or HF_DATASETS_CACHE)"
    )


def check_keys(spec: DatasetSpec, location: Location) -> None:
    """Refuse a key that sources of this format do not have.

    Raises:
        MixtureError: naming it.
    """
    for name, formats in _READ_OF.items():
        value = getattr(spec, name)
        here = {location.format, *(part.format for _, part in location.parts.values())}
        if value != _DEFAULTS[name] and here.isdisjoint(formats):
            raise MixtureError(
                f"{name} of dataset {spec.name!r} must be left out, got {value!r}: a source of the format "
                f"{location.format} has none"
            )


class _ColumnsChanged(Exception):
    """A chunk has shown that the columns are not what they were read as."""


def surveyed(write: Callable[[Survey], None]) -> None:
    """Write by what a survey says of the columns, again as long as a later chunk shows it to have been wrong."""
    survey = Survey()
    while True:
        try:
            return write(survey)
        except _ColumnsChanged:  # once for each thing that a survey can learn, mostly never
            continue


def _write_rows(spec: DatasetSpec, location: Location, folder: Path, survey: Survey) -> None:
    counts = Counts()
    with open(folder / "rejects.jsonl", "w", encoding="utf-8") as rejects:
        chunks = first_rows(read_chunks(spec, location), spec.max_rows)
        tables = good_rows(spec, location, chunks, counts, survey, rejects)
        if spec.preset is not None and spec.use == "train":
            parts = [part for part in tables if part.num_rows]
            if parts:  # else the faults are to be told, not what the preset misses in nothing
                table, left_out = apply_preset(spec, spec.preset, pa.concat_tables(parts))
                counts.left_out += Counter(left_out)
                tables = iter([_ordered(table)])
        counts.kept = write_arrow(folder / "data.arrow", tables)
    judge(spec, location, counts)
    counts.write(folder)


def judge(spec: DatasetSpec, location: Location, counts: Counts) -> None:
    """Say what the source is, where most of its rows were rejected and it tells."""
    if counts.rejected[UNKNOWN] > counts.rows / 2:
        counts.misread = "its rows name ids that the corpus or the queries lack: check that they belong together"
    elif counts.rejected.total() > counts.rows / 2 and location.files:
        counts.misread = looks_like(location.files[0], location.format, spec.encoding)
        if counts.rejected[NOT_UTF8] > counts.rows / 2 and location.format in ("parquet", "arrow", "saved"):
            counts.misread = "its texts must be UTF-8, as the format requires: write it anew"


def good_rows(
    spec: DatasetSpec, location: Location, chunks: Iterable[Chunk], counts: Counts, survey: Survey, rejects: TextIO
) -> Iterator[pa.Table]:
    """What is left of each chunk, as it is trained on; all else is counted, and written to ``rejects``."""
    for checked in _checked(spec, location, chunks, counts, survey):
        if _count(checked, rejects, counts):
            yield _finished(spec, checked, counts)


def good_rows_again(spec: DatasetSpec, columns: Columns, chunks: Iterable[Chunk]) -> Iterator[pa.Table]:
    """What ``good_rows`` left of each chunk, by the columns that it ended with; nothing is counted."""
    for raw in chunks:
        chunk = _unfolded(spec, raw)
        if len(chunk.rows):
            yield _finished(spec, check_rows(spec, columns, chunk, *to_table(spec, columns, chunk)), Counts())


def _finished(spec: DatasetSpec, checked: Checked, counts: Counts) -> pa.Table:
    return _ordered(_spread_positives(spec, checked.table, counts))


def _unfolded(spec: DatasetSpec, chunk: Chunk) -> Chunk:
    labelled = required_roles(spec)[0] == "query" and "negative" not in spec.columns
    scores = spec.columns.get("label") if spec.task == "retrieval" else None
    return unfold(chunk, role_columns(spec), labelled, scores if isinstance(scores, str) else None)


def _checked(
    spec: DatasetSpec, location: Location, chunks: Iterable[Chunk], counts: Counts, survey: Survey
) -> Iterator[Checked]:
    for raw in chunks:
        chunk = _unfolded(spec, raw)
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
        before, survey.columns = survey.columns, now
        if before is not None and now != dataclasses.replace(before, mixed=now.mixed, unused=now.unused):
            raise _ColumnsChanged
        yield check_rows(spec, now, chunk, *to_table(spec, now, chunk))
    if (columns := survey.columns) is not None:
        counts.unused_columns = [excerpt(name) for name in columns.unused]
        counts.written = sorted({excerpt(columns.names[role]) for role in columns.written})
        counts.suggestions = [excerpt(one, 400) for one in suggestions(spec, columns)]


def first_rows(chunks: Iterator[Chunk], limit: int | None) -> Iterator[Chunk]:
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

    A teacher's scores become the label. The class of a query becomes a number, since a batch's labels are a tensor: its
    hash, the same in every chunk and file. Which classes are equal is all that a loss asks.
    """
    table = join(table)
    if {"query", "label"} <= set(table.column_names) and is_text(table.schema.field("label").type):
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
    scores = table["positive_score"].combine_chunks() if "positive_score" in table.column_names else None
    further = len(flat) - table.num_rows
    counts.added += further
    if spec.positives == "first":
        counts.left_out += Counter({"a further positive of its row (positives: first)": further})
        chosen = table.set_column(table.column_names.index("positive"), "positive", pc.list_element(lists, 0))
        return _scored_by(chosen, scores, lambda found: pc.list_element(found, 0))
    spread = table.drop_columns(["positive"]).take(pc.list_parent_indices(lists)).append_column("positive", flat)
    return _scored_by(spread, scores, pc.list_flatten)


def _scored_by(table: pa.Table, scores: pa.ListArray | None, choose: Callable[[pa.ListArray], pa.Array]) -> pa.Table:
    """The table with the scores of the positives that were chosen, one a row."""
    if scores is None:
        return table
    chosen = choose(scores)
    one = lists_of(chosen, np.ones(len(chosen), dtype=np.int64))
    return table.set_column(table.column_names.index("positive_score"), "positive_score", one)
