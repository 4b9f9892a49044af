"""What a run shows and leaves behind: the plan before it, the table and the picture after it; record.py has the record.

Pure text and files; nothing here trains or loads a model.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from piccolo_st.errors import MissingPackage

logger = logging.getLogger(__name__)

# Metric of the table -> the ending of its key in the trainer's log history.
METRICS = {"nDCG@10": "_ndcg@10", "recall@10": "_recall@10", "MRR@10": "_mrr@10"}

_PACKAGES = (
    "piccolo_st",
    "sentence-transformers",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "torch",
    "deepspeed",
    "mteb",
    "numpy",
)


def _width(text: str) -> int:
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain text table, columns padded to the display width (a Chinese character takes two places).

    Columns of numbers, some cells perhaps empty, stand right, everything else left; floats get two decimals.
    """
    columns = range(len(header))
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(_width(row[column]) for row in [list(header), *cells]) for column in columns]
    filled = [[row[column] for row in rows if row[column] != ""] for column in columns]
    numeric = [bool(own) and all(isinstance(value, (int, float)) for value in own) for own in filled]

    def line(row: Sequence[str]) -> str:
        padded = [
            " " * (width - _width(cell)) + cell if right else cell + " " * (width - _width(cell))
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, cells)])


def evaluations(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The retrieval evaluations of a trainer's log history, in order.

    Args:
        history: ``trainer.state.log_history``.

    Returns:
        One dictionary per evaluation: "step", and each metric of ``METRICS`` in percent. When several sets were
        searched, a metric is the mean over them.
    """
    found: list[dict[str, float]] = []
    for entry in history:
        values: dict[str, float] = {}
        for name, ending in METRICS.items():
            scores = [100.0 * float(value) for key, value in entry.items() if key.endswith(ending)]
            if scores:
                values[name] = sum(scores) / len(scores)
        if values:
            found.append({"step": float(entry.get("step", 0)), **values})
    return found


def comparison(history: Sequence[Mapping[str, Any]]) -> str:
    """The table of the first evaluation against the last one, in percent; empty text when there are not two."""
    points = evaluations(history)
    if len(points) < 2:
        return ""
    first, last = points[0], points[-1]
    rows = [[name, first[name], last[name], last[name] - first[name]] for name in METRICS]
    return table(["held-out search", "before", "after", "gain"], rows)


def empty_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches, drawn without a display.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage("a picture", "matplotlib", "quickstart") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def picture(draw: Callable[..., Path], *arguments: Any) -> Path | None:
    """Draw a picture at the end of a run, which is finished without one: what is missing becomes a warning.

    Returns:
        The file, or None.
    """
    try:
        return draw(*arguments)
    except MissingPackage as error:
        logger.warning("%s", error)
        return None


def plot_curves(history: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> Path:
    """Draw the logged loss and the search metrics over steps into one PNG.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    points = evaluations(history)
    figure = empty_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    for name, curve in (("training", losses), ("held out", held_out)):
        if curve:
            left.plot(*zip(*curve, strict=True), linewidth=1.2, label=name, marker="o" if name == "held out" else None)
    if held_out:
        left.legend()
    left.set(title="training loss", xlabel="step", ylabel="loss")
    for name in METRICS if points else ():
        right.plot([point["step"] for point in points], [point[name] for point in points], marker="o", label=name)
    right.set(title="search over held-out queries", xlabel="step", ylabel="percent", ylim=(0, 100))
    if points:
        right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=120)
    return path


def plot_spread(groups: Mapping[str, Sequence[float]], path: Path, title: str = "") -> Path:
    """Draw one bar a group, its mean, with a dot for each value, first group on top, into a PNG.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    figure = empty_figure(8, 1.2 + 0.34 * len(groups))
    axes = figure.subplots()
    names = list(groups)[::-1]
    axes.barh(names, [sum(groups[name]) / len(groups[name]) for name in names], color="#b9cde6")
    for place, name in enumerate(names):
        axes.plot(groups[name], [place] * len(groups[name]), "o", color="#1f4e79", markersize=4)
    values = [value for group in groups.values() for value in group]
    axes.set_xlim(max(0.0, min(values) - 5), max(values) + 2)
    figure.suptitle(title, fontsize=10)  # over the labels too, which may leave the axes little room
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def versions() -> dict[str, str]:
    """The installed version of every package that decides a run's numbers, and of Python."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
