"""The versions of the packages that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "piccolo_st",
    "sentence-transformers",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "torch",
    "deepspeed",
    "mteb",
    "numpy",
)


def versions() -> dict[str, str]:
    """The installed version of every package that decides a run's numbers, and of Python."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
