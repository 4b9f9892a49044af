"""Hashes of texts, by which equal texts know each other on every rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray


def text_ids(texts: Sequence[str]) -> NDArray[np.int64]:
    """A 64-bit hash (XXH3) of each text: (texts,). The same text has the same hash in every process."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(text.encode()) for text in texts), np.uint64, len(texts)).view(np.int64)


_WORD = (1 << 64) - 1


_GOLDEN = 0x9E3779B97F4A7C15


MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(*words: int) -> int:
    """Hash integers of any size and sign (the order matters) to 64 bits, with SplitMix64's finaliser for each word."""
    state = 0
    for word in words:
        while True:
            state = (state + (word & _WORD) + _GOLDEN) & _WORD
            state = ((state ^ (state >> 30)) * MULTIPLIERS[0]) & _WORD
            state = ((state ^ (state >> 27)) * MULTIPLIERS[1]) & _WORD
            state ^= state >> 31
            word >>= 64
            if word in (0, -1):
                break
    return state


def mix_array(key: int, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash each 64-bit word of an array under a 64-bit key, into a new array of the same shape."""
    state = words + np.uint64((key + _GOLDEN) & _WORD)
    state ^= state >> np.uint64(30)
    state *= np.uint64(MULTIPLIERS[0])
    state ^= state >> np.uint64(27)
    state *= np.uint64(MULTIPLIERS[1])
    state ^= state >> np.uint64(31)
    return state


def text_key(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Texts as they are compared: NFKC, lower case, no whitespace, punctuation or symbols.

    A text of nothing else keeps what NFKC makes of it, so that different ones stay different.
    """
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    plain = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    bare = pc.replace_substring_regex(plain, pattern=r"[\p{Z}\p{C}\p{P}\p{S}\s]+", replacement="")
    return pc.if_else(pc.equal(pc.binary_length(bare), 0), plain, bare)


def text_hashes(texts: pa.Array | pa.ChunkedArray, seed: int = 0) -> np.ndarray:
    """(n,) uint64: a hash of each whole text as it is; nulls hash like the empty text."""
    values = pc.fill_null(texts, "").cast(pa.binary()).to_pylist()
    return np.fromiter((xxhash.xxh3_64_intdigest(text, seed) for text in values), dtype=np.uint64, count=len(values))


def scramble(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every bit (the finalizer of SplitMix64; Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
