"""Which column is what: the usual names of negatives, lists written as text, and columns that nothing uses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.data import chunks
from piccolo_st.data.strict import parse_list, parse_number
from piccolo_st.data.text_files import parse_json
from piccolo_st.errors import MixtureError
from tests.helpers.mixtures import jsonl, load


def _jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return jsonl(folder / "rows.jsonl", rows)


def _csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    with open(folder / "rows.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "rows.csv"


def _tsv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    lines = ["\t".join(cells) for cells in [list(rows[0]), *(row.values() for row in rows)]]
    (folder / "rows.tsv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "rows.tsv"


def _xlsx(folder: Path, rows: list[dict[str, Any]]) -> Path:
    book = pytest.importorskip("openpyxl").Workbook()
    for cells in [list(rows[0]), *(row.values() for row in rows)]:
        book.active.append([cell or None for cell in cells])
    book.save(folder / "rows.xlsx")
    return folder / "rows.xlsx"


def _parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


WRITERS = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}


@pytest.mark.parametrize("name", ["neg", "negs", "hard_neg", "hard_negs", "hard_negative", "hard_negatives"])
def test_negatives_are_found_by_their_usual_names(name: str, tmp_path: Path) -> None:
    mixture = load(_jsonl(tmp_path, [{"query": "问", "positive": "答", name: ["错", "误"]}]))
    assert list(mixture.train["faq"]) == [{"query": "问", "positive": "答", "negative": ["错", "误"]}]
    assert mixture.report.datasets["faq"].unused_columns == ()


@pytest.mark.parametrize("stem", ["negative_", "neg_", "neg", "hard_neg_", "hard_negative_"])
def test_numbered_negatives_are_taken_in_the_order_of_their_numbers(stem: str, tmp_path: Path) -> None:
    row = {"query": "问", "positive": "答", f"{stem}10": "丙", f"{stem}2": "乙", f"{stem}1": "甲"}
    mixture = load(_jsonl(tmp_path, [row]))
    expected = {"query": "问", "positive": "答", "negative_1": "甲", "negative_2": "乙", "negative_3": "丙"}
    assert list(mixture.train["faq"]) == [expected]


@pytest.mark.parametrize(
    ("column", "remedy"),
    [
        ("other_negatives", "columns: {negative: other_negatives}"),
        ("text_negative", "columns: {negative: text_negative}"),
        ("hardNegatives", "columns: {negative: hardNegatives}"),
        ("query_text", "columns: {query: query_text}"),
        ("pos_2", "columns: {positive: pos_2}"),
        ("label", "columns: {sentence1: query, sentence2: positive, label: label}"),
        ("score", "preset: {name: scored_pairs}"),
    ],
)
def test_an_unused_column_that_looks_like_a_role_is_asked_about(column: str, remedy: str, tmp_path: Path) -> None:
    source = _jsonl(tmp_path, [{"query": "问", "positive": "答", column: "1", "source": "x"}])
    (line,) = (line for line in str(load(source).report).splitlines() if "warning" in line)
    assert f"warning: faq: its column {column!r} looks like a" in line and f"`{remedy}`" in line
    assert f"faq: columns not used: {column}, source" in str(load(source).report)


def test_what_a_warning_says_to_set_can_be_set(tmp_path: Path) -> None:
    rows = [{"query": f"问{i}", "positive": f"答{i}", "other_negatives": ["错"], "label": i % 2} for i in range(4)]
    source = _jsonl(tmp_path, rows)
    assert load(source, columns={"negative": "other_negatives"}).train["faq"]["negative"] == [["错"]] * 4
    columns = {"sentence1": "query", "sentence2": "positive", "label": "label"}
    mixture = load(source, columns=columns, preset={"name": "scored_pairs"})
    assert mixture.train["faq"]["query"] == ["问1", "问3"]


@pytest.mark.parametrize("column", ["id", "position", "query_id", "pos_ids", "pos_scores", "neg_scores", "purpose"])
def test_other_unused_columns_are_listed_without_a_warning(column: str, tmp_path: Path) -> None:
    text = str(load(_jsonl(tmp_path, [{"query": "问", "positive": "答", column: "1"}])).report)
    assert "warning" not in text and f"columns not used: {column}" in text


LISTS = {
    "json": lambda texts: json.dumps(texts, ensure_ascii=False),
    "json, escaped": json.dumps,
    "python": repr,
    "numpy": lambda texts: str(np.array(texts, dtype=object)),
}


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("form", LISTS)
def test_lists_written_as_text_are_read_as_lists(form: str, file: str, tmp_path: Path) -> None:
    lists = [[f"错{i}", "it's", 'a "b"'][: 1 + i % 3] for i in range(6)] + [[]]
    written = [{"query": f"问{i}", "positive": f"答{i}", "neg": LISTS[form](one)} for i, one in enumerate(lists)]
    mixture = load(WRITERS[file](tmp_path, written))
    assert mixture.train["faq"]["negative"] == lists
    assert "faq: lists written as text, read as lists: neg" in str(mixture.report)
    positives = [{"query": f"问{i}", "positive": LISTS[form]([f"甲{i}", f"乙{i}"])} for i in range(3)]
    mixture = load(WRITERS[file](tmp_path, positives))
    assert mixture.train["faq"]["positive"] == ["甲0", "乙0", "甲1", "乙1", "甲2", "乙2"]
    assert mixture.report.datasets["faq"].added == 3


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("chunk_rows", [1, 2, 100])
@pytest.mark.parametrize("turned", [False, True])
def test_a_list_written_as_text_among_other_text_is_a_fault(
    turned: bool, chunk_rows: int, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", chunk_rows)
    rows = [{"query": f"问{i}", "positive": f"答{i}", "neg": "[笑] [1]" if i else '["错", "误"]'} for i in range(5)]
    mixture = load(WRITERS[file](tmp_path, rows[::-1] if turned else rows))
    assert mixture.report.datasets["faq"].rejected == {"negative: a list written as text": 1}
    assert mixture.train["faq"]["negative"] == ["[笑] [1]"] * 4
    with pytest.raises(MixtureError, match=r"4 of the 5 rows .* \(4 negative: a list written as text\)"):
        load(WRITERS[file](tmp_path, [{**row, "neg": '["错"]' if i else "错"} for i, row in enumerate(rows)]))


_CELLS = st.one_of(st.sampled_from(["甲", "乙", "", '["丙", "丁"]', "['戊']", "[]", "[己]"]), st.none(),
                   st.lists(st.sampled_from(["庚", "辛"]), max_size=2, unique=True))  # fmt: skip
_ROWS = st.lists(st.fixed_dictionaries({"positive": _CELLS}, optional={"negative": _CELLS, "neg": _CELLS}), max_size=8)


@given(rows=_ROWS, order=st.randoms(use_true_random=False), chunk_rows=st.sampled_from([1, 3]))
def test_what_a_column_is_does_not_depend_on_the_order_of_the_rows(
    rows: list[dict[str, Any]], order: Any, chunk_rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # One row that is kept whatever the others make of the columns: all its positives are lists, or none is.
    rows = [{"query": f"问{i}", **row} for i, row in enumerate(rows)]
    rows += [{"query": "好", "positive": "行"}, {"query": "坏", "positive": '["行"]'}]
    found = []
    before = chunks.CHUNK_ROWS
    for given_rows, size in ((rows, 1000), (rows, chunk_rows), (order.sample(rows, len(rows)), chunk_rows)):
        chunks.CHUNK_ROWS = size
        try:
            mixture = load(_jsonl(tmp_path_factory.mktemp("order"), given_rows), max_rejected=1)
        finally:
            chunks.CHUNK_ROWS = before
        report = mixture.report.datasets["faq"]
        found.append((sorted(map(repr, mixture.train["faq"])), report.rejected, report.removed))
    assert found[0] == found[1]
    assert found[0][0] == found[2][0]
    assert sum(found[0][1].values()) == sum(found[2][1].values())


def test_a_column_that_begins_after_the_first_rows_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 2)
    rows: list[dict[str, Any]] = [{"query": f"问{i}", "positive": f"答{i}"} for i in range(5)]
    mixture = load(_jsonl(tmp_path, [*rows, {"query": "问", "positive": "答", "negative": ["错"]}]))
    assert mixture.train["faq"]["negative"] == [[], [], [], [], [], ["错"]]


def test_parquet_negatives_with_nulls_keep_their_rows(tmp_path: Path) -> None:
    rows = [{"query": f"问{i}", "positive": f"答{i}", "negative": None if i % 2 else "错"} for i in range(4)]
    assert load(_parquet(tmp_path, rows)).train["faq"]["negative"] == [["错"], [], ["错"], []]


@pytest.mark.parametrize(("name", "columns"), [("negative", {}), ("hard_neg", {}), ("反例", {"negative": "反例"})])
@pytest.mark.parametrize("write", [_csv, _tsv, _xlsx])
def test_an_empty_negative_is_none_where_null_cannot_be_written(
    write: Callable[[Path, list[dict[str, Any]]], Path], name: str, columns: dict[str, str], tmp_path: Path
) -> None:
    rows = [{"query": f"问{i}", "positive": f"答{i}", name: "" if i % 2 else "错"} for i in range(4)]
    mixture = load(write(tmp_path, [*rows, {"query": "问", "positive": "", name: "错"}]), columns=columns)
    assert mixture.train["faq"]["negative"] == [["错"], [], ["错"], []]
    report = mixture.report.datasets["faq"]
    assert (report.rejected, report.removed) == ({"positive: empty": 1}, {})


@pytest.mark.parametrize("score", ["0_1", "１", "0.５", "1_000", "", "one", "0x1"])
def test_only_ascii_digits_make_a_score(score: str, tmp_path: Path) -> None:
    rows = [{"sentence1": f"甲{i}", "sentence2": f"乙{i}", "score": "1" if i else score} for i in range(3)]
    mixture = load(_jsonl(tmp_path, rows), "sts")
    assert mixture.report.datasets["faq"].rejected == {"label: not a number": 1}
    assert mixture.train["faq"]["label"] == [1.0, 1.0]
    assert [parse_number(text) for text in ("1", " 0.5 ", "-1e-3", "+2.")] == [1.0, 0.5, -0.001, 2.0]


@pytest.mark.parametrize(
    "row",
    [
        '{"query": "问", "query": "题", "positive": "答"}',
        '{"query" : "问", "query":"题", "positive": "答"}',
        '{"query"\t:"问", "positive": "答", "query": "\\":"}',
        '{"query":"问","positive":"答","query":"问"}',
    ],
)
@pytest.mark.parametrize("array", [False, True])
def test_a_key_twice_is_a_fault(array: bool, row: str, tmp_path: Path) -> None:
    good = ['{"query": "a", "positive": "b: \\"c\\": d"}', '{"query" : "a", "positive": "b", "meta": {"query": 1}}']
    text = f"[{good[0]},\n{row},\n{good[1]}]" if array else "\n".join([good[0], row, good[1]])
    (tmp_path / ("rows.json" if array else "rows.jsonl")).write_text(text, encoding="utf-8")
    mixture = load(tmp_path / ("rows.json" if array else "rows.jsonl"))
    report = mixture.report.datasets["faq"]
    assert report.rejected == {"a key twice": 1} and report.kept == 2
    assert json.loads(report.rejects_path.read_text(encoding="utf-8"))["row"] == 2


_JSON = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a":{}\\ ,'), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.sampled_from('ab":'), max_size=2), inner),
    max_leaves=8,
)


@given(value=_JSON, separator=st.sampled_from([":", ": ", " :", "\t:\n"]))
def test_json_without_a_key_twice_is_what_json_says(value: Any, separator: str) -> None:
    text = json.dumps(value, separators=(",", separator))
    assert parse_json(text) == json.loads(text)


@given(st.lists(st.text(st.sampled_from("甲a'\"\\[], \n"), max_size=6), max_size=4))
def test_written_lists_come_back(texts: list[str]) -> None:
    assert parse_list(json.dumps(texts)) == parse_list(repr(texts)) == texts


@pytest.mark.parametrize("text", ["[1]", "[笑]", "[1, 'a']", "['a'] and ['b']", "a", "[", "[]]", "['a' + 'b']"])
def test_other_texts_are_no_lists(text: str) -> None:
    assert parse_list(text) is None
