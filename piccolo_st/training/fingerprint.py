"""A run's fingerprint: everything that decides its rows and its numbers, as flat JSON that a checkpoint carries.

It holds the arguments that change a weight, the plan of the batches, a hash of each dataset, the sections of the
configuration, and what the trainer sees: model, losses and collator. Those are read off the objects, whatever their
class: the class, ``get_config_dict`` where there is one, and every public attribute with a plain value. Of weights

    (1) a model's first module, the encoder, counts by a hash of up to 256 numbers of each tensor, spread over it, which
        tells another checkpoint from this one and costs a moment for 7 GB. Poolers are left out: pooling does not read
        them, and transformers begins them at random where a checkpoint has none;
    (2) the modules behind it, and losses, count by the shapes of their weights only: a script that is started again
        begins them with other random numbers, and a run that goes on reads them from its checkpoint anyway.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial

import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.model import BaseModel
from torch import nn
from transformers import TrainingArguments

from piccolo_st.data import StreamedTable
from piccolo_st.mining import StoredGuide, StoredTeachers
from piccolo_st.modeling.fingerprint import sampled_hash
from piccolo_st.redaction import redact

# Training arguments that change a weight. What only changes logs, evaluation or when a checkpoint is written is absent.
_DECISIVE = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "learning_rate",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "optim_args",
    "seed",
    "warmup_steps",
    "weight_decay",
)
_SAMPLED_ROWS = 256
# Further arguments that change numbers: among those of the trainer, since a version that has them compares them only.
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

# What loss.mini_batch_num_tokens: auto finds on the machine that a run starts on; with another the same is learnt.
_TOKENS = "configuration.loss.mini_batch_num_tokens"
_FOUND = ("mini_batch_num_tokens", "uses_gradient_cache")

# What older checkpoints call a class -> its name.
_RENAMED = {"OtherClassesLoss": "SINCERELoss"}


def run_fingerprint(
    args: TrainingArguments, plan: Mapping[str, object], data: Mapping[str, str], extra: Mapping[str, object]
) -> dict[str, object]:
    """Everything that decides a run's rows and arithmetic, save the number of processes.

    Args:
        args: the training arguments.
        plan: ``BatchPlan.signature()``; empty with another sampler.
        data: dataset name -> hash, of ``data_fingerprints``.
        extra: sections of the configuration that the trainer does not see, such as the loss's.

    Returns:
        Dotted name -> a JSON value; a checkpoint holds it, so that no secret is among them.
    """
    train = {name: getattr(args, name) for name in _DECISIVE}
    for name in ("fast_dropout", "packing"):  # stock arguments have no such fields
        train[name] = getattr(args, name, False)
    # In-batch negatives come from one micro-step of all ranks.
    train["rows of a micro-step"] = args.world_size * args.per_device_train_batch_size
    sections = {"plan": plan, "data": data, "train": train, **extra}
    return redact(json.loads(json.dumps(dict(_flat(sections)), default=str)), mark="left out")[0]


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What two flat mappings differ in, in words."""
    names = sorted({*before, *now})
    return [
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in names
        if before.get(name) != now.get(name) or (name in before) != (name in now)
    ]


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What two fingerprints differ in, in words.

    What only one of them has of the trainer's part is no difference, since a version knows facts that another does not;
    nor is what ``roundings`` tells.
    """
    before = {name: _RENAMED.get(value, value) if isinstance(value, str) else value for name, value in before.items()}
    both = before.keys() & now.keys()
    sides = [
        {name: value for name, value in side.items() if name in both or not name.startswith("trainer.")}
        for side in (before, now)
    ]
    if _is_found(before, now):
        sides = [{name: value for name, value in side.items() if not _rounds(name)} for side in sides]
    return differences(*sides)


def roundings(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What two fingerprints differ in that changes the last bits alone, in words."""
    if not _is_found(before, now):
        return []
    return differences(*({name: value for name, value in side.items() if _rounds(name)} for side in (before, now)))


def _is_found(*sides: Mapping[str, object]) -> bool:
    return all(side.get(_TOKENS) == "auto" for side in sides)


def _rounds(name: str) -> bool:
    return name.startswith("trainer.loss.") and name.endswith(_FOUND)


def data_fingerprints(datasets: Mapping[str, Dataset | IterableDataset]) -> dict[str, str]:
    """A hash of each dataset: its columns, its size and rows spread evenly over it. Reads at most 256 rows.

    Of one that a mixture streams the key of its rows takes their place, since they are read a row group at a time; of
    an IterableDataset it is a hash of the columns alone.
    """
    return {name: _data_fingerprint(dataset) for name, dataset in datasets.items()}


def _data_fingerprint(dataset: Dataset | IterableDataset) -> str:
    size, rows = -1, dict[str, list[object]]()
    if isinstance(dataset, Dataset) and isinstance(dataset.data, StreamedTable):
        size, rows = len(dataset), {"key": [dataset.data.key]}
    elif isinstance(dataset, Dataset):
        dataset = dataset.with_format(None)  # without the transform that adds the dataset's name
        size = len(dataset)
        count = min(size, _SAMPLED_ROWS)
        rows = dataset[[index * (size - 1) // max(count - 1, 1) for index in range(count)]] if size else {}
    content = json.dumps([sorted(dataset.column_names), size, rows], sort_keys=True, default=str, ensure_ascii=False)
    return _short_hash(content.encode())


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def trainer_fingerprint(trainer: SentenceTransformerTrainer, weights: str) -> dict[str, object]:
    """What a trainer will train with: the part ``trainer`` of the run's fingerprint.

    Args:
        trainer: before its first step.
        weights: ``weights_fingerprint`` of its model, from before its first step.

    Returns:
        Nested names -> JSON values.
    """
    return {
        "model": {**_model(trainer.model), "starting weights": weights},
        "loss": {name: dict(_modules(loss)) for name, loss in trainer.loss.items()}
        if isinstance(trainer.loss, Mapping)
        else dict(_modules(trainer.loss)),
        "collator": _settings(trainer.data_collator),
        "arguments": {name: _plain(getattr(trainer.args, name, None)) for name in _ARGUMENTS},
    }


def weights_fingerprint(model: BaseModel) -> str:
    """The hash of (1)."""
    encoder = next(iter(model.children()), model)
    return sampled_hash((name, one) for name, one in encoder.state_dict().items() if "pooler." not in name)


def _model(model: BaseModel) -> dict[str, object]:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return {
        "modules": [type(module).__name__ for module in model.children()],
        **{name: {**dict(_modules(module)), **_tokens(module)} for name, module in model.named_children()},
        "prompts": _plain(getattr(model, "prompts", None)),
        "default_prompt_name": getattr(model, "default_prompt_name", None),
        "dtypes": sorted({str(weight.dtype) for weight in model.parameters()}),
        "trained weights": [len(trained), sum(weight.numel() for weight in trained)],
    }


def _tokens(module: nn.Module) -> dict[str, object]:
    """What a model's module says of its encoder and of the tokens that it takes."""
    found: dict[str, object] = {}
    if (config := getattr(module, "config", None)) is not None and hasattr(config, "to_dict"):
        known = config.to_dict().items()
        found["config"] = {key: _plain(value) for key, value in known if key not in _ORIGIN and key[0] != "_"}
    if (tokenizer := getattr(module, "tokenizer", None)) is not None and hasattr(tokenizer, "get_vocab"):
        vocabulary = tokenizer.get_vocab()  # a mapping to numbers, or, of ST's word tokenizers, the list of words
        words = json.dumps(vocabulary, sort_keys=True, ensure_ascii=False)
        found["vocabulary"] = _short_hash(words.encode("utf-8", "backslashreplace"))
    if (length := getattr(module, "max_seq_length", None)) is not None:
        found["max_seq_length"] = length
    return found


def _modules(root: nn.Module) -> Iterator[tuple[str, object]]:
    """Name -> settings of ``root`` and of what is in it, save the model that is trained."""
    yield from _settings(root).items()
    shapes = {name: list(one.shape) for name, one in root.named_parameters(recurse=False)}
    if shapes:
        yield "shapes", shapes
    for name, child in root.named_children():
        if name == "model":  # of a loss, what is trained, and of an encoder, what its configuration stands for
            continue
        yield name, weights_fingerprint(child) if isinstance(child, BaseModel) else dict(_modules(child))


def _settings(thing: object) -> dict[str, object]:
    """Class, configuration and public attributes of an object, as far as their values are plain."""
    known = {key: value for key, value in vars(thing).items() if not key.startswith("_") and key not in _WITHOUT_EFFECT}
    if hasattr(thing, "get_config_dict"):
        known |= thing.get_config_dict()
    settings = {k: _plain(v) for k, v in known.items() if isinstance(k, str) and not isinstance(v, nn.Module)}
    return {"class": type(thing).__name__, **settings}


def _plain(value: object) -> object:
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
        return _short_hash(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, partial):
        return _plain(value.func)
    if isinstance(value, StoredGuide | StoredTeachers):
        return value.made_of
    return getattr(value, "__qualname__", type(value).__name__)
