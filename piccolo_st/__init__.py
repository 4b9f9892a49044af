"""piccolo_st: train Piccolo text embedding models with sentence-transformers.

The package, ground first. A file imports only from lines above its own; losses, pooling and data do not
import each other. Names are loaded on first use, so importing this package costs nothing.

    distributed.py    rank and world size; gather with gradient; identity when alone
    instructions.py   the instruction presets (查询：/结果：) and their token prefixes
    batching.py       rows of all columns -> length-sorted chunks -> embeddings back in order
    losses/           contrast.py (tensors), piccolo.py (PiccoloLoss), hybrid.py (one loss per task type)
    pooling.py        InstructionPooling
    data/             mixture, permutation, plan, sampler, collator, mining
    portable.py       checkpoints that load everywhere
    trainer.py        PiccoloTrainer
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from piccolo_st._version import __version__

_EXPORTS: dict[str, str] = {}

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
