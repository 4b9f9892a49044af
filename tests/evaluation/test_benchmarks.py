"""The definitions of the Chinese benchmarks: names and splits against mteb, averages against a published card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.errors import InputError
from piccolo_st.evaluation.benchmarks import (
    BENCHMARKS,
    C_MTEB_31,
    C_MTEB_35,
    MTEB_CMN_V1,
    TASK_TYPES,
    Benchmark,
    average_scores,
    get_benchmark,
)
from piccolo_st.evaluation.results import read_results, task_scores

CARD = Path(__file__).parents[2] / "model_cards/piccolo-large-zh/results.jsonl"
# The results of sensenova/piccolo-large-zh as its card published them: main scores in percent.
PICCOLO_LARGE = task_scores(read_results(CARD), C_MTEB_35)


def test_averages_are_those_of_the_published_card() -> None:
    averages = average_scores(PICCOLO_LARGE, C_MTEB_35)

    assert averages.missing == ()
    assert averages.overall == pytest.approx(64.105452, abs=5e-7)
    assert {name: f"{value:.2f}" for name, value in averages.by_type.items()} == {
        "Classification": "67.03",
        "Clustering": "47.04",
        "PairClassification": "78.38",
        "Reranking": "65.98",
        "Retrieval": "70.93",
        "STS": "58.02",
    }


def test_average_of_the_31_kept_tasks_with_the_cards_metrics() -> None:
    scores = {task.name: PICCOLO_LARGE[task.name] for task in C_MTEB_31.tasks}

    overall = average_scores(scores, C_MTEB_31).overall

    assert overall is not None and f"{overall:.2f}" == "64.41"


def test_sizes_of_the_types_are_those_of_the_cards_table_header() -> None:
    assert [len(C_MTEB_35.of_type(name)) for name in TASK_TYPES] == [9, 4, 2, 4, 8, 8]
    assert len(C_MTEB_35.tasks) == 35 and len(MTEB_CMN_V1.tasks) == len(C_MTEB_31.tasks) == 31


def test_an_average_over_part_of_its_tasks_is_none() -> None:
    scores = {name: value for name, value in PICCOLO_LARGE.items() if name != "Ocnli"}

    averages = average_scores(scores, C_MTEB_35)

    assert averages.overall is None
    assert averages.missing == ("Ocnli",)
    assert [name for name, value in averages.by_type.items() if value is None] == ["PairClassification"]


def test_a_score_of_another_benchmark_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown task 'STS22' in MTEB\(cmn, v1\); did you mean STSB"):
        average_scores({"STSB": 74.4, "STS22": 66.7}, MTEB_CMN_V1)


@pytest.mark.parametrize(("name", "near"), [("c-mteb35", "c-mteb-35"), ("mteb(cmn,v1)", r"MTEB\(cmn, v1\)")])
def test_unknown_benchmark_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"unknown benchmark .*; did you mean {near}"):
        get_benchmark(name)


def test_known_benchmarks_are_found_by_name() -> None:
    assert [get_benchmark(name).name for name in BENCHMARKS] == ["c-mteb-35", "c-mteb-31", "MTEB(cmn, v1)"]


@given(st.permutations(sorted(PICCOLO_LARGE)))
def test_average_does_not_depend_on_the_order_of_the_scores(order: list[str]) -> None:
    shuffled = {name: PICCOLO_LARGE[name] for name in order}

    assert average_scores(shuffled, C_MTEB_35) == average_scores(PICCOLO_LARGE, C_MTEB_35)


def test_definitions_match_mteb() -> None:
    """Names, types, main scores and splits of MTEB(cmn, v1) are mteb's own; the other four tasks exist there."""
    mteb = pytest.importorskip("mteb")
    ours = {task.name: (task.type, task.metric, tuple(sorted(task.splits))) for task in MTEB_CMN_V1.tasks}
    theirs = {
        task.metadata.name: (task.metadata.type, task.metadata.main_score, tuple(sorted(task.eval_splits)))
        for task in mteb.get_benchmark("MTEB(cmn, v1)").tasks
    }
    assert ours == theirs

    for task in C_MTEB_35.tasks:
        known = mteb.get_task(task.name)
        assert task.type == known.metadata.type
        assert task.subset in known.metadata.hf_subsets
        assert set(task.splits) <= set(known.metadata.eval_splits)
        assert task.repository == known.metadata.dataset["path"]


def test_types_keep_the_cards_order_and_append_others() -> None:
    sts, classification = C_MTEB_35.of_type("STS")[0], C_MTEB_35.of_type("Classification")[0]
    other = replace(sts, type="Summarization")

    assert Benchmark("mixed", "", (other, sts, classification)).types == ("Classification", "STS", "Summarization")
