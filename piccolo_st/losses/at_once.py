"""A scalar and its gradients, computed at once: the backward pass only scales them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Compute: TypeAlias = Callable[[bool], tuple[Tensor, Sequence[Tensor]]]
"""Whether gradients are wanted -> a scalar and, if they are, its gradient by each vector."""


def at_once(compute: Compute, *vectors: Tensor) -> Tensor:
    """The scalar, differentiable once by ``vectors``; no gradient is computed where none can be asked for.

    Args:
        compute: called once, without recording.
        vectors: what ``compute`` gives gradients by, of any shapes.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in vectors):
        scalar: Tensor = _AtOnce.apply(compute, *vectors)  # type: ignore[no-untyped-call]
        return scalar
    with torch.no_grad(), _exact(vectors):
        return compute(False)[0]


def _exact(vectors: Sequence[Tensor]) -> torch.autocast:
    """Products in the vectors' own precision, whatever is around the loss."""
    return torch.autocast(vectors[0].device.type, enabled=False)


class Saved(FunctionCtx):
    """What autograd carries from forward to backward."""

    saved_tensors: tuple[Tensor, ...]


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Saved, compute: Compute, *vectors: Tensor) -> Tensor:
        with _exact(vectors):
            scalar, gradients = compute(True)
        ctx.save_for_backward(*gradients)
        return scalar

    @staticmethod
    @once_differentiable
    def backward(ctx: Saved, scale: Tensor) -> tuple[Tensor | None, ...]:
        if scale.device.type == "cpu" and scale == 1:  # as large as the inputs once more; a GPU would have to be asked
            return (None, *ctx.saved_tensors)
        return (None, *(gradient * scale for gradient in ctx.saved_tensors))
