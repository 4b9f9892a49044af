"""The batch plan: what an epoch visits, what ranks share, what a change of the world size leaves alone."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from piccolo_st.batches.interleaving import CELL, Interleaving
from piccolo_st.batches.plan import BatchPlan
from piccolo_st.errors import InputError

sizes = st.lists(st.integers(1, 120), min_size=1, max_size=4)
shape = st.fixed_dictionaries(
    {"batch_size": st.integers(2, 8), "world_size": st.sampled_from([1, 2, 3]), "accumulation_steps": st.integers(1, 3)}
)


def _visits(plan: BatchPlan, epoch: int) -> list[Counter[int]]:
    """How often an epoch visits each row of each dataset."""
    counts: list[Counter[int]] = [Counter() for _ in plan.sizes]
    for step in range(plan.steps()):
        found = plan.step(epoch, step)
        counts[found.dataset].update(found.rows.tolist())
    return counts


def _sequence(plan: BatchPlan, epoch: int) -> list[tuple[int, tuple[int, ...]]]:
    steps = [plan.step(epoch, step) for step in range(plan.steps())]
    return [(step.dataset, tuple(step.rows.tolist())) for step in steps]


# What an epoch visits


@given(sizes=sizes, shape=shape, epoch=st.integers(0, 5), drop_last=st.booleans())
def test_an_epoch_visits_each_row_as_often_as_promised(
    sizes: list[int], shape: dict[str, int], epoch: int, drop_last: bool
) -> None:
    plan = BatchPlan(sizes, **shape, drop_last=drop_last, small_datasets="repeat", seed=epoch)
    block = shape["batch_size"] * shape["world_size"] * shape["accumulation_steps"]
    for size, counts in zip(sizes, _visits(plan, epoch), strict=True):
        total = max(size // block, 1) * block if drop_last else -(-size // block) * block
        assert sum(counts.values()) == total
        if size >= block and drop_last:
            assert set(counts.values()) == {1}
        else:  # all of them, and none twice more often than another
            assert len(counts) == size
            assert set(counts.values()) <= {total // size, total // size + 1}


@given(sizes=sizes, repeats=st.data(), batch_size=st.integers(2, 6), epochs=st.integers(1, 2))
def test_repeats_are_whole_passes_one_after_the_other(
    sizes: list[int], repeats: st.DataObject, batch_size: int, epochs: int
) -> None:
    sizes = [size + batch_size for size in sizes]
    times = [repeats.draw(st.integers(1, 3)) for _ in sizes]
    plan = BatchPlan(sizes, batch_size, repeats=times, drop_last=False)
    for epoch in range(epochs):
        for size, count, counts in zip(sizes, times, _visits(plan, epoch), strict=True):
            assert sum(counts.values()) == count * -(-size // batch_size) * batch_size
            assert min(counts.values()) >= count and len(counts) == size
        # No row comes a second time before its whole dataset has come once.
        visits = [plan.step(epoch, step) for step in range(plan.steps())]
        for dataset in range(len(sizes)):
            own = [step.visit for step in visits if step.dataset == dataset]
            assert own == sorted(own)
            assert Counter(own) == {v: len(own) // times[dataset] for v in set(own)}


@given(
    sizes=st.lists(st.integers(40, 400), min_size=2, max_size=5), exponent=st.floats(0, 2), batch_size=st.integers(1, 8)
)
def test_temperature_shares_an_epoch_by_powers_of_the_sizes(sizes: list[int], exponent: float, batch_size: int) -> None:
    plan = BatchPlan(sizes, batch_size, mixing="temperature", exponent=exponent)
    shares = np.array(sizes, dtype=float) ** exponent
    expected = shares / shares.sum() * sum(size // batch_size for size in sizes)
    steps = [sum(counts.values()) // batch_size for counts in _visits(plan, 0)]
    for found, wanted in zip(steps, expected, strict=True):
        assert found == max(1, round(wanted)) or abs(wanted % 1 - 0.5) < 1e-9


@given(weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3), epochs=st.integers(1, 4))
def test_weights_share_the_rows_and_a_small_share_goes_on_in_the_next_epoch(weights: list[float], epochs: int) -> None:
    assume(sum(weights) > 0)
    sizes = [200, 40, 60]
    plan = BatchPlan(sizes, 4, mixing="weights", weights=weights)
    assert plan.skipped == tuple(f"dataset {i}" for i, weight in enumerate(weights) if weight == 0)
    taken = [Counter() for _ in sizes]
    for epoch in range(epochs):
        for counts, more in zip(taken, _visits(plan, epoch), strict=True):
            counts.update(more)
    for size, weight, counts in zip(sizes, weights, taken, strict=True):
        rows = epochs * 4 * round(75 * weight / sum(weights))
        assert sum(counts.values()) == rows
        # The stream goes through the dataset: every row as often as any other, give or take one.
        assert {counts[row] for row in range(size)} <= {rows // size, rows // size + 1}


@given(multiples=st.lists(st.sampled_from([0.5, 1, 2, 4]), min_size=3, max_size=3), world=st.sampled_from([1, 2]))
def test_each_dataset_has_its_own_batch_size(multiples: list[float], world: int) -> None:
    plan = BatchPlan([100, 130, 160], 4, world_size=world, batch_multiples=multiples)
    for step in range(plan.steps()):
        found = plan.step(0, step)
        rows = int(4 * multiples[found.dataset])
        assert len(found.rows) == world * rows
        assert [len(plan.step(0, step, rank).rows) for rank in range(world)] == [rows] * world
    assert plan.steps_per_dataset.tolist() == [
        size // int(4 * world * multiple) for size, multiple in zip([100, 130, 160], multiples, strict=True)
    ]


@given(sizes=st.lists(st.integers(48, 200), min_size=2, max_size=4), data=st.data(), world=st.sampled_from([1, 2, 4]))
def test_datasets_together_share_each_of_their_updates_the_same_in_any_world(
    sizes: list[int], data: st.DataObject, world: int
) -> None:
    together = data.draw(st.permutations(range(len(sizes))))[: data.draw(st.integers(2, len(sizes)))]
    steps = len(together) * data.draw(st.integers(1, 2))
    plan = BatchPlan(sizes, 8 // world, world, steps, together=together)
    alone = BatchPlan(sizes, 8, 1, steps, together=together)
    seen: Counter[tuple[int, int, int]] = Counter()
    for epoch in range(2):
        for first in range(0, plan.steps(), steps):
            update = [plan.step(epoch, first + micro_step) for micro_step in range(steps)]
            for micro_step, found in enumerate(update):
                assert np.array_equal(found.rows, alone.step(epoch, first + micro_step).rows)
                seen.update((found.dataset, found.visit, row) for row in found.rows.tolist())
            datasets = [found.dataset for found in update]
            assert len(set(datasets)) == 1 or Counter(datasets) == dict.fromkeys(together, steps // len(together))
            assert (datasets[0] in together) == (len(set(datasets)) > 1)
    assert plan.steps() % steps == 0
    share = steps // len(together)
    longest = max(sizes[index] // (8 * share) for index in together)
    assert {int(plan.steps_per_dataset[index]) for index in together} == {longest * share}
    assert (
        max(seen.values()) == 1
    )  # who comes more often than a pass goes through all of its rows before any comes again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"together": [0]}, r"together must name at least two different ones of the 3 datasets, got \[0\]"),
        ({"together": [0, 0]}, r"together must name at least two different ones"),
        ({"together": [0, 3]}, r"together must name at least two different ones"),
        ({"together": [0, 1, 2]}, r"accumulation_steps must be a multiple of the 3 datasets.*, got 2; set train"),
        ({"together": [0, 2], "small_datasets": "drop"}, r"dataset 2 must be drawn from to stand together with others"),
    ],
)
def test_datasets_that_cannot_stand_together_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchPlan([40, 50, 3], 4, accumulation_steps=2, **{"small_datasets": "repeat", **options})


# What ranks and worlds share


@given(sizes=sizes, shape=shape, epoch=st.integers(0, 3))
def test_ranks_share_the_dataset_and_no_row(sizes: list[int], shape: dict[str, int], epoch: int) -> None:
    plan = BatchPlan(sizes, **shape, small_datasets="repeat")
    for step in range(min(plan.steps(), 40)):
        whole = plan.step(epoch, step)
        parts = [plan.step(epoch, step, rank) for rank in range(plan.world_size)]
        assert {part.dataset for part in parts} == {whole.dataset}
        assert np.array_equal(np.concatenate([part.rows for part in parts]), whole.rows)
        if sizes[whole.dataset] >= int(plan.block_rows[whole.dataset]):
            assert len(set(whole.rows.tolist())) == len(whole.rows)


@given(
    options=st.fixed_dictionaries(
        {
            "sizes": st.lists(st.integers(1, 400), min_size=1, max_size=3),
            "drop_last": st.booleans(),
            "seed": st.integers(0, 9),
            "mixing": st.sampled_from(["proportional", "temperature"]),
        }
    ),
    epoch=st.integers(0, 3),
)
def test_a_constant_global_batch_gives_the_same_rows_for_any_world_and_accumulation(
    options: dict[str, Any], epoch: int
) -> None:
    whole = BatchPlan(**options, batch_size=32, small_datasets="repeat")
    expected = _sequence(whole, epoch)
    assert len(expected) > 0
    for world, micro_steps in [(2, 1), (8, 1), (32, 1), (1, 2), (2, 2), (4, 2), (1, 16)]:
        shape = {"batch_size": 32 // world // micro_steps, "world_size": world, "accumulation_steps": micro_steps}
        plan = BatchPlan(**options, **shape, small_datasets="repeat")
        assert plan.signature() == whole.signature()
        steps = _sequence(plan, epoch)
        blocks = [steps[start : start + micro_steps] for start in range(0, len(steps), micro_steps)]
        assert all(len({dataset for dataset, _ in block}) == 1 for block in blocks)
        assert [(block[0][0], sum((rows for _, rows in block), ())) for block in blocks] == expected


@given(sizes=sizes, shape=shape, epoch=st.integers(0, 3), data=st.data())
def test_a_cursor_names_one_position_and_the_same_one_for_another_world(
    sizes: list[int], shape: dict[str, int], epoch: int, data: st.DataObject
) -> None:
    plan = BatchPlan(sizes, **shape, small_datasets="repeat")
    step = data.draw(st.integers(0, plan.steps() - 1))
    cursor = plan.cursor(epoch, step)
    assert plan.position(cursor) == (epoch, step)
    # The same cursor leads one device, which does the work of all in as many micro-steps, to the same rows.
    alone = BatchPlan(
        sizes, shape["batch_size"], accumulation_steps=shape["world_size"] * shape["accumulation_steps"],
        small_datasets="repeat",
    )  # fmt: skip
    assert alone.signature() == plan.signature()
    there, start = alone.position(cursor)
    assert there == epoch
    parts = [alone.step(there, start + i) for i in range(shape["world_size"])]
    assert np.concatenate([part.rows for part in parts]).tolist() == plan.step(epoch, step).rows.tolist()


def test_a_cursor_between_two_steps_is_refused() -> None:
    with pytest.raises(InputError, match="a multiple of the 16 samples that all ranks read at a step, got 24"):
        BatchPlan([100], 8, world_size=2).position(24)


# Orders


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_epochs_datasets_and_seeds_have_orders_of_their_own(seed: int, epoch: int) -> None:
    plan = BatchPlan([60, 60], 4, seed=seed)

    def rows(plan: BatchPlan, epoch: int, dataset: int) -> list[tuple[int, ...]]:
        return [rows for owner, rows in _sequence(plan, epoch) if owner == dataset]

    orders = [rows(plan, epoch, 0), rows(plan, epoch + 1, 0), rows(plan, epoch, 1)]
    orders.append(rows(BatchPlan([60, 60], 4, seed=seed + 1), epoch, 0))
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))
    assert _sequence(BatchPlan([60, 60], 4, seed=seed), epoch) == _sequence(plan, epoch)
    assert [owner for owner, _ in _sequence(plan, epoch)] != [owner for owner, _ in _sequence(plan, epoch + 1)]


def test_steps_are_the_same_in_any_order_of_asking() -> None:
    options: dict[str, Any] = {"sizes": [2000, 7000, 300], "batch_size": 4}
    forward = _sequence(BatchPlan(**options), 1)
    plan = BatchPlan(**options)
    for step in np.random.default_rng(0).permutation(len(forward)).tolist()[:500]:
        found = plan.step(1, step)
        assert (found.dataset, tuple(found.rows.tolist())) == forward[step]


@given(
    counts=st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    epoch=st.integers(0, 3),
)
def test_datasets_are_spread_evenly_over_the_epoch(counts: list[int], epoch: int) -> None:
    order_of = Interleaving(np.array(counts), 0)
    order = [order_of(epoch, block)[0] for block in range(sum(counts))]
    assert Counter(order) == {dataset: count for dataset, count in enumerate(counts) if count}
    for dataset, count in enumerate(counts):
        done = np.cumsum(np.array(order) == dataset)
        even = np.arange(1, len(order) + 1) * count / len(order)
        # Within a cell the order is free; across cells no dataset is ahead or behind by more than a cell's share.
        assert np.abs(done - even).max() <= min(count, 2 * CELL * count / len(order) + len(counts) + 2)


def test_rare_datasets_do_not_all_come_at_the_same_place() -> None:
    order_of = Interleaving(np.array([100_000] + [1] * 40), 0)
    places = {order_of(0, block)[0]: block for block in range(100_040)}
    rare = np.array([places[dataset] for dataset in range(1, 41)]) / 100_040
    assert rare.min() < 0.2 and rare.max() > 0.8 and 0.3 < rare.mean() < 0.7


# Bounds and signature


def test_steps_and_ranks_that_do_not_exist_are_refused() -> None:
    plan = BatchPlan([100], 5, world_size=2)
    with pytest.raises(IndexError, match="steps 0 to 9, but step 10 is asked for"):
        plan.step(0, 10)
    with pytest.raises(IndexError, match="ranks 0 to 1, but rank 2 is asked for"):
        plan.step(0, 0, 2)


def test_a_signature_is_json_and_holds_what_decides_the_rows() -> None:
    options: dict[str, Any] = {"sizes": [100, 200], "batch_size": 4, "names": ["a", "b"]}
    signature = json.loads(json.dumps(BatchPlan(**options).signature()))
    assert signature == BatchPlan(**options).signature()
    for change in (
        {"sizes": [100, 201]}, {"batch_size": 5}, {"seed": 1}, {"drop_last": False}, {"names": ["a", "c"]},
        {"mixing": "temperature"}, {"repeats": [1, 2]}, {"batch_multiples": [1, 2]}, {"small_datasets": "drop"},
    ):  # fmt: skip
        assert BatchPlan(**{**options, **change}).signature() != signature


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": []}, "at least one dataset, got none"),
        ({"sizes": [10, 0]}, r"dataset 'b' must have 1 to 2\*\*40 rows, got 0; leave it out"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"world_size": 0}, "world_size must be at least 1, got 0"),
        ({"accumulation_steps": -1}, "accumulation_steps must be at least 1, got -1"),
        ({"mixing": "even"}, "mixing must be one of proportional, weights, temperature, got 'even'"),
        ({"mixing": "weights"}, "weights must go with mixing='weights', got mixing='weights' and weights=None"),
        ({"weights": [1, 1]}, r"weights must go with mixing='weights', got mixing='proportional' and weights=\(1, 1\)"),
        ({"mixing": "weights", "weights": [1, -1]}, "weights of dataset 'b' must be at least 0, got -1"),
        ({"mixing": "weights", "weights": [1, float("nan")]}, "weights of dataset 'b' must be at least 0, got nan"),
        ({"mixing": "weights", "weights": [0, 0]}, "weights must not all be 0"),
        ({"mixing": "weights", "weights": [1]}, "one value for each of the 2 datasets, got 1"),
        ({"repeats": [1, float("inf")]}, "repeats of dataset 'b' must be at least 0, got inf"),
        ({"mixing": "temperature", "exponent": float("nan")}, "exponent must be at least 0, got nan"),
        ({"batch_multiples": [1, 0.3]}, "batch_multiples of dataset 'b' times the .* must be whole rows, got 0.3"),
        ({"batch_multiples": [1, 0]}, "batch_multiples of dataset 'b' must make at least 1 row a device, got 0"),
        ({"small_datasets": "keep"}, "small_datasets must be one of error, drop, repeat, got 'keep'"),
        ({"sizes": [100, 3]}, "dataset 'b' has 3 rows, fewer than the 4 that all ranks read in one optimizer step"),
        ({"sizes": [3, 3], "small_datasets": "drop"}, r"no dataset is left to draw from: they have \[3, 3\] rows"),
        ({"names": ["a"]}, "names must have one value for each of the 2 datasets, got 1"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"sizes": [100, 50], "batch_size": 4, "names": ["a", "b"]}
    BatchPlan(**good)
    with pytest.raises(InputError, match=message):
        BatchPlan(**{**good, **options})


def test_a_small_dataset_is_dropped_and_named_or_repeated() -> None:
    dropped = BatchPlan([100, 3], 4, small_datasets="drop", names=["large", "small"])
    assert dropped.skipped == ("small",)
    assert {step.dataset for step in (dropped.step(0, i) for i in range(dropped.steps()))} == {0}
    kept = BatchPlan([100, 3], 4, small_datasets="repeat")
    assert (kept.skipped, kept.repeated, dropped.repeated) == ((), ("dataset 1",), ())
    small = [step for step in (kept.step(0, i) for i in range(kept.steps())) if step.dataset == 1]
    assert len(small) == 1 and sorted(Counter(small[0].rows.tolist()).values()) == [1, 1, 2]
