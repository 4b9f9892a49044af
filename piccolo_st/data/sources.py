"""Readers: whatever a dataset's source is, as a stream of chunks of raw rows that know their file and row number.

    (1) ``locate`` turns the source of a DatasetSpec into a format and the files to read;
    (2) ``read_chunks`` yields chunks: plain records from text formats, an Arrow table from columnar ones;
    (3) a row that cannot be read at all (broken JSON, not UTF-8, a wrong number of fields) is a Reject, never an
        exception, so that one bad line does not hide the others.

Row numbers start at 1. In text files they are line numbers, as an editor shows them; a row that spans several lines
has the number of its last line. Files compressed with gzip, bzip2 or zstd are read as they are.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from piccolo_st.data import chunks, jionlp
from piccolo_st.data.beir import read_beir_pairs
from piccolo_st.data.chunks import Chunk, Item, Record, Reject, excerpt
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.text_files import read_delimited, read_json, read_jsonl
from piccolo_st.errors import MixtureError

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


@dataclass(frozen=True)
class Location:
    """What a source is: its format, and the local files it consists of or, on the Hub, its version instead of files."""

    format: str
    files: tuple[Path, ...] = ()
    version: str = ""


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
        return Location("hub", version=f"{spec.source}@{spec.revision}/{spec.subset or ''}/{spec.split}")
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
    """The raw rows of a source, in order, at most ``chunks.CHUNK_ROWS`` at a time.

    Raises:
        MixtureError: a file as a whole cannot be read (no permission, truncated Parquet, no header).
    """
    if location.format == "hub":
        yield from _read_hub(spec)
        return
    if location.format == "beir":
        yield from read_beir_pairs(location.files)
        return
    columnar = {"parquet": _read_parquet, "arrow": _read_arrow, "saved": _read_arrow}
    by_row: dict[str, Callable[[Path], Iterator[Item]]] = {
        "jsonl": read_jsonl,
        "json": read_json,
        "csv": lambda path: read_delimited(path, ","),
        "tsv": lambda path: read_delimited(path, "\t"),
        "jionlp": lambda path: jionlp.read(spec.source.removeprefix("jionlp:"), path),
    }
    for path in location.files:
        try:
            if location.format in columnar:
                yield from columnar[location.format](path)
            else:
                yield from _chunked(path, by_row[location.format](path))
        except (OSError, EOFError, pa.ArrowException) as error:
            raise MixtureError(
                f"{path} of dataset {spec.name!r} cannot be read as {location.format}: {excerpt(str(error), 200)}; "
                "check that it is complete and readable"
            ) from error


def _chunked(path: Path, items: Iterable[Item]) -> Iterator[Chunk]:
    """Rows and rejects, gathered into chunks."""
    rows: list[int] = []
    records: list[Record] = []
    rejects: list[Reject] = []
    for item in items:
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            rows.append(item[0])
            records.append(item[1])
        if len(rows) + len(rejects) >= chunks.CHUNK_ROWS:
            yield Chunk(str(path), np.array(rows, dtype=np.int64), records, rejects)
            rows, records, rejects = [], [], []
    if rows or rejects:
        yield Chunk(str(path), np.array(rows, dtype=np.int64), records, rejects)


def _read_parquet(path: Path) -> Iterator[Chunk]:
    with pq.ParquetFile(path, memory_map=True) as file:
        start = 1
        for batch in file.iter_batches(batch_size=chunks.CHUNK_ROWS):
            yield _columnar(str(path), start, pa.Table.from_batches([batch]))
            start += batch.num_rows


def _read_arrow(path: Path) -> Iterator[Chunk]:
    """Arrow's streaming format (what ``datasets`` writes) or its file format (Feather)."""
    with pa.memory_map(str(path)) as source:
        try:
            batches: Iterator[pa.RecordBatch] = iter(pa.ipc.open_stream(source))
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        start = 1
        for batch in batches:
            for offset in range(0, batch.num_rows, chunks.CHUNK_ROWS):
                part = batch.slice(offset, chunks.CHUNK_ROWS)
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
    for table in dataset.with_format("arrow").iter(chunks.CHUNK_ROWS):
        yield _columnar(name, start, table)
        start += table.num_rows


def _columnar(file: str, start: int, table: pa.Table) -> Chunk:
    return Chunk(file, np.arange(start, start + table.num_rows, dtype=np.int64), table)
