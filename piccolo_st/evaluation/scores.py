"""Models side by side: scores and averages as a table and a picture, and what an evaluation comes to; without mteb."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from piccolo_st.config import load_yaml
from piccolo_st.environment import versions
from piccolo_st.errors import InputError
from piccolo_st.evaluation.benchmarks import C_MTEB_35, Averages, Benchmark, average_scores
from piccolo_st.evaluation.results import ResultFile, from_mteb, read_results, task_scores
from piccolo_st.modeling import Identity
from piccolo_st.schema import build
from piccolo_st.tables import empty_figure, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ModelFacts(TypedDict, total=False):
    """What a card's table says of a model beside its scores; all may be unknown.

    Attributes:
        size_gb: the size of its weights in GB (10^9 bytes).
        dimension: the length of an embedding.
        max_tokens: the longest input in tokens.
    """

    size_gb: float | None
    dimension: int | None
    max_tokens: int | None


@dataclass(frozen=True)
class ModelScores:
    """A model in a table, a picture or a card, scored by the definition of one benchmark.

    Attributes:
        model: its name; in a card a Hub id becomes a link.
        scores: task name -> percent; empty where only the averages are known.
        averages: in percent, None where a task has no score.
        facts: what else is known of it.
    """

    model: str
    scores: Mapping[str, float]
    averages: Averages
    facts: ModelFacts = field(default_factory=ModelFacts)

    @classmethod
    def of(
        cls, model: str, scores: Mapping[str, float], benchmark: Benchmark, facts: ModelFacts | None = None
    ) -> ModelScores:
        """A model whose averages are computed from its scores."""
        return cls(model, scores, average_scores(scores, benchmark), facts or {})


@dataclass(frozen=True)
class ModelRow:
    """One model in a YAML file of models to compare with: its averages, or the results to compute them from.

    Attributes:
        model: its name.
        size_gb, dimension, max_tokens: as in :class:`ModelFacts`.
        average: the mean over the tasks of the benchmark, in percent.
        by_type: task type -> mean over its tasks, in percent.
        results: in place of both averages, a file or folder of results, relative to the YAML file.
        benchmark: the name of the definition by which the averages are, or ``results`` become, averages.
    """

    model: str
    size_gb: float | None = None
    dimension: int | None = None
    max_tokens: int | None = None
    average: float | None = None
    by_type: Mapping[str, float | None] = field(default_factory=dict)
    results: str | None = None
    benchmark: str = C_MTEB_35.name


def read_rows(path: str | Path, benchmark: Benchmark) -> list[ModelScores]:
    """The models of a YAML file that holds a list of :class:`ModelRow`, if ``benchmark`` is what averaged them.

    The averages of another benchmark's tasks say nothing beside these; who is left out is printed.

    Raises:
        InputError: the file is no such list; the message names the row.
    """
    path = Path(path)
    content = load_yaml(path)
    if not isinstance(content, list):
        raise InputError(f"{path} must hold a list of rows, got {type(content).__name__}")
    rows = [build(ModelRow, row, f"{path}, row {n}") for n, row in enumerate(content, 1)]
    if others := [f"{row.model} ({row.benchmark})" for row in rows if row.benchmark != benchmark.name]:
        print(f"left out: {path} has averages by another definition than that of {benchmark.name}: {', '.join(others)}")
    return [_model(row, path.parent, benchmark) for row in rows if row.benchmark == benchmark.name]


def _model(row: ModelRow, folder: Path, benchmark: Benchmark) -> ModelScores:
    facts = ModelFacts(size_gb=row.size_gb, dimension=row.dimension, max_tokens=row.max_tokens)
    if row.results is None:
        return ModelScores(row.model, {}, Averages(row.average, dict(row.by_type), ()), facts)
    results = read_results(folder / row.results, benchmark)
    return ModelScores.of(row.model, task_scores(results, benchmark), benchmark, facts)


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
    settings: Mapping[str, object]
    benchmark: Benchmark
    results: Mapping[str, ResultFile]
    folder: Path
    failures: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def model_scores(self) -> ModelScores:
        """The model with its settings, for a table or a picture."""
        name = " ".join([str(self.identity), *(f"{key}={value}" for key, value in self.settings.items())])
        results = [one for file in self.results.values() for one in from_mteb(file, self.benchmark)]
        return ModelScores.of(name, task_scores(results, self.benchmark), self.benchmark)

    @property
    def scores(self) -> Mapping[str, float]:
        """Task name -> main score, in percent."""
        return self.model_scores.scores

    @property
    def averages(self) -> Averages:
        """Means over all tasks and over the tasks of each type, in percent; None where a task is missing."""
        return self.model_scores.averages

    def table(self) -> str:
        """All tasks by type with their metric, then the averages."""
        return score_table([self.model_scores], self.benchmark)

    def to_dict(self) -> dict[str, object]:
        """Everything about the evaluation that :func:`json.dumps` can write; scores in percent."""
        model = {"name": self.identity.name, "revision": self.identity.revision, "content": self.identity.content}
        tasks = []
        for task in self.benchmark.tasks:
            result = self.results.get(task.name)
            tasks.append(
                {
                    "name": task.name,
                    "type": task.type,
                    "subset": task.subset,
                    "splits": list(task.splits),
                    "metric": task.metric,
                    "score": self.scores.get(task.name),
                    "dataset_revision": result and result.get("dataset_revision"),
                    "mteb_version": result and result.get("mteb_version"),
                    "failure": self.failures.get(task.name),
                }
            )
        return {
            "model": {**model, "settings": dict(self.settings)},
            "benchmark": {"name": self.benchmark.name, "description": self.benchmark.description},
            "average": self.averages.overall,
            "average_by_type": self.averages.by_type,
            "tasks": tasks,
            "versions": versions(),
        }

    def save(self, path: Path) -> Path:
        """Write :meth:`to_dict` as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return path


def score_table(models: Sequence[ModelScores], benchmark: Benchmark) -> str:
    """A table of one column per model: tasks grouped by type, each type's mean, and the mean over all tasks.

    Args:
        models: all scored by the definition of ``benchmark``.
    """

    def cells(values: Iterable[float | None]) -> list[str]:
        return ["-" if value is None else f"{value:.2f}" for value in values]

    rows: list[list[str]] = []
    for task_type in benchmark.types:
        tasks = benchmark.of_type(task_type)
        for task in tasks:
            values = cells(each.scores.get(task.name) for each in models)
            rows.append([task_type, task.label, task.metric, *values])
        if len(tasks) > 1:
            means = cells(each.averages.by_type.get(task_type) for each in models)
            rows.append([task_type, f"mean of {len(tasks)}", "", *means])
    rows.append(["all", f"mean of {len(benchmark.tasks)}", "", *cells(each.averages.overall for each in models)])
    title = f"{benchmark.name}: {benchmark.description}, in percent"
    return f"{title}\n{table(['type', 'task', 'metric', *(each.model for each in models)], rows)}"


def plot_evaluations(models: Sequence[ModelScores], benchmark: Benchmark, path: str | Path) -> Path:
    """Draw each task, the mean of each type, and over all tasks, for each model, and write the picture.

    Args:
        models: all scored by the definition of ``benchmark``; what has no score, or a missing task, has no bar.
        path: ends in .png, .svg or .pdf.

    Raises:
        MissingPackage: matplotlib is not installed.
        InputError: no model has all tasks of any type.
    """
    means = {f"{name}\n({len(benchmark.of_type(name))})": name for name in benchmark.types}
    of_types = [
        (each.model, [*map(each.averages.by_type.get, means.values()), each.averages.overall]) for each in models
    ]
    if all(value is None for _, heights in of_types for value in heights):
        raise InputError(f"no model has every task of any type of {benchmark.name}; evaluate the others")
    of_tasks = [(each.model, [each.scores.get(task.name) for task in benchmark.tasks]) for each in models]
    groups = [*means, f"All\n({len(benchmark.tasks)})"]
    wide = max(1.6 * len(groups) + 1, 0.5 * len(benchmark.tasks) + 1)
    figure = empty_figure(wide, 8.4)
    upper, lower = figure.subplots(2, 1)
    _bars(upper, groups, of_types)
    upper.set_title(f"{benchmark.name}: means by type")
    upper.legend(fontsize=8, loc="upper right")
    _bars(lower, [task.label for task in benchmark.tasks], of_tasks)
    lower.tick_params(axis="x", labelrotation=90 if len(benchmark.tasks) > 6 else 0, labelsize=7)
    lower.set_title("each task")
    figure.savefig(path, dpi=120)
    return Path(path)


def _bars(axes: Axes, groups: Sequence[str], values: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    """Bars from zero, a group of one a model beside the other."""
    width = 0.8 / len(values)
    for number, (label, heights) in enumerate(values):
        places = [index + (number - (len(values) - 1) / 2) * width for index in range(len(groups))]
        shown = [(place, height) for place, height in zip(places, heights, strict=True) if height is not None]
        middles, tops = zip(*shown, strict=True) if shown else ((), ())
        bars = axes.bar(middles, tops, width, label=label) if shown else None
        if bars is not None and len(values) <= 3:
            axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(ylabel="percent", ylim=(0, 100))
    axes.grid(axis="y", alpha=0.3)
