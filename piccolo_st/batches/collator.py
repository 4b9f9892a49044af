"""Columns of a batch -> the tensors that sentence-transformers' losses read.

    (1) take whole columns where the dataset gives them (``ColumnBatch``), or collect them from rows;
    (2) a column whose cells are lists of texts is *sampled*: from the first two columns (query, positive) one text a
        row, from the others ``num_negatives`` or all. Which ones is a function of (seed, row, visit), and successive
        visits to a row go through its list before any text comes twice;
    (3) the lists left are flattened in row order; ``{column}_owner`` says which row each text belongs to. A negative
        that is missing (None) makes its column such a list, with one text a row or none (a trainer other than
        PiccoloTrainer must be given the dataset through ``list_missing``). Where a column has no text at all, the
        other negatives have owners too, so that every rank sees a batch of the same kind;
    (4) ``{column}_text_id`` is a 64-bit hash of the text before any instruction: equal texts are equal on every rank,
        those among them that differ in case, width, blanks or line ends alone;
        where there is a guide, ``{column}_guide`` holds its embeddings of the texts, and ``{column}_teacher`` a
        teacher's;
    (5) a label that lists a score for each text after the first column's becomes ``{column}_score``, of the texts that
        were taken; it stays the label as well where every column has one text a row, as ST's losses read it;
    (6) each column is tokenized at once, with the prompt, task and length limit that its role has, as the model's
        ``preprocess`` does (``FastPreprocess``); where it has several prompts each row draws one.

The result, for each text column in order: ``{column}_input_ids``, ``_attention_mask`` and what else the tokenizer
makes, (texts, length) int64; ``_task``, "query" or "document"; ``_text_id`` (texts,) int64, perhaps ``_guide`` and
``_teacher`` (texts, dimensions) float32 and ``_score`` (texts,) float32; for a list column ``_owner`` (texts,) int64,
and nothing at all where every list is empty. Besides ``label``, ``dataset_name`` and ``row_ids`` (rows,) int64, the
rows' numbers in their dataset, where they are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers.base.data_collator import DEFAULT_LABEL_COLUMNS
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers.utils import logging

from piccolo_st.batches.lists import FIRST_NEGATIVE, ListSampler, present
from piccolo_st.batches.reading import ColumnBatch
from piccolo_st.batches.tokenization import FastPreprocess
from piccolo_st.batches.windows import row_groups
from piccolo_st.errors import InputError
from piccolo_st.hashing import plain_text, text_hashes
from piccolo_st.modeling import Task, column_task

logger = logging.get_logger(__name__)

EmbeddingReader = Callable[[str | None, Sequence[str], Task], NDArray[np.float32] | None]
"""A dataset's name, texts, and as what they are read -> (texts, dimensions), or None for a dataset without."""


@dataclass
class PiccoloDataCollator(SentenceTransformerDataCollator):
    """ST's collator, with list columns, text ids and tasks by role.

    Args:
        seed: of the sampling from lists. Default 0.
        num_negatives: texts taken from each list of negatives at a visit, at most; None, the default, takes all.
        text_ids: whether ``{column}_text_id`` is made. Default True.
        guide: gives a guide's embeddings, (texts, dimensions) float32, of a dataset's texts without any instruction,
            read as the task says, or None; for ``PiccoloLoss(guide=...)``. Default None.
        teacher: the same of the embeddings that ``DistillationLoss`` learns from. Default None.
        phrasings: dataset -> column -> instructions, of which each row draws one at every visit, in the place of the
            column's prompt. Default none.

    The other arguments are ST's, whose trainer passes ``prompts`` and ``router_mapping`` of its arguments only to a
    collator that it makes itself: give ``data_collator=PiccoloDataCollator(model.preprocess, prompts=arguments.prompts,
    router_mapping=arguments.router_mapping)``, or rows train without instructions. ``max_length`` may also be dataset
    name -> task -> tokens. A column that ``router_mapping`` does not name has the task "query" if its name says so
    (``instructions.column_task``), else "document".

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
    guide: EmbeddingReader | None = None
    teacher: EmbeddingReader | None = None
    phrasings: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

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
        labels = None if label is None else columns.pop(label)
        if not columns:
            raise InputError(
                f"a batch needs a column of texts, got only {label or 'no column'} in {where(0)}; give the dataset one"
            )

        self._warn_about_ids(list(columns))
        routes: dict[str, str] = {column: column_task(column, columns) or "document" for column in columns}
        routes.update(self._resolve_router_mapping(batch))
        prompts = self._resolve_prompts(batch)
        limits = self._resolve_max_length(name)
        visit = getattr(features, "visit", None)
        sampler = ListSampler(columns, self.seed, self.num_negatives, row_ids, visit, where)
        sampled = {
            column: sampler.texts_of(column, place, cells) for place, (column, cells) in enumerate(columns.items())
        }
        scores = sampler.scores_of(labels)
        if label is not None and labels is not None and not (scores and sampler.lists):
            batch["label"] = _labels(label, labels, where)
        ragged = any(not texts for texts, _ in sampled.values())
        for position, (column, (texts, owners)) in enumerate(sampled.items()):
            if ragged and position >= FIRST_NEGATIVE and owners is None:
                owners = np.arange(len(texts))
            for index, text in enumerate(texts):
                if type(text) is not str:
                    raise InputError(
                        f"{where(index if owners is None else owners[index])} must hold text in column {column!r}, got "
                        f"{text!r}; drop such rows, or call a column of labels one of "
                        f"{', '.join(self.valid_label_columns)}"
                    )
            if texts:
                text = cast(Sequence[str], texts)
                wordings = self._of_dataset(self.phrasings, name, "phrasings").get(column)
                drawn = None if wordings is None else sampler.draw(wordings, position, owners)
                batch |= self._features(column, text, owners, routes, drawn or prompts, limits)
                if column in scores:
                    batch[f"{column}_score"] = torch.from_numpy(scores[column])
                for key, reader in (("guide", self.guide), ("teacher", self.teacher)):
                    seen = None if reader is None else reader(name, text, cast(Task, routes[column]))
                    if seen is not None:
                        batch[f"{column}_{key}"] = torch.from_numpy(seen)
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
        prompts: list[str] | str | dict[str, str] | None,
        limits: Mapping[str, int] | int | None,
    ) -> dict[str, object]:
        """Steps (4) and (6) for one column."""
        task = routes[column]
        limit = limits.get(task) if isinstance(limits, Mapping) else limits
        if isinstance(prompts, list):
            tokens = self._tokenize([own + text for own, text in zip(prompts, texts, strict=True)], None, task, limit)
        else:
            prompt = None if prompts is None else self._get_prompt_for_column(prompts, column)
            tokens = self._tokenize(texts, prompt, task, limit)
        features = {f"{column}_{key}": value for key, value in tokens.items()}
        features[f"{column}_task"] = task
        if self.text_ids:
            features[f"{column}_text_id"] = torch.from_numpy(text_hashes(plain_text(pa.array(texts))).view(np.int64))
        if owners is not None:
            features[f"{column}_owner"] = torch.from_numpy(owners)
        return features

    def _resolve_max_length(self, dataset_name: str | None) -> Mapping[str, int] | int | None:
        """The limit of the batch's dataset, or of each of its tasks; where there is none, the model's holds."""
        limits = cast("Mapping[str, Any] | int | None", self.max_length)  # ST knows no datasets here
        if isinstance(limits, Mapping) and any(isinstance(value, Mapping) for value in limits.values()):
            return self._of_dataset(limits, dataset_name, "max_length")
        return limits

    @staticmethod
    def _of_dataset(given: Mapping[str, Any], dataset_name: str | None, what: str) -> Any:
        """What is given for the dataset of a batch, an empty mapping where nothing is."""
        if given and dataset_name is None:
            logger.warning_once(
                f"{what} of PiccoloDataCollator is given for datasets by name ({', '.join(given)}) and does nothing "
                "for a batch that does not say which it is of: sentence-transformers names batches where the loss or "
                "the prompts are a dict by dataset, PiccoloTrainer those of every DatasetDict; use one of them"
            )
        return given.get(dataset_name or "", {})


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
    if not isinstance(data, Dataset) or row_groups(data) is not None:  # each row of a streamed one has been checked
        return data
    label = next((name for name in labels if name in data.column_names), None)
    names = [name for name in data.column_names if name not in (label, "dataset_name")]
    missing = [name for name in names if data.data.column(name).null_count]
    for name in names[:FIRST_NEGATIVE]:
        if name in missing and (rows := _rows_missing(data, name)):
            raise InputError(
                f"each row{where} must have a text in column {name!r}, got None in {len(rows)} of {len(data)} rows, "
                f"the first of them row {rows[0]}; drop such rows"
            )
    columns = tuple(name for name in missing if name in names[FIRST_NEGATIVE:])
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
        batch.update({name: [list(present(cell)) for cell in batch[name]] for name in self.columns if name in batch})
        return batch


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
