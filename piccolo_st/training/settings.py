"""Settings that each are sound and cannot go together, or not here: refused before what takes long.

(1) ``check_here``: before data and model are read, what this machine or this user does not have;
(2) ``check_searches``: once the data say what is held out, what is to be searched and compared;
(3) ``check_room``: once the model is there, whether the disk takes a checkpoint of it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from piccolo_st.errors import InputError, nearest
from piccolo_st.evaluation import RetrievalEvaluator

logger = logging.getLogger(__name__)


def check_here(args: TrainingArguments) -> None:
    """Step (1).

    Raises:
        InputError: fp16 on a CPU, or a push without a token.
    """
    if args.fp16 and args.device.type == "cpu":
        raise InputError(
            "train.fp16 must be false on a CPU, which has next to no float16, got true; set train.bf16 to true, or run "
            "on a CUDA GPU"
        )
    if args.push_to_hub and not (args.hub_token or get_token()):
        raise InputError(
            "train.push_to_hub needs a token of the Hub, got none; log in with `hf auth login`, set HF_TOKEN, or train "
            "without it and publish with python -m piccolo_st release"
        )


def check_searches(args: TrainingArguments, evaluators: Sequence[RetrievalEvaluator]) -> None:
    """Step (2).

    Raises:
        InputError: nothing is held out and something is to be searched, or nothing is searched and something compared;
            or ``metric_for_best_model`` is none that the searches measure.
    """
    searches = args.eval_strategy != "no"
    asked = "eval_strategy" if searches else "eval_on_start" if args.eval_on_start else ""
    if asked and not evaluators:
        value = getattr(args.eval_strategy, "value", args.eval_strategy) if searches else "true"
        raise InputError(
            f"train.{asked} must be left out where no dataset is held out, got {value}; give a dataset `holdout: "
            "{queries: 100}`, or the mixture one with `use: evaluate`"
        )
    best = args.save_strategy == SaveStrategy.BEST
    if (best or args.load_best_model_at_end) and not searches:
        raise InputError(
            f"train.{'save_strategy best' if best else 'load_best_model_at_end'} compares searches, and "
            "train.eval_strategy must be steps or epoch, got no; set it"
        )
    if not searches or (args.metric_for_best_model is None and not best):
        return
    known = [metric for one in evaluators for metric in _metrics(one)]
    wanted = str(args.metric_for_best_model).removeprefix("eval_")
    if wanted not in [*known, "sequential_score"]:
        near = nearest(wanted, known)
        raise InputError(
            f"train.metric_for_best_model must be one of {', '.join(known)}, or sequential_score for the mean of the "
            f"searches, got {args.metric_for_best_model!r}{near if near.startswith('; did') else ''}"
        )


def _metrics(evaluator: RetrievalEvaluator) -> list[str]:
    """What a search measures, by the names that the trainer's log has, but for their prefix."""
    cuts = {
        "accuracy": evaluator.accuracy_at_k, "precision": evaluator.precision_recall_at_k,
        "recall": evaluator.precision_recall_at_k, "ndcg": evaluator.ndcg_at_k, "mrr": evaluator.mrr_at_k,
        "map": evaluator.map_at_k,
    }  # fmt: skip
    return [f"{evaluator.name}_{metric}@{k}" for metric, values in cuts.items() for k in values]


def check_room(args: TrainingArguments, model: nn.Module, folder: Path) -> None:
    """Step (3): room for a checkpoint, of weights and two moments of those that are trained, and for the model.

    Raises:
        InputError: not even one checkpoint would fit beside the model that the run leaves.
    """
    weights = sum(weight.nbytes for weight in model.parameters())
    moments = 8 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    saves = args.save_strategy != SaveStrategy.NO
    one = weights + (moments if saves and not args.save_only_model else 0)
    least = one + weights if saves else weights
    free = shutil.disk_usage(folder).free
    if free < least:
        raise InputError(
            f"train.output_dir {folder} must have room for {'a checkpoint and ' if saves else ''}the model, "
            f"{least / 1e9:.1f} GB, got {free / 1e9:.1f} GB; make room or name another directory"
        )
    wanted = weights + one * ((args.save_total_limit or 1) + 1)  # an old one leaves once the new one is whole
    if saves and free < wanted:
        logger.warning(
            "%s has %.1f GB free and the checkpoints that the run keeps take up to %.1f GB; make room, or lower "
            "train.save_total_limit",
            folder,
            free / 1e9,
            wanted / 1e9,
        )
