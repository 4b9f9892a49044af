"""piccolo_st: train Piccolo text embedding models with sentence-transformers.

The package, ground first. A file imports only from lines above its own; losses, pooling and data do not import each
other. Names are loaded on first use, so importing this package costs nothing.

    errors.py         InputError: what bad input raises
    distributed.py    rank and world size; gather with gradient; identity when alone
    instructions.py   the instruction presets (查询：/结果：), which columns get which
    benchmarks.py     the Chinese benchmarks and their averages, as data
    report.py         tables, curves, the record of a run
    dropout.py        dropout on a CPU without the time its masks take
    attention.py, packing.py: rows without padding on a CPU
    batching.py       rows of all columns -> length-sorted chunks -> embeddings back in order
    losses/           contrast (tensors), piccolo (PiccoloLoss), hybrid (one loss per task type)
    pooling.py        InstructionPooling; positions.py, lengths.py: how long an input may be
    data/             mixture, plan, sampler, reading, collator, mining, curation, filtering
    portable/         checkpoints that load everywhere, and the check of it; onnx_export.py
    encoder.py        the encoder of a run, built or loaded
    demo/             a page to see a model search
    checkpoint.py     written aside, verified, renamed; the newest complete one; ownership.py: one run in a directory;
                      signature.py: what identifies a run
    evaluation/       C-MTEB and local tasks through mteb
    model_card/       results -> model-index metadata, tables, the card
    arguments.py      the dataclasses of a run, by stage; configuration.py: one YAML and the command line -> those
    trainer.py        PiccoloTrainer
    hub/              checks a release, shows it, pushes it in one commit, verifies it; a Space next to it
    budget.py         memory, traffic, steps and hours of a run, from its configuration alone
    run.py            a training run from its configuration to its checkpoint
    ablation.py       what each part of the recipe is worth, beside sentence-transformers alone (baseline.py)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from piccolo_st._version import __version__

_EXPORTS = {
    "HomogeneousBatchSampler": "piccolo_st.data.sampler",
    "InstructionPooling": "piccolo_st.pooling",
    "PiccoloDataCollator": "piccolo_st.data.collator",
    "PiccoloLoss": "piccolo_st.losses",
    "PiccoloTrainer": "piccolo_st.trainer",
    "PiccoloTrainingArguments": "piccolo_st.arguments",
    "build_losses": "piccolo_st.losses",
    "check_portable": "piccolo_st.portable",
    "evaluate": "piccolo_st.evaluation",
    "load_mixture": "piccolo_st.data.mixture",
    "release": "piccolo_st.hub",
    "save_portable": "piccolo_st.portable",
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
