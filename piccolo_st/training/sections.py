"""The sections of a run of either stage, and the defaults of stage 1; ``config.py`` reads them.

The section ``train`` is known here by what it leaves out. What only looks at a configuration has the rest of it as the
shipped schema describes it (``described``), and training_arguments.py as the arguments of a trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from piccolo_st.config import Configuration
from piccolo_st.errors import ConfigError, InputError
from piccolo_st.losses import Direction
from piccolo_st.modeling import LoraSettings
from piccolo_st.schema import Count, setting
from piccolo_st.training.arguments import (
    DataArguments,
    EvaluationArguments,
    LossArguments,
    ModelArguments,
    PlanArguments,
)


@dataclass
class PretrainModelArguments(ModelArguments):
    """What is pretrained: short inputs, so that a batch can be large."""

    query_length: Count = setting(128, "Longest query in tokens, instruction included.")
    document_length: Count = setting(128, "Longest passage in tokens, instruction included.")


@dataclass
class PretrainDataArguments(DataArguments):
    """What it is pretrained on: pairs, in batches as large as the memory allows."""

    STAGE: ClassVar[str] = "pre-training"

    batch_size: Count = setting(1024, "Samples per device and step.")


@dataclass
class PretrainLossArguments(LossArguments):
    """The plain softmax over in-batch negatives."""

    directions: list[Direction] = setting(["query_to_doc"], "Terms of the softmax.")


class TrainSection:
    """Which of sentence-transformers' arguments a configuration does not set."""

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
        "warmup_ratio": "train.warmup_steps",
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


@dataclass(frozen=True)
class FinetuneSections(Configuration):
    """The sections of stage 2."""

    model: ModelArguments
    lora: LoraSettings
    data: DataArguments
    loss: LossArguments
    evaluation: EvaluationArguments
    train: Any  # PiccoloTrainingArguments, or what the schema says of them
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

    def check_adapter(self) -> None:
        """Refuse what an adapter cannot be trained with.

        Raises:
            InputError: naming the setting.
        """
        if self.lora.rank is None:
            return
        if not self.model.name_or_path:
            raise InputError(
                "lora.rank must be empty for an encoder that is built, whose random weights an adapter would leave as "
                f"they are, got {self.lora.rank}; set model.name_or_path"
            )
        if self.train.average_with_start:
            raise InputError(
                "train.average_with_start must be 0 with an adapter, which leaves the checkpoint's weights as they are "
                f"and begins at nothing, got {self.train.average_with_start:g}; write --train.average_with_start 0, "
                "and lower lora.alpha for less of what was learnt"
            )


@dataclass(frozen=True)
class PretrainSections(FinetuneSections):
    """The sections of stage 1, with defaults of their own."""

    model: PretrainModelArguments
    data: PretrainDataArguments
    loss: PretrainLossArguments
