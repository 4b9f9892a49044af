"""Plain text tables, and matplotlib figures where matplotlib is installed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec
from unicodedata import east_asian_width

from piccolo_st.errors import MissingPackage, optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

P = ParamSpec("P")


def _width(text: str) -> int:
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
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


def empty_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure of so many inches, drawn without a display.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    with optional("a picture", "matplotlib", "quickstart"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    _draw_chinese()
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


# Files of fonts that have Chinese characters, of Linux, Windows and macOS.
_CHINESE = re.compile(r"NotoSans(CJK|SC)|SourceHanSans|wqy-|msyh|simhei|PingFang|Hiragino Sans GB|Arial Unicode", re.I)


@cache
def _draw_chinese() -> None:
    """Let what the usual font lacks be drawn by one that has it; without one matplotlib warns."""
    from matplotlib import font_manager, rcParams

    for path in sorted(filter(_CHINESE.search, font_manager.findSystemFonts())):  # its own list may be an old one
        font_manager.fontManager.addfont(path)
        name = font_manager.FontProperties(fname=path).get_name()
        rcParams["font.family"] = [*rcParams["font.family"], name]
        return


def picture(draw: Callable[P, Path], *arguments: P.args, **named: P.kwargs) -> Path | None:
    """Draw a picture at the end of a run, which is finished without one: what is missing becomes a warning.

    Returns:
        The file, or None.
    """
    try:
        return draw(*arguments, **named)
    except MissingPackage as error:
        logger.warning("%s", error)
        return None
