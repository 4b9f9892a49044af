"""--help, recipes/REFERENCE.md and the schemas say what the dataclasses say, and an editor would see a mistake."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from piccolo_st.commands.reference import LIBRARIES, RECIPES, files, schemas
from piccolo_st.config import Configuration, parse_run
from piccolo_st.curation import PrepareConfig
from piccolo_st.losses.hybrid import LABELLED, OWN_NEGATIVES, SCORED
from piccolo_st.training import FinetuneConfig, PretrainConfig
from piccolo_st.training.training_arguments import PiccoloTrainingArguments

CONFIGS = RECIPES / "configs"
TYPES = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None), "integer": int}


def followed(schema: dict[str, Any], file: str) -> tuple[dict[str, Any], str]:
    """What a $ref means, and the file it stands in."""
    if "$ref" not in schema:
        return schema, file
    name, _, inside = schema["$ref"].partition("#")
    file = name or file
    found = json.loads((CONFIGS / file).read_text(encoding="utf-8"))
    for part in filter(None, inside.split("/")):
        found = found[part]
    return found, file


def is_a(value: object, kind: str) -> bool:
    if isinstance(value, bool) or kind == "boolean":
        return isinstance(value, bool) and kind == "boolean"
    return isinstance(value, int | float) if kind == "number" else isinstance(value, TYPES[kind])


def mistakes(value: object, schema: dict[str, Any], file: str, place: str = "") -> list[str]:
    """What an editor would underline, by the keywords that the schemas use."""
    schema, file = followed(schema, file)
    if "anyOf" in schema:
        found = [mistakes(value, one, file, place) for one in schema["anyOf"]]
        return [] if [] in found else [line for lines in found for line in lines]
    kinds = schema.get("type", [])
    if kinds and not any(is_a(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return [f"{place} is no {kinds}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place} is none of {schema['enum']}"]
    rules = {"minimum": float.__ge__, "exclusiveMinimum": float.__gt__, "maximum": float.__le__,
             "exclusiveMaximum": float.__lt__}  # fmt: skip
    found = [f"{place} breaks {rule}" for rule, holds in rules.items()
             if rule in schema and not holds(float(str(value)), float(schema[rule]))]  # fmt: skip
    if isinstance(value, list) and "items" in schema:
        found += [line for n, one in enumerate(value) for line in mistakes(one, schema["items"], file, f"{place}.{n}")]
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{place}.{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, one in value.items():
            if key not in known and others is False:
                found.append(f"{place}.{key} is unknown")
            elif rule := known.get(key, others if isinstance(others, dict) else None):
                found += mistakes(one, rule, file, f"{place}.{key}")
    return found


def checked(text: str) -> list[str]:
    """The mistakes of a YAML text by the schema that its first line names."""
    named = re.match(r"# yaml-language-server: \$schema=(\S+\.schema\.json)\n", text)
    assert named, "the first line names no schema"
    return mistakes(yaml.safe_load(text), {"$ref": named[1]}, named[1])


def test_the_files_are_those_of_the_code() -> None:
    made = files()
    said = re.search(r"keys are those of\n(.*)\.\n", (RECIPES / "REFERENCE.md").read_text(encoding="utf-8"))
    assert said
    if said[1] != ", ".join(f"{name} {version(name)}" for name in LIBRARIES):
        pytest.skip(f"made with {said[1]}")
    stale = [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"{stale} are stale; run python -m piccolo_st.commands.reference"
    assert {path for path in made if path.suffix == ".json"} == set(CONFIGS.glob("*.json"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_file_has_no_mistake(path: Path) -> None:
    if path.stem != "evaluate":  # whose keys are a command's options
        assert checked(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "found"),
    [
        ("quickstart", "temperature:", "temperatur:", ".loss.temperatur is unknown"),
        ("quickstart", "train:", "train:\n  nonsense: 1", ".train.nonsense is unknown"),
        ("quickstart", "train:", "train:\n  per_device_train_batch_size: 1", ".per_device_train_batch_size is unknown"),
        ("quickstart", "task: retrieval", "task: retrieve", ".data.mixture.datasets.words.task is none of"),
        ("quickstart", "holdout: {queries", "holdout: {querys", ".holdout.querys is unknown"),
        ("quickstart", "vocab_size: 8000", "vocab_size: 0", ".model.build.vocab_size breaks minimum"),
        ("ablation-quickstart", "after: none", "afer: none", ".variants.random.afer is unknown"),
        ("ablation-quickstart", "batch_size: 64", "batch_size: many", ".data.batch_size is no integer"),
        ("zh-mini-mixture", "note:", "note_:", ".note_ is unknown"),
        ("evaluate_local", "type: STS", "type: STSS", ".type is none of"),
    ],
)
def test_a_mistake_is_underlined(name: str, right: str, wrong: str, found: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    assert right in text
    assert any(found in line for line in checked(text.replace(right, wrong, 1)))


def descriptions(schema: dict[str, Any], place: str) -> Iterator[tuple[str, str]]:
    for name, of_key in schema.get("properties", {}).items():
        if "$ref" not in of_key:
            yield f"{place}.{name}", of_key.get("description", "")
            for one in of_key.get("anyOf", [of_key]):
                yield from descriptions(one, f"{place}.{name}")


def test_the_help_of_a_dataset_says_the_weights_that_the_losses_have() -> None:
    said = schemas()["mixture"]["$defs"]["dataset"]["properties"]["loss"]["description"]
    assert f"by default {LABELLED['weight']:g}; of sts and pair {SCORED['weight']}" in said
    assert f"of classes without labels {OWN_NEGATIVES['weight']}" in said


def test_every_key_has_a_help() -> None:
    whole = schemas()
    parts = [*whole.items(), ("dataset", whole["mixture"]["$defs"]["dataset"]),
             ("task", whole["tasks"]["properties"]["tasks"]["items"]),
             ("variant", whole["ablation"]["properties"]["variants"]["additionalProperties"])]  # fmt: skip
    helps = dict(line for name, schema in parts for line in descriptions(schema, name))
    assert [key for key, text in helps.items() if len(text) < 5] == []
    assert {"finetune.train.optim", "finetune.model.build.layers", "prepare.mine.settings.pool", "dataset.mining.pool",
            "dataset.holdout.seed", "dataset.instruction.query"} <= set(helps)  # fmt: skip


@pytest.mark.parametrize("kind", [FinetuneConfig, PretrainConfig, PrepareConfig])
def test_the_help_shows_every_key(kind: type[Configuration], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_run(["--help"], kind, CONFIGS / "quickstart.yaml")
    shown = re.findall(r"^  --(\S+) .*\((.+); (?:default .*|required)\)$", capsys.readouterr().out, re.M)
    refused = {*PiccoloTrainingArguments.REPLACED, *PiccoloTrainingArguments.UNREAD}
    wanted = {
        f"{name}.{field.name}"
        for name, cls in kind.sections().items()
        for field in dataclasses.fields(cls)
        if field.init and not (name == "train" and field.name in refused)
    }
    nested = {"mine.settings.pool"} if kind is PrepareConfig else {
        "model.build.layers", "model.instructions.query", "data.mining.range_min"}  # fmt: skip
    names = {name for name, _ in shown}
    assert wanted | nested <= names
    assert {name for name in names if name.count(".") == 1} == wanted
    assert dict(shown)["filter.min_han" if kind is PrepareConfig else "plan.reserve"].startswith(
        "number at least 0 and"
    )
