"""Files and folders that are there whole or not at all, and work done once, kept under the hash of what went in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import xxhash
from filelock import FileLock

PARTIAL = ".partial"
"""How the name of what is not whole ends; a killed process may leave one behind."""


def write_whole(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file, and its folder, so that a reader or a kill finds the file before or the new one, never half of it.

    Args:
        path: the file.
        content: its text, or a function that writes the file that it is given, which is then renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        if isinstance(content, str):
            aside.write_text(content, encoding="utf-8")
        else:
            content(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def default_cache() -> Path:
    """Where entries go unless told otherwise: beside the cache of ``datasets`` (HF_DATASETS_CACHE)."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "piccolo_st"


def digest(value: object) -> str:
    """32 hexadecimal digits of a value that JSON can write."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def content_digest(paths: Iterable[Path], cache: Path) -> str:
    """A digest of the files' contents; what a file's size and time say has not changed is not read again."""
    memory = cache / "contents"
    parts = []
    for path in paths:
        stat = path.stat()
        known = memory / digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
        if not known.is_file():
            state = xxhash.xxh3_128()
            with open(path, "rb") as file:
                while block := file.read(1 << 22):
                    state.update(block)
            write_whole(known, state.hexdigest())
        parts.append([path.name, known.read_text(encoding="utf-8")])
    return digest(parts)


def entry(cache: Path, key: str, write: Callable[[Path], object]) -> Path:
    """The folder of an entry; ``write`` fills a new one where there is none yet."""
    folder = cache / key
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(str(cache / f"{key}.lock")):
        if not folder.is_dir():
            aside = cache / f"{key}{PARTIAL}"
            shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
            aside.mkdir()
            try:
                write(aside)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            os.replace(aside, folder)
    return folder
