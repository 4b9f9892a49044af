"""HomogeneousBatchSampler by itself and under accelerate's wrappers, without processes."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import (
    BatchSamplerShard,
    DataLoaderDispatcher,
    SeedableRandomSampler,
    prepare_data_loader,
    skip_first_batches,
)
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler

from piccolo_st.batches.sampler import BatchIndices, HomogeneousBatchSampler, check_dataloader
from piccolo_st.errors import InputError


class Sized:
    """A dataset of a given size that returns its indices."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


def _concatenation(*sizes: int) -> ConcatDataset:
    return ConcatDataset([Sized(size) for size in sizes])


def _stock(dataset: ConcatDataset, batch_size: int, drop_last: bool = True) -> list[DefaultBatchSampler]:
    """The batch samplers that the stock trainer makes before it asks for a multi-dataset one."""
    return [DefaultBatchSampler(RandomSampler(part), batch_size, drop_last) for part in dataset.datasets]


def _lists(batches: Any) -> list[list[int]]:
    return [list(batch) for batch in batches]


# The sampler by itself


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    batch_size=st.integers(1, 5),
    world=st.integers(1, 4),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
)
def test_batches_are_the_plans_rank_by_rank_and_the_length_is_the_truth(
    sizes: list[int], batch_size: int, world: int, epoch: int, drop_last: bool
) -> None:
    dataset = _concatenation(*sizes)
    sampler = HomogeneousBatchSampler(
        dataset, _stock(dataset, batch_size, drop_last), seed=3, world_size=world, small_datasets="repeat"
    )
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) == sampler.plan.steps() * world
    for index, batch in enumerate(batches):
        found = sampler.plan.step(epoch, index // world, index % world)
        assert list(batch) == (found.rows + sampler.offsets[found.dataset]).tolist()
        assert (batch.dataset, batch.visit, batch.rows.tolist()) == (found.dataset, found.visit, found.rows.tolist())
        assert len(batch) == batch_size
        assert {np.searchsorted(dataset.cumulative_sizes, i, side="right") for i in batch} == {batch.dataset}


def test_400_million_rows_start_without_iterating_anything() -> None:
    class Untouched(DefaultBatchSampler):
        def __iter__(self) -> Any:
            raise AssertionError("a stock batch sampler was iterated: a shuffle of all rows")

    dataset = _concatenation(400_000_000, 10_000_000)
    samplers = [DefaultBatchSampler(Untouched(part, 1024, True), 1024, True) for part in dataset.datasets]
    tracemalloc.start()
    sampler = HomogeneousBatchSampler(dataset, samplers, world_size=32)
    assert len(list(next(iter(sampler)))) == sampler.batch_size == 1024
    last = sampler.plan.step(3, sampler.plan.steps() - 1, 31)
    assert last.rows.shape == (1024,) and last.rows.max() < sampler.plan.sizes[last.dataset]
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 2**20


def test_a_single_dataset_works_as_batch_sampler() -> None:
    """What the stock trainer calls for args.batch_sampler."""
    dataset = Dataset.from_dict({"query": [f"q{i}" for i in range(20)]})
    sampler = HomogeneousBatchSampler(
        dataset, batch_size=4, drop_last=True, valid_label_columns=["label"], generator=None, seed=0
    )
    read = [row["query"] for batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=list) for row in batch]
    assert sorted(read) == sorted(dataset["query"])
    assert read != list(dataset["query"])


def test_batches_are_sequences_that_slice_compare_and_travel_to_workers() -> None:
    batch = next(iter(HomogeneousBatchSampler(_concatenation(10, 50), batch_size=5, seed=1)))
    rows = list(batch)
    assert batch == rows and batch != rows[::-1] and batch != 5
    assert batch[0] == rows[0] and batch[-1] == rows[-1]
    part = batch[1:3]
    assert isinstance(part, BatchIndices) and list(part) == rows[1:3] and part.dataset == batch.dataset
    copy = pickle.loads(pickle.dumps(batch))
    assert copy == batch and copy.visit == batch.visit and len(copy) == 5
    assert repr(rows[0] - copy.offset) in repr(copy)


def test_batches_are_not_computed_before_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = HomogeneousBatchSampler(_concatenation(10_000), batch_size=4)
    asked: list[int] = []
    step = sampler.plan.step
    object.__setattr__(sampler.plan, "step", lambda *where: asked.append(where[1]) or step(*where))
    batches = list(sampler)
    assert asked == []
    assert len(batches[7]) == 4 and asked == []
    assert len(list(batches[7])) == 4 and asked == [7]


def test_different_batch_sizes_are_announced_to_accelerate() -> None:
    equal = HomogeneousBatchSampler(_concatenation(40, 40), batch_size=4, batch_multiples=[1, 1])
    differing = HomogeneousBatchSampler(_concatenation(40, 40), batch_size=4, batch_multiples=[1, 2])
    assert equal.batch_size == 4
    assert differing.batch_size is None
    assert sorted({len(batch) for batch in differing}) == [4, 8]


# Under accelerate


def _prepared(sampler: HomogeneousBatchSampler, world: int, rank: int, **options: Any) -> DataLoader:
    dataloader = DataLoader(sampler.dataset, batch_sampler=sampler, collate_fn=list)
    return prepare_data_loader(
        dataloader,
        num_processes=world,
        process_index=rank,
        **{"even_batches": False, "use_seedable_sampler": True, **options},
    )


@pytest.mark.parametrize("multiples", [None, [1, 2, 0.5]])
@pytest.mark.parametrize("even_batches", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 8])
def test_accelerate_gives_each_rank_its_slice_of_every_step(
    world: int, drop_last: bool, even_batches: bool, multiples: list[float] | None
) -> None:
    dataset = _concatenation(150, 90, 40)
    options = {"drop_last": drop_last, "batch_multiples": multiples, "world_size": world, "small_datasets": "repeat"}
    plan = HomogeneousBatchSampler(dataset, batch_size=4, seed=1, **options).plan
    for rank in range(world):
        sampler = HomogeneousBatchSampler(dataset, batch_size=4, seed=1, **options)
        prepared = _prepared(sampler, world, rank, even_batches=even_batches)
        assert check_dataloader(prepared) is sampler
        offsets = np.array(sampler.offsets)
        batches = list(prepared)
        assert len(batches) == len(prepared) == plan.steps()
        for step, batch in enumerate(batches):
            found = plan.step(0, step, rank)
            assert [dataset[i] for i in (found.rows + offsets[found.dataset])] == batch


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("skipped", [0, 3])
def test_the_epoch_arrives_in_every_way_the_trainer_sets_it(world: int, skipped: int) -> None:
    """As transformers.Trainer._run_epoch does it: skip, tell the dataloader, tell what lies one level below."""
    dataset = _concatenation(60, 45)
    for rank in range(world):
        sampler = HomogeneousBatchSampler(dataset, batch_size=3, world_size=world)
        prepared = _prepared(sampler, world, rank)
        for epoch in (0, 1, 4):
            dataloader = skip_first_batches(prepared, skipped) if skipped else prepared
            dataloader.set_epoch(epoch)
            below = getattr(dataloader.batch_sampler, "batch_sampler", None)
            if hasattr(below, "set_epoch"):
                below.set_epoch(epoch)
            batches = list(dataloader)
            steps = range(skipped, sampler.plan.steps())
            expected = [sampler.plan.step(epoch, step, rank) for step in steps]
            assert batches == [[dataset[int(i)] for i in e.rows + sampler.offsets[e.dataset]] for e in expected]


def test_the_epoch_is_kept_when_accelerate_replaces_its_carrier() -> None:
    sampler = HomogeneousBatchSampler(_concatenation(60), batch_size=3)
    sampler.set_epoch(5)
    _prepared(sampler, 2, 0)
    assert isinstance(sampler.sampler, SeedableRandomSampler)
    assert sampler.epoch == 5
    sampler.set_epoch(6)
    assert sampler.epoch == sampler.sampler.epoch == 6


def test_a_rank_that_was_told_no_epoch_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = HomogeneousBatchSampler(_concatenation(60), batch_size=3)
    monkeypatch.setattr("piccolo_st.batches.sampler.get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"no epoch has reached the batch sampler.*call set_epoch\(epoch\)"):
        next(iter(sampler))
    sampler.set_epoch(0)
    next(iter(sampler))


def test_split_batches_cuts_each_step_among_the_ranks() -> None:
    dataset = _concatenation(60, 45)
    plan = HomogeneousBatchSampler(dataset, batch_size=8, world_size=1, drop_last=True).plan
    parts = []
    for rank in range(2):
        sampler = HomogeneousBatchSampler(dataset, batch_size=8, world_size=1, drop_last=True)
        prepared = _prepared(sampler, 2, rank, split_batches=True)
        check_dataloader(prepared)
        parts.append(list(prepared))
    for step, (one, two) in enumerate(zip(*parts, strict=True)):
        found = plan.step(0, step)
        assert one + two == [dataset[int(i)] for i in found.rows + sampler.offsets[found.dataset]]
        assert len(one) == len(two) == 4
    assert step + 1 == plan.steps()


def test_what_cannot_work_under_accelerate_is_refused() -> None:
    dataset = _concatenation(60, 45)

    def sampler(**options: Any) -> HomogeneousBatchSampler:
        return HomogeneousBatchSampler(dataset, batch_size=4, **options)

    with pytest.raises(InputError, match=r"must be cut for the 2 ranks .* among, got 1$"):
        check_dataloader(_prepared(sampler(), 2, 0))
    with pytest.raises(InputError, match=r"cut for the 1 ranks .*, got 2; with split_batches pass world_size=1"):
        check_dataloader(_prepared(sampler(world_size=2), 2, 0, split_batches=True))
    dispatcher = DataLoaderDispatcher(dataset, batch_sampler=sampler(world_size=2))
    with pytest.raises(InputError, match=r"\['dispatch_batches'\] must be unset, got True; batches padded"):
        check_dataloader(dispatcher)
    with pytest.raises(InputError, match=r"must draw its batches from a HomogeneousBatchSampler, got BatchSampler"):
        check_dataloader(DataLoader(Sized(8), batch_size=2))
    shard = BatchSamplerShard(sampler(world_size=1), 2, 0, split_batches=True)
    shard.batch_sampler.batch_size = None
    with pytest.raises(InputError, match=r"\['split_batches'\] needs equal batches; leave out batch_multiples"):
        check_dataloader(DataLoader(dataset, batch_sampler=shard))


# Bad input


def test_bad_input_is_named() -> None:
    dataset = _concatenation(60, 45)
    with pytest.raises(InputError, match=r"needs batch_samplers, as a trainer passes them, or batch_size"):
        HomogeneousBatchSampler(dataset)
    with pytest.raises(InputError, match=r"a IterableDataset does not allow; use a datasets.Dataset"):
        HomogeneousBatchSampler(IterableDataset.from_generator(lambda: iter([{"a": 1}])), batch_size=2)
    with pytest.raises(InputError, match=r"dataset 1 must have 1 to 2\*\*40 rows, got 0; leave it out"):
        HomogeneousBatchSampler(_concatenation(10, 0), batch_size=2)
    with pytest.raises(InputError, match=r"dataset 1 has 45 rows, fewer than the 64"):
        HomogeneousBatchSampler(_concatenation(100, 45), batch_size=8, world_size=8)
    different = [*_stock(dataset, 4)[:1], *_stock(dataset, 8)[1:]]
    with pytest.raises(InputError, match=r"must have the same batch_size, got \[4, 8\]; use batch_multiples"):
        HomogeneousBatchSampler(dataset, different)


def test_small_datasets_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    HomogeneousBatchSampler(_concatenation(60, 45), batch_size=4, small_datasets="drop")
    assert not caplog.records
    HomogeneousBatchSampler(_concatenation(60, 3), batch_size=4, small_datasets="drop", names=["large", "small"])
    assert "no batch is drawn from small: too few rows" in caplog.text
    HomogeneousBatchSampler(_concatenation(60, 3), batch_size=4, small_datasets="repeat")
    assert "rows stand in a step more than once: too few in dataset 1" in caplog.text


def test_a_batch_sampler_that_would_be_ignored_is_refused() -> None:
    dataset = ConcatDataset([Dataset.from_dict({"a": ["x", "y"]})])
    with pytest.raises(InputError, match=r"would ignore the NoDuplicatesBatchSampler of args.batch_sampler"):
        HomogeneousBatchSampler(dataset, [NoDuplicatesBatchSampler(dataset.datasets[0], 2, True)])
