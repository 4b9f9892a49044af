"""Readers of JSON lines, JSON and delimited text, row by row, faults included."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from piccolo_st.data.chunks import Chunk, Reject, chunked, excerpt
from piccolo_st.data.strict import TwiceNamed, parse_json

csv.field_size_limit(1 << 27)  # the default of 128 KiB is less than a long passage


def read_jsonl(path: Path) -> Iterator[Chunk]:
    """One JSON object a line; blank lines are no rows."""
    return chunked(path, _jsonl_items(path))


def _jsonl_items(path: Path) -> Iterator[tuple[int, dict[str, Any]] | Reject]:
    with pa.input_stream(path, compression="detect") as stream:
        for number, line in enumerate(io.BufferedReader(stream), start=1):
            if not line.strip():
                continue
            try:
                record = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                yield Reject(str(path), number, "not UTF-8", excerpt(line.decode("utf-8", "replace")))
            except (json.JSONDecodeError, RecursionError):
                yield Reject(str(path), number, "not valid JSON", excerpt(line.decode("utf-8").strip()))
            else:
                yield _object(path, number, record)


def _object(path: Path, number: int, record: Any) -> tuple[int, dict[str, Any]] | Reject:
    if type(record) is dict:
        return number, record
    reason = "a key twice" if isinstance(record, TwiceNamed) else "not a JSON object"
    return Reject(str(path), number, reason, excerpt(record))


def read_json(path: Path) -> Iterator[Chunk]:
    """A JSON array of objects; the row number is the position in the array."""
    with pa.input_stream(path, compression="detect") as stream:
        try:
            content = parse_json(stream.read().decode("utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise OSError(f"{error}") from None
    if not isinstance(content, list):
        raise OSError(f"it must hold a list of objects, got {type(content).__name__}")
    return chunked(path, (_object(path, number, record) for number, record in enumerate(content, start=1)))


def read_delimited(path: Path, delimiter: str) -> Iterator[Chunk]:
    """CSV as RFC 4180 has it, or TSV, in which quotes mean nothing (IANA's text/tab-separated-values)."""
    return chunked(path, _delimited_items(path, delimiter))


def _delimited_items(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]] | Reject]:
    with pa.input_stream(path, compression="detect") as stream:
        # Bytes that are not UTF-8 become lone surrogates, which the row's own check below finds again.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        quoting: Any = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        reader = csv.reader(text, delimiter=delimiter, quoting=quoting)
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise OSError(f"its header names a column twice: {header}")
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Reject(str(path), reader.line_num, "not valid CSV", excerpt(str(error)))
                continue
            if cells is None:
                return
            if not cells or (len(cells) == 1 and not cells[0].strip()):
                continue
            joined = delimiter.join(cells)
            if len(cells) != len(header):
                yield Reject(str(path), reader.line_num, "wrong number of fields", excerpt(joined))
            elif not joined.isascii() and any("\udc80" <= character <= "\udcff" for character in joined):
                yield Reject(str(path), reader.line_num, "not UTF-8", excerpt(joined))
            else:
                yield reader.line_num, dict(zip(header, cells, strict=True))
