"""What a contrastive loss must know of a batch beside its embeddings: whose hard negative is whose, and equal texts.

(1) Look at this rank's columns; a fault is kept for later, so that it is raised on every rank.
(2) The ranks agree that they run the same loss on the same kind of columns.
(3) Owners and ids of all ranks are gathered to the CPU, owners renumbered to rows of the global batch; a guide's
    embeddings are gathered where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from piccolo_st.distributed import agree, gather_rows, get_world_size
from piccolo_st.losses.false_negatives import Exclusions
from piccolo_st.losses.text_ids import column_text_ids, has_text_ids
from piccolo_st.modeling import Features, row_count


@dataclass(frozen=True)
class Batch:
    """The global batch without its embeddings, on the CPU but for the guide's.

    Attributes:
        total: rows on all ranks, N.
        owner: (M,) int64, for each hard negative on any rank the row of the global batch that owns it.
        queries: (N,) int64 ids; None where texts are not compared.
        documents: (N + M,) int64 ids of the positives and then the hard negatives, or None.
        guide: a guide's embeddings of queries, positives and hard negatives, on the features' device, or None.
    """

    total: int
    owner: Tensor
    queries: Tensor | None
    documents: Tensor | None
    guide: tuple[Tensor, ...] | None = None

    @cached_property
    def exclusions(self) -> Exclusions:
        """Worked out when first asked for: by then a GPU is busy with the embeddings."""
        return Exclusions(self.total, self.owner, self.queries, self.documents)


def local_owners(columns: Sequence[Features]) -> Tensor:
    """For each local hard negative, columns one after the other, the local row that owns it: int64, one dimension.

    A column with ``owner`` says it; in any other, row i belongs to row i.
    """
    rows, device = row_count(columns[0]), device_of(columns)
    owners = [
        features["owner"].long() if "owner" in features else torch.arange(rows, device=device)
        for features in columns[2:]
    ]
    return torch.cat([torch.empty(0, dtype=torch.int64, device=device), *owners])


def device_of(columns: Sequence[Features]) -> torch.device:
    """The device of the features."""
    return next(value.device for features in columns for value in features.values() if isinstance(value, Tensor))


def find_fault(columns: Sequence[Features]) -> str | None:
    """Why these columns cannot be a contrastive batch, in one sentence; None if they can. Owners are checked later."""
    if len(columns) < 2:
        return f"a contrastive loss needs a query and a positive column, got {len(columns)} column(s)"
    rows = [row_count(features) for features in columns]
    if rows[0] == 0 or rows[0] != rows[1]:
        return (
            f"there must be one positive for each query, and at least one; got {rows[0]} queries, {rows[1]} positives"
        )
    for number, features in enumerate(columns[2:], start=1):
        owned = len(features["owner"]) if "owner" in features else rows[0]
        if owned != rows[1 + number]:
            rule = "one owner for each of its rows" if "owner" in features else "one row for each query"
            return (
                f"negative column {number} must have {rule}: it has {rows[1 + number]} rows for {owned}. Give a ragged "
                "column its 'owner', as piccolo_st's collator does"
            )
    return None


def agree_on_columns(
    columns: Sequence[Features], facts: Mapping[str, object], *, across_ranks: bool = True
) -> list[int]:
    """Steps (1) and (2).

    Args:
        columns: features of the query, the positive, and any hard negatives.
        facts: what all ranks must have in common beside their columns.
        across_ranks: whether to look at other ranks at all.

    Returns:
        Queries on each rank; only this one's if ``across_ranks`` is False.

    Raises:
        ValueError: the columns of any rank do not fit together, or the ranks do not; the same on every rank.
    """
    fault = find_fault(columns)
    counts: list[tuple[int, ...]] = [(0 if fault else row_count(columns[0]),)]
    if across_ranks and get_world_size() > 1:
        ragged = len(columns) == 2 or any("owner" in features for features in columns)
        facts = {
            **facts,
            "the fault of the columns": fault,
            "the number of columns": "2, or 3 with a ragged one" if ragged else len(columns),
            "whether gradients are wanted": torch.is_grad_enabled(),
        }
        counts = agree("the loss of this step", facts, device_of(columns), counts[0])
    if fault:
        raise ValueError(fault)
    return [rows for (rows,) in counts]


def describe(
    columns: Sequence[Features],
    *,
    compare_texts: bool,
    across_ranks: bool,
    facts: Mapping[str, object],
    guided: bool = False,
) -> Batch:
    """Steps (1) to (3). Waits for the device once or, with several ranks, a few times: at the start of a step,
    when it has little to do.

    Args:
        columns: features of the query, the positive, and any hard negatives.
        compare_texts: whether to fetch ids.
        across_ranks: whether the batch is that of all ranks.
        facts: what all ranks must have in common beside their columns.
        guided: whether to fetch a guide's embeddings.

    Raises:
        ValueError: as :func:`agree_on_columns`, an owner that is no row of its rank, or texts without a guide's
            embeddings; the same on every rank.
    """
    told_by = _told_by(columns) if compare_texts else "nothing"
    has_guide = guided and all("guide" in features for features in columns)
    facts = {**facts, "what texts are compared by": told_by, "whether texts have a guide's embeddings": has_guide}
    rows = agree_on_columns(columns, facts, across_ranks=across_ranks)
    if guided and not has_guide:
        raise ValueError(
            "with a guide each column must have its embeddings, (texts, dimensions), in its features' 'guide', got "
            "a column without; give PiccoloDataCollator a guide"
        )
    parts = [local_owners(columns)]
    if told_by != "nothing":
        query, positive, *negatives = (column_text_ids(features) for features in columns)
        parts += [query, positive, torch.cat([query[:0], *negatives])]
    owned: tuple[int, ...] = (len(parts[0]),)
    if across_ranks:
        gathered = gather_rows(*parts)
        parts, owned = [one.rows for one in gathered], gathered[0].counts
    owner, *ids = torch.cat(parts).cpu().split([len(part) for part in parts])  # one wait for all
    return Batch(
        total=sum(rows),
        owner=_global_owners(owner, rows, owned),
        queries=ids[0] if ids else None,
        documents=torch.cat(ids[1:]) if ids else None,
        guide=_gather_guide(columns, across_ranks) if guided else None,
    )


def _gather_guide(columns: Sequence[Features], across_ranks: bool) -> tuple[Tensor, ...]:
    query, positive, *negatives = (features["guide"] for features in columns)
    parts = (query, positive, torch.cat([query[:0], *negatives]))
    return tuple(one.rows for one in gather_rows(*parts)) if across_ranks else parts


def _told_by(columns: Sequence[Features]) -> str:
    """What :func:`column_text_ids` would go by, the same word on every rank that goes by the same."""
    if all("text_id" in features for features in columns):
        return "text_id"
    return "tokens" if all(has_text_ids(features) for features in columns) else "nothing"


def _global_owners(owner: Tensor, row_counts: Sequence[int], owner_counts: Sequence[int]) -> Tensor:
    """Each rank's owners, counted from that rank's first row. Every rank sees all, so all raise the same error."""
    results, first = [], 0
    for rank, (rows, part) in enumerate(zip(row_counts, owner.split(list(owner_counts)), strict=True)):
        bad = ((part < 0) | (part >= rows)).nonzero()
        if len(bad):
            place = int(bad[0])
            raise ValueError(
                f"'owner' must name one of the {rows} rows of the batch, 0 to {rows - 1}, got "
                f"{int(part[place])} for hard negative {place} on rank {rank}"
            )
        results.append(part + first)
        first += rows
    return torch.cat(results)
