"""Results: one :class:`TaskResult` per task, subset and split, metrics in percent, whatever they are read from:

1. mteb's result files, one JSON per task, as evaluating writes them: metrics are renamed as the cards of 2023 name
   them (``cosine_spearman`` -> ``cos_sim_spearman``), multiplied by 100 and limited to those a card shows;
2. a ``.jsonl`` file, one line per entry, in which published results are kept as they were published;
3. the model-index of a card.

From there :func:`task_scores` takes the numbers that a benchmark averages; a card is made from the same entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from typing_extensions import NotRequired, TypedDict

from piccolo_st.errors import InputError, reason
from piccolo_st.evaluation.benchmarks import C_MTEB_35, Benchmark, BenchmarkTask
from piccolo_st.stored import parse_json, read_json

_CUTOFFS = (1, 3, 5, 10, 100, 1000)
_SIMILARITIES = {"cos_sim": "cosine", "dot": "dot", "euclidean": "euclidean", "manhattan": "manhattan"}


def _pairs_of(similarities: Sequence[str], metrics: Sequence[str]) -> dict[str, str]:
    return {f"{name}_{metric}": f"{_SIMILARITIES[name]}_{metric}" for name in similarities for metric in metrics}


# Type -> {a card's name of a metric: mteb's}. ``map`` of a card is mteb's map over the whole candidate list.
SHOWN_METRICS: dict[str, dict[str, str]] = {
    "Classification": {name: name for name in ("accuracy", "ap", "f1")},
    "Clustering": {"v_measure": "v_measure"},
    "PairClassification": {
        **_pairs_of(list(_SIMILARITIES), ("accuracy", "ap", "f1", "precision", "recall")),
        **{f"max_{metric}": f"max_{metric}" for metric in ("accuracy", "ap", "f1")},
    },
    "Reranking": {"map": "map_at_1000", "mrr": "mrr_at_1000"},
    "Retrieval": {
        f"{metric}_at_{k}": f"{metric}_at_{k}"
        for metric in ("map", "mrr", "ndcg", "precision", "recall")
        for k in _CUTOFFS
    },
    "STS": _pairs_of(("cos_sim", "euclidean", "manhattan"), ("pearson", "spearman")),
}


class ResultFile(TypedDict):
    """One of mteb's result files (version 2), parsed; what is read of it here.

    Attributes:
        task_name: mteb's name of the task.
        dataset_revision: the commit of the data.
        mteb_version: which mteb wrote it.
        scores: split -> one mapping per subset, with ``hf_subset``, ``main_score`` and every metric, 0 to 1.
    """

    task_name: str
    dataset_revision: NotRequired[str | None]
    mteb_version: NotRequired[str | None]
    scores: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class TaskResult:
    """What was measured on one split of one subset of a task.

    Attributes:
        task_type: mteb's task type, such as "STS".
        dataset_type: the Hub repository of the data; the task's name where there is none.
        dataset_name: what a card calls it, such as "MTEB ATEC".
        config: the subset ("default" where there is only one).
        split: the split.
        revision: the commit of the data, or "None" where it was not recorded.
        metrics: card name of the metric -> value in percent.
    """

    task_type: str
    dataset_type: str
    dataset_name: str
    config: str
    split: str
    revision: str
    metrics: Mapping[str, float]


_AGAIN = "evaluate the task again"


def read_results(path: str | Path, benchmark: Benchmark = C_MTEB_35) -> list[TaskResult]:
    """The results in a folder of mteb's result files, in a ``.jsonl`` file or in a card's model-index (``.md``).

    Args:
        path: the folder of one model's revision, or the file.
        benchmark: says the type and the label of each task of a folder; see :func:`from_mteb`.

    Raises:
        InputError: there is nothing there, or a file is not what its name says; the message names file and line.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.glob("*.json") if file.name != "model_meta.json")
        if not files:
            raise InputError(f"{path} holds no result files (Task.json); give the folder of one model's revision")
        parsed = [read_json(file, ResultFile, _AGAIN) for file in files]
        return [result for file in parsed for result in from_mteb(file, benchmark)]
    if not path.is_file():
        raise InputError(
            f"the results {path} do not exist; give a folder of mteb's JSON files, a .jsonl file or a card (.md)"
        )
    if path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines()
        return [parse_json(line, TaskResult, f"{path}, line {n}", _AGAIN) for n, line in enumerate(lines, 1)]
    if path.suffix == ".md":
        try:
            return from_model_index(ModelCard.load(path).data.to_dict().get("model-index") or [])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
            why = f"{type(error).__name__}: {reason(error)}"
            raise InputError(f"the model-index of {path} cannot be read ({why}); give the results themselves") from None
    raise InputError(f"results must be a folder of mteb's JSON files, a .jsonl file or a card (.md), got {path}")


def from_mteb(file: ResultFile, benchmark: Benchmark = C_MTEB_35) -> list[TaskResult]:
    """The entries of one of mteb's result files: one per split and subset, in its order.

    A task that the benchmark does not have keeps mteb's name and main score, with the type "Other".

    Raises:
        InputError: it is no such file, or the metric is missing that the benchmark counts.
    """
    card = {task.name: task for task in C_MTEB_35.tasks}
    found = []
    try:
        name, revision = file["task_name"], str(file.get("dataset_revision"))
        task = next((task for task in benchmark.tasks if task.name == name), None)
        known = task or card.get(name)
        for split, subsets in file["scores"].items():
            for values in subsets:
                subset = values["hf_subset"]
                label = name if subset == "default" else f"{name} ({subset})"
                found.append(
                    TaskResult(
                        task_type=task.type if task else "Other",
                        dataset_type=known.repository if known else name,
                        dataset_name=f"MTEB {task.label if task and task.subset == subset else label}",
                        config=subset,
                        split=split,
                        revision=revision,
                        metrics=dict(_metrics(values, task, split)) or {"main_score": 100.0 * values["main_score"]},
                    )
                )
    except (KeyError, TypeError, AttributeError, OverflowError):
        raise InputError(
            f"a result must be as mteb 2.x writes it, got {str(file)[:80]}; evaluate the task again"
        ) from None
    return found


def _metrics(values: Mapping[str, Any], task: BenchmarkTask | None, split: str) -> Iterator[tuple[str, float]]:
    """Those of the metrics that a card shows, by their names there, in percent."""
    if task is None:
        return
    counts = split in task.splits and values["hf_subset"] == task.subset
    if counts and values.get(task.metric) is None:
        raise InputError(
            f"the result of {task.name}, split {split!r}, subset {task.subset!r} has no {task.metric!r}, "
            "which mteb 2.x writes; evaluate the task again"
        )
    for card, key in {**SHOWN_METRICS.get(task.type, {}), task.card_metric: task.metric}.items():
        if values.get(key) is not None:
            yield card, 100.0 * values[key]


def from_model_index(model_index: Sequence[Mapping[str, Any]]) -> list[TaskResult]:
    """The entries of a card's model-index, in its order; an empty index gives none."""
    return [
        TaskResult(
            task_type=entry["task"]["type"],
            dataset_type=entry["dataset"]["type"],
            dataset_name=entry["dataset"]["name"],
            config=entry["dataset"].get("config", "default"),
            split=entry["dataset"].get("split", ""),
            revision=str(entry["dataset"].get("revision")),
            metrics={metric["type"]: float(metric["value"]) for metric in entry["metrics"]},
        )
        for model in model_index
        for entry in model["results"]
    ]


def counted(results: Iterable[TaskResult], benchmark: Benchmark) -> dict[str, list[TaskResult]]:
    """Task name -> the results that the benchmark counts of it: those of its splits, in their order, that are there."""
    places = {(one.dataset_name, one.config, one.split, metric): one for one in results for metric in one.metrics}
    wanted = {
        task.name: [(f"MTEB {task.label}", task.subset, split, task.card_metric) for split in task.splits]
        for task in benchmark.tasks
    }
    return {name: [places[place] for place in own if place in places] for name, own in wanted.items()}


def task_scores(results: Iterable[TaskResult], benchmark: Benchmark) -> dict[str, float]:
    """Task name -> main score in percent, the mean over its splits, for the tasks whose every split is there.

    Results are matched by label, subset, split and main metric; others are left out.
    """
    found = counted(results, benchmark)
    return {
        task.name: fsum(one.metrics[task.card_metric] for one in found[task.name]) / len(task.splits)
        for task in benchmark.tasks
        if len(found[task.name]) == len(task.splits)
    }
