"""One read a batch: the same rows as one by one, from disk, through transforms, in workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets, load_from_disk
from datasets import Sequence as ListOf
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader

from piccolo_st.batches.reading import ColumnBatch, ColumnReader, HomogeneousDataset, homogeneous_dataloader
from piccolo_st.batches.sampler import HomogeneousBatchSampler
from piccolo_st.errors import InputError


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


def test_a_batch_is_one_read_and_equals_row_by_row(datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    getitem = Dataset._getitem
    stock, ours = ConcatDataset(datasets), HomogeneousDataset(datasets)
    for number, batch in enumerate(HomogeneousBatchSampler(ours, batch_size=5, drop_last=True)):
        with monkeypatch.context() as patch:
            patch.setattr(Dataset, "_getitem", lambda self, key: asked.append(key) or getitem(self, key))
            read = ours.__getitems__(batch)
        assert len(asked) == number + 1
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
    with pytest.raises(InputError, match=r"got rows of the datasets \[0, 1\]; draw it with HomogeneousBatchSampler"):
        HomogeneousDataset(datasets).__getitems__([0, 30])


def test_names_must_fit(datasets: list[Dataset]) -> None:
    with pytest.raises(InputError, match=r"2 datasets need as many names, got \['one'\]"):
        HomogeneousDataset(datasets, ["one"])


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "text": st.text(max_size=12),
                "missing": st.none() | st.text(max_size=3),
                "list": st.lists(st.text(max_size=5), max_size=4),
                "ragged": st.none() | st.lists(st.none() | st.text(max_size=3), max_size=2),
                "number": st.integers(-5, 5),
                "score": st.none() | st.floats(-1, 1),
                "nested": st.lists(st.lists(st.text(max_size=2), max_size=2), max_size=2),
            }
        ),
        min_size=1,
        max_size=12,
    ),
    data=st.data(),
)
def test_every_kind_of_value_reads_as_datasets_reads_it(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    column = data.draw(st.sampled_from([*rows[0], None]))
    columns = list(rows[0]) if column is None else ["text", column]
    kinds = {
        "text": Value(data.draw(st.sampled_from(["string", "large_string"]))),
        "missing": Value("string"),
        "list": ListOf(Value("string")),
        "ragged": ListOf(Value("string")),
        "number": ClassLabel(num_classes=11) if min(row["number"] for row in rows) >= 0 else Value("int64"),
        "score": Value("float32"),
        "nested": ListOf(ListOf(Value("string"))),
    }
    features = Features({name: kinds[name] for name in dict.fromkeys(columns)})
    dataset = Dataset.from_list([{name: row[name] for name in features} for row in rows], features=features)
    start = data.draw(st.integers(0, len(rows) - 1))
    parts = concatenate_datasets([dataset, dataset.select(range(start, len(rows)))])  # chunks, slices
    wanted = np.array(data.draw(st.lists(st.integers(0, len(parts) - 1), min_size=1, max_size=8)))
    for version in (parts, parts.with_transform(lambda batch: {**batch, "name": ["x"] * len(batch["text"])})):
        found = ColumnReader(version)(wanted)
        assert {name: list(values) for name, values in found.items()} == version[wanted]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_other_formats_are_read_as_they_are(datasets: list[Dataset], kind: str) -> None:
    formatted = datasets[1].with_format(kind, columns=["label"])
    assert list(ColumnReader(formatted)(np.array([1, 2]))) == ["label"]
    assert isinstance(ColumnReader(formatted)(np.array([1]))["label"], np.ndarray if kind == "numpy" else torch.Tensor)


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
