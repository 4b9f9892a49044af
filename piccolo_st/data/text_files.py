"""Readers of JSON lines, JSON and delimited text, row by row, faults included, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import AnyStr, Literal, TypeAlias

import pyarrow as pa

from piccolo_st.data.chunks import NOT_UTF8, Item, Reject, excerpt
from piccolo_st.data.shapes import rows_of

LINE_LIMIT = 1 << 26
"""The most that a line, or a row of delimited text, may hold: bytes of JSON lines, characters of delimited text."""
ROW_LINES = 1000
"""The most lines that a row of delimited text may span; more are a quote that does not end."""
JSON_LIMIT = 1 << 31
"""The most bytes of a JSON file, which is held in memory as a whole."""

TOO_LONG, UNBALANCED, SWALLOWED = (
    f"longer than {LINE_LIMIT >> 20} million characters",
    "an unbalanced quote",
    "a quoted field over lines that look like rows of their own: an unbalanced quote",
)

csv.field_size_limit(LINE_LIMIT)  # the default of 128 KiB is less than a long passage


def _bounded(readline: Callable[[int], AnyStr]) -> Iterator[AnyStr | None]:
    """Lines with their ends; None for one that is longer than LINE_LIMIT, which is skipped in pieces."""
    for line in iter(partial(readline, LINE_LIMIT), readline(0)):
        if len(line) < LINE_LIMIT:
            yield line
            continue
        while line and line[-1:] not in ("\n", "\r", b"\n"):
            line = readline(LINE_LIMIT)
        yield None


def _text(stream: pa.NativeFile, encoding: str, newline: str) -> io.TextIOWrapper:
    # Bytes that are not UTF-8 become lone surrogates, which the row's own check finds again; those of the other
    # encodings U+FFFD, which is a fault of the text that holds it.
    utf8 = encoding == "utf-8"
    errors = "surrogateescape" if utf8 else "replace"
    return io.TextIOWrapper(stream, "utf-8-sig" if utf8 else encoding, errors, newline)


def _json_lines(stream: pa.NativeFile, encoding: str) -> Iterator[bytes | None]:
    """Lines of UTF-8."""
    if encoding == "utf-8":
        return _bounded(io.BufferedReader(stream, 1 << 16).readline)
    lines = _bounded(_text(stream, encoding, "\n").readline)
    return (None if line is None else line.encode("utf-8", "replace") for line in lines)


def read_jsonl(path: Path, encoding: str = "utf-8") -> Iterator[Item]:
    """One JSON object a line; blank lines are no rows."""
    with pa.input_stream(path, compression="detect") as stream:
        for number, line in enumerate(_json_lines(stream, encoding), start=1):
            if line is None:
                yield Reject(str(path), number, TOO_LONG, "")
                continue
            if line.isspace():
                continue
            try:
                record = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                yield Reject(str(path), number, NOT_UTF8, excerpt(line[:400].decode("utf-8", "replace")))
            except ValueError as error:
                yield Reject(str(path), number, str(error), excerpt(line[:400].decode("utf-8", "replace").strip()))
            else:
                yield _object(path, number, record)


def _object(path: Path, number: int, record: object) -> Item:
    if isinstance(record, dict) and not isinstance(record, TwiceNamed):
        return number, record
    reason = "a key twice" if isinstance(record, TwiceNamed) else "not a JSON object"
    return Reject(str(path), number, reason, excerpt(record))


def read_json(path: Path, encoding: str = "utf-8") -> Iterator[Item]:
    """A JSON array of objects, or an object of a known shape; the row number is the position in it.

    Raises:
        OSError: neither, or one that is too large to be held.
    """
    with pa.input_stream(path, compression="detect") as stream:
        parts, size = [], 0
        while part := stream.read(1 << 24):
            parts.append(part)
            size += len(part)
            if size > JSON_LIMIT:
                raise OSError(f"it holds more than {JSON_LIMIT >> 30} GiB, all of which would be held in memory")
    try:
        content = parse_json(b"".join(parts).decode("utf-8-sig" if encoding == "utf-8" else encoding))
    except ValueError as error:  # what a decoder says of the encoding as well
        raise OSError(f"{error.__cause__ or error}") from None
    for number, record in enumerate(rows_of(content), start=1):
        yield _object(path, number, record)


class _Lines:
    """Lines for csv.reader, which can be taken back: ``number`` of them are read, ``row`` since the last reset."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self._lines = lines
        self._back: deque[str | None] = deque()
        self.number = 0
        self.row: list[str | None] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._lines)
        self.number += 1
        self.row.append(line)
        if line is None:
            raise csv.Error(TOO_LONG)
        if len(self.row) > ROW_LINES:
            raise csv.Error(UNBALANCED)
        return line

    def take_back(self) -> None:
        """All lines of the row but its first."""
        self._back.extendleft(reversed(self.row[1:]))
        self.number -= len(self.row) - 1


Fields: TypeAlias = Callable[[Path, Sequence[str]], list[str] | None]
"""The names of a delimited file's fields by its name and first row, where that is a row; None: it is the names."""


def read_delimited(path: Path, delimiter: str, encoding: str = "utf-8", fields: Fields | None = None) -> Iterator[Item]:
    """CSV as RFC 4180 has it, or TSV, in which quotes mean nothing (IANA's text/tab-separated-values).

    (1) Where quotes do not fit, as where one opens and none closes, only the line that opens it is rejected, and
        reading goes on with the next one.
    (2) Where they fit, but the lines between look like rows, the row is rejected: it would be many rows in one text.

    Raises:
        OSError: the header names a column twice.
    """
    quoted = delimiter == ","
    with pa.input_stream(path, compression="detect") as stream:
        lines = _Lines(_bounded(_text(stream, encoding, "").readline))
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=quoted)
        header: list[str] | None = None
        while True:
            lines.row = []
            try:
                cells = next(reader, None)
            except csv.Error as error:
                first = lines.row[0]
                reason = TOO_LONG if first is None else UNBALANCED if len(lines.row) > 1 else "not valid CSV"
                if header is None:
                    raise OSError(f"its header is no row: {reason}") from error
                lines.take_back()  # (1)
                yield Reject(str(path), lines.number, reason, excerpt((first or "")[:400].strip()))
                continue
            if cells is None:
                return
            if header is None:
                header = cells if fields is None else fields(path, cells) or cells
                if len(set(header)) != len(header):
                    raise OSError(f"its header names a column twice: {excerpt(header, 200)}")
                if header is cells:
                    continue
            if cells and (len(cells) > 1 or not cells[0].isspace()):
                yield _row(path, lines, header, cells, delimiter)


def _row(path: Path, lines: _Lines, header: list[str], cells: list[str], delimiter: str) -> Item:
    fault = None
    if len(cells) != len(header):
        fault = "wrong number of fields"
    elif not all(map(_is_utf8, cells)):
        fault = NOT_UTF8
    elif len(lines.row) > 4 and _look_like_rows(lines.row[1:-1], header, delimiter):
        fault = SWALLOWED  # (2)
    if fault is None:
        return lines.number, dict(zip(header, cells, strict=True))
    return Reject(str(path), lines.number, fault, excerpt(delimiter.join(cells)[:400]))


def _look_like_rows(between: Sequence[str | None], header: Sequence[str], delimiter: str) -> bool:
    """Whether each line that a quoted field goes over whole would be a row: three or more, of several fields."""
    rows = [line.count(delimiter) + 1 for line in between if line and not line.isspace()]
    return len(header) > 1 and len(rows) > 2 and set(rows) == {len(header)}


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class TwiceNamed(dict[str, object]):
    """A JSON object that names a key twice."""


def _checked_object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else TwiceNamed(found)


# Built once: with a hook, json.loads builds a decoder for every text, and takes three times as long.
_decode = json.JSONDecoder(object_pairs_hook=_checked_object).decode


def parse_json(text: str) -> object:
    """The value of a JSON text; an object that names a key twice is a ``TwiceNamed``.

    Raises:
        ValueError: not JSON, nested too deeply, or a number of too many digits, in these words.
    """
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        raise ValueError("not valid JSON") from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:  # Python's limit of digits
        raise ValueError("a number of too many digits") from None


def corpus_of(path: Path) -> str | None:
    """The corpus that a JSON file of NeMo names before its rows: a path that starts at the file's folder."""
    try:
        with pa.input_stream(path, compression="detect") as stream:
            begin = stream.read(1 << 16).decode("utf-8", "replace")
    except (OSError, pa.ArrowException):  # which its reader says
        return None
    found = re.match(r'\s*\{\s*"corpus"\s*:\s*\[?\s*(\{\s*"path"[^{}]*\})', begin)
    try:
        named = parse_json(found[1]) if found else None
    except ValueError:
        return None
    corpus = named.get("path") if isinstance(named, dict) else None
    return str(path.parent / corpus) if isinstance(corpus, str) else None
