"""Evaluation: C-MTEB and tasks of one's own through mteb, comparison of two models, search during training.

    loading.py      a directory, a Hub repository or an object -> a model and its identity
    mteb_model.py   the model as mteb sees it: instructions, batches by tokens, ranks, truncations
    local_types.py  a task of one's own of each of the six types, read from its files
    local_tasks.py  YAML and files -> mteb tasks, offline
    tasks.py        names -> tasks and the definition that scores them
    runner.py       evaluate(): what is missing, task by task
    per_example.py  what every single example contributed to a score
    results.py      mteb's JSON, a card or a file of results -> what was measured, in one form -> scores
    small_vectors.py  a search with fewer dimensions, with bytes or bits, and what is lost by it
    scores.py       models side by side: an Evaluation, the table, the picture
    bootstrap.py    two models, task by task, with paired bootstrap intervals
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
    from piccolo_st.evaluation.benchmarks import BenchmarkTask as BenchmarkTask
    from piccolo_st.evaluation.benchmarks import average_scores as average_scores
    from piccolo_st.evaluation.benchmarks import get_benchmark as get_benchmark
    from piccolo_st.evaluation.benchmarks import task_by_type as task_by_type
    from piccolo_st.evaluation.bootstrap import Comparison as Comparison
    from piccolo_st.evaluation.bootstrap import compare_examples as compare_examples
    from piccolo_st.evaluation.bootstrap import compare_models as compare_models
    from piccolo_st.evaluation.bootstrap import mean_difference as mean_difference
    from piccolo_st.evaluation.curves import METRICS as METRICS
    from piccolo_st.evaluation.curves import before_and_after as before_and_after
    from piccolo_st.evaluation.curves import evaluations as evaluations
    from piccolo_st.evaluation.curves import interval as interval
    from piccolo_st.evaluation.curves import plot_curves as plot_curves
    from piccolo_st.evaluation.in_training import RetrievalEvaluator as RetrievalEvaluator
    from piccolo_st.evaluation.in_training import held_out_evaluators as held_out_evaluators
    from piccolo_st.evaluation.in_training import search_held_out as search_held_out
    from piccolo_st.evaluation.loading import load_model as load_model
    from piccolo_st.evaluation.local_tasks import load_local_tasks as load_local_tasks
    from piccolo_st.evaluation.results import TaskResult as TaskResult
    from piccolo_st.evaluation.results import counted as counted
    from piccolo_st.evaluation.results import read_results as read_results
    from piccolo_st.evaluation.results import task_scores as task_scores
    from piccolo_st.evaluation.runner import TaskOutcome as TaskOutcome
    from piccolo_st.evaluation.runner import evaluate as evaluate
    from piccolo_st.evaluation.scores import Evaluation as Evaluation
    from piccolo_st.evaluation.scores import ModelFacts as ModelFacts
    from piccolo_st.evaluation.scores import ModelScores as ModelScores
    from piccolo_st.evaluation.scores import plot_evaluations as plot_evaluations
    from piccolo_st.evaluation.scores import read_rows as read_rows
    from piccolo_st.evaluation.scores import score_table as score_table
    from piccolo_st.evaluation.small_vectors import RESCORED as RESCORED
    from piccolo_st.evaluation.small_vectors import VectorRow as VectorRow
    from piccolo_st.evaluation.small_vectors import read_vector_rows as read_vector_rows
    from piccolo_st.evaluation.tasks import select as select

_MTEB = ("evaluation on tasks", "mteb", "eval")
__getattr__, __dir__ = lazily(__name__, __file__, needs={"mteb": _MTEB, "pytrec_eval": _MTEB})
