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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

from piccolo_st.errors import InputError, nearest

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
        repository: the Hub repository of the data, from which mteb loads it; the task's name where there is none.
    """

    name: str
    type: str
    metric: str
    splits: tuple[str, ...]
    subset: str
    label: str
    card_metric: str
    repository: str


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


def task_by_type(
    name: str, task_type: str, split: str, repository: str = "", *, subset: str = "default", label: str = ""
) -> BenchmarkTask:
    """A task that is scored by the main metric of its type in the cards; the names are made from ``name``."""
    card_metric = CARD_METRICS[task_type]
    metric = MTEB_METRIC_NAMES.get(card_metric, card_metric)
    label = label or (name if subset == "default" else f"{name} ({subset})")
    return BenchmarkTask(name, task_type, metric, (split,), subset, label, card_metric, repository or name)


_CARD_TASKS = (
    task_by_type(
        "AmazonReviewsClassification", "Classification", "test", "mteb/AmazonReviewsClassification", subset="zh"
    ),
    task_by_type("IFlyTek", "Classification", "validation", "C-MTEB/IFlyTek-classification"),
    task_by_type("JDReview", "Classification", "test", "C-MTEB/JDReview-classification"),
    task_by_type("MassiveIntentClassification", "Classification", "test", "mteb/amazon_massive_intent", subset="zh-CN"),
    task_by_type(
        "MassiveScenarioClassification", "Classification", "test", "mteb/amazon_massive_scenario", subset="zh-CN"
    ),
    task_by_type(
        "MultilingualSentiment", "Classification", "validation", "C-MTEB/MultilingualSentiment-classification"
    ),
    task_by_type("OnlineShopping", "Classification", "test", "C-MTEB/OnlineShopping-classification"),
    task_by_type("TNews", "Classification", "validation", "C-MTEB/TNews-classification"),
    task_by_type("Waimai", "Classification", "test", "C-MTEB/waimai-classification"),
    task_by_type("CLSClusteringP2P", "Clustering", "test", "C-MTEB/CLSClusteringP2P"),
    task_by_type("CLSClusteringS2S", "Clustering", "test", "C-MTEB/CLSClusteringS2S"),
    task_by_type("ThuNewsClusteringP2P", "Clustering", "test", "C-MTEB/ThuNewsClusteringP2P"),
    task_by_type("ThuNewsClusteringS2S", "Clustering", "test", "C-MTEB/ThuNewsClusteringS2S"),
    task_by_type("Cmnli", "PairClassification", "validation", "C-MTEB/CMNLI"),
    task_by_type("Ocnli", "PairClassification", "validation", "C-MTEB/OCNLI"),
    task_by_type("CMedQAv1-reranking", "Reranking", "test", "mteb/CMedQAv1-reranking", label="CMedQAv1"),
    task_by_type("CMedQAv2-reranking", "Reranking", "test", "mteb/CMedQAv2-reranking", label="CMedQAv2"),
    task_by_type("MMarcoReranking", "Reranking", "dev", "mteb/MMarcoReranking"),
    task_by_type("T2Reranking", "Reranking", "dev", "mteb/T2Reranking"),
    task_by_type("CmedqaRetrieval", "Retrieval", "dev", "mteb/CmedqaRetrieval"),
    task_by_type("CovidRetrieval", "Retrieval", "dev", "mteb/CovidRetrieval"),
    task_by_type("DuRetrieval", "Retrieval", "dev", "mteb/DuRetrieval"),
    task_by_type("EcomRetrieval", "Retrieval", "dev", "mteb/EcomRetrieval"),
    task_by_type("MMarcoRetrieval", "Retrieval", "dev", "mteb/MMarcoRetrieval"),
    task_by_type("MedicalRetrieval", "Retrieval", "dev", "mteb/MedicalRetrieval"),
    task_by_type("T2Retrieval", "Retrieval", "dev", "mteb/T2Retrieval"),
    task_by_type("VideoRetrieval", "Retrieval", "dev", "mteb/VideoRetrieval"),
    task_by_type("AFQMC", "STS", "validation", "C-MTEB/AFQMC"),
    task_by_type("ATEC", "STS", "test", "C-MTEB/ATEC"),
    task_by_type("BQ", "STS", "test", "C-MTEB/BQ"),
    task_by_type("LCQMC", "STS", "test", "C-MTEB/LCQMC"),
    task_by_type("PAWSX", "STS", "test", "mteb/PAWSX"),
    task_by_type("QBQTC", "STS", "test", "C-MTEB/QBQTC"),
    task_by_type("STS22", "STS", "test", "mteb/sts22-crosslingual-sts", subset="zh"),
    task_by_type("STSB", "STS", "test", "mteb/STSB"),
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


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        InputError: there is none; the message holds the nearest name.
    """
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}{nearest(name, list(BENCHMARKS))}")
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
        raise InputError(f"unknown task {unknown[0]!r} in {benchmark.name}{nearest(unknown[0], sorted(names))}")

    def mean(tasks: Sequence[BenchmarkTask]) -> float | None:
        if not tasks or any(task.name not in scores for task in tasks):
            return None
        return fsum(scores[task.name] for task in tasks) / len(tasks)

    return Averages(
        overall=mean(benchmark.tasks),
        by_type={task_type: mean(benchmark.of_type(task_type)) for task_type in benchmark.types},
        missing=tuple(task.name for task in benchmark.tasks if task.name not in scores),
    )
