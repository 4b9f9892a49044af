"""The tables and the picture of an ablation: by group of tasks with intervals, by task, and the spread of the means."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from piccolo_st import cache, environment, tables
from piccolo_st.experiments.tasks import HELD_OUT, ScoredTask
from piccolo_st.experiments.variants import AblationSettings, ResolvedVariant


@dataclass(frozen=True)
class Result:
    """What a variant reached with one seed.

    Attributes:
        scores: task -> percent.
        seconds: of training and what comes before it.
        memory_mib: the peak of this process meanwhile, if known.
        examples: the folder of mteb's results, beside which lies what each example contributed.
    """

    scores: Mapping[str, float]
    seconds: float
    memory_mib: int | None = None
    examples: Path | None = None


Results: TypeAlias = dict[str, dict[int, Result]]
"""Variant -> seed -> result."""


def write(
    results: Results,
    variants: Mapping[str, ResolvedVariant],
    tasks: Sequence[ScoredTask],
    settings: AblationSettings,
    output: Path,
) -> str:
    """Write ``table.md``, ``ablation.json`` and ``ablation.png`` into a folder; returns the tables as plain text."""
    groups = _groups(results, tasks)
    both = [_by_group(results, variants, groups, tasks, settings), _by_task(results, variants, groups)]
    marked = [
        "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
        for header, rows in both
    ]
    cache.write_whole(output / "table.md", "\n\n".join(marked) + "\n")
    found = {name: {seed: dict(one.scores) for seed, one in own.items()} for name, own in results.items()}
    record = {"versions": environment.versions(), "groups": groups, "scores": found}
    cache.write_whole(output / "ablation.json", json.dumps(record, ensure_ascii=False, indent=2) + "\n")
    first = next(iter(groups))
    means = {_label(variants, name): list(_means(own, groups[first]).values()) for name, own in results.items()}
    title = f"mean of the tasks {first}, percent; one dot a seed"
    tables.picture(_plot_spread, means, output / "ablation.png", title)
    return "\n\n".join(tables.table(header, rows) for header, rows in both)


def _label(variants: Mapping[str, ResolvedVariant], name: str) -> str:
    return variants[name].variant.label or name


def _groups(results: Results, tasks: Sequence[ScoredTask]) -> dict[str, list[str]]:
    """Group -> its tasks; the mixture's held-out searches, which no entry names, come first."""
    names = list(next(iter(next(iter(results.values())).values())).scores)
    group_of = {task.name: task.group for task in tasks}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group_of.get(name, HELD_OUT), []).append(name)
    return groups


def _means(own: Mapping[int, Result], names: Sequence[str]) -> dict[int, float]:
    """Seed -> the mean of some tasks."""
    return {seed: statistics.fmean(one.scores[name] for name in names) for seed, one in own.items()}


def _by_group(
    results: Results,
    variants: Mapping[str, ResolvedVariant],
    groups: Mapping[str, list[str]],
    tasks: Sequence[ScoredTask],
    settings: AblationSettings,
) -> tuple[list[str], list[list[str]]]:
    """A row a variant: the mean of each group, its difference to another variant, seconds and memory."""
    against = f" against {settings.against}" if settings.against else ""
    header = ["variant", *(cell for name in groups for cell in (name, f"difference{against}"))]
    header += ["lowest to highest", "seconds", "MiB", "seeds"]
    rows = []
    for name, own in results.items():
        other = settings.against or variants[name].variant.after
        row = [_label(variants, name)]
        for names in groups.values():
            row.append(_mean_and_spread(list(_means(own, names).values())))
            known = other is not None and other != name and other in results
            row.append(_difference(own, results[str(other)], names, tasks) if known else "")
            if known and not settings.against:
                row[-1] += f" {other}"
        first = list(_means(own, next(iter(groups.values()))).values())
        memory = [one.memory_mib for one in own.values() if one.memory_mib is not None]
        row += [
            f"{min(first):.2f} to {max(first):.2f}",
            f"{statistics.median(one.seconds for one in own.values()):.0f}",
        ]
        rows.append([*row, f"{statistics.median(memory):.0f}" if memory else "", str(len(own))])
    return header, rows


def _difference(
    own: Mapping[int, Result], other: Mapping[int, Result], names: Sequence[str], tasks: Sequence[ScoredTask]
) -> str:
    """Of the means of some tasks, and its interval over examples where those of all tasks are kept.

    Each seed is compared with the same one of the other variant, or with its first where it has not that.
    """
    matched = [(now, other.get(seed) or next(iter(other.values()))) for seed, now in own.items()]
    gain = statistics.fmean(now.scores[name] - one.scores[name] for now, one in matched for name in names)
    known = {task.name: (str(task.entry["type"]), str(task.entry.get("split", "test"))) for task in tasks}
    pairs = [
        (one.examples, now.examples) for now, one in matched if one.examples is not None and now.examples is not None
    ]
    if len(pairs) < len(own) or not all(name in known for name in names):
        return f"{gain:+.2f}"
    from piccolo_st.evaluation import mean_difference, task_by_type

    found = mean_difference(pairs, [task_by_type(name, *known[name]) for name in names])
    return f"{gain:+.2f}" if found is None else f"{gain:+.2f} ({found[1]:+.2f} to {found[2]:+.2f})"


def _by_task(
    results: Results, variants: Mapping[str, ResolvedVariant], groups: Mapping[str, list[str]]
) -> tuple[list[str], list[list[str]]]:
    names = [name for own in groups.values() for name in own]
    rows = [
        [_label(variants, name), *(_mean_and_spread([one.scores[task] for one in own.values()]) for task in names)]
        for name, own in results.items()
    ]
    return ["variant", *names], rows


def _plot_spread(groups: Mapping[str, Sequence[float]], path: Path, title: str) -> Path:
    """Draw one bar a group, its mean, with a dot for each value, first group on top, into a PNG.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    figure = tables.empty_figure(8, 1.2 + 0.34 * len(groups))
    axes = figure.subplots()
    names = list(groups)[::-1]
    axes.barh(names, [sum(groups[name]) / len(groups[name]) for name in names], color="#b9cde6")
    for place, name in enumerate(names):
        axes.plot(groups[name], [place] * len(groups[name]), "o", color="#1f4e79", markersize=4)
    values = [value for group in groups.values() for value in group]
    start = max(0.0, min(values) - 5)
    axes.set_xlim(start, max(values) + 2)
    if start > 0:
        axes.set_xlabel(f"the bars begin at {start:.0f}, not at 0", fontsize=8)
    figure.suptitle(title, fontsize=10)  # over the labels too, which may leave the axes little room
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _mean_and_spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
