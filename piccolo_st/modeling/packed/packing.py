"""Rows without padding, on a CPU and on a GPU.

Rows sorted by length still differ within a chunk, and each is padded to the longest: a tenth of the work on short
questions, two thirds where questions stand beside passages. Here, in hooks around ST's Transformer:

(1) the real tokens of all rows become one row of tokens, with positions that begin anew at each text;
(2) the encoder's linear layers, norms and activations see real tokens only;
(3) ``attention``, registered with transformers' AttentionInterface, lets each text attend to itself, within the layer's
    window where it has one: on a CPU by ``attention.py``, which takes texts of similar length together, pads them for
    this one step, and in training draws the dropout of its weights as ``dropout.py`` does; on CUDA in half precision by
    ``varlen.py``, whose kernel has no such dropout;
(4) the token embeddings are put back into padded rows, so that what follows sees what it always does.

``use_packing`` installs it, after it has seen that the model then gives what it gave before, for texts longer than any
window that its layers may have, and says so where it does not. Features in float32 on CUDA, or that ST has flattened
itself, pass as they are. Nothing of it is saved with a model.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from piccolo_st.distributed import get_rank
from piccolo_st.modeling.packed.attention import ATTENTION, SHORT, Blocks
from piccolo_st.modeling.packed.varlen import HALF, Borders, Features, Kernel, Tried, varlen
from piccolo_st.modeling.positions import usable_positions

logger = logging.getLogger(__name__)

ROW_LENGTHS = "row_lengths"
"""A feature of rows padded on the right for models that pack: tokens of each, int64 (rows,), on the CPU."""

_BY_TOKEN = ("input_ids", "token_type_ids")
_TRIED = 16_384  # tokens of the trial, at most


def pack(
    features: Features, first_position: int = 0, full: bool = False, kernel: Kernel | None = None
) -> Features | None:
    """Features of padded rows -> of one row of tokens, step (1). Without ``row_lengths``, waits for the device once.

    Args:
        features: ``input_ids`` and ``attention_mask`` (rows, length), padded on the right; what else there is.
        first_position: the position of a text's first token: 0, or after the padding index in RoBERTa's family.
        full: pack rows of one length as well: nothing is padded, but the dropout of attention weights is cheap.
        kernel: what computes the attention; None: ``Blocks``, on a CPU.

    Returns:
        New features, or None where they cannot be packed or need not be.
    """
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if "cu_seq_lens_q" in features or not isinstance(ids, Tensor) or not isinstance(mask, Tensor):
        return None
    if (kernel is None and ids.device.type != "cpu") or ids.ndim != 2 or mask.shape != ids.shape or not len(ids):
        return None
    known = {*_BY_TOKEN, "attention_mask"}
    if any(
        isinstance(one, Tensor) and one.shape[:2] == ids.shape for name, one in features.items() if name not in known
    ):
        return None
    lengths = _lengths(features, mask)
    if lengths is None or (not full and min(lengths) == ids.shape[1]):
        return None
    size = torch.tensor(lengths).to(ids.device, non_blocking=True)
    end = size.cumsum(0)
    row = torch.arange(len(ids), device=ids.device).repeat_interleave(size, output_size=sum(lengths))
    position = torch.arange(len(row), device=ids.device) - (end - size)[row]
    place = row * ids.shape[1] + position
    packed = features | {name: features[name].flatten()[place][None] for name in _BY_TOKEN if name in features}
    # transformers makes no mask where it is given one of four dimensions.
    packed["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    packed["position_ids"] = position[None] + first_position
    if kernel is None:
        return packed | {"blocks": Blocks(lengths, features, place)}
    return packed | {"blocks": Borders(lengths, F.pad(end, (1, 0)).int(), kernel, features, place)}


def _lengths(features: Features, mask: Tensor) -> list[int] | None:
    """Tokens of each row; None unless each has some, and padding on the right alone."""
    known = features.get(ROW_LENGTHS)
    if isinstance(known, Tensor):
        return list(known.tolist())
    seen = mask != 0
    size = seen.sum(dim=1)
    right = (seen == (torch.arange(mask.shape[1], device=mask.device) < size[:, None])).all()
    *lengths, fits = torch.cat([size, right.long()[None]]).tolist()
    return lengths if fits and min(lengths) > 0 else None


def unpack(features: Features) -> Features:
    """What a Transformer made of packed features -> as if they had been padded, step (4); others stay as they are.

    It is written into the dict that was packed, as ST's Transformer does: ST's AdaptiveLayerLoss looks for it there.
    """
    packed: Blocks | Borders | None = features.pop("blocks", None)
    if packed is None or packed.place is None:
        return features
    place, mask = packed.place, packed.features["attention_mask"]

    def padded(value: object) -> object:
        if isinstance(value, list | tuple):
            return type(value)(padded(one) for one in value)
        if not isinstance(value, Tensor) or value.shape[:2] != (1, len(place)):
            return value
        rows = value.new_zeros(mask.numel(), *value.shape[2:]).index_copy(0, place, value[0])
        return rows.view(*mask.shape, *value.shape[2:])

    features.pop("position_ids")
    made = {name: padded(value) for name, value in features.items() if name not in packed.features}
    packed.features.update(made)
    return packed.features


@dataclass
class Packer:
    """The hook before a Transformer that packs; a class, so that a model that packs can be pickled, as encode does.

    Attributes:
        first_position: as of :func:`pack`.
        kernel: as of :func:`pack`.
        dtype: what training computes in, by autocast; None: what the weights are.
        tried: whether it packs in any precision, for the time of the trial.
    """

    first_position: int
    kernel: Kernel | None
    dtype: torch.dtype | None = None
    tried: bool = False

    def __call__(self, module: Transformer, args: tuple[Features, ...]) -> tuple[Features, ...] | None:
        """The arguments with packed features."""
        packed = None
        if self.ready(module.model):
            packed = pack(args[0], self.first_position, module.training or self.kernel is not None, self.kernel)
        given = args[0] if packed is None else packed
        given.pop(ROW_LENGTHS, None)
        return (given, *args[1:])

    def ready(self, encoder: PreTrainedModel, in_training: bool = False) -> bool:
        """Whether the kernel computes in the precision of the moment, or of the forward pass that accelerate wraps."""
        if self.kernel is None or self.tried:
            return True
        if in_training and self.dtype is not None:
            return self.dtype in HALF
        device = encoder.device.type
        computes = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else encoder.dtype
        return computes in HALF


def _unpack_output(module: nn.Module, args: tuple[Features, ...], output: Features) -> Features:
    return unpack(output)


def packs(model: nn.Module) -> bool:
    """Whether :func:`use_packing` was successful with this model, or with the one that is wrapped in it."""
    return any(True for _ in _packers(model))


def packs_now(model: nn.Module) -> bool:
    """Whether a forward pass begun now would pack: on CUDA only in half precision.

    accelerate puts autocast inside the forward method of a model that it has prepared: a loss asks from outside of it.
    """
    prepared = any("_original_forward" in vars(module) for module in model.modules())
    return any(packer.ready(transformer.model, prepared) for packer, transformer in _packers(model))


def _packers(model: nn.Module) -> Iterator[tuple[Packer, Transformer]]:
    for module in model.modules():
        if isinstance(module, Transformer):
            yield from ((hook, module) for hook in module._forward_pre_hooks.values() if isinstance(hook, Packer))


def use_packing(model: SentenceTransformer, dtype: torch.dtype | None = None, kernel: Kernel | None = None) -> bool:
    """Let a model run without padding, if that changes nothing but the time it takes.

    Args:
        model: its first module is packed if it is a text encoder with SDPA attention and what it makes of random rows,
            of which one is longer than any attention window, stays the same. A warning says why it does not.
        dtype: what the products are computed in, by autocast, on CUDA; on a CPU not read. None: what the weights are.
        kernel: what computes the attention of packed rows; None: what suits the model's device.

    Returns:
        Whether the model packs now.
    """
    transformer, device = model[0], model.device.type
    if not isinstance(transformer, Transformer) or transformer.backend != "torch" or device not in ("cpu", "cuda"):
        return False
    if packs(model):
        return True
    kernel = varlen if kernel is None and device == "cuda" else kernel
    encoder = transformer.model
    reason = _unfit(encoder) or ("" if kernel is None else _unfit_for_kernel(encoder, dtype))
    reason = reason or _install(model, transformer, encoder, kernel, dtype)
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
    if encoder.dtype in HALF:
        return f"its weights are {str(encoder.dtype)[6:]}, whose rounding hides what else would change"
    if (tokens := sum(_trial_lengths(encoder))) > _TRIED:
        return f"its attention windows would take a trial of {tokens:,} tokens, and {_TRIED:,} is the most"
    return ""


def _unfit_for_kernel(encoder: PreTrainedModel, dtype: torch.dtype | None) -> str:
    """What else stands against a kernel for half precision without dropout."""
    if dtype not in HALF:
        return "packed rows on a GPU need half precision; set train.bf16 or train.fp16 to true"
    drops = {
        name: value
        for name, value in vars(encoder.config.get_text_config()).items()
        if "att" in name and "drop" in name and isinstance(value, float) and value > 0
    }
    for name, value in drops.items():
        return (
            f"its attention weights have dropout ({name} {value}), which no kernel for packed rows has; set "
            f"model.config_kwargs.{name} to 0.0"
        )
    return ""


def _install(
    model: SentenceTransformer,
    transformer: Transformer,
    encoder: PreTrainedModel,
    kernel: Kernel | None,
    dtype: torch.dtype | None,
) -> str:
    """Install the hooks and try them; why they are gone again, or nothing."""
    trial = None if kernel is None else Tried(kernel, dtype or torch.bfloat16)
    packer, handles = Packer(_first_position(encoder), trial, dtype, tried=True), []
    try:
        with _exact(model.device):
            before = _trial(model, encoder)
            encoder.set_attn_implementation(ATTENTION)
            handles.append(transformer.register_forward_pre_hook(packer))
            handles.append(transformer.register_forward_hook(_unpack_output))
            apart = list(map(_apart, _trial(model, encoder), before))
        if all(one <= _ROUNDING for one in apart):
            packer.kernel, packer.tried = kernel, False
            return ""
        reason = f"its embeddings would change by {max(apart):.1g} of the largest"
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
    for handle in handles:
        handle.remove()
    encoder.set_attn_implementation("sdpa")
    return reason


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Products in full precision on CUDA, whatever the run allows."""
    if device.type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "ieee"
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cuda", enabled=False):
            yield
    finally:
        products.fp32_precision = before


_ROUNDING = 2e-5
"""24 layers round by 2e-6 of the largest number; one key of a window of 128 makes 9e-5 of it and more."""


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest number."""
    return float((found - expected).abs().max()) / float(expected.abs().max())


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
            ids, seen = ids.where(seen, padding).to(model.device), seen.to(model.device)
            output = model({"input_ids": ids, "attention_mask": seen.long()})
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
