"""The manifest of a checkpoint: it is written last, and says what the folder must hold, byte for byte.

``seal`` counts the parts, flushes every file to the disk and writes ``manifest.json``, with the size and the SHA-256 of
each file and what the run must know to go on, and a hash of itself. ``verify`` reads every byte of a checkpoint before
it is trusted. Nothing in a checkpoint is executed: the manifest is JSON, and its paths cannot leave the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import NotRequired, TypedDict

from piccolo_st.cache import digest
from piccolo_st.errors import InputError, reason
from piccolo_st.schema import Natural
from piccolo_st.stored import read_json

MANIFEST = "manifest.json"
FORMAT = 1

_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(InputError):
    """A checkpoint that cannot be written, or cannot be trusted."""


@with_config(ConfigDict(extra="allow"))  # what a later version adds is part of the manifest's hash
class RunFacts(TypedDict, total=False):
    """What a checkpoint says about its run."""

    signature: dict[str, object]
    """Its fingerprint, under the name that version 0.1.0 gave it."""
    cursor: Natural | None
    """Samples that all ranks have seen; None with a sampler that has no plan."""
    place: Annotated[list[Natural], Field(min_length=2, max_length=2)]
    """Of a stream, whose length nobody knows: the pass over it, and the batches of that pass that a rank has read."""
    world_size: Annotated[int, Field(ge=1, le=1 << 16)]
    engine: str
    scaler: bool
    """Whether an fp16 loss scale belongs to it."""
    resumable: bool
    """Whether it holds the state of the optimizer."""
    seconds: float
    environment: dict[str, object]


class _File(TypedDict):
    size: Natural
    sha256: str


@with_config(ConfigDict(extra="allow"))
class _Manifest(TypedDict):
    format: Literal[1]
    step: Natural
    run: RunFacts
    files: Annotated[dict[str, _File], Field(min_length=1)]
    digest: NotRequired[str]  # of all the rest; version 0.1.0 wrote none


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        step: optimizer steps of the run when it was written.
        run: what was handed to ``seal``.
        files: paths inside it, of what the manifest vouches for.
    """

    path: Path
    step: int
    run: RunFacts = field(default_factory=RunFacts)
    files: Collection[str] = field(default=(), compare=False, repr=False)


def seal(folder: Path, run: RunFacts, parts: Iterable[str] = ()) -> None:
    """Flush what ``folder`` holds to the disk and write its manifest.

    Args:
        folder: from ``begin``.
        run: what ``newest_complete`` gives back.
        parts: paths that must be there; ``*`` stands for any part of a name.

    Raises:
        CheckpointError: a part is missing, or a name is not one that a manifest can hold.
        OSError: the disk does not take it.
    """
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in paths]
    if missing := lacking(names, parts):
        raise CheckpointError(
            f"{folder.name} lacks {', '.join(missing)}; every rank writes its part into the same directory, which "
            "must be on a file system that all nodes share (train.save_on_each_node cannot be used)"
        )
    for name in names:
        _inside(folder, name)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda path: _digest(path, flush=True), paths))
    files = {name: {"size": size, "sha256": digest} for name, (size, digest) in zip(names, digests, strict=True)}
    content = {"format": FORMAT, "step": step_of(folder), "run": run, "files": files}
    content["digest"] = digest(content)
    manifest = folder / MANIFEST
    with manifest.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    for directory in {path.parent for path in [manifest, *paths]}:
        flush_directory(directory)


def lacking(files: Collection[str], parts: Iterable[str]) -> list[str]:
    """Those of the paths, with ``*`` for any part of a name, that are not among the files of a checkpoint."""
    return [part for part in parts if part not in files and not any(fnmatchcase(name, part) for name in files)]


def verify(folder: Path) -> Checkpoint:
    """Read a whole checkpoint and compare it with its manifest.

    Raises:
        CheckpointError: it has no manifest, or a broken one, or a file is missing, cut short or changed.
    """
    content = _manifest(folder)
    files = content["files"]

    def check(name: str) -> str | None:
        path = _inside(folder, name)
        expected = files[name]
        try:
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
            return (
                None if _digest(path)[1] == expected["sha256"] else f"{name} is not what was written, its hash differs"
            )
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {reason(error)}"

    with ThreadPoolExecutor() as pool:
        faults = [fault for fault in pool.map(check, files) if fault]
    if faults:
        raise CheckpointError(f"the checkpoint {folder} is not whole: {'; '.join(faults[:3])}")
    return Checkpoint(folder, content["step"], content["run"], files)


def step_of(folder: Path) -> int:
    """The N of ``checkpoint-N``.

    Raises:
        CheckpointError: the folder has another name.
    """
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"a checkpoint must be a folder checkpoint-N, got {folder}")
    return int(match[1])


def _inside(folder: Path, name: str) -> Path:
    """``folder / name``, once it is sure to lie in ``folder``."""
    parts, path = PurePosixPath(name).parts, folder / name
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name or "\0" in name:
        raise CheckpointError(f"the manifest of {folder} names {name!r}, which is not a path inside the checkpoint")
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise CheckpointError(f"{name!r} in {folder} cannot be followed: {reason(error)}") from None
    if not target.is_relative_to(folder.resolve()):
        raise CheckpointError(f"{name!r} in {folder} leads out of the checkpoint to {target}")
    return path


def _manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise CheckpointError(f"the checkpoint {folder} does not exist; name one that does")
    if not path.exists():
        raise CheckpointError(
            f"the checkpoint {folder} has no {MANIFEST}: it was not finished, or another trainer wrote it"
        )
    content = read_json(path, _Manifest, "the checkpoint is not whole", CheckpointError)
    if "digest" in content and content["digest"] != digest({k: v for k, v in content.items() if k != "digest"}):
        raise CheckpointError(f"the checkpoint {folder} is not whole: its {MANIFEST} is not what was written")
    return content


def sizes_fit(folder: Path) -> bool:
    """Whether a checkpoint looks complete without reading it."""
    try:
        files = _manifest(folder)["files"]
        return all(_inside(folder, name).stat().st_size == files[name]["size"] for name in files)
    except (CheckpointError, OSError):
        return False


def _digest(path: Path, flush: bool = False) -> tuple[int, str]:
    """Size and SHA-256 of a file; with ``flush`` once its bytes are on the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
        if flush:
            os.fsync(file.fileno())
    return size, digest.hexdigest()


def flush_directory(folder: Path) -> None:
    """Wait until the disk knows the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
