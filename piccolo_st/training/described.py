"""A run's sections as the shipped schema describes them, for what only looks at a configuration.

The class of the section ``train`` takes seconds to import, since sentence-transformers' arguments do. What they are is
written down in finetune.schema.json, with what it was made of: the versions of the libraries that they come from, and
the file that adds to them. Where another version is installed, its description is kept in the cache of Hugging Face,
once a run has imported it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from huggingface_hub import constants

from piccolo_st.cache import write_whole
from piccolo_st.describe import JsonSchema, from_schema, json_schema
from piccolo_st.shipped import schema

if TYPE_CHECKING:
    from piccolo_st.training.sections import FinetuneSections

Stage: TypeAlias = Literal["finetune", "pretrain"]

#: Of them come the inherited keys, and the form of a schema.
LIBRARIES = ("transformers", "sentence-transformers", "pydantic")


def made_of() -> dict[str, str]:
    """What decides the description of the section ``train``: library, or file -> its version, or the hash of it."""
    own = Path(__file__).with_name("training_arguments.py")
    return {**{name: version(name) for name in LIBRARIES}, own.name: hashlib.sha256(own.read_bytes()).hexdigest()[:16]}


def described_sections(stage: Stage) -> dict[str, JsonSchema] | None:
    """Section -> its schema; None: the installed libraries have another section ``train``, which nobody kept yet."""
    train = _described_train()
    return None if train is None else {**schema(stage)["properties"], "train": train}


def described_run(stage: Stage, sections: Mapping[str, JsonSchema]) -> type[FinetuneSections]:
    """The configuration of a stage with ``train`` as described: it reads and refuses what the stage does."""
    from piccolo_st.training.sections import FinetuneSections, PretrainSections, TrainSection

    whole = FinetuneSections if stage == "finetune" else PretrainSections
    fields = [("train", from_schema("TrainSection", sections["train"], TrainSection))]
    return dataclasses.make_dataclass(whole.__name__, fields, bases=(whole,), frozen=True)


def keep_description() -> None:
    """Keep what the installed versions have, if the shipped schema was made with others."""
    if _described_train() is None:
        from piccolo_st.training.training_arguments import PiccoloTrainingArguments

        with contextlib.suppress(OSError):  # a home that cannot be written costs seconds the next time
            write_whole(_kept(), json.dumps(json_schema(PiccoloTrainingArguments)))


def _described_train() -> JsonSchema | None:
    found = schema("finetune")
    if found["x-made-of"] == made_of():
        return found["properties"]["train"]
    return json.loads(_kept().read_text(encoding="utf-8")) if _kept().is_file() else None


def _kept() -> Path:
    key = hashlib.sha256(json.dumps(made_of()).encode()).hexdigest()[:16]
    return Path(constants.HF_HOME) / "piccolo_st" / f"train-{key}.json"
