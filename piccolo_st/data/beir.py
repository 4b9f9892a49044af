"""The BEIR layout: corpus.jsonl and queries.jsonl (``_id``, ``text``, perhaps ``title``), and qrels as a TSV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from piccolo_st.data import chunks
from piccolo_st.data.chunks import Chunk, Reject, excerpt
from piccolo_st.data.shapes import titled
from piccolo_st.data.strict import parse_number
from piccolo_st.data.text_files import read_delimited, read_jsonl
from piccolo_st.errors import MixtureError


def read_texts(path: Path) -> tuple[dict[str, str], list[Reject]]:
    """Id -> text (title and text joined by a space), and the lines that could not be used."""
    texts: dict[str, str] = {}
    rejects: list[Reject] = []
    for item in read_jsonl(path):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        row, record = item
        key, text = record.get("_id"), record.get("text")
        if not isinstance(key, str | int) or not isinstance(text, str):
            rejects.append(Reject(str(path), row, "no _id or text", excerpt(record)))
        elif str(key) in texts:
            rejects.append(Reject(str(path), row, "an _id twice", excerpt(key)))
        else:
            texts[str(key)] = titled(record.get("title"), text)
    return texts, rejects


def read_qrels(path: Path) -> tuple[list[tuple[int, str, str, float]], list[Reject]]:
    """(row, query id, document id, score) of each judgement, and the lines that could not be used.

    Raises:
        MixtureError: the header is not query-id, corpus-id, score.
    """
    judgements: list[tuple[int, str, str, float]] = []
    rejects: list[Reject] = []
    for item in read_delimited(path, "\t"):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        row, record = item
        if not {"query-id", "corpus-id", "score"} <= record.keys():
            raise MixtureError(
                f"{path} must begin with the line query-id TAB corpus-id TAB score, got the columns {', '.join(record)}"
            )
        score = parse_number(str(record["score"]))
        if score is None or not math.isfinite(score):
            rejects.append(Reject(str(path), row, "score: not a number", excerpt(record["score"])))
        else:
            judgements.append((row, str(record["query-id"]), str(record["corpus-id"]), score))
    return judgements, rejects


def read_beir_pairs(files: tuple[Path, ...]) -> Iterator[Chunk]:
    """A row for each positive judgement; documents judged 0 for the query are its negatives."""
    corpus, corpus_rejects = read_texts(files[0])
    queries, query_rejects = read_texts(files[1])
    judgements, rejects = read_qrels(files[2])
    negatives: dict[str, list[str]] = {}
    good, against = [], []
    for row, query, document, score in judgements:
        if query not in queries or document not in corpus:
            missing = f"query {query}" if query not in queries else f"document {document}"
            rejects.append(Reject(str(files[2]), row, "judges an unknown id", missing))
        elif score > 0:
            good.append((row, query, document))
        else:
            negatives.setdefault(query, []).append(corpus[document])
            against.append(query)
    rejects = [*corpus_rejects, *query_rejects, *rejects]
    asked = {query for _, query, _ in good}
    used = sum(query in asked for query in against)
    left_out = {"judged 0: a negative of its query": used, "judged 0, of no positive's query": len(against) - used}
    for start in range(0, max(len(good), 1), chunks.CHUNK_ROWS):
        part = good[start : start + chunks.CHUNK_ROWS]
        records = [{"query": queries[q], "positive": corpus[d], "negative": negatives.get(q, [])} for _, q, d in part]
        yield Chunk(str(files[2]), np.array([row for row, _, _ in part], dtype=np.int64), records, rejects, left_out)
        rejects, left_out = [], {}
