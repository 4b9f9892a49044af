"""What was found, in HTML: a table of scores side by side, and a map of the corpus with the query in it.

The map is SVG and not a chart component: the corpus is one path, a few bytes a text, so that it can be sent again at
every key pressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from piccolo_st.demo.search import Found, Hit, Projection, Searcher, Variant, Vectors

SHOWN_CHARACTERS = 500
MAP_POINTS = 2000
_WIDTH, _HEIGHT, _MARGIN = 480, 360, 24

CSS = """
.found { --faint: color-mix(in srgb, var(--body-text-color) 68%, transparent); --whole: 6em; width: 100%;
  border-collapse: collapse; font-size: 15px; line-height: 1.45; }
#found { overflow-x: auto; }
.found, .found thead, .found tr { border: none !important; }
.found th, .found td { padding: 6px 10px; border: none !important; text-align: left; vertical-align: top; }
.found tbody td { border-top: 1px solid var(--border-color-primary) !important; }
.found th { font-weight: 600; font-size: 13px; white-space: nowrap; color: var(--faint); }
.found th.model { text-align: center; white-space: normal; overflow-wrap: anywhere; color: var(--body-text-color); }
.found .score { white-space: nowrap; width: 1%; font-variant-numeric: tabular-nums; }
.found .rank { color: var(--faint); font-size: 12px; margin-left: 6px; display: inline-block; min-width: 3em; }
.found .bar { display: block; width: var(--whole); height: 4px; margin-top: 3px; border-radius: 2px; --bar: #2f7d6b;
  background: linear-gradient(to right, var(--bar) calc(100% * var(--score)), var(--border-color-primary) 0); }
.found .without .bar { --bar: #c98a2b; }
.found .text { min-width: 12em; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3;
  overflow: hidden; }
.found .beyond .text { color: var(--faint); }
@media (max-width: 640px) {
  .found { --whole: 3.5em; font-size: 13px; }
  .found th, .found td { padding: 5px 3px; }
  .found th, .found th.score { white-space: normal; font-size: 11px; }
  .found .rank { display: block; margin: 0; }
  .found .text { min-width: 7em; -webkit-line-clamp: 5; }
}
.facts { color: color-mix(in srgb, var(--body-text-color) 68%, transparent); font-size: 13px; margin: 4px 2px 10px;
  overflow-wrap: anywhere; }
.map { width: 100%; height: auto; display: block; background: var(--background-fill-secondary); border-radius: 8px; }
.map .texts { stroke: var(--body-text-color); stroke-opacity: .22; stroke-width: 3; stroke-linecap: round; fill: none; }
.map .hit circle { fill: #2f7d6b; stroke: var(--background-fill-primary); stroke-width: 1.5; }
.map .hit text { fill: #fff; font-size: 10px; text-anchor: middle; dominant-baseline: central; }
.map .query path { fill: #d1495b; stroke: var(--background-fill-primary); stroke-width: 1.5; }
.map .query text { fill: var(--body-text-color); font-size: 13px; font-weight: 600; paint-order: stroke;
  stroke: var(--background-fill-secondary); stroke-width: 4px; }
"""


def table(searcher: Searcher, found: Found, top: int = 10) -> str:
    """The texts that were found, a row each, with score and rank in every variant."""
    variants = searcher.variants
    models = list(dict.fromkeys(variant.model for variant in variants))
    spans = [sum(variant.model == model for variant in variants) for model in models]
    names = "".join(
        f'<th class="model" colspan="{span}">{escape(model)}</th>' for model, span in zip(models, spans, strict=True)
    )
    heads = "".join(f'<th class="score">{_instruction_name(variant)}</th>' for variant in variants)
    rows = "".join(_row(searcher, hit, top) for hit in found.hits)
    return (
        f'<table class="found"><thead><tr><th></th><th></th>{names}</tr>'
        f"<tr><th>#</th><th>文本 · text</th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _instruction_name(variant: Variant) -> str:
    """The head of a variant's column; the instruction of queries stands for both."""
    return f"有指令 · with {escape(variant.instruction)}" if variant.instruction else "无指令 · without"


def _row(searcher: Searcher, hit: Hit, top: int) -> str:
    cells = []
    for variant, score, rank in zip(searcher.variants, hit.scores, hit.ranks, strict=True):
        kind = "score" if variant.instruction else "score without"
        cells.append(
            f'<td class="{kind}">{score:.3f}<span class="rank">#{rank}</span>'
            f'<span class="bar" style="--score:{max(score, 0):.3f}"></span></td>'
        )
    text = escape(searcher.texts[hit.index][:SHOWN_CHARACTERS])
    beyond = ' class="beyond"' if hit.ranks[0] > top else ""
    return (
        f'<tr{beyond}><td>{hit.ranks[0]}</td><td><span class="text" title="{text}">{text}</span></td>'
        f"{''.join(cells)}</tr>"
    )


def facts(searcher: Searcher, found: Found, dimension: int) -> str:
    """What the search did and how long it took, in a line."""
    return (
        f'<div class="facts">{len(searcher.texts):,} 条文本 · texts, {dimension} / {searcher.dimension} 维 · '
        f"dimensions; 编码 · embedding {1000 * found.embedding_seconds:.0f} ms, 检索 · search "
        f"{1000 * found.search_seconds:.1f} ms</div>"
    )


def corpus_map(
    variant: Variant, dimension: int, query: str = "", vector: Vectors | None = None, ranked: Sequence[int] = ()
) -> str:
    """The texts in two dimensions (PCA), the best ones numbered as in the table, the query as a diamond.

    Args:
        variant: whose embeddings are drawn.
        dimension: how many of their dimensions.
        query: the query's text.
        vector: its embedding; nothing but the corpus is drawn without.
        ranked: indices of the best texts, the best first.
    """
    projection = variant.corpus.projection(min(dimension, variant.corpus.dimension))
    frame = _Frame(projection)
    marks = []
    for rank in range(len(ranked), 0, -1):  # the best one is drawn last, above the others
        x, y = frame.at(projection.points[ranked[rank - 1]])
        marks.append(f'<g class="hit"><circle cx="{x}" cy="{y}" r="8"/><text x="{x}" y="{y}">{rank}</text></g>')
    if vector is not None:
        x, y = frame.at(projection.place(vector))
        anchor, shift = ("end", -12) if x > 0.5 * _WIDTH else ("start", 12)
        label = escape(query if len(query) <= 12 else query[:12] + "…")
        marks.append(
            f'<g class="query"><path d="M{x} {y - 9}l9 9l-9 9l-9 -9z"/>'
            f'<text x="{x + shift}" y="{y + 5}" text-anchor="{anchor}">{label}</text></g>'
        )
    share = sum(projection.explained)
    return (
        f'<svg class="map" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><path class="texts" d="{frame.texts}"/>'
        f'{"".join(marks)}</svg><div class="facts">{escape(variant.model)}: PCA, {len(projection.mean)} → 2, '
        f"{100 * share:.0f}% 方差 · of the variance</div>"
    )


class _Frame:
    """Places on the picture, in pixels: the corpus fills it, and what lies outside is drawn at its edge."""

    def __init__(self, projection: Projection) -> None:
        points = projection.points
        self.low = points.min(axis=0)
        self.size = np.maximum(points.max(axis=0) - self.low, 1e-6)
        drawn = points[np.linspace(0, len(points) - 1, min(len(points), MAP_POINTS)).astype(int)]
        self.texts = "".join(f"M{x} {y}h0" for x, y in self._pixels(drawn))

    def at(self, point: NDArray[np.float32]) -> tuple[int, int]:
        x, y = self._pixels(point[None])[0]
        return int(x), int(y)

    def _pixels(self, points: NDArray[np.float32]) -> NDArray[np.int64]:
        share = np.clip((points - self.low) / self.size, 0, 1)
        share[:, 1] = 1 - share[:, 1]  # the picture counts from above
        inner = np.array([_WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN])
        return np.rint(_MARGIN + share * inner).astype(np.int64)
