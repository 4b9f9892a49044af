"""Global orthogonal regularisation: texts that have nothing to do with each other are to stand at right angles.

Over N unit vectors x of D numbers, any two of them (Zhang et al. 2017, arXiv 1708.06320):

    mean           ( mean over i != j of x_i x_j )^2
    second moment  max(0, mean over i != j of (x_i x_j)^2 - 1/D)     1/D: what vectors at random have

as in ST's GlobalOrthogonalRegularizationLoss, but without the N x N products: their sum is |sum x|^2 and the sum of
their squares is that of the entries of the D x D matrix X^T X, each less what pairs (i, i) add.
"""

from __future__ import annotations

import torch
from torch import Tensor


def spread_out(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of some vectors: scalars of their dtype; 0 for a single vector.

    Args:
        vectors: (N, D), rows of length 1 or 0.
    """
    rows, dim = vectors.shape
    pairs = max(1, rows * (rows - 1))
    with torch.autocast(vectors.device.type, enabled=False):
        gram = vectors.T @ vectors  # (D, D)
    squares = vectors.square().sum(dim=1)  # (N,)
    mean = (vectors.sum(dim=0).square().sum() - squares.sum()) / pairs
    second = (gram.square().sum() - squares.square().sum()) / pairs
    return mean.square(), (second - 1 / dim).relu()
