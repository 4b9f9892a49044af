"""What stops a run before it wastes time or spoils weights.

    (1) ``check_supported``: combinations that are known to fail are refused before the first step;
    (2) ``StopSignals``: SIGTERM and SIGINT become a checkpoint at the next step boundary and exit code 75;
    (3) ``NonFiniteGuard``: a step whose loss or gradient is not finite changes no weight and is written down with its
        rows; several in a row end the run. A gradient that overflowed under an fp16 loss scale is told apart: the
        scaler skips that step and lowers the scale, which is how it finds it;
    (4) ``lost_rank``: an error that means that another process has gone says so.

All ranks take each decision together: the gradient's norm is the same on all of them, and a loss that is not finite on
one makes the gradient of all not finite (``poison``).
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeAlias, TypedDict, cast

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from piccolo_st.distributed import get_rank, get_world_size
from piccolo_st.errors import InputError, reason
from piccolo_st.training.metrics import Batch

logger = logging.getLogger(__name__)

#: Exit code of a run that was asked to stop and can go on with the same command (EX_TEMPFAIL of sysexits.h).
STOPPED = 75


class NonFiniteError(InputError):
    """Several steps in a row had a loss or gradient that is not finite."""


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


def poison(loss: Tensor) -> Tensor:
    """The same loss, bit for bit, whose gradient is not finite where the loss is not."""
    return loss * torch.where(torch.isfinite(loss), 1.0, float("nan")).to(loss.dtype)


@dataclass
class MicroStep:
    """What one rank read at a micro-step.

    Attributes:
        dataset: its name, or None where the run has only one.
        rows: numbers of the rows in that dataset, or None where the sampler does not say.
        inputs: the batch as the collator made it.
        loss: scalar, on the device.
    """

    dataset: str | None
    rows: list[int] | None
    inputs: Batch
    loss: Tensor


class _Report(TypedDict):
    """What a rank says of a micro-step of a step that is not finite."""

    rank: int
    dataset: str | None
    loss: str | None
    """In words; None where it is finite."""
    rows: list[int] | None
    suspects: list[int]


Texts: TypeAlias = Callable[[str | None, int], Mapping[str, object]]
"""(dataset, number of a row) -> the row itself."""


@dataclass
class NonFiniteGuard:
    """Counts steps whose loss or gradient is not finite and writes their rows down.

    Args:
        limit: steps in a row that end the run.
        folder: where ``non_finite_rows.jsonl`` is written, by the first rank.

    Attributes:
        skipped: steps that changed no weight because something was not finite, since the last log.
        overflows: steps that the fp16 scaler skipped, since the last log.
    """

    limit: int
    folder: Path
    skipped: int = 0
    overflows: int = 0
    _streak: int = 0
    _steps: list[MicroStep] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """Where the rows are written."""
        return self.folder / "non_finite_rows.jsonl"

    def add(self, micro_step: MicroStep) -> None:
        """Remember a micro-step until its optimizer step is judged."""
        self._steps.append(micro_step)

    def judge(
        self,
        step: int,
        norm: float | Tensor,
        loss_scale: float | None,
        suspects: Callable[[MicroStep], list[int]],
        texts: Texts,
    ) -> bool:
        """Judge an optimizer step; on every rank, with the same result.

        Args:
            step: its number.
            norm: of the gradient of all ranks. Reading it waits for the device.
            loss_scale: of fp16, or None.
            suspects: a MicroStep -> positions of its rows that are to blame, or none.
            texts: the rows that are written down.

        Returns:
            Whether the step is sound.

        Raises:
            NonFiniteError: ``limit`` steps in a row were not.
        """
        steps, self._steps = self._steps, []
        if math.isfinite(float(norm)):
            self._streak = 0
            return True
        report = _from_every_rank([_describe(one, suspects) for one in steps])
        blamed = [one for one in report if one["loss"] is not None]
        if not blamed and loss_scale is not None and loss_scale > 1:
            self.overflows += 1
            return False
        self._streak += 1
        self.skipped += 1
        blamed = blamed or report
        if any(one["suspects"] for one in blamed):
            blamed = [cast(_Report, {**one, "rows": one["suspects"]}) for one in blamed if one["suspects"]]
        self._write(step, blamed, texts)
        message = f"the {_words(blamed)} at step {step}; the rows are in {self.file}"
        if self._streak >= self.limit:
            raise NonFiniteError(
                f"{self._streak} steps in a row were not finite, the last one because of {message}; none of them "
                "changed a weight, and the last checkpoint is from before or between them; look at those rows, lower "
                "train.learning_rate, or raise train.max_non_finite_steps"
            )
        logger.warning("skipped a step because of %s (%d of %d in a row)", message, self._streak, self.limit)
        return False

    def pop_statistics(self) -> dict[str, float]:
        """What was skipped since the last call; empty if nothing was."""
        found = {"non_finite_steps": float(self.skipped), "fp16_overflow_steps": float(self.overflows)}
        self.skipped = self.overflows = 0
        return {name: value for name, value in found.items() if value}

    def _write(self, step: int, blamed: list[_Report], texts: Texts) -> None:
        if get_rank() != 0:
            return
        lines = []
        for one in blamed:
            line = {"step": step, "rank": one["rank"], "dataset": one["dataset"], "row": None, "loss": one["loss"]}
            found = [{**line, "row": row, "content": texts(one["dataset"], row)} for row in one["rows"] or []]
            lines += found or [{**line, "content": None}]
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.file, error)


def _describe(step: MicroStep, suspects: Callable[[MicroStep], list[int]]) -> _Report:
    loss = float(step.loss)
    positions = suspects(step)
    rows = step.rows
    return {
        "rank": get_rank(),
        "dataset": step.dataset,
        "loss": None if math.isfinite(loss) else str(loss),
        "rows": rows,
        "suspects": [rows[position] for position in positions] if rows is not None else [],
    }


def _from_every_rank(mine: list[_Report]) -> list[_Report]:
    if get_world_size() == 1:
        return mine
    everyone: list[list[_Report]] = [[]] * get_world_size()
    dist.all_gather_object(everyone, mine)
    return [one for part in everyone for one in part]


def _words(blamed: list[_Report]) -> str:
    what = f"loss {blamed[0]['loss']}" if blamed[0]["loss"] is not None else "gradient, which is not finite,"
    places: dict[str, list[int]] = {}
    for one in blamed:
        places.setdefault(one["dataset"] or "train", []).extend(one["rows"] or [])
    named = []
    for dataset, rows in places.items():
        shown = ", ".join(str(row) for row in rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        named.append(f"dataset {dataset!r}, rows {shown or 'unknown'}")
    return f"{what} in {'; '.join(named)}"


# (4)

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
