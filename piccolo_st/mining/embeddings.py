"""Embeddings on disk: a text is encoded once for a model and a way of reading it, whoever asks, today or tomorrow.

(1) a folder holds the embeddings of one model and one way of reading; its name says which;
(2) what is not there yet is encoded longest first, in blocks, each of which is written whole: a killed run loses one;
(3) texts are known by their 64-bit hashes; vectors are read from the files when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piccolo_st.cache import write_whole
from piccolo_st.hashing import text_hashes
from piccolo_st.ownership import alone

_BLOCK = 1 << 14
_OPEN = 256  # files at once: 1,024 is what many systems allow a process

Encode = Callable[[list[str]], NDArray[np.float32]]


def stored_embeddings(folder: Path, texts: Sequence[str], encode: Encode) -> NDArray[np.float32]:
    """The embeddings of the texts, (texts, dimensions).

    Args:
        folder: of this model and this way of reading; made where there is none.
        texts: any texts, some perhaps twice.
        encode: texts -> (texts, dimensions).
    """
    store_embeddings(folder, lambda: [texts], encode)
    return StoredEmbeddings(folder)(texts)


def store_embeddings(folder: Path, parts: Callable[[], Iterable[Sequence[str]]], encode: Encode) -> None:
    """Encode what the folder has not got yet.

    Args:
        folder: as that of ``stored_embeddings``.
        parts: gives texts, as many at a time as may stand in memory; read twice where something is missing.
        encode: texts -> (texts, dimensions).
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = _Known(folder)
    if not any(len(known.missing(texts)) for texts in parts()):  # every rank asks, at once
        return
    with alone(folder / ".owner", folder):  # of two processes the second finds what the first has encoded
        known = _Known(folder)
        for texts in parts():
            missing = known.missing(texts)
            missing = missing[np.argsort([-len(texts[place]) for place in missing], kind="stable")]
            for start in range(0, len(missing), _BLOCK):
                block = [texts[place] for place in missing[start : start + _BLOCK]]
                known.add(block, encode(block))


class _Known:
    """Which texts a folder has embeddings of, and the next file's number."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.hashes.npy"))
        self._folder, self._count = folder, len(files)
        self._hashes = np.sort(np.concatenate([np.empty(0, np.uint64), *map(np.load, files)]))

    def missing(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Where those texts stand that it has none of, each once."""
        hashes, first = np.unique(text_hashes(texts), return_index=True)
        if len(self._hashes):
            found = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
            first = first[self._hashes[found] != hashes]
        return first

    def add(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        hashes, name = text_hashes(texts), f"{self._count:06d}"
        _save(self._folder / f"{name}.vectors.npy", vectors)
        _save(self._folder / f"{name}.hashes.npy", hashes)
        self._count += 1
        new = np.sort(hashes)
        self._hashes = np.insert(self._hashes, np.searchsorted(self._hashes, new), new)  # a union would sort all


class StoredEmbeddings:
    """The embeddings of a folder as ``stored_embeddings`` left it, read from its files when they are asked for.

    Which texts there are, 16 bytes each, is read at once: a worker that is forked shares it. It pickles as the folder's
    name, so other workers read for themselves.

    Args:
        folder: of one model and one way of reading.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = sorted(folder.glob("*.hashes.npy"))
        self._index = self._read_index()
        self._vectors = lru_cache(_OPEN)(self._open)

    def __reduce__(self) -> tuple[type[StoredEmbeddings], tuple[Path]]:
        return type(self), (self.folder,)

    def _read_index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """All hashes, sorted; where each stands, files one after the other; and where each file begins."""
        parts = [np.load(file) for file in self._files]
        known = np.concatenate([np.empty(0, np.uint64), *parts])
        order = np.argsort(known)
        return known[order], order, np.cumsum([0, *map(len, parts)])

    def _open(self, number: int) -> NDArray[np.float32]:
        file = self._files[number]
        vectors: NDArray[np.float32] = np.load(file.with_name(file.name.replace("hashes", "vectors")), mmap_mode="r")
        return vectors

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings of the texts, (texts, dimensions).

        Raises:
            KeyError: one of them was never encoded.
        """
        hashes = text_hashes(texts)
        known, order, begins = self._index
        dimensions = self._vectors(0).shape[1] if self._files else 0
        found = np.searchsorted(known, hashes).clip(max=max(0, len(known) - 1))
        if len(hashes) and (not len(known) or (known[found] != hashes).any()):
            raise KeyError(f"a text that was never encoded into {self.folder}")
        places = order[found]
        file = np.searchsorted(begins, places, side="right") - 1
        vectors = np.empty((len(hashes), dimensions), np.float32)
        for number in np.unique(file):
            here = file == number
            vectors[here] = self._vectors(int(number))[places[here] - begins[number]]
        return vectors


def _save(path: Path, array: NDArray[np.float32] | NDArray[np.uint64]) -> None:
    def write(aside: Path) -> None:
        with open(aside, "wb") as file:
            np.save(file, array)

    write_whole(path, write)
