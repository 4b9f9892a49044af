"""Read a checkpoint with the eyes of each of those who would load it, without loading it.

Every check below states one expectation and returns the problems it finds. ``CONSUMERS`` says who expects what. The
expectations on sentence-transformers (ST) are those its versions 3.4, 4.1, 5.1, 5.7 and 6.2 were seen to have; those on
text-embeddings-inference come from its router, which parses these files strictly, and those on vLLM from its reader of
pooling and tokenizer configs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open

JsonObject: TypeAlias = dict[str, Any]
"""What a configuration file holds."""

# Pooling mode -> its flag in a pooling config, in the order in which ST 3 to 5.3 join the parts of several modes.
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}

# Encoders whose table of positions begins with rows for padding; see positions.py.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")


@dataclass(frozen=True)
class ConsumerReport:
    """What one consumer would stumble over; ``ok`` if nothing.

    Attributes:
        consumer: who loads it.
        problems: what is wrong with the files.
        limits: what the model is that this consumer knows nothing of, however it is saved.
    """

    consumer: str
    problems: tuple[str, ...]
    limits: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it loads, with the same embeddings."""
        return not (self.problems or self.limits)


def check_portable(path: str | Path) -> list[ConsumerReport]:
    """Check the checkpoint in the folder ``path`` for every consumer.

    A missing ONNX file is a problem for "ONNX" alone.

    Raises:
        FileNotFoundError: ``path`` is no folder.

    Example:
        >>> {report.consumer: report.problems for report in check_portable("runs/quickstart/model") if not report.ok}
        {'ONNX': ('onnx/model.onnx is missing: python -m piccolo_st release --onnx writes it',)}
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no checkpoint to check: {path} is not a folder")
    checkpoint = _Checkpoint(Path(path))
    reports = []
    for consumer, checks in CONSUMERS.items():
        problems = [problem for check in checks for problem in check(checkpoint)]
        limits = [limit for check in LIMITS.get(consumer, ()) for limit in check(checkpoint)]
        reports.append(ConsumerReport(consumer, tuple(dict.fromkeys(problems)), tuple(limits)))
    return reports


class _Checkpoint:
    """The files of a checkpoint. What is missing or broken reads as empty; ``_files`` reports it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def json(self, name: str) -> JsonObject:
        try:
            found: JsonObject = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    @cached_property
    def config(self) -> JsonObject:
        return self.json("config.json")

    @cached_property
    def modules(self) -> list[JsonObject]:
        entries: Iterable[object] = self.json("modules.json")  # a list, or nothing
        return [entry for entry in entries if isinstance(entry, dict) and {"type", "path"} <= set(entry)]

    @cached_property
    def pooling(self) -> JsonObject:
        folders = [module["path"] for module in self.modules if module["type"].endswith("Pooling")]
        return self.json(f"{folders[0]}/config.json") if folders else {}

    @cached_property
    def lengths(self) -> JsonObject:
        return self.json("sentence_bert_config.json")

    @cached_property
    def prompts(self) -> JsonObject:
        return self.json("config_sentence_transformers.json")

    @property
    def modes(self) -> list[str]:
        return [mode for mode, flag in POOLING_FLAGS.items() if self.pooling.get(flag) is True]


Problems: TypeAlias = Iterator[str]


def _files(checkpoint: _Checkpoint) -> Problems:
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json"]
    names += ["config_sentence_transformers.json"]
    for name in names:
        if not (checkpoint.path / name).exists():
            yield f"{name} is missing"
        elif not checkpoint.json(name):
            yield f"{name} is empty or not JSON"


def _weights(checkpoint: _Checkpoint) -> Problems:
    index = checkpoint.json("model.safetensors.index.json")
    names = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
    dtypes = set()
    for name in names:
        try:
            with safe_open(checkpoint.path / name, framework="numpy") as file:
                dtypes |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118  (no mapping)
        except FileNotFoundError:
            yield f"{name} is missing"
        except SafetensorError as error:
            yield f"{name} is broken: {error}"
    spelled = {"F16": "float16", "F32": "float32"}
    floats = {dtype for dtype in dtypes if dtype.startswith(("F", "BF"))}
    if unusual := floats - set(spelled):
        yield f"weights are {', '.join(sorted(unusual))}, not float16 or float32: save them with dtype=torch.float32"
    elif len(floats) > 1:
        yield f"weights are of several types, {', '.join(sorted(floats))}"
    elif floats:
        (dtype,) = floats
        for key in ("dtype", "torch_dtype"):
            if checkpoint.config.get(key) not in (spelled[dtype], None):
                yield f"config.json says {key}={checkpoint.config[key]!r}, the weights are {spelled[dtype]}"


def _tokenizer(checkpoint: _Checkpoint) -> Problems:
    tokenizer = checkpoint.json("tokenizer.json")
    for key in ("truncation", "padding"):
        if tokenizer.get(key) is not None:
            yield f"tokenizer.json has {key} baked in from an earlier call: {tokenizer[key]}"


def _tokenizer_of_transformers_4(checkpoint: _Checkpoint) -> Problems:
    config = checkpoint.json("tokenizer_config.json")
    if config.get("tokenizer_class") == "TokenizersBackend":
        yield "tokenizer_config.json names TokenizersBackend, a class that only transformers 5 has"
    if isinstance(config.get("extra_special_tokens"), list):
        yield "tokenizer_config.json has extra_special_tokens as a list, which transformers 4 cannot read"


def _stock_modules(checkpoint: _Checkpoint) -> Problems:
    for module in checkpoint.modules:
        if not module["type"].startswith("sentence_transformers."):
            yield f"modules.json has {module['type']}, which ST 6 loads only with trust_remote_code"
        if module["path"] and not (checkpoint.path / module["path"]).is_dir():
            yield f"the folder {module['path']} of modules.json is missing"


def _old_module_names(checkpoint: _Checkpoint) -> Problems:
    for module in checkpoint.modules:
        if not module["type"].startswith("sentence_transformers.models."):
            yield f"modules.json has {module['type']}; only sentence_transformers.models.* is known everywhere"


def _old_module_configs(checkpoint: _Checkpoint) -> Problems:
    known = {"max_seq_length", "do_lower_case", "model_args", "tokenizer_args", "config_args"}
    if unknown := sorted(set(checkpoint.lengths) - known):
        yield f"sentence_bert_config.json has {unknown}, at which ST 3 to 5.3 stop"
    known = {"word_embedding_dimension", "pooling_mode", "include_prompt", *POOLING_FLAGS.values()}
    if unknown := sorted(set(checkpoint.pooling) - known):
        yield f"the pooling config has {unknown}, at which ST 3 to 5.3 stop"
    if "word_embedding_dimension" not in checkpoint.pooling:
        yield "the pooling config has no word_embedding_dimension"


def _pooling(checkpoint: _Checkpoint) -> Problems:
    pooling = checkpoint.pooling
    if wrong := [flag for flag in POOLING_FLAGS.values() if not isinstance(pooling.get(flag), bool)]:
        yield f"the pooling config has no true or false for {wrong}"
    named = pooling.get("pooling_mode")
    if named is not None and ([named] if isinstance(named, str) else list(named)) != checkpoint.modes:
        yield f"the pooling config says pooling_mode={named!r}, its flags say {checkpoint.modes}"
    dimensions = {pooling.get("word_embedding_dimension"), pooling.get("embedding_dimension")} - {None}
    if dimensions - {checkpoint.config.get("hidden_size")}:
        yield f"the pooling config has dimension {dimensions}, the encoder {checkpoint.config.get('hidden_size')}"


def _pooling_of_servers(checkpoint: _Checkpoint) -> Problems:
    if len(checkpoint.modes) != 1 or checkpoint.modes[0] not in ("cls", "mean", "lasttoken"):
        yield f"it pools cls, mean or lasttoken, this model {checkpoint.modes}"


def _first_true_flag(checkpoint: _Checkpoint) -> Problems:
    first = next((key for key, value in checkpoint.pooling.items() if value is True), None)
    if first not in POOLING_FLAGS.values():
        yield f"older versions take the first true key of the pooling config for the pooling type, which is {first!r}"


def _pooling_folder(checkpoint: _Checkpoint) -> Problems:
    if not (checkpoint.path / "1_Pooling" / "config.json").exists():
        yield "1_Pooling/config.json is missing"


def _instructions_pooled(checkpoint: _Checkpoint) -> Problems:
    if checkpoint.pooling.get("include_prompt") is False:
        yield "the model excludes instructions from pooling (include_prompt), which this consumer cannot"


def _dense(checkpoint: _Checkpoint) -> Problems:
    if any(module["type"].endswith("Dense") for module in checkpoint.modules):
        yield "the model has a Dense module, which this consumer knows nothing of"


def _lengths(checkpoint: _Checkpoint) -> Problems:
    length, config = checkpoint.lengths.get("max_seq_length"), checkpoint.config
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        yield f"sentence_bert_config.json has max_seq_length={length!r}, not a positive integer"
    elif isinstance(positions := config.get("max_position_embeddings"), int):
        if config.get("model_type") in _OFFSET_POSITIONS:
            positions -= (config.get("pad_token_id") or 0) + 1
        if length > positions:
            yield f"max_seq_length={length} is more than the {positions} tokens the encoder has positions for"


def _lower_case_key(checkpoint: _Checkpoint) -> Problems:
    if "do_lower_case" not in checkpoint.lengths:
        yield "sentence_bert_config.json has no do_lower_case, without which max_seq_length is ignored"


def _prompts(checkpoint: _Checkpoint) -> Problems:
    if not isinstance(prompts := checkpoint.prompts.get("prompts"), dict):
        yield f"config_sentence_transformers.json has prompts={prompts!r}, not a mapping"
    elif wrong := sorted(name for name, text in prompts.items() if not isinstance(text, str)):
        yield f"the prompts {wrong} are no strings"
    if (name := checkpoint.prompts.get("default_prompt_name")) is not None:
        yield f"the default prompt {name!r} goes before the texts of every task; set default_prompt_name to null"


def _strict_config(checkpoint: _Checkpoint) -> Problems:
    config = checkpoint.config
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or any(name.endswith("Classification") for name in architectures):
        yield f"config.json has architectures={architectures!r}, which is no embedding model"
    for key in ("max_position_embeddings", "pad_token_id"):
        if not isinstance(config.get(key), int) or config[key] < 0:
            yield f"config.json has {key}={config.get(key)!r}, not an integer of 0 or more"


def _onnx_file(checkpoint: _Checkpoint) -> Problems:
    if not (checkpoint.path / "onnx" / "model.onnx").exists():
        yield "onnx/model.onnx is missing: python -m piccolo_st release --onnx writes it"


Check: TypeAlias = Callable[[_Checkpoint], Problems]

_ST_6: tuple[Check, ...] = (_files, _tokenizer, _weights, _stock_modules, _prompts)
_ST_3: tuple[Check, ...] = (
    *_ST_6,
    _lengths,
    _pooling,
    _tokenizer_of_transformers_4,
    _old_module_names,
    _old_module_configs,
)
_SERVER: tuple[Check, ...] = (_files, _tokenizer, _lengths, _pooling, _pooling_of_servers, _instructions_pooled)

CONSUMERS: dict[str, tuple[Check, ...]] = {
    "sentence-transformers 3.x": _ST_3,
    "sentence-transformers 4.x": _ST_3,
    "sentence-transformers 5.x": _ST_3,
    "sentence-transformers 6.x": _ST_6,
    "transformers": (*_SERVER, _weights, _tokenizer_of_transformers_4),
    "text-embeddings-inference": (*_SERVER, _weights, _pooling_folder, _prompts, _strict_config),
    "vLLM": (
        *_SERVER,
        _weights,
        _tokenizer_of_transformers_4,
        _old_module_names,
        _first_true_flag,
        _lower_case_key,
    ),
    "ONNX": (*_SERVER, _onnx_file),
}
LIMITS: dict[str, tuple[Check, ...]] = {"transformers": (_dense,), "ONNX": (_dense,)}
