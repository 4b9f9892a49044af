"""Rows of an Excel workbook (.xlsx): its first sheet, whose first row names the columns."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

from piccolo_st.data.chunks import Item, Reject, excerpt
from piccolo_st.errors import optional, reason

logger = logging.getLogger(__name__)


def read_xlsx(path: Path) -> Iterator[Item]:
    """Cells as text, as CSV has them: an empty one is empty, a formula its last result, and 3.0 is 3.

    Raises:
        OSError: no workbook, or no header.
        MissingPackage: openpyxl is not installed.
    """
    with optional(f"the workbook {path}", "openpyxl", "excel"):
        from openpyxl import load_workbook
    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise OSError(f"it is no workbook: {reason(error)}") from error
    try:
        first, *others = book.worksheets
        if others:
            logger.warning("%s: of its sheets only the first, %r, is read", path, first.title)
        first.reset_dimensions()  # else reading ends where the file says, which some exporters write wrong
        rows = enumerate(first.iter_rows(values_only=True), start=1)
        header = [_text(cell) for cell in next(rows, (0, ()))[1]]
        named = [place for place, name in enumerate(header) if name]
        if not named:
            raise OSError("the first row of its first sheet names no column")
        if len({header[place] for place in named}) != len(named):
            raise OSError(f"its header names a column twice: {excerpt(header, 200)}")
        for number, row in rows:
            cells = [_text(cell) for cell in row]
            if any(cells[place] for place in range(len(cells)) if place not in named):
                yield Reject(str(path), number, "wrong number of fields", excerpt(",".join(cells)[:400]))
            elif any(cells):
                yield number, {header[place]: cells[place] if place < len(cells) else "" for place in named}
    finally:
        book.close()


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)
