"""What test_loss_benchmark.py compares: each makes the loss and the gradients of three (N, D) tensors of embeddings."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor

from piccolo_st.losses.choices import DIRECTIONS
from piccolo_st.losses.contrast import contrastive_loss, unit
from piccolo_st.losses.false_negatives import Exclusions

TEMPERATURE = 0.01
FLOOR_ANCHORS = 1024


def floor(queries: Tensor, positives: Tensor, negatives: Tensor) -> None:
    """The three matrix products alone: 2N anchors against 2N + M candidates, and back to either side."""
    with torch.no_grad():
        anchors, candidates = torch.cat([queries, positives]), torch.cat([queries, positives, negatives])
        tile = anchors.new_zeros(FLOOR_ANCHORS, len(candidates))
        anchor_gradient, candidate_gradient = torch.empty_like(anchors), torch.zeros_like(candidates)
        for start in range(0, len(anchors), FLOOR_ANCHORS):
            rows = slice(start, start + FLOOR_ANCHORS)
            torch.mm(anchors[rows], candidates.T, out=tile)
            tile.zero_()  # the products' time does not depend on the values, but underflow would
            torch.mm(tile, candidates, out=anchor_gradient[rows])
            candidate_gradient.addmm_(tile.T, anchors[rows])


def ours(queries: Tensor, positives: Tensor, negatives: Tensor) -> None:
    """contrastive_loss from raw embeddings, looking for duplicates among texts that all differ."""
    rows, hard = len(queries), len(negatives)
    exclusions = Exclusions(rows, torch.arange(hard) % rows, torch.randperm(rows), rows + torch.randperm(rows + hard))
    loss = contrastive_loss(*map(unit, (queries, positives, negatives)), exclusions, temperature=TEMPERATURE).loss
    loss.backward()  # of unit vectors that nobody else holds, as in training


def st(queries: Tensor, positives: Tensor, negatives: Tensor) -> None:
    """ST's MultipleNegativesRankingLoss."""
    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / TEMPERATURE, directions=DIRECTIONS)
    loss.compute_loss_from_embeddings([queries, positives, negatives], None).backward()


def st_cached(queries: Tensor, positives: Tensor, negatives: Tensor) -> None:
    """The loss stage of ST's CachedMultipleNegativesRankingLoss, 512 rows at a time (faster here than its 32)."""
    loss = CachedMultipleNegativesRankingLoss.__new__(CachedMultipleNegativesRankingLoss)
    torch.nn.Module.__init__(loss)
    loss.loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / TEMPERATURE, directions=DIRECTIONS)
    loss.mini_batch_size, loss.show_progress_bar = 512, False
    loss.calculate_loss([[queries], [positives], [negatives]], with_backward=True)


def ours_one_rank_of_many(queries: Tensor, positives: Tensor, negatives: Tensor) -> None:
    """1,024 rows against all: what one rank computes when it holds 1,024 of the N rows."""
    exclusions = Exclusions(len(queries), torch.arange(len(negatives)))
    vectors = map(unit, (queries, positives, negatives))
    loss = contrastive_loss(*vectors, exclusions, temperature=TEMPERATURE, rows=(0, 1024)).loss
    loss.backward()


class Measurement(NamedTuple):
    """Seconds of the fastest run, and bytes at the peak above the inputs and their gradients' place."""

    seconds: float
    peak: int


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _measure_here(contender: Callable[..., None], rows: int, dim: int, device: str, budget: float) -> Measurement:
    torch.manual_seed(0)
    inputs = [torch.randn(rows, dim, device=device).requires_grad_() for _ in range(3)]
    small = [torch.randn(FLOOR_ANCHORS, dim, device=device).requires_grad_() for _ in range(3)]
    contender(*small)  # libraries set themselves up
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = _status("VmRSS:")
    best, end = float("inf"), time.perf_counter() + budget
    peak = 0
    for run in range(5):
        start = time.perf_counter()
        contender(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        if run == 0:
            peak = torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM:")
        if time.perf_counter() + best > end:
            break
        for tensor in inputs:
            tensor.grad = None
    return Measurement(best, peak - before)


def measure(contender: Callable[..., None], rows: int, dim: int, device: str = "cpu", budget: float = 2.0) -> Any:
    """Run a contender in a process of its own, up to five times within ``budget`` seconds; None if it died."""

    def child(sender: Any) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        sender.send(_measure_here(contender, rows, dim, device, budget))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()
