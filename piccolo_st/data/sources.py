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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from piccolo_st.data import chunks, jionlp
from piccolo_st.data.by_id import Judged, Texts, read_judged, row_fields, text_fields, texts_in, with_texts
from piccolo_st.data.chunks import Chunk, Item, Record, Reject, excerpt
from piccolo_st.data.columnar import columnar_chunks, read_arrow, read_parquet
from piccolo_st.data.columns import ALIASES
from piccolo_st.data.excel import read_xlsx
from piccolo_st.data.layouts import SUFFIXES, find_parts, suffix_of
from piccolo_st.data.misread import looks_like
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.text_files import Fields, corpus_of, read_delimited, read_json, read_jsonl
from piccolo_st.errors import MissingPackage, MixtureError, reason, shown

T = TypeVar("T")

_METADATA = {"merlin_metadata.json", "dataset_infos.json"}
"""Files beside rows that are about them."""
_CONFIGURATIONS = {"corpus": "corpus", "queries": "queries", "rows": "qrels"}
"""Of a retrieval data set of MTEB on the Hub; the judgements may be its default."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Location:
    """What a source is: its format, and the local files it consists of or, on the Hub, its version instead of files.

    Data by id are of the format ``beir``, whose files are those of its ``parts``: ``rows``, ``corpus``, and perhaps
    ``queries``, each a source of its own.
    """

    format: str
    files: tuple[Path, ...] = ()
    version: str = ""
    parts: Mapping[str, tuple[DatasetSpec, Location]] = field(default_factory=dict)


def locate(spec: DatasetSpec, root: Path) -> Location:
    """Find what ``spec.source`` names; relative paths start at ``root``.

    Raises:
        MixtureError: nothing there, or no format can be told from it.
    """
    place = f"dataset {spec.name!r}"
    try:
        return _with_parts(spec, root, place)
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, no such user, a null character
        if isinstance(error, MixtureError | MissingPackage):
            raise
        raise MixtureError(
            f"the source of {place} must name what can be opened, got {shown(spec.source)}: {reason(error)}; check its "
            "spelling"
        ) from None


def _with_parts(spec: DatasetSpec, root: Path, place: str) -> Location:
    """The location, with the corpus and the queries that the mixture or the file itself names."""
    named = {name: source for name in ("corpus", "queries") if (source := getattr(spec, name)) is not None}
    if "queries" in named and "corpus" not in named:
        raise MixtureError(f"queries of {place} needs its corpus as well, got {shown(spec.queries)}; name both")
    own = replace(spec, corpus=None, queries=None)
    location = _locate(own, root, place)
    if not named and location.format == "json" and (corpus := corpus_of(location.files[0])):
        named = {"corpus": corpus}
    if not named:
        return location
    if location.parts:
        raise MixtureError(f"corpus of {place} must be left out, got {shown(spec.corpus)}: the source has its own")
    parts = {name: _part(own, source) for name, source in named.items()}
    return _by_id({"rows": (own, location)} | {n: (part, _locate(part, root, place)) for n, part in parts.items()})


def _part(spec: DatasetSpec, source: str) -> DatasetSpec:
    """What is read of a source of texts, or of rows by id; a revision is that of one repository."""
    revision = spec.revision if source == spec.source else None
    return replace(spec, source=source, format="auto", split="train", revision=revision, subset=None)


def _by_id(parts: Mapping[str, tuple[DatasetSpec, Location]]) -> Location:
    found = [parts[name][1] for name in ("corpus", "queries", "rows") if name in parts]
    files = tuple(file for one in found for file in one.files)
    return Location("beir", files, " ".join(one.version for one in found if one.version), parts)


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
    if spec.format == "beir" and _HUB_ID.fullmatch(spec.source) and not path.exists():
        prefix = f"{spec.subset}-" if spec.subset else ""
        parts = {name: replace(spec, subset=prefix + subset) for name, subset in _CONFIGURATIONS.items()}
        return _by_id({name: (part, Location("hub", version=_hub_version(part))) for name, part in parts.items()})
    files = (path,) if path.is_file() else tuple(Path(name) for name in sorted(glob.glob(str(path), recursive=True)))
    files = tuple(file for file in files if file.is_file())
    if files:
        return Location(_format_of(spec, files, place), files)
    if spec.format == "auto" and _HUB_ID.fullmatch(spec.source) and not suffix_of(path):
        return Location("hub", version=_hub_version(spec))
    raise MixtureError(
        f"the source of {place} does not exist: {path}; relative sources start at the mixture's `root`, by default "
        "the folder of its file"
    )


def _hub_version(spec: DatasetSpec) -> str:
    return f"{spec.source}@{spec.revision}/{spec.subset or ''}/{spec.split}"


def _locate_folder(spec: DatasetSpec, path: Path, place: str) -> Location:
    found = find_parts(path, spec.split) if spec.format in ("auto", "beir") else {}
    if spec.format == "beir" or ("corpus" in found and ("queries" in found or found["corpus"][0].parent == path)):
        if not {"corpus", "rows"} <= found.keys():
            raise MixtureError(
                f"the BEIR folder of {place} must hold corpus.jsonl, queries.jsonl and qrels/{spec.split}.tsv "
                f"(or qrels.tsv), got {path} with {excerpt(sorted(p.name for p in path.iterdir()), 200)}"
            )
        part = _part(spec, spec.source)
        return _by_id({n: (part, Location(_format_of(part, files, place), files)) for n, files in found.items()})
    state = path / spec.split if (path / spec.split / "state.json").is_file() else path
    if spec.format == "saved" or (spec.format == "auto" and (state / "state.json").is_file()):
        return Location("saved", _saved_shards(state, place))
    suffixes = {suffix for suffix, kind in SUFFIXES.items() if spec.format in ("auto", kind)}
    files = tuple(
        sorted(p for p in path.rglob("*") if p.is_file() and suffix_of(p) in suffixes and p.name not in _METADATA)
    )
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


def _format_of(spec: DatasetSpec, files: Sequence[Path], place: str) -> str:
    """The format of files that are all of one, by ``format`` or else by their suffixes."""
    suffixes = {suffix_of(file) for file in files}
    kinds = {SUFFIXES.get(suffix, "") for suffix in suffixes}
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
        if files[0].suffix.lower() in (".xls", ".ods", ".et"):
            raise MixtureError(f"the source of {place} must be no {files[0].suffix}, got {files[0]}; save it as .xlsx")
        raise MixtureError(
            f"no format is known for {files[0].name} of {place}; name one with `format`: "
            f"{', '.join(dict.fromkeys(SUFFIXES.values()))}"
        )
    return kinds.pop()


def read_chunks(spec: DatasetSpec, location: Location) -> Iterator[Chunk]:
    """The raw rows of a source, in order, at most ``chunks.CHUNK_ROWS`` at a time.

    Raises:
        MixtureError: a file as a whole cannot be read (no permission, truncated Parquet, no header).
    """
    if not location.parts:
        yield from _read(spec, location)
        return
    texts = {name: read_texts(*part) for name, part in location.parts.items() if name != "rows"}
    rows = _read(*location.parts["rows"], row_fields)
    yield from with_texts(spec, rows, texts["corpus"], texts.get("queries"))


def read_search(location: Location) -> Judged:
    """Judgements, queries and corpus of data by id that has all three.

    Raises:
        MixtureError: as read_chunks, or the rows are no judgements.
    """
    corpus, queries = (read_texts(*location.parts[name]) for name in ("corpus", "queries"))
    return read_judged(_read(*location.parts["rows"], row_fields), corpus, queries)


def read_texts(spec: DatasetSpec, location: Location) -> Texts:
    """The texts of a corpus, or of queries, by their ids."""
    return texts_in(_read(spec, location, text_fields))


def _read(spec: DatasetSpec, location: Location, fields: Fields | None = None) -> Iterator[Chunk]:
    """The rows of files or of the Hub as they stand; ``fields`` names those of delimited text without a header."""
    if location.format == "hub":
        yield from _read_hub(spec)
        return
    encoding = spec.encoding
    readers: dict[str, Callable[[Path], Iterator[Chunk]]] = {
        "parquet": read_parquet,
        "arrow": read_arrow,
        "saved": read_arrow,
        "jsonl": lambda path: _chunked(path, read_jsonl(path, encoding)),
        "json": lambda path: _chunked(path, read_json(path, encoding)),
        "csv": lambda path: _chunked(path, _with_gaps(spec, read_delimited(path, ",", encoding, fields))),
        "tsv": lambda path: _chunked(path, _with_gaps(spec, read_delimited(path, "\t", encoding, fields))),
        "xlsx": lambda path: _chunked(path, _with_gaps(spec, read_xlsx(path))),
        "jionlp": lambda path: _chunked(path, jionlp.read(spec.source.removeprefix("jionlp:"), path)),
    }
    for path in location.files:
        yield from told(spec, path, location.format, readers[location.format](path))


def told(spec: DatasetSpec, path: Path, kind: str, read: Iterator[T]) -> Iterator[T]:
    """What is read of a file; what stops its reader is an error of the dataset."""
    try:
        yield from read
    except (OSError, EOFError, UnicodeError, zipfile.BadZipFile, pa.ArrowException) as error:
        remedy = looks_like(path, kind, spec.encoding) or "check that it is complete and readable"
        raise MixtureError(
            f"{path} of dataset {spec.name!r} cannot be read as {kind}: {excerpt(reason(error), 200)}; {remedy}"
        ) from error


def _with_gaps(spec: DatasetSpec, items: Iterable[Item]) -> Iterator[Item]:
    """Rows of a format that cannot write null: where their one column of negatives is empty, they have none."""
    named = spec.columns.get("negative")
    columns = ALIASES["negative"] if named is None else (named,) if isinstance(named, str) else ()
    for item in items:
        if not isinstance(item, Reject):
            for column in columns:
                if item[1].get(column) == "":
                    item[1][column] = None
        yield item


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

    from piccolo_st.hub import from_cache_if_unreachable

    silent, subset, split = "", spec.subset, spec.split
    try:
        with from_cache_if_unreachable() as silent:
            if spec.format == "beir":
                subset, split = _configuration(spec)
            dataset = load_dataset(spec.source, subset, split=split, revision=spec.revision)
    except Exception as error:
        said = f"{type(error).__name__}: {excerpt(str(error), 200)}"
        raise MixtureError(
            f"the Hub dataset {spec.source!r} of dataset {spec.name!r} cannot be loaded (revision {spec.revision}, "
            f"subset {subset}, split {split}): {silent or said}; "
            + (
                "set `format: beir` if it is a search by id, or its `subset`"
                if "Config name is missing" in said
                else "give a file, or a dataset that this machine can reach"
            )
        ) from error
    name = f"hub://{spec.source}@{spec.revision}/{spec.split}"
    tables = dataset.with_format("arrow").iter(chunks.CHUNK_ROWS)
    yield from columnar_chunks(name, (batch for table in tables for batch in table.to_batches()))


def is_search(spec: DatasetSpec) -> bool:
    """Whether a Hub dataset has its corpus and its queries as configurations, as MTEB's have; False: it has none."""
    from datasets import get_dataset_config_names

    from piccolo_st.hub import from_cache_if_unreachable

    try:
        with from_cache_if_unreachable():
            names = get_dataset_config_names(spec.source, revision=spec.revision)
    except Exception:  # what is wrong is said by who reads it
        return False
    return {"corpus", "queries"} <= set(names)


def _configuration(spec: DatasetSpec) -> tuple[str, str]:
    """The configuration and the split of a part of an MTEB data set, as mteb looks for them."""
    from datasets import get_dataset_config_names, get_dataset_split_names

    names = get_dataset_config_names(spec.source, revision=spec.revision)
    subset = str(spec.subset)
    if subset not in names and subset in ("qrels", "queries"):
        subset = {"qrels": "default", "queries": "query"}[subset]
    splits = get_dataset_split_names(spec.source, subset, revision=spec.revision)
    return subset, splits[0] if len(splits) == 1 else spec.split
