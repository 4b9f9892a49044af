"""Reading the configuration of a run: one YAML file with a section per dataclass, any field overridden by hand.

    (1) read the YAML (``yaml.safe_load``) named by the first argument, or the recipe's default;
    (2) lay ``--section.field value`` over it; the value is read as YAML, deeper keys reach into mappings;
    (3) refuse every key that no dataclass has, naming the nearest one that exists;
    (4) let transformers' HfArgumentParser convert and build the dataclass of each section.

A configuration that cannot be used raises ``ConfigError``; ``run_command`` turns it and every other ``InputError``
into one sentence and exit code 2, and ends quietly when nobody reads what a command prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from piccolo_st.errors import ConfigError, InputError, MixtureError, nearest, reason

Section = TypeVar("Section")


@dataclass(frozen=True)
class Configuration:
    """What a YAML file and a command line say; a subclass has one more field for each section, of its dataclass.

    Attributes:
        path: the file.
        resolved: section -> key -> value as YAML has it, defaults included, for the record of the run.
    """

    path: Path
    resolved: dict[str, dict[str, Any]]

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


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


# argparse's rules, and how this package says them.
_RULES = (
    (r"invalid (?P<type>\w+) value: (?P<value>.*)", "must be of type {type}, got {value}"),
    (r"Truthy value expected: got (?P<value>.*) but expected one of .*", "must be of type bool, got '{value}'"),
    (r"invalid choice: (?P<value>.*) \(choose from (?P<choices>.*)\)", "must be one of {choices}, got {value}"),
    (r"expected (?P<count>.*)", "needs {count}; see --help"),
)


def _in_own_words(message: str, section: str = "--") -> str:
    """A message of argparse as rule and value; ``section`` stands before the option's name."""
    about = re.fullmatch(r"argument ([^:]+): (.*)", message)
    if about is None:
        return message.replace("the following arguments are required:", "the command line must have") + "; see --help"
    name, rule = about[1].split("/")[0], about[2]
    name = section + name[2:] if name.startswith("--") else name
    for pattern, words in _RULES:
        if found := re.fullmatch(pattern, rule):
            parts = {**found.groupdict(), "choices": found.groupdict().get("choices", "").replace("'", "")}
            return f"{name} {words.format(**parts)}"
    return f"{name}: {rule}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds; anything else raises ConfigError with the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"the configuration {path} does not exist; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the configuration {path} cannot be read: {reason(error)}; give the path of a YAML file"
        ) from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {reason(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(content).__name__}")
    return content


def read_value(text: str, place: str) -> Any:
    """What a word of the command line means as YAML; ``place`` is its option, for the ConfigError if it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place} must be YAML, got {text!r}: {reason(error)}") from None


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """``--a.b value``, ``--a.b=value`` and a bare ``--a.b`` (true) as a flat mapping of dotted keys to YAML values."""
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or "." not in argument.split("=", 1)[0]:
            raise ConfigError(f"{argument!r} is not an override; write --section.field value")
        key, sign, text = argument[2:].partition("=")
        if not sign:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        overrides[key] = read_value(text, f"--{key}")
    return overrides


def merge(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with the values of dotted keys laid over it; neither is changed.

    Raises:
        ConfigError: a dotted key leads through something that is no mapping.
    """
    merged: dict[str, Any] = {
        name: dict(section) if isinstance(section, Mapping) else section for name, section in content.items()
    }
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        place: dict[str, Any] = merged
        for parent in parents:
            child = place.get(parent)
            if child is not None and not isinstance(child, dict):
                raise ConfigError(f"--{dotted} needs {parent} to be a mapping, got {child!r}")
            place[parent] = dict(child) if child else {}
            place = place[parent]
        place[last] = value
    return merged


def _check_keys(merged: Mapping[str, Any], sections: Mapping[str, type], source: str) -> None:
    fields = {name: [f.name for f in dataclasses.fields(cls) if f.init] for name, cls in sections.items()}
    replaced = {f"{n}.{key}": use for n, cls in sections.items() for key, use in getattr(cls, "REPLACED", {}).items()}
    known = [f"{name}.{key}" for name, keys in fields.items() for key in keys if f"{name}.{key}" not in replaced]
    for name, section in merged.items():
        if name not in sections:
            raise ConfigError(f"unknown section {name!r} in {source}{nearest(name, list(sections))}")
        if section is not None and not isinstance(section, Mapping):
            raise ConfigError(f"section {name!r} in {source} must be a mapping, got {section!r}")
        for key in section or {}:
            dotted = f"{name}.{key}"
            if dotted in replaced:
                raise ConfigError(f"{dotted} cannot be set in {source}; set {replaced[dotted]} instead")
            if why := getattr(sections[name], "UNREAD", {}).get(key):
                raise ConfigError(f"{dotted} in {source} must be left out, since nothing reads it: {why}")
            if dotted not in known:
                raise ConfigError(f"unknown key {dotted!r} in {source}{nearest(dotted, known)}")


def build_section(name: str, cls: type[Section], values: Mapping[str, Any]) -> Section:
    """One section's dataclass from plain values; scalars and lists of scalars are converted by HfArgumentParser.

    A class with a method ``from_plain(value, place)`` reads the values of its fields itself.
    """
    hints = get_type_hints(cls)
    tokens: list[str] = []
    plain: dict[str, Any] = {}
    defaults = _defaults(cls)
    for key, value in values.items():
        # A default may be what the parser refuses, such as an empty list; a recorded run writes all of them.
        default = defaults.get(key)
        if from_plain := getattr(hints[key], "from_plain", None):
            plain[key] = from_plain(value, f"{name}.{key}")
        elif value is None or isinstance(value, Mapping) or (type(value) is type(default) and value == default):
            if isinstance(value, Mapping) and "dict" not in str(hints[key]):
                raise ConfigError(f"{name}.{key} must be of type {_type_name(hints[key])}, got a mapping")
            plain[key] = value
        elif isinstance(value, list):
            if "list" not in str(hints[key]):
                raise ConfigError(f"{name}.{key} must be of type {_type_name(hints[key])}, got the list {value}")
            tokens += [f"--{key}", *(str(item) for item in value)]
        else:
            tokens.append(f"--{key}={_text(value, hints[key])}")
    try:
        namespace = vars(_Parser(cast(Any, cls), add_help=False).parse_args(tokens))
    except ConfigError as error:
        raise ConfigError(_in_own_words(str(error), f"{name}.")) from None
    converted = {key: namespace[key] for key in values if key not in plain}
    try:
        return HfArgumentParser(cls).parse_dict({**converted, **plain})[0]  # type: ignore[arg-type]
    except InputError:  # of this package, which says where
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"section {name!r}: {str(error).rstrip('.')}") from None


def _text(value: Any, hint: Any) -> str:
    """A scalar as it would be typed. YAML reads an unquoted ``no`` as false, which is a word where no bool goes."""
    if isinstance(value, bool) and hint is not bool and bool not in get_args(hint):
        return "yes" if value else "no"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint).replace("typing.", ""))


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
    if any(argument in ("-h", "--help") for argument in arguments):
        print(_help(sections, default, description))
        raise SystemExit(0)
    path = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else default
    overrides = parse_overrides(arguments)
    content = read_yaml(path)
    _check_keys(content, sections, str(path))
    merged = merge(content, overrides)
    _check_keys(merged, sections, "the command line")
    built: dict[str, Any] = {name: build_section(name, cls, merged.get(name) or {}) for name, cls in sections.items()}
    resolved = {name: {**_defaults(cls), **(merged.get(name) or {})} for name, cls in sections.items()}
    return kind(path=path, resolved=resolved, **built)


def _defaults(cls: type) -> dict[str, Any]:
    """What the settings of a section are where nobody sets them."""
    found: dict[str, Any] = {}
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


def _help(sections: Mapping[str, type], default: Path, description: str) -> str:
    lines = [description.strip(), "", f"usage: [CONFIG.yaml] [--section.field value ...]   (default: {default})", ""]
    for name, cls in sections.items():
        documented = (cls.__doc__ or "").strip().splitlines()[0]
        lines.append(f"{name}: {documented}")
        own = inspect.get_annotations(cls)
        for item in dataclasses.fields(cls):
            if item.name in own:
                value = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[operator]
                lines.append(f"  --{name}.{item.name:<24} {item.metadata.get('help', '')} [{value}]")
        inherited = [base.__name__ for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)]
        if inherited:
            lines.append(f"  ... and every other field of {inherited[0]}.")
        lines.append("")
    return "\n".join(lines)


T = TypeVar("T")


def unknown_key(key: object, known: Iterable[str], place: str) -> MixtureError:
    """The error for a key that no field has, naming the nearest one that there is."""
    return MixtureError(f"unknown key {str(key)!r} in {place}{nearest(str(key), list(known))}")


def build(cls: type[T], mapping: object, place: str, **given: Any) -> T:
    """Fill dataclass ``cls`` from ``mapping``; ``given`` are fields that the mapping may not set.

    Raises:
        MixtureError: not a mapping, an unknown or missing key, or a value of another type than the annotation.
    """
    if not isinstance(mapping, Mapping):
        raise MixtureError(f"{place} must be a mapping of keys to values, got {_shown(mapping)}")
    hints = get_type_hints(cls)
    settable = {f.name: f for f in fields(cls) if f.name not in given}  # type: ignore[arg-type]
    values = dict(given)
    for key, value in mapping.items():
        if key not in settable:
            raise unknown_key(key, settable, place)
        values[key] = _convert(hints[key], value, f"{key} of {place}")
    for name, f in settable.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise MixtureError(f"{place} has no {name!r}, which is required; add it")
    return cls(**values)


def _convert(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, place)
            except MixtureError:
                continue
        return _convert(options[-1], value, place)
    if origin is Literal:
        if value not in arguments:
            raise MixtureError(f"{place} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if from_plain := getattr(hint, "from_plain", None):
        try:
            return from_plain(value, place)
        except InputError as error:
            raise MixtureError(str(error)) from None
    if is_dataclass(hint):
        return build(hint, value, place)  # type: ignore[arg-type]
    if origin is tuple:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable) or isinstance(value, Mapping):
            raise MixtureError(f"{place} must be a list, got {_shown(value)}")
        return tuple(_convert(arguments[0], item, f"an item of {place}") for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise MixtureError(f"{place} must be a mapping of keys to values, got {_shown(value)}")
        return {str(k): _convert(arguments[1], v, f"{k} of {place}") for k, v in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # YAML reads an unquoted label such as 0 as a number
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise MixtureError(f"{place} must be of type {hint.__name__}, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
