"""What ``loss.mini_batch_num_tokens: auto`` stands for on the machine that a run starts on."""

from __future__ import annotations

from dataclasses import replace

import torch
from sentence_transformers import SentenceTransformer

from piccolo_st.distributed import agree, get_world_size
from piccolo_st.training.estimate import tokens_of_a_batch, tokens_that_fit
from piccolo_st.training.shape import encoder_shape
from piccolo_st.training.training_arguments import FinetuneConfig


def mini_batch_tokens(config: FinetuneConfig, model: SentenceTransformer) -> int | None:
    """Tokens of a mini-batch, the same on all ranks, or None for no caching.

    A number stays what it is. "auto" is what fits beside the rest of the run into what its GPUs have free, and None
    where a batch of the longest texts does, or off CUDA.

    Raises:
        InputError: not even one text fits, or the encoder's shape cannot be read.
    """
    asked = config.loss.mini_batch_num_tokens
    if asked != "auto":
        return asked
    device = config.train.device
    if device.type != "cuda":
        return None
    plugin = config.train.deepspeed_plugin
    plan = replace(
        config.plan,
        processes=get_world_size(),
        zero_stage=0 if plugin is None else 1,
        negatives=config.plan.negatives if config.data.num_negatives is None else config.data.num_negatives,
        query_tokens=None,
        document_tokens=None,
    )
    config = replace(config, plan=plan)
    there = sum(weight.nbytes for weight in model.parameters() if weight.device.type == "cuda")
    free = _free(device) + there  # where the weights are before the first step says nothing of where they will be
    fits = tokens_that_fit(config, encoder_shape(config), free)
    fewest = min(fits for (fits,) in agree("loss.mini_batch_num_tokens: auto", {}, device, [fits]))
    return fewest if fewest < tokens_of_a_batch(config) else None


def _free(device: torch.device) -> int:
    """Bytes of a GPU that a process can still have: what nobody has, and what torch keeps of its own freed memory."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
