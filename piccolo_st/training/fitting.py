"""What ``loss.mini_batch_num_tokens: auto`` stands for on the machine that a run starts on."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Literal, cast

import torch
from datasets import DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from piccolo_st.distributed import agree, get_world_size
from piccolo_st.losses.needs import negatives_of_rows
from piccolo_st.training.estimate import check_room_for_a_text, tokens_of_a_batch, tokens_that_fit
from piccolo_st.training.shape import shape_of
from piccolo_st.training.training_arguments import FinetuneConfig


def mini_batch_tokens(config: FinetuneConfig, model: SentenceTransformer, train_dataset: DatasetDict) -> int | None:
    """Tokens of a mini-batch, the same on all ranks, or None for no caching.

    A number stays what it is. "auto" is what fits beside the rest of the run into what its GPUs have free, and None
    where a batch of the longest texts does, or off CUDA.

    Raises:
        InputError: not even one text fits on some rank, or the encoder's shape cannot be read; the same on every rank.
    """
    asked = config.loss.mini_batch_num_tokens
    if asked != "auto":
        return asked
    device = config.train.device
    if device.type != "cuda":
        return None
    most = max(negatives_of_rows(dataset)[1] for dataset in train_dataset.values())
    limit = config.data.num_negatives
    plan = replace(
        config.plan,
        processes=get_world_size(),
        zero_stage=_zero_stage(config),
        negatives=most if limit is None else min(most, limit),
        query_tokens=None,
        document_tokens=None,
    )
    config = replace(config, plan=plan)
    there = sum(weight.nbytes for weight in model.parameters() if weight.device.type == "cuda")
    free = _free(device) + there  # where the weights are before the first step says nothing of where they will be
    shape = shape_of(cast(Transformer, model[0]).model.config, config.model.dimension)
    fits = tokens_that_fit(config, shape, free)
    fewest = min(fits for (fits,) in agree("loss.mini_batch_num_tokens: auto", {}, device, [fits]))
    check_room_for_a_text(config, fewest, free)
    return fewest if fewest < tokens_of_a_batch(config) else None


def _zero_stage(config: FinetuneConfig) -> Literal[0, 1]:
    plugin = config.train.deepspeed_plugin
    settings = {} if plugin is None else plugin.hf_ds_config.config
    return 1 if int(settings.get("zero_optimization", {}).get("stage", 0)) else 0


def _free(device: torch.device) -> int:
    """Bytes of a GPU that a process can still have: what nobody has, and what torch keeps of its own freed memory."""
    gc.collect()  # a guide or a miner that has done its work is held by a circle of references
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
