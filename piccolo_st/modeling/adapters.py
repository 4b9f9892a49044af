"""Adapters of PEFT: few weights that are trained beside those of a checkpoint, which stay as they are.

(1) ``add_lora`` puts an encoder into PEFT's own wrapper, as ``LoraConfig`` says, and trains nothing else of it;
(2) ``merged`` is the model as a plain encoder for a while, which ``save_portable`` saves.

What a folder with an adapter holds, and how a model gets it back, says saved_adapters.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from piccolo_st.errors import ConfigError, InputError, MissingPackage, nearest, reason
from piccolo_st.schema import Count, Positive, ShareBelowOne, setting

if TYPE_CHECKING:
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer
    from torch import nn

_OWN_SETTING = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}


@dataclass(frozen=True)
class LoraSettings:
    """A LoRA adapter that is trained in the place of the checkpoint's own weights, through PEFT."""

    rank: Count | None = setting(None, "Rank of the adapter; empty: all weights are trained.")
    alpha: Positive | None = setting(None, "The adapter is scaled by alpha / rank; empty: twice the rank.")
    dropout: ShareBelowOne = setting(0.0, "Dropout before the adapter.")
    targets: list[str] | str = setting(
        "all-linear", "Layers that get one: their names, a pattern of them, or all-linear."
    )
    use_dora: bool = setting(False, "Train magnitude and direction apart (DoRA).")
    load_in_4bit: bool = setting(
        False, "Keep the other weights in 4 bits (QLoRA, through bitsandbytes), for less memory."
    )
    config: dict[str, object] | None = setting(None, "Further fields of PEFT's LoraConfig.")

    def fields(self, encoder: nn.Module) -> dict[str, Any]:
        """The fields of ``LoraConfig`` for an encoder: PEFT's own names, and what follows from one another."""
        further = dict(self.config or {})
        if named := sorted(further.keys() & {*_OWN_SETTING, "use_dora"}):
            words = ", ".join(f"{name} (lora.{_OWN_SETTING.get(name, name)})" for name in named)
            raise ConfigError(f"lora.config must leave out what has a setting of its own, got {words}")
        if self.targets == "all-linear":  # what pooling does not read would have gradients on no rank
            poolers = [name for name, _ in encoder.named_modules() if "pooler." in name]
            further = {"exclude_modules": poolers or None} | further
        return {
            "task_type": "FEATURE_EXTRACTION",
            "r": self.rank,
            "lora_alpha": 2 * (self.rank or 0) if self.alpha is None else self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": self.targets,
            "use_dora": self.use_dora,
            **further,
        }


# Step (1).


def add_lora(model: SentenceTransformer, settings: LoraSettings, revision: str | None = None) -> None:
    """Give the encoder of ``model`` an adapter, in place: its own weights are frozen, the adapter's are trained.

    Args:
        model: its first module is a Transformer.
        settings: with a rank.
        revision: what the model was loaded with, of which the adapter notes the commit.

    Raises:
        InputError: PEFT is not installed, the model has no encoder, or PEFT cannot do what ``settings`` say.
    """
    need_peft("lora")
    from peft import LoraConfig, get_peft_model
    from sentence_transformers.base.modules import Transformer

    first = model[0]
    if not isinstance(first, Transformer):
        raise InputError(
            f"lora needs a model that begins with a Transformer, got {type(first).__name__}; leave lora.rank empty"
        )
    wanted = settings.fields(first.model)
    try:
        config = LoraConfig(**wanted)
    except (TypeError, ValueError) as error:
        unknown = [name for name in settings.config or {} if name not in LoraConfig.__dataclass_fields__]
        guess = nearest(unknown[0], list(LoraConfig.__dataclass_fields__)) if unknown else ""
        raise ConfigError(f"PEFT's LoraConfig refuses section lora: {reason(error)}{guess}") from error
    try:
        first.model = get_peft_model(first.model, config, revision=_commit(first.model.config.name_or_path, revision))
    except ValueError as error:
        names = ", ".join(sorted(_linear_names(first.model)))
        raise InputError(
            f"lora.targets must name layers of {type(first.model).__name__} that can have an adapter ({names}), or be "
            f"all-linear, got {settings.targets!r}: {reason(error)}"
        ) from error


def _commit(name_or_path: str, revision: str | None) -> str | None:
    """The commit at which a model of the Hub lies in the cache, which its config does not say in transformers 5."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    with suppress(OSError):
        file = cached_file(name_or_path, "config.json", revision=revision, local_files_only=True)
        return extract_commit_hash(file, None)
    return None


def need_peft(what: str) -> None:
    """Raise MissingPackage where PEFT is not installed."""
    if find_spec("peft") is None:
        raise MissingPackage(what, "peft", "lora")


def in_4_bits(dtype: str) -> dict[str, object]:
    """The arguments of ``from_pretrained`` for weights in 4 bits, as QLoRA has them.

    Args:
        dtype: what is computed in, as ``load_encoder`` takes it.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingPackage("lora.load_in_4bit", "bitsandbytes", "qlora")
    from transformers import BitsAndBytesConfig

    computed = "bfloat16" if dtype == "stored" else dtype
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
    )
    return {"quantization_config": config}


def _linear_names(encoder: nn.Module) -> set[str]:
    from torch import nn

    return {name.rpartition(".")[2] for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}


def wrapped(model: SentenceTransformer) -> bool:
    """Whether the first module's encoder stands in a wrapper of PEFT."""
    return hasattr(encoder_of(model), "get_base_model")


def encoder_of(model: SentenceTransformer) -> PeftModel:
    """The encoder of the first module, or PEFT's wrapper around it, whose methods no type of ST knows; None: none."""
    return cast("PeftModel", getattr(model[0], "model", None))


def quantized(encoder: nn.Module) -> bool:
    """Whether its weights have 4 or 8 bits."""
    return bool(getattr(encoder, "is_quantized", False))


# Step (2).


@contextmanager
def exchanged(attributes: Iterable[tuple[object, str, object]]) -> Iterator[None]:
    """Inside, each attribute, an object with a name, has the value that stands with it."""
    before: list[tuple[object, str, object]] = []
    try:
        for thing, name, value in attributes:
            before.append((thing, name, getattr(thing, name)))
            setattr(thing, name, value)
        yield
    finally:
        for thing, name, value in before:
            setattr(thing, name, value)


def bare_encoders(model: SentenceTransformer) -> AbstractContextManager[None]:
    """Inside, an encoder that ``get_peft_model`` wrapped stands without the wrapper, as ST loads it from a checkpoint.

    Its adapters are in it all the same: PEFT puts them there.
    """
    from sentence_transformers.base.modules import Transformer

    found = [module for module in model.modules() if isinstance(module, Transformer)]
    found = [module for module in found if hasattr(module.model, "get_base_model")]
    return exchanged([(module, "model", module.model.get_base_model()) for module in found])


def merged(model: SentenceTransformer) -> AbstractContextManager[None]:
    """Inside, the encoder of ``model`` is a copy with its adapter merged; outside it is as it was."""
    if not wrapped(model):
        return nullcontext()
    encoder = copy.deepcopy(encoder_of(model))
    if quantized(encoder.get_base_model()):
        encoder = _dequantized(encoder)
    return exchanged([(model[0], "model", encoder.merge_and_unload(safe_merge=True))])


def _dequantized(encoder: PeftModel) -> PeftModel:
    """An encoder in PEFT's wrapper, whose base has the numbers that its 4 bits stood for, so that merging rounds none.

    PEFT itself would round the merged weights to 4 bits again.
    """
    from peft import get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights, config = get_peft_model_state_dict(encoder), encoder.active_peft_config
    base = encoder.unload()
    base.dequantize()
    whole = get_peft_model(base, config)
    set_peft_model_state_dict(whole, weights)
    return whole
