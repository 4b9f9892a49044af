"""A room's names, loaded from their files the first time they are asked for (PEP 562).

Which name is in which file is read from the room's ``if TYPE_CHECKING:``, where type checkers read it too.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from piccolo_st.errors import MissingPackage


def lazily(
    room: str, path: str, needs: Mapping[str, tuple[str, str, str]] | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a room's ``__init__``.

    Args:
        room: its ``__name__``.
        path: its ``__file__``.
        needs: package that a file may lack -> what is asked for, the package and the extra, as MissingPackage takes it.
    """
    homes = _homes(path)

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}")
        try:
            return getattr(import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            lacking = (error.name or "").partition(".")[0]
            if lacking not in (needs or {}):
                raise
            raise MissingPackage(*(needs or {})[lacking]) from error

    return get, lambda: sorted(homes)


def _homes(path: str) -> dict[str, str]:
    """Name -> the module that a file imports it from for type checkers."""
    blocks = (node for node in ast.parse(Path(path).read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    imports = (node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names}
