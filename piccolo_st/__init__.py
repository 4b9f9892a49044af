"""piccolo_st: train Piccolo text embedding models with sentence-transformers.

The house, ground first. A room imports only from rooms above it in this list, and through their ``__init__`` where that
says the name. Names are loaded on first use, so importing this package costs nothing.

    errors, schema, describe, stored    what bad input raises; values -> dataclasses; every key in words; JSON read back
    ownership    who writes where
    config, shipped    YAML files and the command line; YAML files by name
    cache, hashing, hub, tables, environment, distributed, redaction    each small shared thing once
    modeling/     instructions, lengths, positions, pooling; packed/ (no padding), portable/ (loads everywhere)
    data/         what a mixture is and what its rows are
    batches/      which rows at which step, and their tensors
    losses/       contrast (tensors), piccolo (PiccoloLoss), hybrid (one loss per task type)
    mining/       hard negatives
    evaluation/   C-MTEB and local tasks through mteb, comparison, search in training
    releasing/    what a run was, and what of it is published: record, card, results, checks, difference, one commit
    training/     arguments, trainer, checkpoints, exact resume, guards, run
    curation/     check, deduplicate, filter at any scale: nothing else imports it
    demo/         a page to see a model search, and the Space
    experiments/  what each part of the recipe is worth
    commands/     options and output of each command: python -m piccolo_st COMMAND
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from piccolo_st._version import __version__

_EXPORTS = {
    "HomogeneousBatchSampler": "piccolo_st.batches.sampler",
    "InstructionPooling": "piccolo_st.modeling.pooling",
    "PiccoloDataCollator": "piccolo_st.batches.collator",
    "PiccoloLoss": "piccolo_st.losses.piccolo",
    "PiccoloTrainer": "piccolo_st.training.trainer",
    "PiccoloTrainingArguments": "piccolo_st.training.training_arguments",
    "build_losses": "piccolo_st.losses.hybrid",
    "check_portable": "piccolo_st.modeling.portable.readers",
    "evaluate": "piccolo_st.evaluation.runner",
    "load_mixture": "piccolo_st.data.mixture",
    "release": "piccolo_st.releasing.publish",
    "save_portable": "piccolo_st.modeling.portable.saving",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it, the first time it is asked for (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'piccolo_st' has no attribute {name!r}; its public names are {__all__}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
