"""The command launch: accelerate's launcher around another command, which has the last word and gives the exit code."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from subprocess import CalledProcessError
from typing import NoReturn

from piccolo_st.errors import ConfigError, InputError, reason

# They repeat in many lines what the process that ended has said; and what was not said is as it always is.
_CHATTY = {
    "torch.distributed.elastic.multiprocessing.api": logging.CRITICAL,
    "torch.distributed.elastic.agent.server.api": logging.CRITICAL,
    "torch.distributed.run": logging.ERROR,
    "accelerate.commands.launch": logging.ERROR,
}


def main(arguments: Sequence[str]) -> None:
    """Start a command on the devices of this machine, or of several, as accelerate launch does.

    python -m piccolo_st launch finetune                   one process, or one for each GPU of this machine
    python -m piccolo_st launch finetune CONFIG --train.learning_rate 1e-5
    python -m piccolo_st launch --config_file recipes/accelerate/cpu_zero1.yaml finetune CONFIG
    python -m piccolo_st launch --num_processes 4 finetune CONFIG

    Options before the command are those of accelerate launch (accelerate launch --help). What it does differently: it
    ends with the exit code of the process that failed first, 2 for bad input and 75 for a run that was stopped and can
    go on, and adds nothing to the sentence that this process has said; SIGTERM reaches it.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(main.__doc__)
        return
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    given = launch_command_parser().parse_args(list(arguments))
    given.training_script_args = [given.training_script, *given.training_script_args]
    given.training_script, given.module = "piccolo_st", True
    for name, level in _CHATTY.items():
        logging.getLogger(name).setLevel(level)
    try:
        launch_command(given)
    except CalledProcessError as error:
        _end(error.returncode, "the process")
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _end(failure.exitcode, f"rank {rank} (process {failure.pid})")
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except KeyboardInterrupt as error:
        sys.exit(_stopped(getattr(error, "number", signal.SIGINT)))
    except InputError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"accelerate launch cannot start {given.training_script_args[0]}: {reason(error)}") from error


def _end(code: int, who: str) -> NoReturn:
    """Exit as a process did; what a signal ended could say nothing itself."""
    if code < 0:
        name = signal.Signals(-code).name
        cause = ", as where memory runs out" if name == "SIGKILL" else ""
        print(
            f"error: {who} was ended by {name}{cause}; the same command goes on from the newest checkpoint",
            file=sys.stderr,
        )
    sys.exit(code if code >= 0 else 128 - code)


def _stopped(number: int) -> int:
    """Hand SIGTERM on to the process that accelerate waited for, which Ctrl-C has reached already; its exit code."""
    import psutil

    code = 128 + number
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if number == signal.SIGTERM:
                child.terminate()
            code = child.wait() or 0
    return code if code >= 0 else 128 - code
