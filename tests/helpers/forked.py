"""Another process of a test, and its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def forked(action: Callable[[], Any]) -> Iterator[int]:
    """Another process that does something and then sleeps; it is killed with -9."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = action()
            os.write(tell, b"1")
            time.sleep(300)
            print(kept)
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    try:
        yield pid
    finally:
        kill(pid)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
