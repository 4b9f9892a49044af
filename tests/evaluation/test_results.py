"""Results: mteb's files, cards and lines of JSON become one form; a benchmark takes its scores from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.repocard_data import eval_results_to_model_index
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.errors import InputError
from piccolo_st.evaluation.benchmarks import C_MTEB_35, MTEB_CMN_V1
from piccolo_st.evaluation.results import TaskResult, from_model_index, from_mteb, read_results, task_scores
from piccolo_st.releasing.eval_results import eval_results


def mteb_file(task: str, scores: dict[str, list[dict[str, Any]]], revision: str = "0" * 40) -> Any:
    return {"dataset_revision": revision, "task_name": task, "mteb_version": "2.26.0", "scores": scores}


def test_mteb_results_become_card_entries() -> None:
    values = {"hf_subset": "default", "languages": ["cmn-Hans"], "main_score": 0.54, "pearson": 0.5, "spearman": 0.54}
    cosine = {"cosine_pearson": 0.125, "cosine_spearman": 0.25, "euclidean_pearson": 0.5, "manhattan_spearman": 1.0}
    (found,) = from_mteb(mteb_file("ATEC", {"test": [{**values, **cosine}]}))
    metrics = {"cos_sim_pearson": 12.5, "cos_sim_spearman": 25.0, "euclidean_pearson": 50, "manhattan_spearman": 100}
    assert found == TaskResult("STS", "C-MTEB/ATEC", "MTEB ATEC", "default", "test", "0" * 40, metrics)


@pytest.mark.parametrize(
    ("task", "split", "given_names", "wanted"),
    [
        ("T2Reranking", "dev", ["map_at_1000", "mrr_at_1000", "ndcg_at_10"], {"map", "mrr"}),
        ("Waimai", "test", ["accuracy", "f1", "ap", "f1_weighted", "recall"], {"accuracy", "ap", "f1"}),
        ("CLSClusteringS2S", "test", ["v_measure", "nmi"], {"v_measure"}),
        ("Ocnli", "validation", ["cosine_ap", "similarity_ap", "max_f1", "max_recall"], {"cos_sim_ap", "max_f1"}),
        ("DuRetrieval", "dev", ["ndcg_at_10", "ndcg_at_20", "nauc_mrr_at_1_max"], {"ndcg_at_10"}),
        ("MyTask", "dev", ["ndcg_at_10"], {"main_score"}),  # of no benchmark
    ],
)
def test_a_card_shows_the_metrics_of_its_kind(task: str, split: str, given_names: list[str], wanted: set[str]) -> None:
    values = {"hf_subset": "default", "main_score": 0.5, **dict.fromkeys(given_names, 0.5)}
    (found,) = from_mteb(mteb_file(task, {split: [values]}))
    assert set(found.metrics) == wanted and found.metrics[min(wanted)] == 50.0


def test_labels_follow_the_subset() -> None:
    subsets = [{"hf_subset": name, "main_score": 0.5, "accuracy": 0.5} for name in ("zh", "de")]
    names = [found.dataset_name for found in from_mteb(mteb_file("AmazonReviewsClassification", {"test": subsets}))]
    assert names == ["MTEB AmazonReviewsClassification (zh)", "MTEB AmazonReviewsClassification (de)"]


def test_scores_have_the_metric_split_and_subset_of_the_definition() -> None:
    ocnli = {"hf_subset": "default", "cosine_ap": 0.7, "max_accuracy": 0.6, "main_score": 0.6}
    review = [{"hf_subset": "default", "accuracy": value, "main_score": value} for value in (0.2, 0.4)]
    sts = [{"hf_subset": name, "cosine_spearman": value, "main_score": 1} for name, value in (("zh", 0.5), ("en", 0.9))]
    files = [
        mteb_file("Ocnli", {"validation": [ocnli]}),
        mteb_file("STS22", {"test": sts}),
        mteb_file("MultilingualSentiment", {"validation": review[:1], "test": review[1:]}),
        mteb_file("SomethingElse", {"test": review[:1]}),
    ]

    card, today, partial = (
        task_scores([one for file in some for one in from_mteb(file, benchmark)], benchmark)
        for some, benchmark in (
            (files, C_MTEB_35),
            (files, MTEB_CMN_V1),
            ([mteb_file("MultilingualSentiment", {"validation": review[:1]})], MTEB_CMN_V1),
        )
    )

    assert card == pytest.approx({"Ocnli": 70.0, "STS22": 50.0, "MultilingualSentiment": 20.0})
    assert today == pytest.approx({"Ocnli": 60.0, "MultilingualSentiment": 30.0})
    assert partial == {}, "a task with a missing split has no score"


def test_a_result_without_the_metric_is_an_error_and_not_a_gap() -> None:
    with pytest.raises(InputError, match=r"the result of T2Reranking, split 'dev', subset 'default' has no 'map_at_"):
        from_mteb(mteb_file("T2Reranking", {"dev": [{"hf_subset": "default", "main_score": 0.5, "map": 0.5}]}))


def test_a_cards_entries_are_matched_by_name_config_split_and_metric() -> None:
    def entry(name: str, config: str, split: str, metric: str, value: float) -> dict[str, object]:
        dataset = {"type": "any/any", "name": name, "config": config, "split": split}
        return {"task": {"type": "any"}, "dataset": dataset, "metrics": [{"type": metric, "value": value}]}

    entries = [
        entry("MTEB STS22 (zh)", "zh", "test", "cos_sim_spearman", 1.0),
        entry("MTEB CMedQAv1", "default", "test", "map", 2.0),
        entry("MTEB BQ", "default", "validation", "cos_sim_spearman", 3.0),  # the definition says split test
        entry("MTEB ATEC", "default", "test", "cos_sim_pearson", 4.0),  # and metric spearman
    ]

    found = task_scores(from_model_index([{"results": entries}]), C_MTEB_35)

    assert found == {"STS22": 1.0, "CMedQAv1-reranking": 2.0}


def test_a_folder_of_results_has_a_score_for_every_task(tmp_path: Path) -> None:
    (tmp_path / "model_meta.json").write_text('{"name": "x/y"}')
    for number, task in enumerate(C_MTEB_35.tasks):
        values = {"hf_subset": task.subset, "main_score": 0.0, task.metric: number / 100}
        (tmp_path / f"{task.name}.json").write_text(json.dumps(mteb_file(task.name, {task.splits[0]: [values]})))
    found = task_scores(read_results(tmp_path), C_MTEB_35)
    assert found == pytest.approx({task.name: float(number) for number, task in enumerate(C_MTEB_35.tasks)})


@given(
    st.lists(
        st.builds(
            TaskResult,
            task_type=st.sampled_from(["STS", "Retrieval"]),
            dataset_type=st.sampled_from(["C-MTEB/ATEC", "mteb/数据"]),
            dataset_name=st.text("MTEB 数据", min_size=1, max_size=8),
            config=st.sampled_from(["default", "zh"]),
            split=st.sampled_from(["test", "dev"]),
            revision=st.sampled_from(["None", "a" * 40]),
            metrics=st.dictionaries(st.sampled_from(["map", "mrr"]), st.floats(0, 100), min_size=1),
        ),
        max_size=5,
        unique_by=lambda one: (one.task_type, one.dataset_type, one.config, one.split, one.revision),
    )
)
def test_results_survive_files_and_cards(tmp_path_factory: pytest.TempPathFactory, results: list[TaskResult]) -> None:
    path = tmp_path_factory.mktemp("results") / "results.jsonl"
    path.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results), encoding="utf-8")
    assert read_results(path) == results
    assert from_model_index(eval_results_to_model_index("m", eval_results(results))) == results


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    for name, content, message in [
        ("", None, r"holds no result files \(Task\.json\); give the folder"),
        ("gone", None, r"the results .*gone do not exist; give a folder"),
        ("results.txt", "", r"results must be a folder of mteb's JSON files, a \.jsonl file or a card \(\.md\), got"),
        ("results.jsonl", "{}\n", r"results\.jsonl, line 1 has no 'task_type'; evaluate the task again"),
        ("results.jsonl", '{"task_type"', r"results\.jsonl, line 1 is not JSON"),
    ]:
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            read_results(tmp_path / name)
    (tmp_path / "ATEC.json").write_text('{"task_name": "ATEC"}')
    with pytest.raises(InputError, match=r"ATEC\.json has no 'scores'; evaluate the task again"):
        read_results(tmp_path)
