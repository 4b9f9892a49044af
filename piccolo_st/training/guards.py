"""What stops a run before it wastes time: settings that fail, signals, a process that has gone.

(1) ``check_supported``, ``check_trackers``, ``check_collator``: what is known to fail is refused before the first step;
(2) ``StopSignals``: SIGTERM and SIGINT become a checkpoint at the next step boundary and exit code 75;
(3) ``lost_rank``: an error that means that another process has gone says so.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_pt_utils import AcceleratorConfig

from piccolo_st.distributed import get_rank, get_world_size
from piccolo_st.errors import InputError, nearest, reason, shown

logger = logging.getLogger(__name__)

#: Exit code of a run that was asked to stop and can go on with the same command (EX_TEMPFAIL of sysexits.h).
STOPPED = 75


class LostRankError(RuntimeError):
    """Another process of the run has ended or does not answer; the run can be started again."""


class TrainingStopped(SystemExit):
    """The run was asked to stop, has saved a checkpoint, and ends with exit code 75."""

    def __init__(self, message: str) -> None:
        super().__init__(STOPPED)
        self.message = message

    def __str__(self) -> str:
        return self.message


# (1)


def check_supported(
    args: TrainingArguments,
    zero_stage: int | None,
    cached_losses: list[str],
    dtypes: Collection[torch.dtype] = (),
) -> None:
    """Refuse what is known to fail, and warn of weights in half precision, whose small steps are lost.

    Args:
        args: the training arguments.
        zero_stage: of DeepSpeed, or None without it.
        cached_losses: names of losses that cache gradients.
        dtypes: of the weights that are trained.

    Raises:
        InputError: ZeRO stage 2 with gradient caching or reentrant checkpointing; checkpoints on each node; a
            DeepSpeed configuration that would be ignored; float16 weights under an fp16 loss scale.
    """
    _check_weights(args, zero_stage, dtypes)
    if args.deepspeed and zero_stage is None:
        raise InputError(
            f"train.deepspeed must be unset on a CPU, got {args.deepspeed!r}; transformers would silently use "
            "DistributedDataParallel there, so launch with recipes/accelerate/cpu_zero1.yaml, or unset train.use_cpu "
            "(or ACCELERATE_USE_CPU) if there is an accelerator"
        )
    if args.save_on_each_node:
        raise InputError(
            "train.save_on_each_node writes parts of a checkpoint to different disks, where nobody can tell whether it "
            "is complete; unset it and set train.output_dir to a directory that all nodes share"
        )
    settings = args.activation_checkpointing_kwargs
    reentrant = args.activation_checkpointing and isinstance(settings, dict) and settings.get("use_reentrant")
    if zero_stage == 2 and (cached_losses or reentrant):
        cause = f"gradient caching (of {', '.join(cached_losses)})" if cached_losses else "reentrant checkpointing"
        remedy = (
            "ZeRO stage 1" if cached_losses else "ZeRO stage 1 or activation_checkpointing_kwargs use_reentrant: false"
        )
        raise InputError(
            f"ZeRO stage 2 reduces each gradient as it arrives and fails with {cause}, which runs several backward "
            f'passes ("Gradient computed twice for this partition"); use {remedy}'
        )


def check_trackers(names: Collection[str]) -> None:
    """Refuse a tracker that is not installed before data and model are read; transformers would, in a traceback, after.

    Args:
        names: ``report_to`` of training arguments that are made.

    Raises:
        InputError: transformers knows no such tracker, or its package is missing.
    """
    known = list(INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in known:
            raise InputError(
                f"train.report_to must be none, all, or trackers among {', '.join(known)}, got {name!r}"
                f"{nearest(name, known)}"
            )
        if name not in get_available_reporting_integrations():
            raise InputError(
                f"train.report_to must name trackers that are installed, got {name!r}, whose package is missing; "
                "pip install it, or set train.report_to to none"
            )


def check_collator(args: TrainingArguments, collator: object) -> None:
    """Refuse a collator of one's own without what sentence-transformers hands to the one that it makes.

    Args:
        args: the training arguments.
        collator: of the trainer; without such attributes it is taken to know what it does.

    Raises:
        InputError: the arguments have prompts, or a router_mapping, that nothing would read.
    """
    for name in ("prompts", "router_mapping"):
        if (wanted := getattr(args, name, None)) and not getattr(collator, name, True):
            raise InputError(
                f"a data_collator of your own must have the {name} of the arguments, which nothing else reads, got "
                f"none beside {shown(wanted)}; give {type(collator).__name__} {name}=args.{name}"
            )


def caches_gradients(loss: nn.Module) -> bool:
    """Whether a loss embeds in mini-batches and runs a backward pass for each: PiccoloLoss, or ST's Cached losses."""
    sizes = (getattr(loss, "mini_batch_size", None), getattr(loss, "mini_batch_num_tokens", None))
    return any(size is not None for size in sizes)


def _check_weights(args: TrainingArguments, zero_stage: int | None, dtypes: Collection[torch.dtype]) -> None:
    half = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes if dtype in (torch.float16, torch.bfloat16))
    if not half or zero_stage or (zero_stage == 0 and (args.fp16 or args.bf16)):  # DeepSpeed keeps float32 masters
        return
    remedy = (
        "load the model with model.dtype float32 (your own model: model.float() before the trainer), and set "
        "train.bf16 or train.fp16 to compute in half precision"
    )
    if args.fp16 and "float16" in half:
        raise InputError(
            'train.fp16 scales the loss, and float16 weights fail there ("Attempting to unscale FP16 gradients"), got '
            f"weights in {', '.join(half)}; {remedy}"
        )
    if get_rank() == 0:
        logger.warning(
            "the weights that are trained are %s: a step that is small beside a weight is rounded away, at a learning "
            "rate of 2e-5 most of them; %s",
            ", ".join(half),
            remedy,
        )


def check_stream(args: TrainingArguments) -> None:
    """Refuse a streamed dataset that one process would read for all; say what going on with one means.

    Raises:
        InputError: several processes, and accelerate would cut the batches of the first for them.
    """
    config = cast(AcceleratorConfig, args.accelerator_config)
    if args.world_size > 1 and config.dispatch_batches is not False:
        raise InputError(
            f"a streamed train_dataset under {args.world_size} processes needs accelerator_config="
            '{"dispatch_batches": False}, so that each process reads and collates its own rows; accelerate would cut '
            "the first process's batches, which hold more than rows of numbers"
        )
    logger.warning(
        "the train_dataset is streamed, so a run that goes on from a checkpoint reads it again from its beginning up "
        "to the place where it stood; whether it still has the same rows in the same order cannot be checked"
    )


# (2)


class StopSignals:
    """While entered, SIGTERM and SIGINT are noted instead of ending the process.

    A second SIGINT, a second or more after the first, ends it at once.

    Attributes:
        received: name of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._at = 0.0
        self._restore = ExitStack()

    def __enter__(self) -> StopSignals:
        self.received = None
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                self._restore.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def __exit__(self, *error: object) -> None:
        self._restore.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A launcher repeats the signal that the terminal or the scheduler has sent to everyone already.
        if self.received is not None and number == signal.SIGINT and time.monotonic() - self._at > 1:
            raise KeyboardInterrupt
        if self.received is None:
            self.received, self._at = signal.Signals(number).name, time.monotonic()


# (3)

_GONE = ("closed by peer", "connection reset", "broken pipe", "timed out", "timeout", "not connected", "refused")


@contextmanager
def lost_rank(step: Callable[[], int]) -> Iterator[None]:
    """Turn an error that means that another process has gone into a LostRankError, after ``step()`` whole steps."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if get_world_size() == 1 or not (isinstance(error, dist.DistError) or any(sign in text for sign in _GONE)):
            raise
        raise LostRankError(
            f"another process of the run has ended or does not answer, noticed by rank {get_rank()} (process "
            f"{os.getpid()}) after step {step()}: {reason(error)}. Its own message says why; the checkpoints written "
            "so far are complete, and the same command goes on from the newest one"
        ) from error
