"""Embed the rows of several columns together, with little padding, and return them in their own order.

A batch comes as one feature dict a column, each padded to its longest row. Embedding the columns one after the other
computes that padding: half of all tokens on short Chinese questions. Here:

(1) Columns that the model treats alike become one group: same keys, same settings (``prompt_length``, and ``task``
    where the model reads it). Padding before a row's tokens first goes behind them. Flattened columns
    (``cu_seq_lens_q``, or ``offsets`` as StaticEmbedding has them), those without an attention mask, those that are not
    text alone (images have tensors that do not go by row), and those padded on the left for a model that counts
    positions from the padding, are groups of their own and are embedded as they came.
(2) Within a group all rows are sorted by length, longest first.
(3) The sorted rows are cut into chunks (``cutting.py``), each no wider than its longest row.
(4) Each chunk is one forward pass.
(5) The embeddings are put back in order and split into columns.

Loss and gradients are those of the padded batch up to rounding; only dropout draws other masks. The same groups serve
gradient caching: there ST's ``CachedLossMixin`` cuts its mini-batches from a few parts of the sorted rows, in place of
(3) and (4).

The caller's feature dicts are never changed: the model always gets new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeGuard

import torch
import torch.nn.functional as F
from sentence_transformers.base.losses.merged_forward import merge_feature_batches
from sentence_transformers.base.modules import Router
from torch import Tensor, nn

from piccolo_st.distributed import last_forward_syncs
from piccolo_st.modeling.cutting import chunk_ranges, few_chunks, token_chunks
from piccolo_st.modeling.packed.packing import ROW_LENGTHS, packs_now
from piccolo_st.modeling.packed.varlen import Features as Features
from piccolo_st.modeling.positions import counts_from_padding

# What the collator writes for the loss and no model may see: whose row a hard negative is, which text a row holds, and
# what a guide or teachers make of it and a teacher scores it.
BOOKKEEPING = ("owner", "text_id", "guide", "teacher", "score")


def without_bookkeeping(features: Features) -> Features:
    """A new dict with the keys that are meant for the model."""
    return {key: value for key, value in features.items() if key not in BOOKKEEPING}


def row_borders(features: Features) -> Tensor | None:
    """Where each row of flattened features begins among their tokens, and the last one's end: (rows + 1,) int64.

    None where the features are not flattened.
    """
    if "cu_seq_lens_q" in features:
        return features["cu_seq_lens_q"].long()
    ids, offsets = features.get("input_ids"), features.get("offsets")
    if isinstance(ids, Tensor) and isinstance(offsets, Tensor) and ids.ndim == 1:
        return torch.cat([offsets.long(), offsets.new_tensor([len(ids)], dtype=torch.int64)])
    return None


def row_count(features: Features) -> int:
    """The number of inputs in one column's features, padded or flattened.

    Raises:
        ValueError: no key says it.
    """
    borders = row_borders(features)
    if borders is not None:
        return len(borders) - 1
    for key in ("text_id", "input_ids", "attention_mask", "sentence_embedding"):
        if isinstance(features.get(key), Tensor):
            return features[key].shape[0]
    for value in features.values():
        if isinstance(value, Tensor) and value.ndim > 0:
            return value.shape[0]
    raise ValueError(f"features without any tensor have no rows; got the keys {sorted(features)}")


@dataclass(frozen=True)
class RowGroup:
    """Rows of one or more columns that one forward pass can take.

    Attributes:
        features: of all rows, longest first, padded to the longest; as they came where ``lengths`` is None.
        lengths: tokens of each row, longest first; None for a group that is not sorted and not cut.
        padded: tokens of the columns as they came, each padded to its longest row.
    """

    features: Features
    lengths: tuple[int, ...] | None
    padded: int = 0

    def chunks(self, chunk_tokens: int | str | None, packed: bool = False) -> list[Features]:
        """Features of each chunk, trimmed to its longest row. See :func:`cutting.chunk_ranges`."""
        if self.lengths is None:
            return [dict(self.features)]
        device = _device(self.features).type
        return self._cut(self.lengths, chunk_ranges(self.lengths, chunk_tokens, device, packed, self.padded))

    def parts(self, packed: bool = False, tokens: int | None = None) -> list[Features]:
        """Features of few parts that mini-batches are cut from: with padding, no more of it than the columns had.

        With padding, a part has no more than ``tokens`` tokens: ST counts those of a mini-batch without its padding.
        """
        if self.lengths is None or packed:
            return [dict(self.features)]
        parts = few_chunks(self.lengths, self.padded)
        cuts = [(first, cut) for first, end in parts for cut in token_chunks(self.lengths[first:end], tokens)]
        return self._cut(self.lengths, [(first + begin, first + end) for first, (begin, end) in cuts])

    def _cut(self, lengths: Sequence[int], ranges: Iterable[tuple[int, int]]) -> list[Features]:
        total, width = len(lengths), max(1, lengths[0])
        chunks = []
        for begin, end in ranges:
            chunk = {}
            for key, value in self.features.items():
                if _is_per_token(value, key, total, width):
                    value = value[begin:end, : max(1, lengths[begin])]
                elif _is_per_row(value, key, total):
                    value = value[begin:end]
                chunk[key] = value
            chunks.append(chunk)
        return chunks


@dataclass(frozen=True)
class SortedRows:
    """All rows of a batch, grouped and sorted, and the way back.

    Attributes:
        groups: see :class:`RowGroup`.
        position: (rows,) int64 on the features' device: where the groups, one after the other, hold each row of the
            columns, one after the other.
        sizes: rows of each column.
    """

    groups: tuple[RowGroup, ...]
    position: Tensor
    sizes: tuple[int, ...]

    def split(self, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of the groups' rows, in the groups' order and in any number of parts, as one tensor a column.

        Raises:
            ValueError: more or fewer embeddings than rows.
        """
        rows = torch.cat(list(embeddings)) if len(embeddings) > 1 else embeddings[0]
        _check_rows(len(rows), sum(self.sizes), [key for group in self.groups for key in group.features])
        return list(rows.index_select(0, self.position).split(self.sizes))


def sort_rows(columns: Sequence[Features], model: nn.Module, packed: bool = False) -> SortedRows:
    """Steps (1) and (2). Waits for the device once, for the lengths.

    Args:
        columns: features of each column; the loss's own keys (``BOOKKEEPING``) are left out.
        model: what the rows are for.
        packed: whether the model packs the rows: then it is told their lengths, so that it need not wait for them.
    """
    reads_task = model_reads_task(model)
    plain = [without_bookkeeping(features) for features in columns]
    sizes = tuple(row_count(features) for features in columns)
    lengths, whole, left_padded = _lengths(plain)
    for index in (place for place, left in enumerate(left_padded) if left):
        if counts_from_padding(model):
            lengths[index] = None
        else:
            plain[index] = _pad_right(plain[index], sizes[index])
    members: dict[object, list[int]] = {}
    for index, (features, column_lengths) in enumerate(zip(plain, lengths, strict=True)):
        key = index if column_lengths is None else _signature(features, sizes[index], reads_task)
        members.setdefault(key, []).append(index)

    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    groups, order = [], []
    for indices in members.values():
        rows = [row for index in indices for row in range(starts[index], starts[index] + sizes[index])]
        group_lengths = [length for index in indices for length in lengths[index] or ()]
        if not group_lengths:
            groups.append(RowGroup(plain[indices[0]], None))
            order += rows
            continue
        by_length = sorted(range(len(rows)), key=lambda row: -group_lengths[row])
        merged = _merge([plain[index] for index in indices], [sizes[index] for index in indices], by_length)
        merged = _trim(merged, len(rows), group_lengths)
        by_row = tuple(group_lengths[row] for row in by_length)
        if packed and all(whole[index] for index in indices):
            merged[ROW_LENGTHS] = torch.tensor(by_row)
        groups.append(RowGroup(merged, by_row, sum(sizes[index] * max(lengths[index] or [0]) for index in indices)))
        order += [rows[row] for row in by_length]

    position = torch.empty(len(order), dtype=torch.int64)
    position[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
    return SortedRows(tuple(groups), position.to(_device(plain[0]), non_blocking=True), sizes)


def model_reads_task(model: nn.Module) -> bool:
    """Whether ``task`` in the features changes what the model computes: it has a Router, or its encoder asks for it."""
    return any(
        isinstance(module, Router) or "task" in getattr(module, "_declared_forward_params", ())
        for module in model.modules()
    )


def embed_columns(model: nn.Module, columns: Sequence[Features], chunk_tokens: int | str | None = None) -> list[Tensor]:
    """Embed all columns, steps (1) to (5).

    Args:
        model: a SentenceTransformer, or DistributedDataParallel or DeepSpeed's engine around one.
        columns: features of each column.
        chunk_tokens: the largest forward pass, in tokens, padding included; "auto": what suits the device. None: one
            forward pass for all rows that the model treats alike.

    Returns:
        (rows, dim) for each column.

    Raises:
        ValueError: the model gives more or fewer embeddings than the features have rows.
    """
    if columns_stay_apart():
        return _embed_in_place(model, columns)
    packed = packs_now(model)
    rows = sort_rows(columns, model, packed)
    chunks = [chunk for group in rows.groups for chunk in group.chunks(chunk_tokens, packed)]
    embeddings = []
    for number, chunk in enumerate(chunks, start=1):
        with last_forward_syncs(model, last=number == len(chunks)):
            embeddings.append(model(chunk)["sentence_embedding"])
    return rows.split(embeddings)


def columns_stay_apart() -> bool:
    """Whether a loss around this one keeps state in the features of each column, so that none may be merged.

    ST's AdaptiveLayerLoss does, and says so to ST's own losses by ``column_merging_disabled``: what they would merge
    otherwise, they then do not.
    """
    row = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
    return merge_feature_batches([row, row]) is None


def _embed_in_place(model: nn.Module, columns: Sequence[Features]) -> list[Tensor]:
    """Embed column by column, and leave in each column's features what the model wrote, as ST's losses do."""
    embeddings = []
    for number, features in enumerate(columns, start=1):
        with last_forward_syncs(model, last=number == len(columns)):
            output = model(without_bookkeeping(features))
        embeddings.append(output["sentence_embedding"])
        _check_rows(len(embeddings[-1]), row_count(features), features)
        features.update(output)
    return embeddings


def _check_rows(embeddings: int, rows: int, keys: Iterable[str]) -> None:
    if embeddings != rows:
        raise ValueError(
            f"the model must give one embedding for each row, got {embeddings} for what looks like {rows} rows by the "
            f"features {sorted(set(keys))}; let its first module give each row's features their first dimension, or "
            "collate with PiccoloDataCollator, which counts the rows itself"
        )


def _device(features: Features) -> torch.device:
    return next(value.device for value in features.values() if isinstance(value, Tensor))


def _is_per_row(value: object, key: str, rows: int) -> TypeGuard[Tensor]:
    """Whether a feature has one entry for each row. ``prompt_length`` never counts: ST reads it as one number."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows and key != "prompt_length"


def _is_per_token(value: object, key: str, rows: int, width: int) -> TypeGuard[Tensor]:
    """Whether a feature has one entry for each token of each row."""
    return _is_per_row(value, key, rows) and value.ndim >= 2 and value.shape[1] == width


def _goes_by_row(features: Features) -> bool:
    """Whether these are padded texts alone, of which any tensor can be sorted and cut by row."""
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] == 0 or row_borders(features) is not None:
        return False
    return features.get("modality", "text") == "text" and all(
        _is_per_row(value, key, len(mask))
        for key, value in features.items()
        if isinstance(value, Tensor) and value.ndim > 0 and key != "prompt_length"
    )


def _lengths(columns: Sequence[Features]) -> tuple[list[list[int] | None], list[bool], list[bool]]:
    """Tokens of each row from its first to its last one, by column; None where rows cannot be sorted and trimmed.

    And whether all of each row's tokens there count, and are any; and whether a row begins with padding.
    """
    parts: list[Tensor] = []
    for features in columns:
        mask = features.get("attention_mask")
        if mask is None or not _goes_by_row(features):
            continue
        present = mask != 0
        length = (present * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1) - _padding_before(mask)
        left_padded = (~present[:, :1] & present.any(dim=1, keepdim=True)).any()
        whole = ((present.sum(dim=1) == length) & (length > 0)).all()
        parts.append(torch.cat([torch.stack([left_padded, whole]).long(), length]))
    values = iter(torch.cat(parts).tolist() if parts else [])
    lengths: list[list[int] | None] = []
    wholes, lefts = [], []
    for features in columns:
        by_row = _goes_by_row(features)
        lefts.append(by_row and bool(next(values)))
        wholes.append(by_row and bool(next(values)))
        lengths.append(list(islice(values, len(features["attention_mask"]))) if by_row else None)
    return lengths, wholes, lefts


def _padding_before(mask: Tensor) -> Tensor:
    """Tokens of padding before the first one of each row, (rows,)."""
    return (mask != 0).int().argmax(dim=1)


def _pad_right(features: Features, rows: int) -> Features:
    """``features`` with the padding that is before the tokens of each row behind them."""
    mask = features["attention_mask"]
    width = mask.shape[1]
    place = (torch.arange(width, device=mask.device) + _padding_before(mask)[:, None]) % width  # (rows, width)
    return {
        key: value.take_along_dim(place.view(rows, width, *[1] * (value.ndim - 2)), dim=1)
        if _is_per_token(value, key, rows, width)
        else value
        for key, value in features.items()
    }


def _signature(features: Features, rows: int, reads_task: bool) -> object:
    """Equal for two columns exactly when one forward pass can take both."""
    width = features["attention_mask"].shape[1]
    described: list[tuple[object, ...]] = []
    for key, value in sorted(features.items()):
        if key == "task" and not reads_task:
            continue
        if not _is_per_row(value, key, rows):
            described.append((key, repr(value.tolist() if isinstance(value, Tensor) else value)))
        elif _is_per_token(value, key, rows, width):
            described.append((key, value.dtype, "tokens", tuple(value.shape[2:])))
        else:
            described.append((key, value.dtype, tuple(value.shape[1:])))
    return tuple(described)


def _merge(columns: Sequence[Features], sizes: Sequence[int], order: Sequence[int]) -> Features:
    """The columns' rows in ``order``, padded to the widest column. A value that is not per row is the first's."""
    widest = max(features["attention_mask"].shape[1] for features in columns)
    index = torch.tensor(order, dtype=torch.int64).to(_device(columns[0]), non_blocking=True)
    merged = {}
    for key, first in columns[0].items():
        if not _is_per_row(first, key, sizes[0]):
            merged[key] = first
            continue
        values = [features[key] for features in columns]
        if _is_per_token(first, key, sizes[0], columns[0]["attention_mask"].shape[1]):
            # Padding with zeros is safe for any token-wise feature: the mask is zero there too.
            values = [F.pad(value, (0, 0) * (value.ndim - 2) + (0, widest - value.shape[1])) for value in values]
        merged[key] = torch.cat(values).index_select(0, index)
    return merged


def _trim(features: Features, rows: int, lengths: Sequence[int]) -> Features:
    """``features`` no wider than the longest row."""
    width, longest = features["attention_mask"].shape[1], max(1, *lengths)
    return {
        key: value[:, :longest] if _is_per_token(value, key, rows, width) else value for key, value in features.items()
    }
