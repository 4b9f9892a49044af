"""Tiles of a loss over all pairs of a batch: how many rows at a time, and where in the buffer which scores stand.

A tile is R rows x anchors (the query, perhaps the positive) x all candidates. It is computed a block at a time, some
anchors against one kind of candidates, which is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

# The buffer of a tile. On a CPU it stays in the cache; elsewhere larger products make up for that (not measured).
_TILE_BYTES_CPU = 32 << 20
_TILE_BYTES_ELSEWHERE = 256 << 20
_LEAST_ROWS = 64

# Scores further below the maximum, those that were left out among them, count as this far below. Their share, e^-60 =
# 1e-26, is under the resolution of the dtype; exponentials that underflow make exp and the matrix products after it up
# to 40 times slower.
EXP_FLOOR = {torch.float32: -60.0, torch.float64: -600.0}


class Block(NamedTuple):
    """The part of a tile where some anchors meet one kind of candidates: one matrix product."""

    kind: int  # of candidates, 0: queries, 1: positives, 2: hard negatives
    anchors: slice  # slice(0, 1): queries, slice(1, 2): positives, slice(0, 2): both
    columns: slice


@dataclass(frozen=True)
class Layout:
    """Where things are in a tile of R rows x anchors x candidates.

    Attributes:
        anchors: 1 if only queries are anchors, 2 if positives are as well.
        width: all candidates that any anchor meets.
        blocks: what is computed.
        unused: what no direction asks for.
        first: for each direction, its anchor and the first column of its candidates, which follow in the order in
            which :class:`Exclusions` numbers them.
    """

    anchors: int
    width: int
    blocks: tuple[Block, ...]
    unused: tuple[Block, ...]
    first: dict[str, tuple[int, int]]


def layout_of(directions: Sequence[str], rows: int, negatives: int) -> Layout:
    """Columns: queries, if any direction asks for them, then positives, then hard negatives."""
    names = ("query", "doc")
    anchors = 2 if any(direction.startswith("doc") for direction in directions) else 1
    width, blocks, unused, first = 0, [], [], {}
    for target, kinds in (("query", {0: rows}), ("doc", {1: rows, 2: negatives})):
        asked = [anchor for anchor in range(anchors) if f"{names[anchor]}_to_{target}" in directions]
        first.update({f"{names[anchor]}_to_{target}": (anchor, width) for anchor in asked})
        for kind, size in kinds.items() if asked else ():
            columns = slice(width, width + size)
            width += size
            blocks.append(Block(kind, slice(asked[0], asked[-1] + 1), columns))
            unused += [Block(kind, slice(a, a + 1), columns) for a in range(anchors) if a not in asked]
    return Layout(anchors, width, tuple(blocks), tuple(unused), first)


def tile_ranges(
    start: int, stop: int, row_bytes: int, device: torch.device, tile_rows: int | None = None
) -> list[tuple[int, int]]:
    """Ranges of rows of nearly equal size, in each ``tile_rows`` at most, or as many as the device's buffer holds."""
    tile_bytes = _TILE_BYTES_CPU if device.type == "cpu" else _TILE_BYTES_ELSEWHERE
    most = tile_rows or max(_LEAST_ROWS, tile_bytes // row_bytes)
    count = -(-(stop - start) // most)
    return list(pairwise(start + (stop - start) * tile // count for tile in range(count + 1)))
