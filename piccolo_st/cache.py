"""Files and folders that are there whole or not at all, and work done once, kept under the hash of what went in.

An entry lists the sizes, times and hashes of its files, and one that no longer holds them is made anew: nobody checks
rows that are mapped into memory, and damaged ones end the process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import xxhash

from piccolo_st.errors import InputError, reason
from piccolo_st.ownership import alone
from piccolo_st.stored import read_json

logger = logging.getLogger(__name__)

PARTIAL = ".partial"
"""How the name of what is not whole ends; a killed process may leave one behind."""
SEAL = "whole.json"
"""What an entry says of its files: path -> bytes, time of the last change in nanoseconds, hash of the content."""


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
        found = known.read_bytes().decode("utf-8", "replace") if known.is_file() else ""
        if not re.fullmatch("[0-9a-f]{32}", found):
            found = _content(path)
            write_whole(known, found)
        parts.append([path.name, found])
    return digest(parts)


def _content(path: Path) -> str:
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def entry(cache: Path, key: str, write: Callable[[Path], object]) -> Path:
    """The folder of an entry; ``write`` fills a new one, in one process, where there is none or a damaged one."""
    folder = cache / key
    if folder.is_dir() and _damage(folder) is None:
        return folder
    aside = cache / f"{key}{PARTIAL}"
    with alone(cache / f".{key}.owner", aside):
        if folder.is_dir() and (damage := _damage(folder)):
            logger.warning("the cache entry %s is damaged and made anew: %s", folder, damage)
            gone = cache / f"{key}.damaged{PARTIAL}"
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)  # never half of it under its own name
            shutil.rmtree(gone, ignore_errors=True)
        if not folder.is_dir():
            shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
            aside.mkdir()
            try:
                write(aside)
                _seal(aside)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            os.replace(aside, folder)
    return folder


def _seal(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns, _content(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / SEAL).write_text(json.dumps(files), encoding="utf-8")


def _damage(folder: Path) -> str | None:
    """What is wrong with an entry; nothing of one that an earlier version wrote, which listed no files."""
    if not (folder / SEAL).exists():
        return None
    try:
        files = read_json(folder / SEAL, dict[str, tuple[int, int, str]], "it lists the files")
        for name, (size, changed, content) in files.items():
            stat = (folder / name).stat()
            if stat.st_size != size or (stat.st_mtime_ns != changed and _content(folder / name) != content):
                return f"{name} is not what was written"
    except InputError as error:
        return str(error)
    except (OSError, ValueError) as error:  # ValueError: a null byte in a name
        return f"{name} cannot be read: {reason(error)}"
    return None
