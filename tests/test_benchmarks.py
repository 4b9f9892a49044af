"""The definitions of the Chinese benchmarks: names and splits against mteb, averages against a published card."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.benchmarks import (
    BENCHMARKS,
    C_MTEB_31,
    C_MTEB_35,
    MTEB_CMN_V1,
    TASK_TYPES,
    Benchmark,
    average_scores,
    get_benchmark,
    scores_from_model_index,
    scores_from_results,
)
from piccolo_st.errors import InputError

# The main score of each task in the model-index of sensenova/piccolo-large-zh, in percent.
PICCOLO_LARGE = {
    "AmazonReviewsClassification": 40.33200000000001,
    "IFlyTek": 44.24778761061947,
    "JDReview": 86.09756097560975,
    "MassiveIntentClassification": 67.99932750504371,
    "MassiveScenarioClassification": 72.08137188971082,
    "MultilingualSentiment": 70.15,
    "OnlineShopping": 90.27,
    "TNews": 46.543,
    "Waimai": 85.54,
    "CLSClusteringP2P": 38.98356815428385,
    "CLSClusteringS2S": 36.04329998232363,
    "ThuNewsClusteringP2P": 60.575199180159586,
    "ThuNewsClusteringS2S": 52.55759510188472,
    "Cmnli": 83.8325812952643,
    "Ocnli": 72.9224765568519,
    "CMedQAv1-reranking": 84.79178620472841,
    "CMedQAv2-reranking": 84.89085057036931,
    "MMarcoReranking": 27.274633976199482,
    "T2Reranking": 66.95528971496414,
    "CmedqaRetrieval": 41.982,
    "CovidRetrieval": 85.036,
    "DuRetrieval": 87.971,
    "EcomRetrieval": 61.912,
    "MMarcoRetrieval": 77.833,
    "MedicalRetrieval": 59.038000000000004,
    "T2Retrieval": 82.468,
    "VideoRetrieval": 71.18100000000001,
    "AFQMC": 54.168222315174376,
    "ATEC": 54.27914644842898,
    "BQ": 62.3148582435008,
    "LCQMC": 75.80607876548899,
    "PAWSX": 38.3120125820568,
    "QBQTC": 38.218416274161385,
    "STS22": 66.65529695940144,
    "STSB": 74.42746155066217,
}


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
    with pytest.raises(InputError, match=r"MTEB\(cmn, v1\) has no task 'STS22'; nearest: \['STSB'"):
        average_scores({"STSB": 74.4, "STS22": 66.7}, MTEB_CMN_V1)


@pytest.mark.parametrize(("name", "near"), [("c-mteb35", "c-mteb-35"), ("mteb(cmn,v1)", r"MTEB\(cmn, v1\)")])
def test_unknown_benchmark_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"no benchmark is called .*; nearest: {near}"):
        get_benchmark(name)


def test_known_benchmarks_are_found_by_name() -> None:
    assert [get_benchmark(name).name for name in BENCHMARKS] == ["c-mteb-35", "c-mteb-31", "MTEB(cmn, v1)"]


@given(st.permutations(sorted(PICCOLO_LARGE)))
def test_average_does_not_depend_on_the_order_of_the_scores(order: list[str]) -> None:
    shuffled = {name: PICCOLO_LARGE[name] for name in order}

    assert average_scores(shuffled, C_MTEB_35) == average_scores(PICCOLO_LARGE, C_MTEB_35)


def _result(name: str, **splits: dict[str, dict[str, float]]) -> dict[str, object]:
    """A result file: split -> subset -> metric -> value."""
    scores = {
        split: [{"hf_subset": subset, **metrics} for subset, metrics in subsets.items()]
        for split, subsets in splits.items()
    }
    return {"task_name": name, "scores": scores}


def test_results_are_read_with_the_metric_split_and_subset_of_the_definition() -> None:
    ocnli = {"cosine_ap": 0.7, "max_accuracy": 0.6, "main_score": 0.6}
    results = [
        _result("Ocnli", validation={"default": ocnli}),
        _result("STS22", test={"zh": {"cosine_spearman": 0.5}, "en": {"cosine_spearman": 0.9}}),
        _result(
            "MultilingualSentiment", validation={"default": {"accuracy": 0.2}}, test={"default": {"accuracy": 0.4}}
        ),
        _result("SomethingElse", test={"default": {"accuracy": 1.0}}),
    ]

    card, today = (scores_from_results(results, benchmark) for benchmark in (C_MTEB_35, MTEB_CMN_V1))

    assert card == pytest.approx({"Ocnli": 70.0, "STS22": 50.0, "MultilingualSentiment": 20.0})
    assert today == pytest.approx({"Ocnli": 60.0, "MultilingualSentiment": 30.0})


def test_a_task_with_a_missing_split_has_no_score() -> None:
    results = [_result("MultilingualSentiment", validation={"default": {"accuracy": 0.2}})]

    assert scores_from_results(results, MTEB_CMN_V1) == {}


def test_a_result_without_the_metric_is_an_error_and_not_a_gap() -> None:
    results = [_result("T2Reranking", dev={"default": {"map": 0.5}})]

    with pytest.raises(InputError, match=r"the result of T2Reranking, split 'dev', subset 'default' has no 'map_at_"):
        scores_from_results(results, C_MTEB_35)


def test_model_index_is_matched_by_name_config_split_and_metric() -> None:
    def entry(name: str, config: str, split: str, metric: str, value: float) -> dict[str, object]:
        dataset = {"type": "any/any", "name": name, "config": config, "split": split}
        return {"task": {"type": "any"}, "dataset": dataset, "metrics": [{"type": metric, "value": value}]}

    entries = [
        entry("MTEB STS22 (zh)", "zh", "test", "cos_sim_spearman", 1.0),
        entry("MTEB CMedQAv1", "default", "test", "map", 2.0),
        entry("MTEB BQ", "default", "validation", "cos_sim_spearman", 3.0),  # the definition says split test
        entry("MTEB ATEC", "default", "test", "cos_sim_pearson", 4.0),  # and metric spearman
    ]

    assert scores_from_model_index(entries, C_MTEB_35) == {"STS22": 1.0, "CMedQAv1-reranking": 2.0}


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


def test_types_keep_the_cards_order_and_append_others() -> None:
    sts, classification = C_MTEB_35.of_type("STS")[0], C_MTEB_35.of_type("Classification")[0]
    other = type(sts)("X", "Summarization", "m", ("test",), "default", "X", "m")

    assert Benchmark("mixed", "", (other, sts, classification)).types == ("Classification", "STS", "Summarization")
