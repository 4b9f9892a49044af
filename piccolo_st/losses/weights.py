"""How much a negative and a row count in the contrastive loss: hardness and focal weights.

Hardness (Lan et al. 2025, arXiv 2503.04812, Eq. 5; EmbeddingGemma, arXiv 2509.20354): in query_to_doc the logit of a
negative d of row i becomes  s(q_i, d)/t + a sg(s(q_i, d)),  where sg has no gradient, so a negative that is more
similar has a larger share of Z_i. As in ST's MultipleNegativesRankingLoss, ``hardness_mode`` says which negatives:
``in_batch_negatives``, the documents of other rows; ``hard_negatives``, the row's own; ``all_negatives``, both.

Focal (KaLM-Embedding-V2, arXiv 2506.20923): with p_i = exp(s(q_i, p_i)/t) / Z_i, the row's loss -log p_i is weighted
by (1 - p_i)^g: a row that is learnt counts less. The weight has a gradient, as in Lin et al. 2017 (arXiv 1708.02002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import get_args

from torch import Tensor

from piccolo_st.losses.choices import HardnessMode


def check_weight(name: str, weight: float) -> float:
    """What a term of this name is weighted by. Raises ValueError if it is negative or not finite."""
    if not isinstance(weight, Real) or not 0 <= weight < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, got {weight!r}")
    return float(weight)


@dataclass(frozen=True)
class Weights:
    """Of negatives and of rows; the defaults weigh nothing.

    Attributes:
        hardness_mode: which negatives hardness weighs.
        hardness_strength: a, at least 0.
        focal_gamma: g, at least 0.

    Raises:
        ValueError: an unknown mode, or a number below 0.
    """

    hardness_mode: HardnessMode = "hard_negatives"
    hardness_strength: float = 0.0
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.hardness_mode not in get_args(HardnessMode):
            raise ValueError(
                f"hardness_mode must be one of {', '.join(get_args(HardnessMode))}, got {self.hardness_mode!r}"
            )
        for name, value in (("hardness_strength", self.hardness_strength), ("focal_gamma", self.focal_gamma)):
            check_weight(name, value)

    def harden(
        self, documents: Tensor, own: tuple[Tensor, Tensor], own_negatives: tuple[Tensor, Tensor], temperature: float
    ) -> None:
        """Weigh by hardness, in place.

        Args:
            documents: (R, documents) logits s/t of some rows' queries.
            own: where each row meets its own positive, as two index tensors.
            own_negatives: where each row meets its own hard negatives.
            temperature: t.
        """
        factor = 1 + self.hardness_strength * temperature
        negatives = documents[own_negatives]
        if self.hardness_mode != "hard_negatives":
            positives = documents[own]
            documents.mul_(factor)
            documents[own] = positives
        if self.hardness_mode != "all_negatives":
            documents[own_negatives] = negatives * (factor if self.hardness_mode == "hard_negatives" else 1)

    def focus(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted losses of some rows, and their derivatives by the unweighted ones: two tensors like ``losses``.

        With l = -log p and w = (1 - p)^g, the derivative of w l is w + l g (1 - p)^(g - 1) p; at p = 1 both are 0.
        """
        missed = -(-losses).expm1().clamp_max(0)  # 1 - p
        weight = missed**self.focal_gamma
        slope = losses * self.focal_gamma * missed ** (self.focal_gamma - 1) * (1 - missed)
        return losses * weight, (weight + slope).masked_fill(missed == 0, 0)
