"""How many tokens an encoder has positions for, and more of them than it was trained with.

BERT and RoBERTa encoders look positions up in a table, ``embeddings.position_embeddings``. RoBERTa's first rows
(``padding_idx + 1`` of them) belong to padding, so its table of 514 rows has room for 512 tokens.

``extend_positions`` lengthens the table. The rows of the old range stay as they are, bit for bit, so that texts within
it keep their embeddings. The new rows are made from the n old ones, p_0 to p_(n-1), in one of two ways:

- "hierarchical" (Su 2020, kexue.fm/archives/7947): position i * n + j becomes a * u_i + (1 - a) * u_j with
  u_k = (p_k - a * p_0) / (1 - a) and a = 0.4. For i = 0 that is p_j. Every position up to n * n gets a row of its own.
- "repeat" (Longformer, Beltagy et al. 2020, arXiv 2004.05150, section 5): position i * n + j is p_j again.

Neither has seen a long text: train on some afterwards.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel

from piccolo_st.errors import InputError

HIERARCHY_WEIGHT = 0.4  # the "a" above, as in its source


def _position_table(encoder: nn.Module) -> tuple[nn.Embedding | None, int]:
    """Return the table of learned absolute positions, if there is one, and how many of its first rows are padding's."""
    embeddings = getattr(encoder, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return None, 0
    # Only embeddings that count positions from the padding token's id on (RoBERTa's) have a padding_idx of their own.
    padding = getattr(embeddings, "padding_idx", None)
    return table, 0 if padding is None else padding + 1


def counts_from_padding(model: nn.Module) -> bool:
    """Whether padding on the left of a row moves its tokens to other positions, learned ones, with other vectors.

    Args:
        model: an encoder, or what holds one.
    """
    for module in model.modules():
        table, padding_rows = _position_table(module)
        if (table is not None and not padding_rows) or isinstance(getattr(module, "wpe", None), nn.Embedding):
            return True
    return False


def usable_positions(encoder: PreTrainedModel) -> int | None:
    """Return the longest row in tokens, special tokens included, that the encoder has positions for.

    None means that the config names no limit. For other encoders than BERT and RoBERTa (rotary positions, say) it is
    the config's ``max_position_embeddings``.
    """
    table, padding_rows = _position_table(encoder)
    if table is not None:
        return table.num_embeddings - padding_rows
    limit = getattr(encoder.config, "max_position_embeddings", None)
    return limit if limit and limit > 0 else None


def extend_positions(
    model: SentenceTransformer, length: int, method: Literal["hierarchical", "repeat"] = "hierarchical"
) -> None:
    """Give the encoder of ``model`` positions for rows of ``length`` tokens, in place, and raise its max_seq_length.

    Call it before an optimizer is built: the table is a new parameter.

    Args:
        model: its first module is a Transformer with a BERT or RoBERTa encoder.
        length: tokens, special tokens included; more than now.
        method: how the new rows are made; see above.

    Raises:
        InputError: the encoder has no table of absolute positions, ``length`` is not above what it has or more than
            "hierarchical" can tell apart, or the method is unknown.
    """
    encoder = cast(PreTrainedModel, model[0].auto_model)
    table, padding_rows = _position_table(encoder)
    if table is None:
        raise InputError(
            f"{type(encoder).__name__} has no embeddings.position_embeddings table to extend; only encoders of the "
            "BERT and RoBERTa families have one; take one of them, or leave its positions as they are"
        )
    old = table.num_embeddings - padding_rows
    if length <= old:
        raise InputError(f"the length must be above the {old} positions that the encoder has, got {length}")
    rows = torch.arange(old, length, device=table.weight.device)
    known = table.weight.detach()[padding_rows:].double()  # (old, hidden)
    if method == "hierarchical":
        if length > old * old:
            raise InputError(
                f"hierarchical positions reach to {old} * {old} = {old * old} tokens, got {length}; use method='repeat'"
            )
        base = (known - HIERARCHY_WEIGHT * known[0]) / (1 - HIERARCHY_WEIGHT)
        new = HIERARCHY_WEIGHT * base[rows // old] + (1 - HIERARCHY_WEIGHT) * base[rows % old]
    elif method == "repeat":
        new = known[rows % old]
    else:
        raise InputError(f"the method must be 'hierarchical' or 'repeat', got {method!r}")

    weight = torch.cat([table.weight.detach(), new.to(table.weight.dtype)])
    extended = nn.Embedding.from_pretrained(
        weight, freeze=not table.weight.requires_grad, padding_idx=table.padding_idx
    )
    embeddings = cast(nn.Module, encoder.embeddings)
    embeddings.position_embeddings = extended
    # Two buffers that are as long as the table: 0, 1, 2, ... and zeros.
    for name, fresh in (
        ("position_ids", torch.arange(len(weight))),
        ("token_type_ids", torch.zeros(len(weight)).long()),
    ):
        if hasattr(embeddings, name):
            buffer = getattr(embeddings, name)
            embeddings.register_buffer(name, fresh.expand(1, -1).to(buffer), persistent=False)
    encoder.config.max_position_embeddings = len(weight)
    model.max_seq_length = length
