"""What ranks do in turn: they wait for one another as long as there is a sign of life, and fail together.

``on_first_rank``     what only the first rank does; its result or its error reaches every rank.
``first_rank_first``  what every rank does, the others once the first has left its results on disk.
``fail_together``     an error of one rank becomes an error of every rank.

(1) A collective that not all ranks have come to is an error after ``ddp_timeout``, by default half an hour, and the
    first rank may mine for hours. So they meet in the store first, by which they found each other: each counts itself
    there when it has done its part;
(2) meanwhile a thread of a rank that is at its part counts on, every ``ownership.BEAT`` seconds. Where neither count
    has changed for ``STANDSTILL`` seconds, those who wait raise an error;
(3) once all are there, they exchange what became of it: no rank goes, taking the store along, before all have met.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from sentence_transformers.util import get_rank, get_world_size
from torch._C._distributed_c10d import PrefixStore

from piccolo_st.errors import InputError
from piccolo_st.ownership import STANDSTILL, signs_of_life

__all__ = ["fail_together", "first_rank_first", "on_first_rank"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Outcome:
    """What became of a rank's part: its result, or its error."""

    result: Any = None
    error: str | None = None
    of_input: bool = False

    def fail(self, who: str) -> None:
        """Raise it on the ranks that it is not of."""
        if self.of_input:
            raise InputError(f"{who}: {self.error}" if who else self.error)
        if self.error is not None:
            raise RuntimeError(f"{who or 'the first rank'} failed with {self.error}")


def on_first_rank(action: Callable[[], Result]) -> Result:
    """Let the first rank alone do something, however long it takes; its result, or its error, reaches every rank.

    Args:
        action: what it does; its result must be picklable.

    Raises:
        InputError: on every rank, if ``action`` raised one.
        RuntimeError: on the other ranks, if it raised anything else (the first rank raises the error itself); and
            where a rank does not come and shows no sign of life.
    """
    if get_world_size() == 1:
        return action()
    first = _meet(action if get_rank() == 0 else None)[0]
    first.fail("")
    return first.result


def first_rank_first(action: Callable[[], Result]) -> Result:
    """Let every rank do something, the first one before the others, which find on disk what it has written.

    The rank is torch's, by which transformers decides as well who writes. An error of the first rank reaches the others
    as that of ``on_first_rank`` does, and they do nothing; that of another reaches all as ``fail_together`` does it.

    Args:
        action: what each does; its result stays with the rank.
    """
    done: list[Result] = []

    def act() -> None:
        done.append(action())

    on_first_rank(act)
    _fail_if_any(_meet(None if done else act))
    return done[0]


def fail_together(error: Exception | None) -> None:
    """Raise on every rank if one of them brings an error.

    Args:
        error: of this rank, or None.

    Raises:
        Exception: the rank's own error; on the ranks without one, an InputError where the first that failed has one,
            else a RuntimeError, with its text.
    """

    def bring() -> None:
        if error is not None:
            raise error

    _fail_if_any(_meet(bring))


def _fail_if_any(outcomes: list[_Outcome]) -> None:
    for rank, outcome in enumerate(outcomes):
        outcome.fail(f"rank {rank}")


def _meet(action: Callable[[], object] | None) -> list[_Outcome]:
    """Do one's part and wait for all; what became of each rank's, in rank order. One's own error is raised as it is."""
    if get_world_size() == 1:
        return [_Outcome(action() if action else None)]
    store = PrefixStore("piccolo_st", dist.distributed_c10d._get_default_store())  # torch has no public name for it
    turn = store.add(f"turn of {get_rank()}", 1)
    mine, error = _Outcome(), None
    if action is not None:
        try:
            with signs_of_life(lambda: store.add("beats", 1)):
                mine = _Outcome(action())
        except Exception as raised:
            error = raised
            is_input = isinstance(raised, InputError)
            mine = _Outcome(None, f"{raised}" if is_input else f"{type(raised).__name__}: {raised}", is_input)
    _wait(store, turn)
    outcomes: list[Any] = [None] * get_world_size()
    dist.all_gather_object(outcomes, mine)
    if error is not None:
        raise error
    return outcomes


def _wait(store: PrefixStore, turn: int) -> None:
    """Count oneself as having done one's part of this turn, and wait for all others."""
    world, rank = get_world_size(), get_rank()
    store.set(f"{turn} of {rank}", "done")
    there, beats, since, pause = store.add(f"there at {turn}", 1), 0, time.monotonic(), 0.002
    while there < world:
        time.sleep(pause)
        pause = min(1.0, pause * 1.5)
        seen = store.add(f"there at {turn}", 0), store.add("beats", 0)
        if seen != (there, beats):
            (there, beats), since = seen, time.monotonic()
        elif time.monotonic() - since > STANDSTILL:
            missing = ", ".join(str(one) for one in range(world) if not store.check([f"{turn} of {one}"]))
            raise RuntimeError(
                f"all {world} ranks must come here, rank {missing} did not, and none showed a sign of life for "
                f"{STANDSTILL:,.0f} s; look what the missing ranks' log ends with"
            )
