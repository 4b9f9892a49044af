"""Which rows of which dataset stand at which step: a pure function of (epoch, step, rank), with nothing iterated.

Everything is counted in *blocks*: a block is what one optimizer step reads from one dataset over all ranks and
micro-steps.

    (1) a *pass* over a dataset of n rows is a seeded permutation of 0..n-1, cut into blocks. A remainder is dropped
        (``drop_last``) or filled up with the first rows of the same pass; a dataset that does not fill one block is
        an error, dropped, or repeated until it does (``small_datasets``). Of a dataset that is read by groups it is
        one that shuffles groups, and rows within some of them (``windows``);
    (2) mixing says how many blocks an epoch takes from each dataset: whole passes (``proportional``), or a share of
        the epoch's rows (``weights``, ``temperature``);
    (3) the blocks of a dataset form one endless stream, pass after pass and epoch after epoch: an epoch that takes
        less than a pass goes on in the next epoch where it stopped;
    (4) in an epoch the datasets are interleaved, each spread evenly over it (``Interleaving``);
    (5) a block is sliced first by micro-step, then by rank. With a constant global batch the rows of a step are
        therefore the same for any world size, and a position can be kept as a count of samples over all ranks;
    (6) datasets *together* share each of their optimizer steps: every one of them has a block there, of its share of
        the micro-steps. An epoch takes as many as the longest of them asks for; the others begin again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from piccolo_st.batches.blocks import Blocks
from piccolo_st.batches.interleaving import Interleaving
from piccolo_st.batches.permutation import permutation
from piccolo_st.batches.windows import windows
from piccolo_st.errors import InputError
from piccolo_st.hashing import mix


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
class BatchPlan(Blocks):
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
        together: indices of the datasets that share an optimizer step, of which ``accumulation_steps`` is a multiple.
        groups: how each dataset is read by groups; None for one that is not, the default.

    Raises:
        InputError: no datasets, an empty one, a size, weight, repeat, multiple or exponent out of range, a list of
            the wrong length, a dataset smaller than a block where that is an error, nothing left to draw, or datasets
            together that cannot share a step.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for index in self.together:
            if not self._own_quotas[index]:
                raise InputError(
                    f"{self.called(index)} must be drawn from to stand together with others, got no block of it; use a "
                    "smaller batch or small_datasets='repeat', or leave it out of together"
                )
        if not int(self._quotas.sum()):
            raise InputError(
                f"no dataset is left to draw from: they have {list(self.sizes)} rows, and one optimizer step reads "
                f"{self.block_rows.tolist()} of them; lower data.batch_size, or set data.small_datasets to repeat (in "
                "Python per_device_train_batch_size, and small_datasets of HomogeneousBatchSampler)"
            )

    # Step (1): passes, in blocks.

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
        """Blocks an epoch takes from each dataset, step (6) included: (datasets,)."""
        quotas = self._own_quotas.copy()
        if self.together:
            quotas[list(self.together)] = quotas[list(self.together)].max()
        return quotas

    @cached_property
    def _own_quotas(self) -> NDArray[np.int64]:
        """Blocks each dataset asks an epoch to take: (datasets,). At least one of each that is drawn at all."""
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

    @property
    def steps_per_dataset(self) -> NDArray[np.int64]:
        """Micro-steps an epoch takes from each dataset: (datasets,)."""
        return self._quotas * self.micro_steps

    def steps(self) -> int:
        """Micro-steps of any epoch: batches that each rank sees."""
        return int((self._quotas * self.micro_steps).sum())

    # Steps (3) and (5): the rows of a step.

    def step(self, epoch: int, step: int, rank: int | None = None) -> Step:
        """What ``rank``, or with None all ranks together, reads at a micro-step of an epoch.

        Raises:
            IndexError: no such step or rank.
        """
        if not 0 <= step < self.steps():
            raise IndexError(f"an epoch has steps 0 to {self.steps() - 1}, but step {step} is asked for")
        if rank is not None and not 0 <= rank < self.world_size:
            raise IndexError(f"there are ranks 0 to {self.world_size - 1}, but rank {rank} is asked for")
        block, micro_step = divmod(step, self.accumulation_steps)
        first, index = self._order(epoch, block)
        dataset, micro_step = self._sharing(first, micro_step)
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
        key, groups = mix(self.seed, 0, dataset, visit), self.groups[dataset] if self.groups else None
        return (permutation(self.sizes[dataset], key) if groups is None else windows(groups, key))(positions)

    def _sharing(self, dataset: int, micro_step: int) -> tuple[int, int]:
        """Step (6): which of the datasets together with this one has a micro-step of theirs, and its number there."""
        if dataset not in self.together:
            return dataset, micro_step
        member, own = divmod(micro_step, int(self.micro_steps[dataset]))
        return self.together[member], own

    @cached_property
    def _order(self) -> Interleaving:
        """Of optimizer steps: those that are shared count as the first dataset's."""
        quotas = self._quotas.copy()
        quotas[list(self.together[1:])] = 0
        return Interleaving(quotas, self.seed)

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
        return (epoch * self.steps() + step) * self.samples_per_step

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
        if self.together:
            signature["together"] = self.together
        if any(self.groups or ()):
            signature["groups"] = [groups and mix(groups.window, *groups.rows) for groups in self.groups or ()]
        signature["samples_per_block"] = self.samples_per_step * self.accumulation_steps
        return {key: list(value) if isinstance(value, tuple) else value for key, value in signature.items()}
