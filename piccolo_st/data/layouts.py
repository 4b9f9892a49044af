"""Data by id: whose it is and what it looks like, and which files of a folder are corpus, queries and rows.

Any of the formats will do for each part, and Parquet in shards (train-00000-of-00002.parquet).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

LAYOUTS = (
    ("BEIR", "`corpus.jsonl`, `queries.jsonl`, `qrels/train.tsv` or `qrels.tsv`", "the folder"),
    ("T2Ranking", "`collection.tsv`, `queries.train.tsv`, `qrels.retrieval.train.tsv` (or `qrels.train.tsv`)",
     "the folder"),
    ("MS MARCO, mMARCO", "`collection.tsv`, `queries.train.tsv`, `triples.train.ids.small.tsv`, without headers",
     "the folder; elsewhere `corpus` and `queries` beside the source"),
    ("MTEB, on the Hub", "the configurations `corpus`, `queries` and `qrels` (or `default`)", "`format: beir`"),
    ("MTEB, downloaded", "`corpus/`, `queries/`, `qrels/`", "the folder"),
    ("tevatron 2", '`{"query_id": "", "query_text": "", "positive_document_ids": [""], "negative_document_ids": []}`',
     "`corpus`, or a folder of `corpus.jsonl` and `train.jsonl`"),
    ("NeMo, by id", '`{"corpus": [{"path": ""}], "data": [{"question": "", "pos_doc": [{"id": ""}], "neg_doc": []}]}`',
     "the file"),
)  # fmt: skip
"""Whose, what it looks like, and what the mixture has to name."""

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".xlsx": "xlsx",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""How the name of a file ends -> its format."""
_COMPRESSED = {".gz", ".bz2", ".zst"}

_CORPUS = ("corpus", "collection", "corpus/corpus", "corpus/{split}", "corpus/train", "corpus/test", "data/corpus")
_QUERIES = ("queries.{split}", "queries", "queries/{split}", "queries/queries", "queries/train", "queries/test",
            "data/queries")  # fmt: skip
_ROWS = ("qrels/{split}", "qrels.retrieval.{split}", "qrels.{split}", "qrels", "triples.{split}.ids",
         "triples.{split}.ids.small", "data/{split}", "default/{split}")  # fmt: skip
_OWN_QUERIES = ("{split}", "data/{split}")
"""Rows that have the texts of their queries."""


def suffix_of(path: Path) -> str:
    """The suffix that tells a file's format, lower case, without that of its compression; empty where none does."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def find_parts(folder: Path, split: str) -> dict[str, tuple[Path, ...]]:
    """``corpus``, ``queries`` and ``rows`` -> the files of each; what is not found is left out."""
    queries = _first(folder, split, _QUERIES)
    parts = {
        "corpus": _first(folder, split, _CORPUS),
        "queries": queries,
        "rows": _first(folder, split, _ROWS if queries else _OWN_QUERIES),
    }
    return {name: files for name, files in parts.items() if files}


def _first(folder: Path, split: str, stems: Iterable[str]) -> tuple[Path, ...]:
    found = (_called(folder / stem.format(split=split)) for stem in stems)
    return next((files for files in found if files), ())


def _called(path: Path) -> tuple[Path, ...]:
    """The file of a name, without its suffix, or its shards."""
    if not path.parent.is_dir():
        return ()
    ends = {
        file: file.name[len(path.name) :]
        for file in sorted(path.parent.iterdir())
        if file.name.startswith(path.name) and file.is_file()
    }
    whole = [file for file, end in ends.items() if suffix_of(file) and re.fullmatch(r"\.\w+(\.(gz|bz2|zst))?", end)]
    return tuple(whole[:1] or [file for file, end in ends.items() if re.fullmatch(r"-\d+-of-\d+\.\w+", end)])
