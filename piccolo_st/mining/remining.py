"""Negatives that change while a run goes on: the settings, which rows are judged when, and the rules.

(1) mining keeps more candidates for a row than are used, in its own order (``oversample``); at first the row's own
    negatives and the first ``num_negatives`` of the candidates are in use;
(2) after every ``every`` optimizer steps a share of the rows of coming steps is judged by the model as it is then. The
    batches of the next ``AHEAD`` steps may have been read already, by workers perhaps; what is judged holds from the
    step behind them on, however many of them have been. A run that goes on from a checkpoint reads the same;
(3) ``easy``, the rule of Conan-embedding (arXiv 2408.15710): a negative whose similarity to the query has fallen gives
    its place to the row's next candidate, whose first similarity is that of its first judgement. ``hardest``, as ANCE
    has it (arXiv 2007.00808): the candidates most like the query now are used, save those too like the positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from piccolo_st.batches import BatchPlan
from piccolo_st.hashing import mix, mix_array
from piccolo_st.schema import Count, Number, Overlaid, Positive, PositiveShare

AHEAD = 16
"""Optimizer steps, at most, between a judgement and the first step that it holds for."""


@dataclass(frozen=True)
class ReminingSettings(Overlaid):
    """When and by which rule mined negatives change while a run goes on.

    Attributes:
        every: optimizer steps from one judgement to the next; None: those of an epoch.
        share: of the rows of the steps until the next judgement that are judged, which bounds the cost.
        rule: ``easy``: a negative that has become easy gives its place to the row's next candidate; ``hardest``: the
            candidates most like the query now are used, save those that the mining's ``relative_margin`` leaves out.
        decline: a negative is easy once its similarity times this is below its first one, and it is below ``ceiling``.
        ceiling: the similarity from which on no negative is easy; ``hardest`` reads neither.
        oversample: candidates that mining keeps for each negative in use.
    """

    PLACE: ClassVar[str] = "remining"

    every: Count | None = 100
    share: PositiveShare = 0.15
    rule: Literal["easy", "hardest"] = "easy"
    decline: Positive = 1.15
    ceiling: Number = 0.8
    oversample: Count = 3

    def interval(self, plan: BatchPlan) -> int:
        """Optimizer steps from one judgement to the next."""
        return self.every if self.every is not None else plan.steps() // plan.accumulation_steps

    def ahead(self, plan: BatchPlan) -> int:
        """Optimizer steps from a judgement to the first one that it holds for, at most those to the next judgement."""
        return min(AHEAD, self.interval(plan))


def due(plan: BatchPlan, begin: int, end: int, share: float) -> dict[int, NDArray[np.int64]]:
    """Step (2): the rows that are judged of those that all ranks read at some optimizer steps.

    Args:
        plan: of the batches.
        begin, end: the first of the steps, and the one behind the last.
        share: of the rows that are judged, drawn by dataset, row and visit.

    Returns:
        Dataset -> its rows, ascending, each once.
    """
    found: dict[int, list[NDArray[np.int64]]] = {}
    for number in range(begin * plan.accumulation_steps, end * plan.accumulation_steps):
        step = plan.step(*divmod(number, plan.steps()))
        keys = mix_array(mix(plan.seed, step.dataset, step.visit), step.rows.view(np.uint64))
        drawn = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share
        found.setdefault(step.dataset, []).append(step.rows[drawn])
    return {dataset: np.unique(np.concatenate(rows)) for dataset, rows in found.items()}


def without_easy(
    places: NDArray[np.int32],
    first: NDArray[np.float32],
    scores: NDArray[np.float32],
    lengths: NDArray[np.int32],
    settings: ReminingSettings,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Step (3), ``easy``.

    Args:
        places: of the negatives in use in each row's list of candidates: (rows, most), -1 where there are fewer.
        first: their first similarities, NaN where they have none yet: (rows, most).
        scores: their similarities now: (rows, most).
        lengths: of the lists of candidates: (rows,).
        settings: decline and ceiling.

    Returns:
        ``places`` and ``first`` from now on. A row whose candidates are used up keeps what it has.
    """
    easy = (scores * np.float32(settings.decline) < first) & (scores < settings.ceiling)  # never of a NaN
    first = np.where(np.isnan(first), scores, first)
    following = places.max(axis=1, keepdims=True, initial=-1) + np.cumsum(easy, axis=1)
    taken = easy & (following < lengths[:, None])
    return np.where(taken, following, places).astype(np.int32), np.where(taken, np.float32(np.nan), first)


def hardest(
    places: NDArray[np.int32],
    counts: NDArray[np.int32],
    scores: NDArray[np.float32],
    right: NDArray[np.float32],
    margin: float | None,
) -> NDArray[np.int32]:
    """Step (3), ``hardest``.

    Args:
        places: of the negatives in use: (rows, most); what a row keeps for which nothing is left.
        counts: how many of its candidates a row uses: (rows,), at most ``most``.
        scores: similarities of all candidates now: (rows, candidates), NaN where a row has fewer.
        right: that of the positive: (rows,).
        margin: the share of it by which a candidate must be less like the query; None: any candidate is taken.

    Returns:
        The places from now on, the most similar first.
    """
    limits = np.full_like(right, np.inf) if margin is None else right - np.abs(right) * np.float32(margin)
    allowed = scores <= limits[:, None]  # never of a NaN
    most = places.shape[1]
    order = np.argsort(np.where(allowed, -scores, np.inf), axis=1, kind="stable")[:, :most].astype(np.int32)
    order = np.pad(order, ((0, 0), (0, most - order.shape[1])))
    kept = np.arange(most) < np.minimum(counts, allowed.sum(axis=1))[:, None]
    found = np.where(kept, order, np.int32(-1))
    return np.where(kept.any(axis=1, keepdims=True), found, places)
