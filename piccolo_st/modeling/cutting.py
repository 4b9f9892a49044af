"""Where rows sorted by length are cut into chunks, one forward pass each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CPU_CHUNK_TOKENS = 512
"""Tokens in one forward pass on a CPU with padding: small ones have little of it. Of long rows, two rows."""

PACKED_CHUNK_TOKENS = 2048
"""The same where rows are packed without padding; larger ones leave the cache."""

CHUNK_COST = 16_384
"""Tokens that a further chunk of padded rows must save on a GPU, which may have no work while the chunk is launched.

Chosen from two timings of BERT-base on an H100, not profiled: about 35,000 tokens in few passes took 94 ms a step,
16,500 in eight took 328 ms. No other model, batch or number in its place has been timed.
"""


def chunk_ranges(
    lengths: Sequence[int], chunk_tokens: int | str | None, device: str, packed: bool, most: int
) -> list[tuple[int, int]]:
    """(begin, end) of each chunk of rows; the chunk is ``lengths[begin]`` wide.

    Args:
        lengths: tokens of each row, longest first.
        chunk_tokens: the largest chunk, see :func:`token_chunks`; "auto": as suits the device. Chunks need no less
            memory than one pass where gradients are wanted, so "auto" is about padding alone.
        device: its type.
        packed: whether the model packs rows without padding.
        most: tokens that "auto" never computes more than, on a GPU.
    """
    if chunk_tokens != "auto":
        return token_chunks(lengths, None if chunk_tokens is None else int(chunk_tokens))
    if device == "cpu":
        return token_chunks(lengths, PACKED_CHUNK_TOKENS if packed else max(CPU_CHUNK_TOKENS, 2 * max(lengths)))
    return token_chunks(lengths, None) if packed else few_chunks(lengths, most)


def token_chunks(lengths: Sequence[int], chunk_tokens: int | None) -> list[tuple[int, int]]:
    """Cut rows into consecutive ranges of at most ``chunk_tokens`` tokens each, padding included.

    Args:
        lengths: tokens of each row, longest first.
        chunk_tokens: the limit; a row that is longer gets a chunk of its own. None: one chunk.

    Returns:
        (begin, end) of each chunk; the chunk is ``lengths[begin]`` wide.
    """
    if chunk_tokens is None:
        return [(0, len(lengths))] if lengths else []
    ranges, begin = [], 0
    while begin < len(lengths):
        end = min(len(lengths), begin + max(1, chunk_tokens // max(1, lengths[begin])))
        ranges.append((begin, end))
        begin = end
    return ranges


def few_chunks(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Cut rows where it saves most padding, again and again, as long as it pays.

    Args:
        lengths: tokens of each row, longest first.
        most: tokens with padding, at least those without; they are never more than this.

    Returns:
        (begin, end) of each chunk; the chunk is ``lengths[begin]`` wide.
    """
    sizes = np.array(lengths)
    cuts, computed = [_best_cut(sizes, 0, len(sizes))], len(sizes) * int(sizes[0])
    while True:
        saved, begin, middle, end = max(cuts)
        if saved == 0 or (saved < CHUNK_COST and computed <= most):
            return sorted((begin, end) for _, begin, _, end in cuts)
        cuts.remove((saved, begin, middle, end))
        cuts += [_best_cut(sizes, begin, middle), _best_cut(sizes, middle, end)]
        computed -= saved


def _best_cut(sizes: np.ndarray, begin: int, end: int) -> tuple[int, int, int, int]:
    """Tokens that a cut of a chunk saves, and where it begins, is cut and ends."""
    saved = (sizes[begin] - sizes[begin:end]) * np.arange(end - begin, 0, -1)
    best = int(saved.argmax())
    return int(saved[best]), begin, begin + best, end
