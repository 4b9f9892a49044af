"""Models from a checkpoint: any of them with its error in one sentence, the encoder of a run with all it needs."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from piccolo_st.errors import ConfigError, InputError, nearest, reason, shown
from piccolo_st.hub import unreachable
from piccolo_st.modeling.adapters import LoraSettings, add_lora, in_4_bits, need_peft
from piccolo_st.modeling.decoders import append_end_token, see_both_ways
from piccolo_st.modeling.instructions import (
    PRESETS,
    Instructions,
    InstructionSpec,
    resolve_instructions,
    saved_instructions,
    set_prompts,
)
from piccolo_st.modeling.lengths import check_lengths, set_lengths
from piccolo_st.modeling.pooling import set_instruction_pooling
from piccolo_st.modeling.positions import counts_from_padding, extend_positions, usable_positions
from piccolo_st.modeling.saved_adapters import check_adapter, has_adapter, settle_adapter

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from torch import nn

Loaded = TypeVar("Loaded")

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "stored")
"""What the weights of an encoder can be loaded in; "stored" is the checkpoint's own."""


def check_dtype(dtype: str) -> None:
    """Raise ConfigError for what is none of ``DTYPES``."""
    if dtype not in DTYPES:
        raise ConfigError(
            f"model.dtype must name the numbers that weights are kept in, got {dtype!r}{nearest(str(dtype), DTYPES)}"
        )


_CODE = (
    "its code runs only where it is trusted: set model.trust_remote_code to train it; for all else load it in Python, "
    "SentenceTransformer(NAME, trust_remote_code=True), and give it to evaluate, or to save_portable, in whose "
    "checkpoints there is no code of piccolo_st"
)


def load_pretrained(
    load: Callable[..., Loaded],
    name_or_path: str,
    place: str,
    *,
    remedy: str = "give the directory of a model, or the id of one on the Hub that this machine can reach",
    **options: object,
) -> Loaded:
    """What ``load(name_or_path, **options)`` gives, or one sentence that says what cannot be loaded and why.

    Args:
        load: such as ``SentenceTransformer``, ``CrossEncoder`` or ``AutoTokenizer.from_pretrained``; where the Hub does
            not answer, it is asked for ``local_files_only``.
        name_or_path: a directory or a Hub id.
        place: what names it, for the message, such as ``mine.model``.
        remedy: the end of the message.
        **options: for ``load``.

    Raises:
        InputError: it cannot be loaded.
    """
    import torch

    silent = unreachable() if _is_hub_id(name_or_path) else ""
    if silent:
        options["local_files_only"] = True
    try:
        loaded = load(name_or_path, **options)
        if hasattr(loaded, "prompts"):  # a SentenceTransformer, whose class is slow to import
            check_adapter(
                cast("SentenceTransformer", loaded), name_or_path, cast("str | None", options.get("revision"))
            )
            _check_own_lengths(cast("SentenceTransformer", loaded), place)
        return loaded
    except InputError:
        raise
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of a damaged or foreign file a library raises anything
        plain = isinstance(error, OSError | ValueError | ImportError | TypeError | RuntimeError)
        why = reason(error) if plain else f"{type(error).__name__}: {reason(error)}"
        why = f"{silent}, and it is not in the cache" if silent and isinstance(error, OSError) else why
        here = "" if Path(name_or_path).exists() else _models_here(name_or_path)
        remedy = _CODE if "trust_remote_code=True" in str(error) else remedy
        raise InputError(f"{place} cannot be loaded, got {name_or_path!r}: {why}; {here}{remedy}") from error


def _check_own_lengths(model: SentenceTransformer, place: str) -> None:
    """Refuse a checkpoint whose lengths are no numbers, which sentence-transformers would compare as they are."""
    for name in ("max_seq_length", "query_length", "document_length"):
        value = getattr(model[0], name, None)
        if value == float("inf"):  # a StaticEmbedding cuts nothing
            continue
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise InputError(
                f"{place} must name a model whose {name} is a whole number or null, got {shown(value)}; mend its "
                "sentence_bert_config.json"
            )


def _is_hub_id(name_or_path: str) -> bool:
    return not Path(name_or_path).exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) is not None


def _models_here(wanted: str) -> str:
    """The directories of models beside the one that is not there, and those of runs, for a message."""
    beside = Path(wanted).parent
    folders = [*(beside.glob("*") if beside != Path() else ()), *Path().glob("runs/*/model"), *Path().glob("*/model")]
    found = sorted({str(one) for one in folders if (one / "config.json").is_file()})
    return f"here are {', '.join(found[:5])}; " if found else ""


def load_encoder(
    name_or_path: str,
    *,
    place: str = "model.name_or_path",
    revision: str | None = None,
    pooling: str | None = None,
    instructions: InstructionSpec | None = None,
    other_instructions: Iterable[Instructions] = (),
    task_instructions: Mapping[str, Instructions] | None = None,
    include_instruction: bool = True,
    query_length: int = 64,
    document_length: int = 512,
    positions: int | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    bidirectional: bool = False,
    model_kwargs: Mapping[str, object] | None = None,
    processor_kwargs: Mapping[str, object] | None = None,
    config_kwargs: Mapping[str, object] | None = None,
    lora: LoraSettings | None = None,
) -> SentenceTransformer:
    """Load a checkpoint and give it prompts, pooling and lengths.

    Args:
        name_or_path: a Hub id or a directory, of a sentence-transformers model or of a bare transformers encoder.
        place: the setting that names it, for messages.
        revision: branch, tag or commit of a Hub model.
        pooling: pooling mode of a bare encoder, by default mean; a sentence-transformers model has its own.
        instructions: the prompts, a preset's name or instructions of your own. Default: those saved in the checkpoint;
            where it has none, piccolo's, with a warning.
        other_instructions: what texts may begin with beside them, of single datasets.
        task_instructions: of single mteb tasks or task types, by name; saved as prompts that mteb finds.
        include_instruction: whether the instruction's tokens are pooled.
        query_length: longest query, in tokens, instruction included.
        document_length: longest passage, in tokens, instruction included.
        positions: tokens that the encoder has positions for afterwards; fewer of them are extended
            (``extend_positions``). Default: as many as it has.
        dtype: of all weights, one of ``DTYPES``; float32 is what small steps of training need.
        attn_implementation: who computes attention: sdpa, eager, flash_attention_2, ... Default: transformers' choice.
        trust_remote_code: run the code that the checkpoint brings.
        bidirectional: let the tokens of a decoder see those after them (``see_both_ways``).
        model_kwargs: further arguments of ``from_pretrained`` of the encoder.
        processor_kwargs: of the tokenizer.
        config_kwargs: what the encoder's config is to say instead, such as ``attention_probs_dropout_prob``.
        lora: an adapter to train; a directory with one goes on with its own. None, or without a rank: none, and a
            directory with one is merged with its base.

    Raises:
        InputError: an unknown dtype, a directory that holds no model, a Hub that gives none, a model that does not
            begin with a Transformer, an attention that this machine cannot run, an encoder that cannot be
            bidirectional, positions that cannot be extended, or padding on the left of an encoder that counts
            positions from it.
    """
    check_dtype(dtype)
    _check_attention(attn_implementation)
    for section, given in (("model_kwargs", model_kwargs), ("config_kwargs", config_kwargs)):
        if named := sorted(_OWN_SETTING & set(given or {})):
            raise ConfigError(f"model.{section} must leave out what has a setting of its own, got {', '.join(named)}")
    folder = Path(name_or_path)
    lora = lora if lora is not None and lora.rank is not None else None
    adapter = load_pretrained(has_adapter, name_or_path, place, revision=revision)
    if adapter or lora:
        need_peft(f"the adapter in {name_or_path}" if adapter else "lora.rank")
    if lora and positions is not None:
        raise ConfigError(
            f"model.positions must be empty with an adapter, whose base has positions of its own, got {positions}"
        )
    if folder.is_dir() and not ((folder / "modules.json").exists() or (folder / "config.json").exists()):
        raise InputError(
            f"{place} must hold modules.json or config.json, got the directory {name_or_path}; give the "
            "directory that save_pretrained wrote, or a Hub id"
        )
    # Without it, transformers 5 loads in the stored dtype, and half-precision weights take next to no small step.
    options = dict(model_kwargs or {}) | {"dtype": "auto" if dtype == "stored" else dtype}
    if lora and lora.load_in_4bit:
        options = in_4_bits(dtype) | options
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    model = load_pretrained(
        _with_pooling,
        name_or_path,
        place,
        revision=revision,
        pooling=pooling,
        trust_remote_code=trust_remote_code,
        model_kwargs=options,
        processor_kwargs=dict(processor_kwargs or {}),
        config_kwargs=dict(config_kwargs or {}),
    )
    if adapter:
        settle_adapter(model, name_or_path, lora, revision, options | {"trust_remote_code": trust_remote_code})
    first = _transformer(model, place)
    if bidirectional:
        see_both_ways(first.auto_model)
    if positions is not None and positions > (usable_positions(first.auto_model) or positions):
        extend_positions(model, positions)
    if lora and not adapter:
        add_lora(model, lora, revision)
    _check_padding(first, place)
    _compare_by_cosine(model, name_or_path)
    per_task = task_instructions or {}
    # Not those of its further prompts: no row begins with one, and a text that has one comes with its length.
    own = saved_instructions(model) if instructions is None else resolve_instructions(instructions)
    if instructions is None and not own.texts:
        own = PRESETS["piccolo"]
        logger.warning(
            "model.instructions is empty and %s has no prompts saved: its queries begin with %r and its passages with "
            "%r, as Piccolo's; set it to what the checkpoint was trained with (%s, or your own), or to piccolo",
            *(name_or_path, own.query, own.document, ", ".join(name for name in PRESETS if "piccolo" not in name)),
        )
    set_prompts(model, own, per_task)
    if texts := {text for one in (own, *other_instructions, *per_task.values()) for text in one.texts}:
        set_instruction_pooling(model, sorted(texts), include_instruction)
    set_lengths(model, query_length, document_length)
    for one, where in ((own, ""), *((one, f"task {name!r}") for name, one in per_task.items())):
        check_lengths(model, query_length, document_length, one, where)
    return model


def _transformer(model: SentenceTransformer, place: str) -> Transformer:
    """The first module of a model that a run can train, whose texts are cut at two lengths."""
    from sentence_transformers.base.modules import Transformer

    first = model[0]
    if not isinstance(first, Transformer) or first.tokenizer is None:
        raise InputError(
            f"{place} must name a model whose first module is a Transformer with a tokenizer, got "
            f"{type(first).__name__}; take another, or train this one in Python with PiccoloTrainer"
        )
    return first


def _compare_by_cosine(model: SentenceTransformer, name: str) -> None:
    """Let a model search as it is trained, also once it is saved: a checkpoint may name another similarity."""
    if model.similarity_fn_name != "cosine":
        logger.warning(
            "%s compares embeddings by their %s; losses and searches here take the cosine, and so will the saved model",
            *(name, model.similarity_fn_name),
        )
        model.similarity_fn_name = "cosine"


def _check_padding(first: Transformer, place: str) -> None:
    """Refuse padding that would give a text another vector in every batch."""
    if getattr(first.tokenizer, "padding_side", "right") == "left" and counts_from_padding(first):
        encoder = getattr(first.auto_model, "get_base_model", lambda: first.auto_model)()
        raise InputError(
            f"{place} must have a tokenizer that pads on the right, since {type(encoder).__name__} counts positions "
            "from the padding, got padding_side left; set model.processor_kwargs to {padding_side: right}"
        )


_OWN_SETTING = frozenset({"dtype", "torch_dtype", "attn_implementation", "trust_remote_code", "revision"})


def _check_attention(name: str | None) -> None:
    """Refuse flash attention where there is no GPU; transformers would only fail in the first step."""
    import torch

    if name and ("flash" in name or "/" in name) and not torch.cuda.is_available():
        raise InputError(
            f"model.attn_implementation {name!r} needs a CUDA GPU, which this machine does not have; set it to sdpa"
        )


def _with_pooling(
    name_or_path: str,
    revision: str | None,
    pooling: str | None,
    trust_remote_code: bool,
    model_kwargs: dict[str, object],
    processor_kwargs: dict[str, object],
    config_kwargs: dict[str, object],
    local_files_only: bool = False,
) -> SentenceTransformer:
    """A sentence-transformers model as it is, or an encoder with a pooling layer behind it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from sentence_transformers.util import is_sentence_transformer_model

    if not is_sentence_transformer_model(name_or_path, revision=revision, local_files_only=local_files_only):
        origin = {"revision": revision, "trust_remote_code": trust_remote_code, "local_files_only": local_files_only}
        transformer = Transformer(
            name_or_path,
            model_kwargs=model_kwargs | origin,
            processor_kwargs=processor_kwargs | origin,
            config_kwargs=config_kwargs | origin,
        )
        if pooling == "lasttoken":
            append_end_token(transformer.tokenizer)
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling or "mean")]
        return SentenceTransformer(modules=modules, trust_remote_code=trust_remote_code)
    if pooling is not None:
        raise InputError(f"model.pooling must be empty where {name_or_path} brings its own, got {pooling!r}")
    return SentenceTransformer(
        name_or_path,
        revision=revision,
        trust_remote_code=trust_remote_code,
        model_kwargs=model_kwargs,
        processor_kwargs=processor_kwargs,
        config_kwargs=config_kwargs,
        local_files_only=local_files_only,
    )


def weights_in_words(model: nn.Module, revision: str | None = None) -> str:
    """The dtype of a model's weights, and of its encoder's checkpoint where that is another, for the table of a run.

    Args:
        model: as it was loaded.
        revision: what it was loaded with.
    """
    own = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    source = next((module.name_or_path for module in model.modules() if hasattr(module, "name_or_path")), None)
    stored = stored_dtype(str(source), revision) if source else None
    return ", ".join(own) + (f" (stored as {stored})" if stored and [stored] != own else "")


def stored_dtype(name_or_path: str, revision: str | None = None) -> str | None:
    """The dtype of an encoder's checkpoint: of its weights, or, where they are not one safetensors, as it says itself.

    None where it says nothing.
    """
    from safetensors import safe_open
    from transformers import PretrainedConfig
    from transformers.utils.hub import cached_file

    with suppress(OSError):
        file = cached_file(name_or_path, "model.safetensors", revision=revision, local_files_only=True)
        with safe_open(file, framework="pt") as weights:
            kinds = Counter(weights.get_slice(name).get_dtype() for name in weights.keys())  # noqa: SIM118
        return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(kinds.most_common(1)[0][0])
    with suppress(OSError):
        config = PretrainedConfig.get_config_dict(name_or_path, revision=revision)[0]
        return config.get("dtype") or config.get("torch_dtype")
    return None
