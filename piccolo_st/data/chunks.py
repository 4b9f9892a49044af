"""Raw rows of a source that know their file and row number, and rows that are left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

CHUNK_ROWS = 20_000


@dataclass(frozen=True)
class Reject:
    """A row, or a part of one, that was left out: where it stands, why, and the beginning of what it held."""

    file: str
    row: int
    reason: str
    excerpt: str


@dataclass(frozen=True)
class Chunk:
    """Some raw rows of one file.

    Attributes:
        file: the file's name, for messages.
        rows: (n,) int64, the row numbers of ``records``.
        records: n dicts, or an Arrow table of n rows.
        rejects: rows of the same stretch of the file that could not be read at all.
        left_out: reason -> further rows read there that are no rows of the dataset, and no faults.
    """

    file: str
    rows: np.ndarray
    records: list[dict[str, Any]] | pa.Table
    rejects: list[Reject] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Rows read, those that could not be used among them."""
        return len(self.rows) + len(self.rejects)

    def column_names(self) -> list[str]:
        """The columns of its rows, in the order in which they first stand."""
        if isinstance(self.records, pa.Table):
            return list(self.records.column_names)
        return list(dict.fromkeys(key for record in self.records for key in record))

    def cells(self, column: str) -> list[Any]:
        """The values of a column; None where a row lacks it."""
        if isinstance(self.records, pa.Table):
            return self.records.column(column).to_pylist()
        return [record.get(column) for record in self.records]

    def head(self, count: int) -> Chunk:
        """The first ``count`` rows, rejects among them, in the order of the file."""
        if count >= len(self):
            return self
        # What another file holds (the texts that these rows refer to) was read before them.
        rejected = [reject.row if reject.file == self.file else 0 for reject in self.rejects]
        first = np.argsort(np.concatenate([np.array(rejected, dtype=np.int64), self.rows]), kind="stable")[:count]
        rejects = [self.rejects[place] for place in np.sort(first[first < len(rejected)]).tolist()]
        rows = count - len(rejects)
        return Chunk(self.file, self.rows[:rows], self.records[:rows], rejects, self.left_out)


def excerpt(value: object, length: int = 80) -> str:
    """The beginning of a value, on one line, for a message or rejects.jsonl."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= length else text[: length - 3] + "..."


def chunked(path: Path, items: Iterable[tuple[int, dict[str, Any]] | Reject]) -> Iterator[Chunk]:
    """Rows with their numbers, and rejects, gathered into chunks."""
    rows: list[int] = []
    records: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for item in items:
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            rows.append(item[0])
            records.append(item[1])
        if len(rows) + len(rejects) >= CHUNK_ROWS:
            yield Chunk(str(path), np.array(rows, dtype=np.int64), records, rejects)
            rows, records, rejects = [], [], []
    if rows or rejects:
        yield Chunk(str(path), np.array(rows, dtype=np.int64), records, rejects)
