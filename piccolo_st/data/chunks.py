"""Raw rows of a source that know their file and row number, and rows that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CHUNK_ROWS = 20_000
CHUNK_BYTES = 1 << 28
"""The most rows of a chunk, and about the most bytes (of text formats: characters), so that long rows fit in memory."""

NOT_UTF8 = "not UTF-8"
"""The reason against a row with bytes that are no text."""

Record = dict[str, object]
"""A raw row: column name -> whatever the file holds."""


@dataclass(frozen=True)
class Reject:
    """A row, or a part of one, that was left out: where it stands, why, and the beginning of what it held."""

    file: str
    row: int
    reason: str
    excerpt: str


Item = tuple[int, Record] | Reject
"""What a reader of rows yields: the number of a row and the row, or why it could not be read."""


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
    rows: NDArray[np.int64]
    records: list[Record] | pa.Table
    rejects: list[Reject] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def head(self, count: int) -> Chunk:
        """The first ``count`` rows, rejects among them, in the order of the file."""
        if count >= len(self.rows) + len(self.rejects):
            return self
        # What another file holds (the texts that these rows refer to) was read before them.
        rejected = [reject.row if reject.file == self.file else 0 for reject in self.rejects]
        first = np.argsort(np.concatenate([np.array(rejected, dtype=np.int64), self.rows]), kind="stable")[:count]
        rejects = [self.rejects[place] for place in np.sort(first[first < len(rejected)]).tolist()]
        rows = count - len(rejects)
        return Chunk(self.file, self.rows[:rows], self.records[:rows], rejects, self.left_out)


def excerpt(value: object, length: int = 80) -> str:
    """The beginning of a value, on one line, for a message or rejects.jsonl."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):  # nested too deeply, a number of over 4,300 digits
        text = f"a {type(value).__name__} too long to show"
    if len(text) > length:
        text = text[: length - 3] + "..."
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").splitlines())
