"""The contrastive loss written naively: every similarity at once, every rule as a condition on two rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def allowed_candidates(
    row: int, directions: Sequence[str], owner: Sequence[int], queries: Sequence[int], documents: Sequence[int]
) -> dict[str, list[int]]:
    """For one row the candidates of each direction that count in its denominator, its own pair included."""
    rows = len(queries)
    owners = [*range(rows), *owner]
    pairs = {(queries[j], documents[j]) for j in range(rows)}
    own_query, own_positive = queries[row], documents[row]

    def related(one: int, other: int) -> bool:
        return one == other or (one, other) in pairs or (other, one) in pairs

    allowed = {
        "query_to_doc": [d for d in range(len(documents)) if d == row or not related(own_query, documents[d])],
        "query_to_query": [j for j in range(rows) if not related(own_query, queries[j])],
        "doc_to_query": [j for j in range(rows) if j == row or not related(queries[j], own_positive)],
        "doc_to_doc": [
            d
            for d in range(len(documents))
            if queries[owners[d]] != own_query
            and not related(own_positive, documents[d])
            and not related(own_query, documents[d])
        ],
    }
    return {direction: allowed[direction] for direction in directions}


def naive_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    owner: Sequence[int],
    *,
    temperature: float,
    directions: Sequence[str],
    query_ids: Sequence[int] | None = None,
    document_ids: Sequence[int] | None = None,
    rows: tuple[int, int] | None = None,
    margin: float | None = None,
    divisor: float | None = None,
    hardness: tuple[str, float] = ("none", 0.0),
    focal_gamma: float = 0.0,
    guide: tuple[Sequence[Tensor], float, str] | None = None,
) -> Tensor:
    """The loss of embeddings of any length, in float64, by autograd."""
    q, p, h = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (queries, positives, negatives))
    d = torch.cat([p, h])
    query_ids = list(range(len(q))) if query_ids is None else query_ids
    document_ids = list(range(len(q), len(q) + len(d))) if document_ids is None else document_ids
    if guide is not None:
        gq, gp, gh = (torch.nn.functional.normalize(x.double(), dim=-1) for x in guide[0])
        gd = torch.cat([gp, gh])
    start, stop = rows or (0, len(q))
    losses = []
    for i in range(start, stop):
        allowed = allowed_candidates(i, directions, owner, query_ids, document_ids)
        own = q[i] @ p[i]
        logits = []
        for direction, candidates in allowed.items():
            anchor = q[i] if direction.startswith("query") else p[i]
            pool = q if direction.endswith("query") else d
            for candidate in candidates:
                similarity = anchor @ pool[candidate]
                is_own_pair = candidate == i and direction in ("query_to_doc", "doc_to_query")
                if margin is not None and not is_own_pair and similarity > own + margin:
                    continue
                if guide is not None and not is_own_pair:
                    _, distance, strategy = guide
                    right = gq[i] @ gp[i]
                    seen = (gq if direction.startswith("query") else gp)[i] @ (gq if pool is q else gd)[candidate]
                    if seen > right - distance * (right.abs() if strategy == "relative" else 1):
                        continue
                logit = similarity / temperature
                if direction == "query_to_doc" and candidate != i:
                    kind = "hard_negatives" if [*range(len(q)), *owner][candidate] == i else "in_batch_negatives"
                    if hardness[0] in (kind, "all_negatives"):
                        logit = logit + hardness[1] * similarity.detach()
                logits.append(logit)
        losses.append(torch.logsumexp(torch.stack(logits), 0) - own / temperature)
        if focal_gamma:
            missed = -torch.expm1(-losses[-1])
            losses[-1] = (
                missed**focal_gamma * losses[-1] if missed > 0 else losses[-1] * 0
            )  # its slope at 0 is infinite
    return torch.stack(losses).sum() / (stop - start if divisor is None else divisor)
