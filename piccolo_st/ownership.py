"""One owner of what is written: two runs in a directory would delete and overwrite each other's files.

(1) ``own`` takes ``PATH.lock`` for a directory or a piece of work and says in ``PATH.process`` who has it since when.
    Whoever comes second is told so within ``PATIENCE`` seconds;
(2) the lock is the kernel's (flock) and ends with its process, also after kill -9; forked children do not keep it;
(3) a file system without flock gets a lease: a file with process and host that a thread renews every 10 s. It is
    free as soon as its process is gone, or, left by another host, after ``LEASE`` seconds without a renewal;
(4) a process may own a path several times, and gives it up with the last of them, leaving nothing behind;
(5) what all may use once one has made it is made in ``alone``: the others wait, however long it takes, as long as a
    thread of its owner touches ``PATH.process``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout

from piccolo_st.errors import InputError, reason
from piccolo_st.stored import read_json

#: Seconds in which what is being given up is waited for.
PATIENCE = 2.0
#: Seconds after which a lease that nobody renews is free, where its host cannot be asked.
LEASE = 30.0
#: Seconds between two signs of life of a process that others wait for.
BEAT = 10.0
#: Seconds without a sign of life, after which a process is not waited for any longer.
STANDSTILL = 1800.0

_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

_Lock = FileLock | SoftFileLease
# (process, path) -> its lock, and how often the process owns it. A forked child finds nothing of its own here.
_held: dict[tuple[int, Path], tuple[_Lock, int]] = {}
# Reentrant: the garbage collector may release another path's Ownership while this one is being taken.
_guard = threading.RLock()

logger = logging.getLogger(__name__)


@dataclass
class Ownership:
    """A path that belongs to this process until ``release``, or until the block of a ``with`` ends.

    It is released once, however often that is asked for, and when nothing refers to it any more.
    """

    path: Path
    _process: int | None = field(default_factory=os.getpid, repr=False)

    def release(self) -> None:
        """Give the path up."""
        process, self._process = self._process, None
        if process == os.getpid():  # and not in a child that inherited it
            _give_up(self.path)

    def __enter__(self) -> Ownership:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __del__(self) -> None:
        try:  # noqa: SIM105  # contextlib may be gone already in an interpreter that ends
            self.release()
        except Exception:
            pass


def own(path: Path, what: str | Path, setting: str) -> Ownership:
    """Take what is written under a lock at ``path``.

    Args:
        path: its files are ``path`` with ``.lock``, ``.lease`` and ``.process``; the folder is made if needed.
        what: what is taken, for messages: the directory.
        setting: what names it, such as ``train.output_dir``.

    Raises:
        InputError: another process has it, or it cannot be made or written to.
    """
    path = path.absolute()
    key = (os.getpid(), path)
    with _guard:
        if key in _held:
            lock, count = _held[key]
            _held[key] = lock, count + 1
            return Ownership(path)
        try:
            lock = _locked(path)
        except Timeout:
            raise InputError(
                f"{what} is being written to by {owner_of(path)}; wait for it, stop it, or choose another {setting}"
            ) from None
        except OSError as error:
            raise InputError(
                f"{setting} {what} cannot be written to: {error.strerror or reason(error)}; name another directory"
            ) from error
        _held[key] = lock, 1
    return Ownership(path)


@contextlib.contextmanager
def alone(path: Path, made: Path) -> Iterator[None]:
    """Around making what others need as well: one thread of one process at a time, the others wait for it.

    Args:
        path: as that of ``own``.
        made: the folder that is made, for messages.

    Raises:
        InputError: somebody has the lock and has shown no sign of life for ``STANDSTILL`` seconds.
        OSError: the folder cannot be written to.
    """
    since, seen, lock = time.monotonic(), 0.0, None
    while lock is None:
        try:
            lock = _locked(path)
        except Timeout:
            if not seen:
                logger.warning("waiting for %s, which makes %s", owner_of(path), made)
            if (sign := _last_sign(path)) != seen:
                since, seen = time.monotonic(), sign
            elif time.monotonic() - since > STANDSTILL:
                raise InputError(
                    f"{made} is being made by {owner_of(path)}, which showed no sign of life for {STANDSTILL:,.0f} s; "
                    "stop it"
                ) from None
    try:
        with signs_of_life(lambda: os.utime(_beside(path, ".process"))):
            yield
    finally:
        _leave(path, lock)


@contextlib.contextmanager
def signs_of_life(give: Callable[[], object]) -> Iterator[None]:
    """Around work that others wait for: a thread gives a sign every ``BEAT`` seconds, or none where it cannot."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(Exception):
                give()

    thread = threading.Thread(target=beat, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _last_sign(path: Path) -> float:
    """When the owner gave its last one, in seconds of the file system's clock; 1 where it is not known."""
    try:
        return _beside(path, ".process").stat().st_mtime
    except OSError:  # gone meanwhile
        return 1.0


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _locked(path: Path) -> _Lock:
    """The lock, acquired, with its owner's name beside it.

    Raises:
        Timeout: another process has it.
        OSError: the directory cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: _Lock = FileLock(_beside(path, ".lock"), PATIENCE, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in _NO_FLOCK:
            raise
        _beside(path, ".lock").unlink(missing_ok=True)  # nobody can lock it
        lock = SoftFileLease(_beside(path, ".lease"), lease_duration=LEASE, timeout=PATIENCE, thread_local=False)
        lock.acquire()
    mine = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M")}
    try:
        _beside(path, ".process").write_text(json.dumps(mine), encoding="utf-8")
    except OSError:
        lock.release()
        raise
    return lock


def owner_of(path: Path) -> str:
    """Who has what is written under a lock at ``path``, in words."""
    try:
        owner = read_json(_beside(path, ".process"), dict[str, str | int], "")
        return f"process {owner['process']} on host {owner['host']} since {owner['since']}"
    except (InputError, KeyError):
        return "another process"


def _give_up(path: Path) -> None:
    key = (os.getpid(), path)
    with _guard:
        lock, count = _held[key]
        if count > 1:
            _held[key] = lock, count - 1
            return
        del _held[key]
        _leave(path, lock)


def _leave(path: Path, lock: _Lock) -> None:
    # Before the lock is given up: afterwards they are another's. Whoever waits for the file that is unlinked finds
    # that out, and makes a new one.
    for ending in (".process", ".lock"):
        with contextlib.suppress(OSError):
            _beside(path, ending).unlink()
    with contextlib.suppress(OSError):
        lock.release()
