"""QuantisedLoss: a loss on the embeddings as they are, and again on what a search keeps of them.

    loss = L(x) + sum over the precisions L(Q(x))          x: the unit vectors of a batch, D numbers each

    int8    each number rounded to the nearest of 256 steps between the smallest and the largest of its dimension
    binary  +1/sqrt(D) where a number is above its dimension's mean, -1/sqrt(D) elsewhere

(1) L is computed as if it stood alone, and the embeddings that it asks the model for are kept.
(2) Smallest, largest and mean are those of all texts of the batch, on all ranks: what a search reads off its corpus.
    They are constants to the gradient.
(3) L is computed again for each precision, on the kept embeddings, quantised: the encoder runs once.
(4) Rounding has no slope, so gradients go straight through (Bengio et al. 2013, arXiv 1308.3432): that of Q(x) is taken
    for that of x, for bits only within 1/sqrt(D) of the mean, the hard tanh of binary networks.

It is built as ST's MatryoshkaLoss, which may stand around it; with gradient caching (3) happens in ``calculate_loss``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import uses_gradient_cache
from torch import Tensor, nn

from piccolo_st.distributed import gather_rows
from piccolo_st.losses.choices import SmallPrecision
from piccolo_st.losses.citations import STRAIGHT_THROUGH
from piccolo_st.losses.contrast import unit
from piccolo_st.modeling import Features


@dataclass(frozen=True)
class Calibration:
    """What is read off some unit vectors, (D,) each: the smallest, the largest and the mean of each dimension."""

    lowest: Tensor
    highest: Tensor
    mean: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Calibration:
        """Of (N, D) vectors, N at least 1."""
        return cls(vectors.amin(dim=0), vectors.amax(dim=0), vectors.mean(dim=0))

    def quantise(self, vectors: Tensor, precision: SmallPrecision) -> Tensor:
        """(N, D) unit vectors as a search keeps them; the gradient goes straight through, step (4)."""
        if precision == "int8":
            step = (self.highest - self.lowest).clamp_min(torch.finfo(vectors.dtype).tiny) / 255
            kept = ((vectors.detach() - self.lowest) / step).round() * step + self.lowest
            return vectors + (kept - vectors.detach())
        one = vectors.shape[1] ** -0.5
        passed = (vectors - self.mean).clamp(-one, one)
        kept = (2 * one) * (vectors.detach() > self.mean).to(vectors.dtype) - one
        return passed + (kept - passed.detach())


class QuantisedLoss(nn.Module):
    """A loss over the embeddings of a batch, and over the same embeddings quantised; see the module docstring.

    Inputs: those of the loss within.

    Args:
        model: the model to train.
        loss: any loss that calls the model, with or without ST's gradient caching.
        precisions: of "int8" and "binary"; each adds the loss once.

    Raises:
        ValueError: no precision, an unknown or a repeated one.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from piccolo_st.losses import PiccoloLoss
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> loss = QuantisedLoss(model, PiccoloLoss(model, temperature=0.02), ["int8", "binary"])
        >>> columns = [["天气", "水果"], ["今天有雨", "红的果子"]]  # query, positive
        >>> loss([model.preprocess(texts) for texts in columns]).backward()
    """

    def __init__(self, model: SentenceTransformer, loss: nn.Module, precisions: Sequence[SmallPrecision]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.precisions = tuple(precisions)
        known = get_args(SmallPrecision)
        if not precisions or len(set(precisions)) < len(precisions) or not set(precisions) <= set(known):
            raise ValueError(f"quantised must be different names of {known}, at least one, got {list(precisions)}")
        self.across_ranks = getattr(loss, "gather_across_devices", True)
        self.uses_gradient_cache = uses_gradient_cache(loss)
        if self.uses_gradient_cache:
            self._within: Any = loss.calculate_loss
            # A MatryoshkaLoss around this one puts its own in the place of calculate_loss, and that is to be called.
            loss.calculate_loss = lambda *args, **kwargs: self.calculate_loss(*args, **kwargs)  # type: ignore[assignment]

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The sum of the loss within, on the embeddings as they are and in each precision."""
        if self.uses_gradient_cache:
            return self.loss(sentence_features, labels)
        columns = list(sentence_features)
        original = self.model.forward
        outputs: list[dict[str, Tensor]] = []

        def embed(features: Features, **kwargs: object) -> dict[str, Tensor]:
            outputs.append(dict(original(features, **kwargs)))
            return dict(outputs[-1])

        try:
            self.model.forward = embed  # type: ignore[method-assign,assignment]
            loss = self.loss(columns, labels)  # (1)
            vectors = [unit(output["sentence_embedding"]) for output in outputs]
            calibration = self._calibrate(vectors)
            for precision in self.precisions:  # (3)
                kept = iter(
                    [
                        {**output, "sentence_embedding": calibration.quantise(rows, precision)}
                        for output, rows in zip(outputs, vectors, strict=True)
                    ]
                )
                self.model.forward = lambda features, kept=kept, **kwargs: next(kept)  # type: ignore[method-assign]
                loss = loss + self.loss(columns, labels)
        finally:
            self.model.forward = original  # type: ignore[method-assign]
        return loss

    def calculate_loss(self, reps: list[list[Tensor]], *args: object, **kwargs: object) -> Tensor:
        """Called by the gradient cache with the embeddings of all mini-batches, by column."""
        loss: Tensor = self._within(reps, *args, **kwargs)
        calibration = self._calibrate([unit(part) for column in reps for part in column])
        for precision in self.precisions:
            columns = [[calibration.quantise(unit(part), precision) for part in column] for column in reps]
            # The loss goes backward on the way, perhaps a few rows at a time: to leaves, from where it is taken on.
            leaves = [[part.detach().requires_grad_(part.requires_grad) for part in column] for column in columns]
            loss = loss + self._within(leaves, *args, **kwargs)
            for whole, leaf in zip(chain(*columns), chain(*leaves), strict=True):
                if leaf.grad is not None:
                    whole.backward(leaf.grad)
        return loss

    def _calibrate(self, vectors: Sequence[Tensor]) -> Calibration:
        """Step (2)."""
        rows = torch.cat([part.detach() for part in vectors])
        return Calibration.of(gather_rows(rows)[0].rows if self.across_ranks else rows)

    def get_config_dict(self) -> dict[str, object]:
        """The settings, for ST's model card."""
        inner: dict[str, object] = getattr(self.loss, "get_config_dict", dict)()
        return {"loss": type(self.loss).__name__, "quantised": list(self.precisions), **inner}

    @property
    def citation(self) -> str:
        """BibTeX of the loss within and of the gradient, for ST's model card."""
        return getattr(self.loss, "citation", "") + STRAIGHT_THROUGH
