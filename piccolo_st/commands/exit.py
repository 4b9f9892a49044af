"""How a command ends: with an exit code, and one sentence instead of a traceback."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from filelock import FileLock

from piccolo_st.errors import InputError


def run_command(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> NoReturn:
    """Run a command and exit: bad input is one sentence on stderr and exit code 2, Ctrl-C is 130, SIGTERM 143.

    A second Ctrl-C or SIGTERM ends it at once; while a run trains, both are its own affair (``StopSignals``).
    Where the reader of stdout has gone (``| head -3``), it ends quietly with 141, as a program that SIGPIPE ends.
    Every rank ends with the code; one of those on a machine speaks.
    """
    code: int | str | None = 141
    codes: list[int | str | None] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit.register(_end_at_once, codes)  # registered first, so called after all others
    try:
        code = _exit_code(main, arguments)
        sys.stdout.flush()  # what fails here would otherwise fail, and be shown, while Python shuts down
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        code = code or 141
    codes.append(code)
    sys.exit(code)


def _end_at_once(codes: Sequence[int | str | None]) -> None:
    """End a rank before Python takes itself apart, once threads are joined and what others do at exit is done.

    While Python does, a thread of a process group that something still holds (DeepSpeed's global ones) may want the
    interpreter; Python 3.11 unwinds it through C++ that may not be unwound: SIGABRT, after all was written.
    """
    if codes and not isinstance(codes[0], str):
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(codes[0] or 0)


def _exit_code(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int | str | None:
    try:
        with _stoppable():
            main(arguments)
        _leave_the_others()
    except InputError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt as stopped:
        number = stopped.number if isinstance(stopped, _Stopped) else signal.SIGINT
        how = "stopped by SIGTERM" if number == signal.SIGTERM else "interrupted"
        _say(f"{how}; what is finished is kept, and the same command goes on from there")
        return 128 + number
    except SystemExit as end:
        return end.code
    return 0


def _say(sentence: str) -> None:
    """Say it on stderr: of the ranks of a machine the one that ends first, for torchrun then ends the others.

    They may still be on their way to the same sentence, or never come there. Other launchers give the ranks no folder
    of their start to agree in; there the first rank speaks.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # START/RANK/error.json
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or error_file is None:
        if os.environ.get("RANK", "0") == "0":
            print(sentence, file=sys.stderr)
        return
    said = Path(error_file).parent.parent / "said"
    with FileLock(f"{said}.lock", timeout=10):  # whoever finds it said goes, and is seen to go, only once it is
        if not said.exists():
            print(sentence, file=sys.stderr, flush=True)
            said.touch()


class _Stopped(KeyboardInterrupt):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM unwinds a command as Ctrl-C does: what is half done is put away. Ranks die of it, for their launcher."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 and threading.current_thread() is threading.main_thread()
    mine, own = [number for number, how in before.items() if alone and how != signal.SIG_IGN], os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        for one in mine:
            signal.signal(one, signal.SIG_DFL)  # a second one ends the process, whatever it is at
        if os.getpid() != own:  # a worker that was forked
            os.kill(os.getpid(), number)
        if hub := sys.modules.get("piccolo_st.hub"):
            hub.stop()  # whose uploads, in threads, would go on
        mine.clear()
        raise _Stopped(number)

    for number in mine:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def _leave_the_others() -> None:
    """End the process group: a rank that just goes may abort as Python shuts down, and its launcher ends the rest."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _reader_has_gone() -> bool:
    """Whether stdout is what broke: a pipe to a worker or a socket is a defect to be shown."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False
