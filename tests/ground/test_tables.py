"""What a run shows: tables by display width, evaluations out of a log history, curves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from piccolo_st.evaluation.curves import before_and_after, evaluations, interval, plot_curves
from piccolo_st.tables import picture, table

HISTORY = [
    {"eval_words_ndcg@10": 0.1, "eval_words_recall@10": 0.2, "eval_words_mrr@10": 0.05, "step": 0},
    {"loss": 2.0, "step": 1},
    {"loss": 1.0, "step": 2},
    {"eval_words_ndcg@10": 0.5, "eval_words_recall@10": 0.6, "eval_words_mrr@10": 0.45, "step": 2},
]

WITH_INTERVALS = [{**entry, "eval_words_ndcg@10_low": 0.05, "eval_words_ndcg@10_high": 0.6} for entry in HISTORY[::3]]


def test_a_table_aligns_by_display_width_and_formats_numbers() -> None:
    lines = table(["name", "rows", "share"], [["词典", 12345, 0.5], ["x", 1, 10.0]]).splitlines()
    assert lines == [
        "name    rows  share",
        "----  ------  -----",
        "词典  12,345   0.50",
        "x          1  10.00",
    ]


def test_evaluations_are_read_in_percent_and_in_order() -> None:
    assert evaluations(HISTORY) == [
        {"step": 0.0, "nDCG@10": 10.0, "recall@10": 20.0, "MRR@10": 5.0},
        {"step": 2.0, "nDCG@10": 50.0, "recall@10": 60.0, "MRR@10": 45.0},
    ]


def test_several_sets_are_averaged() -> None:
    [point] = evaluations([{"eval_a_ndcg@10": 0.2, "eval_b_ndcg@10": 0.4, "step": 7}])
    assert point == {"step": 7.0, "nDCG@10": pytest.approx(30.0)}


def test_the_comparison_takes_the_first_and_the_last() -> None:
    lines = before_and_after(HISTORY).splitlines()
    assert lines[2].split() == ["nDCG@10", "10.00", "50.00", "40.00"]
    assert before_and_after(HISTORY[:2]) == ""


def test_the_comparison_is_with_what_was_left_and_says_where_it_begins() -> None:
    log = [*HISTORY, {**HISTORY[-1], "eval_words_ndcg@10": 0.3, "step": 4}]
    assert before_and_after(log).splitlines()[2].split()[1:] == ["10.00", "30.00", "20.00"]
    assert before_and_after(log, left=2).splitlines()[2].split()[1:] == ["10.00", "50.00", "40.00"]
    head, _, row, *_ = before_and_after(log[1:], left=4).splitlines()
    assert "before" not in head and "first search (step 2)" in head
    assert row.split()[1:] == ["50.00", "30.00", "-20.00"]


def test_the_interval_of_a_mean_is_narrower_than_those_of_its_sets() -> None:
    [row] = [line for line in before_and_after(WITH_INTERVALS).splitlines() if line.startswith("nDCG@10")]
    assert row.split()[-3:] == ["5.00", "to", "60.00"]
    assert interval(HISTORY[0]) is None and interval(HISTORY[1]) is None
    two = {f"eval_{name}_ndcg@10{end}": v for name in "ab" for end, v in (("", 0.5), ("_low", 0.4), ("_high", 0.6))}
    assert interval(two) == pytest.approx((50 - 10 / 2**0.5, 50 + 10 / 2**0.5))
    assert interval(two, "eval_a_ndcg@10") == pytest.approx((40, 60))


def test_curves_are_drawn(tmp_path: Path) -> None:
    written = plot_curves([*HISTORY, *WITH_INTERVALS], tmp_path / "curves.png", "a run")
    assert written.read_bytes().startswith(b"\x89PNG") and written.stat().st_size > 5_000
    plot_curves([], tmp_path / "empty.png")


def test_a_run_ends_well_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    assert picture(plot_curves, HISTORY, tmp_path / "a.png") == tmp_path / "a.png"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert picture(plot_curves, HISTORY, tmp_path / "b.png") is None
    assert 'needs matplotlib; run: pip install "piccolo_st[quickstart]"' in caplog.text
    assert not (tmp_path / "b.png").exists()
