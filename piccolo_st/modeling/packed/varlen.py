"""Attention of many texts in one row of tokens on a GPU: torch's FlashAttention, and what it must equal.

``varlen`` is all that needs CUDA. It has one signature in every torch (:class:`Kernel`), and ``reference`` is the same
in plain torch on any device, text by text: what packing is tried with before a run, and tested with where there is no
GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

Features = dict[str, Any]

_KNOWN = frozenset(inspect.signature(varlen_attn).parameters)
"""The names of its arguments, which grow from version to version."""

HALF = (torch.float16, torch.bfloat16)
"""What the kernel computes in."""


@dataclass(frozen=True)
class View:
    """What a token sees of its own text.

    Attributes:
        window: keys this many tokens away or more are hidden; None: none are.
        causal: whether what follows is hidden too.
    """

    window: int | None = None
    causal: bool = False

    def is_whole(self, length: int) -> bool:
        """Whether every token of a text sees all of it."""
        return not self.causal and (self.window is None or self.window >= length)

    def hidden(self, length: int, device: torch.device | None = None) -> Tensor:
        """True where a query does not see a key: bool (length, length)."""
        places = torch.arange(length, device=device)
        ahead = places - places[:, None]  # (query, key)
        hidden = ahead > 0 if self.causal else torch.zeros_like(ahead, dtype=torch.bool)
        return hidden if self.window is None else hidden | (ahead.abs() >= self.window)


class Kernel(Protocol):
    """Softmax attention of each text to itself.

    Queries are (tokens, heads, width), keys and values (tokens, heads or fewer, width); ``borders`` are where each text
    begins, and the last one's end: int32 (texts + 1,); ``longest`` is the longest text's tokens.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, view: View, scale: float
    ) -> Tensor:
        """As the query."""
        ...


@dataclass
class Borders:
    """Where packed texts begin and end; the same for every layer.

    Attributes:
        lengths: tokens of each text, at least 1, in the order of the packed tokens.
        borders: see :class:`Kernel`; on the tokens' device.
        kernel: what computes the attention.
        features: what was packed.
        place: where each token stands among the padded ones: int64 (tokens,).
    """

    lengths: Sequence[int]
    borders: Tensor
    kernel: Kernel
    features: Features = field(default_factory=dict)
    place: Tensor | None = None
    longest: int = field(init=False)  # a number, because a compiled layer is compiled anew for another list

    def __post_init__(self) -> None:
        self.longest = max(self.lengths)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, view: View, scale: float, dropout: float) -> Tensor:
        """(1, heads, tokens, width) each -> (1, tokens, heads, width).

        Raises:
            ValueError: attention weights are to be dropped.
        """
        if dropout:
            raise ValueError(f"packed texts on a GPU have no dropout of attention weights, got {dropout}")
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        return self.kernel(query, key, value, self.borders, self.longest, view, scale)[None]


def varlen(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, view: View, scale: float
) -> Tensor:
    """See :class:`Kernel`: ``torch.nn.attention.varlen.varlen_attn``, on CUDA, in float16 or bfloat16.

    Raises:
        ValueError: this torch's kernel knows no windows.
    """
    if not {"scale", "window_size"} <= _KNOWN:
        raise ValueError(f"torch {torch.__version__} has no attention of packed texts with windows; 2.11 has")
    options: dict[str, Any] = {"scale": scale}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in _KNOWN:
            options["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    behind = -1 if view.window is None or view.window >= longest else view.window - 1
    options["window_size"] = (behind, 0 if view.causal else behind)
    output = varlen_attn(query, key, value, borders, borders, longest, longest, **options)
    assert isinstance(output, Tensor)
    return output


def reference(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, view: View, scale: float
) -> Tensor:
    """See :class:`Kernel`: text by text, on any device, in any precision."""
    if (shared := query.shape[1] // key.shape[1]) > 1:
        key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    lengths = borders.diff().tolist()
    outputs = []
    for q, k, v in zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)), strict=True):
        length = q.shape[1]
        seen = None if view.is_whole(length) else ~view.hidden(length, q.device)
        outputs.append(F.scaled_dot_product_attention(q[None], k[None], v[None], seen, scale=scale)[0])
    return torch.cat(outputs, dim=1).transpose(0, 1)


@dataclass(frozen=True)
class Tried:
    """``reference``, that sees to it that a kernel gives the same in half precision.

    Its rounding is 0.2% of what comes out; one key too many or too few, of a window of 128, makes 9% of random ones.

    Attributes:
        kernel: the kernel that is tried.
        dtype: the half precision.
    """

    kernel: Kernel
    dtype: torch.dtype

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, view: View, scale: float
    ) -> Tensor:
        """See :class:`Kernel`.

        Raises:
            ValueError: the kernel gives something else.
        """
        q, k, v = (x.to(self.dtype) for x in (query, key, value))
        found = self.kernel(q, k, v, borders, longest, view, scale).float()
        expected = reference(q.float(), k.float(), v.float(), borders, longest, view, scale)
        difference = float((found - expected).norm() / expected.norm())
        if not difference <= 0.01:
            raise ValueError(f"its attention in {str(self.dtype)[6:]} is {difference:.1%} off, with {view}")
        return reference(query, key, value, borders, longest, view, scale)
