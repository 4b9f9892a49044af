"""What a batch plan is made of: datasets, cut into blocks of what one optimizer step reads over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from piccolo_st.batches.permutation import MAX_SIZE
from piccolo_st.batches.windows import Groups, check_groups
from piccolo_st.errors import InputError

Mixing = Literal["proportional", "weights", "temperature"]
SmallDatasets = Literal["error", "drop", "repeat"]


@dataclass(frozen=True)
class Blocks:
    """The arguments of a :class:`BatchPlan`, which describes them, checked, and the sizes that follow from them."""

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
    together: Sequence[int] = ()
    groups: Sequence[Groups | None] | None = None

    def __post_init__(self) -> None:
        for name in ("sizes", "weights", "repeats", "batch_multiples", "names", "together", "groups"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        _check(self)

    @cached_property
    def device_rows(self) -> NDArray[np.int64]:
        """Rows of one device at one micro-step, by dataset: (datasets,)."""
        multiples = np.asarray(self.batch_multiples or [1.0] * len(self.sizes))
        return np.rint(multiples * self.batch_size).astype(np.int64)

    @cached_property
    def micro_steps(self) -> NDArray[np.int64]:
        """Micro-steps of one block, by dataset: (datasets,)."""
        shared = np.isin(np.arange(len(self.sizes)), self.together)
        return np.where(shared, self.accumulation_steps // max(1, len(self.together)), self.accumulation_steps)

    @cached_property
    def block_rows(self) -> NDArray[np.int64]:
        """Rows of one block, by dataset: (datasets,)."""
        return self.device_rows * self.world_size * self.micro_steps

    def name(self, dataset: int) -> str:
        """The dataset's name, or its index in words."""
        return self.names[dataset] if self.names is not None else f"dataset {dataset}"

    def called(self, dataset: int) -> str:
        """The dataset inside a sentence: ``dataset 'faq'``."""
        return f"dataset {dataset if self.names is None else repr(self.names[dataset])}"


def _check(plan: Blocks) -> None:
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
    if plan.together:
        _check_together(plan)
    if not np.isfinite(plan.exponent) or plan.exponent < 0:
        raise InputError(f"exponent must be at least 0, got {plan.exponent}")
    for field in ("weights", "repeats", "batch_multiples", "names", "groups"):
        _check_values(plan, field)
    for index, groups in enumerate(plan.groups or ()):
        check_groups(groups, plan.sizes[index], plan.called(index))
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
                "step; lower data.batch_size, or set data.small_datasets to repeat or drop (in Python "
                "per_device_train_batch_size, and small_datasets of HomogeneousBatchSampler)"
            )


def _check_together(plan: Blocks) -> None:
    count, known = len(plan.together), range(len(plan.sizes))
    if count < 2 or len(set(plan.together)) < count or any(index not in known for index in plan.together):
        raise InputError(
            f"together must name at least two different ones of the {len(known)} datasets, got {list(plan.together)}"
        )
    if plan.accumulation_steps % count:
        raise InputError(
            f"accumulation_steps must be a multiple of the {count} datasets that share an optimizer step, got "
            f"{plan.accumulation_steps}; set train.gradient_accumulation_steps to such a multiple"
        )


def _check_values(plan: Blocks, field: str) -> None:
    values = getattr(plan, field)
    if values is None:
        return
    if len(values) != len(plan.sizes):
        raise InputError(f"{field} must have one value for each of the {len(plan.sizes)} datasets, got {len(values)}")
    if field in ("names", "groups"):
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
