"""What a file that was misread is, by its beginning: the remedy that fits, for the sentence that refuses it."""

from __future__ import annotations

import codecs
from pathlib import Path

import pyarrow as pa
from charset_normalizer import from_bytes

_SAMPLE = 1 << 16

# How a file begins, what it then is, and the formats and suffixes to which that is no news.
_BEGINNINGS = {
    b"PAR1": ("a Parquet file: set `format: parquet`", ("parquet",)),
    b"ARROW1": ("an Arrow file: set `format: arrow`", ("arrow", "saved")),
    b"\xff\xff\xff\xff": ("an Arrow stream: set `format: arrow`", ("arrow", "saved")),
    b"\x1f\x8b": ("compressed: let its name end in .gz", (".gz",)),
    b"BZh": ("compressed: let its name end in .bz2", (".bz2",)),
    b"\x28\xb5\x2f\xfd": ("compressed: let its name end in .zst", (".zst",)),
    b"PK\x03\x04": ("a zip archive or a spreadsheet: unpack it, or save it as CSV", ("xlsx",)),
}


def looks_like(path: Path, format: str, encoding: str) -> str | None:
    """What a file is that was read as ``format`` in vain, with the setting for it; None where its beginning tells none.

    Args:
        path: the file.
        format: that of a Location.
        encoding: that of its DatasetSpec.
    """
    raw = b""
    try:
        with open(path, "rb") as file:
            raw = file.read(_SAMPLE)
        with pa.input_stream(path, compression="detect") as stream:
            plain = stream.read(_SAMPLE)
    except (OSError, ValueError):
        plain = b""  # nothing, or it is not what its name says
    begun = [(words, known) for beginning, (words, known) in _BEGINNINGS.items() if raw.startswith(beginning)]
    for words, known in begun:
        if format not in known and path.suffix.lower() not in known:
            return f"it is {words}"
    if path.suffix.lower() in (".gz", ".bz2", ".zst") and not begun:
        return f"it is not compressed: take {path.suffix} off its name"
    if format not in ("jsonl", "json", "csv", "tsv"):
        return None if begun or not _decoded(plain, "utf-8") else "it is plain text: check its name and its `format`"
    text = _decoded(plain, encoding)
    if text is None or "\0" in text:
        found = from_bytes(plain).best()
        named = f"it looks like {found.encoding}: set `encoding: {found.encoding}`" if found else "name its `encoding`"
        return f"its text is not {encoding}; {named}"
    return _other_text_format(text, format)


def _decoded(sample: bytes, encoding: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)  # which may end within a character
    except UnicodeError:  # also of UTF-16 without its mark
        return None


def _other_text_format(text: str, format: str) -> str | None:
    first, _, rest = text.lstrip("\ufeff \t\r\n").partition("\n")
    if format == "jsonl" and first.startswith("["):
        return "it is a JSON array: set `format: json`"
    if format == "json" and first.startswith("{"):
        if first.rstrip().endswith("}") and rest.startswith("{"):
            return "it has an object a line: set `format: jsonl`"
        return "it is one object: write the list of rows that it holds into a file of its own"
    if format in ("csv", "tsv"):
        separator, other = (",", "\t") if format == "csv" else ("\t", ",")
        if separator not in first and other in first:
            return f"its fields are separated otherwise: set `format: {'tsv' if format == 'csv' else 'csv'}`"
        if separator not in first and ";" in first:
            return "its fields are separated by semicolons: save it with commas"
    return None
