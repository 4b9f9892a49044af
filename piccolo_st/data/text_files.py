"""Readers of JSON lines, JSON and delimited text, row by row, faults included."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from piccolo_st.data.chunks import Item, Reject, excerpt

csv.field_size_limit(1 << 27)  # the default of 128 KiB is less than a long passage


def read_jsonl(path: Path) -> Iterator[Item]:
    """One JSON object a line; blank lines are no rows."""
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


def _object(path: Path, number: int, record: object) -> Item:
    if isinstance(record, dict) and not isinstance(record, TwiceNamed):
        return number, record
    reason = "a key twice" if isinstance(record, TwiceNamed) else "not a JSON object"
    return Reject(str(path), number, reason, excerpt(record))


def read_json(path: Path) -> Iterator[Item]:
    """A JSON array of objects; the row number is the position in the array."""
    with pa.input_stream(path, compression="detect") as stream:
        try:
            content = parse_json(stream.read().decode("utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise OSError(f"{error}") from None
    if not isinstance(content, list):
        raise OSError(f"it must hold a list of objects, got {type(content).__name__}")
    for number, record in enumerate(content, start=1):
        yield _object(path, number, record)


def read_delimited(path: Path, delimiter: str) -> Iterator[Item]:
    """CSV as RFC 4180 has it, or TSV, in which quotes mean nothing (IANA's text/tab-separated-values)."""
    with pa.input_stream(path, compression="detect") as stream:
        # Bytes that are not UTF-8 become lone surrogates, which the row's own check below finds again.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(
            text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        )
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
        json.JSONDecodeError: not JSON.
        RecursionError: nested too deeply.
    """
    return _decode(text)
