"""What cannot be saved, told from the model alone, before anything is written."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from piccolo_st.errors import InputError, reason
from piccolo_st.modeling.pooling import InstructionPooling
from piccolo_st.modeling.portable.checkpoint_files import POOLING_FLAGS

logger = logging.getLogger(__name__)

_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_SETTINGS: dict[str, object] = {
    "transformer_task": "feature-extraction",
    "modality_config": _TEXT_ONLY,
    "module_output_name": "token_embeddings",
    "processing_kwargs": {},
    "query_expansion": None,
}


def problems(model: SentenceTransformer) -> list[str]:
    """Why ``save_portable`` cannot save ``model``, a sentence each; empty if it can. Reads no weights."""
    return list(_problems(model))


def _problems(model: SentenceTransformer) -> Iterator[str]:
    modules = list(model)
    known = (Pooling, InstructionPooling, Dense, Normalize)
    if not modules or type(modules[0]) is not Transformer or any(type(one) not in known for one in modules[1:]):
        yield (
            "a portable checkpoint must be a Transformer, then Pooling, Dense and Normalize modules, got "
            f"{[type(module).__name__ for module in modules]}; save such a model with model.save_pretrained"
        )
        return
    for name, needed in _SETTINGS.items():
        if (value := getattr(modules[0], name)) != needed:
            yield (
                f"a portable checkpoint needs a Transformer with {name}={needed!r}, got {value!r}, which older "
                "versions and other servers would ignore"
            )
    if getattr(modules[0].model, "peft_config", None) and not hasattr(modules[0].model, "merge_and_unload"):
        yield (
            "a portable checkpoint needs whole weights, got an adapter that PEFT cannot merge into them here; put the "
            "encoder into its wrapper (model[0].model = get_peft_model(model[0].model, ...))"
        )
    if not getattr(model.tokenizer, "is_fast", False):
        yield (
            f"{type(model.tokenizer).__name__} has no tokenizer.json, which text-embeddings-inference and "
            "transformers.js read; use a tokenizer of the tokenizers library"
        )
    for module in modules[1:]:
        if isinstance(module, Pooling):
            modes = pooling_modes(module)
            if modes != [mode for mode in POOLING_FLAGS if mode in modes]:
                yield (
                    f"the pooling modes must be in the order {list(POOLING_FLAGS)}, each at most once, as older "
                    f"versions join them, got {modes}"
                )
        elif (
            module.module_input_name != "sentence_embedding"
            or module.module_output_name != "sentence_embedding"
            or getattr(module, "use_residual", False)
        ):
            yield "a portable checkpoint needs modules that replace the sentence_embedding, got " + str(module).replace(
                "\n", " "
            )


def pooling_modes(module: Pooling) -> list[str]:
    """The pooling mode, or modes, as a list."""
    return [module.pooling_mode] if isinstance(module.pooling_mode, str) else list(module.pooling_mode)


def check_savable(model: SentenceTransformer) -> None:
    """Refuse a model that not even ``model.save_pretrained`` can save so that it comes back; warn of one not portable.

    A module that is not of sentence-transformers is saved once for this, alone and to a temporary folder.

    Raises:
        InputError: naming each module at fault.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Transformer) and "auto_model" in dict(module.named_children()):
            found.append(
                f"module {name!r} holds a second encoder in auto_model, which is neither run nor saved; set .model, as "
                "in model[0].model = get_peft_model(model[0].model, ...)"
            )
    for name, module in model.named_children():
        if type(module).__module__.startswith(("sentence_transformers.", "piccolo_st.")):
            continue
        save = getattr(module, "save", None)
        if not callable(save):
            found.append(
                f"module {name!r} is a {type(module).__name__}, which has no save; give it one, as a subclass of "
                "sentence_transformers.base.modules.Module"
            )
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                save(folder)
            except Exception as error:
                found.append(
                    f"module {name!r}, a {type(module).__name__}, cannot be saved: {type(error).__name__}: "
                    f"{reason(error)}; mend its save"
                )
    if found:
        raise InputError(f"a checkpoint of this model would not hold it: {'; '.join(found)}")
    if limits := problems(model):
        logger.warning("the model is saved in a layout that is sentence-transformers' own: %s", "; ".join(limits))
