"""The commands finetune and pretrain: a run from its YAML to its model, or what it would need."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from piccolo_st import data, training  # their names are loaded where they are used
from piccolo_st.config import asks_for_help, parse_run, usage
from piccolo_st.shipped import find, shipped
from piccolo_st.training.described import Stage, described_run, described_sections, keep_description


def finetune(arguments: Sequence[str]) -> None:
    """Fine-tune a Piccolo embedding model on a mixture of labelled pairs and triplets, stage 2.

    python -m piccolo_st launch finetune                      the quickstart: no network, minutes on a CPU
    python -m piccolo_st launch finetune CONFIG               any run: the path of a YAML file, or a shipped one's name
    python -m piccolo_st launch finetune CONFIG --train.learning_rate 1e-5 --data.batch_size 32
    python -m piccolo_st launch --config_file recipes/accelerate/cpu_zero1.yaml finetune
    python -m piccolo_st finetune CONFIG --plan      memory of a GPU, bytes on the wire, steps and hours; trains nothing
    """
    _train(arguments, "finetune", "quickstart", finetune.__doc__ or "")


def pretrain(arguments: Sequence[str]) -> None:
    """Pretrain a Piccolo embedding model on pairs, stage 1: length 128, large batches, in-batch negatives of all ranks.

    python -m piccolo_st launch pretrain                      the dictionaries of the quickstart as pairs, no network
    python -m piccolo_st launch pretrain CONFIG               any run: the path of a YAML file, or a shipped one's name
    python -m piccolo_st launch pretrain CONFIG --loss.mini_batch_num_tokens 16384
    python -m piccolo_st launch --config_file recipes/accelerate/cpu_zero1.yaml pretrain
    python -m piccolo_st pretrain CONFIG --plan      memory of a GPU, bytes on the wire, steps and hours; trains nothing
    """
    _train(arguments, "pretrain", "pretrain-quickstart", pretrain.__doc__ or "")


def _train(arguments: Sequence[str], stage: Stage, default: str, description: str) -> None:
    """Look at the configuration as the shipped schema describes it, in a second; then import what trains, and train."""
    rest = [argument for argument in arguments if argument != "--plan"]
    path, about, sections = shipped()[default], inspect.cleandoc(description), described_sections(stage)
    if asks_for_help(rest) and sections is not None:
        print(usage(sections, path, about))
        return
    if rest and not rest[0].startswith("-"):
        rest[0] = str(find(rest[0]))
    if sections is not None:
        looked_at = parse_run(rest, described_run(stage, sections), path)
        if "--plan" in arguments:
            print(training.show_plan(looked_at))
            return
        data.parse_mixture(looked_at.mixture, inside=looked_at.path)
    kind = training.FinetuneConfig if stage == "finetune" else training.PretrainConfig
    config = parse_run(rest, kind, path, about)
    if sections is None:
        keep_description()
    if "--plan" in arguments:
        print(training.show_plan(config))
        return
    run = training.TrainingRun(config)
    run.say(run.describe())
    run.train()
    run.say(run.summary())
