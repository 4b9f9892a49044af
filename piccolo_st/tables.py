"""What a run shows and leaves behind: the plan before it, the table and the picture after it; releasing/record.py has
the record.

Pure text and files; nothing here trains or loads a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from piccolo_st.errors import MissingPackage

logger = logging.getLogger(__name__)


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
