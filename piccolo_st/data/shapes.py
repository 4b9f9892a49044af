"""Shapes of peers' data: what stands inside passages, messages, labelled lists and whole documents, as texts.

(1) ``SHAPES`` lists the shapes that are read as they are, and what of each becomes a query, a positive, a negative;
(2) ``unfold`` makes the cells of a chunk plain: a passage its title and text, a conversation what is said in it,
    texts with a label each those of label 1 and those of label 0;
(3) ``rows_of`` makes rows of a JSON file that holds one object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from piccolo_st.data.chunks import Chunk, Record, Reject, excerpt
from piccolo_st.data.columns import is_list


@dataclass(frozen=True)
class Shape:
    """A shape of a row, or of a file.

    Attributes:
        whose: the projects or data sets that have it.
        row: what it looks like.
        query, positive, negative: where in it the texts of each role stand; empty where it has none.
    """

    whose: str
    row: str
    query: str
    positive: str
    negative: str = ""


SHAPES = (
    Shape("FlagEmbedding (BGE), KaLM", '{"query": "", "pos": [""], "neg": [""]}', "query", "pos", "neg"),
    Shape("sentence-transformers: triplets", '{"anchor": "", "positive": "", "negative": ""}', "anchor", "positive",
          "negative"),
    Shape("sentence-transformers: n-tuples", '{"anchor": "", "positive": "", "negative_1": "", "negative_2": ""}',
          "anchor", "positive", "negative_1, negative_2, …"),
    Shape("sentence-transformers: labeled-list", '{"query": "", "docs": [""], "labels": [1, 0]}', "query",
          "docs of label 1", "docs of label 0"),
    Shape("uniem (M3E)", '{"text": "", "text_pos": "", "text_neg": ""}', "text", "text_pos", "text_neg"),
    Shape("tevatron 1", '{"query": "", "positive_passages": [{"title": "", "text": ""}], "negative_passages": []}',
          "query", "positive_passages", "negative_passages"),
    Shape("ms-swift", '{"messages": [{"role": "user", "content": ""}], "positive_messages": [[{}]], '
          '"negative_messages": [[{}]]}', "messages", "positive_messages", "negative_messages"),
    Shape("ms-swift 3.5 and before", '{"query": "", "response": "", "rejected_response": [""]}', "query", "response",
          "rejected_response"),
    Shape("DuReader-retrieval", '{"question": "", "answer_paragraphs": [{"paragraph_text": ""}]}', "question",
          "answer_paragraphs"),
    Shape("NeMo", '{"query": "", "pos_doc": "", "neg_doc": [""]}', "query", "pos_doc", "neg_doc"),
    Shape("LlamaIndex", '{"queries": {}, "corpus": {}, "relevant_docs": {}}', "queries", "the corpus by relevant_docs"),
    Shape("SQuAD, CMRC, DRCD", '{"data": [{"paragraphs": [{"context": "", "qas": [{"question": ""}]}]}]}', "question",
          "context"),
    Shape("any JSON file with its rows under `data`", '{"data": [{"query": "", "positive": ""}]}', "as its rows have",
          "as its rows have", "as its rows have"),
)  # fmt: skip

# Where a record keeps its text, in the order in which they are looked for.
TEXTS = ("text", "paragraph_text", "content")
_LABELS, _LISTED = "labels", ("positive", "positives", "docs", "documents")
NOT_LABELLED = f"{_LABELS}: not one 0 or 1 for each text of the list"


def titled(title: object, text: str) -> str:
    """A passage as it is searched for: its title, if it has one, and its text."""
    return f"{title} {text}" if isinstance(title, str) and title.strip() else text


def plain(cell: object) -> object:
    """The text or texts of a cell that holds passages or messages; any other cell as it is."""
    if isinstance(cell, dict):
        text = next((cell[key] for key in TEXTS if isinstance(cell.get(key), str)), None)
        return cell if text is None else titled(cell.get("title"), text)
    if not isinstance(cell, list) or not cell or isinstance(cell[0], str):
        return cell
    if (said := _said(cell)) is not None:
        return said
    if isinstance(cell[0], list):  # conversations; one alone is one text
        texts = [_said(item) for item in cell]
        return texts[0] if len(texts) == 1 else texts
    return [plain(item) if isinstance(item, dict) else item for item in cell]


def _said(cell: object) -> str | None:
    """What is said in a conversation, a line a message; None where it is none."""
    if not isinstance(cell, list) or not cell or not all(isinstance(item, dict) and "role" in item for item in cell):
        return None
    said = [item.get("content") for item in cell]
    return "\n".join(said) if all(isinstance(one, str) for one in said) else None


def unfold(chunk: Chunk, columns: Set[str], labelled: bool, scores: str | None = None) -> Chunk:
    """The chunk with texts in place of what holds them.

    Args:
        chunk: raw rows.
        columns: those that may play a role; the others stay as they are.
        labelled: whether texts may have a label each, and no column is named for the labels.
        scores: the column of a teacher's scores of these texts.
    """
    records = chunk.records
    if isinstance(records, pa.Table):
        kinds = {field.name: field.type for field in records.schema}
        labelled = labelled and _LABELS in kinds and is_list(kinds[_LABELS])
        if not labelled and not any(name in columns and _is_nested(kind) for name, kind in kinds.items()):
            return chunk
        empty = dict.fromkeys(kinds)  # the other columns stay known, and their cells unread
        wanted = records.select([name for name in kinds if name in columns or name == _LABELS])
        records = [empty | record for record in wanted.to_pylist()]
    unfolded, rejects, kept = [], list(chunk.rejects), np.ones(len(records), dtype=bool)
    for place, record in enumerate(records):
        for name in columns & record.keys():
            if type(record[name]) is not str:
                record[name] = plain(record[name])
        if labelled and isinstance(record.get(_LABELS), list) and not _split(record, scores):
            rejects.append(Reject(chunk.file, int(chunk.rows[place]), NOT_LABELLED, excerpt(record)))
            kept[place] = False
        else:
            unfolded.append(record)
    return dataclasses.replace(chunk, rows=chunk.rows[kept], records=unfolded, rejects=rejects)


def _is_nested(kind: pa.DataType) -> bool:
    """Whether a type holds records."""
    return _is_nested(kind.value_type) if is_list(kind) else pa.types.is_struct(kind)


def _split(row: Record, scores: str | None) -> bool:
    """Put the texts of label 0 among the negatives, their scores last; whether there is one 0 or 1 for each text."""
    column = next((name for name in _LISTED if isinstance(row.get(name), list)), None)
    if column is None or "negative" in row:
        return True
    texts, labels = row[column], row[_LABELS]
    assert isinstance(texts, list) and isinstance(labels, list)
    if len(texts) != len(labels) or not all(type(label) in (int, float) and label in (0, 1) for label in labels):
        return False
    del row[_LABELS]
    if scores is not None and isinstance(found := row.get(scores), list) and len(found) == len(labels):
        row[scores] = [found[place] for place in sorted(range(len(labels)), key=lambda place: not labels[place])]
    row[column] = [text for text, label in zip(texts, labels, strict=True) if label]
    row["negative"] = [text for text, label in zip(texts, labels, strict=True) if not label]
    return True


def rows_of(content: object) -> list[object]:
    """The rows of a JSON file: a list of them, or an object of a known shape.

    Raises:
        OSError: neither.
    """
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        parts = [content.get(name) for name in ("queries", "corpus", "relevant_docs")]
        if all(isinstance(part, dict) for part in parts):
            return list(_related(*parts))  # type: ignore[arg-type]
        data = content.get("data")
        if isinstance(data, list):
            return list(_questions(data)) if any(isinstance(i, dict) and "paragraphs" in i for i in data) else data
    raise OSError(f"it must hold a list of objects, got {type(content).__name__}")


def _related(
    queries: Mapping[str, object], corpus: Mapping[str, object], relevant: Mapping[str, object]
) -> Iterator[object]:
    for key, query in queries.items():
        ids = relevant.get(key)
        found = [plain(corpus.get(i)) if isinstance(i, str) else None for i in ids] if isinstance(ids, list) else []
        yield {"query": plain(query), "positive": found}


def _questions(articles: list[object]) -> Iterator[object]:
    """A row for each question, with its paragraph; what is no question stays a row, and is rejected as one."""
    for article in articles:
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        for paragraph in paragraphs if isinstance(paragraphs, list) else [article]:
            asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(paragraph, dict) or not isinstance(asked, list):
                yield paragraph
                continue
            for question in asked:
                unanswered = not isinstance(question, dict) or question.get("is_impossible") is True
                context = None if unanswered else paragraph.get("context")
                yield {"query": question.get("question") if isinstance(question, dict) else None, "positive": context}
