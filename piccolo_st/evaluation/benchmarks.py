"""Which tasks a benchmark has, which number of each counts, and how they are averaged. Data and pure functions.

Two definitions of the Chinese benchmark are in use and their numbers must not be mixed:

- ``c-mteb-35``: the 35 tasks, subsets, splits and main metrics of the Piccolo model cards of 2023, whose
  "Average (35)" is the mean over the 35 tasks, not over the six types. ``c-mteb-31`` is the same definition over the
  31 tasks that mteb's ``MTEB(cmn, v1)`` kept.
- ``MTEB(cmn, v1)``: the 31 tasks with mteb's main scores of today. Two types are scored differently: pair
  classification by the best accuracy over all similarities instead of the average precision of the cosine, and
  sentiment over two splits instead of one.

A card names metrics as mteb did before version 1.12 (``cos_sim_spearman``, ``map``); mteb's result files of today
name them ``cosine_spearman``, ``map_at_1000``. A :class:`BenchmarkTask` holds both names. ``map`` and ``map_at_1000``
are the same number as long as a query has at most 1,000 candidates and no two candidates tie.

Nothing here imports mteb, so that a model card can be written where mteb is not installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import fsum
from typing import Any

from piccolo_st.errors import InputError

TASK_TYPES = ("Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS")
"""The six types, in the order of the columns of the cards' tables."""

CARD_METRICS = {
    "Classification": "accuracy",
    "Clustering": "v_measure",
    "PairClassification": "cos_sim_ap",
    "Reranking": "map",
    "Retrieval": "ndcg_at_10",
    "STS": "cos_sim_spearman",
}
"""The main metric of each type in the cards of 2023."""

MTEB_METRIC_NAMES = {"cos_sim_ap": "cosine_ap", "map": "map_at_1000", "cos_sim_spearman": "cosine_spearman"}
"""Card name of a main metric -> its name in mteb's result files, where the two differ."""


@dataclass(frozen=True)
class BenchmarkTask:
    """One task of a benchmark and the number of it that counts.

    Attributes:
        name: mteb's name of the task, which is also the name of its result file.
        type: one of :data:`TASK_TYPES`.
        metric: the main metric, as mteb's result files name it.
        splits: the splits whose scores are averaged; almost always one.
        subset: mteb's ``hf_subset``.
        label: the name of the task in a card's model-index, without the leading "MTEB ".
        card_metric: the main metric as a card's model-index names it.
    """

    name: str
    type: str
    metric: str
    splits: tuple[str, ...]
    subset: str
    label: str
    card_metric: str


@dataclass(frozen=True)
class Benchmark:
    """A named list of tasks with one definition of what is averaged."""

    name: str
    description: str
    tasks: tuple[BenchmarkTask, ...]

    def of_type(self, task_type: str) -> tuple[BenchmarkTask, ...]:
        """The tasks of one type, in the benchmark's order."""
        return tuple(task for task in self.tasks if task.type == task_type)

    @property
    def types(self) -> tuple[str, ...]:
        """The types that have tasks here: those of :data:`TASK_TYPES` in its order, then any others."""
        present = dict.fromkeys(task.type for task in self.tasks)
        return (
            *(name for name in TASK_TYPES if name in present),
            *(name for name in present if name not in TASK_TYPES),
        )


@dataclass(frozen=True)
class Averages:
    """Means in the unit of the scores given.

    Attributes:
        overall: the mean over all tasks, or None while a task of the benchmark has no score.
        by_type: type -> mean over its tasks, or None while one of them has no score.
        missing: names of the tasks without a score.
    """

    overall: float | None
    by_type: dict[str, float | None]
    missing: tuple[str, ...]


def _card_task(name: str, task_type: str, split: str, *, subset: str = "default", label: str = "") -> BenchmarkTask:
    card_metric = CARD_METRICS[task_type]
    metric = MTEB_METRIC_NAMES.get(card_metric, card_metric)
    label = label or (name if subset == "default" else f"{name} ({subset})")
    return BenchmarkTask(name, task_type, metric, (split,), subset, label, card_metric)


_CARD_TASKS = (
    _card_task("AmazonReviewsClassification", "Classification", "test", subset="zh"),
    _card_task("IFlyTek", "Classification", "validation"),
    _card_task("JDReview", "Classification", "test"),
    _card_task("MassiveIntentClassification", "Classification", "test", subset="zh-CN"),
    _card_task("MassiveScenarioClassification", "Classification", "test", subset="zh-CN"),
    _card_task("MultilingualSentiment", "Classification", "validation"),
    _card_task("OnlineShopping", "Classification", "test"),
    _card_task("TNews", "Classification", "validation"),
    _card_task("Waimai", "Classification", "test"),
    _card_task("CLSClusteringP2P", "Clustering", "test"),
    _card_task("CLSClusteringS2S", "Clustering", "test"),
    _card_task("ThuNewsClusteringP2P", "Clustering", "test"),
    _card_task("ThuNewsClusteringS2S", "Clustering", "test"),
    _card_task("Cmnli", "PairClassification", "validation"),
    _card_task("Ocnli", "PairClassification", "validation"),
    _card_task("CMedQAv1-reranking", "Reranking", "test", label="CMedQAv1"),
    _card_task("CMedQAv2-reranking", "Reranking", "test", label="CMedQAv2"),
    _card_task("MMarcoReranking", "Reranking", "dev"),
    _card_task("T2Reranking", "Reranking", "dev"),
    _card_task("CmedqaRetrieval", "Retrieval", "dev"),
    _card_task("CovidRetrieval", "Retrieval", "dev"),
    _card_task("DuRetrieval", "Retrieval", "dev"),
    _card_task("EcomRetrieval", "Retrieval", "dev"),
    _card_task("MMarcoRetrieval", "Retrieval", "dev"),
    _card_task("MedicalRetrieval", "Retrieval", "dev"),
    _card_task("T2Retrieval", "Retrieval", "dev"),
    _card_task("VideoRetrieval", "Retrieval", "dev"),
    _card_task("AFQMC", "STS", "validation"),
    _card_task("ATEC", "STS", "test"),
    _card_task("BQ", "STS", "test"),
    _card_task("LCQMC", "STS", "test"),
    _card_task("PAWSX", "STS", "test"),
    _card_task("QBQTC", "STS", "test"),
    _card_task("STS22", "STS", "test", subset="zh"),
    _card_task("STSB", "STS", "test"),
)
_KEPT_TASKS = tuple(task for task in _CARD_TASKS if task.subset == "default")


def _as_of_today(task: BenchmarkTask) -> BenchmarkTask:
    if task.type == "PairClassification":
        return replace(task, metric="max_accuracy", card_metric="max_accuracy")
    if task.name == "MultilingualSentiment":
        return replace(task, splits=("validation", "test"))
    return task


C_MTEB_35 = Benchmark("c-mteb-35", "the 35 tasks and main metrics of the Piccolo cards of 2023", _CARD_TASKS)
C_MTEB_31 = Benchmark("c-mteb-31", "the 31 tasks of MTEB(cmn, v1) with the cards' main metrics", _KEPT_TASKS)
MTEB_CMN_V1 = Benchmark(
    "MTEB(cmn, v1)", "31 tasks with mteb's main scores of today", tuple(_as_of_today(task) for task in _KEPT_TASKS)
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in (C_MTEB_35, C_MTEB_31, MTEB_CMN_V1)}


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The names of ``known`` that look most like ``name``, upper and lower case alike, best first."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    return [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.4)]


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        InputError: there is none; the message holds the nearest name.
    """
    if name not in BENCHMARKS:
        near = nearest(name, BENCHMARKS) or list(BENCHMARKS)
        raise InputError(f"unknown benchmark {name!r}; nearest: {', '.join(near)}; all: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def average_scores(scores: Mapping[str, float], benchmark: Benchmark) -> Averages:
    """Average one score per task over all tasks and over the tasks of each type.

    An average over some of its tasks is another quantity under the same name, so an average is None until every
    task of it has a score.

    Args:
        scores: task name -> score, in any unit; names that the benchmark does not have are refused.

    Raises:
        InputError: a score belongs to no task of the benchmark.
    """
    names = {task.name for task in benchmark.tasks}
    unknown = sorted(set(scores) - names)
    if unknown:
        raise InputError(
            f"unknown task {unknown[0]!r} in {benchmark.name}; nearest: {', '.join(nearest(unknown[0], names))}"
        )

    def mean(tasks: Sequence[BenchmarkTask]) -> float | None:
        if not tasks or any(task.name not in scores for task in tasks):
            return None
        return fsum(scores[task.name] for task in tasks) / len(tasks)

    return Averages(
        overall=mean(benchmark.tasks),
        by_type={task_type: mean(benchmark.of_type(task_type)) for task_type in benchmark.types},
        missing=tuple(task.name for task in benchmark.tasks if task.name not in scores),
    )


def scores_from_results(results: Iterable[Mapping[str, Any]], benchmark: Benchmark) -> dict[str, float]:
    """The main score of each task of the benchmark, in percent, from mteb's result files.

    Args:
        results: parsed result files: ``{"task_name": ..., "scores": {split: [{"hf_subset": ..., metric: ...}]}}``.

    Returns:
        Task name -> mean over the task's splits, for the tasks whose every split is there. Other tasks, splits and
        subsets in ``results`` are left out.

    Raises:
        InputError: a task's result has the split and subset but not the metric.
    """
    by_name = {result["task_name"]: result["scores"] for result in results}
    scores = {}
    for task in benchmark.tasks:
        values = [
            _value(entry, task, split)
            for split in task.splits
            for entry in by_name.get(task.name, {}).get(split, ())
            if entry["hf_subset"] == task.subset
        ]
        if len(values) == len(task.splits):
            scores[task.name] = 100 * fsum(values) / len(values)
    return scores


def _value(entry: Mapping[str, Any], task: BenchmarkTask, split: str) -> float:
    if entry.get(task.metric) is None:
        raise InputError(
            f"the result of {task.name}, split {split!r}, subset {task.subset!r} has no {task.metric!r}, "
            "which mteb 2.x writes; evaluate the task again"
        )
    return float(entry[task.metric])


def scores_from_model_index(entries: Iterable[Mapping[str, Any]], benchmark: Benchmark) -> dict[str, float]:
    """The main score of each task of the benchmark, in percent, from a card's model-index.

    Args:
        entries: ``model-index[0]["results"]`` of the card's metadata: dicts with ``dataset`` (name, config, split) and
            ``metrics`` (a list of type and value, in percent).

    Returns:
        Task name -> value, for the tasks that the card has, matched by name, config, split and metric.
    """
    values: dict[tuple[str, str, str, str], float] = {}
    for entry in entries:
        dataset = entry["dataset"]
        for metric in entry["metrics"]:
            key = (dataset["name"], dataset["config"], dataset["split"], metric["type"])
            values[key] = float(metric["value"])
    scores = {}
    for task in benchmark.tasks:
        found = [values.get((f"MTEB {task.label}", task.subset, split, task.card_metric)) for split in task.splits]
        known = [value for value in found if value is not None]
        if len(known) == len(task.splits):
            scores[task.name] = fsum(known) / len(known)
    return scores
