"""Evaluation: C-MTEB and tasks of one's own through mteb, comparison of two models, search during training.

    loading.py      a directory, a Hub repository or an object -> a model and its identity
    mteb_model.py   the model as mteb sees it: instructions, batches by tokens, ranks, truncations
    local_tasks.py  YAML and files -> mteb tasks, offline
    tasks.py        names -> tasks and the definition that scores them
    runner.py       evaluate(): what is missing, task by task
    per_example.py  what every single example contributed to a score
    results.py      scores by task and type, as a table and as JSON
    bootstrap.py    two models, task by task, with paired bootstrap intervals
    plot.py         the picture
    in_training.py  a small retrieval set as an evaluator for the trainer

Names are loaded on first use. Only those that evaluate on tasks need mteb, which takes seconds to import:
``pip install "piccolo_st[eval]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.evaluation.benchmarks import C_MTEB_35 as C_MTEB_35
    from piccolo_st.evaluation.benchmarks import Averages as Averages
    from piccolo_st.evaluation.benchmarks import Benchmark as Benchmark
    from piccolo_st.evaluation.benchmarks import average_scores as average_scores
    from piccolo_st.evaluation.benchmarks import get_benchmark as get_benchmark
    from piccolo_st.evaluation.benchmarks import scores_from_model_index as scores_from_model_index
    from piccolo_st.evaluation.bootstrap import compare_models as compare_models
    from piccolo_st.evaluation.curves import comparison as comparison
    from piccolo_st.evaluation.curves import evaluations as evaluations
    from piccolo_st.evaluation.curves import plot_curves as plot_curves
    from piccolo_st.evaluation.in_training import RetrievalEvaluator as RetrievalEvaluator
    from piccolo_st.evaluation.in_training import held_out_evaluators as held_out_evaluators
    from piccolo_st.evaluation.loading import load_model as load_model
    from piccolo_st.evaluation.local_tasks import load_local_tasks as load_local_tasks
    from piccolo_st.evaluation.plot import plot_evaluations as plot_evaluations
    from piccolo_st.evaluation.results import Column as Column
    from piccolo_st.evaluation.results import Evaluation as Evaluation
    from piccolo_st.evaluation.results import score_table as score_table
    from piccolo_st.evaluation.runner import TaskOutcome as TaskOutcome
    from piccolo_st.evaluation.runner import evaluate as evaluate
    from piccolo_st.evaluation.tasks import select as select

__getattr__, __dir__ = lazily(
    __name__,
    {
        "benchmarks": ("Averages Benchmark C_MTEB_35 average_scores get_benchmark scores_from_model_index"),
        "bootstrap": "compare_models",
        "curves": "comparison evaluations plot_curves",
        "in_training": "RetrievalEvaluator held_out_evaluators",
        "loading": "load_model",
        "local_tasks": "load_local_tasks",
        "plot": "plot_evaluations",
        "results": "Column Evaluation score_table",
        "runner": "TaskOutcome evaluate",
        "tasks": "select",
    },
    needs={"mteb": ("evaluation on tasks", "mteb", "eval"), "pytrec_eval": ("evaluation on tasks", "mteb", "eval")},
)
