"""Names -> mteb tasks and the definition by which they are scored.

A name is, in this order: a file of local tasks (``*.yaml``); a benchmark
(:data:`piccolo_st.evaluation.benchmarks.BENCHMARKS`); one of the six task types, meaning those tasks of ``c-mteb-35``;
a task of ``c-mteb-35``; or any other text task of mteb, with ``:subset`` behind it where it has several
(``STS22:zh-en``), which is scored by mteb's own main score.

Every benchmark and every file is a group with its own table and averages. Single tasks and types together are one
group, ``selection``, scored by the definition of ``c-mteb-35`` where it has the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mteb
from mteb.abstasks.abstask import AbsTask
from mteb.get_tasks import TASK_LIST

from piccolo_st.errors import InputError, nearest
from piccolo_st.evaluation.benchmarks import BENCHMARKS, C_MTEB_35, TASK_TYPES, Benchmark, BenchmarkTask
from piccolo_st.evaluation.local_tasks import load_local_tasks


@dataclass(frozen=True)
class TaskGroup:
    """Tasks that are averaged together: the definition, and mteb's task object of each of its tasks, in its order."""

    benchmark: Benchmark
    tasks: tuple[AbsTask, ...]


def select(names: str | Sequence[str]) -> list[TaskGroup]:
    """The groups of tasks that the names mean; see the module docstring for what a name can be.

    Raises:
        InputError: a name is unknown (the message holds the nearest names), needs a subset, or occurs twice; or a
            task's name means two tasks, or two of its subsets.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise InputError(f"nothing to evaluate on; name a benchmark ({', '.join(BENCHMARKS)}), a task or a type")
    groups: dict[str, TaskGroup] = {}
    selection: dict[str, BenchmarkTask] = {}
    for name in names:
        if Path(name).suffix in (".yaml", ".yml"):
            group = _local_group(Path(name))
        elif name in BENCHMARKS:
            benchmark = BENCHMARKS[name]
            group = TaskGroup(benchmark, tuple(map(mteb_task, benchmark.tasks)))
        else:
            for task in _single(name):
                if (known := selection.setdefault(task.name, task)).subset != task.subset:
                    raise InputError(
                        f"one evaluation scores one subset of {task.name}, got {known.subset!r} and {task.subset!r}; "
                        "evaluate them in two commands"
                    )
            continue
        if group.benchmark.name in groups:
            raise InputError(f"two groups are called {group.benchmark.name!r}; name each benchmark and file once")
        groups[group.benchmark.name] = group
    if selection:
        benchmark = Benchmark("selection", "single tasks, scored as in c-mteb-35 or by mteb", tuple(selection.values()))
        groups["selection"] = TaskGroup(benchmark, tuple(map(mteb_task, benchmark.tasks)))
    _one_task_a_name(groups.values())
    return list(groups.values())


def _one_task_a_name(groups: Iterable[TaskGroup]) -> None:
    """Results are kept by the task's name, so a name must mean the same data in every group."""
    known: dict[str, tuple[str, str]] = {}
    for group in groups:
        for task in group.tasks:
            revision, first = known.setdefault(task.metadata.name, (task.metadata.revision, group.benchmark.name))
            if revision != task.metadata.revision:
                raise InputError(
                    f"a task of one name must be the same in every file, got another {task.metadata.name!r} in "
                    f"{group.benchmark.name!r} than in {first!r}; give one of them another name"
                )


def mteb_task(task: BenchmarkTask) -> AbsTask:
    """mteb's own task object, limited to the subset and the splits of the definition."""
    return mteb.get_task(task.name, hf_subsets=[task.subset], eval_splits=list(task.splits))


def _local_group(path: Path) -> TaskGroup:
    pairs = load_local_tasks(path)
    definition = Benchmark(path.stem, f"local tasks of {path.name}", tuple(definition for definition, _ in pairs))
    return TaskGroup(definition, tuple(task for _, task in pairs))


def _single(name: str) -> tuple[BenchmarkTask, ...]:
    if name in TASK_TYPES:
        return C_MTEB_35.of_type(name)
    known = {task.name: task for task in C_MTEB_35.tasks}
    if name in known:
        return (known[name],)
    plain, _, subset = name.partition(":")
    metadata = {task.metadata.name: task.metadata for task in TASK_LIST if task.metadata.modalities == ["text"]}
    if plain not in metadata:
        near = nearest(plain, [*BENCHMARKS, *TASK_TYPES, *metadata])
        raise InputError(
            f"unknown benchmark, task type or text task {name!r}{near}; "
            f"benchmarks: {', '.join(BENCHMARKS)}; types: {', '.join(TASK_TYPES)}; or a .yaml file of local tasks"
        )
    found = metadata[plain]
    if not subset and len(found.hf_subsets) > 1:
        raise InputError(f"{plain} has several subsets; name one, as in '{plain}:{found.hf_subsets[0]}'")
    if subset and subset not in found.hf_subsets:
        raise InputError(f"unknown subset {subset!r} of {plain}{nearest(subset, found.hf_subsets)}")
    subset = subset or found.hf_subsets[0]
    label = plain if subset == "default" else f"{plain} ({subset})"
    splits = tuple(found.eval_splits)
    metric, repository = found.main_score, found.dataset["path"]
    return (BenchmarkTask(plain, found.type, metric, splits, subset, label, metric, repository),)
