"""The files of a saved checkpoint, read as data."""

from __future__ import annotations

from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, TypeAlias

from typing_extensions import TypedDict

from piccolo_st.errors import InputError
from piccolo_st.stored import read_json

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


class _Module(TypedDict):
    """An entry of modules.json."""

    type: str
    path: str


LENGTHS = ("query_length", "document_length")
"""The settings that sentence-transformers 6 alone knows."""


# What transformers 4 calls the base of the rotary positions in layers of each kind; elsewhere it is rope_theta.
_ROTARY_BASES = {
    "modernbert": {"global_rope_theta": "full_attention", "local_rope_theta": "sliding_attention"},
    "gemma3_text": {"rope_theta": "full_attention", "rope_local_base_freq": "sliding_attention"},
}


def older_rotary(config: JsonObject) -> JsonObject:
    """The ``rope_parameters`` of an encoder's configuration, under the names that transformers 4 and others read.

    Where those are missing, transformers 4 takes what is usual for the architecture, and gives other vectors.
    """
    given: JsonObject = config.get("rope_parameters") or {}
    names = _ROTARY_BASES.get(str(config.get("model_type")), {"rope_theta": ""})
    found = {name: given.get(layers, given).get("rope_theta") for name, layers in names.items()}
    main: JsonObject = given.get("full_attention", given)
    found["partial_rotary_factor"] = main.get("partial_rotary_factor")
    if main.get("rope_type", "default") != "default":
        found["rope_scaling"] = {name: value for name, value in main.items() if name not in found}
    return {name: value for name, value in found.items() if value is not None}


class Checkpoint:
    """The files of a checkpoint. What is missing or broken reads as empty; readers.py reports it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def json(self, name: str) -> JsonObject:
        """What a file holds."""
        try:
            return read_json(self.path / name, JsonObject, "")
        except InputError:
            return {}

    @cached_property
    def config(self) -> JsonObject:
        """The encoder's."""
        return self.json("config.json")

    @cached_property
    def modules(self) -> list[_Module]:
        """The entries of modules.json."""
        try:
            return read_json(self.path / "modules.json", list[_Module], "")
        except InputError:
            return []

    @cached_property
    def pooling(self) -> JsonObject:
        """The config of the pooling module."""
        folders = [module["path"] for module in self.modules if module["type"].endswith("Pooling")]
        return self.json(f"{folders[0]}/config.json") if folders else {}

    @cached_property
    def lengths(self) -> JsonObject:
        """sentence_bert_config.json."""
        return self.json("sentence_bert_config.json")

    @cached_property
    def prompts(self) -> JsonObject:
        """config_sentence_transformers.json."""
        return self.json("config_sentence_transformers.json")

    @property
    def instructions(self) -> list[str]:
        """The prompts for retrieval that are not empty."""
        prompts = self.prompts.get("prompts")
        return [text for text in prompts.values() if text] if isinstance(prompts, dict) else []

    @property
    def dense(self) -> list[JsonObject]:
        """The configs of the Dense modules."""
        return [self.json(f"{one['path']}/config.json") for one in self.modules if one["type"].endswith("Dense")]

    def onnx_has(self, output: str) -> bool | None:
        """Whether the ONNX file gives this output; None: there is no file.

        Outputs stand at the end of the file, after the weights, so they are found without reading those, and without
        the package onnx.
        """
        try:
            with (
                (self.path / "onnx" / "model.onnx").open("rb") as file,
                mmap(file.fileno(), 0, access=ACCESS_READ) as data,
            ):
                return data.rfind(output.encode()) >= 0
        except (OSError, ValueError):  # no file, or an empty one
            return None

    @property
    def modes(self) -> list[str]:
        """The pooling modes whose flag is set."""
        return [mode for mode, flag in POOLING_FLAGS.items() if self.pooling.get(flag) is True]
