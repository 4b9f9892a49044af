"""A seeded shuffle of 0..n-1 that is computed, not stored: any position, in any order, in O(1) memory.

The row that stands at position x of the shuffled order (a Feistel network over a rectangle, with cycle walking; Black
and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, generalised Feistel):

    (1) write x as (left, right) on a grid of height x width >= n, both sides close to sqrt(n);
    (2) in turn shift left by a keyed hash of right, modulo the height, and right by a keyed hash of left, modulo the
        width: each shift can be undone, so the whole is a bijection of the grid;
    (3) a result of n or more is fed in again until it falls below n. The walk stays on its own cycle and x itself lies
        below n, so it ends, and the bijection of the grid becomes one of 0..n-1. At most about 2 / sqrt(n) of the grid
        is surplus, so a second walk is rare.

The numbers are fixed by this file: neither numpy's nor torch's generators take part, so an order never changes with
their versions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from piccolo_st.errors import InputError
from piccolo_st.hashing import MULTIPLIERS, mix

MAX_SIZE = 1 << 40

# Small grids need more rounds before every order is equally likely; from 256 on eight are enough (tests: chi-square).
_ROUNDS, _SMALL_ROUNDS, _SMALL_SIZE = 8, 24, 256


class Permutation:
    """A bijection of 0..size-1, chosen by ``key``.

    Args:
        size: how many elements, 1 to 2**40.
        key: any integer; another key gives another order.

    Raises:
        InputError: the size is out of range.
    """

    def __init__(self, size: int, key: int) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise InputError(f"the size of a permutation must be from 1 to 2**40, got {size}")
        self.size = size
        height = math.isqrt(size - 1) + 1
        width = -(-size // height)
        # Shifts by an odd modulus are even permutations: one side must be even, or half of all orders are never drawn.
        width += height % 2 & width % 2
        self._height, self._width = np.uint64(height), np.uint64(width)
        rounds = _ROUNDS if size >= _SMALL_SIZE else _SMALL_ROUNDS
        self._keys = [np.uint64(mix(key, index)) for index in range(rounds)]

    def __call__(self, positions: NDArray[np.integer]) -> NDArray[np.int64]:
        """The elements at the given positions.

        Args:
            positions: integers from 0 to size-1, any shape.

        Returns:
            int64 array of the same shape, with distinct values for distinct positions.

        Raises:
            IndexError: a position lies outside 0..size-1.
        """
        positions = np.asarray(positions)
        if positions.size and (positions.min() < 0 or positions.max() >= self.size):
            raise IndexError(f"positions must be in 0..{self.size - 1}, got {positions.min()} to {positions.max()}")
        elements = self._encipher(positions.ravel().astype(np.uint64))
        while (outside := np.flatnonzero(elements >= np.uint64(self.size))).size:  # step (3)
            elements[outside] = self._encipher(elements[outside])
        return elements.view(np.int64).reshape(positions.shape)

    def _encipher(self, positions: NDArray[np.uint64]) -> NDArray[np.uint64]:
        height, width = self._height, self._width
        left = positions // width  # step (1)
        right = positions - left * width
        for index in range(0, len(self._keys), 2):  # step (2)
            _shift(left, right, self._keys[index], height)
            _shift(right, left, self._keys[index + 1], width)
        left *= width
        left += right
        return left


def _shift(side: NDArray[np.uint64], other: NDArray[np.uint64], key: np.uint64, modulus: np.uint64) -> None:
    """Add a keyed hash of ``other`` to ``side`` modulo ``modulus`` (at most 2**24), in place."""
    amount = other + key
    amount *= np.uint64(MULTIPLIERS[0])
    amount ^= amount >> np.uint64(32)
    amount *= np.uint64(MULTIPLIERS[1])
    amount >>= np.uint64(24)  # the 40 best bits, scaled to 0..modulus-1 without a division
    amount *= modulus
    amount >>= np.uint64(40)
    side += amount
    side -= modulus * (side >= modulus)


@lru_cache(maxsize=1024)
def permutation(size: int, key: int) -> Permutation:
    """A :class:`Permutation`, kept for the next call: making its round keys costs as much as using it."""
    return Permutation(size, key)
