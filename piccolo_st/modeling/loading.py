"""Models from a checkpoint: any of them with its error in one sentence, the encoder of a run with all it needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from piccolo_st.errors import ConfigError, InputError, nearest, reason
from piccolo_st.modeling.decoders import append_end_token, see_both_ways
from piccolo_st.modeling.instructions import Instructions, InstructionSpec, resolve_instructions, set_prompts
from piccolo_st.modeling.lengths import set_lengths
from piccolo_st.modeling.pooling import set_instruction_pooling
from piccolo_st.modeling.positions import extend_positions, usable_positions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from torch import nn

Loaded = TypeVar("Loaded")

DTYPES = ("float32", "bfloat16", "float16", "stored")
"""What the weights of an encoder can be loaded in; "stored" is the checkpoint's own."""


def check_dtype(dtype: str) -> None:
    """Raise ConfigError for what is none of ``DTYPES``."""
    if dtype not in DTYPES:
        raise ConfigError(
            f"model.dtype must name the numbers that weights are kept in, got {dtype!r}{nearest(str(dtype), DTYPES)}"
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
        load: such as ``SentenceTransformer``, ``CrossEncoder`` or ``AutoTokenizer.from_pretrained``.
        name_or_path: a directory or a Hub id.
        place: what names it, for the message, such as ``mine.model``.
        remedy: the end of the message.
        **options: for ``load``.

    Raises:
        InputError: it cannot be loaded.
    """
    try:
        return load(name_or_path, **options)
    except InputError:
        raise
    except (OSError, ValueError, ImportError, TypeError) as error:  # a package or an argument that it does not have
        raise InputError(f"{place} cannot be loaded, got {name_or_path!r}: {reason(error)}; {remedy}") from error


def load_encoder(
    name_or_path: str,
    *,
    place: str = "model.name_or_path",
    revision: str | None = None,
    pooling: str | None = None,
    instructions: InstructionSpec = "piccolo",
    other_instructions: Iterable[Instructions] = (),
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
) -> SentenceTransformer:
    """Load a checkpoint and give it Piccolo's prompts, pooling and lengths.

    Args:
        name_or_path: a Hub id or a directory, of a sentence-transformers model or of a bare transformers encoder.
        place: the setting that names it, for messages.
        revision: branch, tag or commit of a Hub model.
        pooling: pooling mode of a bare encoder, by default mean; a sentence-transformers model has its own.
        instructions: the prompts, a preset's name or instructions of your own.
        other_instructions: what texts may begin with beside them, of single datasets.
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

    Raises:
        InputError: an unknown dtype, a directory that holds no model, a Hub that gives none, an attention that this
            machine cannot run, an encoder that cannot be bidirectional, or positions that cannot be extended.
    """
    check_dtype(dtype)
    _check_attention(attn_implementation)
    if named := sorted(_OWN_SETTING & set(model_kwargs or {})):
        raise ConfigError(f"model.model_kwargs must leave out what has a setting of its own, got {', '.join(named)}")
    folder = Path(name_or_path)
    if folder.is_dir() and not ((folder / "modules.json").exists() or (folder / "config.json").exists()):
        raise InputError(
            f"{place} must hold modules.json or config.json, got the directory {name_or_path}; give the "
            "directory that save_pretrained wrote, or a Hub id"
        )
    # Without it, transformers 5 loads in the stored dtype, and half-precision weights take next to no small step.
    options = dict(model_kwargs or {}) | {"dtype": "auto" if dtype == "stored" else dtype}
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
    )
    if bidirectional:
        see_both_ways(cast("Transformer", model[0]).auto_model)
    if positions is not None and positions > (usable_positions(cast("Transformer", model[0]).auto_model) or positions):
        extend_positions(model, positions)
    own = resolve_instructions(instructions)
    set_prompts(model, own)
    texts = {text for one in (own, *other_instructions) for text in one.prompts.values() if text}
    if texts:
        set_instruction_pooling(model, sorted(texts), include_instruction)
    set_lengths(model, query_length, document_length)
    return model


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
) -> SentenceTransformer:
    """A sentence-transformers model as it is, or an encoder with a pooling layer behind it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from sentence_transformers.util import is_sentence_transformer_model

    if not is_sentence_transformer_model(name_or_path, revision=revision):
        origin = {"revision": revision, "trust_remote_code": trust_remote_code}
        transformer = Transformer(
            name_or_path,
            model_kwargs=model_kwargs | origin,
            processor_kwargs=processor_kwargs | origin,
            config_kwargs=dict(origin),
        )
        if pooling == "lasttoken":
            append_end_token(transformer.tokenizer)
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling or "mean")]
        return SentenceTransformer(modules=modules)
    if pooling is not None:
        raise InputError(f"model.pooling must be empty where {name_or_path} brings its own, got {pooling!r}")
    return SentenceTransformer(
        name_or_path,
        revision=revision,
        trust_remote_code=trust_remote_code,
        model_kwargs=model_kwargs,
        processor_kwargs=processor_kwargs,
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
