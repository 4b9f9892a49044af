"""How far the similarities of some vectors are from those of a teacher's: tensors in, loss and gradient out.

For unit vectors s_i of the student and t_i of the teacher, N of each:

    loss = sum over i of own rows, j of all  (s_i s_j - t_i t_j)^2 / divisor

which, over all rows and divided by N^2, is the mean squared error of the two N x N matrices: the similarity term of
stella and Jasper (Zhang et al. 2024, arXiv 2412.19048). Neither matrix is ever there: a tile of rows is computed at a
time, and its part of the gradient with it, as contrast.py does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from piccolo_st.losses.at_once import at_once
from piccolo_st.losses.tiles import tile_ranges


def similarity_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    rows: tuple[int, int] | None = None,
    divisor: float | None = None,
    tile_rows: int | None = None,
) -> Tensor:
    """The loss of the module docstring; the teacher gets no gradient.

    Args:
        student: (N, D) unit vectors, float32 or float64, of all ranks.
        teacher: (N, K) unit vectors of the same texts, of the same dtype.
        rows: (start, stop), this rank's own. None: all.
        divisor: what the sum is divided by. None: rows times N, so the loss is the mean over pairs.
        tile_rows: how many rows are computed at a time. None: as in ``contrastive_loss``.

    Returns:
        Scalar of the student's dtype, differentiable once.

    Raises:
        ValueError: not one vector of the teacher for each of the student.
    """
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            "there must be a vector of the teacher for each text, got the shapes "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    start, stop = rows if rows is not None else (0, len(student))
    tiles = tile_ranges(start, stop, 2 * len(student) * student.element_size(), student.device, tile_rows)
    by = float((stop - start) * len(student)) if divisor is None else divisor

    def compute(differentiable: bool) -> tuple[Tensor, list[Tensor]]:
        loss, gradient = student.new_zeros(()), torch.zeros_like(student)
        for start, stop in tiles:
            apart = student[start:stop] @ student.T  # (R, N)
            apart.addmm_(teacher[start:stop], teacher.T, alpha=-1)
            loss += apart.square().sum() / by
            if differentiable:
                gradient[start:stop].addmm_(apart, student, alpha=2 / by)
                gradient.addmm_(apart.T, student[start:stop], alpha=2 / by)
        return loss, [gradient]

    return at_once(compute, student)
