"""Columns of a batch -> the tensors that sentence-transformers' losses read.

    (1) take whole columns where the dataset gives them (``ColumnBatch``), or collect them from rows;
    (2) a column whose cells are lists of texts is *sampled*: from the first two columns (query, positive) one text a
        row, from the others ``num_negatives`` or all. Which ones is a function of (seed, row, visit), and successive
        visits to a row go through its list before any text comes twice;
    (3) the lists left are flattened in row order; ``{column}_owner`` says which row each text belongs to. A negative
        that is missing (None) makes its column such a list, with one text a row or none (a trainer other than
        PiccoloTrainer must be given the dataset through ``list_missing``). Where a column has no text at all, the
        other negatives have owners too, so that every rank sees a batch of the same kind;
    (4) ``{column}_text_id`` is a 64-bit hash of the text before any instruction: equal texts are equal on every rank;
    (5) each column is tokenized at once, with the prompt, task and length limit that its role has, as the model's
        ``preprocess`` does (``FastPreprocess``).

The result, for each text column in order: ``{column}_input_ids``, ``_attention_mask`` and what else the tokenizer
makes, (texts, length) int64; ``_task``, "query" or "document"; ``_text_id`` (texts,) int64; for a list column
``_owner`` (texts,) int64, and nothing at all where every list is empty. Besides ``label``, ``dataset_name`` and
``row_ids`` (rows,) int64, the rows' numbers in their dataset, where they are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers.base.data_collator import DEFAULT_LABEL_COLUMNS
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers.utils import logging

from piccolo_st.batches.reading import ColumnBatch
from piccolo_st.batches.tokenization import FastPreprocess
from piccolo_st.errors import InputError
from piccolo_st.hashing import mix, mix_array, text_hashes, text_ids
from piccolo_st.modeling import column_task

logger = logging.get_logger(__name__)

# Of the texts of a row, the columns before this position give one, those from it on as many as are asked for.
_FIRST_NEGATIVE = 2


@dataclass
class PiccoloDataCollator(SentenceTransformerDataCollator):
    """ST's collator, with list columns, text ids and tasks by role.

    Args:
        seed: of the sampling from lists. Default 0.
        num_negatives: texts taken from each list of negatives at a visit, at most; None, the default, takes all.
        text_ids: whether ``{column}_text_id`` is made. Default True.

    The other arguments are ST's; ``max_length`` may also be dataset name -> task -> tokens. A column that
    ``router_mapping`` does not name has the task "query" if its name says so (``instructions.column_task``), else
    "document".

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from piccolo_st import PiccoloDataCollator
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> collator = PiccoloDataCollator(model.preprocess, num_negatives=2)
        >>> batch = collator([
        ...     {"query": "天气", "positive": "晴", "negative": ["猫", "狗", "鱼"]},
        ...     {"query": "山", "positive": "川", "negative": ["雨"]},
        ... ])
        >>> batch["query_task"], batch["positive_task"], batch["negative_owner"].tolist()
        ('query', 'document', [0, 0, 1])
    """

    seed: int = 0
    num_negatives: int | None = None
    text_ids: bool = True

    def __post_init__(self) -> None:
        self._tokenize = FastPreprocess(self.preprocess_fn)
        if self.num_negatives is not None and self.num_negatives < 1:
            raise InputError(f"num_negatives must be None, for all, or at least 1, got {self.num_negatives}")

    def __call__(self, features: Sequence[Mapping[str, object]] | ColumnBatch) -> dict[str, Any]:
        """Collate one batch.

        Args:
            features: the batch's rows, or a ColumnBatch.

        Raises:
            InputError: rows with different columns, a cell that is no text, an empty list where one text is needed,
                or a batch without any text column.
        """
        if not len(features):
            return {}
        columns = _columns(features)
        batch: dict[str, Any] = {}
        name = columns.pop("dataset_name", [getattr(features, "dataset_name", None)])[0]
        if name is not None:
            batch["dataset_name"] = name
        row_ids = getattr(features, "row_ids", None)
        if row_ids is not None:
            batch["row_ids"] = torch.from_numpy(np.asarray(row_ids, dtype=np.int64))
        where = partial(_where, name, row_ids)
        if tuple(columns) not in self._warned_columns:
            self.maybe_warn_about_column_order(list(columns))
        label = next((column for column in self.valid_label_columns if column in columns), None)
        if label is not None:
            batch["label"] = _labels(label, columns.pop(label), where)
        if not columns:
            raise InputError(
                f"a batch needs a column of texts, got only {label or 'no column'} in {where(0)}; give the dataset one"
            )

        self._warn_about_ids(list(columns))
        routes: dict[str, str] = {column: column_task(column, columns) or "document" for column in columns}
        routes.update(self._resolve_router_mapping(batch))
        prompts = self._resolve_prompts(batch)
        limits = self._resolve_max_length(name)
        sampler = _ListSampler(self, columns, row_ids, getattr(features, "visit", None), where)
        sampled = {
            column: sampler.texts_of(column, place, cells) for place, (column, cells) in enumerate(columns.items())
        }
        ragged = any(not texts for texts, _ in sampled.values())
        for position, (column, (texts, owners)) in enumerate(sampled.items()):
            if ragged and position >= _FIRST_NEGATIVE and owners is None:
                owners = np.arange(len(texts))
            for index, text in enumerate(texts):
                if type(text) is not str:
                    raise InputError(
                        f"{where(index if owners is None else owners[index])} must hold text in column {column!r}, got "
                        f"{text!r}; drop such rows, or call a column of labels one of "
                        f"{', '.join(self.valid_label_columns)}"
                    )
            if texts:
                batch |= self._features(column, cast(Sequence[str], texts), owners, routes, prompts, limits)
        return batch

    def _warn_about_ids(self, columns: Sequence[str]) -> None:
        """As the stock collator, say which columns look like ids."""
        ids = [name for name in columns if name == "id" or name.endswith(("_id", "_ids", "_idx"))]
        if ids:
            logger.warning_once(
                f"Columns named like ids are trained on as text: {ids}. Put the texts that they stand for in their "
                "place, e.g. with sentence_transformers.util.resolve_ids, or remove them from the dataset."
            )

    def _features(
        self,
        column: str,
        texts: Sequence[str],
        owners: NDArray[np.int64] | None,
        routes: dict[str, str],
        prompts: str | dict[str, str] | None,
        limits: Mapping[str, int] | int | None,
    ) -> dict[str, object]:
        """Steps (4) and (5) for one column."""
        task = routes[column]
        limit = limits.get(task) if isinstance(limits, Mapping) else limits
        prompt = None if prompts is None else self._get_prompt_for_column(prompts, column)
        features = {f"{column}_{key}": value for key, value in self._tokenize(texts, prompt, task, limit).items()}
        features[f"{column}_task"] = task
        if self.text_ids:
            features[f"{column}_text_id"] = torch.from_numpy(text_ids(texts))
        if owners is not None:
            features[f"{column}_owner"] = torch.from_numpy(owners)
        return features

    def _resolve_max_length(self, dataset_name: str | None) -> Mapping[str, int] | int | None:
        """The limit of the batch's dataset, or of each of its tasks; where there is none, the model's holds."""
        limits = cast("Mapping[str, Any] | int | None", self.max_length)  # ST knows no datasets here
        if isinstance(limits, Mapping) and any(isinstance(value, Mapping) for value in limits.values()):
            return limits.get(dataset_name or "")
        return limits


class _ListSampler:
    """Steps (2) and (3) for one batch."""

    def __init__(
        self,
        collator: PiccoloDataCollator,
        columns: Mapping[str, Sequence[object]],
        row_ids: NDArray[np.int64] | None,
        visit: int | None,
        where: Callable[[int], str],
    ) -> None:
        self.collator, self.columns, self.row_ids, self.visit, self.where = collator, columns, row_ids, visit, where

    def texts_of(
        self, column: str, position: int, cells: Sequence[object]
    ) -> tuple[Sequence[object], NDArray[np.int64] | None]:
        """The texts of a column in row order and, for a column with any number of texts a row, the row of each."""
        one_each = position < _FIRST_NEGATIVE
        listed = isinstance(next((cell for cell in cells if cell is not None), None), (list, tuple))
        if not listed and (one_each or None not in cells):
            return cells, None
        lists = [_present(cell) for cell in cells]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        if one_each and not lengths.all():
            raise InputError(
                f"{self.where(int(lengths.argmin()))} must list at least one text in column {column!r}, got none; drop "
                "such rows"
            )
        texts = list(chain.from_iterable(lists))
        owners = np.repeat(np.arange(len(lists)), lengths)
        count = 1 if one_each else self.collator.num_negatives
        if count is not None and lengths.max() > count:
            chosen = sample_from_lists(lengths, count, self._keys(), self._visit(), position)
            texts, owners = [texts[index] for index in chosen], owners[chosen]
        return texts, None if one_each else owners

    def _keys(self) -> NDArray[np.uint64]:
        """A 64-bit key of each row: (rows,). From its number or, where that is not known, its first text."""
        if self.row_ids is None:
            words = text_hashes(str(cell) for cell in next(iter(self.columns.values())))
        else:
            words = np.asarray(self.row_ids, dtype=np.int64).view(np.uint64)
        return mix_array(mix(self.collator.seed), words)

    def _visit(self) -> int:
        if self.visit is None:
            logger.warning_once(
                "Texts are sampled from lists, but the batches do not say how often their rows were read before, so "
                "every epoch samples the same; read them with piccolo_st.batches.reading.homogeneous_dataloader."
            )
        return self.visit or 0


def _present(cell: object) -> Sequence[object]:
    """The texts of a cell that is a list of texts, one text or None, in which any may be missing."""
    cell = cell if isinstance(cell, (list, tuple)) else (cell,)
    return [text for text in cell if text is not None] if None in cell else cell


Data = TypeVar("Data")


def list_missing(data: Data, labels: Sequence[str] = DEFAULT_LABEL_COLUMNS) -> Data:
    """The same dataset, with lists of texts in those columns of negatives that miss a text (None) somewhere.

    sentence-transformers' trainer looks at a dataset for its model card before any collator does, and reads an empty
    list, but not None. PiccoloTrainer calls this itself. The lists are made when rows are read.

    Args:
        data: a ``datasets.Dataset``, or a DatasetDict. Anything else, and what misses nothing, is returned as it is.
        labels: names of columns that are no texts; the first one that a dataset has counts, as in the collator.

    Raises:
        InputError: a row has no text in one of the first two columns of texts.
    """
    if isinstance(data, Mapping):
        parts = {name: _list_missing(part, labels, f" of dataset {name!r}") for name, part in data.items()}
        return data if all(parts[name] is data[name] for name in parts) else type(data)(parts)  # type: ignore[call-arg]
    return _list_missing(data, labels, "")


def _list_missing(data: Data, labels: Sequence[str], where: str) -> Data:
    if not isinstance(data, Dataset):
        return data
    label = next((name for name in labels if name in data.column_names), None)
    names = [name for name in data.column_names if name not in (label, "dataset_name")]
    missing = [name for name in names if data.data.column(name).null_count]
    for name in names[:_FIRST_NEGATIVE]:
        if name in missing and (rows := _rows_missing(data, name)):
            raise InputError(
                f"each row{where} must have a text in column {name!r}, got None in {len(rows)} of {len(data)} rows, "
                f"the first of them row {rows[0]}; drop such rows"
            )
    columns = tuple(name for name in missing if name in names[_FIRST_NEGATIVE:])
    if not columns:
        return data
    format = data.format
    return data.with_transform(_ListMissing(columns, format["format_kwargs"].get("transform")), format["columns"])


def _rows_missing(data: Dataset, column: str) -> list[int]:
    rows: list[int] = []
    parts = data.with_format(None).select_columns([column]).iter(batch_size=10_000)
    for number, part in enumerate(parts):
        rows += [number * 10_000 + index for index, cell in enumerate(part[column]) if cell is None]
    return rows


@dataclass(frozen=True)
class _ListMissing:
    """What ``list_missing`` does to the rows of a batch, after a transform that was there before."""

    columns: tuple[str, ...]
    before: Callable[[Mapping[str, Sequence[object]]], Mapping[str, Sequence[object]]] | None

    def __call__(self, batch: Mapping[str, Sequence[object]]) -> dict[str, Sequence[object]]:
        batch = dict(batch if self.before is None else self.before(batch))
        batch.update({name: [list(_present(cell)) for cell in batch[name]] for name in self.columns if name in batch})
        return batch


def sample_from_lists(
    lengths: NDArray[np.int64], count: int, keys: NDArray[np.uint64], visit: int, column: int
) -> NDArray[np.int64]:
    """Choose ``count`` elements of each list, or all of a shorter one.

    Each list is shuffled once, by its key; visit v takes the elements v*count to (v+1)*count of the shuffled list, and
    begins again behind its end.

    Args:
        lengths: of the lists: (rows,).
        count: elements wanted of each.
        keys: of the rows: (rows,).
        visit: how many times the rows have been read before.
        column: position of the column, so that two columns are sampled independently.

    Returns:
        int64 indices into the concatenation of the lists, ascending.
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    elements = np.arange(len(owners)) - starts[owners]
    noise = mix_array(mix(column), keys[owners] + elements.astype(np.uint64))
    ranks = np.empty_like(elements)
    ranks[np.lexsort((noise, owners))] = elements
    turn = (ranks - visit * count) % lengths[owners]
    return np.flatnonzero(turn < count)


def _columns(features: Sequence[Mapping[str, object]] | ColumnBatch) -> dict[str, Sequence[object]]:
    """Step (1)."""
    if isinstance(features, ColumnBatch):
        return dict(features.columns)
    names = list(features[0])
    for index, row in enumerate(features):
        if list(row) != names:
            raise InputError(
                f"all rows of a batch must have the same columns, got {names} in row 0 and {list(row)} in row "
                f"{index}; draw the batches with HomogeneousBatchSampler"
            )
    return {name: [row[name] for row in features] for name in names}


def _labels(column: str, values: Sequence[object], where: Callable[[int], str]) -> torch.Tensor:
    """The column of labels as one tensor, (rows,) or (rows, ...)."""
    bad = next((index for index, value in enumerate(values) if value is None or isinstance(value, str)), None)
    if bad is not None:
        raise InputError(
            f"{where(bad)} must have a number as its {column!r}, got {values[bad]!r}; drop such rows, or turn "
            "names of classes into numbers with Dataset.class_encode_column"
        )
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return torch.stack(tensors) if tensors else torch.tensor(values)


def _where(dataset_name: str | None, row_ids: NDArray[np.int64] | None, index: int) -> str:
    """Where the row at a place of the batch stands, in words."""
    row = f"row {index} of the batch" if row_ids is None else f"row {int(row_ids[index])}"
    return row if dataset_name is None else f"{row} of dataset {dataset_name!r}"
