"""Planted faults are all found, in their file and row; good rows are all kept; the counts add up."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.data import Mixture, chunks
from piccolo_st.errors import MixtureError
from tests.helpers.mixtures import load

GOOD = {"query": "今天的天气", "positive": "今天是晴天", "negative": ["明天有雨"]}


def _line(**changes: Any) -> bytes:
    row = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    return json.dumps(row).encode()


# name of the fault -> the line, and what must be said of it. Every one stands among good rows.
RETRIEVAL_FAULTS: dict[str, tuple[bytes, str]] = {
    "broken JSON": (b'{"query": "a", ', "not valid JSON"),
    "two objects on a line": (_line() + _line(), "not valid JSON"),
    "not an object": (b'["a", "b"]', "not a JSON object"),
    "not UTF-8": ('{"query": "天气", "positive": "晴"}'.encode("gbk"), "not UTF-8"),
    "missing column": (_line(positive=...), "positive: missing column"),
    "null": (_line(query=None), "query: null"),
    "a number for a text": (_line(query=12), "query: wrong type"),
    "a mapping for a text": (_line(positive={"a": "b"}), "positive: wrong type"),
    "a list for a text": (_line(query=["a", "b"]), "query: wrong type"),
    "true for a text": (_line(query=True), "query: wrong type"),
    "empty": (_line(query=""), "query: empty"),
    "only spaces": (_line(positive="  \t\n"), "positive: only whitespace or invisible characters"),
    "only ideographic spaces": (_line(positive="\u3000\u3000"), "positive: only whitespace or invisible characters"),
    "only zero-width characters": (_line(query="\u200b\ufeff"), "query: only whitespace or invisible characters"),
    "positive is the query": (_line(positive="今天的天气"), "positive: equal to the query"),
    "positive is the query but for spaces": (_line(positive=" 今天的天气 "), "positive: equal to the query"),
    "replacement character": (_line(query="今天\ufffd天气"), "query: replacement character U+FFFD"),
    "mojibake: UTF-8 as Windows-1252": (_line(query="å¤©æ°”å¥½"), "query: mojibake"),
    "mojibake: broken GBK": (_line(query="锟斤拷锟斤拷"), "query: mojibake"),
    "mojibake: uninitialized memory": (_line(query="烫烫烫烫"), "query: mojibake"),
    "half a surrogate pair": (_line().replace(b"\\u4eca\\u5929\\u7684", b"\\ud83d", 1), "query: broken encoding"),
    "null character": (_line(query="今天\x00天气"), "query: control character"),
    "escape character": (_line(positive="今天\x1b[31m"), "positive: control character"),
    "C1 control character": (_line(query="今天\x85天气"), "query: control character"),
    "noncharacter": (_line(query="今天\uffff天气"), "query: control character"),
    "too long": (_line(positive="长" * 501), "positive: longer than max_characters"),
    "too short": (_line(query="短"), "query: shorter than min_characters"),
    "negatives a number": (_line(negative=7), "negative: wrong type"),
}  # fmt: skip

# Faults of single items of a list: the item goes, the row stays.
ITEM_FAULTS: dict[str, tuple[list[Any], str]] = {
    "negative is the positive": (["今天是晴天", "明天有雨"], "negative: equal to the positive"),
    "negative is the query": (["今天的天气", "明天有雨"], "negative: equal to the query"),
    "negative twice": (["明天有雨", "明天有雨"], "negative: twice in the list"),
    "negative empty": (["", "明天有雨"], "negative: empty"),
    "negative null": ([None, "明天有雨"], "negative: null or not text"),
    "negative a number": ([3, "明天有雨"], "negative: null or not text"),
    "negative with a control character": (["雨\x07", "明天有雨"], "negative: control character"),
}

SCORE_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "score too high": ({"label": 5.5}, "label: out of range 0..5"),
    "score negative": ({"label": -0.1}, "label: out of range 0..5"),
    "score not a number": ({"label": "high"}, "label: not a number"),
    "score NaN": ({"label": float("nan")}, "label: not finite"),
    "score infinite": ({"label": float("inf")}, "label: not finite"),
    "score null": ({"label": None}, "label: null"),
    "score missing": ({"label": ...}, "label: missing column"),
    "score a list": ({"label": [1]}, "label: wrong type"),
    "score true": ({"label": True}, "label: wrong type"),
    "equal sentences, low score": (
        {"sentence2": "天气好", "label": 0.5},
        "label: in the lower half for equal sentences",
    ),
}


def _load(tmp_path: Path, lines: list[bytes], **settings: Any) -> tuple[Mixture, list[dict[str, Any]]]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    mixture = load(path, **{"max_rejected": 1.0, **settings})
    rejects = mixture.report.datasets["faq"].rejects_path.read_text(encoding="utf-8").splitlines()
    return mixture, [json.loads(line) for line in rejects]


def test_faulty_rows_are_all_found_and_no_other(tmp_path: Path) -> None:
    lines = [_line()]
    for line, _ in RETRIEVAL_FAULTS.values():
        lines += [line, _line()]
    mixture, rejects = _load(tmp_path, lines, min_characters=2, max_characters=500)
    found = sorted((reject["row"], reject["reason"], reject["action"]) for reject in rejects)
    reasons = [reason for _, reason in RETRIEVAL_FAULTS.values()]
    assert found == [(2 + 2 * number, reason, "row rejected") for number, reason in enumerate(reasons)]
    assert all(reject["file"].endswith("rows.jsonl") and reject["excerpt"] for reject in rejects)
    assert list(mixture.train["faq"]) == [GOOD] * (1 + len(RETRIEVAL_FAULTS))
    report = mixture.report.datasets["faq"]
    assert report.rows == report.kept + sum(report.rejected.values()) == len(lines)


def test_faulty_items_go_and_their_rows_stay(tmp_path: Path) -> None:
    mixture, rejects = _load(tmp_path, [_line(negative=negatives) for negatives, _ in ITEM_FAULTS.values()])
    expected = [(row, reason) for row, (_, reason) in enumerate(ITEM_FAULTS.values(), start=1)]
    assert [(r["row"], r["reason"]) for r in rejects if r["action"] == "item removed"] == expected
    assert len(rejects) == len(expected)
    assert list(mixture.train["faq"]) == [GOOD] * len(ITEM_FAULTS)
    assert mixture.report.datasets["faq"].removed == Counter(reason for _, reason in ITEM_FAULTS.values())


def test_a_row_without_negatives_stays_where_others_have_some(tmp_path: Path) -> None:
    mixture, rejects = _load(tmp_path, [_line(), _line(negative=...), _line(negative=None), _line(negative=[])])
    assert not rejects
    assert mixture.train["faq"]["negative"] == [["明天有雨"], [], [], []]
    mixture, rejects = _load(tmp_path, [_line(negative="雨"), _line(negative=...), _line(negative=None)])
    assert not rejects
    assert mixture.train["faq"]["negative"] == [["雨"], [], []]


def test_a_row_goes_when_no_positive_is_left(tmp_path: Path) -> None:
    lines = [_line(positive=["今天是晴天", "今天的天气"]), _line(positive=["今天的天气", ""]), _line(positive=[])]
    mixture, rejects = _load(tmp_path, lines)
    assert mixture.train["faq"]["positive"] == ["今天是晴天"]
    reasons = [(r["row"], r["reason"]) for r in rejects if r["action"] == "row rejected"]
    emptied = "positive: no text is left in the list (equal to the query)"
    assert reasons == [(2, emptied), (3, "positive: an empty list")]


def test_faulty_scores_are_found(tmp_path: Path) -> None:
    good = {"sentence1": "天气好", "sentence2": "晴天", "label": 4}
    rows = [{k: v for k, v in {**good, **changes}.items() if v is not ...} for changes, _ in SCORE_FAULTS.values()]
    mixture, rejects = _load(
        tmp_path, [json.dumps(row).encode() for row in (good, *rows)], task="sts", score_range=[0, 5]
    )
    expected = [(row, reason) for row, (_, reason) in enumerate(SCORE_FAULTS.values(), start=2)]
    assert [(r["row"], r["reason"]) for r in rejects] == expected
    assert mixture.train["faq"]["label"] == [pytest.approx(0.8)]


def test_a_pair_is_alike_or_not(tmp_path: Path) -> None:
    rows = [{"sentence1": "天气好", "sentence2": "晴天", "label": label} for label in (0, 1, 0.5)]
    _, rejects = _load(tmp_path, [json.dumps(row).encode() for row in rows], task="pair")
    assert [(r["row"], r["reason"]) for r in rejects] == [(3, "label: not 0 or 1")]


def test_a_label_must_be_known_and_of_a_fitting_type(tmp_path: Path) -> None:
    rows = [{"text": f"文本{i}", "label": label} for i, label in enumerate(["好", "坏", "奇", 1, 1.5, None, True, ""])]
    lines = [json.dumps(row).encode() for row in rows]
    mixture, rejects = _load(tmp_path, lines, task="classification", use="evaluate", labels=["好", "坏", 1])
    assert list(mixture.evaluation["faq"]) == [
        {"text": "文本0", "label": "好"}, {"text": "文本1", "label": "坏"}, {"text": "文本3", "label": "1"},
    ]  # fmt: skip
    assert [(r["row"], r["reason"]) for r in rejects] == [
        (3, "label: unknown label"), (5, "label: wrong type"), (6, "label: null"),
        (7, "label: wrong type"), (8, "label: empty"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"negative": "今天是晴天"}, "negative: equal to the positive"),
        ({"negative": "今天的天气"}, "negative: equal to the query"),
    ],
)
def test_the_only_negative_of_a_row_cannot_go_alone(columns: dict[str, str], reason: str, tmp_path: Path) -> None:
    mixture, rejects = _load(tmp_path, [_line(negative="明天有雨"), _line(**columns)])
    assert [(r["row"], r["reason"]) for r in rejects] == [(2, reason)]
    assert mixture.train["faq"]["negative"] == ["明天有雨"]


def test_texts_lose_the_whitespace_around_them_and_nothing_else(tmp_path: Path) -> None:
    mixture, rejects = _load(tmp_path, [_line(query=" \t今天 的\n天气\u3000\r\n", negative=["  雨 "])])
    assert not rejects
    assert mixture.train["faq"][0]["query"] == "今天 的\n天气"
    assert mixture.train["faq"][0]["negative"] == ["雨"]


@pytest.mark.parametrize(
    "text",
    ["锛子是工具", "café Ångström ñandú", "€100 — “引号”…", "emoji 😀👍🏽", "العربية עברית", "a\u200db", "𠮷野家"],
)
def test_uncommon_text_is_not_taken_for_broken(text: str, tmp_path: Path) -> None:
    mixture, rejects = _load(tmp_path, [_line(query=text)])
    assert not rejects
    assert mixture.train["faq"][0]["query"] == text


def test_columnar_sources_report_rows_by_number_over_row_groups(tmp_path: Path) -> None:
    queries = [f"问题{i}" for i in range(10)]
    queries[3], queries[8] = "", None
    table = pa.table({"query": queries, "positive": [f"回答{i}" for i in range(10)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    mixture = load(tmp_path / "a.parquet")
    rejects = [json.loads(line) for line in mixture.report.datasets["faq"].rejects_path.read_text().splitlines()]
    assert [(r["row"], r["reason"]) for r in rejects] == [(4, "query: empty"), (9, "query: null")]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pa.array([1, 2]),
            r"column 'query' of .*a\.parquet must hold text to be the query of dataset 'faq', got the type int64",
        ),
        (pa.array([["faq"], ["b"]]), r"must hold text to be the query of dataset 'faq', got the type list<.*>"),
    ],
)
def test_a_columnar_source_of_the_wrong_type_is_an_error_of_the_dataset(
    column: pa.Array, message: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"query": column, "positive": ["x", "y"]}), tmp_path / "a.parquet")
    with pytest.raises(MixtureError, match=message):
        load(tmp_path / "a.parquet")


def test_the_policy_error_names_the_first_fault(tmp_path: Path) -> None:
    message = r"faulty row and the policy 'error': .*rows\.jsonl, row 2: query: empty \(.*\) and 1 more; mend such rows"
    with pytest.raises(MixtureError, match=message):
        _load(tmp_path, [_line(), _line(query=""), _line(query="")], policy="error")
    with pytest.raises(MixtureError, match=r"row 1: negative: empty"):
        _load(tmp_path, [_line(negative=[""])], policy="error")


def test_too_many_faulty_rows_mean_a_misread_dataset(tmp_path: Path) -> None:
    message = r"2 of the 3 rows .* are faulty \(2 query: empty\), more than max_rejected=0\.5; look at .*rejects"
    with pytest.raises(MixtureError, match=message):
        _load(tmp_path, [_line(), _line(query=""), _line(query="")], max_rejected=0.5)


def test_a_dataset_with_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MixtureError, match=r"dataset 'faq' has no row left of 1: 1 query: empty"):
        _load(tmp_path, [_line(query="")])


_TEXT = st.text(st.sampled_from("天气晴雨\x00\ufffd \u3000a"), max_size=4)
_CELL = st.one_of(_TEXT, st.none(), st.integers(0, 3), st.lists(_TEXT, max_size=2))
_ROW = st.fixed_dictionaries(
    {"query": _CELL, "positive": _CELL}, optional={"negative": st.lists(st.one_of(_TEXT, st.none()))}
)


def _is_good(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip()) and "\x00" not in text and "\ufffd" not in text


@given(rows=st.lists(_ROW, min_size=1, max_size=25))
def test_counts_add_up_and_no_good_row_is_lost(rows: list[dict], tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [{"query": "好", "positive": "行", "negative": ["雨"]}, *rows]  # so that the columns are always there
    tmp_path = tmp_path_factory.mktemp("property")
    mixture, rejects = _load(tmp_path, [json.dumps(row).encode() for row in rows])
    report = mixture.report.datasets["faq"]
    assert report.rows == len(rows)
    assert report.kept + sum(report.rejected.values()) - report.added == len(rows)
    gone = {reject["row"] for reject in rejects if reject["action"] == "row rejected"}
    assert len(gone) == sum(report.rejected.values())

    def positives(row: dict) -> list[str]:
        given = row["positive"] if isinstance(row["positive"], list) else [row["positive"]]
        good = [text for text in given if _is_good(text) and _is_good(row["query"])]
        return list(dict.fromkeys(text.strip() for text in good if text.strip() != row["query"].strip()))

    listed = any(isinstance(row["positive"], list) for row in rows)
    for number, row in enumerate(rows, start=1):
        wanted = positives(row)
        if not listed and not isinstance(row["positive"], str):
            wanted = []
        assert (number in gone) == (not wanted), (row, wanted)
    expected = [(row["query"].strip(), p) for row in rows for p in positives(row)]
    assert list(zip(mixture.train["faq"]["query"], mixture.train["faq"]["positive"], strict=True)) == expected


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), faulty=st.sets(st.integers(0, 29)))
def test_the_result_does_not_depend_on_how_rows_fall_into_chunks(
    sizes: list[int], faulty: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [_line(query="" if i in faulty else f"问题{i}", negative=[f"反{i}", f"反{i}"]) for i in range(sum(sizes))]
    found = []
    before = chunks.CHUNK_ROWS
    for chunk in (1, 4, 1000):
        try:
            chunks.CHUNK_ROWS = chunk
            good = [_line()]  # at least one row is kept
            mixture, rejects = _load(tmp_path_factory.mktemp("chunks"), good + lines)
        finally:
            chunks.CHUNK_ROWS = before
        found.append((list(mixture.train["faq"]), [(r["row"], r["reason"]) for r in rejects]))
    assert found[0][0] == found[1][0] == found[2][0]
    assert sorted(found[0][1]) == sorted(found[1][1]) == sorted(found[2][1])
