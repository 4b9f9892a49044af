"""What a loss of ours must find in a dataset to teach anything, and where its negatives come from.

Without it the gradient is 0 in every row, and the loss 0 too, or log 2 where PiccoloLoss has a single row without
negatives and all four directions: its own pair then stands against itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from sentence_transformers.base.data_collator import DEFAULT_LABEL_COLUMNS
from torch import nn

from piccolo_st.errors import InputError
from piccolo_st.losses.distillation import DistillationLoss
from piccolo_st.losses.hybrid import OwnNegativesLoss, ScoredPairsLoss
from piccolo_st.losses.piccolo import PiccoloLoss
from piccolo_st.losses.sincere import SINCERELoss

_NO_TEXTS = {*DEFAULT_LABEL_COLUMNS, "dataset_name"}


def check_needs(name: str, loss: nn.Module, dataset: object, rows: int, world_size: int) -> None:
    """Refuse a dataset that its loss could learn nothing from.

    Nothing is said of another's loss, of a stream, nor of a dataset whose transform makes columns.

    Args:
        name: of the dataset.
        loss: of the dataset; may be wrapped.
        dataset: with the columns as the trainer reads them: query, positive, negatives, label.
        rows: of a batch of one process.
        world_size: number of processes.

    Raises:
        InputError: the gradient would be 0 in every row.
    """
    loss = _innermost(loss)
    if not isinstance(dataset, Dataset) or _makes_columns(dataset):
        return
    if (fault := _shortage(loss, dataset, rows, world_size)) is not None:
        raise InputError(f"the loss of dataset {name!r}, {type(loss).__name__}, {fault}")


def negatives_from(loss: nn.Module, dataset: Dataset) -> str:
    """Where the negatives of a row come from, in words, with the number of its own where it has any."""
    loss = _innermost(loss)
    if isinstance(loss, SINCERELoss):
        return "other labels"
    if isinstance(loss, ScoredPairsLoss):
        return "other scores"
    own = _counted(dataset)
    if isinstance(loss, OwnNegativesLoss):
        return f"own: {own or 'none'}"
    if isinstance(loss, DistillationLoss) and loss.distillation.weight:
        return f"{'in batch, ' * bool(loss.distillation.contrastive_weight)}own: {own or 'none'}, scored"
    return "in batch" if own is None else f"in batch, own: {own}"


def _innermost(loss: nn.Module) -> nn.Module:
    """The loss inside WeightedLoss, MatryoshkaLoss and the like."""
    while isinstance(inner := getattr(loss, "loss", None), nn.Module):
        loss = inner
    return loss


def _makes_columns(dataset: Dataset) -> bool:
    """Whether a transform makes columns, beside the name that ST's trainer puts there and collators take away."""
    made = set(dataset[:1]) - set(dataset.column_names) if dataset.format["type"] == "custom" else set()
    return bool(made - {"dataset_name"})


def _shortage(loss: nn.Module, dataset: Dataset, rows: int, world_size: int) -> str | None:
    """Why a dataset gives its loss nothing to learn from, with the remedy; None if it does."""
    taught = loss.distillation if isinstance(loss, DistillationLoss) else None
    if taught is not None and not taught.contrastive_weight:
        if taught.teachers or _has_negatives(dataset):
            return None
        return (
            "learns from the scores of each row's negatives alone, and no row has one; give it a column of scored "
            "negatives, or raise contrastive_weight of distillation"
        )
    if isinstance(loss, OwnNegativesLoss):
        if _has_negatives(dataset):
            return None
        return (
            "compares each row with its own negatives, and no row has one; give it a column of negatives, a `label` "
            "(`columns: {label: NAME}`), or the task retrieval (PiccoloLoss), where rows stand against each other"
        )
    if isinstance(loss, (SINCERELoss, ScoredPairsLoss)):
        what = "label" if isinstance(loss, SINCERELoss) else "score"
        if not _labels_differ(dataset):
            return f"compares rows of different {what}s, and all rows have the same; check `columns`, or leave it out"
    elif not isinstance(loss, PiccoloLoss):
        return None
    alone = not getattr(loss, "gather_across_devices", True)
    seen = rows if alone else rows * world_size
    if seen > 1 or (not isinstance(loss, (SINCERELoss, ScoredPairsLoss)) and _has_negatives(dataset)):
        return None
    of = "one process" if alone else "all processes"
    return (
        f"compares the rows of a batch with each other, and a batch of {of} has {seen}; raise the batch "
        "size (data.batch_size, in Python per_device_train_batch_size) to 2 or more"
    )


def negatives_of_rows(dataset: Dataset) -> tuple[int, int]:
    """The fewest and the most negatives that a row has, read off at most 1,000 rows."""
    columns = _negative_columns(dataset)
    if not columns or not len(dataset):
        return 0, 0
    sample = dataset[: min(len(dataset), 1000)][columns[0]]
    if isinstance(sample[0], str):
        return len(columns), len(columns)
    counts = [len(texts) for texts in sample]
    return min(counts), max(counts)


def _counted(dataset: Dataset) -> str | None:
    """How many that is, in words; None without a column of them."""
    if not _negative_columns(dataset):
        return None
    fewest, most = negatives_of_rows(dataset)
    return str(fewest) if fewest == most else f"{fewest} to {most}"


def _negative_columns(dataset: Dataset) -> list[str]:
    return [name for name in dataset.column_names if name not in _NO_TEXTS][2:]


def _has_negatives(dataset: Dataset) -> bool:
    columns = _negative_columns(dataset)
    return any(map(_has_texts, _parts(dataset, columns)))


def _has_texts(values: pa.Array) -> bool:
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = pc.list_flatten(values)
    return bool(values.null_count < len(values))


def _labels_differ(dataset: Dataset) -> bool:
    """Whether the labels have two values that differ; without labels, the loss has its own error."""
    column = [name for name in dataset.column_names if name in DEFAULT_LABEL_COLUMNS][:1]
    if not column:
        return True
    found: set[object] = set()
    for values in _parts(dataset, column):
        found.update(pc.unique(values).to_pylist())
        if len(found) > 1:
            return True
    return False


def _parts(dataset: Dataset, columns: Collection[str]) -> Iterator[pa.ChunkedArray]:
    """The columns, in pieces, as Arrow holds them: what decides is mostly in the first."""
    if columns:
        for table in dataset.select_columns(list(columns)).with_format("arrow").iter(10_000):
            yield from table.columns
