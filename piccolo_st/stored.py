"""Reading back what was written: JSON that holds what its reader works with, or one sentence.

Disks lose bytes, copies break off and people edit files, so nothing that is read back is taken for what was written:
``read_json`` holds a file against the type that its reader needs. pydantic does, which also bounds nesting and numbers.
What is done instead, the caller says in ``remedy``, or does once it has caught the error.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from piccolo_st.errors import InputError, reason, shown
from piccolo_st.schema import rule

T = TypeVar("T")


def read_json(path: Path, kind: type[T], remedy: str, error: type[InputError] = InputError) -> T:
    """The content of a JSON file, which is of a type.

    Args:
        path: the file.
        kind: a dataclass, a TypedDict of typing_extensions, or a type of builtins such as ``dict[str, int]``; its
            annotations are what is checked, strictly. Keys that it does not name are left out.
        remedy: the end of the message.
        error: the class of the error.

    Raises:
        InputError: there is no such file, it is no JSON, or it holds something else; ``error``, with its place.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the path
        raise error(f"{path} cannot be read: {reason(problem)}; {remedy}") from None
    return parse_json(content, kind, str(path), remedy, error)


def parse_json(content: bytes, kind: type[T], place: str, remedy: str, error: type[InputError] = InputError) -> T:
    """What a text in JSON holds; see ``read_json``. ``place`` is what the text is called in the message."""
    try:
        found: T = _adapter(cast(Hashable, kind)).validate_json(content, strict=True)
    except ValidationError as problem:
        raise error(f"{place} {_fault(problem.errors(include_url=False)[0])}; {remedy}") from None
    return found


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _fault(first: ErrorDetails) -> str:
    if first["type"] == "json_invalid":
        return f"is not JSON ({first['ctx']['error']})"
    key = ".".join(map(str, first["loc"]))
    if first["type"].startswith("missing"):
        return f"has no {shown(key)}"
    where = f"holds {shown(key)}, which " if key else ""
    return f"{where}{rule(first)}, got {shown(first['input'])}"
