"""Data by id: rows that name queries and documents, whose texts stand elsewhere. BEIR, MTEB, MS MARCO and their kin.

(1) A corpus, and perhaps queries, are read as any source is: a row has an id, a text and perhaps a title.
(2) Rows are judgements (a query, a document, perhaps a score), or each names its own positives and negatives: triples
    of ids, tevatron's and NeMo's lists of them.
(3) An id becomes its text. A row with one that has none is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from piccolo_st.data import chunks
from piccolo_st.data.chunks import Chunk, Record, Reject, excerpt
from piccolo_st.data.columns import DOCUMENT_IDS, LISTED_IDS, QUERY_IDS, find_columns, names_ids
from piccolo_st.data.shapes import TEXTS, titled
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.strict import parse_number
from piccolo_st.errors import MixtureError

UNKNOWN, NO_TEXT, TWICE = "names an unknown id", "no id or text", "an id twice"
"""The reasons against a row whose ids have no text, and against a text."""

_IDS = ("_id", "id", *QUERY_IDS, *DOCUMENT_IDS, "passage_id", "paragraph_id", "question_id")
_TEXTS = (*TEXTS, "contents", "passage", "query", "query_text", "question", "body")
_SCORES = ("score", "rel", "relevance", "label")

# What the fields of a file without a header are, by their number.
_TEXT_FIELDS = {2: ["id", "text"], 3: ["id", "title", "text"], 4: ["id", "url", "title", "text"]}
_ROW_FIELDS = {2: ["qid", "pid"], 3: ["qid", "pid", "score"], 4: ["qid", "-", "pid", "rel"]}
_TRIPLE = ["qid", "positive", "negative"]


def text_fields(path: Path, first: Sequence[str]) -> list[str] | None:
    """The names of the fields of a delimited file of texts that begins with a row; None: it begins with their names."""
    return None if {name.lower() for name in first} & {*_IDS, *_TEXTS} else _TEXT_FIELDS.get(len(first))


def row_fields(path: Path, first: Sequence[str]) -> list[str] | None:
    """The same of a file of rows: judgements, those of TREC, or by the name of the file triples."""
    if {name.lower() for name in first} & {*_IDS, *LISTED_IDS}:
        return None
    return _TRIPLE if len(first) == 3 and "triples" in path.name else _ROW_FIELDS.get(len(first))


@dataclass
class Texts:
    """Id -> text (title and text joined by a space), and the rows that could not be used."""

    found: dict[str, str] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)


def texts_in(rows: Iterable[Chunk]) -> Texts:
    """The texts of a corpus or of queries."""
    texts = Texts()
    for chunk in rows:
        texts.rejects += chunk.rejects
        for row, record in zip(chunk.rows.tolist(), _records(chunk), strict=True):
            key = next((record[name] for name in _IDS if name in record), None)
            text = next((record[name] for name in _TEXTS if name in record), None)
            if not _is_id(key) or not isinstance(text, str):
                texts.rejects.append(Reject(chunk.file, row, NO_TEXT, excerpt(record)))
            elif str(key) in texts.found:
                texts.rejects.append(Reject(chunk.file, row, TWICE, excerpt(key)))
            else:
                texts.found[str(key)] = titled(record.get("title"), text)
    return texts


def _records(chunk: Chunk) -> list[Record]:
    return chunk.records.to_pylist() if isinstance(chunk.records, pa.Table) else chunk.records


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Judgement:
    """That a document is relevant to a query, if its score is above 0, or is not."""

    file: str
    row: int
    query: str
    document: str
    score: float


@dataclass
class Judged:
    """A search of which is known what is to be found: texts, judgements, and the judgements that cannot be used."""

    corpus: Texts
    queries: Texts
    judgements: list[Judgement] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def read_judged(rows: Iterable[Chunk], corpus: Texts, queries: Texts) -> Judged:
    """Judgements and their texts.

    Raises:
        MixtureError: a row has no column for the query or the document.
    """
    judged = Judged(corpus, queries)
    for chunk in rows:
        judged.rejects += chunk.rejects
        for row, record in zip(chunk.rows.tolist(), _records(chunk), strict=True):
            query = next((record[name] for name in QUERY_IDS if name in record), None)
            document = next((record[name] for name in DOCUMENT_IDS if name in record), None)
            if query is None or document is None:
                raise MixtureError(
                    f"{chunk.file} must have columns query-id, corpus-id and perhaps score, got {', '.join(record)}"
                )
            given = next((record[name] for name in _SCORES if name in record), 1)
            score = parse_number(str(given))
            if score is None or not math.isfinite(score):
                judged.rejects.append(Reject(chunk.file, row, "score: not a number", excerpt(given)))
            elif str(query) not in queries.found or str(document) not in corpus.found:
                missing = f"query {query}" if str(query) not in queries.found else f"document {document}"
                judged.rejects.append(Reject(chunk.file, row, UNKNOWN, missing))
            else:
                judged.judgements.append(Judgement(chunk.file, row, str(query), str(document), score))
    return judged


def with_texts(spec: DatasetSpec, rows: Iterator[Chunk], corpus: Texts, queries: Texts | None) -> Iterator[Chunk]:
    """Rows by id as rows of texts; judgements as a row for each positive one.

    Raises:
        MixtureError: the rows have no column for a role.
    """
    rejects = [*corpus.rejects, *(queries.rejects if queries else [])]
    for chunk in rows:
        if not len(chunk.rows):
            rejects += chunk.rejects
            continue
        present = _columns(chunk)
        rows = chain([chunk], rows)
        if queries is not None and names_ids(present) == "judgements":
            yield from _pairs(read_judged(rows, corpus, queries), rejects)
            return
        for part in rows:
            yield _replaced(spec, part, corpus, queries, [*rejects, *part.rejects])
            rejects = []
        return
    yield Chunk("", np.array([], dtype=np.int64), [], rejects)


def _columns(chunk: Chunk) -> list[str]:
    if isinstance(chunk.records, pa.Table):
        return list(chunk.records.column_names)
    return list(dict.fromkeys(name for record in chunk.records for name in record))


def _pairs(judged: Judged, rejects: list[Reject]) -> Iterator[Chunk]:
    """A row for each positive judgement; documents judged 0 for the query are its negatives."""
    corpus, queries, rejects = judged.corpus.found, judged.queries.found, [*rejects, *judged.rejects]
    negatives: dict[str, list[str]] = {}
    for one in judged.judgements:
        if one.score <= 0:
            negatives.setdefault(one.query, []).append(corpus[one.document])
    good = [one for one in judged.judgements if one.score > 0]
    asked = {one.query for one in good}
    used = sum(len(texts) for query, texts in negatives.items() if query in asked)
    against = len(judged.judgements) - len(good)
    left_out = {"judged 0: a negative of its query": used, "judged 0, of no positive's query": against - used}
    for file, of_file in groupby(good, key=lambda one: one.file):
        found = list(of_file)
        for start in range(0, len(found), chunks.CHUNK_ROWS):
            part = found[start : start + chunks.CHUNK_ROWS]
            texts = [(queries[one.query], corpus[one.document], negatives.get(one.query, [])) for one in part]
            records: list[Record] = [{"query": q, "positive": p, "negative": n} for q, p, n in texts]
            yield Chunk(file, np.array([one.row for one in part], dtype=np.int64), records, rejects, left_out)
            rejects, left_out = [], {}
    if not good:
        yield Chunk("", np.array([], dtype=np.int64), [], rejects, left_out)


def _replaced(spec: DatasetSpec, chunk: Chunk, corpus: Texts, queries: Texts | None, rejects: list[Reject]) -> Chunk:
    """The chunk with texts in place of the ids of its documents and, where there are queries, of these."""
    if not len(chunk.rows):
        return Chunk(chunk.file, chunk.rows, [], rejects)
    names = {name: name for name in _columns(chunk)}
    if names_ids(list(names)) == "lists":
        names |= {name: LISTED_IDS[name] for name in names if name in LISTED_IDS}
    if queries is not None and "query" not in spec.columns:
        key = next((name for name in QUERY_IDS if name in names), None)
        names |= {} if key is None else {key: "query"}
    roles = find_columns(spec, list(dict.fromkeys(names.values())), chunk.file)
    documents = {name for role, name in roles.items() if role.partition("_")[0] in ("positive", "negative")}
    records, kept = [], np.ones(len(chunk.rows), dtype=bool)
    for place, given in enumerate(_records(chunk)):
        record = {new: given[name] for name, new in names.items() if name in given}
        try:
            if queries is not None:
                record[roles["query"]] = _text(record.get(roles["query"]), queries.found, "query")
            for name in documents & record.keys():
                cell = record[name]
                if isinstance(cell, list):
                    record[name] = [_text(one, corpus.found, "document") for one in cell]
                else:
                    record[name] = _text(cell, corpus.found, "document")
            records.append(record)
        except KeyError as error:
            rejects.append(Reject(chunk.file, int(chunk.rows[place]), UNKNOWN, excerpt(str(error.args[0]))))
            kept[place] = False
    return Chunk(chunk.file, chunk.rows[kept], records, rejects, chunk.left_out)


def _text(cell: object, texts: dict[str, str], what: str) -> object:
    """The text that a cell names, or holds itself; what is no id stays as it is, and is rejected where it is read.

    Raises:
        KeyError: it names an unknown one.
    """
    key = cell
    if isinstance(cell, dict):
        if any(isinstance(cell.get(name), str) for name in TEXTS):
            return cell
        key = next((cell[name] for name in _IDS if name in cell), None)
    if not _is_id(key):
        return cell
    if str(key) not in texts:
        raise KeyError(f"{what} {key}")
    return texts[str(key)]
