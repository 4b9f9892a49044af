"""Evaluation results as a model card holds them: one entry per task, subset and split, metrics in percent.

Three sources, one form (:class:`TaskResult`):

1. a folder of mteb's result files, one JSON per task, as evaluating writes it: metrics are renamed as the cards of
   2023 name them (``cosine_spearman`` -> ``cos_sim_spearman``), multiplied by 100 and limited to those a card shows;
2. a ``.jsonl`` file, one line per entry, in which published results are kept as they were published;
3. the model-index of an existing card.

and three uses: huggingface_hub's ``EvalResult`` for the model-index of a README, the Hub's newer
``.eval_results/*.yaml`` files, and the scores by task that :mod:`piccolo_st.evaluation.benchmarks` averages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from piccolo_st.errors import InputError
from piccolo_st.evaluation import C_MTEB_35, Benchmark, scores_from_model_index

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

# The Hub repository from which mteb 2.26 loads each task of c-mteb-35; its result files do not say.
_REPOSITORIES = {
    **{task.name: f"mteb/{task.name}" for task in C_MTEB_35.tasks},
    **{name: f"C-MTEB/{name}" for name in ("AFQMC", "ATEC", "BQ", "LCQMC", "QBQTC")},
    **{name: f"C-MTEB/{name}" for name in ("CLSClusteringP2P", "CLSClusteringS2S")},
    **{name: f"C-MTEB/{name}" for name in ("ThuNewsClusteringP2P", "ThuNewsClusteringS2S")},
    **{name: f"C-MTEB/{name}-classification" for name in ("IFlyTek", "JDReview", "MultilingualSentiment")},
    **{name: f"C-MTEB/{name}-classification" for name in ("OnlineShopping", "TNews")},
    "Waimai": "C-MTEB/waimai-classification",
    "Cmnli": "C-MTEB/CMNLI",
    "Ocnli": "C-MTEB/OCNLI",
    "MassiveIntentClassification": "mteb/amazon_massive_intent",
    "MassiveScenarioClassification": "mteb/amazon_massive_scenario",
    "STS22": "mteb/sts22-crosslingual-sts",
}


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

    @property
    def entry(self) -> dict[str, Any]:
        """The same as an item of a model-index' ``results``."""
        return {
            "task": {"type": self.task_type},
            "dataset": {
                "type": self.dataset_type,
                "name": self.dataset_name,
                "config": self.config,
                "split": self.split,
                "revision": self.revision,
            },
            "metrics": [{"type": name, "value": self.metrics[name]} for name in sorted(self.metrics)],
        }


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
        parsed = [_json(file.read_text(encoding="utf-8"), str(file)) for file in files]
        return [result for file in parsed for result in from_mteb(file, benchmark)]
    if not path.is_file():
        raise InputError(
            f"the results {path} do not exist; give a folder of mteb's JSON files, a .jsonl file or a card (.md)"
        )
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_from_line(_json(line, f"{path}, line {n}"), f"{path}, line {n}") for n, line in enumerate(lines, 1)]
    if path.suffix == ".md":
        return from_model_index(ModelCard.load(path).data.to_dict().get("model-index") or [])
    raise InputError(f"results must be a folder of mteb's JSON files, a .jsonl file or a card (.md), got {path}")


def from_mteb(file: Mapping[str, Any], benchmark: Benchmark = C_MTEB_35) -> list[TaskResult]:
    """The entries of one of mteb's result files (version 2), parsed: one per split and subset, in its order.

    A task that the benchmark does not have keeps mteb's name and main score, with the type "Other".

    Raises:
        InputError: it is not such a file.
    """
    tasks = {task.name: task for task in benchmark.tasks}
    found = []
    try:
        name, revision = file["task_name"], str(file.get("dataset_revision"))
        task = tasks.get(name)
        shown = SHOWN_METRICS.get(task.type, {}) if task else {}
        for split, subsets in file["scores"].items():
            for values in subsets:
                subset = values["hf_subset"]
                label = name if subset == "default" else f"{name} ({subset})"
                metrics = {card: 100.0 * values[key] for card, key in shown.items() if values.get(key) is not None}
                found.append(
                    TaskResult(
                        task_type=task.type if task else "Other",
                        dataset_type=_REPOSITORIES.get(name, name),
                        dataset_name=f"MTEB {task.label if task and task.subset == subset else label}",
                        config=subset,
                        split=split,
                        revision=revision,
                        metrics=metrics or {"main_score": 100.0 * values["main_score"]},
                    )
                )
    except (KeyError, TypeError, AttributeError):
        raise InputError(
            f"a result must be as mteb 2.x writes it, got {str(file)[:80]}; evaluate the task again"
        ) from None
    return found


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


def eval_results(results: Iterable[TaskResult]) -> list[EvalResult]:
    """huggingface_hub's flat form, from which ``eval_results_to_model_index`` builds the model-index of a card."""
    return [
        EvalResult(
            task_type=result.task_type,
            dataset_type=result.dataset_type,
            dataset_name=result.dataset_name,
            dataset_config=result.config,
            dataset_split=result.split,
            dataset_revision=result.revision,
            metric_type=name,
            metric_value=result.metrics[name],
        )
        for result in results
        for name in sorted(result.metrics)
    ]


def scores(results: Iterable[TaskResult], benchmark: Benchmark) -> dict[str, float]:
    """Task name -> main score in percent, for the tasks of the benchmark that the results have."""
    return scores_from_model_index([result.entry for result in results], benchmark)


def eval_result_files(
    results: Iterable[TaskResult], benchmark: Benchmark, *, date: str | None = None, notes: str | None = None
) -> dict[str, str]:
    """The Hub's newer convention: ``.eval_results/Task.yaml`` -> its text, one file per task, main scores only.

    Args:
        results: the results; those whose task the benchmark does not have, or whose data is not on the Hub, are
            left out.
        benchmark: says which metric of a task is its main score.
        date: when they were measured, ISO 8601.
        notes: how they were measured, in a few words.
    """
    by_key = {(result.dataset_name, result.config, result.split): result for result in results}
    files = {}
    for task in benchmark.tasks:
        entries = []
        for split in task.splits:
            result = by_key.get((f"MTEB {task.label}", task.subset, split))
            if result is None or task.card_metric not in result.metrics or "/" not in result.dataset_type:
                continue
            known = result.revision if result.revision != "None" else None
            entries.append(
                EvalResultEntry(
                    dataset_id=result.dataset_type,
                    task_id=f"{task.name}_{task.subset}_{split}",
                    value=round(result.metrics[task.card_metric], 5),
                    dataset_revision=known,
                    date=date,
                    source_url="https://github.com/embeddings-benchmark/mteb",
                    source_name="mteb",
                    notes=notes or f"{task.card_metric}, {benchmark.name}",
                )
            )
        if entries:
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            files[f".eval_results/{task.name}.yaml"] = text
    return files


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place} is not JSON: {error}; evaluate the task again") from None


def _from_line(line: Mapping[str, Any], place: str) -> TaskResult:
    try:
        return TaskResult(**line)
    except TypeError:
        known = ", ".join(TaskResult.__dataclass_fields__)
        raise InputError(f"{place} must be a result with the fields {known}, got {line}") from None
