"""The picture of an evaluation: the mean of every type as bars, one colour a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from piccolo_st.errors import InputError
from piccolo_st.evaluation.benchmarks import Benchmark
from piccolo_st.evaluation.results import Column
from piccolo_st.tables import empty_figure


def plot_evaluations(columns: Sequence[Column], benchmark: Benchmark, path: str | Path) -> Path:
    """Draw the mean of each type, and over all tasks, for each model, and write the picture.

    Args:
        columns: the models, all scored by the definition of ``benchmark``; an average with a missing task has no bar.
        path: ends in .png, .svg or .pdf.

    Raises:
        MissingPackage: matplotlib is not installed.
        InputError: no model has all tasks of any type.
    """
    groups = [
        *(f"{name}\n({len(benchmark.of_type(name))})" for name in benchmark.types),
        f"All\n({len(benchmark.tasks)})",
    ]
    values = [
        (column.label, [*map(column.averages.by_type.get, benchmark.types), column.averages.overall])
        for column in columns
    ]
    if all(value is None for _, heights in values for value in heights):
        raise InputError(f"no model has every task of any type of {benchmark.name}; evaluate the others")
    figure = empty_figure(1.6 * len(groups) + 1, 4.2)
    axes = figure.subplots()
    width = 0.8 / len(values)
    for number, (label, heights) in enumerate(values):
        places = [index + (number - (len(values) - 1) / 2) * width for index in range(len(groups))]
        shown = [(place, height) for place, height in zip(places, heights, strict=True) if height is not None]
        middles, tops = zip(*shown, strict=True) if shown else ((), ())
        bars = axes.bar(middles, tops, width, label=label) if shown else None
        if bars is not None and len(values) <= 3:
            axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(title=f"{benchmark.name}: means by type", ylabel="percent", ylim=(0, 100))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="upper right")
    figure.savefig(path, dpi=120)
    return Path(path)
