"""How a command ends: with an exit code, and one sentence instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from piccolo_st.errors import InputError


def run_command(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> NoReturn:
    """Run a command and exit: bad input is one sentence on stderr and exit code 2, Ctrl-C is exit code 130.

    Where the reader of stdout has gone (``| head -3``), it ends quietly with 141, as a program that SIGPIPE ends.
    Every rank ends with the code; only the first one speaks.
    """
    code: int | str | None = 141
    try:
        code = _exit_code(main, arguments)
        sys.stdout.flush()  # what fails here would otherwise fail, and be shown, while Python shuts down
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        code = code or 141
    sys.exit(code)


def _exit_code(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int | str | None:
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        main(arguments)
        _leave_the_others()
    except InputError as error:
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if speaks:
            print("interrupted; the checkpoints written so far are complete", file=sys.stderr)
        return 130
    except SystemExit as end:
        return end.code
    return 0


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
