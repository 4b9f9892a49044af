"""How the datasets of a run are mixed: its batch sampler, from the section ``data`` and the mixture's own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from piccolo_st.batches import HomogeneousBatchSampler
from piccolo_st.data import DatasetSpec
from piccolo_st.errors import InputError
from piccolo_st.training.training_arguments import FinetuneConfig


def batch_sampler(config: FinetuneConfig, specs: Sequence[DatasetSpec]) -> Callable[..., HomogeneousBatchSampler]:
    """What makes the batch sampler, as ST's ``multi_dataset_batch_sampler``.

    Raises:
        InputError: weights that are missing or not read, or datasets together that are not there.
    """
    data = config.data
    return partial(
        HomogeneousBatchSampler,
        accumulation_steps=config.train.gradient_accumulation_steps,
        mixing=data.mixing,
        weights=_weights(specs, data.mixing),
        exponent=data.mixing_exponent,
        repeats=[float(spec.repeats) for spec in specs],
        batch_multiples=[spec.batch_multiple for spec in specs],
        small_datasets=data.small_datasets,
        names=[spec.name for spec in specs],
        together=_together(specs, data.together),
    )


def _together(specs: Sequence[DatasetSpec], chosen: Sequence[str] | None) -> list[int]:
    """The places of the datasets that share an update.

    Raises:
        InputError: there is none of a name.
    """
    names = [spec.name for spec in specs]
    if unknown := [name for name in chosen or () if name not in names]:
        raise InputError(f"data.together must name training sets, which are {', '.join(names)}; got {unknown[0]!r}")
    return [names.index(name) for name in chosen or ()]


def _weights(specs: Sequence[DatasetSpec], mixing: str) -> list[float] | None:
    """The shares of the datasets, if the run mixes by them.

    Raises:
        InputError: a weight is missing, or is there and would not be read.
    """
    for spec in specs:
        if mixing == "weights" and spec.weight is None:
            raise InputError(
                f"every dataset must have a weight where data.mixing is 'weights', got none for {spec.name!r}; "
                "give it one"
            )
        if mixing != "weights" and spec.weight is not None:
            raise InputError(
                f"dataset {spec.name!r} has the weight {spec.weight:g}, which data.mixing {mixing!r} does not read; "
                "set data.mixing to 'weights', or give the dataset `repeats`"
            )
    return [spec.weight for spec in specs if spec.weight is not None] or None
