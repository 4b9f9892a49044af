"""Settings from plain values: pydantic fills the dataclass, one sentence says what is wrong with a value.

The annotations are the schema, and there is no second list: a field's type, its range (``Count``, ``Positive``, ...)
and its choices (``Literal``) stand where the field stands, and so do those of nested dataclasses. ``build`` refuses

    (1) a key that no field has, naming the nearest one that exists;
    (2) a required key that is not there;
    (3) a value of another type, out of range or none of the choices: the rule, the value received, the key and its
        place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails
from typing_extensions import Self

from piccolo_st.errors import ConfigError, InputError, nearest, reason, shown

T = TypeVar("T")

Keys = Sequence[str | int]
"""A key of nested mappings, from the outside in."""


def _whole(value: object) -> object:
    """YAML's true and 3.0 are no whole numbers, though Python would take them."""
    if isinstance(value, bool | float):
        raise ValueError("must be of type int")
    if isinstance(value, int) and abs(value) >= 1 << 63:  # what counts in 64 bits further on would overflow
        raise ValueError("must be below 2**63")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be of type float")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1)]
Natural = Annotated[Whole, Field(ge=0)]
Number = Annotated[float, BeforeValidator(_number)]
Finite = Annotated[Number, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=0, le=1)]
PositiveShare = Annotated[Number, Field(gt=0, le=1)]
ShareBelowOne = Annotated[Number, Field(ge=0, lt=1)]


def setting(default: T, help: str) -> T:
    """A field of a section of a configuration: its default, copied if it is a list or dict, and its help in words."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def read_by(read: Callable[[object, str], object], written: object) -> BeforeValidator:
    """For a field whose class reads what YAML says itself: ``read`` gets the value and its place for messages.

    ``written`` is the type of what YAML says.
    """

    def validate(value: object, info: ValidationInfo) -> object:
        return read(value, info.context(info.field_name) if info.context else str(info.field_name))

    return BeforeValidator(validate, json_schema_input_type=written)


def part_of(cls: type) -> BeforeValidator:
    """For a mapping that may set some fields of ``cls``: checked as one, kept as it is, to be laid over another."""

    def validate(value: object, info: ValidationInfo) -> object:
        if value is not None:
            place = info.context(info.field_name) if info.context else str(info.field_name)
            build(cls, value, place, section=place)
        return value

    return BeforeValidator(validate, json_schema_input_type=cls | None)


# A whole number where text goes, such as an unquoted label 0, is its digits; of a fraction, ``build`` says to quote it.
_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, coerce_numbers_to_str=True)


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def adapter(cls: type) -> TypeAdapter[Any]:
    """pydantic's reader of a dataclass as it stands, made once."""
    if cls not in _ADAPTERS:
        union: Any = cls | None  # which takes a configuration, as a class does not; one inside it has the same
        _ADAPTERS[cls] = TypeAdapter(union, config=_CONFIG)
    return _ADAPTERS[cls]


def unknown_key(key: object, known: Iterable[str], place: str) -> str:
    """What is wrong with a key that no field has, naming the nearest one that there is."""
    return f"unknown key {str(key)!r} in {place}{nearest(str(key), list(known))}"


def build(
    cls: type[T],
    values: object,
    place: str,
    *,
    section: str = "",
    where: Callable[[Keys], str] | None = None,
    **given: object,
) -> T:
    """Fill dataclass ``cls`` from the mapping ``values``.

    Args:
        cls: its annotations are the schema.
        values: keys and values as YAML has them.
        place: what the mapping is called in messages: "weight of PLACE must be ...".
        section: if it is one of a run, keys are called "SECTION.weight" in its place.
        where: what to call the place of an unknown key, such as its file and line; by default ``place``.
        given: fields that the mapping may not set.

    Raises:
        ConfigError: not a mapping, an unknown or missing key, a value of another type, or one out of range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place} must be a mapping of keys to values, got {shown(values)}")
    hints = get_type_hints(cls)
    words = {str(key): _word(value, hints.get(key)) for key, value in values.items()}
    naming = _Naming(cls, place, section, where, frozenset(given))
    for key in given:
        if key in words:
            raise naming.unknown([key])
    for key, value in words.items():
        if isinstance(value, float) and str in (kinds := _kinds(hints.get(key))) and float not in kinds:
            raise ConfigError(f"{naming.of(key)} must be of type str, got {value}; write it in quotes")
    try:
        filled: T = adapter(cls).validate_python({**words, **given}, context=naming.of)
        return filled
    except ValidationError as error:
        raise naming.sentence(error.errors(include_url=False), words) from None
    except (TypeError, OverflowError) as error:  # of a class that checks itself
        raise ConfigError(f"{naming.whole}: {reason(error)}") from None


class Overlaid:
    """A dataclass of settings that a run has, and each of its datasets may have otherwise."""

    PLACE: ClassVar[str]  # the key that holds it

    @classmethod
    def of(cls, *mappings: Mapping[str, object] | None, place: str | None = None) -> Self:
        """From mappings as a configuration holds them, later ones over earlier ones.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range; it names ``place``, or the key.
        """
        merged: dict[str, object] = {}
        for mapping in mappings:
            merged.update(mapping or {})
        return build(cls, merged, place or cls.PLACE)


@dataclass(frozen=True)
class _Naming:
    """What the keys of a mapping, and what is wrong with them, are called in messages; the fields are build's."""

    cls: type
    place: str
    section: str
    where: Callable[[Keys], str] | None
    given: frozenset[str]

    @property
    def whole(self) -> str:
        return f"section {self.section!r}" if self.section else self.place

    def of(self, key: object) -> str:
        return f"{self.section}.{key}" if self.section else f"{key} of {self.place}"

    def sentence(self, found: Sequence[ErrorDetails], values: Mapping[str, object]) -> InputError:
        """The first of pydantic's errors, or an unknown key if there is one: it may be why another is missing."""
        unknown = [one for one in found if one["type"] == "unexpected_keyword_argument"]
        first = (unknown or found)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):  # of this package, which says where
            return cause
        keys = _keys(first, values)
        if unknown:
            return self.unknown(keys)
        *parents, last = keys or [""]
        if first["type"] in ("missing", "missing_argument"):
            holder = self.of(".".join(map(str, parents))) if parents else self.whole
            return ConfigError(f"{holder} has no {last!r}, which is required; add it")
        if not keys:  # a rule of several fields, in another library's words
            return ConfigError(f"{self.whole}: {str(cause or first['msg']).rstrip('.')}")
        rules = dict.fromkeys(rule(one) for one in found if _keys(one, values) == keys)
        *outside, name = [key for key in keys if isinstance(key, str)]  # an item of a list has its field's range
        if bounds := range_of(get_type_hints(_inner(self.cls, outside), include_extras=True).get(name)):
            ranges = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
            rules = {f"must be {bounds}": None} if first["type"] in ranges else rules
        value: Any = values
        for key in keys:
            value = value[key]
        choices = _choices(first) if isinstance(value, str) else []
        near = nearest(str(value), choices) if choices else ""
        remedy = near if near.startswith("; did") else ""  # the choices stand in the rule already
        return ConfigError(f"{self.of('.'.join(map(str, keys)))} {' or '.join(rules)}, got {shown(value)}{remedy}")

    def unknown(self, keys: Keys) -> ConfigError:
        *parents, key = keys
        holder = _inner(self.cls, parents)
        known = [f.name for f in fields(holder) if f.init and f.name not in (self.given if not parents else ())]
        before = "".join(f"{part}." for part in [self.section, *parents] if part) if self.section else ""
        place = self.where(keys) if self.where else " of ".join([*map(str, reversed(parents)), self.place])
        return ConfigError(unknown_key(f"{before}{key}", [f"{before}{name}" for name in known], place))


def range_of(hint: object) -> str:
    """The range that the annotation of a number allows, in words; empty where it allows any."""
    bounds: dict[str, float] = {}
    whole = False
    inside = [hint]
    while inside:
        one = inside.pop()
        whole = whole or one is int
        inside += [*get_args(one), *getattr(one, "metadata", ())]
        bounds |= {name: getattr(one, name) for name in ("ge", "gt", "le", "lt") if hasattr(one, name)}
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = " and ".join(f"{words[name]} {bounds[name]:g}" for name in words if name in bounds)
    if said == "above 0":
        return "a positive number"
    return f"a whole number of {said}" if whole and said else said


def _word(value: object, hint: object) -> object:
    """PyYAML reads an unquoted ``no`` as false, which is a word where no bool goes, as in ``save_strategy: no``."""
    kinds = _kinds(hint)
    if isinstance(value, bool) and bool not in kinds and str in kinds:
        return "yes" if value else "no"
    return value


def _kinds(hint: object) -> set[object]:
    return {hint, *get_args(hint)}


def _keys(error: ErrorDetails, values: Any) -> list[str | int]:
    """The key an error is about: its ``loc`` up to where pydantic goes on with names of its own, as those of unions."""
    keys: list[str | int] = []
    for part in error["loc"]:
        here = range(len(values)) if isinstance(values, list | tuple) else values
        if isinstance(here, Mapping | range) and part in here:
            values = values[part]
        elif error["type"] in ("missing", "missing_argument") and part == error["loc"][-1]:
            values = None
        else:
            break
        keys.append(part)
    return keys


def _inner(cls: type, keys: Keys) -> Any:
    """The dataclass that a key of ``cls`` leads to."""
    for key in keys:
        hint = get_type_hints(cls).get(str(key))
        cls = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), cls)  # type: ignore[assignment]
    return cls


_TYPES = {
    "int": "int", "float": "float", "bool": "bool", "string": "str", "finite": "a finite number",
}  # fmt: skip
_RULES = {
    "finite_number": "must be a finite number",
    "too_short": "must have at least {min_length}",
    "too_long": "must have at most {max_length}",
    "dict_type": "must be a mapping of keys to values",
    "mapping_type": "must be a mapping of keys to values",
    "dataclass_type": "must be a mapping of keys to values",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
}
"""pydantic's kinds of errors, and how this package says them."""


_CHOICES = ("literal_error", "enum")


def _choices(error: ErrorDetails) -> list[str]:
    """Of a ``Literal`` or an enumeration."""
    return re.split(" or |, ", error["ctx"]["expected"].replace("'", "")) if error["type"] in _CHOICES else []


def rule(error: ErrorDetails) -> str:
    """What one of pydantic's errors says that a value must be, in this package's words."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _CHOICES:
        return f"must be one of {', '.join(_choices(error))}"
    if kind == "value_error":
        return str(context["error"]).rstrip(".")
    if kind in _RULES:
        return _RULES[kind].format(**context)
    if (base := kind.split("_")[0]) in _TYPES:
        return f"must be of type {_TYPES[base]}"
    return f"cannot be used ({error['msg'][:1].lower()}{error['msg'][1:]})"
