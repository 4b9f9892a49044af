"""Dropout on a CPU without the time that drawing its masks takes.

torch draws one random number for each element, one after the other: on a small encoder that is a tenth of a training
step. Here:

(1) one 63-bit seed is drawn from torch's generator, so a checkpoint of that generator, the gradient cache and
    activation checkpointing repeat a mask as they repeat torch's own;
(2) numpy's SFC64 makes 16 random bits an element from that seed, about ten times faster;
(3) an element stays where its bits are at or above ``round(p * 65536)``. So p is met to 8e-6, and what stays is scaled
    by the inverse of the share that really stays: the mean is exact.

``use_fast_dropout`` sets it up in a model. On other devices, whose generators are parallel, and outside training it
does what torch does. Nothing of it is saved with a model.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

_LEVELS = 1 << 16


class _Saved(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    scale: float


class _MaskAndScale(torch.autograd.Function):
    """x * mask * scale, keeping one byte an element for the backward pass."""

    @staticmethod
    def forward(ctx: _Saved, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return masked(x, mask, scale)

    @staticmethod
    def backward(ctx: _Saved, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return masked(gradient, mask, ctx.scale), None, None


def masked(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``x * mask * scale``."""
    # By way of bytes: torch converts many of them at a time, bools one by one.
    return mask.view(torch.uint8).to(x.dtype).mul_(x).mul_(scale)


def draw_mask(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """A bool mask on the CPU, True for what stays, and what that is to be multiplied by; steps (1) to (3)."""
    dropped, count = round(p * _LEVELS), shape.numel()
    seed = int(torch.randint(2**63 - 1, ()))  # (1)
    words = np.random.SFC64(seed).random_raw(-(-count // 4))  # (2)
    mask = torch.from_numpy(words.view(np.uint16)[:count] >= dropped).view(shape)  # (3)
    return mask, _LEVELS / (_LEVELS - dropped)


def fast_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """``torch.nn.functional.dropout`` with other masks of the same distribution, fast on a CPU.

    Args:
        x: any shape and floating dtype.
        p: the probability that an element becomes 0.
        training: without it x is returned.
    """
    dropped = round(p * _LEVELS)
    if not training or x.device.type != "cpu" or not 0 < dropped < _LEVELS:
        return F.dropout(x, p, training)
    return _MaskAndScale.apply(x, *draw_mask(x.shape, p))  # type: ignore[no-untyped-call]


class FastDropout(nn.Dropout):
    """nn.Dropout through :func:`fast_dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape."""
        return fast_dropout(input, self.p, self.training)


def use_fast_dropout(model: nn.Module) -> int:
    """Let the ``nn.Dropout`` modules of a model draw their masks the fast way when they train on a CPU.

    The attention weights of a transformers model are no such module; see ``packing.use_packing``.

    Returns:
        The number of modules replaced.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                fast = FastDropout(child.p)
                fast.train(child.training)
                setattr(parent, name, fast)
                replaced += 1
    return replaced
