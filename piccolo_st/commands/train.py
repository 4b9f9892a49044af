"""The commands finetune and pretrain: a run from its YAML to its model, or what it would need."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from piccolo_st.config import parse_run
from piccolo_st.shipped import find, shipped
from piccolo_st.training import FinetuneConfig, PretrainConfig, TrainingRun, show_plan


def finetune(arguments: Sequence[str]) -> None:
    """Fine-tune a Piccolo embedding model on a mixture of labelled pairs and triplets, stage 2.

    accelerate launch -m piccolo_st finetune                  the quickstart: no network, minutes on a CPU
    accelerate launch -m piccolo_st finetune CONFIG           any run: the path of a YAML file, or a shipped one's name
    accelerate launch -m piccolo_st finetune CONFIG --train.learning_rate 1e-5 --data.batch_size 32
    accelerate launch --config_file recipes/accelerate/cpu_zero1.yaml -m piccolo_st finetune
    python -m piccolo_st finetune CONFIG --plan      memory of a GPU, bytes on the wire, steps and hours; trains nothing
    """
    _train(arguments, FinetuneConfig, "quickstart", finetune.__doc__ or "")


def pretrain(arguments: Sequence[str]) -> None:
    """Pretrain a Piccolo embedding model on pairs, stage 1: length 128, large batches, in-batch negatives of all ranks.

    accelerate launch -m piccolo_st pretrain                  the dictionaries of the quickstart as pairs, no network
    accelerate launch -m piccolo_st pretrain CONFIG           any run: the path of a YAML file, or a shipped one's name
    accelerate launch -m piccolo_st pretrain CONFIG --loss.mini_batch_num_tokens 16384
    accelerate launch --config_file recipes/accelerate/cpu_zero1.yaml -m piccolo_st pretrain
    python -m piccolo_st pretrain CONFIG --plan      memory of a GPU, bytes on the wire, steps and hours; trains nothing
    """
    _train(arguments, PretrainConfig, "pretrain-quickstart", pretrain.__doc__ or "")


def _train(arguments: Sequence[str], kind: type[FinetuneConfig], default: str, description: str) -> None:
    rest = [argument for argument in arguments if argument != "--plan"]
    if rest and not rest[0].startswith("-"):
        rest[0] = str(find(rest[0]))
    config = parse_run(rest, kind, shipped()[default], inspect.cleandoc(description))
    if "--plan" in arguments:
        print(show_plan(config))
        return
    run = TrainingRun(config)
    run.say(run.describe())
    run.train()
    run.say(run.summary())
