"""The loss of each dataset of a run, by its task, its rows and what the configuration says of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn

from piccolo_st.data import LABELLED_TASKS, DatasetSpec
from piccolo_st.errors import InputError
from piccolo_st.losses import DistillationSettings, build_losses
from piccolo_st.training.training_arguments import FinetuneConfig

_NAME_SCORES = "name their columns, as `columns: {positive_score: pos_scores, negative_score: neg_scores}`"


def dataset_losses(
    config: FinetuneConfig,
    model: SentenceTransformer,
    specs: Sequence[DatasetSpec],
    columns: dict[str, list[str]],
    mini_batch_num_tokens: int | None,
) -> dict[str, nn.Module]:
    """The loss of each dataset; one of classes is told whether its rows have labels, one for retrieval whether scores.

    Raises:
        InputError: a loss would learn from scores that are not there.
        ValueError: a loss cannot be made.
    """
    tasks = {}
    common = config.loss.distillation
    for spec in specs:
        has_label = "label" in columns[spec.name]
        options = dict(spec.loss)
        if spec.task in LABELLED_TASKS and has_label:
            options["labelled"] = True
        if spec.task == "retrieval" and not has_label:
            options["distillation"] = _unscored(spec, common)
        tasks[spec.name] = (spec.task, options)
    if (
        common is not None
        and _learns_from_scores(common, DistillationSettings.of(common))
        and not any(spec.task == "retrieval" and "label" in columns[spec.name] for spec in specs)
    ):
        raise InputError(
            f"loss.distillation needs a retrieval dataset with a teacher's scores, got none; {_NAME_SCORES}"
        )
    given: dict[str, Any] = {**vars(config.loss), "mini_batch_num_tokens": mini_batch_num_tokens}
    return build_losses(model, tasks, **given)


def _unscored(spec: DatasetSpec, common: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """What a dataset without scores learns beside the contrastive term, if anything."""
    own: Any = spec.loss.get("distillation", {})
    if own is None or (not own and common is None):
        return None
    settings = DistillationSettings.of(common, own, place=f"loss.distillation of dataset {spec.name!r}")
    if own and _learns_from_scores(own, settings):
        raise InputError(
            f"loss.distillation of dataset {spec.name!r} needs a teacher's scores, got none; {_NAME_SCORES}"
        )
    return {**own, "weight": 0.0} if settings.needs_no_scores else None


def _learns_from_scores(written: Mapping[str, object], settings: DistillationSettings) -> bool:
    """Whether that is meant: the weight is there by itself, also beside terms that need no scores."""
    return bool(settings.weight) and ("weight" in written or not settings.needs_no_scores)
