"""Every key that a configuration can have, in words: what ``--help``, recipes/REFERENCE.md and the schemas are made of.

pydantic's JSON Schema of a dataclass is the description. Laid into it is what pydantic does not know: the help of each
field, defaults that are made, which keys are inherited, and which of those a run refuses.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_jsonable_python
from pydantic_core.core_schema import DataclassSchema

from piccolo_st.schema import Number, Whole, adapter

JsonSchema: TypeAlias = dict[str, Any]
"""Of a value, without references."""

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_IN_WORDS = dict(zip(_BOUNDS.values(), ("at least", "above", "at most", "below"), strict=True))
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
          "null": "empty", "object": "mapping", "any": "anything"}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: dotted, from the section on.
        kind: its type in words, with range and choices.
        default: as YAML has it; None where there is none.
        help: what it does.
        parent: the library whose class it is inherited from; empty: this package's own.
    """

    name: str
    kind: str
    default: str | None
    help: str
    parent: str

    @property
    def allowed(self) -> str:
        """Type and default."""
        return f"{self.kind}; {'required' if self.default is None else f'default {self.default}'}"


class _Schema(GenerateJsonSchema):
    """pydantic's, with what the dataclass says of each field."""

    def dataclass_schema(self, schema: DataclassSchema) -> JsonSchema:
        cls, found = schema["cls"], super().dataclass_schema(schema)
        if not _own(cls):  # another library's: its inside is not described
            return {"type": "object"}
        found["description"] = _one_line(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0])
        found.pop("title", None)
        refused = {*getattr(cls, "REPLACED", {}), *getattr(cls, "UNREAD", {})}
        items = {item.name: item for item in dataclasses.fields(cls) if item.init and item.name not in refused}
        helps = help_of(cls)
        found["properties"] = {name: found["properties"][name] for name in items}
        for name, of_key in found["properties"].items():
            of_key.pop("title", None)
            of_key["description"] = helps[name]
            if (factory := items[name].default_factory) is not dataclasses.MISSING:
                of_key["default"] = to_jsonable_python(factory())
            if not _own(home := _home(cls, name)):
                of_key["x-from"] = home.__module__.partition(".")[0]
        return found


def _own(cls: type) -> bool:
    return cls.__module__.partition(".")[0] not in ("transformers", "sentence_transformers", "accelerate")


def _home(cls: type, name: str) -> type:
    """The class that a field is from, or that gives it another default."""
    return next(base for base in cls.__mro__ if name in inspect.get_annotations(base))


def help_of(cls: type) -> dict[str, str]:
    """Field -> what it does: the help beside it (of another library its first sentence), or the docstring's words."""
    helps = dict.fromkeys((item.name for item in dataclasses.fields(cls)), "")
    entries = re.findall(r"^ +([a-z_][\w, ]*): (.+(?:\n {8,}.+)*)", inspect.getdoc(cls) or "", re.M)
    for names, words in entries:
        said = re.sub(r"\bNone\b", "empty", words[:1].upper() + words[1:])
        helps |= {name: _one_line(said) for name in names.split(", ") if name in helps}
    for item in dataclasses.fields(cls):
        if words := item.metadata.get("help"):
            first = re.split(r"(?<=[^.][^.])\.\s", words.strip(), maxsplit=1)[0]
            helps[item.name] = _one_line(words if _own(_home(cls, item.name)) else first)
    return helps


def _one_line(words: str) -> str:
    text = " ".join(words.replace("``", "`").split())
    return text if text.endswith(".") else f"{text}."


def json_schema(cls: type) -> JsonSchema:
    """The JSON Schema of a dataclass: an object that refuses unknown keys."""
    found = adapter(cls).json_schema(schema_generator=_Schema)
    return cast(JsonSchema, _plain(found["anyOf"][0], found.get("$defs", {})))


def _plain(part: object, definitions: Mapping[str, JsonSchema]) -> object:
    """References replaced by what they mean, and pydantic's names of bounds by those of JSON Schema."""
    if isinstance(part, list):
        return [_plain(one, definitions) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        meant = definitions[part["$ref"].rpartition("/")[2]]
        if "enum" in meant:  # whose docstring is for programmers
            meant = {key: meant[key] for key in ("type", "enum")}
        part = {**meant, **{key: value for key, value in part.items() if key != "$ref"}}
    if part.get("type") == "string" and "enum" not in part:  # the reader takes a whole number for its digits
        part = {**part, "type": ["string", "integer"]}
    return {
        _BOUNDS.get(key, key): value if key in ("default", "enum") else _plain(value, definitions)
        for key, value in part.items()
    }


# JSON Schema's type -> what the reader has for it; a library's numbers, which have no range, may be true and false.
_READERS: dict[str, Any] = {
    "string": str, "integer": int, "number": float, "boolean": bool, "null": None, "object": dict[str, object],
}  # fmt: skip
_RANGED: dict[str, Any] = {"integer": Whole, "number": Number}


def from_schema(name: str, schema: JsonSchema, base: type = object) -> type:
    """The dataclass of which ``schema`` is the description, as far as one goes: keys, types, ranges and defaults."""
    fields = []
    for key, of_key in schema["properties"].items():
        default = of_key["default"]
        made = isinstance(default, list | dict)
        given = dataclasses.field(default_factory=default.copy) if made else dataclasses.field(default=default)
        fields.append((key, _reader(of_key), given))
    return dataclasses.make_dataclass(name, fields, bases=(base,))


def _reader(schema: JsonSchema) -> Any:
    """The annotation that reads what a schema allows."""
    if "anyOf" in schema:
        return reduce(or_, map(_reader, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return Literal[tuple(schema.get("enum", [schema.get("const")]))]
    if schema.get("type") == "array":
        return list[_reader(schema["items"])]  # type: ignore[misc]
    kinds = schema.get("type", "any")
    kind = kinds if isinstance(kinds, str) else kinds[0]
    bounds = {ours: schema[theirs] for ours, theirs in _BOUNDS.items() if theirs in schema}
    return Annotated[_RANGED[kind], Field(**bounds)] if bounds else _READERS.get(kind, Any)


def keys(schema: JsonSchema, prefix: str) -> Iterator[Key]:
    """Each key of an object and, after it, those inside it; own ones first."""
    items = sorted(schema.get("properties", {}).items(), key=lambda item: "x-from" in item[1])
    for name, of_key in items:
        default = in_yaml(of_key["default"]) if "default" in of_key else None
        yield Key(f"{prefix}{name}", kind(of_key), default, of_key["description"], of_key.get("x-from", ""))
        for one in of_key.get("anyOf", [of_key]):
            yield from keys(one, f"{prefix}{name}.")


def kind(schema: JsonSchema) -> str:
    """The type of a value in words, with its range and its choices."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return f"one of {', '.join(map(in_yaml, schema['enum']))}"
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}".replace("list of one of", "list, each one of")
    bounds = [f"{words} {schema[name]:g}" for name, words in _IN_WORDS.items() if name in schema]
    kinds = schema.get("type", "any")
    return " ".join([_TYPES[kinds if isinstance(kinds, str) else kinds[0]], " and ".join(bounds)]).strip()


def in_yaml(value: object) -> str:
    """A default as it would be written in YAML, on one line."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(in_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {in_yaml(one)}" for key, one in value.items()) + "}"
    return str(value) if value != "" else "''"
