"""What a run shows: tables by display width, evaluations out of a log history, curves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from piccolo_st.evaluation.curves import before_and_after, evaluations, plot_curves
from piccolo_st.tables import picture, table

HISTORY = [
    {"eval_words_ndcg@10": 0.1, "eval_words_recall@10": 0.2, "eval_words_mrr@10": 0.05, "step": 0},
    {"loss": 2.0, "step": 1},
    {"loss": 1.0, "step": 2},
    {"eval_words_ndcg@10": 0.5, "eval_words_recall@10": 0.6, "eval_words_mrr@10": 0.45, "step": 2},
]


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


def test_curves_are_drawn(tmp_path: Path) -> None:
    written = plot_curves(HISTORY, tmp_path / "curves.png", "a run")
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
