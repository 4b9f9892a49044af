"""Parquet that is trained on where it lies: read once to be checked, and from then on row group by row group.

(1) ``index`` reads and checks every row, as for a dataset that is copied, and writes what was rejected and how many
    rows of each row group were kept; the rows themselves are not written. Of a Hub dataset the Parquet files of its
    split are read as they are asked for, by ranges of bytes, and nothing is downloaded as a whole;
(2) a ``StreamedTable`` (``streamed``) gives these rows any number of times, by their numbers: it reads the row
    groups they stand in, checks them by what (1) found of the columns, and keeps the last ones. Its rows are those
    of the copy, in the same order;
(3) a batch sampler that knows of ``group_rows`` shuffles within as many rows as are kept (``batches.windows``), so
    that a pass over the dataset reads each row group once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from piccolo_st.cache import digest, entry
from piccolo_st.data.build import (
    Prepared,
    check_keys,
    first_rows,
    good_rows,
    good_rows_again,
    judge,
    row_key,
    surveyed,
    unwritable,
    write_arrow,
)
from piccolo_st.data.chunks import Chunk, excerpt
from piccolo_st.data.columnar import read_row_group
from piccolo_st.data.columns import Columns, Survey
from piccolo_st.data.report import Counts
from piccolo_st.data.sources import Location, told
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.streamed import Group, StreamedTable
from piccolo_st.errors import MixtureError

T = TypeVar("T")

_INDEX = "row_groups.json"


@dataclass(frozen=True)
class Index(Prepared):
    """A dataset that has been read and checked, and lies where it did.

    Attributes:
        spec: what the mixture says of it.
        files: their paths, or on the Hub their addresses (``hf://``).
    """

    spec: DatasetSpec
    files: tuple[str, ...]

    def rows(self) -> Dataset:
        """The rows, read when they are asked for."""
        found = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
        sets = {name: frozenset(found["columns"][name]) for name in ("lists", "written", "mixed")}
        columns = Columns(**{**found["columns"], **sets, "unused": tuple(found["columns"]["unused"])})
        groups = [Group(self.files[place], *group) for place, *group in found["groups"]]
        with pa.memory_map(str(self.folder / "data.arrow")) as source:
            schema = pa.ipc.open_stream(source).schema
        read = partial(_read_again, self.spec, columns)
        return Dataset(StreamedTable(groups, read, schema, self.key), fingerprint=self.key)


def index(spec: DatasetSpec, location: Location, cache: Path) -> Index:
    """Step (1) of a dataset that lies at a location of ``locate``, or what it left.

    Raises:
        MixtureError: the source is no Parquet, the dataset asks what needs all of its rows at once, or as ``prepare``.
    """
    check_keys(spec, location)
    files = _files(spec, location)
    if location.format == "hub":  # their addresses have the commit
        location = dataclasses.replace(location, version=" ".join(files))
    try:
        key = digest(["streamed", row_key(spec, location, cache)])

        def write(folder: Path) -> None:
            surveyed(lambda survey: _write_index(spec, location, files, folder, survey))

        folder = entry(cache, key, write)
    except OSError as error:
        raise unwritable(cache, error) from error
    return Index(key, folder, Counts.read(folder), spec, files)


def _files(spec: DatasetSpec, location: Location) -> tuple[str, ...]:
    """The Parquet files of a dataset that can be streamed.

    Raises:
        MixtureError: it cannot.
    """
    place = f"streaming of dataset {spec.name!r}"
    needs_all = f"the preset {spec.preset.name}" if spec.preset else "" if spec.use == "train" else f"use: {spec.use}"
    if needs_all:
        raise MixtureError(f"{place} must be left out, got {needs_all}, for which all rows are held at once")
    files, kind = tuple(map(str, location.files)), location.format
    if kind == "hub":
        files = _files_on_hub(spec)
        kind = next((Path(file).suffix or file for file in files if not file.endswith(".parquet")), "parquet")
    if kind != "parquet":
        raise MixtureError(
            f"{place} needs Parquet files, got the format {kind}; write them with to_parquet of `datasets`, or leave "
            "`streaming` out"
        )
    return files


def _files_on_hub(spec: DatasetSpec) -> tuple[str, ...]:
    from datasets import load_dataset_builder

    from piccolo_st.hub import finite_waits

    finite_waits()
    try:
        found = load_dataset_builder(spec.source, spec.subset, revision=spec.revision).config.data_files or {}
        return tuple(map(str, found[spec.split]))
    except Exception as error:
        raise MixtureError(
            f"the files of the Hub dataset {spec.source!r} of dataset {spec.name!r} cannot be listed (revision "
            f"{spec.revision}, subset {spec.subset}, split {spec.split}): {type(error).__name__}: "
            f"{excerpt(str(error), 200)}; give a file, or a dataset that this machine can reach"
        ) from error


def _write_index(spec: DatasetSpec, location: Location, files: tuple[str, ...], folder: Path, survey: Survey) -> None:
    counts, schema = Counts(), pa.schema([])
    groups: list[tuple[int, int, int, int, int]] = []  # as Group, with the place of the file among the files
    with open(folder / "rejects.jsonl", "w", encoding="utf-8") as rejects:
        for place, group in _row_groups(spec, files):
            if spec.max_rows is not None:
                group = group._replace(read=min(group.read, spec.max_rows - counts.rows))
            kept = 0
            for table in good_rows(spec, location, _chunks(spec, group), counts, survey, rejects):
                schema = table.schema
                kept += table.num_rows
            groups.append((place, group.number, group.before, group.read, kept))
            counts.kept += kept
            if counts.rows == spec.max_rows:
                break
    judge(spec, location, counts)
    counts.write(folder)
    write_arrow(folder / "data.arrow", [schema.empty_table()])
    found = {"columns": dataclasses.asdict(survey.columns or Columns({})), "groups": groups}
    (folder / _INDEX).write_text(json.dumps(found, ensure_ascii=False, default=sorted), encoding="utf-8")


def _row_groups(spec: DatasetSpec, files: tuple[str, ...]) -> Iterator[tuple[int, Group]]:
    """Every row group, all of its rows read, and the place of its file."""
    for place, name in enumerate(files):
        before = 0
        for number, rows in enumerate(_told(spec, name, _sizes(name))):
            yield place, Group(name, number, before, rows, 0)
            before += rows


def _sizes(name: str) -> Iterator[int]:
    with _opened(name) as file:
        yield from (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))


def _opened(name: str) -> pq.ParquetFile:
    if not name.startswith("hf://"):
        return pq.ParquetFile(name, memory_map=True)
    from huggingface_hub import HfFileSystem

    return pq.ParquetFile(HfFileSystem().open(name), pre_buffer=True)


def _chunks(spec: DatasetSpec, group: Group) -> Iterator[Chunk]:
    """The raw rows of a row group, as far as it is read."""

    def read() -> Iterator[Chunk]:
        with _opened(group.file) as file:
            yield from first_rows(read_row_group(file, group.file, group.number, group.before), group.read)

    yield from _told(spec, group.file, read())


def _told(spec: DatasetSpec, name: str, read: Iterator[T]) -> Iterator[T]:
    """What is read of a file; what stops its reader, such as a Hub that is away, is an error of the dataset."""
    if not name.startswith("hf://"):
        yield from told(spec, Path(name), "parquet", read)
        return
    try:
        yield from read
    except Exception as error:
        raise MixtureError(
            f"{name} of dataset {spec.name!r} cannot be read: {type(error).__name__}: {excerpt(str(error), 200)}; "
            "start again where the Hub answers, or leave `streaming` out, so that it is downloaded once"
        ) from error


def _read_again(spec: DatasetSpec, columns: Columns, group: Group) -> pa.Table | None:
    """The kept rows of a row group; None: there is none."""
    tables = list(good_rows_again(spec, columns, _chunks(spec, group)))
    if sum(table.num_rows for table in tables) != group.kept:
        raise MixtureError(
            f"{group.file} of dataset {spec.name!r} must stay as it is while it is trained on, got other rows in its "
            f"row group {group.number} than were checked; start the run again"
        )
    return pa.concat_tables(tables) if tables else None
