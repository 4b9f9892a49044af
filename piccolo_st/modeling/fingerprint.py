"""Who a model is: a name and a revision that differ whenever the embeddings may differ.

Results are stored under ``org__name/revision``. Stock mteb takes both from the model card, so two fine-tunes of one
base, or two unnamed models, share an entry, and the second silently gets the scores of the first. Here

1. a model loaded from the Hub by name has that name and the commit it was loaded from;
2. any other model (a directory, or an object in memory, whatever its card says) has the hash of its content as
   revision, and a name that is only a label.

The content is everything that decides an embedding: parameters and buffers, the kind and the configuration of every
module, the tokenizer, prompts, similarity and truncation. It is not what saving, loading or encoding leave behind
(version numbers, paths, the padding and truncation state of the tokenizer), so a model and its saved copy are one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from piccolo_st.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# Bookkeeping of transformers' configurations: none of it changes an embedding that the weights do not change too.
_CONFIG_BOOKKEEPING = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "_commit_hash", "use_cache"}
    | {"_attn_implementation", "_attn_implementation_autoset", "attn_implementation"}
)

_SAMPLED_NUMBERS = 256


@dataclass(frozen=True)
class Identity:
    """Under what a model's results are stored, and what its content is.

    Attributes:
        name: ``org/name``; for a model that is not from the Hub only a label.
        revision: the commit on the Hub, or the content hash; 40 hexadecimal digits.
        content: the content hash.
    """

    name: str
    revision: str
    content: str

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:8]}"


def content_hash(model: SentenceTransformer) -> str:
    """The SHA-256 of everything that decides the model's embeddings, cut to 40 hexadecimal digits.

    Equal for a model and its copy saved and loaded again, on any device; different when a parameter, its dtype, a
    module's configuration, the tokenizer or a prompt differs. Takes about a second per gigabyte of parameters.
    """
    digest = hashlib.sha256()
    for part in _configuration(model):
        digest.update(json.dumps(part, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:40]


def sampled_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of up to 256 numbers of each tensor, spread over it, with its name, shape and dtype; a moment for 7 GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(len(flat) // _SAMPLED_NUMBERS, 1)][:_SAMPLED_NUMBERS]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(sample))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes, whatever its dtype (numpy knows no bfloat16)."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _configuration(model: SentenceTransformer) -> Iterator[object]:
    prompts = {name: text for name, text in sorted(model.prompts.items()) if text}
    yield [prompts, model.default_prompt_name, model.similarity_fn_name, model.truncate_dim]
    for path, module in model.named_modules():
        if not hasattr(module, "get_config_dict"):
            continue
        yield [path, type(module).__name__, module.get_config_dict()]
        if (config := getattr(module, "config", None)) is not None:
            yield _transformer_configuration(config.to_dict())
        if (tokenizer := getattr(module, "tokenizer", None)) is not None:
            yield tokenizer_state(tokenizer)


def _transformer_configuration(config: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in _CONFIG_BOOKKEEPING}


def tokenizer_state(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> dict[str, object]:
    """What the tokenizer does to a text; ``encode`` leaves its last padding and truncation in the backend."""
    limits = {
        name: getattr(tokenizer, name) for name in ("model_max_length", "padding_side") if hasattr(tokenizer, name)
    }
    # StaticEmbedding holds the backend itself.
    backend = tokenizer if hasattr(tokenizer, "to_str") else getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"vocabulary": sorted(tokenizer.get_vocab().items()), **limits}
    state = json.loads(backend.to_str())
    return {**{key: value for key, value in state.items() if key not in ("padding", "truncation")}, **limits}


def identify(model: SentenceTransformer, name: str = "local/in-memory", commit: str | None = None) -> Identity:
    """The identity of a model.

    Args:
        model: the loaded model. What its card says is not asked: it may name a model that this one no longer is.
        name: ``org/name``.
        commit: the commit of the Hub repository ``name`` that the model has just been loaded from, unchanged. None for
            every other model.

    Raises:
        InputError: ``name`` is not of the form ``org/name``.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"the name of a model must be org/name (letters, digits, '_', '-', '.'), got {name!r}")
    content = content_hash(model)
    return Identity(name, commit or content, content)
