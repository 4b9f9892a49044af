"""Evaluation: C-MTEB and tasks of one's own through mteb, comparison of two models, search during training.

    identity.py      who a model is: results of two models never share an entry
    loading.py       a directory, a Hub repository or an object -> a model and its identity
    encoder.py       the model as mteb sees it: instructions, batches by tokens, ranks, truncations
    local_tasks.py   YAML and files -> mteb tasks, offline
    tasks.py         names -> tasks and the definition that scores them
    runner.py        evaluate(): what is missing, task by task
    examples.py      what every single example contributed to a score
    results.py       scores by task and type, as a table and as JSON
    compare.py       two models, task by task, with paired bootstrap intervals
    plot.py          the picture
    retrieval.py     a small retrieval set as an evaluator for the trainer

Names are loaded on first use. Only those that evaluate on tasks need mteb, which takes seconds to import:
``pip install "piccolo_st[eval]"``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from piccolo_st.errors import MissingPackage

_EXPORTS = {
    "Column": "results",
    "Evaluation": "results",
    "Identity": "identity",
    "RetrievalEvaluator": "retrieval",
    "TaskOutcome": "runner",
    "compare_models": "compare",
    "content_hash": "identity",
    "evaluate": "runner",
    "held_out_evaluators": "retrieval",
    "identify": "identity",
    "load_local_tasks": "local_tasks",
    "plot_evaluations": "plot",
    "score_table": "results",
    "select": "tasks",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it (PEP 562).

    Raises:
        MissingPackage: the name needs mteb, which is not installed.
    """
    if name not in _EXPORTS:
        raise AttributeError(f"module 'piccolo_st.evaluation' has no attribute {name!r}; it has {', '.join(_EXPORTS)}")
    try:
        return getattr(import_module(f"piccolo_st.evaluation.{_EXPORTS[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mteb", "pytrec_eval"):
            raise
        raise MissingPackage("evaluation on tasks", "mteb", "eval") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
