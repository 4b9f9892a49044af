"""Reading a homogeneous batch as one query of one Arrow table, instead of a loop over its rows.

torch's fetcher asks a dataset for all rows of a batch at once where it has ``__getitems__``; its ConcatDataset has
none. ``HomogeneousDataset`` is a ConcatDataset that has one, and hands the collator whole columns (``ColumnBatch``),
their texts cut out of one decoded string a column (``ColumnReader``).

Any trainer of sentence-transformers can use it::

    class Trainer(SentenceTransformerTrainer):
        def _build_dataloader(self, dataset, batch_size, dataset_kind):
            return homogeneous_dataloader(super()._build_dataloader(dataset, batch_size, dataset_kind))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Value
from datasets import Dataset as ArrowDataset
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from piccolo_st.batches.sampler import BatchIndices
from piccolo_st.errors import InputError


@dataclass(frozen=True)
class ColumnBatch:
    """The rows of one batch, column by column; a collator that wants rows can count, index and iterate them.

    Attributes:
        columns: column name -> its values, one a row.
        row_ids: int64, the rows inside the dataset: (batch,).
        visit: how many whole passes over the dataset came before, or None where the sampler does not say.
        dataset_name: of the dataset, or None.
    """

    columns: Mapping[str, Sequence[object]]
    row_ids: NDArray[np.int64]
    visit: int | None = None
    dataset_name: str | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {name: values[index] for name, values in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, object]]:
        return (self[index] for index in range(len(self)))


class HomogeneousDataset(ConcatDataset[object]):
    """Datasets one after the other, from which a batch of one dataset is read at once.

    Args:
        datasets: anything that takes a list of rows and returns a mapping of columns, as ``datasets.Dataset`` does.
        names: their names, which each batch then carries.
    """

    def __init__(self, datasets: Iterable[Dataset[object]], names: Iterable[str] | None = None) -> None:
        super().__init__(datasets)
        self.names = None if names is None else list(names)
        if self.names is not None and len(self.names) != len(self.datasets):
            raise InputError(f"{len(self.datasets)} datasets need as many names, got {self.names}")
        self.offsets = [0, *self.cumulative_sizes[:-1]]
        self.readers = [ColumnReader(dataset) for dataset in self.datasets]

    def __getitems__(self, indices: Sequence[int]) -> ColumnBatch:
        """Read one batch.

        Args:
            indices: a BatchIndices, or any indices into the concatenation that fall into one dataset.

        Raises:
            InputError: the indices belong to several datasets.
        """
        kept = None
        if isinstance(indices, BatchIndices):
            dataset, visit, rows, kept = indices.dataset, indices.visit, indices.rows, indices.negatives
        else:
            flat = np.asarray(indices, dtype=np.int64)
            owners = np.searchsorted(self.cumulative_sizes, flat, side="right")
            if len(set(owners.tolist())) != 1:
                raise InputError(
                    "a homogeneous batch must have rows of one dataset, got rows of the datasets "
                    f"{sorted(set(owners.tolist()))}; draw it with HomogeneousBatchSampler"
                )
            dataset, visit = int(owners[0]), None
            rows = flat - self.offsets[dataset]
        name = None if self.names is None else self.names[dataset]
        columns = self.readers[dataset](rows)
        if kept is not None:
            lists: Any = columns["negative"]
            used = [[own[place] for place in places if place >= 0]
                    for own, places in zip(lists, kept.tolist(), strict=True)]  # fmt: skip
            columns = {**columns, "negative": used}
        return ColumnBatch(columns, rows, visit, name)


class ColumnReader:
    """``dataset[rows]``, faster where the dataset is a ``datasets.Dataset`` of texts, lists of texts and numbers.

    Args:
        dataset: anything that takes an array of rows and returns a mapping of columns. Its format and transform, as
            they are now, are followed.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.table: ArrowDataset | None = None  # gives the rows as an Arrow table
        if not isinstance(dataset, ArrowDataset) or not all(_is_plain(kind) for kind in dataset.features.values()):
            return
        format = dataset.format
        self.transform = format["format_kwargs"].get("transform") if format["type"] == "custom" else None
        as_python = format["type"] is None or self.transform is not None
        if as_python and set(format["columns"]) == set(dataset.column_names):
            self.table = dataset.with_format("arrow")

    def __call__(self, rows: NDArray[np.int64]) -> Mapping[str, Sequence[object]]:
        """Column name -> the values at the rows."""
        if self.table is None:
            return self.dataset[rows]
        table = self.table[rows]
        columns = {name: _values(table[name].combine_chunks()) for name in table.column_names}
        return columns if self.transform is None else self.transform(columns)


def _is_plain(kind: object) -> bool:
    """Whether a column's Python values are those of its Arrow array, with nothing to decode."""
    element = kind[0] if isinstance(kind, list) else getattr(kind, "feature", kind)  # lists have it in every version
    return isinstance(element, (Value, ClassLabel))


def _values(array: pa.Array) -> list[object]:
    """The Python values of an array."""
    kind = array.type
    if array.null_count or not len(array):
        return array.to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        _, offsets, data = array.buffers()
        width = np.int32 if pa.types.is_string(kind) else np.int64
        bounds = np.frombuffer(offsets, width)[array.offset :]
        text = "" if data is None else str(memoryview(data)[bounds[0] : bounds[len(array)]], "utf-8")
        return _cut(text, pc.utf8_length(array).to_numpy())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _cut(_values(array.flatten()), pc.list_value_length(array).to_numpy())
    return array.to_pylist()


def _cut(whole: str | list[object], lengths: NDArray[np.integer]) -> list[object]:
    """A string or list in pieces of the given lengths."""
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


# What a DataLoader is built from and its copy must keep.
_KEPT = (
    "collate_fn",
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
)


def homogeneous_dataloader(dataloader: DataLoader[Any], names: Iterable[str] | None = None) -> DataLoader[Any]:
    """The same dataloader, reading each batch at once.

    Args:
        dataloader: of a ConcatDataset or a ``datasets.Dataset``, drawn by a HomogeneousBatchSampler; not yet prepared
            by accelerate. Any other is returned as it is.
        names: of the datasets; each batch then says which it came from under ``dataset_name``.
    """
    dataset = dataloader.dataset
    if not hasattr(dataloader.batch_sampler, "plan") or isinstance(dataset, HomogeneousDataset):
        return dataloader
    parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
    kept = {name: getattr(dataloader, name) for name in _KEPT if hasattr(dataloader, name)}
    return DataLoader(HomogeneousDataset(parts, names), batch_sampler=dataloader.batch_sampler, **kept)
