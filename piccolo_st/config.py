"""Reading the configuration of a run: one YAML file with a section per dataclass, any field overridden by hand.

    (1) read the YAML named by the first argument, or the recipe's default;
    (2) lay ``--section.field value`` over it; the value is read as YAML, deeper keys reach into mappings;
    (3) build the dataclass of each section from what is there, by its annotations (``schema``).

A configuration that cannot be used raises ``ConfigError``; ``run_command`` turns it and every other ``InputError``
into one sentence and exit code 2, and ends quietly when nobody reads what a command prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import yaml
from yaml.constructor import ConstructorError

from piccolo_st.describe import JsonSchema, json_schema, keys
from piccolo_st.errors import ConfigError, nearest, reason, shown
from piccolo_st.schema import Keys, build, unknown_key


@dataclass(frozen=True)
class Configuration:
    """What a YAML file and a command line say; a subclass has one more field for each section, of its dataclass.

    Attributes:
        path: the file.
        resolved: section -> key -> value as YAML has it, defaults included, for the record of the run.
    """

    path: Path
    resolved: dict[str, dict[str, object]]

    @classmethod
    def sections(cls) -> dict[str, type]:
        """Section -> its dataclass, in the order of the fields."""
        hints = get_type_hints(cls)
        return {f.name: hints[f.name] for f in fields(cls) if f.name not in ("path", "resolved")}


Config = TypeVar("Config", bound=Configuration)


class OptionParser(argparse.ArgumentParser):
    """argparse's parser, which says what is wrong with a command line as a ConfigError, in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with argparse's message in this package's words."""
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            known = [name for name in self._option_string_actions if name.startswith("--")]
            near = nearest(unknown[1], known) if unknown[1].startswith("-") else "; see --help"
            raise ConfigError(f"unknown argument {unknown[1]!r}{near}")
        raise ConfigError(_in_own_words(message))


# argparse's rules, and how this package says them.
_RULES = (
    (r"invalid (?P<type>\w+) value: (?P<value>.*)", "must be of type {type}, got {value}"),
    (r"Truthy value expected: got (?P<value>.*) but expected one of .*", "must be of type bool, got '{value}'"),
    (r"invalid choice: (?P<value>.*) \(choose from (?P<choices>.*)\)", "must be one of {choices}, got {value}"),
    (r"expected (?P<count>.*)", "needs {count}; see --help"),
)


def _in_own_words(message: str) -> str:
    """A message of argparse as rule and value."""
    about = re.fullmatch(r"argument ([^:]+): (.*)", message)
    if about is None:
        return message.replace("the following arguments are required:", "the command line must have") + "; see --help"
    name, rule = about[1].split("/")[0], about[2]
    for pattern, words in _RULES:
        if found := re.fullmatch(pattern, rule):
            parts = {**found.groupdict(), "choices": found.groupdict().get("choices", "").replace("'", "")}
            return f"{name} {words.format(**parts)}"
    return f"{name}: {rule}"


def load_yaml(path: Path) -> object:
    """What a YAML file holds; one that cannot be read, or is no YAML, raises ConfigError with the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {reason(error)}; give the path of a YAML file") from None
    try:
        return _load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {reason(error)}") from None


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping a YAML file holds; anything else raises ConfigError."""
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {type(content).__name__}")
    return content


def read_value(text: str, place: str) -> object:
    """What a word of the command line means as YAML; ``place`` is its option, for the ConfigError if it is none."""
    try:
        return _load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place} must be YAML, got {shown(text)}: {reason(error)}") from None


# The most values a file may have with its aliases written out: nine lines of aliases can stand for billions.
_MOST_VALUES = 1_000_000


# Numbers as YAML 1.2 has them: 1e-6 is one; 12:30:45, 2024-01-01 and 1_000 are text, as are octal and hexadecimal ones
# and those with zeros in front, which are labels (a revision 0123456) of which a number would be another.
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"([-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2, which refuses a key named twice, and what YAML's own types
    cannot hold, with the line."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{shown(node.value)} cannot be read as YAML's {kind} ({reason(error)})"
            raise ConstructorError(None, None, problem, node.start_mark) from None


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what a reader of YAML 1.1 or 1.2 would take for a number."""


_Loader.yaml_implicit_resolvers = {  # of its own: PyYAML's stay as they are
    first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] in ("null", "bool", "merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))
    _Dumper.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))


def to_yaml(value: object, width: int = 80) -> str:
    """A value as the YAML that ``load_yaml`` reads it from, keys in their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=width)
    return text


def _load(text: str) -> object:
    """The value of a YAML text.

    Raises:
        YAMLError: not YAML, a key twice, nested too deeply, or aliases that stand for more than anybody means.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES:,} values, or for themselves")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node has with its aliases written out; one inside itself has infinitely many."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inside = [part for item in parts for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in inside)
    return known[id(node)]


def line_in(path: str | Path, keys: Keys) -> str:
    """``, line N`` of a key of nested mappings in a YAML file that has been read; empty where it is not there."""
    if not Path(path).is_file():
        return ""
    node, line = yaml.compose(Path(path).read_text(encoding="utf-8"), _Loader), 0
    for wanted in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        found = next(((key, value) for key, value in pairs if key.value == str(wanted)), None)
        if found is None:
            return ""
        node, line = found[1], found[0].start_mark.line + 1
    return f", line {line}"


def parse_overrides(arguments: Sequence[str], known: Mapping[str, bool] | None = None) -> dict[str, object]:
    """``--a.b value``, ``--a.b=value`` and a bare ``--a.b`` (true) as a flat mapping of dotted keys to YAML values.

    ``known`` has the keys of two parts that there are, and whether each may be true.
    """
    known = known or {}
    overrides: dict[str, object] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or "." not in argument.split("=", 1)[0]:
            word = argument.lstrip("-").split("=", 1)[0]
            meant = [one for one in known if one.partition(".")[2] == word]
            remedy = f"write --{meant[0]} value" if meant else "write --section.field value"
            raise ConfigError(f"{argument!r} is not an override; {remedy}")
        key, sign, text = argument[2:].partition("=")
        if not sign:
            bare = not rest or rest[0].startswith("--")
            if bare and not known.get(key, True):
                raise ConfigError(f"--{key} must have a value, got none; write --{key} value")
            text = "true" if bare else rest.pop(0)
        overrides[key] = read_value(text, f"--{key}")
    return overrides


def merge(content: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """``content`` with the values of dotted keys laid over it; neither is changed.

    Raises:
        ConfigError: a dotted key leads through something that is no mapping.
    """
    merged: dict[str, object] = {
        name: dict(section) if isinstance(section, Mapping) else section for name, section in content.items()
    }
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        place: dict[str, object] = merged
        for parent in parents:
            child = place.get(parent)
            if child is not None and not isinstance(child, dict):
                raise ConfigError(f"--{dotted} needs {parent} to be a mapping, got {child!r}")
            inside: dict[str, object] = dict(child) if child else {}
            place[parent] = place = inside
        place[last] = value
    return merged


def parse_run(arguments: Sequence[str], kind: type[Config], default: Path, description: str = "") -> Config:
    """Parse a recipe's command line: ``[CONFIG.yaml] [--section.field value ...]``.

    Args:
        arguments: the command line without the program's name.
        kind: the configuration, such as ``FinetuneConfig``.
        default: the YAML to read when the first argument is not a path.
        description: first lines of ``--help``.

    Raises:
        ConfigError: missing or unreadable file, unknown section or key, value of the wrong type.
        SystemExit: after ``--help``.
    """
    arguments, sections = list(arguments), kind.sections()
    if asks_for_help(arguments):
        print(usage({name: json_schema(cls) for name, cls in sections.items()}, default, description))
        raise SystemExit(0)
    path = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else default
    own = {name: get_type_hints(cls, include_extras=False) for name, cls in sections.items()}
    known = {
        f"{name}.{item.name}": bool in (hint := own[name].get(item.name), *get_args(hint)) or hint in (None, Any)
        for name, cls in sections.items()
        for item in fields(cls)
    }
    overrides = parse_overrides(arguments, known)
    merged = merge(read_yaml(path), overrides)

    def where(keys: Keys) -> str:
        dotted = ".".join(map(str, keys))
        line = line_in(path, keys)
        by_hand = any(dotted == key or dotted.startswith(f"{key}.") for key in overrides)
        return "the command line" if by_hand or not line else f"{path}{line}"

    given: dict[str, Mapping[str, object]] = {name: {} for name in sections}
    for name, values in merged.items():
        if name not in sections:
            raise ConfigError(f"unknown section {name!r} in {where([name])}{nearest(str(name), list(sections))}")
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"section {name!r} in {where([name])} must be a mapping, got {shown(values)}")
        given[name] = values or {}
    built: dict[str, Any] = {}
    for name, cls in sections.items():
        values = given[name]
        _check_unset(name, cls, values, where)
        for key in values:
            elsewhere = [one for one in known if one.partition(".")[2] == key]
            if elsewhere and f"{name}.{key}" not in known:
                raise ConfigError(unknown_key(f"{name}.{key}", elsewhere[:1], where([name, key])))

        def within(keys: Keys, name: str = name) -> str:
            return where([name, *keys])

        built[name] = build(cls, values, f"section {name!r}", section=name, where=within)
    resolved = {name: {**_defaults(cls), **given[name]} for name, cls in sections.items()}
    return kind(path=path, resolved=resolved, **built)


def _check_unset(name: str, cls: type, values: Mapping[str, object], where: Callable[[Keys], str]) -> None:
    """Refuse what a class has from a parent and a run does not read, saying what takes its place, or why."""
    for key in values:
        if instead := getattr(cls, "REPLACED", {}).get(key):
            raise ConfigError(f"{name}.{key} cannot be set in {where([name, key])}; set {instead} instead")
        if why := getattr(cls, "UNREAD", {}).get(key):
            raise ConfigError(f"{name}.{key} in {where([name, key])} must be left out, since nothing reads it: {why}")


def _defaults(cls: type) -> dict[str, object]:
    """What the settings of a section are where nobody sets them."""
    found: dict[str, object] = {}
    for item in dataclasses.fields(cls):
        if not item.init or item.name in {*getattr(cls, "REPLACED", {}), *getattr(cls, "UNREAD", {})}:
            continue
        if item.default is not dataclasses.MISSING:
            found[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            found[item.name] = item.default_factory()
    # A class of its own, such as Instructions, as the mapping that it is read from.
    classes = [key for key, value in found.items() if dataclasses.is_dataclass(value)]
    return {**found, **{key: vars(found[key]) for key in classes}}


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line has ``-h`` or ``--help``."""
    return bool({"-h", "--help"} & set(arguments))


def usage(sections: Mapping[str, JsonSchema], default: Path, description: str) -> str:
    """What ``--help`` says: every key of every section, as its schema describes it."""
    lines = [description.strip(), "", f"usage: [CONFIG.yaml] [--section.field value ...]   (default: {default})", ""]
    for name, schema in sections.items():
        parent = ""
        lines.append(f"{name}: {schema['description']}")
        for key in keys(schema, f"{name}."):
            if key.parent != parent:
                lines.append(f"  inherited from {key.parent}:")
            parent = key.parent
            lines.append(f"  --{key.name:<32} {key.help} ({key.allowed})")
        lines.append("")
    return "\n".join(lines)
