"""Texts as sets of character n-grams, and how much two such sets overlap: exactly, and by MinHash.

    (1) ``shingle`` turns texts into hashed n-grams, all at once: one array of 64-bit hashes and where each text begins;
    (2) ``jaccard`` counts the overlap of given pairs of texts exactly; ``best_overlap`` finds for every text the most
        similar one of a fixed collection, exactly, by one product of sparse matrices (no similar pair is missed);
    (3) ``band_hashes`` makes MinHash signatures (Broder 1997; rensa's implementation) and cuts them into bands whose
        equality marks candidates (locality-sensitive hashing; Indyk and Motwani 1998).

Texts are compared by their key (``text_key``): without case, width, whitespace, punctuation and symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from piccolo_st.errors import MixtureError, optional
from piccolo_st.hashing import GOLDEN, combine, text_key


@dataclass(frozen=True)
class Shingles:
    """The hashed n-grams of n texts.

    Attributes:
        hashes: (m,) uint64; those of one text stand together.
        offsets: (n + 1,) int64; text i has ``hashes[offsets[i]:offsets[i + 1]]``.
    """

    hashes: np.ndarray
    offsets: np.ndarray

    @property
    def owners(self) -> np.ndarray:
        """(m,) int64, the text each hash belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def distinct(self) -> Shingles:
        """Every hash once a text, in ascending order."""
        order = np.lexsort((self.hashes, self.owners))
        hashes, owners = self.hashes[order], self.owners
        first = np.ones(len(hashes), dtype=bool)
        first[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        counts = np.bincount(owners[first], minlength=len(self.offsets) - 1)
        return Shingles(hashes[first], np.concatenate([[0], np.cumsum(counts)]))


def shingle(keys: pa.Array, n: int, tag: int = 0) -> Shingles:
    """The character n-grams of texts; a shorter text is one shingle, an empty one or a null none.

    Args:
        keys: strings, as ``text_key`` made them.
        n: characters a shingle.
        tag: mixed into the hashes, so that equal n-grams of different columns differ.
    """
    keys = pc.fill_null(keys, "")
    length = pc.utf8_length(keys).to_numpy(False).astype(np.int64)
    characters = np.frombuffer("".join(keys.to_pylist()).encode("utf-32-le"), dtype=np.uint32)
    ends = np.cumsum(length)
    counts = np.where(length > 0, np.maximum(length - n + 1, 1), 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    position = np.arange(offsets[-1]) + np.repeat(ends - length - offsets[:-1], counts)
    end = np.repeat(ends, counts)
    hashes = np.full(offsets[-1], GOLDEN * (tag + 1) & (1 << 64) - 1, dtype=np.uint64)
    padded = np.concatenate([characters, np.zeros(n, dtype=np.uint32)])
    for step in range(n):
        place = position + step
        character = np.where(place < end, padded[place], 0).astype(np.uint64)
        hashes = combine(hashes, character + np.uint64(1))
    return Shingles(hashes, offsets)


def merge(parts: list[Shingles]) -> Shingles:
    """The shingles of several columns of the same rows as those of one text a row."""
    counts = [np.diff(part.offsets) for part in parts]
    offsets = np.concatenate([[0], np.cumsum(sum(counts))])
    hashes, place = np.empty(offsets[-1], dtype=np.uint64), offsets[:-1].copy()
    for part, count in zip(parts, counts, strict=True):
        hashes[np.arange(len(part.hashes)) + np.repeat(place - part.offsets[:-1], count)] = part.hashes
        place += count
    return Shingles(hashes, offsets)


def jaccard(first: Shingles, second: Shingles) -> np.ndarray:
    """(n,) float64: overlap of text i of ``first`` with text i of ``second``, 0 to 1; two empty texts have 1."""
    a, b = first.distinct(), second.distinct()
    hashes, owners = np.concatenate([a.hashes, b.hashes]), np.concatenate([a.owners, b.owners])
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    both = owners[1:][(hashes[1:] == hashes[:-1]) & (owners[1:] == owners[:-1])]
    shared = np.bincount(both, minlength=len(a.offsets) - 1)
    union = np.diff(a.offsets) + np.diff(b.offsets) - shared
    return np.where(union == 0, 1.0, shared / np.maximum(union, 1))


class Collection:
    """A fixed collection of texts to look for; see ``best_overlap``.

    Args:
        texts: the texts.
        n: characters a shingle.
    """

    def __init__(self, texts: pa.Array, n: int) -> None:
        from scipy.sparse import csr_matrix

        self.n = n
        own = shingle(text_key(texts), n).distinct()
        self.sizes = np.diff(own.offsets)
        self.vocabulary, columns = np.unique(own.hashes, return_inverse=True)
        ones = np.ones(len(columns), dtype=np.int32)
        shape = (len(self.sizes), max(len(self.vocabulary), 1))
        self.transposed = csr_matrix((ones, columns, own.offsets), shape=shape).T.tocsr()

    def best_overlap(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """For every text the highest Jaccard similarity to one of the collection, and which one (-1: none shares).

        Returns:
            (n,) float64 and (n,) int64.
        """
        from scipy.sparse import csr_matrix

        own = shingle(text_key(texts), self.n).distinct()
        sizes = np.diff(own.offsets)
        best, which = np.zeros(len(sizes)), np.full(len(sizes), -1, dtype=np.int64)
        if not len(self.vocabulary):
            return best, which
        place = np.minimum(np.searchsorted(self.vocabulary, own.hashes), len(self.vocabulary) - 1)
        known = self.vocabulary[place] == own.hashes
        offsets = np.concatenate([[0], np.cumsum(known)])[own.offsets]
        ones = np.ones(int(known.sum()), dtype=np.int32)
        rows = csr_matrix((ones, place[known], offsets), shape=(len(sizes), len(self.vocabulary)))
        shared = (rows @ self.transposed).tocoo()
        overlap = shared.data / (sizes[shared.row] + self.sizes[shared.col] - shared.data)
        order = np.argsort(overlap, kind="stable")  # the last assignment to a row is its highest
        best[shared.row[order]] = overlap[order]
        which[shared.row[order]] = shared.col[order]
        return best, which


def bands_for(threshold: float, permutations: int, recall: float = 0.99) -> tuple[int, int]:
    """How to cut a signature: (bands, rows a band), with the longest bands that still find a pair at the threshold
    with probability ``recall`` or more, 1 - (1 - threshold^rows)^bands.

    Raises:
        MixtureError: no cut finds it; more permutations are needed.
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= recall:
            return bands, rows
    raise MixtureError(
        f"finding pairs of similarity {threshold:g} with probability {recall:g} needs more permutations, got "
        f"{permutations}; raise `permutations`, or the similarity"
    )


def band_hashes(shingles: Shingles, bands: int, rows: int, seed: int) -> np.ndarray:
    """(bands, n) uint64: rows of ``bands`` that agree for two texts mark them as candidates.

    Raises:
        MissingPackage: rensa is not installed.
    """
    with optional("near-duplicate search", "rensa", "data"):
        from rensa import RMinHash
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles.hashes, shingles.offsets, bands * rows, seed)
    values = chain.from_iterable(matrix.to_rows())
    count = (len(shingles.offsets) - 1) * bands * rows
    signatures = np.fromiter(values, dtype=np.uint64, count=count).reshape(-1, bands, rows)
    hashes = np.repeat(np.arange(bands, dtype=np.uint64)[:, None], len(signatures), axis=1)
    for row in range(rows):
        hashes = combine(hashes, signatures[:, :, row].T)
    return hashes
