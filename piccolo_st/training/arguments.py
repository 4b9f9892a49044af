"""The dataclasses of a run's configuration, one for each section of its YAML; ``config.py`` reads them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import TrainingArguments

from piccolo_st.config import Configuration
from piccolo_st.distributed import on_cpu
from piccolo_st.errors import ConfigError, MissingPackage
from piccolo_st.losses import DIRECTIONS, Direction
from piccolo_st.mining import MiningSettings
from piccolo_st.modeling import PRESETS, EncoderSettings, Instructions
from piccolo_st.redaction import redact
from piccolo_st.schema import (
    Count,
    Natural,
    NotNegative,
    Number,
    Positive,
    ShareBelowOne,
    Whole,
    part_of,
    read_by,
)

#: Environment variable: the ``train.max_seconds`` of every run that sets none.
TIME_LIMIT = "PICCOLO_ST_MAX_SECONDS"


def _check_deepspeed(arguments: TrainingArguments) -> None:
    if arguments.deepspeed and find_spec("deepspeed") is None:  # transformers would end in a traceback
        raise MissingPackage("train.deepspeed", "deepspeed", "deepspeed")


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


@dataclass
class ModelArguments:
    """What is trained: a checkpoint, or an encoder built from the run's own text."""

    name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub id or directory of a sentence-transformers or transformers model; overrides `build`."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub model."})
    build: EncoderSettings | None = field(
        default=None,
        metadata={"help": "The size of an encoder to build when name_or_path is empty."},
    )
    pooling: str | None = field(
        default=None,
        metadata={"help": "Pooling of a bare encoder: mean, cls, lasttoken, ...; empty: mean, or the model's own."},
    )
    instructions: Annotated[Instructions, read_by(Instructions.from_plain, str | Instructions)] = field(
        default=PRESETS["piccolo"],
        metadata={"help": f"A preset ({', '.join(PRESETS)}), or your own: {{query: ..., document: ...}}."},
    )
    include_instruction: bool = field(
        default=True, metadata={"help": "Whether the instruction's own tokens are pooled."}
    )
    query_length: Count = field(default=64, metadata={"help": "Longest query in tokens, instruction included."})
    document_length: Count = field(default=512, metadata={"help": "Longest passage in tokens, instruction included."})
    positions: Count | None = field(
        default=None,
        metadata={"help": "Tokens the encoder must take; a BERT or RoBERTa of fewer is extended; empty: its own."},
    )
    dimension: Count | None = field(
        default=None, metadata={"help": "Width of the embeddings, through a linear layer; empty: the encoder's."}
    )
    dtype: Literal["float32", "bfloat16", "float16", "stored"] = field(
        default="float32", metadata={"help": "Of the weights trained and saved; stored: as they are in the checkpoint."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Who computes attention: sdpa, eager, flash_attention_2, ...; empty: transformers' choice."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that the checkpoint brings."})
    bidirectional: bool = field(
        default=False,
        metadata={"help": "Let the tokens of a decoder see those after them; refused where that does not work."},
    )
    model_kwargs: dict[str, object] | None = field(
        default=None, metadata={"help": "Further arguments of from_pretrained of the encoder."}
    )
    processor_kwargs: dict[str, object] | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained of the tokenizer."}
    )


@dataclass
class DataArguments:
    """What it is trained on, and which rows stand together in a batch."""

    STAGE: ClassVar[str] = "fine-tuning"

    mixture: dict[str, object] | str | None = field(
        default=None,
        metadata={"help": "The data mixture: a YAML file, or the mapping itself; see recipes/REFERENCE.md."},
    )
    batch_size: Count = field(default=64, metadata={"help": "Samples per device and step."})
    mining_model: str | None = field(
        default=None,
        metadata={"help": "Who mines negatives before the run: lexical, bm25, random, self or a model; empty: nobody."},
    )
    mining: Annotated[dict[str, object] | None, part_of(MiningSettings)] = field(
        default=None, metadata={"help": "Settings of that mining; a dataset's own go over them."}
    )
    mixing: Literal["proportional", "weights", "temperature"] = field(
        default="proportional", metadata={"help": "How often each dataset comes; weights: as their `weight` says."}
    )
    mixing_exponent: NotNegative = field(
        default=1.0, metadata={"help": "a in p ~ size^a; read only when mixing is temperature."}
    )
    small_datasets: Literal["drop", "repeat", "error"] = field(
        default="drop", metadata={"help": "What becomes of a dataset under one global batch; drop says so."}
    )
    num_negatives: Count | None = field(
        default=None, metadata={"help": "Listed hard negatives used per row and visit; empty means all."}
    )


@dataclass
class LossArguments:
    """The Piccolo loss (GTE's improved contrastive loss) and the hybrid around it."""

    temperature: Positive = field(
        default=0.01, metadata={"help": "Similarities are divided by this before the softmax."}
    )
    directions: list[Direction] = field(
        default_factory=lambda: list(DIRECTIONS), metadata={"help": "Terms of the softmax."}
    )
    mask_duplicates: bool = field(
        default=True, metadata={"help": "Whether identical texts are kept from standing against each other."}
    )
    false_negative_margin: Number | None = field(
        default=None, metadata={"help": "Drop a negative more similar than the positive by over this; empty: keep all."}
    )
    mini_batch_size: Count | None = field(
        default=None, metadata={"help": "Switches on gradient caching with this many rows at a time."}
    )
    mini_batch_num_tokens: Count | None = field(
        default=None, metadata={"help": "Switches on gradient caching with this many tokens at a time."}
    )
    chunk_tokens: Count | Literal["auto"] = field(
        default="auto",
        metadata={
            "help": "Without caching, the largest forward pass in tokens, padding included, rows sorted by length; "
            "auto: as suits the device."
        },
    )
    matryoshka_dims: list[Count] | None = field(
        default=None, metadata={"help": "Embedding dimensions trained together (MRL), largest first."}
    )


@dataclass
class EvaluationArguments:
    """The search over held-out queries; train.eval_steps says when."""

    batch_size: Count = field(default=128, metadata={"help": "Texts encoded at a time."})


_OLD_NAME = "activation_checkpointing" not in {item.name for item in fields(SentenceTransformerTrainingArguments)}


@dataclass
class PiccoloTrainingArguments(SentenceTransformerTrainingArguments):
    """SentenceTransformerTrainingArguments with the defaults of Piccolo fine-tuning.

    Only what changes is listed. The per-device batch size stands in the data section, because it decides which
    negatives a row meets.

    Example:
        >>> args = PiccoloTrainingArguments("runs/mine", num_train_epochs=3)
        >>> args.learning_rate, args.resume, args.save_total_limit
        (2e-05, 'auto', 2)
    """

    # Fields of the parent that a configuration does not set, with what it sets instead.
    REPLACED: ClassVar[dict[str, str]] = {
        "per_device_train_batch_size": "data.batch_size",
        "multi_dataset_batch_sampler": "data.mixing",
        "batch_sampler": "data.mixing",
        "prompts": "model.instructions",
        "router_mapping": "model.query_length and model.document_length",
        "resume_from_checkpoint": "train.resume",
        "per_device_eval_batch_size": "evaluation.batch_size",
        "data_seed": "train.seed",
        "train_sampling_strategy": "data.mixing",
        "length_column_name": "data.mixing",
        "remove_unused_columns": "columns of a dataset",
        "do_eval": "train.eval_strategy",
    }
    # Fields of the parent that nothing in a run reads, and why.
    UNREAD: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            ("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
             "include_for_metrics", "batch_eval_metrics", "label_names", "fp16_full_eval", "bf16_full_eval"),
            "a run searches held-out queries and computes no evaluation loss",
        ),
        **dict.fromkeys(("do_train", "do_predict"), "a recipe trains"),
        "auto_find_batch_size": "a batch decides which negatives a row meets; lower data.batch_size, or set "
        "loss.mini_batch_num_tokens",
        "label_smoothing_factor": "the losses have no smoothing",
        "average_tokens_across_devices": "the losses are means over rows",
        "include_num_input_tokens_seen": "tokens are always logged",
        "ddp_broadcast_buffers": "sentence-transformers switches it off",
    }  # fmt: skip

    output_dir: str = field(default="runs/piccolo", metadata={"help": "Where checkpoints and reports go."})
    num_train_epochs: NotNegative = field(default=1.0, metadata={"help": "Passes over the mixture."})
    max_steps: Annotated[Whole, AfterValidator(_steps)] = field(
        default=-1,
        metadata={"help": "Optimizer steps in all, at least 1, in place of num_train_epochs; -1: not set."},
    )
    eval_steps: Positive | None = field(
        default=None,
        metadata={"help": "Steps between searches where eval_strategy is steps; below 1, a share."},
    )
    learning_rate: NotNegative = field(default=2e-5, metadata={"help": "The peak learning rate of AdamW."})
    warmup_steps: NotNegative = field(
        default=0.1, metadata={"help": "Steps of linear warm-up; below 1, a share of all steps."}
    )
    logging_steps: Positive = field(default=10, metadata={"help": "Steps between logged losses."})
    save_strategy: str = field(default="steps", metadata={"help": "When checkpoints are written: steps, epoch, no."})
    save_steps: Positive = field(default=500, metadata={"help": "Steps between checkpoints."})
    save_total_limit: Whole | None = field(default=2, metadata={"help": "Checkpoints kept."})
    resume: str = field(
        default="auto",
        metadata={
            "help": "auto: go on from the newest complete checkpoint in output_dir, if there is one; never: start anew "
            "and move earlier checkpoints aside; or the path of a checkpoint."
        },
    )
    accept_changes: bool = field(
        default=False, metadata={"help": "Go on from a checkpoint although data or settings have changed since."}
    )
    max_non_finite_steps: Count = field(
        default=3, metadata={"help": "Steps in a row with a loss or gradient that is not finite that end the run."}
    )
    max_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Seconds of training after which a run ends as if that step were its last; the same command goes "
            "on from there. Empty: what the environment variable PICCOLO_ST_MAX_SECONDS says, else no limit."
        },
    )
    fast_dropout: bool = field(
        default=True,
        metadata={"help": "On a CPU, draw dropout masks ten times faster than torch; see modeling/packed/dropout.py."},
    )
    packing: bool = field(
        default=True,
        metadata={
            "help": "Run rows without padding, where that changes nothing else: on a CPU, and on CUDA in bf16 or fp16."
        },
    )
    # The parent's own since transformers 5.23; before it, which is what Python 3.10 has, gradient_checkpointing.
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Compute activations again in the backward pass, to save memory."}
    )
    activation_checkpointing_kwargs: dict[str, object] | str | None = field(
        default=None, metadata={"help": "For activation_checkpointing; empty: the non-reentrant kind."}
    )
    report_to: list[str] | str | None = field(
        default="none", metadata={"help": "Trackers: none, tensorboard, trackio, wandb."}
    )
    cpu_threads: Count | None = field(
        default=None, metadata={"help": "torch threads of a process on CPU; empty: the cores shared among processes."}
    )
    average_with_start: ShareBelowOne = field(
        default=0.0,
        metadata={
            "help": "Share of the checkpoint's own weights in the model that a run leaves: the trained weights are "
            "averaged with them at its end (WiSE-FT, arXiv 2109.01903), which gives back what was forgotten; 0: none."
        },
    )
    card_samples: bool = field(
        default=False, metadata={"help": "Whether the model's card shows rows of the training data."}
    )

    def __post_init__(self) -> None:
        _check_deepspeed(self)
        self.use_cpu = self.use_cpu or on_cpu()
        super().__post_init__()  # type: ignore[no-untyped-call]
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

    def to_dict(self) -> dict[str, Any]:
        """Every setting, as trackers and the model's card get it: without secrets, wherever they stand."""
        found: dict[str, Any] = redact(super().to_dict(), mark="left out")[0]  # type: ignore[no-untyped-call]
        return found

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


@dataclass
class PlanArguments:
    """What --plan needs to know beside the other sections; training reads nothing of it."""

    processes: Count = field(default=1, metadata={"help": "GPUs in all."})
    zero_stage: Literal[0, 1] = field(default=1, metadata={"help": "DeepSpeed ZeRO stage, 0 (DDP) or 1."})
    gpu_memory_gib: Positive | None = field(
        default=None, metadata={"help": "Memory of a GPU; what needs more is refused."}
    )
    reserve: ShareBelowOne = field(default=0.1, metadata={"help": "Share of it kept for the framework."})
    encoder: dict[str, bool | int | float] | None = field(
        default=None, metadata={"help": "Shape of an encoder that cannot be read here: layers, hidden_size, heads, ..."}
    )
    negatives: Natural = field(default=0, metadata={"help": "Hard negatives of a row."})
    query_tokens: Count | None = field(default=None, metadata={"help": "Mean tokens of a query; empty: its longest."})
    document_tokens: Count | None = field(
        default=None, metadata={"help": "Mean tokens of a passage; empty: its longest."}
    )
    rows: Count | None = field(
        default=None, metadata={"help": "Rows of the mixture, where train.max_steps is not set."}
    )
    tokens_per_second: Positive | None = field(default=None, metadata={"help": "Assumed throughput of a process."})
    peak_tflops: Positive | None = field(default=None, metadata={"help": "Peak of a GPU in the run's precision."})
    mfu: Positive | None = field(default=None, metadata={"help": "Assumed share of that peak."})


@dataclass
class PretrainModelArguments(ModelArguments):
    """What is pretrained: short inputs, so that a batch can be large."""

    query_length: Count = field(default=128, metadata={"help": "Longest query in tokens, instruction included."})
    document_length: Count = field(default=128, metadata={"help": "Longest passage in tokens, instruction included."})


@dataclass
class PretrainDataArguments(DataArguments):
    """What it is pretrained on: pairs, in batches as large as the memory allows."""

    STAGE: ClassVar[str] = "pre-training"

    batch_size: Count = field(default=1024, metadata={"help": "Samples per device and step."})


@dataclass
class PretrainLossArguments(LossArguments):
    """The plain softmax over in-batch negatives."""

    directions: list[Direction] = field(
        default_factory=lambda: ["query_to_doc"],
        metadata={"help": "Terms of the softmax."},
    )


@dataclass(frozen=True)
class FinetuneConfig(Configuration):
    """Stage 2: queries of 64 tokens and passages of 512, hard negatives, four directions."""

    model: ModelArguments
    data: DataArguments
    loss: LossArguments
    evaluation: EvaluationArguments
    train: PiccoloTrainingArguments
    plan: PlanArguments

    @property
    def mixture(self) -> Mapping[str, object] | str:
        """What ``data.mixture`` says.

        Raises:
            ConfigError: it says nothing.
        """
        if self.data.mixture is None:
            raise ConfigError(
                f"{self.path} names no data; set data.mixture to a mixture file or write the mapping there"
            )
        return self.data.mixture


@dataclass(frozen=True)
class PretrainConfig(FinetuneConfig):
    """Stage 1: texts of 128 tokens, large batches of pairs, the plain softmax."""

    model: PretrainModelArguments
    data: PretrainDataArguments
    loss: PretrainLossArguments
