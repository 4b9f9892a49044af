"""The outcome of an evaluation: scores by task and type, as a table and as JSON. Nothing here imports mteb."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piccolo_st.environment import versions
from piccolo_st.evaluation.benchmarks import Averages, Benchmark, average_scores, scores_from_results
from piccolo_st.modeling import Identity
from piccolo_st.tables import table


@dataclass(frozen=True)
class Column:
    """A model in a table or a picture.

    Attributes:
        label: its name.
        scores: task name -> percent; empty where only the averages are known.
        averages: by the definition of the benchmark that the table or picture is of.
    """

    label: str
    scores: Mapping[str, float]
    averages: Averages

    @classmethod
    def of(cls, label: str, scores: Mapping[str, float], benchmark: Benchmark) -> Column:
        """The column of a model whose averages are computed from its scores."""
        return cls(label, scores, average_scores(scores, benchmark))


@dataclass(frozen=True)
class Evaluation:
    """One model, in one setting, on one group of tasks.

    Attributes:
        identity: name and revision of the model.
        settings: what changed the scores without changing the weights (``truncate_dim``, ``dtype``); may be empty.
        benchmark: the tasks and the definition by which they are scored and averaged.
        results: task name -> its parsed result file, with all metrics; tasks that failed are missing.
        folder: where the result files are.
        failures: task name -> why it has no result.
    """

    identity: Identity
    settings: Mapping[str, Any]
    benchmark: Benchmark
    results: Mapping[str, Mapping[str, Any]]
    folder: Path
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """Task name -> main score, in percent."""
        return scores_from_results(self.results.values(), self.benchmark)

    @property
    def averages(self) -> Averages:
        """Means over all tasks and over the tasks of each type, in percent; None where a task is missing."""
        return average_scores(self.scores, self.benchmark)

    @property
    def column(self) -> Column:
        """The model with its settings, for a table or a picture."""
        label = " ".join([str(self.identity), *(f"{key}={value}" for key, value in self.settings.items())])
        return Column(label, self.scores, self.averages)

    def table(self) -> str:
        """All tasks by type with their metric, then the averages."""
        return score_table([self.column], self.benchmark)

    def to_dict(self) -> dict[str, Any]:
        """Everything about the evaluation that :func:`json.dumps` can write; scores in percent."""
        averages, scores = self.averages, self.scores
        model = {"name": self.identity.name, "revision": self.identity.revision, "content": self.identity.content}
        return {
            "model": {**model, "settings": dict(self.settings)},
            "benchmark": {"name": self.benchmark.name, "description": self.benchmark.description},
            "average": averages.overall,
            "average_by_type": averages.by_type,
            "tasks": [
                {
                    "name": task.name,
                    "type": task.type,
                    "subset": task.subset,
                    "splits": list(task.splits),
                    "metric": task.metric,
                    "score": scores.get(task.name),
                    "dataset_revision": self.results.get(task.name, {}).get("dataset_revision"),
                    "mteb_version": self.results.get(task.name, {}).get("mteb_version"),
                    "failure": self.failures.get(task.name),
                }
                for task in self.benchmark.tasks
            ],
            "versions": versions(),
        }

    def save(self, path: Path) -> Path:
        """Write :meth:`to_dict` as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return path


def score_table(columns: Sequence[Column], benchmark: Benchmark) -> str:
    """A table of one column per model: tasks grouped by type, each type's mean, and the mean over all tasks.

    Args:
        columns: the models, all scored by the definition of ``benchmark``.
    """

    def cells(values: Iterable[float | None]) -> list[str]:
        return ["-" if value is None else f"{value:.2f}" for value in values]

    rows: list[list[str]] = []
    for task_type in benchmark.types:
        tasks = benchmark.of_type(task_type)
        for task in tasks:
            values = cells(column.scores.get(task.name) for column in columns)
            rows.append([task_type, task.label, task.metric, *values])
        if len(tasks) > 1:
            means = cells(column.averages.by_type.get(task_type) for column in columns)
            rows.append([task_type, f"mean of {len(tasks)}", "", *means])
    rows.append(["all", f"mean of {len(benchmark.tasks)}", "", *cells(column.averages.overall for column in columns)])
    title = f"{benchmark.name}: {benchmark.description}, in percent"
    return f"{title}\n{table(['type', 'task', 'metric', *(column.label for column in columns)], rows)}"
