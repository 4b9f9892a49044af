"""Which texts are the same, told from their tokens: a 64-bit number for each row.

The number is sum over k of (token_k + 1) * key_k modulo 2^64, over the tokens that the attention mask keeps, k counted
from the row's first such token, so that padding on either side changes nothing. The keys are the output of a fixed
mixing function (splitmix64) at k: the same in every process. Such a multilinear sum gives two different rows of tokens
below 2^18 the same number with a probability of at most 2^-46.
"""

from __future__ import annotations

import torch
from torch import Tensor

from piccolo_st.hashing import GOLDEN, MULTIPLIERS
from piccolo_st.modeling import Features, row_borders


def _signed(number: int) -> int:
    """The int64 with the bits of this unsigned 64-bit number."""
    return number - (1 << 64) if number >> 63 else number


def _keys(places: Tensor) -> Tensor:
    """splitmix64 of each place, an int64 tensor. Products wrap around, which is what the function asks for."""

    def shift(number: Tensor, bits: int) -> Tensor:
        return (number >> bits) & ((1 << (64 - bits)) - 1)  # >> keeps the sign; a logical shift does not

    number = (places + 1) * _signed(GOLDEN)
    number = (number ^ shift(number, 30)) * _signed(MULTIPLIERS[0])
    number = (number ^ shift(number, 27)) * _signed(MULTIPLIERS[1])
    return number ^ shift(number, 31)


def has_text_ids(features: Features) -> bool:
    """Whether the texts of a column can be told apart: by what the collator wrote, or by their tokens."""
    ids = features.get("input_ids")
    known = "text_id" in features or row_borders(features) is not None
    return known or (isinstance(ids, Tensor) and ids.ndim == 2 and features.get("modality", "text") == "text")


def column_text_ids(features: Features) -> Tensor:
    """One int64 for each text of a column: what the collator wrote as ``text_id``, else from the tokens.

    Args:
        features: of one column for which :func:`has_text_ids`: padded on either side, or flattened.

    Returns:
        (rows,) int64 on the features' device.
    """
    if "text_id" in features:
        return features["text_id"]
    ids = features["input_ids"].long()
    borders = row_borders(features)
    if borders is not None:
        ids = ids.reshape(-1)
        places = torch.arange(len(ids), device=ids.device)
        places = places - borders[torch.searchsorted(borders, places, right=True) - 1]
        sums = torch.cat([ids.new_zeros(1), ((ids + 1) * _keys(places)).cumsum(0)])
        return sums[borders[1:]] - sums[borders[:-1]]
    mask = features.get("attention_mask")
    kept = torch.ones_like(ids) if mask is None else (mask != 0).long()
    return ((ids + 1) * _keys(kept.cumsum(1) - 1) * kept).sum(1)
