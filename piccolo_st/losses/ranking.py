"""Whether pairs of texts stand in a teacher's order: tensors in, loss and gradient out.

For unit vectors s_i of the student and t_i of the teacher, N of each, a pair a = (i, j), i < j, has the similarities
s_a = s_i s_j and t_a = t_i t_j. The relative similarity of stella and Jasper (Zhang et al. 2024, arXiv 2412.19048) is

    loss = sum over the pairs a, b with t_a > t_b of  max(0, s_b - s_a + margin) / (P (P - 1) / 2),   P = N (N - 1) / 2

There are P^2 / 2 of them, which are counted without being there. (1) Number the teacher's similarities by size, equal
ones alike: t_a > t_b if the highest bit in which the numbers differ is set in a's. (2) So, bit by bit from the highest,
each group of pairs that agree so far falls into those with the bit and those without, and each of the first meets each
of the second. (3) A group is kept in the order of s: whom a pair meets above s_a - margin is an interval, of which
running sums give the number and the sum. O(P log^2 P) time, and P numbers: of the losses here this one alone needs more
than linear memory. 768 texts take 1 s of one CPU core (AMD EPYC).
"""

from __future__ import annotations

import torch
from torch import Tensor

from piccolo_st.losses.at_once import at_once

_EQUAL = 1e-9  # similarities of a teacher that differ by less are of equal texts, summed in another order


def ranking_loss(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """The loss of the module docstring, a scalar that is differentiable once; 0 for fewer than three texts.

    Args:
        student: (N, D) unit vectors, float32 or float64.
        teacher: (N, K) unit vectors of the same texts; it gets no gradient.
        margin: from 0, below 1.
    """
    if len(student) < 3:
        return student.sum() * 0

    def compute(differentiable: bool) -> tuple[Tensor, list[Tensor]]:
        first, second = torch.triu_indices(len(student), len(student), 1, device=student.device)  # (P,) each
        similar = (student @ student.T)[first, second].double()
        taught = teacher.double()
        numbers = ((taught @ taught.T)[first, second] / _EQUAL).round().unique(return_inverse=True)[1]  # (P,), step (1)
        loss, slopes = _misplaced(similar, numbers, margin)
        divisor = len(similar) * (len(similar) - 1) / 2
        by_pair = student.new_zeros(len(student), len(student))
        by_pair[first, second] = (slopes / divisor).to(student.dtype)
        return (loss / divisor).to(student.dtype), [(by_pair + by_pair.T) @ student]

    return at_once(compute, student)


def _misplaced(similar: Tensor, numbers: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """The sum of the loss, and its derivative by each similarity, (P,) float64; steps (2) and (3)."""
    value, order = similar.sort()
    number, loss, slopes = numbers[order], similar.new_zeros(()), torch.zeros_like(similar)
    place = torch.arange(len(value), device=value.device)
    start, end = torch.zeros_like(place), torch.full_like(place, len(value))  # of each pair's group
    for bit in reversed(range(int(numbers.max()).bit_length())):
        high = (number >> bit) & 1
        low = 1 - high
        apart = value + 4.0 * (number >> (bit + 1))  # so that all groups together are sorted: none is beyond -1 and 1
        above = torch.searchsorted(apart, apart - margin, right=True)
        below = torch.searchsorted(apart, apart + margin)
        highs, lows, sums = (torch.nn.functional.pad(one.cumsum(0), (1, 0)) for one in (high, low, low * value))
        met = lows[end] - lows[above]
        loss += (high * (sums[end] - sums[above] + met * (margin - value))).sum()
        slopes += low * (highs[below] - highs[start]) - high * met
        # Each group becomes two, in the same order.
        middle = start + lows[end] - lows[start]
        to = torch.where(high == 1, middle + highs[place] - highs[start], start + lows[place] - lows[start])
        start, end = torch.where(high == 1, middle, start), torch.where(high == 1, end, middle)
        kept = (value, order, number, slopes, start, end)
        value, order, number, slopes, start, end = (torch.empty_like(one).scatter_(0, to, one) for one in kept)
    return loss, torch.empty_like(slopes).scatter_(0, order, slopes)
