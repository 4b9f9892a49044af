"""Checkpoints that are complete or not there.

A checkpoint is the folder ``checkpoint-N`` of a run's directory; N counts optimizer steps. It is made in this order:

    (1) ``begin``: a hidden folder beside the final one, whose name nobody can guess;
    (2) every rank writes its parts into it (the trainer does this);
    (3) ``manifest.seal``: the parts are counted, every file is flushed to the disk, and ``manifest.json`` is written;
    (4) ``publish``: one rename;
    (5) ``rotate``: older checkpoints are renamed away and deleted, but never the newest complete one.

A process killed anywhere in between leaves the earlier checkpoints as they were and at most a hidden folder, which
``recover`` removes when the run starts again. ``newest_complete`` trusts a checkpoint once its manifest is verified.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from piccolo_st.training.manifest import Checkpoint, CheckpointError, flush_directory, sizes_fit, step_of, verify

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
_HIDDEN = re.compile(r"\.checkpoint-(\d+)\.[0-9a-f]{16}\.(partial|replaced|deleted|converted)")


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


def publish(folder: Path) -> Path:
    """Rename a sealed checkpoint to its final place, instead of the one of the same step if there is one.

    Raises:
        OSError: the file system does not do it.
    """
    output_dir = folder.parent.parent
    final = output_dir / folder.name
    replaced = _hidden(output_dir, step_of(folder), "replaced")
    if final.exists():
        final.rename(replaced)  # a kill between these two renames is undone by recover()
    folder.rename(final)
    flush_directory(output_dir)
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
    complete = [path for path in checkpoints(output_dir) if sizes_fit(path)]
    protected = {path.resolve() for path in [*keep, *complete[-1:]]}
    surplus = len(complete) - max(limit, len(protected))
    deleted = [path for path in complete if path.resolve() not in protected][: max(surplus, 0)]
    for path in deleted:
        gone = _hidden(output_dir, step_of(path), "deleted")
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
    return sorted(found, key=step_of)


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
