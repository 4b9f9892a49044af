"""Columns of a batch -> the tensors that sentence-transformers' losses read.

    (1) take whole columns where the dataset gives them (``ColumnBatch``), or collect them from rows;
    (2) a column whose cells are lists of texts is *sampled*: from the first two columns (query, positive) one text a
        row, from the others ``num_negatives`` or all. Which ones is a function of (seed, row, visit), and successive
        visits to a row go through its list before any text comes twice;
    (3) the lists left are flattened in row order; ``{column}_owner`` says which row each text belongs to. A negative
        that is missing (None) makes its column such a list, with one text a row or none;
    (4) ``{column}_identity`` is a 64-bit hash of the text before any instruction: equal texts are equal on every rank;
    (5) each column is tokenized at once, with the prompt, task and length limit that its role has, as the model's
        ``preprocess`` does (``FastPreprocess``).

The result, for each text column in order: ``{column}_input_ids``, ``_attention_mask`` and what else the tokenizer
makes, (texts, length) int64; ``_task``, "query" or "document"; ``_identity`` (texts,) int64; for a list column
``_owner`` (texts,) int64, and nothing at all where every list is empty. Besides ``label``, ``dataset_name`` and
``row_ids`` (rows,) int64, the rows' numbers in their dataset, where they are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers.utils import logging

from piccolo_st.data.duplicates import text_identities
from piccolo_st.data.permutation import mix, mix_array
from piccolo_st.data.reading import ColumnBatch
from piccolo_st.data.tokenization import FastPreprocess
from piccolo_st.errors import InputError
from piccolo_st.instructions import column_task

logger = logging.get_logger(__name__)

# Of the texts of a row, the columns before this position give one, those from it on as many as are asked for.
_FIRST_NEGATIVE = 2


@dataclass
class PiccoloDataCollator(SentenceTransformerDataCollator):
    """ST's collator, with list columns, text identities and tasks by role.

    Args:
        seed: of the sampling from lists.
        num_negatives: texts taken from each list of negatives at a visit, at most; None takes all.
        identities: whether ``{column}_identity`` is made.

    The other arguments are ST's; ``max_length`` may also be dataset name -> task -> tokens. A column that
    ``router_mapping`` does not name has the task "query" if its name says so (``instructions.column_task``), else
    "document".
    """

    seed: int = 0
    num_negatives: int | None = None
    identities: bool = True

    def __post_init__(self) -> None:
        self._tokenize = FastPreprocess(self.preprocess_fn)
        if self.num_negatives is not None and self.num_negatives < 1:
            raise InputError(f"num_negatives must be None, for all, or at least 1, got {self.num_negatives}")

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
            values = columns.pop(label)
            batch["label"] = torch.stack(list(values)) if isinstance(values[0], torch.Tensor) else torch.tensor(values)
        if not columns:
            raise InputError(
                f"a batch needs a column of texts, got only {label or 'no column'} in {where(0)}; give the dataset one"
            )

        routes: dict[str, str] = {column: column_task(column, columns) or "document" for column in columns}
        routes.update(self._resolve_router_mapping(batch))
        prompts = self._resolve_prompts(batch)
        limits = self._resolve_max_length(name)
        sampler = _ListSampler(self, columns, row_ids, getattr(features, "visit", None), where)
        for position, (column, cells) in enumerate(columns.items()):
            texts, owners = sampler.texts_of(column, position, cells)
            for index, text in enumerate(texts):
                if type(text) is not str:
                    raise InputError(
                        f"{where(index if owners is None else owners[index])} must hold text in column {column!r}, got "
                        f"{text!r}; drop such rows, or call a column of labels one of "
                        f"{', '.join(self.valid_label_columns)}"
                    )
            if texts:
                batch.update(self._features(column, position, texts, owners, routes, prompts, limits))
        return batch

    def _features(
        self,
        column: str,
        position: int,
        texts: Sequence[str],
        owners: NDArray[np.int64] | None,
        routes: dict[str, str],
        prompts: Any,
        limits: Mapping[str, int] | int | None,
    ) -> dict[str, Any]:
        """Steps (4) and (5) for one column."""
        task = routes[column]
        limit = limits.get(task) if isinstance(limits, Mapping) else limits
        tokens = self._tokenize(texts, self._get_prompt_for_column(prompts, column), task, limit)
        features = {f"{column}_{key}": value for key, value in tokens.items()}
        features[f"{column}_task"] = task
        if self.identities:
            features[f"{column}_identity"] = torch.from_numpy(text_identities(texts))
        if owners is not None:
            features[f"{column}_owner"] = torch.from_numpy(owners)
        return features

    def _resolve_max_length(self, dataset_name: str | None) -> Mapping[str, int] | int | None:
        """The limit of the batch's dataset, or of each of its tasks; where there is none, the model's holds."""
        limits: Any = self.max_length
        if isinstance(limits, Mapping) and any(isinstance(value, Mapping) for value in limits.values()):
            return limits.get(dataset_name)
        return limits


class _ListSampler:
    """Steps (2) and (3) for one batch."""

    def __init__(
        self,
        collator: PiccoloDataCollator,
        columns: Mapping[str, Sequence[Any]],
        row_ids: NDArray[np.int64] | None,
        visit: int | None,
        where: Callable[[int], str],
    ) -> None:
        self.collator, self.columns, self.row_ids, self.visit, self.where = collator, columns, row_ids, visit, where

    def texts_of(
        self, column: str, position: int, cells: Sequence[Any]
    ) -> tuple[Sequence[str], NDArray[np.int64] | None]:
        """The texts of a column in row order and, for a column with any number of texts a row, the row of each."""
        one_each = position < _FIRST_NEGATIVE
        listed = isinstance(next((cell for cell in cells if cell is not None), None), (list, tuple))
        if not listed and (one_each or None not in cells):
            return cells, None
        lists = [() if cell is None else cell if listed else (cell,) for cell in cells]
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
        words = self.row_ids
        if words is None:
            first = next(iter(self.columns.values()))
            words = text_identities([str(cell) for cell in first])
        return mix_array(mix(self.collator.seed), np.asarray(words, dtype=np.int64).view(np.uint64))

    def _visit(self) -> int:
        if self.visit is None:
            logger.warning_once(
                "Texts are sampled from lists, but the batches do not say how often their rows were read before, so "
                "every epoch samples the same; read them with piccolo_st.data.reading.homogeneous_dataloader."
            )
        return self.visit or 0


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


def _columns(features: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
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


def _where(dataset_name: str | None, row_ids: NDArray[np.int64] | None, index: int) -> str:
    """Where the row at a place of the batch stands, in words."""
    row = f"row {index} of the batch" if row_ids is None else f"row {int(row_ids[index])}"
    return row if dataset_name is None else f"{row} of dataset {dataset_name!r}"
