"""Collectives for losses that look at the rows of every rank.

Where a process computes, and whom it computes with, is decided here and nowhere else:

``on_cpu``           whether there is an accelerator for this process.
``process_state``    accelerate's view of the ranks, their process group started.

Each collective does nothing when there is one process:

``agree``        every rank states what it is about to do; if the statements differ, every rank raises the same error.
``gather_rows``  the rows of every rank, in rank order, with gradient: one gather forward, one reduce-scatter backward.
``last_forward_syncs``  several forwards of a DistributedDataParallel model before one backward.

The gradient convention. Let L_r be the loss that rank r returns and x_s the rows that rank s put in. The backward of
``gather_rows`` gives rank s the sum over r of dL_r / dx_s. DistributedDataParallel and DeepSpeed then average the
gradients of the weights over the W ranks, so the weights move along the gradient of (1/W) sum_r L_r. A loss that
returns L_r = (W / N) * (sum over its own rows), with N rows in all, therefore trains on exactly the mean over the N
rows, and the mean of the logged values over the ranks is that same number.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from sentence_transformers.util import get_rank, get_world_size
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "Gathered",
    "agree",
    "gather_rows",
    "get_rank",
    "get_world_size",
    "last_forward_syncs",
    "on_cpu",
    "process_state",
]

# torch 2.13 renamed these two and warns at the old names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

# How many numbers an agreement carries beside its digest.
_COUNTS = 7


def on_cpu() -> bool:
    """Whether this process computes on the CPU: ACCELERATE_USE_CPU says so, or there is nothing else.

    accelerate's launcher hands ``use_cpu`` on to one process, but neither to several nor to DeepSpeed, and PartialState
    without it takes each of them for the only one. Apple's GPU can train in one process alone.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return parse_flag_from_env("ACCELERATE_USE_CPU") or found is None or (found.type == "mps" and several)


def process_state() -> PartialState:
    """accelerate's view of the ranks; starts their process group where a launcher has started several processes."""
    return PartialState(cpu=on_cpu())


def missing_processes() -> str:
    """A sentence if a launcher was asked for several processes and started one; else an empty text.

    On a CPU, accelerate launch leaves starting them to mpirun. What it was asked for it does not hand on; it prepares
    an address for them.
    """
    started = {"LOCAL_RANK", "WORLD_SIZE"} & set(os.environ)
    if started or not {"ACCELERATE_DYNAMO_MODE", "MASTER_PORT"} <= set(os.environ):
        return ""
    return (
        "accelerate launch started one process where several were asked for: with --cpu or distributed_type NO it "
        "leaves that to mpirun; for two on a CPU, `torchrun --nproc_per_node 2` in place of `accelerate launch`"
    )


def _gather_table(row: Sequence[int], device: torch.device) -> list[list[int]]:
    """The same few whole numbers from every rank: ``result[rank][field]``. Waits for the device once."""
    mine = torch.tensor(row, dtype=torch.int64, device=device)
    table = mine.new_empty(get_world_size() * len(row))
    _all_gather(table, mine)
    return table.view(-1, len(row)).tolist()


_SAME_STEP = (
    "every rank must run the same loss on rows of the same dataset at each step, so use piccolo_st's "
    "HomogeneousBatchSampler (or accelerate's split_batches=True with a batch sampler that yields global batches), and "
    "build the losses alike on every rank"
)


def _raise_disagreement(facts: Mapping[str, str], remedy: str) -> None:
    """Called on every rank once all know that they differ: fetch the readable facts and raise the same error."""
    everyone: list[dict[str, str]] = [{}] * get_world_size()
    dist.all_gather_object(everyone, dict(facts))
    what = everyone[0]["what"]
    differing = []
    for key in dict.fromkeys(key for one in everyone for key in one):
        values = [one.get(key, "nothing") for one in everyone]
        if any(value != values[0] for value in values):
            differing.append(f"{key} is " + ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values)))
    raise ValueError(f"the ranks disagree on {what}: {'; '.join(differing)}; {remedy}")


def agree(
    what: str,
    facts: Mapping[str, object],
    device: torch.device,
    counts: Sequence[int] = (),
    remedy: str = _SAME_STEP,
) -> list[tuple[int, ...]]:
    """Raise on every rank, with the same message, if ``facts`` differ between the ranks.

    One exchange of a few whole numbers; only when the facts differ a second one fetches them in words. Every call
    exchanges the same shape, so that two ranks that came here from different losses find out instead of hanging.

    Args:
        what: what the facts are about, for the message.
        facts: names and printable values; equal facts must print equally.
        device: where the exchange takes place: the device of the tensors that will be gathered.
        counts: up to 7 whole numbers that may differ and that every rank wants to know.
        remedy: what to do about it, for the message.

    Returns:
        The counts of each rank.

    Raises:
        ValueError: naming each fact that differs and its value on each rank.
    """
    if len(counts) > _COUNTS:
        raise ValueError(f"agree exchanges at most {_COUNTS} counts, got {len(counts)}")
    if get_world_size() == 1:
        return [tuple(counts)]
    stated = {"what": what, **{key: str(value) for key, value in facts.items()}}
    digest = hashlib.blake2b(repr(sorted(stated.items())).encode(), digest_size=8).digest()
    padding = [0] * (_COUNTS - len(counts))
    table = _gather_table([int.from_bytes(digest, "big", signed=True), *counts, *padding], device)
    if any(row[0] != table[0][0] for row in table):
        _raise_disagreement(stated, remedy)
    return [tuple(row[1 : 1 + len(counts)]) for row in table]


@dataclass(frozen=True)
class Gathered:
    """Rows of every rank.

    Attributes:
        rows: (sum of counts, ...), in rank order.
        counts: how many rows each rank put in.
        offset: the first of this rank's own rows.
    """

    rows: Tensor
    counts: tuple[int, ...]
    offset: int

    @property
    def own(self) -> slice:
        """Where this rank's own rows are."""
        return slice(self.offset, self.offset + self.counts[get_rank()])


def gather_rows(*tensors: Tensor) -> list[Gathered]:
    """Gather each tensor's rows from every rank; the ranks may have different numbers of rows, also none.

    Args:
        tensors: each (rows, ...), float32, float64, float16, bfloat16 or int64, all on one device. Trailing
            dimensions and dtypes must be the same on every rank; this is checked before any row travels.

    Returns:
        One :class:`Gathered` for each tensor. Gradients flow back to the ranks that own the rows and are summed in
        the tensor's own dtype; see the module docstring for the scale.

    Raises:
        ValueError: the ranks bring different numbers of tensors, trailing dimensions or dtypes; on every rank.
    """
    world, rank = get_world_size(), get_rank()
    if world == 1:
        return [Gathered(tensor, (tensor.shape[0],), 0) for tensor in tensors]
    facts = {f"tensor {i}": f"{tuple(t.shape[1:])} {t.dtype}" for i, t in enumerate(tensors)}
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    facts["gradient"] = str(differentiable)
    table = agree("what they gather", facts, tensors[0].device, [tensor.shape[0] for tensor in tensors])
    counts = list(zip(*table, strict=True))
    # One node for all tensors: its backward runs on every rank, also on one that put in no row of some tensor, and
    # always in the same order. Separate nodes would leave that to the autograd engine.
    gathered = _GatherRows.apply(counts, *tensors)  # type: ignore[no-untyped-call]
    return [Gathered(rows, count, sum(count[:rank])) for rows, count in zip(gathered, counts, strict=True)]


def _padded(rows: Tensor, height: int) -> Tensor:
    """``rows`` with zero rows appended up to ``height``; itself if it is that tall."""
    if rows.shape[0] == height:
        return rows.contiguous()
    padded = rows.new_zeros(height, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    return padded


class _Counted(FunctionCtx):
    counts: list[tuple[int, ...]]  # of the rows of each rank, a tuple for each tensor


class _GatherRows(torch.autograd.Function):
    """All ranks' rows forward, the sum of all ranks' gradients for one's own rows backward."""

    @staticmethod
    def forward(ctx: _Counted, counts: list[tuple[int, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.counts = counts
        ctx.set_materialize_grads(True)
        outputs = []
        for tensor, count in zip(tensors, counts, strict=True):
            height = max(count)
            if height == 0:
                outputs.append(tensor.new_empty(tensor.shape))
                continue
            everyone = tensor.new_empty(len(count) * height, *tensor.shape[1:])
            _all_gather(everyone, _padded(tensor.detach(), height))
            if min(count) < height:
                parts = everyone.split(height)
                everyone = torch.cat([part[:n] for part, n in zip(parts, count, strict=True)])
            outputs.append(everyone)
        ctx.mark_non_differentiable(*(output for output in outputs if not output.is_floating_point()))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Counted, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rank = get_rank()
        results: list[Tensor | None] = [None]
        for gradient, count in zip(gradients, ctx.counts, strict=True):
            height = max(count)
            if not gradient.is_floating_point():
                results.append(None)
                continue
            if height == 0:
                results.append(gradient)
                continue
            if min(count) < height:
                gradient = torch.cat([_padded(part, height) for part in gradient.split(count)])
            own = gradient.new_empty(height, *gradient.shape[1:])
            _reduce_scatter(own, gradient.contiguous())
            results.append(own[: count[rank]])
        return tuple(results)


@contextmanager
def last_forward_syncs(model: nn.Module, last: bool) -> Iterator[None]:
    """Around each of several forwards that share one backward: only the last one talks to the other ranks.

    DistributedDataParallel broadcasts buffers and prepares its gradient buckets in every synchronising forward. With
    the ranks running different numbers of forwards these collectives would no longer match. With all but the last
    forward inside ``no_sync``, each rank broadcasts once, at its first forward, and reduces once, in the backward.
    """
    wrapped = getattr(model, "_orig_mod", model)  # below torch.compile
    if isinstance(wrapped, DistributedDataParallel) and not last:
        with wrapped.no_sync():
            yield
    else:
        yield
