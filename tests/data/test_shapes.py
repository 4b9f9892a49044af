"""Each shape of peers' data is read as it is: a sample in its project's own form, as JSON lines, Parquet or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.data.shapes import NOT_LABELLED, SHAPES, plain, rows_of
from tests.helpers.mixtures import jsonl, load

Q, P, N, M = "天空为什么是蓝的", "瑞利散射使短波长的光散开", "海水是咸的", "雪是白的"
PASSAGE = {"docid": "1", "title": "光学", "text": P}

# Shape -> a row in the form of its project's documentation or code, and the rows that are trained on.
ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "FlagEmbedding (BGE), KaLM": (
        {"query": Q, "pos": [P], "neg": [N, M], "pos_scores": [0.9], "neg_scores": [0.2, 0.1], "prompt": "查："},
        [{"query": Q, "positive": P, "negative": [N, M]}],
    ),
    "sentence-transformers: triplets": (
        {"anchor": Q, "positive": P, "negative": N}, [{"query": Q, "positive": P, "negative": N}],
    ),
    "sentence-transformers: n-tuples": (
        {"anchor": Q, "positive": P, "negative_1": N, "negative_2": M},
        [{"query": Q, "positive": P, "negative_1": N, "negative_2": M}],
    ),
    "sentence-transformers: labeled-list": (
        {"query": Q, "docs": [N, P, M], "labels": [0, 1, 0]}, [{"query": Q, "positive": P, "negative": [N, M]}],
    ),
    "uniem (M3E)": ({"text": Q, "text_pos": P, "text_neg": N}, [{"query": Q, "positive": P, "negative": N}]),
    "tevatron 1": (
        {"query_id": "7", "query": Q, "positive_passages": [PASSAGE, {"docid": "4", "title": "", "text": M}],
         "negative_passages": [{"docid": "2", "title": "", "text": N}]},
        [{"query": Q, "positive": f"光学 {P}", "negative": [N]}, {"query": Q, "positive": M, "negative": [N]}],
    ),
    "ms-swift": (
        {"messages": [{"role": "user", "content": Q}], "positive_messages": [[{"role": "user", "content": P}]],
         "negative_messages": [[{"role": "user", "content": N}], [{"role": "user", "content": M}]]},
        [{"query": Q, "positive": P, "negative": [N, M]}],
    ),
    "ms-swift 3.5 and before": (
        {"query": Q, "response": P, "rejected_response": [N, M]}, [{"query": Q, "positive": P, "negative": [N, M]}],
    ),
    "DuReader-retrieval": (
        {"question_id": "3", "question": Q, "answer_paragraphs": [{"paragraph_id": "9", "paragraph_text": P}]},
        [{"query": Q, "positive": P}],
    ),
    "NeMo": ({"query": Q, "pos_doc": P, "neg_doc": [N, M]}, [{"query": Q, "positive": P, "negative": [N, M]}]),
}  # fmt: skip

# Shape -> a file of one object.
FILES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "LlamaIndex": (
        {"queries": {"q1": Q, "q2": N}, "corpus": {"d1": P, "d2": M},
         "relevant_docs": {"q1": ["d1", "d2"], "q2": ["x"]}, "mode": "text"},
        [{"query": Q, "positive": P}, {"query": Q, "positive": M}],
    ),
    "SQuAD, CMRC, DRCD": (
        {"version": "v1.0", "data": [{"title": "光学", "paragraphs": [
            {"context": P, "id": "c", "qas": [
                {"question": Q, "id": "c0", "answers": [{"text": "散射", "answer_start": 2}]},
                {"question": N, "id": "c1", "answers": [], "is_impossible": True},
            ]}]}]},
        [{"query": Q, "positive": P}],
    ),
    "any JSON file with its rows under `data`": (
        {"data": [{"query": Q, "positive": P}]}, [{"query": Q, "positive": P}],
    ),
}  # fmt: skip


def test_every_shape_of_the_table_is_tried() -> None:
    assert [shape.whose for shape in SHAPES] == [*ROWS, *FILES]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("shape", ROWS)
def test_rows_are_read_as_they_are(shape: str, form: str, tmp_path: Path) -> None:
    row, expected = ROWS[shape]
    path = tmp_path / f"rows.{form}"
    if form == "jsonl":
        jsonl(path, [row])
    elif form == "json":
        path.write_text(json.dumps([row], ensure_ascii=False), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    mixture = load(path)
    assert list(mixture.train["faq"]) == expected
    report = mixture.report.datasets["faq"]
    assert not report.rejected and not report.removed and not report.warnings


@pytest.mark.parametrize("shape", FILES)
def test_files_of_one_object_are_read_as_they_are(shape: str, tmp_path: Path) -> None:
    content, expected = FILES[shape]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    mixture = load(path)
    report = mixture.report.datasets["faq"]
    assert list(mixture.train["faq"]) == expected
    assert report.rows + report.added == report.kept + sum(report.rejected.values())


def test_scored_messages_are_pairs_with_a_score(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": Q}], "positive_messages": [[{"role": "user", "content": P}]]}
    columns = {"sentence1": "messages", "sentence2": "positive_messages"}
    mixture = load(jsonl(tmp_path / "rows.jsonl", [{**row, "label": 1}]), "sts", columns=columns)
    assert list(mixture.train["faq"]) == [{"sentence1": Q, "sentence2": P, "label": 1.0}]


@pytest.mark.parametrize("labels", [[1], [1, 0, 1], [0.5, 0], ["1", "0"], [True, False]])
def test_labels_that_do_not_fit_their_list_are_a_fault_of_their_row(labels: list[Any], tmp_path: Path) -> None:
    rows = [{"query": Q, "docs": [P, N], "labels": [1, 0]}, {"query": M, "docs": [P, N], "labels": labels}]
    report = load(jsonl(tmp_path / "rows.jsonl", rows)).report.datasets["faq"]
    assert report.rejected == {NOT_LABELLED: 1} and report.kept == 1


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "title", "role", "content", "data", "paragraphs", "qas"]), inner)
    ),
    max_leaves=8,
)


@given(CELLS)
def test_any_cell_is_made_plain_or_left(cell: object) -> None:
    once = plain(cell)
    assert not isinstance(cell, str) or once == cell
    try:
        assert isinstance(rows_of(cell), list)
    except OSError as error:
        assert "must hold a list of objects" in str(error)
