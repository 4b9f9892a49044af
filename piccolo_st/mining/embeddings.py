"""Embeddings on disk: a text is encoded once for a model and a way of reading it, whoever asks, today or tomorrow.

(1) a folder holds the embeddings of one model and one way of reading; its name says which;
(2) what is not there yet is encoded longest first, in blocks, each of which is written whole: a killed run loses one;
(3) texts are known by their 64-bit hashes; vectors are read from the files when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piccolo_st.cache import write_whole
from piccolo_st.hashing import text_hashes
from piccolo_st.ownership import alone

_BLOCK = 1 << 14

Encode = Callable[[list[str]], NDArray[np.float32]]


def stored_embeddings(folder: Path, texts: Sequence[str], encode: Encode) -> NDArray[np.float32]:
    """The embeddings of the texts, (texts, dimensions).

    Args:
        folder: of this model and this way of reading; made where there is none.
        texts: any texts, some perhaps twice.
        encode: texts -> (texts, dimensions).
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes = text_hashes(texts)
    with alone(folder / ".owner", folder):  # of two processes the second finds what the first has encoded
        files = sorted(folder.glob("*.hashes.npy"))
        known = np.concatenate([np.load(file) for file in files]) if files else np.empty(0, np.uint64)
        _, first = np.unique(hashes, return_index=True)
        missing = first[~np.isin(hashes[first], known)]
        missing = missing[np.argsort([-len(texts[place]) for place in missing], kind="stable")]
        for start in range(0, len(missing), _BLOCK):
            block = missing[start : start + _BLOCK]
            vectors = encode([texts[place] for place in block])
            name = f"{len(files):06d}"
            _save(folder / f"{name}.vectors.npy", vectors)
            _save(folder / f"{name}.hashes.npy", hashes[block])
            files.append(folder / f"{name}.hashes.npy")
    return StoredEmbeddings(folder).of_hashes(hashes)


class StoredEmbeddings:
    """The embeddings of a folder as ``stored_embeddings`` left it, read from its files when they are asked for.

    It pickles as the folder's name, so workers read for themselves.

    Args:
        folder: of one model and one way of reading.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[type[StoredEmbeddings], tuple[Path]]:
        return type(self), (self.folder,)

    @cached_property
    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.hashes.npy"))

    @cached_property
    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """All hashes, sorted; where each stands, files one after the other; and where each file begins."""
        parts = [np.load(file) for file in self._files]
        known = np.concatenate([np.empty(0, np.uint64), *parts])
        order = np.argsort(known)
        return known[order], order, np.cumsum([0, *map(len, parts)])

    @cached_property
    def _vectors(self) -> list[NDArray[np.float32]]:
        names = [file.with_name(file.name.replace("hashes", "vectors")) for file in self._files]
        return [np.load(name, mmap_mode="r") for name in names]

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings of the texts, (texts, dimensions).

        Raises:
            KeyError: one of them was never encoded.
        """
        return self.of_hashes(text_hashes(texts))

    def of_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
        """The same of texts of these hashes."""
        known, order, begins = self._index
        if not len(hashes):
            return np.empty((0, self._vectors[0].shape[1] if self._vectors else 0), np.float32)
        found = np.searchsorted(known, hashes).clip(max=max(0, len(known) - 1))
        if not len(known) or (known[found] != hashes).any():
            raise KeyError(f"a text that was never encoded into {self.folder}")
        places = order[found]
        file = np.searchsorted(begins, places, side="right") - 1
        vectors = np.empty((len(hashes), self._vectors[0].shape[1]), np.float32)
        for number in np.unique(file):
            here = file == number
            vectors[here] = self._vectors[number][places[here] - begins[number]]
        return vectors


def _save(path: Path, array: NDArray[np.float32] | NDArray[np.uint64]) -> None:
    def write(aside: Path) -> None:
        with open(aside, "wb") as file:
            np.save(file, array)

    write_whole(path, write)
