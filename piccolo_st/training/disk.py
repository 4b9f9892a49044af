"""What a checkpoint takes on the disk, and what to say when the disk did not take it."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from piccolo_st.training import checkpoint
from piccolo_st.training.manifest import CheckpointError, step_of

_FULL = (errno.ENOSPC, errno.EDQUOT)
# As other ranks, and libraries that are no Python, spell them.
_FULL_IN_WORDS = re.compile(r"no space left|quota exceeded|\berrno (28|122)\b|\bos error (28|122)\b", re.IGNORECASE)
_TOO_LARGE_IN_WORDS = re.compile(r"file too large|\berrno 27\b|\bos error 27\b", re.IGNORECASE)
# torch's archives say only that less arrived than was written.
_CUT_SHORT_IN_WORDS = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing", re.IGNORECASE)
# What a rank hears of another that has ended, as gloo and NCCL spell it.
_LEFT_IN_WORDS = re.compile(r"connection (closed|reset) by peer|remote process exit", re.IGNORECASE)
_NEXT_TO_NOTHING = 1 << 20


def cannot_write(output_dir: Path, step: int, error: BaseException) -> CheckpointError:
    """The error of a checkpoint that could not be written: what is left, and the remedy that fits its cause."""
    known = [path for path in checkpoint.checkpoints(output_dir) if step_of(path) < step]
    free: int | None = None
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(output_dir).free
    causes = list(_causes(error))
    if any(_is_full(cause) for cause in causes) or (free is not None and free < _NEXT_TO_NOTHING):
        remedy = "make room or choose another train.output_dir, and start the run again"
    elif any(_TOO_LARGE_IN_WORDS.search(str(cause)) for cause in causes):
        remedy = (
            "raise what a file may have here (ulimit -f), or choose another train.output_dir, and start the run again"
        )
    elif any(_CUT_SHORT_IN_WORDS.search(str(cause)) for cause in causes):
        remedy = (
            "the file was cut short: make room, raise what a file may have here (ulimit -f), or choose another "
            "train.output_dir, and start the run again"
        )
    elif any(_LEFT_IN_WORDS.search(str(cause)) for cause in causes):
        remedy = "another process ended first: mend what its own message names, and start the run again"
    elif any(isinstance(cause, OSError) or "OSError" in str(cause) for cause in causes):
        remedy = "choose a train.output_dir that can be written to, and start the run again"
    else:
        remedy = "the disk is not to blame: mend what the error names, and start the run again"
    return CheckpointError(
        f"checkpoint-{step} could not be written to {output_dir}"
        + (f" ({free / 1e9:.1f} GB are free)" if free is not None else "")
        + f": {type(error).__name__}: {error}; "
        + (f"the one before, {known[-1].name}, is as it was" if known else "there is none before it")
        + f"; {remedy}"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _FULL or _FULL_IN_WORDS.search(str(error)) is not None
