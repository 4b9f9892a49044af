"""What the trainer itself sees of a run and what decides its numbers: model, losses, collator, arguments; as JSON.

Everything is read off the objects, whatever their class: the class, ``get_config_dict`` where there is one, and every
public attribute with a plain value. Of weights

    (1) a model's first module, the encoder, has a fingerprint: a hash of up to 256 numbers of each tensor, spread over
        it, which tells another checkpoint from this one and costs a moment for 7 GB. Poolers are left out: pooling does
        not read them, and transformers begins them at random where a checkpoint has none;
    (2) the modules behind it, and losses, count by the shapes of their weights only: a script that is started again
        begins them with other random numbers, and a run that goes on reads them from its checkpoint anyway.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any

import torch
from sentence_transformers.base.model import BaseModel
from torch import nn

_SAMPLED = 256
# Arguments that change numbers and stand in no other part of a signature.
_ARGUMENTS = (
    "batch_sampler",
    "data_seed",
    "dataloader_drop_last",
    "full_determinism",
    "learning_rate_mapping",
    "multi_dataset_batch_sampler",
    "neftune_noise_alpha",
    "optim_target_modules",
    "prompts",
    "router_mapping",
)
_WITHOUT_EFFECT = ("training", "show_progress_bar")
# Of a model's configuration: where it came from, which version wrote it, and what it gives out; not what it is.
_ORIGIN = ("name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "use_cache", "return_dict")


def trainer_facts(trainer: Any, weights: str) -> dict[str, Any]:
    """What a trainer will train with.

    Args:
        trainer: a SentenceTransformerTrainer.
        weights: ``starting_weights`` of its model, from before its first step.

    Returns:
        Nested names -> JSON values.
    """
    losses = trainer.loss if isinstance(trainer.loss, Mapping) else {"": trainer.loss}
    losses = {name: dict(_modules(loss)) for name, loss in losses.items()}
    return {
        "model": {**_model(trainer.model), "starting weights": weights},
        "loss": losses.get("", losses),
        "collator": _settings(trainer.data_collator),
        "arguments": {name: _plain(getattr(trainer.args, name, None)) for name in _ARGUMENTS},
    }


def starting_weights(model: BaseModel) -> str:
    """The fingerprint of (1)."""
    encoder = next(iter(model.children()), model)
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        if "pooler." in name:
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(len(flat) // _SAMPLED, 1)][:_SAMPLED].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _model(model: BaseModel) -> dict[str, Any]:
    parts: dict[str, Any] = {name: dict(_modules(module)) for name, module in model.named_children()}
    for name, module in model.named_children():
        if (config := getattr(module, "config", None)) is not None and hasattr(config, "to_dict"):
            parts[name]["config"] = {
                key: _plain(value) for key, value in config.to_dict().items() if key not in _ORIGIN and key[0] != "_"
            }
        tokenizer: Any = getattr(module, "tokenizer", None)
        if hasattr(tokenizer, "get_vocab"):
            vocabulary = tokenizer.get_vocab()  # a mapping to numbers, or, of ST's word tokenizers, the list of words
            words = json.dumps(vocabulary, sort_keys=True, ensure_ascii=False)
            parts[name]["vocabulary"] = hashlib.sha256(words.encode("utf-8", "backslashreplace")).hexdigest()[:16]
        if (length := getattr(module, "max_seq_length", None)) is not None:
            parts[name]["max_seq_length"] = length
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return {
        "modules": [type(module).__name__ for module in model.children()],
        **parts,
        "prompts": _plain(getattr(model, "prompts", None)),
        "default_prompt_name": getattr(model, "default_prompt_name", None),
        "dtypes": sorted({str(weight.dtype) for weight in model.parameters()}),
        "trained weights": [len(trained), sum(weight.numel() for weight in trained)],
    }


def _modules(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name -> settings of ``root`` and of what is in it, save the model that is trained."""
    yield from _settings(root).items()
    shapes = {name: list(one.shape) for name, one in root.named_parameters(recurse=False)}
    if shapes:
        yield "shapes", shapes
    for name, child in root.named_children():
        if name == "model":  # of a loss, what is trained, and of an encoder, what its configuration stands for
            continue
        yield name, starting_weights(child) if isinstance(child, BaseModel) else dict(_modules(child))


def _settings(thing: Any) -> dict[str, Any]:
    """Class, configuration and public attributes of an object, as far as their values are plain."""
    found: dict[str, Any] = {"class": type(thing).__name__}
    known = {key: value for key, value in vars(thing).items() if not key.startswith("_") and key not in _WITHOUT_EFFECT}
    if hasattr(thing, "get_config_dict"):
        known |= thing.get_config_dict()
    for key, value in known.items():
        if isinstance(value, nn.Module) or not isinstance(key, str):
            continue
        found[key] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """A JSON value that is equal where ``value`` is, and does not tell one process from another."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return json.dumps({str(key): _plain(one) for key, one in value.items()}, ensure_ascii=False, sort_keys=True)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_plain(one)) for one in value)
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, partial):
        return _plain(value.func)
    return getattr(value, "__qualname__", type(value).__name__)
