"""Readers of Parquet and Arrow, which hold what any program wrote: checked before anything else looks at it.

(1) Arrow's own full check of each batch comes first: offsets and indices of a damaged file point anywhere, and the
    process that follows them dies in C++;
(2) a row with a text that is not UTF-8, as of an export in GBK, is a Reject;
(3) dictionaries become the texts they stand for, and a chunk holds at most ``CHUNK_ROWS`` rows and about
    ``CHUNK_BYTES``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from piccolo_st.data import chunks
from piccolo_st.data.chunks import NOT_UTF8, Chunk, Reject, excerpt

_FEW = 256
"""Rows read at a time, so that a chunk of long texts is noticed before it fills the memory."""


def read_parquet(path: Path) -> Iterator[Chunk]:
    """The rows of a Parquet file."""
    with pq.ParquetFile(path, memory_map=True) as file:
        yield from columnar_chunks(str(path), file.iter_batches(batch_size=min(_FEW, chunks.CHUNK_ROWS)))


def read_arrow(path: Path) -> Iterator[Chunk]:
    """Arrow's streaming format (what ``datasets`` writes) or its file format (Feather)."""
    with pa.memory_map(str(path)) as source:
        try:
            batches: Iterator[pa.RecordBatch] = iter(pa.ipc.open_stream(source))
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        yield from columnar_chunks(str(path), batches)


def read_row_group(file: pq.ParquetFile, name: str, group: int, before: int) -> Iterator[Chunk]:
    """The rows of one row group of a Parquet file, ``before`` which the file has so many."""
    batches = file.iter_batches(batch_size=min(_FEW, chunks.CHUNK_ROWS), row_groups=[group])
    yield from columnar_chunks(name, batches, before)


def columnar_chunks(file: str, batches: Iterable[pa.RecordBatch], before: int = 0) -> Iterator[Chunk]:
    """Batches as chunks of checked rows, numbered from ``before`` + 1.

    Raises:
        OSError: a column named twice.
        pa.ArrowInvalid: damaged.
    """
    parts: list[pa.RecordBatch] = []
    rows: list[NDArray[np.int64]] = []
    rejects: list[Reject] = []
    read, held, size = before, 0, 0
    for batch in _few_at_a_time(batches):
        if parts and (held + batch.num_rows > chunks.CHUNK_ROWS or size + batch.nbytes > chunks.CHUNK_BYTES):
            yield Chunk(file, np.concatenate(rows), pa.Table.from_batches(parts), rejects)
            parts, rows, rejects, held, size = [], [], [], 0, 0
        good, faulty = _texts_in_utf8(batch)
        rejects += [Reject(file, read + row + 1, NOT_UTF8, text) for row, text in faulty.items()]
        parts.append(good)
        rows.append(np.setdiff1d(np.arange(batch.num_rows), list(faulty)).astype(np.int64) + read + 1)
        read += batch.num_rows
        held += batch.num_rows
        size += good.nbytes
    if parts:
        yield Chunk(file, np.concatenate(rows), pa.Table.from_batches(parts), rejects)


def _few_at_a_time(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """(1), and dictionaries decoded."""
    few = min(_FEW, chunks.CHUNK_ROWS)
    for batch in batches:
        if len(set(batch.schema.names)) != len(batch.schema.names):
            raise OSError(f"it names a column twice: {excerpt(', '.join(batch.schema.names), 200)}")
        for column in batch.columns:
            _as_bytes(column).validate(full=True)
        for start in range(0, batch.num_rows, few):
            part = batch.slice(start, few)
            arrays = [one.dictionary_decode() if pa.types.is_dictionary(one.type) else one for one in part.columns]
            yield pa.RecordBatch.from_arrays(arrays, part.schema.names)


def _as_bytes(array: pa.Array) -> pa.Array:
    """Texts, also those in lists and dictionaries, as the bytes they are; nothing is read, so damage does no harm."""
    kind = array.type
    if kind in _BYTES:
        return array.view(_BYTES[kind])
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(array.indices, _as_bytes(array.dictionary))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        values = _as_bytes(array.values)
        of = pa.list_ if pa.types.is_list(kind) else pa.large_list
        buffers = array.buffers()[:2]
        return pa.Array.from_buffers(of(values.type), len(array), buffers, offset=array.offset, children=[values])
    return array


_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def _texts_in_utf8(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[int, str]]:
    """The rows whose texts all are UTF-8, and of each of the others what it holds."""
    faulty: dict[int, str] = {}
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:  # damage was ruled out before
            for row, cell in enumerate(_as_bytes(column).to_pylist()):
                texts = b" | ".join(one for one in cell if one is not None) if isinstance(cell, list) else cell
                try:
                    str(texts or b"", "utf-8")
                except UnicodeDecodeError:
                    faulty.setdefault(row, excerpt(texts[:400].decode("utf-8", "replace")))
    if not faulty:
        return batch, faulty
    return batch.filter(pa.array([row not in faulty for row in range(batch.num_rows)])), faulty
