"""What ranks do in turn: on real gloo ranks, however long it takes, and with a fault on each of them."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from piccolo_st import ownership, turns
from piccolo_st.errors import InputError
from piccolo_st.turns import fail_together, first_rank_first, on_first_rank
from tests.helpers.ranks import run_ranks


def write_or_read(rank: int, world: int, folder: str, fault: bool) -> str:
    def act() -> str:
        path = Path(folder) / "written"
        if not path.exists():
            time.sleep(0.5 * (rank == 0))
            if fault:
                raise InputError("the first one's fault")
            path.write_text(str(rank))
        return f"{rank} read {path.read_text()}"

    return first_rank_first(act)


def test_the_first_rank_goes_first_and_each_keeps_its_own_result(tmp_path: Path) -> None:
    assert run_ranks(write_or_read, 3, str(tmp_path), False) == ["0 read 0", "1 read 0", "2 read 0"]


def test_an_error_of_the_first_rank_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        run_ranks(write_or_read, 2, str(tmp_path), True, timeout=20)
    for rank in (0, 1):
        assert f"rank {rank} of 2 raised InputError: the first one's fault" in str(error.value)


def fault_on(rank: int, world: int, where: int, error: Exception) -> None:
    def act() -> None:
        if rank == where:
            raise error

    first_rank_first(act)


@pytest.mark.parametrize(
    ("error", "elsewhere"),
    [
        (InputError("no disk"), "InputError: rank 1: no disk"),
        (OSError("no disk"), "RuntimeError: rank 1 failed with OSError: no disk"),
    ],
)
def test_an_error_of_a_later_rank_is_every_ranks(error: Exception, elsewhere: str) -> None:
    with pytest.raises(RuntimeError) as said:
        run_ranks(fault_on, 2, 1, error, timeout=20)
    assert f"rank 0 of 2 raised {elsewhere}" in str(said.value)
    assert f"rank 1 of 2 raised {type(error).__name__}: no disk" in str(said.value)


def last_longer_than_collectives(rank: int, world: int) -> str:
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), dist.group.WORLD)
    first = on_first_rank(lambda: time.sleep(2.5) or "of the first")
    first_rank_first(lambda: time.sleep(2.5 * rank))
    fail_together(None)
    return str(first)


def test_a_part_may_last_longer_than_the_time_out_of_collectives() -> None:
    assert run_ranks(last_longer_than_collectives, 2, timeout=60) == ["of the first"] * 2


def wait_for(rank: int, world: int, busy: float, beat: float) -> str:
    ownership.BEAT, turns.STANDSTILL = beat, 1.0
    try:
        on_first_rank(lambda: time.sleep(busy))
    except RuntimeError as error:
        time.sleep(busy)  # a rank that goes takes the others along
        return str(error)
    return "met"


def test_who_shows_no_sign_of_life_is_given_up() -> None:
    assert run_ranks(wait_for, 2, 3.0, 0.2, timeout=60) == ["met", "met"]
    with pytest.raises((RuntimeError, TimeoutError)) as error:
        run_ranks(give_up, 2, timeout=60)
    assert "rank 1" in str(error.value)
    said = "all 2 ranks must come here, rank 0 did not, and none showed a sign of life for 1 s"
    assert said in str(error.value)


def give_up(rank: int, world: int) -> None:
    turns.STANDSTILL = 1.0
    on_first_rank(lambda: time.sleep(4))
