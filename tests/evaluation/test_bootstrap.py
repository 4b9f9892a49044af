"""Two models task by task: the statistics against scipy and sklearn, the intervals, and what cannot be compared."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

pytest.importorskip("mteb")

import torch
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from piccolo_st.commands.evaluate import main
from piccolo_st.errors import InputError
from piccolo_st.evaluation import per_example
from piccolo_st.evaluation.bootstrap import average_precision, compare_models, result_folder, spearman
from piccolo_st.evaluation.runner import evaluate
from piccolo_st.evaluation.scores import Evaluation
from piccolo_st.evaluation.tasks import select
from tests.helpers.evaluation_data import write_local_tasks

ARRAYS = st.integers(min_value=4, max_value=30).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(0, 5), min_size=size, max_size=size),
        st.lists(st.integers(-4, 4).map(lambda number: number / 4), min_size=size, max_size=size),
        st.lists(st.integers(0, size - 1), min_size=size, max_size=size),
    )
)


@given(ARRAYS)
def test_spearman_of_a_drawn_sample_is_scipys(data: tuple[list[int], list[float], list[int]]) -> None:
    gold, similarity, drawn = np.array(data[0], dtype=float), np.array(data[1]), np.array(data[2])

    ours = spearman(gold, similarity)(np.bincount(drawn, minlength=len(gold)))

    if len(set(gold[drawn])) > 1 and len(set(similarity[drawn])) > 1:
        assert ours == pytest.approx(spearmanr(gold[drawn], similarity[drawn])[0], abs=1e-12)
    else:
        assert ours == 0.0  # not defined: no order on one side


@given(ARRAYS)
def test_average_precision_of_a_drawn_sample_is_sklearns(data: tuple[list[int], list[float], list[int]]) -> None:
    gold, similarity, drawn = (np.array(data[0]) > 2).astype(float), np.array(data[1]), np.array(data[2])

    ours = average_precision(gold, similarity)(np.bincount(drawn, minlength=len(gold)))

    if gold[drawn].any():
        assert ours == pytest.approx(average_precision_score(gold[drawn], similarity[drawn]), abs=1e-12)
    else:
        assert ours == 0.0


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_local_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def evaluated(
    encoder_dir_no_dropout: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, Evaluation]:
    """A model, and the same model with its word embeddings drowned in noise."""
    transformer = Transformer(str(encoder_dir_no_dropout))
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    output = tmp_path_factory.mktemp("evaluated")
    (good,) = evaluate(model, str(tasks), output=output, name="test/good")
    with torch.no_grad():
        weight = model[0].model.embeddings.word_embeddings.weight
        weight.copy_(weight[0] + 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    (bad,) = evaluate(model, str(tasks), output=output, name="test/bad")
    return good, bad


@pytest.fixture
def evaluations(evaluated: tuple[Evaluation, Evaluation], tmp_path: Path) -> tuple[Evaluation, Evaluation]:
    """The two evaluations with result folders that a test may change."""
    good, bad = evaluated
    for evaluation in evaluated:
        shutil.copytree(evaluation.folder, tmp_path / evaluation.folder.parent.name / evaluation.folder.name)
    return tuple(  # type: ignore[return-value]
        replace(each, folder=tmp_path / each.folder.parent.name / each.folder.name) for each in (good, bad)
    )


def test_the_compared_scores_are_those_of_the_evaluation(evaluations: tuple[Evaluation, Evaluation]) -> None:
    good, bad = evaluations

    compared = compare_models(good.folder, bad.folder, good.benchmark, resamples=20)

    rows = {row.task: row for row in compared.differences}
    assert len(rows) == 7
    for name, score in good.scores.items():
        assert rows[name].a == pytest.approx(score, abs=2e-3), name
        assert rows[name].b == pytest.approx(bad.scores[name], abs=2e-3), name
    assert rows["mean of 6"].a == pytest.approx(good.averages.overall, abs=2e-3)


def test_a_broken_model_is_worse_beyond_chance(evaluations: tuple[Evaluation, Evaluation]) -> None:
    good, bad = evaluations

    compared = compare_models(good.folder, bad.folder, good.benchmark)

    rows = {row.task: row for row in compared.differences}
    assert rows["OwnSearch"].high < 0 and rows["mean of 6"].high < 0
    assert rows["OwnSearch"].low <= rows["OwnSearch"].b - rows["OwnSearch"].a <= rows["OwnSearch"].high
    text = compared.table("good", "bad")
    assert "bad is" in text.splitlines()[1] and "worse" in text


def test_the_command_says_what_was_gained_and_lost_on_own_and_general_tasks(
    evaluations: tuple[Evaluation, Evaluation], tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = evaluations
    general = tasks.with_name("general.yaml")
    shutil.copyfile(tasks, general)
    main(["--compare", str(bad.folder), str(good.folder), "--benchmark", str(tasks), str(general)])
    own, _, other = capsys.readouterr().out.partition("general: local tasks of general.yaml")
    assert f"{tasks.stem}: local tasks of {tasks.name}, in percent" in own
    for text in (own, other):
        gained, _, lost = text.splitlines()[-1].removeprefix("gained: ").partition("; lost: ")
        assert "OwnSearch +" in gained and "mean" not in gained and lost == "nothing"


def test_a_model_is_not_different_from_itself(evaluations: tuple[Evaluation, Evaluation]) -> None:
    good, _ = evaluations

    compared = compare_models(good.folder, good.folder, good.benchmark)

    assert all((row.low, row.high) == (0.0, 0.0) and not row.certain for row in compared.differences)
    assert compared.table().count("may be chance") == 7


def test_exchanging_the_models_turns_the_intervals_around(evaluations: tuple[Evaluation, Evaluation]) -> None:
    good, bad = evaluations

    forth, back = (compare_models(a.folder, b.folder, a.benchmark) for a, b in ((good, bad), (bad, good)))

    for one, other in zip(forth.differences, back.differences, strict=True):
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_the_interval_of_a_mean_covers_what_it_says(tmp_path: Path, tasks: Path) -> None:
    """200 pairs of models whose examples differ by +1 on average: the 90% interval holds 1 about 180 times."""
    benchmark = select(str(tasks))[0].benchmark
    rng = np.random.default_rng(0)
    held = 0
    for number in range(200):
        folders = [tmp_path / f"{number}-{side}" for side in "ab"]
        a = rng.normal(0, 1, 60)
        for folder, values in zip(folders, (a, a + rng.normal(0.01, 0.02, 60)), strict=True):
            folder.mkdir()
            (folder / "OwnTopics.json").write_text('{"task_name": "OwnTopics"}', "utf-8")
            per_example.save({"test/default": {"value": values}}, per_example.examples_path(folder / "OwnTopics.json"))
        row = compare_models(*folders, benchmark, resamples=200, confidence=0.9).differences[0]
        held += row.low <= 1.0 <= row.high
    assert 165 <= held <= 195


def test_a_task_of_one_model_only_is_named(evaluations: tuple[Evaluation, Evaluation]) -> None:
    good, bad = evaluations
    per_example.examples_path(bad.folder / "OwnSts.json").unlink()

    compared = compare_models(good.folder, bad.folder, good.benchmark, resamples=20)

    assert compared.missing == ("OwnSts",)
    assert compared.differences[-1].task == "mean of 5"
    assert "not compared, because one of the two has no examples of it: OwnSts" in compared.table()


def test_results_of_other_data_are_not_compared(
    evaluations: tuple[Evaluation, Evaluation], tasks: Path, tmp_path: Path
) -> None:
    """A corpus with a changed text: the queries' ids are still the same."""
    good, bad = evaluations
    shutil.copytree(tasks.parent, tmp_path / "changed")
    corpus = tmp_path / "changed" / "search" / "corpus.jsonl"
    corpus.write_text(corpus.read_text("utf-8").replace("d0", "d999"), encoding="utf-8")
    revision = select(str(tmp_path / "changed" / tasks.name))[0].tasks[0].metadata.revision
    file = bad.folder / "OwnSearch.json"
    content = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**content, "dataset_revision": revision}), encoding="utf-8")

    with pytest.raises(InputError, match=f"same data of OwnSearch .* revision {content['dataset_revision']} in .*good"):
        compare_models(good.folder, bad.folder, good.benchmark)


@pytest.mark.parametrize(
    "metric", ["ndcg_at_10", "ndcg_at_1", "map_at_3", "recall_at_3", "precision_at_1", "hit_rate_at_5"]
)
@pytest.mark.parametrize("name", ["OwnSearch", "OwnRanking"])
def test_the_examples_of_a_search_are_of_the_metric_that_counts(tasks: Path, name: str, metric: str) -> None:
    """Whatever the type: C-MTEB counts the MAP of rerankings, MIRACLReranking the nDCG."""
    (task,) = (task for task in select(str(tasks))[0].tasks if task.metadata.name == name)
    task.load_data()
    relevant, rng = task.dataset["default"]["test"]["relevant_docs"], np.random.default_rng(0)
    documents = sorted({document for judged in relevant.values() for document in judged})
    ranked = {query: dict(zip(documents, rng.random(len(documents)).tolist(), strict=True)) for query in relevant}
    task.metadata = task.metadata.model_copy(update={"main_score": metric})

    arrays = per_example.collect(
        task, {"test": [{"hf_subset": "default"}]}, tasks.parent, {("test", "default"): ranked}
    )

    theirs = calculate_retrieval_scores(ranked, relevant, [1, 3, 5, 10])
    plain, _, cutoff = metric.partition("_at_")
    field, key = {"precision": ("precision", "P"), "ndcg": ("ndcg", "NDCG"), "map": ("map", "MAP"),
                  "recall": ("recall", "Recall"), "hit_rate": ("hit_rate", "HitRate")}[plain]  # fmt: skip
    assert arrays["test/default"]["value"].mean() == pytest.approx(getattr(theirs, field)[f"{key}@{cutoff}"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "metric"), [("OwnRanking", "mrr_at_10"), ("OwnTopics", "f1"), ("OwnSts", "alpha_auc")]
)
def test_a_metric_that_is_no_mean_over_examples_has_none(tasks: Path, tmp_path: Path, name: str, metric: str) -> None:
    (task,) = (task for task in select(str(tasks))[0].tasks if task.metadata.name == name)
    task.load_data()
    task.metadata = task.metadata.model_copy(update={"main_score": metric})
    rows = len(task.dataset["test"]) if name != "OwnRanking" else 1
    output = {"cosine_scores": [0.5] * rows} if name == "OwnSts" else [[0] * rows]
    (tmp_path / task.prediction_file_name).write_text(json.dumps({"default": {"test": output}}), encoding="utf-8")

    scores = {"test": [{"hf_subset": "default"}]}
    assert per_example.collect(task, scores, tmp_path, {("test", "default"): {"q0": {"d0": 1.0}}}) == {}


def test_a_folder_is_found_through_its_only_revision(
    evaluations: tuple[Evaluation, Evaluation], tmp_path: Path
) -> None:
    good, _ = evaluations

    assert result_folder(good.folder.parent) == good.folder == result_folder(good.folder)
    with pytest.raises(InputError, match=r"holds no result files; give .* one revision, results/results/<org>__"):
        result_folder(tmp_path / "nothing")
    other = good.folder.parent / ("f" * 40)
    other.mkdir()
    (other / "OwnSts.json").write_bytes((good.folder / "OwnSts.json").read_bytes())
    with pytest.raises(InputError, match=r"holds several revisions: "):
        result_folder(good.folder.parent)
