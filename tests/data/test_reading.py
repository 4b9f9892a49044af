"""One read a batch: the same rows as one by one, from disk, through transforms, in workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from torch.utils.data import ConcatDataset, DataLoader

from piccolo_st.data.reading import ColumnBatch, HomogeneousDataset, homogeneous_dataloader
from piccolo_st.data.sampler import HomogeneousBatchSampler
from piccolo_st.errors import InputError


class Counting:
    """A dataset that remembers how it was asked."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.asked: list[Any] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        self.asked.append(key)
        return self.dataset[key]


@pytest.fixture
def datasets(tmp_path: Path) -> list[Dataset]:
    """Two datasets on disk, the second with another schema, shuffled and selected, so with an index mapping."""
    one = Dataset.from_dict({"query": [f"q{i}" for i in range(30)], "positive": [f"p{i}" for i in range(30)]})
    two = Dataset.from_dict(
        {
            "query": [f"x{i}" for i in range(50)],
            "positive": [[f"y{i}", f"z{i}"] for i in range(50)],
            "negative": [[f"n{i}{j}" for j in range(i % 4)] for i in range(50)],
            "label": [i / 50 for i in range(50)],
        }
    )
    for name, dataset in (("one", one), ("two", two)):
        dataset.save_to_disk(str(tmp_path / name))
    return [load_from_disk(str(tmp_path / "one")), load_from_disk(str(tmp_path / "two")).shuffle(seed=1)]


def test_a_batch_is_one_read_and_equals_row_by_row(datasets: list[Dataset]) -> None:
    counting = [Counting(dataset) for dataset in datasets]
    stock, ours = ConcatDataset(datasets), HomogeneousDataset(counting)
    for number, batch in enumerate(HomogeneousBatchSampler(ours, batch_size=5, drop_last=True)):
        read = ours.__getitems__(batch)
        assert sum(len(part.asked) for part in counting) == number + 1
        assert list(read) == [stock[index] for index in batch]
        assert [read[i] for i in range(len(read))] == list(read)
        assert read.row_ids.tolist() == batch.rows.tolist()
        assert read.visit == batch.visit == 0
        assert list(read.columns) == datasets[batch.dataset].column_names
    assert number == 15


def test_plain_indices_of_one_dataset_are_read_too(datasets: list[Dataset]) -> None:
    ours = HomogeneousDataset(datasets, ["one", "two"])
    read = ours.__getitems__([31, 79, 30])
    assert list(read) == [datasets[1][1], datasets[1][49], datasets[1][0]]
    assert (read.row_ids.tolist(), read.visit, read.dataset_name) == ([1, 49, 0], None, "two")


def test_a_mixed_batch_is_refused(datasets: list[Dataset]) -> None:
    with pytest.raises(InputError, match=r"has rows of the datasets \[0, 1\]; draw it with HomogeneousBatchSampler"):
        HomogeneousDataset(datasets).__getitems__([0, 30])


def test_names_must_fit(datasets: list[Dataset]) -> None:
    with pytest.raises(InputError, match=r"2 datasets need as many names, but got \['one'\]"):
        HomogeneousDataset(datasets, ["one"])


def test_transforms_of_the_dataset_are_applied(datasets: list[Dataset]) -> None:
    """ST's trainer adds the dataset's name in a transform."""
    named = datasets[0].with_transform(lambda batch: {**batch, "dataset_name": ["one"] * len(batch["query"])})
    read = HomogeneousDataset([named]).__getitems__([3, 1])
    assert read.columns["dataset_name"] == ["one", "one"] and read.columns["query"] == ["q3", "q1"]


def _keep(features: Sequence[Any]) -> Any:
    assert isinstance(features, ColumnBatch)
    return features


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_reads_whole_batches_and_keeps_its_settings(datasets: list[Dataset], workers: int) -> None:
    concatenation = ConcatDataset(datasets)
    sampler = HomogeneousBatchSampler(concatenation, batch_size=5, drop_last=True, seed=2)
    sampler.set_epoch(1)
    generator = torch.Generator()
    settings = {"collate_fn": _keep, "num_workers": workers, "generator": generator, "timeout": 60 if workers else 0}
    stock = DataLoader(concatenation, batch_sampler=sampler, **settings)
    ours = homogeneous_dataloader(stock, ["one", "two"])
    assert ours.batch_sampler is sampler and ours.generator is generator and ours.collate_fn is _keep
    assert (ours.num_workers, ours.timeout) == (workers, stock.timeout)
    batches = list(ours)
    assert len(batches) == len(sampler) == 16
    for step, batch in enumerate(batches):
        found = sampler.plan.step(1, step)
        assert (batch.row_ids.tolist(), batch.visit) == (found.rows.tolist(), 1)
        assert batch.dataset_name == ["one", "two"][found.dataset]
        assert batch.columns["query"] == datasets[found.dataset][found.rows]["query"]


def test_a_single_dataset_and_other_dataloaders() -> None:
    dataset = Dataset.from_dict({"query": ["a", "b", "c", "d"]})
    sampler = HomogeneousBatchSampler(dataset, batch_size=2)
    ours = homogeneous_dataloader(DataLoader(dataset, batch_sampler=sampler, collate_fn=_keep))
    assert sorted(row["query"] for batch in ours for row in batch) == ["a", "b", "c", "d"]
    assert homogeneous_dataloader(ours) is ours
    other = DataLoader(dataset, batch_size=2)
    assert homogeneous_dataloader(other) is other


def test_row_ids_are_rows_of_the_dataset_as_given(datasets: list[Dataset]) -> None:
    """An index mapping is followed: row 3 of a shuffled dataset is what dataset[3] is."""
    read = HomogeneousDataset([datasets[1]]).__getitems__([3])
    assert np.array_equal(read.row_ids, [3]) and read[0] == datasets[1][3]
