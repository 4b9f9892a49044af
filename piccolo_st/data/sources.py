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
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from piccolo_st.data import chunks, jionlp
from piccolo_st.data.beir import read_beir_pairs
from piccolo_st.data.chunks import Chunk, Item, Record, Reject, excerpt
from piccolo_st.data.columnar import columnar_chunks, read_arrow, read_parquet
from piccolo_st.data.misread import looks_like
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.text_files import read_delimited, read_json, read_jsonl
from piccolo_st.errors import MissingPackage, MixtureError, reason, shown

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
    try:
        return _locate(spec, root, place)
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, no such user, a null character
        if isinstance(error, MixtureError | MissingPackage):
            raise
        raise MixtureError(
            f"the source of {place} must name what can be opened, got {shown(spec.source)}: {reason(error)}; check its "
            "spelling"
        ) from None


def _locate(spec: DatasetSpec, root: Path, place: str) -> Location:
    if spec.source.startswith("jionlp:"):
        return Location("jionlp", (jionlp.archive(spec.source.removeprefix("jionlp:"), place),))
    if spec.format == "jionlp":
        raise MixtureError(f"the source of {place} must be jionlp:words or another set, got {shown(spec.source)}")
    path = Path(spec.source).expanduser()
    path = path if path.is_absolute() else root / path
    if spec.format == "hub":
        if path.exists():  # datasets would read it, and nobody would see that it changed
            raise MixtureError(f"the source of {place} must be of the Hub for the format hub, got {path}; leave it out")
        return Location("hub", version=_hub_version(spec))
    if path.is_dir():
        return _locate_folder(spec, path, place)
    files = (path,) if path.is_file() else tuple(Path(name) for name in sorted(glob.glob(str(path), recursive=True)))
    files = tuple(file for file in files if file.is_file())
    if files:
        return Location(_format_of(spec, files, place), files)
    if spec.format == "auto" and _HUB_ID.fullmatch(spec.source) and not _suffix(path):
        return Location("hub", version=_hub_version(spec))
    raise MixtureError(
        f"the source of {place} does not exist: {path}; relative sources start at the mixture's `root`, by default "
        "the folder of its file"
    )


def _hub_version(spec: DatasetSpec) -> str:
    return f"{spec.source}@{spec.revision}/{spec.subset or ''}/{spec.split}"


def _locate_folder(spec: DatasetSpec, path: Path, place: str) -> Location:
    if spec.format == "beir" or (spec.format == "auto" and (path / "corpus.jsonl").is_file()):
        qrels = next((q for q in (path / "qrels" / f"{spec.split}.tsv", path / "qrels.tsv") if q.is_file()), None)
        if qrels is None or not all((path / name).is_file() for name in ("corpus.jsonl", "queries.jsonl")):
            raise MixtureError(
                f"the BEIR folder of {place} must hold corpus.jsonl, queries.jsonl and qrels/{spec.split}.tsv "
                f"(or qrels.tsv), got {path} with {excerpt(sorted(p.name for p in path.iterdir()), 200)}"
            )
        return Location("beir", (path / "corpus.jsonl", path / "queries.jsonl", qrels))
    state = path / spec.split if (path / spec.split / "state.json").is_file() else path
    if spec.format == "saved" or (spec.format == "auto" and (state / "state.json").is_file()):
        return Location("saved", _saved_shards(state, place))
    suffixes = {suffix for suffix, kind in _SUFFIXES.items() if spec.format in ("auto", kind)}
    files = tuple(sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in suffixes))
    return Location(_format_of(spec, files, f"{place}, the folder {path},"), files)


def _saved_shards(folder: Path, place: str) -> tuple[Path, ...]:
    try:
        shards = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
        files = tuple(folder / shard["filename"] for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"state.json cannot be read ({type(error).__name__}: {reason(error)})"
    else:
        missing = [file.name for file in files if not file.is_file()]
        if not missing:
            return files
        problem = f"{excerpt(missing[0])} is missing"
    raise MixtureError(
        f"the source of {place} must be a folder written by save_to_disk, got {folder}, in which {problem}; save it "
        "anew, or name its files with a glob"
    )


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _SUFFIXES else ""


def _format_of(spec: DatasetSpec, files: Sequence[Path], place: str) -> str:
    """The format of files that are all of one, by ``format`` or else by their suffixes."""
    suffixes = {_suffix(file) for file in files}
    kinds = {_SUFFIXES.get(suffix, "") for suffix in suffixes}
    if len(kinds) != 1:
        names = ", ".join(sorted(kind or "an unknown one" for kind in kinds)) or "none"
        raise MixtureError(
            f"the source of {place} must be files of one format, got {len(files)} files of {len(kinds)} ({names}); "
            "name a file, a glob such as shards/*.parquet, or for a folder the `format`"
        )
    if spec.format == "beir":
        raise MixtureError(f"the source of {place} must be a folder for the format beir, got the file {files[0]}")
    if spec.format != "auto":
        return spec.format
    if kinds == {""}:
        raise MixtureError(
            f"no format is known for {files[0].name} of {place}; name one with `format`: "
            f"{', '.join(dict.fromkeys(_SUFFIXES.values()))}"
        )
    return kinds.pop()


def read_chunks(spec: DatasetSpec, location: Location) -> Iterator[Chunk]:
    """The raw rows of a source, in order, at most ``chunks.CHUNK_ROWS`` at a time.

    Raises:
        MixtureError: a file as a whole cannot be read (no permission, truncated Parquet, no header).
    """
    if location.format == "hub":
        yield from _read_hub(spec)
        return
    if location.format == "beir":
        yield from _told(spec, location.files[-1], "beir", read_beir_pairs(location.files))
        return
    encoding = spec.encoding
    readers: dict[str, Callable[[Path], Iterator[Chunk]]] = {
        "parquet": read_parquet,
        "arrow": read_arrow,
        "saved": read_arrow,
        "jsonl": lambda path: _chunked(path, read_jsonl(path, encoding)),
        "json": lambda path: _chunked(path, read_json(path, encoding)),
        "csv": lambda path: _chunked(path, read_delimited(path, ",", encoding)),
        "tsv": lambda path: _chunked(path, read_delimited(path, "\t", encoding)),
        "jionlp": lambda path: _chunked(path, jionlp.read(spec.source.removeprefix("jionlp:"), path)),
    }
    for path in location.files:
        yield from _told(spec, path, location.format, readers[location.format](path))


def _told(spec: DatasetSpec, path: Path, kind: str, read: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks; what stops their reader is an error of the dataset."""
    try:
        yield from read
    except (OSError, EOFError, UnicodeError, zipfile.BadZipFile, pa.ArrowException) as error:
        remedy = looks_like(path, kind, spec.encoding) or "check that it is complete and readable"
        raise MixtureError(
            f"{path} of dataset {spec.name!r} cannot be read as {kind}: {excerpt(reason(error), 200)}; {remedy}"
        ) from error


def _chunked(path: Path, items: Iterable[Item]) -> Iterator[Chunk]:
    """Rows and rejects, gathered into chunks."""
    rows: list[int] = []
    records: list[Record] = []
    rejects: list[Reject] = []
    size = 0
    for item in items:
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            rows.append(item[0])
            records.append(item[1])
            size += _size(item[1])
        if len(rows) + len(rejects) >= chunks.CHUNK_ROWS or size >= chunks.CHUNK_BYTES:
            yield Chunk(str(path), np.array(rows, dtype=np.int64), records, rejects)
            rows, records, rejects, size = [], [], [], 0
    if rows or rejects:
        yield Chunk(str(path), np.array(rows, dtype=np.int64), records, rejects)


def _size(record: Record) -> int:
    """About how many characters a row holds."""
    size = 0
    for cell in record.values():
        if type(cell) is str:
            size += len(cell)
        elif type(cell) is list:
            size += sum(len(item) for item in cell if type(item) is str)
    return size


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
    tables = dataset.with_format("arrow").iter(chunks.CHUNK_ROWS)
    yield from columnar_chunks(name, (batch for table in tables for batch in table.to_batches()))
