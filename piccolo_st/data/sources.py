"""Readers: whatever a dataset's source is, as a stream of chunks of raw rows that know their file and row number.

    (1) ``locate`` turns the source of a DatasetSpec into a format and the files to read;
    (2) ``read_chunks`` yields chunks: plain records from text formats, an Arrow table from columnar ones;
    (3) a row that cannot be read at all (broken JSON, not UTF-8, a wrong number of fields) is a Reject, never an
        exception, so that one bad line does not hide the others.

Row numbers start at 1. In text files they are line numbers, as an editor shows them; a row that spans several lines
has the number of its last line. Files compressed with gzip, bzip2 or zstd are read as they are.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from piccolo_st.data import jionlp
from piccolo_st.data.chunks import Chunk, Reject, excerpt
from piccolo_st.data.specs import DatasetSpec, MixtureError
from piccolo_st.data.strict import TwiceNamed, parse_json

CHUNK_ROWS = 20_000

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_COMPRESSED = {".gz", ".bz2", ".zst"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

csv.field_size_limit(1 << 27)  # the default of 128 KiB is less than a long passage


@dataclass(frozen=True)
class Location:
    """What a source is: its format, the local files it consists of, and (for the Hub) an identity instead of files."""

    format: str
    files: tuple[Path, ...] = ()
    identity: str = ""


def locate(spec: DatasetSpec, root: Path) -> Location:
    """Find what ``spec.source`` names; relative paths start at ``root``.

    Raises:
        MixtureError: nothing there, or no format can be told from it.
    """
    place = f"dataset {spec.name!r}"
    if spec.source.startswith("jionlp:"):
        return Location("jionlp", (jionlp.archive(spec.source.removeprefix("jionlp:"), place),))
    path = Path(spec.source).expanduser()
    path = path if path.is_absolute() else root / path
    if path.is_dir():
        return _locate_folder(spec, path, place)
    files = (path,) if path.is_file() else tuple(Path(name) for name in sorted(glob.glob(str(path), recursive=True)))
    files = tuple(file for file in files if file.is_file())
    if files:
        return Location(spec.format if spec.format != "auto" else _format_of(files[0], place), files)
    if spec.format == "hub" or (spec.format == "auto" and _HUB_ID.fullmatch(spec.source) and not _suffix(path)):
        identity = f"{spec.source}@{spec.revision}/{spec.subset or ''}/{spec.split}"
        return Location("hub", identity=identity)
    raise MixtureError(
        f"the source of {place} does not exist: {path}; relative sources start at the mixture's `root`, by default "
        "the folder of its file"
    )


def _locate_folder(spec: DatasetSpec, path: Path, place: str) -> Location:
    if spec.format in ("auto", "beir") and (path / "corpus.jsonl").is_file():
        qrels = next((q for q in (path / "qrels" / f"{spec.split}.tsv", path / "qrels.tsv") if q.is_file()), None)
        if qrels is None or not (path / "queries.jsonl").is_file():
            raise MixtureError(
                f"the BEIR folder of {place} must hold corpus.jsonl, queries.jsonl and qrels/{spec.split}.tsv "
                f"(or qrels.tsv), got {path} with {sorted(p.name for p in path.iterdir())}"
            )
        return Location("beir", (path / "corpus.jsonl", path / "queries.jsonl", qrels))
    state = path / spec.split if (path / spec.split / "state.json").is_file() else path
    if spec.format in ("auto", "saved") and (state / "state.json").is_file():
        shards = json.loads((state / "state.json").read_text(encoding="utf-8"))["_data_files"]
        return Location("saved", tuple(state / shard["filename"] for shard in shards))
    suffixes = {suffix for suffix, kind in _SUFFIXES.items() if spec.format in ("auto", kind)}
    files = tuple(sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in suffixes))
    kinds = {_SUFFIXES[_suffix(file)] for file in files}
    if len(kinds) != 1:
        raise MixtureError(
            f"the source of {place} must be files of one format, got the folder {path} with {len(kinds)} formats; "
            "name a file, a glob such as shards/*.parquet, or the `format`"
        )
    return Location(kinds.pop(), files)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _SUFFIXES else ""


def _format_of(path: Path, place: str) -> str:
    suffix = _suffix(path)
    if not suffix:
        raise MixtureError(
            f"no format is known for {path.name} of {place}; name one with `format`: "
            f"{', '.join(dict.fromkeys(_SUFFIXES.values()))}"
        )
    return _SUFFIXES[suffix]


def read_chunks(spec: DatasetSpec, location: Location) -> Iterator[Chunk]:
    """The raw rows of a source, in order, at most ``CHUNK_ROWS`` at a time.

    Raises:
        MixtureError: a file as a whole cannot be read (no permission, truncated Parquet, no header).
    """
    if location.format == "hub":
        yield from _read_hub(spec)
        return
    if location.format == "beir":
        from piccolo_st.data.beir import read_beir_pairs

        yield from read_beir_pairs(location.files)
        return
    readers: dict[str, Callable[[Path], Iterator[Chunk]]] = {
        "jsonl": read_jsonl,
        "json": _read_json,
        "csv": lambda path: read_delimited(path, ","),
        "tsv": lambda path: read_delimited(path, "\t"),
        "parquet": _read_parquet,
        "arrow": _read_arrow,
        "saved": _read_arrow,
        "jionlp": lambda path: _read_jionlp(spec.source.removeprefix("jionlp:"), path),
    }
    for path in location.files:
        try:
            yield from readers[location.format](path)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise MixtureError(
                f"{path} of dataset {spec.name!r} cannot be read as {location.format}: {excerpt(str(error), 200)}; "
                "check that it is complete and readable"
            ) from error


def _chunked(path: Path, items: Iterable[tuple[int, dict[str, Any]] | Reject]) -> Iterator[Chunk]:
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


def read_jsonl(path: Path) -> Iterator[Chunk]:
    """One JSON object a line; blank lines are no rows."""
    return _chunked(path, _jsonl_items(path))


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


def _read_json(path: Path) -> Iterator[Chunk]:
    """A JSON array of objects; the row number is the position in the array."""
    with pa.input_stream(path, compression="detect") as stream:
        try:
            content = parse_json(stream.read().decode("utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise OSError(f"{error}") from None
    if not isinstance(content, list):
        raise OSError(f"it must hold a list of objects, got {type(content).__name__}")
    return _chunked(path, (_object(path, number, record) for number, record in enumerate(content, start=1)))


def read_delimited(path: Path, delimiter: str) -> Iterator[Chunk]:
    """CSV as RFC 4180 has it, or TSV, in which quotes mean nothing (IANA's text/tab-separated-values)."""
    return _chunked(path, _delimited_items(path, delimiter))


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


def _read_parquet(path: Path) -> Iterator[Chunk]:
    with pq.ParquetFile(path, memory_map=True) as file:
        start = 1
        for batch in file.iter_batches(batch_size=CHUNK_ROWS):
            yield _columnar(str(path), start, pa.Table.from_batches([batch]))
            start += batch.num_rows


def _read_arrow(path: Path) -> Iterator[Chunk]:
    """Arrow's streaming format (what ``datasets`` writes) or its file format (Feather)."""
    with pa.memory_map(str(path)) as source:
        try:
            reader: Any = pa.ipc.open_stream(source)
            batches: Iterator[pa.RecordBatch] = iter(reader)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        start = 1
        for batch in batches:
            for offset in range(0, batch.num_rows, CHUNK_ROWS):
                part = batch.slice(offset, CHUNK_ROWS)
                yield _columnar(str(path), start, pa.Table.from_batches([part]))
                start += part.num_rows


def _read_hub(spec: DatasetSpec) -> Iterator[Chunk]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(spec.source, spec.subset, split=spec.split, revision=spec.revision)
    except Exception as error:
        raise MixtureError(
            f"the Hub dataset {spec.source!r} of dataset {spec.name!r} cannot be loaded (revision {spec.revision}, "
            f"subset {spec.subset}, split {spec.split}): {type(error).__name__}: {excerpt(str(error), 200)}; "
            "give a file, or a dataset that this machine can reach"
        ) from error
    name = f"hub://{spec.source}@{spec.revision}/{spec.split}"
    start = 1
    for table in dataset.with_format("arrow").iter(CHUNK_ROWS):
        yield _columnar(name, start, table)
        start += table.num_rows


def _read_jionlp(name: str, path: Path) -> Iterator[Chunk]:
    items = jionlp.read(name, path)
    return _chunked(
        path,
        ((n, row) if isinstance(row, dict) else Reject(str(path), n, reason, excerpt(row)) for n, row, reason in items),
    )


def _columnar(file: str, start: int, table: pa.Table) -> Chunk:
    return Chunk(file, np.arange(start, start + table.num_rows, dtype=np.int64), table)
