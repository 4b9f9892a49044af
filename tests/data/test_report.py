"""What became of a dataset's rows: the numbers add up, and every loss is said with its reason and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.data.report import DatasetReport
from piccolo_st.errors import MixtureError
from tests.helpers.mixtures import jsonl, load


def _lost(report: DatasetReport) -> int:
    return sum(sum(part.values()) for part in (report.rejected, report.left_out, report.held_out))


_TEXT = st.sampled_from(["甲", "乙", "丙", "丁", "戊", "", "甲乙", "丙丁", "a\x00"])
_POSITIVE = st.one_of(_TEXT, st.none(), st.lists(_TEXT, max_size=3))
_PAIR = st.fixed_dictionaries({"query": _TEXT, "positive": _POSITIVE}, optional={"negative": st.lists(_TEXT)})
_SCORED = st.fixed_dictionaries({"sentence1": _TEXT, "sentence2": _TEXT, "label": st.sampled_from([0, 0.5, 1, 2, ""])})
_LABELLED = st.fixed_dictionaries({"text": _TEXT, "label": st.sampled_from(["x", "y", "z", "", None])})


@given(
    rows=st.lists(_PAIR, max_size=30),
    queries=st.integers(0, 3),
    positives=st.sampled_from(["all", "first", "list"]),
    limit=st.none() | st.integers(4, 12),
)
def test_rows_read_and_added_are_rows_used_and_lost(
    rows: list[dict], queries: int, positives: str, limit: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [{"query": f"好{i}", "positive": f"行{i}", "negative": []} for i in range(5)] + rows
    settings: dict[str, Any] = {"positives": positives, "max_rejected": 1, "max_rows": limit}
    if queries and positives != "list":
        settings["holdout"] = {"queries": queries, "min_corpus": 1}
    mixture = load(jsonl(tmp_path_factory.mktemp("pairs") / "rows.jsonl", rows), **settings)
    report = mixture.report.datasets["faq"]
    assert report.rows == min(len(rows), limit or len(rows))
    assert report.kept == len(mixture.train["faq"])
    assert report.rows + report.added == report.kept + _lost(report)
    lines = report.rejects_path.read_text(encoding="utf-8").splitlines()
    assert sum("row rejected" in line for line in lines) == sum(report.rejected.values())
    assert json.loads(json.dumps(report.as_dict()))["kept"] == report.kept


@given(
    scored=st.lists(_SCORED, max_size=30),
    labelled=st.lists(_LABELLED, max_size=30),
    preset=st.booleans(),
    negatives=st.sampled_from([0, 2]),
)
def test_scored_and_labelled_rows_add_up(
    scored: list[dict], labelled: list[dict], preset: bool, negatives: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scored = [{"sentence1": "好", "sentence2": "行", "label": 1}, *scored]
    labelled = [{"text": text, "label": label} for text, label in (("好", "x"), ("行", "x"), ("坏", "y"))] + labelled
    for rows, task, settings in (
        (scored, "retrieval" if preset else "sts", {"preset": {"name": "scored_pairs"}} if preset else {}),
        (labelled, "classification", {"preset": {"name": "classes", "negatives": negatives}}),
    ):
        mixture = load(jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows), task, max_rejected=1, **settings)
        report = mixture.report.datasets["faq"]
        assert report.rows == len(rows) and report.kept == len(mixture.train["faq"])
        assert report.rows + report.added == report.kept + _lost(report)


def test_what_is_not_zero_has_a_line_and_the_rest_has_none(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"query": f"问{i}", "positive": f"答{i}"} for i in range(20)]
    text = str(load(jsonl(tmp_path / "rows.jsonl", rows)).report)
    assert len(text.splitlines()) == 3  # the header, a rule, the dataset
    assert text.splitlines()[2].split() == ["faq", "retrieval", "20", "0", "0", "0", "20"]
    rows[4:6] = [{"query": "问", "positive": None}, {"query": "问", "positive": ["甲", "乙", "甲", "问"]}]
    report = load(jsonl(tmp_path / "rows.jsonl", rows), holdout={"queries": 3, "min_corpus": 5}).report
    said = str(report).splitlines()
    assert said[2].split() == ["faq", "retrieval", "20", "1", "0", "4", "16"]
    assert [line.strip() for line in said[3:]] == [
        "faq: 1 row added: one for each further positive of a row",
        "faq: 1 row rejected: positive: null",
        "faq: 1 item removed: positive: twice in the list",
        "faq: 1 item removed: positive: equal to the query",
        "faq: 4 rows held out: of a held-out query",
        f"faq: the rejects, row by row: {report.datasets['faq'].rejects_path}",
    ]


def test_a_large_share_of_rejects_is_a_warning(tmp_path: Path) -> None:
    rows = [{"query": f"问{i}", "positive": None if i < 135 else f"答{i}"} for i in range(300)]
    said = str(load(jsonl(tmp_path / "rows.jsonl", rows)).report)
    assert "warning: faq: 45% of its 300 rows are rejected" in said
    assert "warning" not in str(load(jsonl(tmp_path / "rows.jsonl", rows[120:])).report)  # 15 of 180, less than a tenth


@pytest.mark.parametrize(
    ("task", "scores", "span"), [("sts", [0, 1, 2, 3, 4], "0 to 4"), ("pair", [-1, 1, 1], "-1 to 1")]
)
def test_scores_on_another_scale_name_it(task: str, scores: list[int], span: str, tmp_path: Path) -> None:
    low, _, high = span.split()
    given = scores * 20
    rows = [{"sentence1": f"甲{i}", "sentence2": f"乙{i}", "score": score} for i, score in enumerate(given)]
    remedy = f"score_range: [{low}, {high}]"
    said = str(load(jsonl(tmp_path / "rows.jsonl", rows), task, max_rejected=1).report)
    assert f"warning: faq: its scores run from {span} and score_range is [0, 1]" in said
    assert f"set `{remedy}`" in said
    text = str(load(jsonl(tmp_path / "rows.jsonl", rows), task, score_range=[int(low), int(high)]).report)
    assert "warning" not in text and "rejected:" not in text
    if task == "sts":
        with pytest.raises(MixtureError, match=r"60 of the 100 rows .*max_rejected=0.5.*set `score_range: \[0, 4\]`"):
            load(jsonl(tmp_path / "rows.jsonl", rows), task)
