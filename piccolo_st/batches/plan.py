"""Which rows of which dataset stand at which step: a pure function of (epoch, step, rank), with nothing iterated.

Everything is counted in *blocks*: a block is what one optimizer step reads from one dataset over all ranks and
micro-steps.

    (1) a *pass* over a dataset of n rows is a seeded permutation of 0..n-1, cut into blocks. A remainder is dropped
        (``drop_last``) or filled up with the first rows of the same pass; a dataset that does not fill one block is
        an error, dropped, or repeated until it does (``small_datasets``);
    (2) mixing says how many blocks an epoch takes from each dataset: whole passes (``proportional``), or a share of
        the epoch's rows (``weights``, ``temperature``);
    (3) the blocks of a dataset form one endless stream, pass after pass and epoch after epoch: an epoch that takes
        less than a pass goes on in the next epoch where it stopped;
    (4) in an epoch the datasets are interleaved, each spread evenly over it (``Interleaving``);
    (5) a block is sliced first by micro-step, then by rank. With a constant global batch the rows of a step are
        therefore the same for any world size, and a position can be kept as a count of samples over all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from piccolo_st.batches.interleaving import Interleaving
from piccolo_st.batches.permutation import MAX_SIZE, permutation
from piccolo_st.errors import InputError
from piccolo_st.hashing import mix

Mixing = Literal["proportional", "weights", "temperature"]
SmallDatasets = Literal["error", "drop", "repeat"]


class Step(NamedTuple):
    """What one rank, or all of them, reads at one step.

    Attributes:
        dataset: index of the dataset.
        visit: how many whole passes over that dataset came before; the same in all of a block.
        rows: int64 rows of the dataset, (rows of one rank,) or, for all ranks, (rows of all,) in the order of ranks.
    """

    dataset: int
    visit: int
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class BatchPlan:
    """The order of all batches of a run.

    Args:
        sizes: rows of each dataset.
        batch_size: rows of one device at one (micro-)step.
        world_size: number of ranks.
        accumulation_steps: micro-steps of one optimizer step.
        seed: of every shuffle.
        drop_last: whether the rows of a pass that do not fill a block wait for another pass (each pass shuffles anew),
            or the block is filled up with rows of the same pass, which it then visits twice.
        mixing: ``proportional`` takes every row as often as ``repeats`` says; ``weights`` and ``temperature`` (share
            ~ (repeats * size) ** exponent) give each dataset a share of the rows of such an epoch.
        weights: shares, in any unit; only with ``mixing="weights"``.
        exponent: 1 is proportional, 0 takes the same from each; only with ``mixing="temperature"``.
        repeats: passes an epoch makes over each dataset, fractions allowed. Default 1.
        batch_multiples: each dataset's batch size as a multiple of ``batch_size``, fractions allowed. Default 1.
        small_datasets: what becomes of a dataset with fewer rows than a block: an ``error``, ``drop``, or ``repeat``
            its rows until they fill one.
        names: the datasets' names, for messages.

    Raises:
        InputError: no datasets, an empty one, a size, weight, repeat, multiple or exponent out of range, a list of
            the wrong length, a dataset smaller than a block where that is an error, or nothing left to draw.
    """

    sizes: Sequence[int]
    batch_size: int
    world_size: int = 1
    accumulation_steps: int = 1
    seed: int = 0
    drop_last: bool = True
    mixing: Mixing = "proportional"
    weights: Sequence[float] | None = None
    exponent: float = 1.0
    repeats: Sequence[float] | None = None
    batch_multiples: Sequence[float] | None = None
    small_datasets: SmallDatasets = "error"
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("sizes", "weights", "repeats", "batch_multiples", "names"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        _check(self)
        if not int(self._quotas.sum()):
            raise InputError(
                f"no dataset is left to draw from: they have {list(self.sizes)} rows, and one optimizer step reads "
                f"{self.block_rows.tolist()} of them; use a smaller batch or small_datasets='repeat'"
            )

    # Step (1): passes, in blocks.

    @cached_property
    def device_rows(self) -> NDArray[np.int64]:
        """Rows of one device at one micro-step, by dataset: (datasets,)."""
        multiples = np.asarray(self.batch_multiples or [1.0] * len(self.sizes))
        return np.rint(multiples * self.batch_size).astype(np.int64)

    @cached_property
    def block_rows(self) -> NDArray[np.int64]:
        """Rows of one block, by dataset: (datasets,)."""
        return self.device_rows * self.world_size * self.accumulation_steps

    @cached_property
    def _pass_blocks(self) -> NDArray[np.int64]:
        """Blocks of one pass, by dataset; 0 for a dataset that is dropped."""
        sizes = np.asarray(self.sizes, dtype=np.int64)
        blocks = sizes // self.block_rows if self.drop_last else -(-sizes // self.block_rows)
        blocks[sizes < self.block_rows] = 1 if self.small_datasets == "repeat" else 0
        return blocks

    # Step (2): how much of each dataset an epoch takes.

    @cached_property
    def _quotas(self) -> NDArray[np.int64]:
        """Blocks an epoch takes from each dataset: (datasets,). At least one of each that is drawn at all."""
        repeats = np.asarray(self.repeats or [1.0] * len(self.sizes))
        rows = np.asarray(repeats * self._pass_blocks * self.block_rows)
        if self.mixing == "weights":
            shares = np.asarray(self.weights, dtype=np.float64) * (self._pass_blocks > 0)
        elif self.mixing == "temperature":
            shares = np.where(rows > 0, (repeats * np.asarray(self.sizes, dtype=np.float64)) ** self.exponent, 0.0)
        else:
            shares = rows
        if shares.sum() > 0:
            rows = rows.sum() * (shares / shares.sum())
        blocks = np.rint(rows / self.block_rows).astype(np.int64)
        return np.where(shares > 0, np.maximum(blocks, 1), 0)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The datasets that no epoch draws from: too small and dropped, or of weight or repeats 0."""
        return tuple(self.name(index) for index in np.flatnonzero(self._quotas == 0).tolist())

    @property
    def repeated(self) -> tuple[str, ...]:
        """The datasets too small for a block, whose rows stand in it more than once."""
        small = (np.asarray(self.sizes) < self.block_rows) & (self._quotas > 0)
        return tuple(self.name(index) for index in np.flatnonzero(small).tolist())

    def name(self, dataset: int) -> str:
        """The dataset's name, or its index in words."""
        return self.names[dataset] if self.names is not None else f"dataset {dataset}"

    def called(self, dataset: int) -> str:
        """The dataset inside a sentence: ``dataset 'faq'``."""
        return f"dataset {dataset if self.names is None else repr(self.names[dataset])}"

    @property
    def steps_per_dataset(self) -> NDArray[np.int64]:
        """Micro-steps an epoch takes from each dataset: (datasets,)."""
        return self._quotas * self.accumulation_steps

    def steps(self, epoch: int = 0) -> int:
        """Micro-steps of an epoch: batches that each rank sees. The same in every epoch."""
        return int(self._quotas.sum()) * self.accumulation_steps

    # Steps (3) and (5): the rows of a step.

    def step(self, epoch: int, step: int, rank: int | None = None) -> Step:
        """What ``rank``, or with None all ranks together, reads at a micro-step of an epoch.

        Raises:
            IndexError: no such step or rank.
        """
        if not 0 <= step < self.steps(epoch):
            raise IndexError(f"an epoch has steps 0 to {self.steps(epoch) - 1}, but step {step} is asked for")
        if rank is not None and not 0 <= rank < self.world_size:
            raise IndexError(f"there are ranks 0 to {self.world_size - 1}, but rank {rank} is asked for")
        block, micro_step = divmod(step, self.accumulation_steps)
        dataset, index = self._order(epoch, block)
        visit, index = divmod(epoch * int(self._quotas[dataset]) + index, int(self._pass_blocks[dataset]))
        device_rows = int(self.device_rows[dataset])
        start = micro_step * self.world_size * device_rows + (rank or 0) * device_rows
        stop = start + (device_rows if rank is not None else self.world_size * device_rows)
        before = index * int(self.block_rows[dataset])
        return Step(dataset, visit, self._pass_rows(dataset, visit, before + start, before + stop))

    def _pass_rows(self, dataset: int, visit: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows ``start`` to ``stop`` of a pass over a dataset, which begins again where the dataset ends."""
        positions = np.arange(start, stop, dtype=np.int64)
        if stop > self.sizes[dataset]:
            positions %= self.sizes[dataset]
        return permutation(self.sizes[dataset], mix(self.seed, 0, dataset, visit))(positions)

    @cached_property
    def _order(self) -> Interleaving:
        return Interleaving(self._quotas, self.seed)

    # Positions that outlive a change of the world size.

    @property
    def samples_per_step(self) -> int:
        """Samples of all ranks at a micro-step, before ``batch_multiples``."""
        return self.world_size * self.batch_size

    def cursor(self, epoch: int, step: int) -> int:
        """The samples that all ranks have seen before a micro-step of an epoch, before ``batch_multiples``.

        It names the same place in the run for every world size, batch size and number of accumulation steps with the
        same product.
        """
        return (epoch * self.steps(epoch) + step) * self.samples_per_step

    def position(self, cursor: int) -> tuple[int, int]:
        """The (epoch, micro-step) of a cursor.

        Raises:
            InputError: the cursor falls between two steps of this plan.
        """
        steps, rest = divmod(cursor, self.samples_per_step)
        if cursor < 0 or rest:
            raise InputError(
                f"a position must be a multiple of the {self.samples_per_step} samples that all ranks read at a step, "
                f"got {cursor}; go on with the global batch size that the position was written with"
            )
        return divmod(steps, self.steps())

    def signature(self) -> dict[str, object]:
        """All that decides the rows of an optimizer step, as JSON: equal signatures give equal runs."""
        fields = ("names", "sizes", "seed", "drop_last", "mixing", "weights", "exponent", "repeats", "batch_multiples")
        signature = {name: getattr(self, name) for name in (*fields, "small_datasets")}
        # Once settings; checkpoints written then name them.
        signature |= {"one_dataset_per_update": True, "window": None}
        signature["samples_per_block"] = self.samples_per_step * self.accumulation_steps
        return {key: list(value) if isinstance(value, tuple) else value for key, value in signature.items()}


def _check(plan: BatchPlan) -> None:
    if not plan.sizes:
        raise InputError("a plan needs at least one dataset, got none")
    for index, size in enumerate(plan.sizes):
        if not 1 <= size <= MAX_SIZE:
            raise InputError(f"{plan.called(index)} must have 1 to 2**40 rows, got {size}; leave it out")
    for field in ("batch_size", "world_size", "accumulation_steps"):
        if getattr(plan, field) < 1:
            raise InputError(f"{field} must be at least 1, got {getattr(plan, field)}")
    for field, allowed in (("mixing", Mixing), ("small_datasets", SmallDatasets)):
        if getattr(plan, field) not in get_args(allowed):
            raise InputError(f"{field} must be one of {', '.join(get_args(allowed))}, got {getattr(plan, field)!r}")
    if (plan.weights is not None) != (plan.mixing == "weights"):
        raise InputError(
            f"weights must go with mixing='weights', got mixing={plan.mixing!r} and weights={plan.weights}"
        )
    if not np.isfinite(plan.exponent) or plan.exponent < 0:
        raise InputError(f"exponent must be at least 0, got {plan.exponent}")
    for field in ("weights", "repeats", "batch_multiples", "names"):
        _check_values(plan, field)
    for index, (rows, needed) in enumerate(zip(plan.sizes, plan.block_rows.tolist(), strict=True)):
        if needed < 1:
            multiple = plan.batch_multiples[index] if plan.batch_multiples else 1
            raise InputError(
                f"batch_multiples of {plan.called(index)} must make at least 1 row a device, got "
                f"{multiple * plan.batch_size:g}; raise it"
            )
        if rows < needed and plan.small_datasets == "error":
            raise InputError(
                f"{plan.called(index)} has {rows} rows, fewer than the {needed} that all ranks read in one optimizer "
                "step; use a smaller batch, or small_datasets='repeat' or 'drop'"
            )


def _check_values(plan: BatchPlan, field: str) -> None:
    values = getattr(plan, field)
    if values is None:
        return
    if len(values) != len(plan.sizes):
        raise InputError(f"{field} must have one value for each of the {len(plan.sizes)} datasets, got {len(values)}")
    if field == "names":
        return
    for index, value in enumerate(values):
        if not np.isfinite(value) or value < 0:
            raise InputError(f"{field} of {plan.called(index)} must be at least 0, got {value}")
    if not sum(values):
        raise InputError(f"{field} must not all be 0, got {list(values)}")
    if field == "batch_multiples":
        for index, value in enumerate(values):
            if abs(value * plan.batch_size - round(value * plan.batch_size)) > 1e-9 * plan.batch_size:
                raise InputError(
                    f"batch_multiples of {plan.called(index)} times the batch size {plan.batch_size} must be whole "
                    f"rows, got {value}"
                )
