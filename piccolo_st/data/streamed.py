"""A table of ``datasets`` whose rows are read when they are asked for, a row group of a Parquet file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable, Table
from numpy.typing import NDArray

WINDOW_ROWS = 65_536
"""The rows that a streamed dataset keeps at least, and that are shuffled among each other."""


class Group(NamedTuple):
    """A row group of a file: its number there, the rows before it, those of it that are read, those that are kept."""

    file: str
    number: int
    before: int
    read: int
    kept: int


def _in_memory(name: str) -> Callable[..., InMemoryTable]:
    """A method that a table of all rows in memory has."""

    def method(self: StreamedTable, *arguments: object, **named: object) -> InMemoryTable:
        found: InMemoryTable = getattr(InMemoryTable(self.table), name)(*arguments, **named)
        return found

    return method


class StreamedTable(Table):  # type: ignore[misc]  # which has no types
    """The table of a ``datasets.Dataset`` whose rows are read when they are asked for, a row group at a time.

    What it does not do row group by row group it does with all rows in memory, as it must for ``filter`` or ``cast``.

    Args:
        groups: in the order of their rows.
        read: gives the rows of one, as many as it keeps.
        schema: of the rows.
        key: names the rows: equal for equal ones.

    Attributes:
        group_rows: the rows of each row group, the empty ones left out.
        window_rows: as many rows, and the largest row group beside them, are kept once they were read.
    """

    window_rows = WINDOW_ROWS

    def __init__(
        self, groups: Iterable[Group], read: Callable[[Group], pa.Table | None], schema: pa.Schema, key: str
    ) -> None:
        self._groups = [group for group in groups if group.kept]
        self._read, self._schema, self.key = read, schema, key
        self.group_rows = tuple(group.kept for group in self._groups)
        self._starts = np.concatenate([[0], np.cumsum(self.group_rows, dtype=np.int64)])
        self._kept: dict[int, pa.Table] = {}  # the last ones read, the latest at the end

    @property
    def table(self) -> pa.Table:
        """All rows, in memory."""
        return pa.Table.from_batches(self._batches_of(0, self.num_rows), self._schema)

    @property
    def schema(self) -> pa.Schema:
        """Of the rows."""
        return self._schema

    @property
    def column_names(self) -> list[str]:
        """In order."""
        return self._schema.names

    @property
    def num_columns(self) -> int:
        """How many."""
        return len(self._schema)

    @property
    def num_rows(self) -> int:
        """Rows that are kept."""
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.num_rows, self.num_columns

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return f"StreamedTable({self.num_rows} rows in {len(self._groups)} row groups: {', '.join(self.column_names)})"

    __str__ = __repr__

    def __deepcopy__(self, memo: dict[int, object]) -> StreamedTable:
        return self  # nothing of it changes

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_kept": {}}

    def fast_gather(self, indices: list[int] | NDArray[np.int64]) -> pa.Table:
        """The rows of these numbers, in their order."""
        rows = np.asarray(indices, dtype=np.int64)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(owners, kind="stable")
        groups = np.unique(owners).tolist()
        found = {  # first those that are kept, which what is read may push out
            group: self._rows_of(group).take(pa.array(rows[owners == group] - self._starts[group]))
            for group in sorted(groups, key=lambda group: group not in self._kept)
        }
        tables = [found[group] for group in groups]
        return pa.concat_tables(tables).take(pa.array(np.argsort(order))).combine_chunks()

    def fast_slice(self, offset: int = 0, length: int | None = None) -> pa.Table:
        """Rows next to each other."""
        stop = self.num_rows if length is None else min(self.num_rows, offset + length)
        return pa.Table.from_batches(self._batches_of(offset, stop), self._schema)

    def slice(self, offset: int = 0, length: int | None = None) -> InMemoryTable:
        """Rows next to each other, in memory."""
        return InMemoryTable(self.fast_slice(offset, length))

    def to_reader(self, max_chunksize: int | None = None) -> pa.RecordBatchReader:
        """All rows, row group after row group."""
        batches = self._batches_of(0, self.num_rows, max_chunksize)
        return pa.RecordBatchReader.from_batches(self._schema, batches)

    def to_batches(self, max_chunksize: int | None = None) -> list[pa.RecordBatch]:
        """All rows, in memory."""
        return list(self._batches_of(0, self.num_rows, max_chunksize))

    def select(self, columns: list[str]) -> StreamedTable:
        """Some of the columns."""
        schema = pa.schema([self._schema.field(name) for name in columns], self._schema.metadata)
        return self._with(self._groups, self._read, schema, self.key)

    def drop(self, columns: list[str]) -> StreamedTable:
        """The other columns."""
        return self.select([name for name in self.column_names if name not in columns])

    def replace_schema_metadata(self, metadata: dict[str, str] | None = None) -> StreamedTable:
        """The same rows."""
        return self._with(self._groups, self._read, self._schema.with_metadata(metadata), self.key)

    filter, cast, flatten = _in_memory("filter"), _in_memory("cast"), _in_memory("flatten")
    combine_chunks, rename_columns = _in_memory("combine_chunks"), _in_memory("rename_columns")
    add_column, append_column = _in_memory("add_column"), _in_memory("append_column")
    set_column, remove_column = _in_memory("set_column"), _in_memory("remove_column")

    def tables(self) -> Iterator[pa.Table]:
        """The rows of each row group."""
        return (self._rows_of(group) for group in range(len(self._groups)))

    def narrowed(self, keep: Callable[[pa.Table], pa.Table], kept: Iterable[int], key: str) -> StreamedTable:
        """What ``keep`` leaves of the rows of each row group.

        Args:
            keep: the same function in every process.
            kept: how many rows it leaves of each.
            key: of the rows that are left.
        """
        groups = [group._replace(kept=number) for group, number in zip(self._groups, kept, strict=True)]
        before = dict(zip(groups, self._groups, strict=True))
        return self._with(groups, partial(_narrowed, self._read, before, keep), self._schema, key)

    def _with(
        self, groups: Iterable[Group], read: Callable[[Group], pa.Table | None], schema: pa.Schema, key: str
    ) -> StreamedTable:
        return type(self)(groups, read, schema, key)

    def _batches_of(self, start: int, stop: int, most: int | None = None) -> Iterator[pa.RecordBatch]:
        group = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first, end = int(self._starts[group]), min(stop, int(self._starts[group + 1]))
            part = self._rows_of(group).slice(start - first, end - start)
            yield from part.to_batches(most)
            start, group = end, group + 1

    def _rows_of(self, number: int) -> pa.Table:
        """The rows of a row group, of the columns that this table has."""
        found = self._kept.pop(number, None)
        if found is None:
            read = self._read(self._groups[number])
            assert read is not None, "it has rows"
            found = read.select(self.column_names).combine_chunks()
        self._kept[number] = found
        most = self.window_rows + max(self.group_rows)
        while sum(table.num_rows for table in self._kept.values()) > most:
            del self._kept[next(iter(self._kept))]
        return found.replace_schema_metadata(self._schema.metadata)


def _narrowed(
    read: Callable[[Group], pa.Table | None],
    before: dict[Group, Group],
    keep: Callable[[pa.Table], pa.Table],
    group: Group,
) -> pa.Table | None:
    found = read(before[group])
    return None if found is None else keep(found)
