"""What a guide model says is no negative (Solatorio 2024, arXiv 2402.16829, "GISTEmbed").

With g the guide's cosine, a candidate c of anchor a in row i is left out where g(a, c) is above

    absolute  g(q_i, p_i) - margin
    relative  g(q_i, p_i) - margin |g(q_i, p_i)|

in any direction; the own pair never is. As in ST's GISTEmbedLoss, one positive pair sets the limit of its whole row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import get_args

import torch
from torch import Tensor

from piccolo_st.losses.choices import MarginStrategy
from piccolo_st.losses.tiles import Layout


def check_guide_margin(margin: float, strategy: str) -> None:
    """Raises ValueError unless the margin is finite and the strategy one of those."""
    if not isinstance(margin, Real) or not math.isfinite(margin):
        raise ValueError(f"guide_margin must be a finite number, got {margin!r}")
    if strategy not in get_args(MarginStrategy):
        raise ValueError(
            f"guide_margin_strategy must be one of {', '.join(get_args(MarginStrategy))}, got {strategy!r}"
        )


@dataclass(frozen=True)
class Guide:
    """The guide's view of a batch.

    Attributes:
        vectors: its unit vectors of the queries, the positives and the hard negatives, all of one dtype.
        margin, strategy: see the module docstring.
    """

    vectors: Sequence[Tensor]
    margin: float = 0.0
    strategy: MarginStrategy = "absolute"

    def too_close(self, layout: Layout, start: int, stop: int) -> Tensor:
        """Which candidates rows ``start`` to ``stop`` leave out, perhaps the own pair too: (R, anchors, width)."""
        anchors = torch.stack([x[start:stop] for x in self.vectors[: layout.anchors]], dim=1)
        own = (self.vectors[0][start:stop] * self.vectors[1][start:stop]).sum(dim=1)
        limit = (own - self.margin * (own.abs() if self.strategy == "relative" else 1)).view(-1, 1, 1)
        close = torch.zeros(*anchors.shape[:2], layout.width, dtype=torch.bool, device=anchors.device)
        for kind, which, columns in layout.blocks:
            some, candidates = anchors[:, which], self.vectors[kind]
            scores = some.new_empty(*some.shape[:2], len(candidates))
            torch.mm(some.flatten(0, 1), candidates.T, out=scores.flatten(0, 1))  # into a tensor: not in half precision
            close[:, which, columns] = scores > limit
        return close
