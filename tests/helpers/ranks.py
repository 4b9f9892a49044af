"""Run a function on n real gloo ranks: forked processes, file rendezvous, and a watchdog.

``run_ranks(function, world, *args)`` forks ``world`` children, joins them in one gloo process group and returns the
list of what ``function(rank, world, *args)`` returned, by rank. The first rank to fail decides the error that is
raised, with its traceback; when ``timeout`` seconds pass, every child is killed and TimeoutError says where each
one stood. With ``world`` 1 it runs in one forked child as well, so that tests compare like with like.

Forking takes 2 s less per rank than spawning, because the imports are already done. torch must not have used its
OpenMP pool before (tests/conftest.py sees to it): a child would hang in its first parallel region.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(function: Callable[..., Any], rank: int, world: int, folder: Path, port: int, args: tuple[Any, ...]) -> None:
    os.setsid()
    stack_file = open(folder / f"{rank}.stack", "w")  # noqa: SIM115  (the handler writes to it until the process ends)
    faulthandler.register(signal.SIGUSR1, file=stack_file, all_threads=True)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    result: tuple[str, Any]
    try:
        import torch
        import torch.distributed as dist
        from accelerate.state import AcceleratorState, GradientState, PartialState

        torch.set_num_threads(1)
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        GradientState._reset_state()
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
        dist.barrier()
        result = ("ok", function(rank, world, *args))
        dist.barrier()
    except BaseException as error:
        result = ("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    partial = folder / f"{rank}.partial"
    partial.write_bytes(pickle.dumps(result))
    partial.rename(folder / f"{rank}.result")
    os._exit(0 if result[0] == "ok" else 1)


def run_ranks(function: Callable[..., Any], world: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Run ``function(rank, world, *args)`` on ``world`` forked gloo ranks and return the results by rank.

    Raises:
        RuntimeError: a rank raised; the message holds the rank and its traceback. The others are killed after a
            grace of two seconds, so a rank that fails alone does not leave the test waiting.
        TimeoutError: not done after ``timeout`` seconds; the message holds every rank's stack.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        port = free_port()
        children: dict[int, int] = {}
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                _child(function, rank, world, folder, port, args)
            children[rank] = pid
        try:
            return _collect(folder, world, children, timeout)
        finally:
            for pid in children.values():
                # The group holds what the child started; the child itself may hang before it has a group.
                for kill in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _collect(folder: Path, world: int, children: dict[int, int], timeout: float) -> list[Any]:
    deadline = time.monotonic() + timeout
    results: dict[int, tuple[str, Any]] = {}
    exited: set[int] = set()
    while len(results) < world:
        for rank in set(range(world)) - set(results):
            path = folder / f"{rank}.result"
            if path.exists():
                results[rank] = pickle.loads(path.read_bytes())
                if results[rank][0] == "error":
                    deadline = min(deadline, time.monotonic() + 2.0)
            elif rank not in exited and os.waitpid(children[rank], os.WNOHANG) != (0, 0):
                exited.add(rank)
            elif rank in exited:
                raise RuntimeError(f"rank {rank} of {world} died without a result")
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    failed = [
        f"rank {rank} of {world} raised {text}" for rank, (kind, text) in sorted(results.items()) if kind == "error"
    ]
    if failed:
        raise RuntimeError("\n".join(failed))
    if len(results) < world:
        missing = sorted(set(range(world)) - set(results))
        for rank in missing:
            os.kill(children[rank], signal.SIGUSR1)
        time.sleep(0.5)
        stacks = "\n".join(f"rank {rank}:\n{(folder / f'{rank}.stack').read_text()}" for rank in missing)
        raise TimeoutError(f"ranks {missing} of {world} not done after {timeout} s\n{stacks}")
    return [results[rank][1] for rank in range(world)]
