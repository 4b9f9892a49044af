"""Rows without padding on a CPU: what flash attention's variable-length kernels do for sentence-transformers on a GPU.

Rows sorted by length still differ within a chunk, and each is padded to the longest: a tenth of the work on short
questions. Here, in hooks around ST's Transformer:

(1) the real tokens of all rows become one row of tokens, with positions that begin anew at each text;
(2) the encoder's linear layers, norms and activations see real tokens only;
(3) ``attention``, registered with transformers' AttentionInterface, takes texts of similar length together, pads them
    for this one step, and lets each attend to itself, within the layer's window where it has one. In training it draws
    the dropout of its weights as ``dropout.py`` does;
(4) the token embeddings are put back into padded rows, so that what follows sees what it always does.

``use_packing`` installs it, after it has seen that the model then gives what it gave before, for texts longer than any
window that its layers may have, and says so where it does not. Features on another device, or that ST has flattened
itself, pass as they are. Nothing of it is saved with a model.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from itertools import starmap
from typing import cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from piccolo_st.distributed import get_rank
from piccolo_st.modeling.batching import Features
from piccolo_st.modeling.packed.attention import ATTENTION, SHORT, Blocks
from piccolo_st.modeling.positions import usable_positions

logger = logging.getLogger(__name__)

_BY_TOKEN = ("input_ids", "token_type_ids")
_READY = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # transformers makes no mask where it is given one of four dimensions
_TRIED = 16_384  # tokens of the trial, at most


def pack(features: Features, first_position: int = 0, full: bool = False) -> Features | None:
    """Features of padded rows -> of one row of tokens, step (1).

    Args:
        features: ``input_ids`` and ``attention_mask`` (rows, length), padded on the right; what else there is.
        first_position: the position of a text's first token: 0, or after the padding index in RoBERTa's family.
        full: pack rows of one length as well: nothing is padded, but the dropout of attention weights is cheap.

    Returns:
        New features, or None where they cannot be packed or need not be.
    """
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if "cu_seq_lens_q" in features or not isinstance(ids, Tensor) or not isinstance(mask, Tensor):
        return None
    if ids.device.type != "cpu" or ids.ndim != 2 or mask.shape != ids.shape or not len(ids):
        return None
    unknown = [
        name
        for name, value in features.items()
        if isinstance(value, Tensor) and value.shape[:2] == ids.shape and name not in (*_BY_TOKEN, "attention_mask")
    ]
    seen = mask != 0
    lengths = seen.sum(dim=1)
    places = torch.arange(ids.shape[1])
    if bool(seen.all()) and not full:
        return None
    if unknown or not bool(lengths.all()) or not torch.equal(seen, places < lengths[:, None]):
        return None
    packed = features | {name: features[name][seen][None] for name in _BY_TOKEN if name in features}
    packed["attention_mask"] = _READY
    packed["position_ids"] = places.expand_as(ids)[seen][None] + first_position
    return packed | {"blocks": Blocks(lengths.tolist(), features)}


def unpack(features: Features) -> Features:
    """What a Transformer made of packed features -> as if they had been padded, step (4); others stay as they are.

    It is written into the dict that was packed, as ST's Transformer does: ST's AdaptiveLayerLoss looks for it there.
    """
    blocks = features.pop("blocks", None)
    if blocks is None:
        return features
    mask = blocks.features["attention_mask"]
    place = (mask.flatten() != 0).nonzero()[:, 0]  # of each token among the padded ones

    def padded(value: object) -> object:
        if isinstance(value, list | tuple):
            return type(value)(padded(one) for one in value)
        if not isinstance(value, Tensor) or value.shape[:2] != (1, len(place)):
            return value
        rows = value.new_zeros(mask.numel(), *value.shape[2:]).index_copy(0, place, value[0])
        return rows.view(*mask.shape, *value.shape[2:])

    features.pop("position_ids")
    made = {name: padded(value) for name, value in features.items() if name not in blocks.features}
    blocks.features.update(made)
    return blocks.features


def packs(model: nn.Module) -> bool:
    """Whether :func:`use_packing` was successful with this model, or with the one that is wrapped in it."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return any(getattr(config, "_attn_implementation", None) == ATTENTION for config in configs)


def use_packing(model: SentenceTransformer) -> bool:
    """Let a model run without padding on a CPU, if that changes nothing but the time it takes.

    Args:
        model: its first module is packed if it is a text encoder with SDPA attention and what it makes of random rows,
            of which one is longer than any attention window, stays the same. A warning says why it does not.

    Returns:
        Whether the model packs now.
    """
    transformer = model[0]
    if not isinstance(transformer, Transformer) or transformer.backend != "torch" or model.device.type != "cpu":
        return False
    if packs(model):
        return True
    encoder = transformer.model
    reason = _unfit(encoder) or _install(model, transformer, encoder)
    if reason and get_rank() == 0:
        logger.warning("%s runs with padding, because %s", type(encoder).__name__, reason)
    return not reason


def _unfit(encoder: PreTrainedModel) -> str:
    """Why there is no use in trying; empty if there is."""
    chosen = getattr(encoder.config, "_attn_implementation", None)
    if chosen != "sdpa":
        return f"its attention is {chosen}, not sdpa"
    if getattr(encoder, "is_decoder", False):
        return "it is a decoder"
    if encoder.dtype in (torch.float16, torch.bfloat16):
        return f"its weights are {str(encoder.dtype)[6:]}, whose rounding hides what else would change"
    if (tokens := sum(_trial_lengths(encoder))) > _TRIED:
        return f"its attention windows would take a trial of {tokens:,} tokens, and {_TRIED:,} is the most"
    return ""


def _install(model: SentenceTransformer, transformer: Transformer, encoder: PreTrainedModel) -> str:
    """Install the hooks and try them; why they are gone again, or nothing."""
    pack_arguments = partial(_pack_arguments, first_position=_first_position(encoder))
    handles: list[RemovableHandle] = []
    try:
        before = _trial(model, encoder)
        encoder.set_attn_implementation(ATTENTION)
        handles.append(transformer.register_forward_pre_hook(pack_arguments))
        handles.append(transformer.register_forward_hook(_unpack_output))
        if all(starmap(_same, zip(_trial(model, encoder), before, strict=True))):
            return ""
        reason = "its embeddings would change"
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
    for handle in handles:
        handle.remove()
    encoder.set_attn_implementation("sdpa")
    return reason


# The hooks are functions of the module, so that a model that packs can be pickled, as encode does for its processes.


def _pack_arguments(module: nn.Module, args: tuple[Features, ...], first_position: int) -> tuple[Features, ...] | None:
    packed = pack(args[0], first_position, full=module.training)
    return None if packed is None else (packed, *args[1:])


def _unpack_output(module: nn.Module, args: tuple[Features, ...], output: Features) -> Features:
    return unpack(output)


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether they differ by rounding alone.

    24 layers round by 2e-6 of the largest number; one key of a window of 128 makes 9e-5 of it and more.
    """
    return float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


def _trial_lengths(encoder: PreTrainedModel) -> list[int]:
    """Tokens of the rows to try: one longer than any window, as far as there are positions, and all together longer.

    The windows are whatever may be one in the configuration or a layer, since a row that is too long does no harm.
    """
    config = encoder.config.get_text_config().to_dict()
    named = [value for key, value in config.items() if any(word in key for word in ("window", "chunk", "local"))]
    named += [getattr(module, "sliding_window", None) for module in encoder.modules()]
    reach = max((value for value in named if type(value) is int), default=0)
    longest = min(max(reach, SHORT) + 3, usable_positions(encoder) or sys.maxsize)
    return [longest] * (reach // longest + 1) + [longest // 2 + 1, 4]


@torch.no_grad()
def _trial(model: SentenceTransformer, encoder: PreTrainedModel) -> list[Tensor]:
    """What the model makes of random tokens without dropout: of a few short texts, and of ``_trial_lengths``."""
    vocabulary = cast(nn.Embedding, encoder.get_input_embeddings()).num_embeddings
    generator = torch.Generator().manual_seed(0)
    padding = getattr(model.tokenizer, "pad_token_id", None) or 0
    training = [module for module in model.modules() if module.training]
    model.eval()
    made = []
    try:
        for lengths in ([7, 4, 4], _trial_lengths(encoder)):
            ids = torch.randint(vocabulary // 2, vocabulary, (len(lengths), max(lengths)), generator=generator)
            seen = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
            output = model({"input_ids": ids.where(seen, padding), "attention_mask": seen.long()})
            made += [output["token_embeddings"][seen], output["sentence_embedding"]]
    finally:
        for module in training:
            module.training = True
    return made


def _first_position(encoder: nn.Module) -> int:
    """0, or what follows the padding index where a table of positions begins with it, as in RoBERTa's family."""
    for module in encoder.modules():
        table, padding = getattr(module, "position_embeddings", None), getattr(module, "padding_idx", None)
        if isinstance(table, nn.Embedding) and isinstance(padding, int):
            return padding + 1
    return 0
