"""Results as the Hub takes them: a README's model-index, and the newer files ``.eval_results/Task.yaml``."""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from piccolo_st.config import to_yaml
from piccolo_st.evaluation import Benchmark, TaskResult, counted


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


def eval_result_files(results: Iterable[TaskResult], benchmark: Benchmark) -> dict[str, str]:
    """The Hub's newer convention: ``.eval_results/Task.yaml`` -> its text, one file per task, main scores only.

    As mteb writes them: an entry for each split, and one for the whole task, called by its name, where it has no other
    subsets and every split is there.

    Args:
        results: the results; those whose task the benchmark does not have, or whose data is not on the Hub, are
            left out.
        benchmark: says which metric of a task is its main score.
    """
    found = counted(results, benchmark)
    files = {}
    for task in benchmark.tasks:
        measured = [(result, result.metrics[task.card_metric]) for result in found[task.name]]
        on_hub = [(result, value) for result, value in measured if "/" in result.dataset_type]
        places = [(f"{task.name}_{task.subset}_{result.split}", result, value) for result, value in on_hub]
        if (
            on_hub and len(on_hub) == len(task.splits) and task.subset == "default"
        ):  # of all subsets: the task as a whole
            places.append((task.name, on_hub[0][0], fsum(value for _, value in on_hub) / len(on_hub)))
        entries = [
            EvalResultEntry(
                dataset_id=result.dataset_type,
                task_id=place,
                value=round(value, 5),
                dataset_revision=result.revision if result.revision != "None" else None,
                source_url="https://github.com/embeddings-benchmark/mteb",
                source_name="mteb",
                notes=f"{task.card_metric}, {benchmark.name}",
            )
            for place, result, value in places
        ]
        if entries:
            text = to_yaml(eval_result_entries_to_yaml(entries))
            files[f".eval_results/{task.name}.yaml"] = text
    return files
