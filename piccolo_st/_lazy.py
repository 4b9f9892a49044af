"""A room's names, loaded from their files the first time they are asked for (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from piccolo_st.errors import MissingPackage


def lazily(
    room: str, files: Mapping[str, str], needs: Mapping[str, tuple[str, str, str]] | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a room's ``__init__``.

    Args:
        room: its ``__name__``.
        files: file, dotted below the room -> the names it gives to others, between spaces.
        needs: package that a file may lack -> what is asked for, the package and the extra, as MissingPackage takes it.
    """
    homes = {name: f"{room}.{file}" for file, names in files.items() for name in names.split()}

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
