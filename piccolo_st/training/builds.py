"""What DeepSpeed compiles as it starts: torch keeps others out by a file, which a killed compiler leaves behind.

Whoever comes later waits for that file without end. ``clear_left_locks`` waits for a living process alone: the one that
holds the file open, or, where there is none on this machine, as long as something is written beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

logger = logging.getLogger(__name__)

#: Seconds without a change after which a build that no process of this machine is at has no owner.
STANDSTILL = 120.0


def clear_left_locks() -> None:
    """Remove the files of builds that were killed, in TORCH_EXTENSIONS_DIR or where torch builds by default."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
        _clear(lock)


def _clear(lock: Path) -> None:
    told = False
    while lock.exists() and not _held(lock):
        if (quiet := time.time() - _last_change(lock.parent)) > STANDSTILL:
            logger.warning("removed %s: the process that compiled there has gone", lock)
            lock.unlink(missing_ok=True)
        elif not told:
            wait = STANDSTILL - quiet
            logger.warning("waiting %.0f s for %s: another machine may compile there, as none does here", wait, lock)
            told = True
        time.sleep(0.2)


def _held(lock: Path) -> bool:
    """Whether a process of this machine has it open, as torch does while it compiles; yes where nobody can tell."""
    if not Path("/proc/self/fd").is_dir():
        return True
    path = str(lock.resolve())
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            if os.readlink(opened) == path:
                return True
    return False


def _last_change(folder: Path) -> float:
    times = [0.0]
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)
