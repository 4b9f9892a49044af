"""One owner of an output directory: two runs in it would delete and overwrite each other's checkpoints.

(1) ``own`` takes ``.owner.lock`` in the directory and says in ``.owner.json`` process, host, since when.
    Whoever comes second is told so within ``PATIENCE`` seconds;
(2) the lock is the kernel's (flock) and ends with its process, also after kill -9; forked children do not keep it;
(3) a file system without flock gets a lease: a file with process and host that a thread renews every 10 s. It is
    free as soon as its process is gone, or, left by another host, after ``LEASE`` seconds without a renewal;
(4) a process may own a directory several times, and gives it up with the last of them, leaving nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout

from piccolo_st.distributed import on_first_rank
from piccolo_st.errors import InputError, reason

#: Seconds in which a directory that is being given up is waited for.
PATIENCE = 2.0
#: Seconds after which a lease that nobody renews is free, where its host cannot be asked.
LEASE = 30.0

_LOCK, _LEASE, _OWNER = ".owner.lock", ".owner.lease", ".owner.json"
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

# (process, directory) -> its lock, and how often the process owns it. A forked child finds nothing of its own here.
_held: dict[tuple[int, Path], tuple[FileLock | SoftFileLease, int]] = {}
# Reentrant: the garbage collector may release another directory's Ownership while this one is being taken.
_guard = threading.RLock()


@dataclass
class Ownership:
    """An output directory that belongs to this process until ``release``, or until the block of a ``with`` ends.

    It is released once, however often that is asked for, and when nothing refers to it any more.
    """

    folder: Path
    _process: int | None = field(default_factory=os.getpid, repr=False)

    def release(self) -> None:
        """Give the directory up."""
        process, self._process = self._process, None
        if process == os.getpid():  # and not in a child that inherited it
            _give_up(self.folder)

    def __enter__(self) -> Ownership:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __del__(self) -> None:
        try:  # noqa: SIM105  # contextlib may be gone already in an interpreter that ends
            self.release()
        except Exception:
            pass


def own(output_dir: str | Path) -> Ownership:
    """Take a run's output directory; called on every rank, the first one owns it for all.

    Args:
        output_dir: made if needed.

    Raises:
        InputError: another process has it, or it cannot be made or written to; on every rank.
    """
    folder = Path(output_dir).absolute()
    taken: list[Ownership] = []

    def take() -> None:
        _take(folder, output_dir)
        taken.append(Ownership(folder))

    on_first_rank(take)
    return taken[0] if taken else Ownership(folder, None)


def _take(folder: Path, named: str | Path) -> None:
    key = (os.getpid(), folder)
    with _guard:
        if key in _held:
            lock, count = _held[key]
            _held[key] = lock, count + 1
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _locked(folder)
            mine = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M")}
            (folder / _OWNER).write_text(json.dumps(mine), encoding="utf-8")
        except Timeout:
            raise InputError(
                f"{named} is being written to by {_owner(folder)}; wait for it, stop it, or choose another "
                "train.output_dir"
            ) from None
        except OSError as error:
            raise InputError(
                f"train.output_dir {named} cannot be written to: {error.strerror or reason(error)}; name another "
                "directory"
            ) from error
        _held[key] = lock, 1


def _locked(folder: Path) -> FileLock | SoftFileLease:
    """The lock, acquired.

    Raises:
        Timeout: another process has it.
        OSError: the directory cannot be written to.
    """
    lock: FileLock | SoftFileLease = FileLock(folder / _LOCK, PATIENCE, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in _NO_FLOCK:
            raise
        (folder / _LOCK).unlink(missing_ok=True)  # nobody can lock it
        lock = SoftFileLease(folder / _LEASE, lease_duration=LEASE, timeout=PATIENCE, thread_local=False)
        lock.acquire()
    return lock


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / _OWNER).read_text(encoding="utf-8"))
        return f"process {owner['process']} on host {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _give_up(folder: Path) -> None:
    key = (os.getpid(), folder)
    with _guard:
        lock, count = _held[key]
        if count > 1:
            _held[key] = lock, count - 1
            return
        del _held[key]
        # Before the lock is given up: afterwards they are another's. Whoever waits for the file that is unlinked finds
        # that out, and makes a new one.
        for name in (_OWNER, _LOCK):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        with contextlib.suppress(OSError):
            lock.release()
