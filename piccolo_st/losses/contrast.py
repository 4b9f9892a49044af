"""The improved contrastive loss of GTE over any number of negatives, exact, in memory that grows linearly.

For row i with query q_i, positive p_i and similarity s (cosine), temperature t (Li et al. 2023, arXiv 2308.03281):

    loss_i = -s(q_i, p_i)/t + log Z_i
    Z_i    = sum over documents d  exp(s(q_i, d)/t)        query_to_doc, the own positive included
           + sum over queries q_j  exp(s(q_i, q_j)/t)      query_to_query
           + sum over queries q_j  exp(s(p_i, q_j)/t)      doc_to_query, the own query included
           + sum over documents d  exp(s(p_i, d)/t)        doc_to_doc

where documents are all positives and all hard negatives of the batch, and each sum leaves out what is no negative of
row i (``false_negatives.py``). The two matrices of similarities have (N + M) x N entries and more; they are never all
there. The loss is a scalar, so its gradients can be made in the forward pass and only scaled in the backward pass:

    for each tile of R rows, into one buffer of R x (all candidates) that is allocated once:
    (1) scores: one matrix product for each pair of anchor (query, positive) and candidates, already divided by t
    (2) what is no negative gets the score -inf; so does, with a margin, what is more similar than the positive allows
    (3) log Z from the row's maximum and the sum of exponentials, which replace the scores in the buffer
    (4) the positive's entry becomes minus the sum of all others, so that row / Z is d loss_i / d scores
    (5) gradients: two more matrix products with the buffer, one for the anchors and one for the candidates

That is three matrix products and four passes over a tile that is still in the cache; nothing is computed twice.

Products and sums are float32 whatever the embeddings are (float64 for float64 ones), also under autocast. The products
follow ``torch.set_float32_matmul_precision``: "high" or "medium" puts them on tensor cores (or AMX), still with
float32 sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from piccolo_st.losses.false_negatives import Exclusions

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")

_TILE_BYTES = 32 << 20
_LEAST_ROWS = 128


class Contrast(NamedTuple):
    """What :func:`contrastive_loss` returns.

    Attributes:
        loss: scalar, float32 (float64 for float64 embeddings), differentiable once.
        masked_duplicates: how many candidates were left out as duplicates, over the local rows and all directions.
        masked_by_margin: scalar int64 tensor on the embeddings' device, the same for the margin.
    """

    loss: Tensor
    masked_duplicates: int
    masked_by_margin: Tensor


def unit(embeddings: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 (float64 stays). A zero row stays zero and gets no gradient."""
    rows = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norm.masked_fill(norm == 0, math.inf)


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
        raise ValueError(f"directions must hold 'query_to_doc', which has the positive pair; got {chosen}")
    return tuple(name for name in DIRECTIONS if name in chosen)


def check_temperature(temperature: float) -> float:
    """The temperature. Raises ValueError unless it is positive and finite."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    return float(temperature)


def check_margin(margin: float | None) -> float | None:
    """The margin above the positive's similarity. Raises ValueError if it is negative: that would drop the positive."""
    if margin is not None and not margin >= 0:
        raise ValueError(f"false_negative_margin must be None or at least 0, got {margin}")
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
    tile_bytes: int = _TILE_BYTES,
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
        tile_bytes: the size of the buffer; at least 128 rows are computed at a time.

    Raises:
        ValueError: shapes or dtypes that do not fit, rows out of range, a temperature that is not positive, a negative
            margin, unknown directions.
    """
    _check_shapes(queries, positives, negatives, exclusions)
    start, stop = rows if rows is not None else (0, len(queries))
    if not 0 <= start < stop <= len(queries):
        raise ValueError(f"rows must be a range within the {len(queries)} queries, got {(start, stop)}")
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, positives, negatives))
    task = _Task(
        exclusions=exclusions,
        temperature=check_temperature(temperature),
        directions=check_directions(directions),
        start=start,
        stop=stop,
        divisor=float(stop - start) if divisor is None else float(divisor),
        margin=check_margin(false_negative_margin),
        tile_bytes=tile_bytes,
        differentiable=differentiable,
    )
    loss, masked_by_margin = _Contrast.apply(task, queries, positives, negatives)
    return Contrast(loss, task.masked_duplicates, masked_by_margin)


def _check_shapes(queries: Tensor, positives: Tensor, negatives: Tensor, exclusions: Exclusions) -> None:
    shapes = [tuple(x.shape) for x in (queries, positives, negatives)]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise ValueError(f"queries, positives and negatives must be (rows, dim) with one dim, got {shapes}")
    if shapes[0] != shapes[1] or shapes[0][0] == 0:
        raise ValueError(f"there must be one positive for each query, and at least one; got {shapes[0]}, {shapes[1]}")
    if len({x.dtype for x in (queries, positives, negatives)}) != 1 or queries.dtype not in (
        torch.float32,
        torch.float64,
    ):
        dtypes = [x.dtype for x in (queries, positives, negatives)]
        raise ValueError(f"queries, positives and negatives must all be float32 or all float64, got {dtypes}")
    if (exclusions.rows, exclusions.negatives) != (shapes[0][0], shapes[2][0]):
        raise ValueError(
            f"exclusions are for {exclusions.rows} rows and {exclusions.negatives} hard negatives, but there are "
            f"{shapes[0][0]} and {shapes[2][0]}"
        )


@dataclass
class _Task:
    """The settings of one call; ``masked_duplicates`` is counted on the way."""

    exclusions: Exclusions
    temperature: float
    directions: tuple[str, ...]
    start: int
    stop: int
    divisor: float
    margin: float | None
    tile_bytes: int
    differentiable: bool
    masked_duplicates: int = 0


class _Block(NamedTuple):
    """One matrix product of a tile: an anchor of each row against some candidates, and where the scores go."""

    anchor: int  # 0: the query, 1: the positive
    candidates: int  # 0: queries, 1: positives, 2: hard negatives
    columns: slice


def _layout(directions: Sequence[str], rows: int, negatives: int) -> tuple[list[_Block], dict[str, int], int]:
    """The blocks of a tile, the first column of each direction, and the width.

    The columns of one direction are those of its candidates in the order that ``Exclusions.pairs`` numbers them.
    """
    blocks, first, width = [], {}, 0
    for direction in directions:
        first[direction] = width
        anchor = 0 if direction.startswith("query") else 1
        kinds = (0,) if direction.endswith("query") else (1, 2)
        for kind in kinds:
            size = negatives if kind == 2 else rows
            if size:
                blocks.append(_Block(anchor, kind, slice(width, width + size)))
                width += size
    return blocks, first, width


def _tiles(start: int, stop: int, row_bytes: int, tile_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of nearly equal size."""
    most = max(_LEAST_ROWS, tile_bytes // row_bytes)
    count = -(-(stop - start) // most)
    for tile in range(count):
        yield start + (stop - start) * tile // count, start + (stop - start) * (tile + 1) // count


class _Contrast(torch.autograd.Function):
    """Loss and gradients in one pass, as the module docstring says."""

    @staticmethod
    def forward(ctx: Any, task: _Task, queries: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(queries.device.type, enabled=False):
            loss, masked, gradients = _loss_and_gradients(task, [queries, positives, negatives])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(masked)
        return loss, masked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(gradient * scale for gradient in ctx.saved_tensors))


def _loss_and_gradients(task: _Task, vectors: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    queries, positives, negatives = vectors
    blocks, first, width = _layout(task.directions, len(queries), len(negatives))
    tiles = list(_tiles(task.start, task.stop, width * queries.element_size(), task.tile_bytes))
    buffer = queries.new_empty(max(stop - start for start, stop in tiles) * width)
    gradients = [torch.zeros_like(x) for x in vectors] if task.differentiable else []
    loss, masked = queries.new_zeros(()), torch.zeros((), dtype=torch.int64, device=queries.device)

    for start, stop in tiles:
        tile = buffer[: (stop - start) * width].view(stop - start, width)
        anchors = [x[start:stop] / task.temperature for x in (queries, positives)]
        for block in blocks:  # (1)
            torch.mm(anchors[block.anchor], vectors[block.candidates].T, out=tile[:, block.columns])

        row = torch.arange(stop - start, device=queries.device)
        own = row + start + first["query_to_doc"]
        positive = tile[row, own]
        task.masked_duplicates += _mask_exclusions(task, tile, first, start, stop)  # (2)
        if task.margin is not None:
            masked += _mask_margin(task, tile, positive, row, own, first, start)

        maximum = tile.amax(dim=1)  # (3)
        tile.sub_(maximum.unsqueeze(1)).exp_()
        own_share = tile[row, own]
        tile[row, own] = 0
        others = tile.sum(dim=1)
        total = own_share + others
        loss += (maximum + total.log() - positive).sum() / task.divisor

        if not task.differentiable:
            continue
        tile[row, own] = -others  # (4)
        weight = (1 / (total * task.divisor)).unsqueeze(1)
        for anchor, scaled in enumerate(anchors):  # (5)
            mine = [block for block in blocks if block.anchor == anchor]
            gradient = torch.zeros_like(scaled)
            weighted = scaled * weight
            for block in mine:
                part = tile[:, block.columns]
                gradient.addmm_(part, vectors[block.candidates])
                gradients[block.candidates].addmm_(part.T, weighted)
            gradients[anchor][start:stop] += gradient * (weight / task.temperature)
    return loss, masked, gradients


def _mask_exclusions(task: _Task, tile: Tensor, first: dict[str, int], start: int, stop: int) -> int:
    """Step (2). Returns how many duplicates were left out, beyond the query itself and the own documents."""
    masked = 0
    for direction in task.directions:
        for row, candidate in task.exclusions.pairs(direction, start, stop):
            tile[row.to(tile.device), (candidate + first[direction]).to(tile.device)] = -math.inf
            masked += len(row)
        masked -= task.exclusions.unavoidable(direction, start, stop)
    return masked


def _mask_margin(
    task: _Task, tile: Tensor, positive: Tensor, row: Tensor, own: Tensor, first: dict[str, int], start: int
) -> Tensor:
    """Step (2) for the margin. Returns how many were left out."""
    assert task.margin is not None
    close = tile > (positive + task.margin / task.temperature).unsqueeze(1)
    close[row, own] = False
    if "doc_to_query" in first:
        close[row, row + start + first["doc_to_query"]] = False
    tile.masked_fill_(close, -math.inf)
    return close.sum()
