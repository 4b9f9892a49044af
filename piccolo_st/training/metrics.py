"""What a run says about itself between two logs: loss of each dataset, tokens, padding, alignment and uniformity.

Alignment and uniformity are those of Wang and Isola (2020, arXiv 2005.10242), of unit vectors: the mean squared
distance of a query and its positive, and log E exp(-2 |x - y|^2) over pairs of different positives. Both fall as the
embeddings get better; a uniformity near 0 means that they have collapsed.
"""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from piccolo_st.distributed import get_world_size
from piccolo_st.modeling import row_borders, row_count, without_bookkeeping

Batch: TypeAlias = dict[str, Any]
"""A collated batch as ST's trainer hands it on: tensors by column, and the dataset's name."""

Features: TypeAlias = list[dict[str, Tensor]]
"""The columns of a batch as a model takes them, the query's first."""

IDLE_STEPS = 20
"""Successive micro-steps of a dataset with a loss of exactly 0 after which it is said to teach nothing."""

_PAIRS = 64  # pairs embedded for alignment and uniformity at each log


class Meter:
    """Adds up what the batches of this rank hold; nothing waits for the device until ``pop``."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._tokens: Tensor | None = None
        self._positions = 0
        self._waited = 0.0
        self._losses: dict[str, tuple[float | Tensor, int]] = {}  # dataset -> (sum of its losses, how many)
        self._zeros: dict[str, int | Tensor] = {}  # dataset -> how many of its last losses were exactly 0
        self._idle: set[str] = set()

    def add_batch(self, inputs: Batch) -> None:
        """Count the tokens of a collated batch."""
        if self._start is None:
            self._start = time.perf_counter()
        for name, value in inputs.items():
            if name.endswith("attention_mask") and isinstance(value, Tensor):
                tokens = value.sum()
                self._tokens = tokens if self._tokens is None else self._tokens + tokens
                self._positions += value.numel()

    def add_wait(self, seconds: float) -> None:
        """Count time in which the step had no batch yet. The wait for the first batch after a log is not counted."""
        if self._start is not None:
            self._waited += seconds

    def add_loss(self, dataset: str, loss: Tensor) -> None:
        """Add the loss of a micro-step to those of its dataset."""
        total, steps = self._losses.get(dataset, (0.0, 0))
        self._losses[dataset] = total + loss.detach(), steps + 1
        self._zeros[dataset] = (self._zeros.get(dataset, 0) + 1) * (loss.detach() == 0)

    def newly_idle(self) -> list[str]:
        """The datasets whose last ``IDLE_STEPS`` losses on this rank were all exactly 0; each is returned once."""
        found = [name for name, zeros in self._zeros.items() if name not in self._idle and int(zeros) >= IDLE_STEPS]
        self._idle.update(found)
        return found

    def pop(self) -> dict[str, float]:
        """What was counted since the last call, on all ranks together; every rank calls it.

        Keys: ``tokens_per_second`` (of all ranks), ``padding`` (the share of the collated positions that are padding,
        before the loss sorts rows by length), ``data_wait`` (the share of the time spent reading, tokenizing and
        collating instead of computing, of this rank) and, with several datasets, ``loss_NAME`` (of this rank; all
        ranks read the same dataset at a step).
        """
        found: dict[str, float] = {}
        if len(self._losses) > 1:
            found = {f"loss_{name}": round(float(total) / n, 4) for name, (total, n) in sorted(self._losses.items())}
        self._losses.clear()
        if self._start is not None and self._tokens is not None:
            counts = torch.stack([self._tokens, self._tokens.new_tensor(self._positions)]).to(torch.int64)
            if get_world_size() > 1:
                dist.all_reduce(counts)
            tokens, positions = counts.tolist()
            elapsed = time.perf_counter() - self._start
            found["tokens_per_second"] = round(tokens / elapsed, 1)
            found["padding"] = round(1 - tokens / positions, 4)
            found["data_wait"] = round(self._waited / elapsed, 4)
        self._start, self._tokens, self._positions, self._waited = None, None, 0, 0.0
        return found


@torch.no_grad()
def alignment_and_uniformity(model: nn.Module, features: Features) -> dict[str, float]:
    """Alignment and uniformity of the first rows of a batch, without dropout.

    Args:
        model: the SentenceTransformer itself, not wrapped for several ranks.
        features: of the columns, the first two being query and positive: (rows, length) tensors.

    Returns:
        ``alignment`` and ``uniformity``; nothing if there are no two columns of at least two rows.
    """
    pair = features[:2]
    if len(pair) < 2 or any("owner" in one or "input_ids" not in one for one in pair):
        return {}
    training = model.training
    model.eval()
    try:
        query, positive = (nn.functional.normalize(embed(model, one, _PAIRS).float(), dim=-1) for one in pair)
    finally:
        model.train(training)
    if len(query) < 2 or len(query) != len(positive):
        return {}
    distances = torch.pdist(positive).square()  # (rows * (rows - 1) / 2,)
    uniformity = torch.logsumexp(-2 * distances, dim=0) - torch.log(distances.new_tensor(len(distances)))
    found = {"alignment": (query - positive).square().sum(-1).mean(), "uniformity": uniformity}
    return {name: round(float(value), 4) for name, value in found.items()}


def embed(model: nn.Module, features: dict[str, Tensor], rows: int | None = None) -> Tensor:
    """Embeddings of the first ``rows`` texts of a column: (rows, dimension). The features stay as they are."""
    total, plain = row_count(features), without_bookkeeping(features)
    if row_borders(features) is not None:  # flattened: nothing of it goes by row
        return model(plain)["sentence_embedding"][:rows]
    cut = {
        name: value[:rows] if isinstance(value, Tensor) and value.ndim and len(value) == total else value
        for name, value in plain.items()
    }
    return model(cut)["sentence_embedding"]
