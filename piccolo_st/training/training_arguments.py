"""The section ``train`` of a run, which has sentence-transformers' own arguments, and the runs that have it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from importlib.util import find_spec
from typing import Annotated

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from pydantic import AfterValidator
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import TrainingArguments

from piccolo_st.distributed import on_cpu
from piccolo_st.errors import ConfigError, InputError, MissingPackage, reason
from piccolo_st.redaction import redact
from piccolo_st.schema import Count, Natural, NotNegative, Positive, ShareBelowOne, Whole, setting
from piccolo_st.training import builds
from piccolo_st.training.arguments import TIME_LIMIT
from piccolo_st.training.sections import FinetuneSections, PretrainSections, TrainSection

logger = logging.getLogger(__name__)


def _check_deepspeed(arguments: TrainingArguments) -> None:
    if arguments.deepspeed and find_spec("deepspeed") is None:  # transformers would end in a traceback
        raise MissingPackage("train.deepspeed", "deepspeed", "deepspeed")


def _check_warmup(arguments: SentenceTransformerTrainingArguments) -> None:
    ratio, steps = arguments.warmup_ratio, arguments.warmup_steps
    if ratio is not None and steps != 0:  # sentence-transformers would read the steps alone, and say nothing
        raise ConfigError(
            f"warmup_ratio must be left out where warmup_steps is not 0, got {ratio} beside {steps}; set warmup_steps, "
            "which below 1 is a share of all steps"
        )


def _steps(value: int) -> int:
    if value == 0 or value < -1:
        raise ValueError("must be at least 1, or -1 for the steps of num_train_epochs")
    return value


def _time_limit(seconds: float | None) -> float | None:
    """``train.max_seconds``, or what the environment says in its place."""
    name, value = ("train.max_seconds", seconds) if seconds is not None else (TIME_LIMIT, os.environ.get(TIME_LIMIT))
    try:
        limit = float(value) if value else None if value in (None, "") else 0.0
    except ValueError:
        limit = math.nan
    if limit is not None and not limit > 0:
        raise ConfigError(f"{name} must be a number of seconds above 0, got {value!r}; unset it for no limit")
    return limit


_OLD_NAME = "activation_checkpointing" not in {item.name for item in fields(SentenceTransformerTrainingArguments)}


@dataclass
class PiccoloTrainingArguments(TrainSection, SentenceTransformerTrainingArguments):
    """SentenceTransformerTrainingArguments with the defaults of Piccolo fine-tuning.

    Only what changes is listed. The per-device batch size stands in the data section, because it decides which
    negatives a row meets.

    Example:
        >>> args = PiccoloTrainingArguments("runs/mine", num_train_epochs=3)
        >>> args.learning_rate, args.resume, args.save_total_limit
        (2e-05, 'auto', 2)
    """

    output_dir: str = setting("runs/piccolo", "Where checkpoints and reports go.")
    num_train_epochs: NotNegative = setting(1.0, "Passes over the mixture.")
    max_steps: Annotated[Whole, AfterValidator(_steps)] = setting(
        -1, "Optimizer steps in all, at least 1, in place of num_train_epochs; -1: not set."
    )
    eval_steps: Positive | None = setting(
        None, "Steps between searches where eval_strategy is steps; below 1, a share."
    )
    learning_rate: NotNegative = setting(2e-5, "The peak learning rate of AdamW.")
    warmup_steps: NotNegative = setting(0.1, "Steps of linear warm-up; below 1, a share of all steps.")
    weight_decay: NotNegative = setting(0.0, "Weight decay of AdamW.")
    adam_beta1: ShareBelowOne = setting(0.9, "Of AdamW's mean of gradients.")
    adam_beta2: ShareBelowOne = setting(0.999, "Of AdamW's mean of squared gradients.")
    max_grad_norm: NotNegative = setting(1.0, "Gradients of a larger norm are scaled down to it; 0: none is.")
    gradient_accumulation_steps: Count = setting(1, "Batches whose gradients are added up in an optimizer step.")
    dataloader_num_workers: Natural = setting(0, "Processes that read batches; 0: none.")
    logging_steps: Positive = setting(10, "Steps between logged losses.")
    save_strategy: str = setting("steps", "When checkpoints are written: steps, epoch, no.")
    save_steps: Positive = setting(500, "Steps between checkpoints.")
    save_total_limit: Whole | None = setting(2, "Checkpoints kept.")
    resume: str = setting(
        "auto",
        "auto: go on from the newest complete checkpoint in output_dir, if there is one; never: start anew "
        "and move earlier checkpoints aside; or the path of a checkpoint.",
    )
    accept_changes: bool = setting(False, "Go on from a checkpoint although data or settings have changed since.")
    max_non_finite_steps: Count = setting(
        3, "Steps in a row with a loss or gradient that is not finite that end the run."
    )
    max_seconds: float | None = setting(
        None,
        "Seconds of training after which a run ends as if that step were its last; the same command goes "
        "on from there. Empty: what the environment variable PICCOLO_ST_MAX_SECONDS says, else no limit.",
    )
    fast_dropout: bool = setting(
        True, "On a CPU, draw dropout masks ten times faster than torch; see modeling/packed/dropout.py."
    )
    packing: bool = setting(
        True, "Run rows without padding, where that changes nothing else: on a CPU, and on CUDA in bf16 or fp16."
    )
    # The parent's own since transformers 5.23; before it, which is what Python 3.10 has, gradient_checkpointing.
    activation_checkpointing: bool | None = setting(
        None, "Compute activations again in the backward pass, to save memory."
    )
    activation_checkpointing_kwargs: dict[str, object] | str | None = setting(
        None, "For activation_checkpointing; empty: the non-reentrant kind."
    )
    report_to: list[str] | str | None = setting("none", "Trackers: none, tensorboard, trackio, wandb.")
    cpu_threads: Count | None = setting(
        None, "torch threads of a process on CPU; empty: the cores shared among processes."
    )
    average_with_start: ShareBelowOne = setting(
        0.0,
        "Share of the checkpoint's own weights in the model that a run leaves: the trained weights are "
        "averaged with them at its end (WiSE-FT, arXiv 2109.01903), which gives back what was forgotten; 0: none.",
    )
    card_samples: bool = setting(False, "Whether the model's card shows rows of the training data.")

    def __post_init__(self) -> None:
        _check_deepspeed(self)
        _check_warmup(self)
        self.use_cpu = self.use_cpu or on_cpu()
        if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") and os.environ.get("LOCAL_RANK", "0") == "0":
            builds.clear_left_locks()
        with self._meeting_the_others():
            super().__post_init__()  # type: ignore[no-untyped-call]
        self._use_one_gpu()
        self.max_seconds = _time_limit(self.max_seconds)
        if _OLD_NAME:  # either name sets both, as the parent has it since
            self.activation_checkpointing = self.activation_checkpointing or self.gradient_checkpointing
            self.activation_checkpointing_kwargs = (
                self.activation_checkpointing_kwargs or self.gradient_checkpointing_kwargs
            )
        if self.activation_checkpointing and self.activation_checkpointing_kwargs is None:
            # The reentrant kind runs a backward inside the backward, which DDP and ZeRO stage 2 do not survive.
            self.activation_checkpointing_kwargs = {"use_reentrant": False}
        if _OLD_NAME:
            self.gradient_checkpointing = self.activation_checkpointing
            self.gradient_checkpointing_kwargs = self.activation_checkpointing_kwargs
        if self.device.type == "cpu":
            self._share_cores()
            self.dataloader_pin_memory = False  # there is no device to pin for, and torch would warn at every epoch

    def _use_one_gpu(self) -> None:
        """Keep a process from torch's DataParallel, in which neither autocast nor packing nor caching is right."""
        if self.n_gpu > 1:
            logger.warning(
                "one process trains on one GPU, and this one sees %d: the others stay idle; start it with `python -m "
                "piccolo_st launch`, or accelerate launch, to use them all",
                self.n_gpu,
            )
            self._n_gpu = 1

    def to_dict(self) -> dict[str, object]:
        """Every setting, as trackers and the model's card get it: without secrets, wherever they stand."""
        found: dict[str, object] = redact(super().to_dict(), mark="left out")[0]  # type: ignore[no-untyped-call]
        return found

    @contextmanager
    def _meeting_the_others(self) -> Iterator[None]:
        """Around what starts the process group.

        Raises:
            InputError: not every process came within ``ddp_timeout``.
        """
        world, deepspeed = int(os.environ.get("WORLD_SIZE", "1")), parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
        try:
            if world > 1 and self.use_cpu and not deepspeed:  # where the stock class leaves the time out
                PartialState(cpu=True, backend=self.ddp_backend, timeout=timedelta(seconds=self.ddp_timeout))
            yield
        except torch.distributed.DistError as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise InputError(
                f"all {world} processes must meet at {place} within train.ddp_timeout, {self.ddp_timeout} s, got "
                f"{reason(error)}; look for what ended the missing ones, or start them"
            ) from error

    def _share_cores(self) -> None:
        """Share the cores among this machine's processes, where nobody else decided.

        accelerate launch and torchrun set OMP_NUM_THREADS to 1, which would leave the other cores idle.
        """
        launched = "ACCELERATE_DYNAMO_MODE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        if self.cpu_threads is not None:
            torch.set_num_threads(self.cpu_threads)
        elif launched and os.environ.get("OMP_NUM_THREADS") == "1":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@dataclass(frozen=True)
class FinetuneConfig(FinetuneSections):
    """Stage 2: queries of 64 tokens and passages of 512, hard negatives, four directions."""

    train: PiccoloTrainingArguments


@dataclass(frozen=True)
class PretrainConfig(PretrainSections, FinetuneConfig):
    """Stage 1: texts of 128 tokens, large batches of pairs, the plain softmax."""
