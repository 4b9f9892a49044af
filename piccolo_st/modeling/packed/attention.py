"""Attention of many texts in one row of tokens on a CPU, as flash attention's variable-length kernels do it on a GPU.

(1) texts of similar length form a block, padded to its longest (``Blocks``);
(2) queries, keys and values are gathered into the blocks, softmax attention is computed block by block with plain
    matrix products, and what comes out is gathered back. In training the dropout of the weights is drawn as
    ``dropout.py`` does;
(3) long texts without dropout go one by one through torch's fused attention, which is faster there.

What a token sees of its own text is said as flash attention is told it: by the layer's ``is_causal``, and by the
``sliding_window`` that the layer passes along. A mask that the model made for the whole row is not read.

Registered with transformers' AttentionInterface under ``ATTENTION``; ``packing.py`` makes models use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from piccolo_st.modeling.packed.dropout import draw_mask
from piccolo_st.modeling.packed.varlen import Borders, Features, View

ATTENTION = "piccolo_packed"
"""The name of :func:`attention` in transformers' AttentionInterface."""

SHORT = 64  # tokens up to which plain matrix products are faster than torch's fused attention, which has no dropout
_SCORES = 1 << 18  # scores of a block for each head, at most: 1 MiB, or those of one text


@dataclass(frozen=True)
class Block:
    """Texts that attend side by side, each padded to the longest.

    Attributes:
        rows: texts.
        length: tokens of the longest.
        begin: where the block begins among the padded tokens of all blocks.
        padding: bool (rows, 1, 1, length), True at padding; None where there is none.
    """

    rows: int
    length: int
    begin: int
    padding: Tensor | None


class Blocks:
    """How packed texts are laid out for attention, and the way back; the same for every layer.

    Args:
        lengths: tokens of each text, at least 1, in the order of the packed tokens.
        features: what was packed.
        place: where each token stands among the padded ones: int64 (tokens,).
    """

    def __init__(self, lengths: Sequence[int], features: Features | None = None, place: Tensor | None = None) -> None:
        self.features = {} if features is None else features
        self.place = place
        self.lengths = list(lengths)
        size = torch.tensor(self.lengths)
        first = size.cumsum(0) - size
        self.blocks: list[Block] = []
        tokens, padded = [], []
        for texts in similar_lengths(self.lengths):
            own = size[texts]  # (rows,)
            places = torch.arange(int(own.max()))
            padding = places >= own[:, None]  # (rows, length)
            tokens.append((first[texts][:, None] + places).where(~padding, 0).flatten())
            padded.append(padding.flatten())
            begin = sum(block.rows * block.length for block in self.blocks)
            mask = padding[:, None, None, :] if bool(padding.any()) else None
            self.blocks.append(Block(len(texts), padding.shape[1], begin, mask))
        self._token = torch.cat(tokens)  # (padded tokens,): which token stands there; token 0 at padding
        self._padding = torch.cat(padded)
        self._indices: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._hidden: dict[tuple[int, View], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, view: View, scale: float, dropout: float) -> Tensor:
        """(1, heads, tokens, width) each -> (1, tokens, heads, width); steps (2) and (3)."""
        shared = query.shape[1] // key.shape[1]  # heads of queries that share one of keys
        if shared > 1:
            key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
        if dropout or max(self.lengths) <= SHORT:
            query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, width)
            output: Tensor = _BlockAttention.apply(query, key, value, self, view, scale, dropout)  # type: ignore[no-untyped-call]
            return output[None]
        seen = {length: None if view.is_whole(length) else ~view.hidden(length) for length in set(self.lengths)}
        parts = zip(self.lengths, *(x.split(self.lengths, dim=2) for x in (query, key, value)), strict=True)
        outputs = [F.scaled_dot_product_attention(q, k, v, seen[length], scale=scale) for length, q, k, v in parts]
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def hidden(self, block: Block, view: View) -> Tensor | None:
        """True where a query does not see a key: bool, broadcastable to (rows, heads, length, length); None: nowhere.

        Padding sees itself: a row of weights that are all zero would not be a number.
        """
        if view.is_whole(block.length):
            return block.padding
        if (block.begin, view) not in self._hidden:
            hidden = view.hidden(block.length)
            if block.padding is not None:
                hidden = (hidden | block.padding) & ~torch.eye(block.length, dtype=torch.bool)
            self._hidden[block.begin, view] = hidden
        return self._hidden[block.begin, view]

    def indices(self, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices between (tokens * heads) rows and the blocks' (rows, heads, length) ones.

        Returns:
            There, back, and which of those there are padding.
        """
        if heads not in self._indices:
            there, padding = [], []
            head = torch.arange(heads)[None, :, None]
            for block in self.blocks:
                part = slice(block.begin, block.begin + block.rows * block.length)
                token, empty = (x[part].view(block.rows, 1, block.length) for x in (self._token, self._padding))
                there.append((token * heads + head).flatten())
                padding.append(empty.expand(-1, heads, -1).flatten())
            index, empty = torch.cat(there), torch.cat(padding)
            back = torch.empty(sum(self.lengths) * heads, dtype=torch.int64)
            full = (~empty).nonzero()[:, 0]
            back[index[full]] = full
            self._indices[heads] = index, back, empty.nonzero()[:, 0]
        return self._indices[heads]


def similar_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Groups of texts, longest first, whose shortest has at least four fifths of the longest's tokens.

    A group's padded tokens squared stay under a limit too, so that its scores stay in the cache.
    """
    groups: list[list[int]] = []
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        longest = lengths[groups[-1][0]] if groups else 0
        if lengths[text] < 0.8 * longest or not groups or (len(groups[-1]) + 1) * longest**2 > _SCORES:
            groups.append([])
        groups[-1].append(text)
    return groups


class _Saved(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    blocks: Blocks
    heads: int
    scale: float
    scale_up: float
    dropout: float


class _BlockAttention(torch.autograd.Function):
    """Softmax attention of each text to itself, block by block.

    In a block of (rows, heads, length, width), with scale s, dropout mask M of zeros and ones, and r the inverse of the
    share that stays:

        P = softmax(s Q K^T)      O = r (P * M) V
        dV = r (P * M)^T dO       dP = M * (dO V^T)       dS = P * (dP - sum(dP * P))
        dQ = r s dS K             dK = r s dS^T Q

    All of it in one node of the graph: the blocks are many and small, and a dozen nodes each would cost more than the
    arithmetic. What is not kept for the backward pass lies in the same memory for all blocks: fresh memory of this size
    is mapped page by page, which takes longer than the arithmetic on it.
    """

    @staticmethod
    def forward(
        ctx: _Saved, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, view: View, scale: float, dropout: float
    ) -> Tensor:
        """(tokens, heads, width) each -> (tokens, heads, width)."""
        heads, width = query.shape[1:]
        ctx.scale_up = 1.0
        there, back, _ = blocks.indices(heads)
        query, key, value = (x.reshape(-1, width).index_select(0, there) for x in (query, key, value))
        output = torch.empty_like(value)
        saved: list[Tensor] = []
        [scratch] = _scratch(blocks, heads, query, 1)
        for block, q, k, v, out in _by_block(blocks, heads, query, key, value, output):
            scores = _view(scratch, block, heads)
            torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=scale, out=scores)
            if (hidden := blocks.hidden(block, view)) is not None:
                scores.view(block.rows, heads, block.length, -1).masked_fill_(hidden, -torch.inf)
            weights = scores.softmax(dim=-1)  # (rows * heads, length, length)
            saved.append(weights)
            if dropout:
                mask, ctx.scale_up = draw_mask(weights.shape, dropout)
                saved.append(mask)
                weights = scores.copy_(mask.view(torch.uint8)).mul_(weights)  # torch is slow at bools
            torch.baddbmm(out, weights, v, beta=0, alpha=ctx.scale_up, out=out)
        ctx.save_for_backward(query, key, value, *saved)
        ctx.blocks, ctx.heads, ctx.scale, ctx.dropout = blocks, heads, scale, dropout
        return output.index_select(0, back).view(-1, heads, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Saved, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *rest = ctx.saved_tensors
        heads, width = ctx.heads, query.shape[1]
        there, back, padding = ctx.blocks.indices(heads)
        gradient = gradient.reshape(-1, width).index_select(0, there).index_fill_(0, padding, 0)
        grads = [torch.empty_like(x) for x in (query, key, value)]
        saved = iter(rest)
        scratch = _scratch(ctx.blocks, heads, query, 2)
        for block, q, k, v, g, dq, dk, dv in _by_block(ctx.blocks, heads, query, key, value, gradient, *grads):
            weights = dropped = next(saved)
            dweights, other = (_view(one, block, heads) for one in scratch)
            torch.bmm(g, v.transpose(1, 2), out=dweights)
            if ctx.dropout:
                mask = other.copy_(next(saved).view(torch.uint8))
                dweights.mul_(mask)
                dropped = mask.mul_(weights)
            torch.baddbmm(dv, dropped.transpose(1, 2), g, beta=0, alpha=ctx.scale_up, out=dv)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype, grad_input=other)
            factor = ctx.scale * ctx.scale_up
            torch.baddbmm(dq, dscores, k, beta=0, alpha=factor, out=dq)
            torch.baddbmm(dk, dscores.transpose(1, 2), q, beta=0, alpha=factor, out=dk)
        return (*(x.index_select(0, back).view(-1, heads, width) for x in grads), None, None, None, None)


def _scratch(blocks: Blocks, heads: int, like: Tensor, count: int) -> list[Tensor]:
    """Memory for the scores of the largest block, ``count`` times."""
    size = max(block.rows * block.length**2 for block in blocks.blocks) * heads
    return [like.new_empty(size) for _ in range(count)]


def _view(scratch: Tensor, block: Block, heads: int) -> Tensor:
    """The scores of a block in that memory: (rows * heads, length, length)."""
    return scratch[: block.rows * heads * block.length**2].view(block.rows * heads, block.length, block.length)


def _by_block(blocks: Blocks, heads: int, *tensors: Tensor) -> Iterator[Any]:
    """Each block with its part of each (padded tokens * heads, width) tensor, as (rows * heads, length, width)."""
    for block in blocks.blocks:
        size = block.rows * block.length * heads
        parts = (x[block.begin * heads : block.begin * heads + size] for x in tensors)
        yield block, *(part.view(block.rows * heads, block.length, -1) for part in parts)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention; that of packed texts by ``blocks``.

    Args:
        module: the attention layer.
        query: (batch, heads, tokens, width); of packed texts, batch is 1.
        key: as ``query``.
        value: as ``query``.
        attention_mask: of packed texts, not read.
        dropout: probability of dropping an attention weight.
        scaling: of the scores; None: width ** -0.5.
        **kwargs: ``blocks``, the :class:`Blocks` of packed texts or their :class:`Borders` where a kernel takes them
            as they are, ``sliding_window`` and ``is_causal``; the rest is passed on.

    Returns:
        (batch, tokens, heads, width), and None in place of the weights.

    Raises:
        ValueError: packed texts and a layer that changes its scores in another way.
    """
    blocks: Blocks | Borders | None = kwargs.pop("blocks", None)
    if blocks is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if more := [name for name in ("softcap", "position_bias", "s_aux") if kwargs.get(name) is not None]:
        raise ValueError(f"packed texts have no {', '.join(more)}")
    causal = kwargs.get("is_causal")
    view = View(kwargs.get("sliding_window"), getattr(module, "is_causal", True) if causal is None else causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):  # as SDPA, which autocast knows; rotary positions are float32
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    return blocks.attend(query, key, value, view, scale, dropout), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
