"""Hashes of texts and of integers, the same in every process, so that equal texts have equal hashes on every rank."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

# SplitMix64 (Steele, Lea and Flood 2014): the step between two words, and the multipliers of the finaliser.
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = (1 << 64) - 1
_FNV_PRIME = np.uint64(0x100000001B3)


def text_hashes(texts: Iterable[str | None] | pa.Array | pa.ChunkedArray, seed: int = 0) -> NDArray[np.uint64]:
    """A 64-bit hash (XXH3) of each text as it is: (texts,). None hashes like the empty text."""
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        encoded = pc.fill_null(texts, "").cast(pa.binary()).to_pylist()
    else:
        encoded = [(text or "").encode() for text in texts]
    return np.fromiter((xxhash.xxh3_64_intdigest(one, seed) for one in encoded), np.uint64, len(encoded))


def text_ids(texts: Iterable[str]) -> NDArray[np.int64]:
    """The same as int64, which a tensor and a column of labels can hold: (texts,)."""
    return text_hashes(texts).view(np.int64)


def plain_text(texts: pa.Array) -> pa.Array:
    """Texts as a reader compares them, the same for every tokenizer: NFKC, lower case, no blanks or line ends."""
    plain = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    return pc.replace_substring_regex(plain, pattern=r"[\p{Z}\p{Cf}\s]+", replacement="")


def text_key(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Texts as near duplicates are looked for: NFKC, lower case, no whitespace, punctuation or symbols.

    A text of nothing else keeps what NFKC makes of it, so that different ones stay different.
    """
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    plain = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    bare = pc.replace_substring_regex(plain, pattern=r"[\p{Z}\p{C}\p{P}\p{S}\s]+", replacement="")
    return pc.if_else(pc.equal(pc.binary_length(bare), 0), plain, bare)


def mix(*words: int) -> int:
    """Hash integers of any size and sign (the order matters) to 64 bits, with SplitMix64's finaliser for each word."""
    state = 0
    for word in words:
        while True:
            state = (state + (word & _WORD) + GOLDEN) & _WORD
            state = ((state ^ (state >> 30)) * MULTIPLIERS[0]) & _WORD
            state = ((state ^ (state >> 27)) * MULTIPLIERS[1]) & _WORD
            state ^= state >> 31
            word >>= 64
            if word in (0, -1):
                break
    return state


def mix_array(key: int, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash each 64-bit word of an array under a 64-bit key, into a new array of the same shape."""
    return scramble(words + np.uint64((key + GOLDEN) & _WORD))


def scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of the 64-bit words that spreads every bit; a new array."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(MULTIPLIERS[0])
    values ^= values >> np.uint64(27)
    values *= np.uint64(MULTIPLIERS[1])
    values ^= values >> np.uint64(31)
    return values


def combine(hashes: NDArray[np.uint64], further: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hash of what ``hashes`` stand for, followed by ``further``: a new array."""
    return scramble(hashes * _FNV_PRIME + further)
