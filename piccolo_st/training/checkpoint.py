"""Checkpoints that are complete or not there.

A checkpoint is the folder ``checkpoint-N`` of a run's directory; N counts optimizer steps. It is made in this order:

    (1) ``begin``: a hidden folder beside the final one, whose name nobody can guess;
    (2) every rank writes its parts into it (the trainer does this);
    (3) ``seal``: the parts are counted, every file is flushed to the disk, and ``manifest.json`` is written last, with
        the size and the SHA-256 of each file and what the run must know to go on;
    (4) ``publish``: one rename;
    (5) ``rotate``: older checkpoints are renamed away and deleted, but never the newest complete one.

A process killed anywhere in between leaves the earlier checkpoints as they were and at most a hidden folder, which
``recover`` removes when the run starts again. ``newest_complete`` reads every byte of a checkpoint before it trusts it.
Nothing in a checkpoint is executed: the manifest is JSON, and its paths cannot leave the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypedDict, cast

from piccolo_st.errors import InputError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1

_NAME = re.compile(r"checkpoint-(\d+)")
_HIDDEN = re.compile(r"\.checkpoint-(\d+)\.[0-9a-f]{16}\.(partial|replaced|deleted|converted)")


class CheckpointError(InputError):
    """A checkpoint that cannot be written, or cannot be trusted."""


class RunFacts(TypedDict, total=False):
    """What a checkpoint says about its run."""

    signature: dict[str, object]
    """Its fingerprint, under the name that version 0.1.0 gave it."""
    cursor: int | None
    """Samples that all ranks have seen; None with a sampler that has no plan."""
    world_size: int
    engine: str
    scaler: bool
    """Whether an fp16 loss scale belongs to it."""
    resumable: bool
    """Whether it holds the state of the optimizer."""
    seconds: float
    environment: dict[str, object]


class _File(TypedDict):
    size: int
    sha256: str


class _Manifest(TypedDict):
    format: int
    step: int
    run: RunFacts
    files: dict[str, _File]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        step: optimizer steps of the run when it was written.
        run: what was handed to ``seal``.
    """

    path: Path
    step: int
    run: RunFacts = field(default_factory=RunFacts)


# Steps (1) to (5): writing.


def begin(output_dir: Path, step: int) -> Path:
    """Make the hidden folder in which ``checkpoint-{step}`` is to be written, with the user's umask.

    Returns:
        The folder ``checkpoint-{step}`` inside the hidden one; its parts go there.

    Raises:
        OSError: the directory cannot be written to.
    """
    folder = _hidden(output_dir, step, "partial") / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    return folder


def scratch(output_dir: Path, step: int) -> Path:
    """Make a hidden folder for another form of ``checkpoint-{step}``; ``recover`` removes it if the run does not.

    Raises:
        OSError: the directory cannot be written to.
    """
    folder = _hidden(output_dir, step, "converted")
    folder.mkdir(parents=True)
    return folder


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
    if missing := lacking(folder, parts):
        raise CheckpointError(
            f"{folder.name} lacks {', '.join(missing)}; every rank writes its part into the same directory, which "
            "must be on a file system that all nodes share (train.save_on_each_node cannot be used)"
        )
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in paths]
    for name in names:
        _inside(folder, name)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda path: _digest(path, flush=True), paths))
    files = {name: {"size": size, "sha256": digest} for name, (size, digest) in zip(names, digests, strict=True)}
    content = {"format": FORMAT, "step": _step(folder), "run": run, "files": files}
    manifest = folder / MANIFEST
    with manifest.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    for directory in {path.parent for path in [manifest, *paths]}:
        _flush_directory(directory)


def lacking(folder: Path, parts: Iterable[str]) -> list[str]:
    """Those of the paths, with ``*`` for any part of a name, that a checkpoint does not have."""
    return [part for part in parts if not any(folder.glob(part))]


def publish(folder: Path) -> Path:
    """Rename a sealed checkpoint to its final place, instead of the one of the same step if there is one.

    Raises:
        OSError: the file system does not do it.
    """
    output_dir = folder.parent.parent
    final = output_dir / folder.name
    replaced = _hidden(output_dir, _step(folder), "replaced")
    if final.exists():
        final.rename(replaced)  # a kill between these two renames is undone by recover()
    folder.rename(final)
    _flush_directory(output_dir)
    folder.parent.rmdir()
    if replaced.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    return final


def discard(folder: Path) -> None:
    """Delete a checkpoint that could not be finished."""
    shutil.rmtree(folder.parent, ignore_errors=True)


def rotate(output_dir: Path, limit: int | None, keep: Collection[Path] = ()) -> list[Path]:
    """Delete the oldest complete checkpoints until ``limit`` are left.

    Args:
        output_dir: of the run.
        limit: of complete checkpoints; None or 0 keeps all. The newest one always stays.
        keep: checkpoints that stay whatever their age, such as the best one.

    Returns:
        What was deleted. Folders without a sound manifest are neither counted nor deleted: this code did not make them.
    """
    if not limit or limit < 0:
        return []
    complete = [path for path in checkpoints(output_dir) if _sizes_fit(path)]
    protected = {path.resolve() for path in [*keep, *complete[-1:]]}
    surplus = len(complete) - max(limit, len(protected))
    deleted = [path for path in complete if path.resolve() not in protected][: max(surplus, 0)]
    for path in deleted:
        gone = _hidden(output_dir, _step(path), "deleted")
        try:
            path.rename(gone)  # never a folder of that name with some of its files
        except OSError as error:
            logger.warning("the old checkpoint %s cannot be deleted: %s", path, error)
            continue
        shutil.rmtree(gone, ignore_errors=True)
    return deleted


# Reading.


def checkpoints(output_dir: Path) -> list[Path]:
    """The folders ``checkpoint-N`` of a directory, whole or not, by N."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def recover(output_dir: Path) -> None:
    """Remove what a killed run left unfinished, and put back a checkpoint whose replacement did not arrive."""
    if not output_dir.is_dir():
        return
    for path in sorted(output_dir.iterdir()):
        match = _HIDDEN.fullmatch(path.name)
        if match is None:
            continue
        final = output_dir / f"checkpoint-{match[1]}"
        if match[2] == "replaced" and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)
            logger.info("removed %s, left by a run that was killed", path)


def newest_complete(
    output_dir: Path, usable: Callable[[Checkpoint], None] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of which every byte is as it was written.

    Args:
        output_dir: of the run.
        usable: raises CheckpointError for one that is complete and cannot be used nevertheless.

    Returns:
        It, or None; and a sentence for each newer one that was passed over.
    """
    skipped: list[str] = []
    for path in reversed(checkpoints(output_dir)):
        try:
            found = verify(path)
            if usable is not None:
                usable(found)
            return found, skipped
        except CheckpointError as error:
            skipped.append(str(error))
    return None, skipped


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
            return f"{name} cannot be read: {error.strerror}"

    with ThreadPoolExecutor() as pool:
        faults = [fault for fault in pool.map(check, files) if fault]
    if faults:
        raise CheckpointError(f"the checkpoint {folder} is not whole: {'; '.join(faults[:3])}")
    return Checkpoint(folder, content["step"], content["run"])


def set_aside(output_dir: Path) -> Path | None:
    """Move all checkpoints of a directory into a new folder ``earlier-K`` in it, so that a new run can start there.

    Returns:
        That folder, or None if there was nothing to move.
    """
    found = checkpoints(output_dir)
    if not found:
        return None
    number = 1
    while (folder := output_dir / f"earlier-{number}").exists():
        number += 1
    folder.mkdir()
    for path in found:
        path.rename(folder / path.name)
    return folder


def _hidden(output_dir: Path, step: int, kind: str) -> Path:
    return output_dir / f".checkpoint-{step}.{secrets.token_hex(8)}.{kind}"


def _step(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"a checkpoint must be a folder checkpoint-N, got {folder}")
    return int(match[1])


def _inside(folder: Path, name: str) -> Path:
    """``folder / name``, once it is sure to lie in ``folder``."""
    parts = PurePosixPath(name).parts
    path = folder / name
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name:
        raise CheckpointError(f"the manifest of {folder} names {name!r}, which is not a path inside the checkpoint")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{name!r} in {folder} leads out of the checkpoint to {path.resolve()}")
    return path


def _manifest(folder: Path) -> _Manifest:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not folder.is_dir():
            raise CheckpointError(f"the checkpoint {folder} does not exist; name one that does") from None
        raise CheckpointError(
            f"the checkpoint {folder} has no {MANIFEST}: it was not finished, or another trainer wrote it"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {folder} is not whole: its {MANIFEST} cannot be read: {error}") from None
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"{folder / MANIFEST} must have format {FORMAT}, which this version reads, got {version!r}"
        )
    files = content.get("files")
    sound = isinstance(files, dict) and all(isinstance(value, dict) for value in files.values())
    if not sound or not all({"size", "sha256"} <= set(value) for value in files.values()):
        raise CheckpointError(f"{folder / MANIFEST} must list its files with size and sha256")
    if not isinstance(content.get("step"), int) or not isinstance(content.get("run"), dict):
        raise CheckpointError(f"{folder / MANIFEST} must hold a step and a run")
    return cast(_Manifest, content)


def _sizes_fit(folder: Path) -> bool:
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


def _flush_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
