"""The improved contrastive loss of GTE over any number of negatives, exact, in memory that grows linearly.

For row i with query q_i, positive p_i and similarity s (cosine), temperature t (Li et al. 2023, arXiv 2308.03281):

    loss_i = -s(q_i, p_i)/t + log Z_i
    Z_i    = sum over documents d  exp(s(q_i, d)/t)        query_to_doc, the own positive included
           + sum over queries q_j  exp(s(q_i, q_j)/t)      query_to_query
           + sum over queries q_j  exp(s(p_i, q_j)/t)      doc_to_query, the own query included
           + sum over documents d  exp(s(p_i, d)/t)        doc_to_doc

where documents are all positives and all hard negatives of the batch, and each sum leaves out what is no negative of
row i (``false_negatives.py``). The similarities are 2N x (2N + M) numbers; they are never all there. The loss is a
scalar, so its gradients can be made in the forward pass and only scaled in the backward pass:

    for each tile of R rows, in one buffer of R x 2 anchors (the query, the positive) x all candidates:
    (1) scores: one matrix product of the anchors with each kind of candidates, already divided by t
    (2) what is no negative gets the score -inf; so does, with a margin, what is more similar than the positive allows,
        and, with a guide, what is so to the guide (``guide.py``); hardness then weighs negatives (``weights.py``)
    (3) log Z_i from the maximum and the sum of exponentials of row i's two anchors; the exponentials stay in the buffer
    (4) the own pair's entry becomes minus the sum of all others: now buffer / Z_i is d loss_i / d scores (its entry
        among doc_to_query stands for the same product of vectors and is 0, so that nothing cancels); a focal weight of
        the row takes its part here
    (5) gradients: two more matrix products with the buffer, one for the anchors and one for the candidates

That is three matrix products and a few passes over a buffer that is still in the cache; nothing is computed twice.

Products and sums are float32 whatever the embeddings are (float64 for float64 ones), also under autocast, which leaves
products alone that write into a given tensor, as all of these do. The products follow
``torch.set_float32_matmul_precision``: "high" or "medium" puts them on tensor cores (or AMX), still with float32 sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from piccolo_st.losses.at_once import Saved, at_once
from piccolo_st.losses.choices import DIRECTIONS
from piccolo_st.losses.false_negatives import Exclusions
from piccolo_st.losses.guide import Guide
from piccolo_st.losses.tiles import EXP_FLOOR, Layout, layout_of, tile_ranges
from piccolo_st.losses.weights import Weights


class Contrast(NamedTuple):
    """What :func:`contrastive_loss` returns.

    Attributes:
        loss: scalar, float32 (float64 for float64 embeddings), differentiable once.
        masked_duplicates: how many candidates were left out as duplicates, over the local rows and all directions.
        masked_by_margin, masked_by_guide: scalar int64 tensors on the embeddings' device: how many of the others were
            left out for the margin, and how many of the rest for the guide.
    """

    loss: Tensor
    masked_duplicates: int
    masked_by_margin: Tensor
    masked_by_guide: Tensor


def unit(embeddings: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 (float64 stays); differentiable once. A zero row stays, without gradient."""
    rows = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    scaled: Tensor = _Unit.apply(rows)  # type: ignore[no-untyped-call]
    return scaled


class _Unit(torch.autograd.Function):
    """x / |x|, whose backward pass makes one tensor as large as x, where autograd's makes four."""

    @staticmethod
    def forward(ctx: Saved, rows: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        norm.masked_fill_(norm == 0, math.inf)
        ctx.save_for_backward(rows, norm)
        return rows / norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Saved, gradient: Tensor) -> Tensor:
        rows, norm = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, rows).unsqueeze(-1)
        return torch.addcmul(gradient, rows, along / norm / norm, value=-1).div_(norm)


def check_directions(directions: Sequence[str]) -> tuple[str, ...]:
    """The directions as a tuple in the order of :data:`DIRECTIONS`.

    Raises:
        ValueError: an unknown or repeated name, or query_to_doc is missing.
    """
    chosen = (directions,) if isinstance(directions, str) else tuple(directions)
    unknown = [name for name in chosen if name not in DIRECTIONS]
    if unknown or len(set(chosen)) != len(chosen):
        raise ValueError(f"directions must be different names of {DIRECTIONS}, got {chosen}")
    if "query_to_doc" not in chosen:
        raise ValueError(f"directions must hold 'query_to_doc', which has the positive pair, got {chosen}")
    return tuple(name for name in DIRECTIONS if name in chosen)


def check_temperature(temperature: float) -> float:
    """The temperature. Raises ValueError unless it is positive and finite."""
    if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, got {temperature!r}")
    return float(temperature)


def check_margin(margin: float | None) -> float | None:
    """The margin above the positive's similarity. Raises ValueError if it is negative: that would drop the positive."""
    if margin is not None and not (isinstance(margin, Real) and margin >= 0):
        raise ValueError(f"false_negative_margin must be None or at least 0, got {margin!r}")
    return margin


def contrastive_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    exclusions: Exclusions,
    *,
    temperature: float,
    directions: Sequence[str] = DIRECTIONS,
    rows: tuple[int, int] | None = None,
    divisor: float | None = None,
    false_negative_margin: float | None = None,
    guide: Guide | None = None,
    weights: Weights | None = None,
    tile_rows: int | None = None,
) -> Contrast:
    """The contrastive loss of some rows against all, see the module docstring.

    Args:
        queries: (N, D) unit vectors, all ranks' rows.
        positives: (N, D) unit vectors.
        negatives: (M, D) unit vectors, M >= 0.
        exclusions: which candidates are no negatives of which row; built for N rows and M hard negatives.
        temperature: t.
        directions: which of the four sums make Z.
        rows: (start, stop), the rows whose losses are summed: this rank's own. None: all.
        divisor: what the sum is divided by. None: the number of rows in ``rows``, so the loss is their mean.
        false_negative_margin: leave out a candidate whose similarity exceeds the positive's by more than this.
        guide: leave out what a guide model finds too close to be a negative; its vectors of these rows.
        weights: of negatives and rows. None: all count the same.
        tile_rows: R, how many rows are computed at a time. None: as many as fit into 32 MiB on a CPU and 256 MiB
            elsewhere, at least 64.

    Raises:
        ValueError: shapes or dtypes that do not fit, rows out of range, a temperature, divisor or tile_rows that is not
            positive, a negative margin, unknown directions.
    """
    _check_shapes(queries, positives, negatives, exclusions, guide)
    start, stop = rows if rows is not None else (0, len(queries))
    if not 0 <= start < stop <= len(queries):
        raise ValueError(f"rows must be a range within the {len(queries)} queries, got {(start, stop)}")
    for name, value in (("divisor", divisor), ("tile_rows", tile_rows)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    task = _Task(
        device=queries.device,
        exclusions=exclusions,
        temperature=check_temperature(temperature),
        directions=check_directions(directions),
        start=start,
        stop=stop,
        divisor=float(stop - start) if divisor is None else float(divisor),
        margin=check_margin(false_negative_margin),
        guide=guide,
        weights=weights or Weights(),
        tile_rows=tile_rows,
    )
    vectors = (queries, positives, negatives)
    loss = at_once(partial(_loss_and_gradients, task, vectors), *vectors)
    return Contrast(loss, task.masked_duplicates, task.masked_by_margin, task.masked_by_guide)


def _check_shapes(
    queries: Tensor, positives: Tensor, negatives: Tensor, exclusions: Exclusions, guide: Guide | None
) -> None:
    shapes = [tuple(x.shape) for x in (queries, positives, negatives)]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise ValueError(f"queries, positives and negatives must be (rows, dim) with one dim, got {shapes}")
    if shapes[0] != shapes[1] or shapes[0][0] == 0:
        raise ValueError(f"there must be one positive for each query, and at least one, got {shapes[0]}, {shapes[1]}")
    if len({x.dtype for x in (queries, positives, negatives)}) != 1 or queries.dtype not in (
        torch.float32,
        torch.float64,
    ):
        dtypes = [x.dtype for x in (queries, positives, negatives)]
        raise ValueError(f"queries, positives and negatives must all be float32 or all float64, got {dtypes}")
    if guide is not None and [len(x) for x in guide.vectors] != [shape[0] for shape in shapes]:
        raise ValueError(
            f"the guide must have a vector for each of {[shape[0] for shape in shapes]} texts, got "
            f"{[len(x) for x in guide.vectors]}"
        )
    if (exclusions.rows, exclusions.negatives) != (shapes[0][0], shapes[2][0]):
        raise ValueError(
            f"exclusions must be for the {shapes[0][0]} rows and {shapes[2][0]} hard negatives, got "
            f"{exclusions.rows} and {exclusions.negatives}"
        )


@dataclass
class _Task:
    """The settings of one call; what is masked is counted on the way."""

    device: torch.device
    exclusions: Exclusions
    temperature: float
    directions: tuple[str, ...]
    start: int
    stop: int
    divisor: float
    margin: float | None
    guide: Guide | None
    weights: Weights
    tile_rows: int | None
    masked_duplicates: int = 0
    masked_by_margin: Tensor = field(init=False)
    masked_by_guide: Tensor = field(init=False)

    def __post_init__(self) -> None:
        none = torch.zeros((), dtype=torch.int64, device=self.device)
        self.masked_by_margin, self.masked_by_guide = none, none


def _loss_and_gradients(
    task: _Task, vectors: Sequence[Tensor], differentiable: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """The loss and, where they are wanted, its gradients, (N, D), (N, D) and (M, D)."""
    queries = vectors[0]
    layout = layout_of(task.directions, len(queries), len(vectors[2]))
    row_size = layout.anchors * layout.width
    row_bytes = row_size * queries.element_size() * (1 if task.guide is None else 2)
    tiles = tile_ranges(task.start, task.stop, row_bytes, queries.device, task.tile_rows)
    buffer = queries.new_empty(max(stop - start for start, stop in tiles) * row_size)
    gradients = [torch.zeros_like(x) for x in vectors] if differentiable else []
    loss = queries.new_zeros(())

    for start, stop in tiles:
        rows = torch.arange(stop - start, device=queries.device)
        tile = buffer[: len(rows) * row_size].view(len(rows), layout.anchors, layout.width)
        anchors = torch.stack([x[start:stop] for x in vectors[: layout.anchors]], dim=1).div_(task.temperature)
        for kind, which, columns in layout.blocks:  # (1)
            torch.mm(anchors[:, which].flatten(0, 1), vectors[kind].T, out=tile[:, which, columns].flatten(0, 1))

        own = _own_pairs(layout, rows, start)
        positive = tile[own[0]]
        task.masked_duplicates += _mask_exclusions(task, tile, layout, start, stop)  # (2)
        if task.margin is not None:
            task.masked_by_margin = task.masked_by_margin + _mask(
                tile, tile > (positive + task.margin / task.temperature).view(-1, 1, 1), own
            )
        if task.guide is not None:
            task.masked_by_guide = task.masked_by_guide + _mask(tile, task.guide.too_close(layout, start, stop), own)
        if task.weights.hardness_strength:
            _harden(task, tile, layout, start, stop)

        maximum = tile.amax(dim=(1, 2), keepdim=True)  # (3)
        tile.sub_(maximum).clamp_min_(EXP_FLOOR[tile.dtype]).exp_()
        own_share = torch.stack([tile[index] for index in own]).sum(dim=0)
        for index in own:
            tile[index] = tile.new_zeros(())
        others = tile.sum(dim=(1, 2))
        total = own_share + others
        # log1p: where the positive is the maximum and meets itself once, a small loss keeps all its digits.
        losses = maximum.flatten() - positive + (others + (own_share - 1)).log1p()
        focus: Tensor | float = 1.0
        if task.weights.focal_gamma:
            losses, focus = task.weights.focus(losses)
        loss += losses.sum() / task.divisor
        if not differentiable:
            continue

        tile[own[0]] = -others  # (4)
        weight = (focus / (total * task.divisor)).view(-1, 1, 1)
        weighted, anchor_gradient = anchors * weight, torch.zeros_like(anchors)
        for kind, which, columns in layout.blocks:  # (5)
            part = tile[:, which, columns].flatten(0, 1)
            anchor_gradient[:, which].flatten(0, 1).addmm_(part, vectors[kind])
            gradients[kind].addmm_(part.T, weighted[:, which].flatten(0, 1))
        anchor_gradient.mul_(weight / task.temperature)
        for anchor in range(layout.anchors):
            gradients[anchor][start:stop] += anchor_gradient[:, anchor]
    return loss, gradients


def _own_pairs(layout: Layout, rows: Tensor, start: int) -> list[tuple[Tensor, int, Tensor]]:
    """Where each row's query meets its own positive: in query_to_doc and, if it is asked for, in doc_to_query."""
    places = [layout.first[name] for name in ("query_to_doc", "doc_to_query") if name in layout.first]
    return [(rows, anchor, rows + (start + column)) for anchor, column in places]


def _mask_exclusions(task: _Task, tile: Tensor, layout: Layout, start: int, stop: int) -> int:
    """Step (2). Returns how many duplicates were left out, beyond the query itself and the own documents."""
    masked, nothing = 0, tile.new_full((), -math.inf)  # a number would be sent to a GPU, which waits
    for direction, (anchor, column) in layout.first.items():
        for row, candidate in task.exclusions.pairs(direction, start, stop):
            tile[_sent(row, tile), anchor, _sent(candidate + column, tile)] = nothing
            masked += len(row)
        masked -= task.exclusions.unavoidable(direction, start, stop)
    for _, which, columns in layout.unused:
        tile[:, which, columns] = -math.inf
    return masked


def _sent(places: Tensor, tile: Tensor) -> Tensor:
    """Places on the tile's device. The host does not wait: the device is still at the embeddings, far behind."""
    return places.to(tile.device, non_blocking=True)


def _mask(tile: Tensor, close: Tensor, own: list[tuple[Tensor, int, Tensor]]) -> Tensor:
    """Step (2) for the margin and the guide, which never mask the own pair. Returns how many were left out."""
    for index in own:
        close[index] = close.new_zeros(())
    close &= tile > -math.inf  # those that were left out before count once
    tile.masked_fill_(close, -math.inf)
    return close.sum()


def _harden(task: _Task, tile: Tensor, layout: Layout, start: int, stop: int) -> None:
    """Step (2) for hardness, which never weighs the own pair."""
    anchor, column = layout.first["query_to_doc"]
    rows = torch.arange(stop - start, device=tile.device)
    row, negative = (_sent(place, tile) for place in task.exclusions.own_negatives(start, stop))
    task.weights.harden(tile[:, anchor, column:], (rows, rows + start), (row, negative), task.temperature)
