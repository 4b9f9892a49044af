"""The batch plan as a batch sampler of sentence-transformers, for a DatasetDict or a single Dataset.

    (1) for each step the sampler yields ``world_size`` batches in a row, one for each rank, all from one dataset;
    (2) accelerate's BatchSamplerShard hands batch i to rank i % world_size, so every rank gets its slice of the step;
    (3) a batch is computed when it is first looked at (``BatchIndices``). A rank never computes the others' batches,
        and a resumed transformers Trainer, which draws and throws away every batch before its position, walks past
        them for a fraction of a microsecond each;
    (4) the epoch arrives through accelerate, see ``sampler`` below.

With ``split_batches`` accelerate cuts each batch among the ranks instead: pass ``world_size=1``, the batch size is
then that of all ranks. ``dispatch_batches`` joins the padded batches of all ranks into one and cannot work;
``check_dataloader`` refuses it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, cast, overload

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher
from numpy.typing import NDArray
from sentence_transformers.base.sampler import DefaultBatchSampler, MultiDatasetDefaultBatchSampler
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler

from piccolo_st.batches.plan import BatchPlan, Step
from piccolo_st.batches.windows import row_groups
from piccolo_st.distributed import get_rank, get_world_size
from piccolo_st.errors import InputError

logger = logging.getLogger(__name__)

InUse: TypeAlias = Callable[[int, NDArray[np.int64], int], NDArray[np.int32] | None]
"""Dataset, rows of it and an optimizer step -> which texts of each row's ``negative`` count at that step, by their
places in the list: (rows, most), -1 where there are fewer; None: all of them."""


class BatchIndices(Sequence[int]):
    """The indices of one batch, computed when first looked at.

    It is a sequence of indices into the concatenation of all datasets, as torch expects, and knows what they mean:

    Attributes:
        dataset: index of the dataset that the whole batch comes from.
        visit: how many whole passes over that dataset came before.
        rows: int64 array of the rows inside that dataset.
        negatives: what the sampler's ``in_use`` says of them, or None.
    """

    __slots__ = ("_epoch", "_found", "_negatives", "_rank", "_sampler", "_step", "offset")
    _found: Step | None
    _negatives: NDArray[np.int32] | None
    _sampler: HomogeneousBatchSampler | None  # None where the rows are known already
    offset: int

    def __init__(self, sampler: HomogeneousBatchSampler, epoch: int, step: int, rank: int) -> None:
        self._sampler = sampler
        self._epoch = epoch
        self._step = step
        self._rank = rank
        self._found = self._negatives = None

    @classmethod
    def of(cls, found: Step, offset: int, negatives: NDArray[np.int32] | None = None) -> BatchIndices:
        """Indices that are known already, of a dataset whose first row has the index ``offset``."""
        self = cls.__new__(cls)
        self._found, self.offset, self._negatives, self._sampler = found, offset, negatives, None
        return self

    def _find(self) -> Step:
        if self._found is None:
            sampler = self._sampler
            assert sampler is not None
            self._found = sampler.plan.step(self._epoch, self._step, self._rank)
            self.offset = sampler.offsets[self._found.dataset]
            if sampler.in_use is not None:
                step = (self._epoch * sampler.plan.steps() + self._step) // sampler.plan.accumulation_steps
                self._negatives = sampler.in_use(self._found.dataset, self._found.rows, step)
        return self._found

    @property
    def dataset(self) -> int:
        """Index of the dataset."""
        return self._find().dataset

    @property
    def visit(self) -> int:
        """Whole passes over the dataset before this one."""
        return self._find().visit

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows inside the dataset: (batch,)."""
        return self._find().rows

    @property
    def negatives(self) -> NDArray[np.int32] | None:
        """Places of the negatives that count: (batch, most)."""
        self._find()
        return self._negatives

    def __len__(self) -> int:
        if self._sampler is not None and self._sampler.batch_size is not None:
            return self._sampler.batch_size
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> BatchIndices: ...
    def __getitem__(self, index: int | slice) -> int | BatchIndices:
        if isinstance(index, slice):
            own = None if self.negatives is None else self.negatives[index]
            return BatchIndices.of(Step(self.dataset, self.visit, self.rows[index]), self.offset, own)
        return int(self.rows[index]) + self.offset

    def __iter__(self) -> Iterator[int]:
        rows = self.rows
        return iter((rows + self.offset).tolist())

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"BatchIndices(dataset={self.dataset}, visit={self.visit}, rows={self.rows.tolist()})"

    def __reduce__(self) -> tuple[object, ...]:
        return BatchIndices.of, (self._find(), self.offset, self._negatives)


class _EpochCarrier(RandomSampler):
    """What holds the epoch, and is a shuffle to accelerate; see ``HomogeneousBatchSampler.sampler``."""

    epoch = 0


class HomogeneousBatchSampler(MultiDatasetDefaultBatchSampler):
    """Every batch of every rank of a step comes from one dataset; nothing is stored, any step can be the first.

    As ``multi_dataset_batch_sampler`` (for a DatasetDict) or ``batch_sampler`` (for a Dataset) of
    SentenceTransformerTrainingArguments; with options::

        multi_dataset_batch_sampler=functools.partial(HomogeneousBatchSampler, mixing="temperature", exponent=0.5)

    Args:
        dataset: the ConcatDataset that the trainer made of a DatasetDict, or a single Dataset.
        batch_samplers: the trainer's own batch sampler of each dataset. They are not iterated: only their batch size
            and ``drop_last`` are taken.
        generator: not used; the trainer passes it.
        seed: of every shuffle.
        batch_size: rows of one device at one micro-step; needed without ``batch_samplers``.
        drop_last: see BatchPlan. Default: that of ``batch_samplers``.
        valid_label_columns: not used; the trainer passes it.
        world_size: number of ranks. Default: that of torch.distributed.
        options: of BatchPlan: ``accumulation_steps`` (the run's ``gradient_accumulation_steps``, of which a trainer
            does not tell its sampler), ``mixing``, ``weights``, ``exponent``, ``repeats``, ``batch_multiples``,
            ``small_datasets``, ``names``, ``together``, ``groups`` (a mixture's streamed datasets say theirs).

    Attributes:
        plan: the BatchPlan.
        offsets: index of each dataset's first row in the concatenation.
        batch_size: rows of every batch, or None where ``batch_multiples`` makes them differ (accelerate's sign for it).
        in_use: says which listed negatives count, if not all do; asked once for a batch, when it is read or sent to the
            worker that reads it.

    Raises:
        InputError: the plan cannot be made, no batch size, an IterableDataset, or a batch sampler that does more than
            cut a shuffle into batches.

    Example:
        >>> from datasets import Dataset
        >>> from torch.utils.data import ConcatDataset
        >>> from piccolo_st import HomogeneousBatchSampler
        >>> questions = Dataset.from_dict({"query": ["q0", "q1", "q2", "q3"]})
        >>> titles = Dataset.from_dict({"query": ["t0", "t1"]})
        >>> sampler = HomogeneousBatchSampler(ConcatDataset([questions, titles]), batch_size=2)
        >>> sorted(batch.dataset for batch in sampler)
        [0, 0, 1]
    """

    def __init__(
        self,
        dataset: ConcatDataset[object] | Dataset[object],
        batch_samplers: Sequence[DefaultBatchSampler] | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = 0,
        *,
        batch_size: int | None = None,
        drop_last: bool | None = None,
        valid_label_columns: Sequence[str] | None = None,
        world_size: int | None = None,
        **options: Any,
    ) -> None:
        concatenation = dataset if isinstance(dataset, ConcatDataset) else ConcatDataset([_sized(dataset)])
        if batch_samplers is None:
            if batch_size is None:
                raise InputError(
                    "HomogeneousBatchSampler needs batch_samplers, as a trainer passes them, or batch_size"
                )
            batch_samplers = [
                DefaultBatchSampler(part, batch_size=batch_size, drop_last=bool(drop_last))
                for part in concatenation.datasets
            ]
        self.plan = BatchPlan(
            **{"groups": [row_groups(part) for part in concatenation.datasets], **options},
            sizes=[len(part) for part in concatenation.datasets],  # type: ignore[arg-type]
            batch_size=_common(batch_samplers, "batch_size") if batch_size is None else batch_size,
            world_size=get_world_size() if world_size is None else world_size,
            seed=seed or 0,
            drop_last=bool(_common(batch_samplers, "drop_last")) if drop_last is None else drop_last,
        )
        self._report()
        self.offsets = [0, *concatenation.cumulative_sizes[:-1]]
        self.in_use: InUse | None = None
        self._told = False
        self._carrier = _EpochCarrier(concatenation)
        super().__init__(concatenation, batch_samplers=list(batch_samplers), generator=generator, seed=seed or 0)
        sizes = set(self.plan.device_rows.tolist())
        self.batch_size = sizes.pop() if len(sizes) == 1 else None  # type: ignore[assignment]
        # Every step is whole, so that accelerate has no remainder to complete with rows of another dataset.
        self.drop_last = True

    def _report(self) -> None:
        """Say which datasets are not read as one would expect, once for all ranks."""
        if get_rank() == 0 and self.plan.skipped:
            logger.warning("no batch is drawn from %s: too few rows, or no weight", ", ".join(self.plan.skipped))
        if get_rank() == 0 and self.plan.repeated:
            logger.warning("rows stand in a step more than once: too few in %s", ", ".join(self.plan.repeated))

    def __len__(self) -> int:
        """Batches of an epoch, over all ranks."""
        return self.plan.steps() * self.plan.world_size

    def __iter__(self) -> Iterator[BatchIndices]:  # type: ignore[override]  # rows of one step
        """The batches of the current epoch."""
        if get_world_size() > 1 and not self._told and not hasattr(self._carrier, "set_epoch"):
            raise RuntimeError(
                "no epoch has reached the batch sampler, so this rank would read the rows of epoch 0, whichever epoch "
                "the run is in. transformers tells it only while accelerator_config['use_seedable_sampler'] is True, "
                "its default; with another loop, call set_epoch(epoch) of the sampler before each epoch"
            )
        epoch, ranks = self.epoch, range(self.plan.world_size)
        for step in range(self.plan.steps()):
            for rank in ranks:
                yield BatchIndices(self, epoch, step, rank)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is iterated next."""
        self._told = True
        self.epoch = epoch

    @property
    def sampler(self) -> RandomSampler:
        """What accelerate brings the epoch to.

        When a multi-process run resumes inside an epoch, accelerate's SkipBatchSampler wraps its BatchSamplerShard, and
        ``set_epoch`` of a batch sampler under the two is not called. What it does call, there and everywhere else, is
        ``set_epoch`` of the SeedableRandomSampler that it puts in the place of a ``sampler`` attribute holding a
        RandomSampler. So this sampler shows a RandomSampler, lets it be replaced, and keeps its epoch in it.
        """
        return self._carrier

    @sampler.setter
    def sampler(self, sampler: object) -> None:
        if isinstance(sampler, RandomSampler):  # anything else is torch's BatchSampler, storing its dataset
            epoch, self._carrier = self.epoch, cast(_EpochCarrier, sampler)
            self.epoch = epoch

    @property
    def epoch(self) -> int:
        """The epoch that is iterated next."""
        return self._carrier.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._carrier.epoch = epoch


def check_dataloader(dataloader: DataLoader[object]) -> HomogeneousBatchSampler:
    """The HomogeneousBatchSampler under a dataloader that accelerate has prepared, once it is sure to work there.

    Raises:
        InputError: dispatch_batches is on, split_batches does not fit the plan, or the plan is for another world size.
    """
    if isinstance(dataloader, DataLoaderDispatcher):
        raise InputError(
            "accelerator_config['dispatch_batches'] must be unset, got True; batches padded to different widths "
            "cannot be joined and dispatched, and without it each rank reads its own slice"
        )
    shard, sampler, world_size = None, dataloader.batch_sampler, 1
    while not isinstance(sampler, HomogeneousBatchSampler):
        if isinstance(sampler, BatchSamplerShard):
            shard = sampler
        sampler = getattr(sampler, "batch_sampler", None)
        if sampler is None:
            raise InputError(
                "the dataloader must draw its batches from a HomogeneousBatchSampler, got "
                f"{type(dataloader.batch_sampler).__name__}; set args.multi_dataset_batch_sampler and "
                "args.batch_sampler"
            )
    if shard is not None and shard.split_batches:
        if sampler.batch_size is None:
            raise InputError("accelerator_config['split_batches'] needs equal batches; leave out batch_multiples")
    elif shard is not None:
        world_size = shard.num_processes
    if sampler.plan.world_size != world_size:
        raise InputError(
            f"each step of the batch sampler must be cut for the {world_size} ranks that the dataloader shares its "
            f"batches among, got {sampler.plan.world_size}"
            + ("; with split_batches pass world_size=1" if shard is not None and shard.split_batches else "")
        )
    return sampler


def _sized(dataset: Dataset[object]) -> Dataset[object]:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise InputError(
            f"HomogeneousBatchSampler reads rows by their number, which a {type(dataset).__name__} does not allow; "
            "use a datasets.Dataset, which stays on disk as well"
        )
    return dataset


def _common(batch_samplers: Sequence[DefaultBatchSampler], field: Literal["batch_size", "drop_last"]) -> int:
    """A field that all batch samplers of the trainer share."""
    for batch_sampler in batch_samplers:
        if type(batch_sampler) not in (DefaultBatchSampler, HomogeneousBatchSampler):
            raise InputError(
                "HomogeneousBatchSampler orders the rows itself and would ignore the "
                f"{type(batch_sampler).__name__} of args.batch_sampler; leave that at its default"
            )
    # Of ours, what it was given: its own attributes are for accelerate.
    values = {getattr(getattr(one, "plan", one), field) for one in batch_samplers}
    if len(values) != 1:
        raise InputError(f"all datasets must have the same {field}, got {sorted(values)}; use batch_multiples")
    return values.pop()
