"""The harness of the distributed tests, tested itself: results, errors, hangs."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import run_ranks


def _sum_of_ranks(rank: int, world: int, offset: int) -> int:
    value = torch.tensor(rank + offset)
    dist.all_reduce(value)
    return int(value)


def _fail_on_one(rank: int, world: int) -> None:
    if rank == 1:
        raise ValueError("planted")
    dist.barrier()


def _hang(rank: int, world: int) -> None:
    if rank == 0:
        time.sleep(60)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_takes_part_and_returns(world: int) -> None:
    expected = sum(range(world)) + 10 * world
    assert run_ranks(_sum_of_ranks, world, 10) == [expected] * world


def test_a_failing_rank_is_named_and_the_others_are_not_waited_for() -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 of 2 raised ValueError: planted"):
        run_ranks(_fail_on_one, 2)
    assert time.monotonic() - start < 30


def test_a_hang_ends_with_the_stack_of_the_rank() -> None:
    with pytest.raises(TimeoutError, match=r"(?s)not done after 4.* _hang"):
        run_ranks(_hang, 2, timeout=4.0)
