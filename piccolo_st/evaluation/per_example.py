"""What each example of a task contributed to its score, kept beside the score so that two models can be compared.

A score alone does not say whether a difference is noise. For every split and subset of a task this file holds either

- ``value``: one number per example whose mean is the score (queries of retrieval and reranking; test rows of
  classification, as the share of the classifiers that got the row right; single runs of a clustering), or
- ``gold`` and ``similarity``: the label and the cosine of every pair, for scores that are not means (STS: Spearman's
  rank correlation; pair classification: average precision).

They are written as ``examples/<task>.npz`` in the folder of the task's result file, with array names
``split/subset/field``. mteb's own prediction files would hold a thousand documents for every query.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from piccolo_st.cache import write_whole
from piccolo_st.errors import InputError, reason

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks.abstask import AbsTask

logger = logging.getLogger(__name__)

RETRIEVAL_TYPES = frozenset({"Retrieval", "Reranking"})

# mteb's metrics of a search that are means over queries: pytrec_eval computes them for mteb, under these names.
_MEASURES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}

Arrays = dict[str, dict[str, np.ndarray]]
"""``split/subset`` -> field -> array."""


def examples_path(result_path: Path) -> Path:
    """Where the examples of a result file are kept."""
    return result_path.parent / "examples" / f"{result_path.stem}.npz"


def collect(
    task: AbsTask,
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
    predictions: Path,
    retrieved: Mapping[tuple[str, str], dict[str, dict[str, float]]],
) -> Arrays:
    """The examples of a task that mteb has just evaluated and whose data is still loaded.

    A task has none whose main score cannot be computed from single examples, such as F1.

    Args:
        task: the mteb task.
        scores: the ``scores`` of its result: split -> list of dicts with ``hf_subset`` and metrics.
        predictions: the folder given to ``mteb.evaluate`` as ``prediction_folder`` (not for retrieval and reranking).
        retrieved: what the encoder kept of a search: (split, subset) -> query -> document -> similarity.
    """
    arrays: Arrays = {}
    kind, metric = task.metadata.type, task.metadata.main_score
    dataset, label = task.dataset or {}, getattr(task, "label_column_name", "label")
    saved = predictions / task.prediction_file_name
    predicted = json.loads(saved.read_text(encoding="utf-8")) if saved.exists() else {}
    for split, entries in scores.items():
        for entry in entries:
            subset = entry["hf_subset"]
            data = dataset.get(subset, dataset)  # without subsets: split -> rows
            output = predicted.get(subset, {}).get(split)
            fields: dict[str, ArrayLike] = {}
            if kind in RETRIEVAL_TYPES and (split, subset) in retrieved:
                fields = _queries(data[split]["relevant_docs"], retrieved[split, subset], metric)
            elif (kind == "PairClassification" or (kind, metric) == ("STS", "cosine_spearman")) and output is not None:
                column = "score" if kind == "STS" else label
                fields = {"gold": _column(data[split], column), "similarity": output["cosine_scores"]}
            elif (kind, metric) == ("Classification", "accuracy") and output is not None:
                gold = np.asarray(data[split][label][:])
                if all(len(run) == len(gold) for run in output):  # not so in a cross-validation
                    fields = {"value": np.mean([np.asarray(run) == gold for run in output], axis=0)}
            elif (kind, metric) == ("Clustering", "v_measure") and "v_measures" in entry:
                runs = entry["v_measures"]
                fields = {"value": list(chain(*runs.values())) if isinstance(runs, dict) else runs}
            if fields:
                arrays[f"{split}/{subset}"] = {name: np.asarray(values) for name, values in fields.items()}
    return arrays


def _queries(
    relevant: Mapping[str, dict[str, int]], retrieved: dict[str, dict[str, float]], metric: str
) -> dict[str, ArrayLike]:
    import pytrec_eval

    name, _, cutoff = metric.partition("_at_")
    if (measure := _MEASURES.get(name)) is None:
        return {}
    found = pytrec_eval.RelevanceEvaluator(dict(relevant), {f"{measure}.{cutoff}"}).evaluate(retrieved)
    queries = sorted(found)
    return {"id": queries, "value": [found[query][f"{measure}_{cutoff}"] for query in queries]}


def _column(rows: Dataset, name: str) -> list[float]:
    """A column, of datasets that keep all pairs as lists in one row as well."""
    values = rows[name][:]
    return list(values[0]) if len(values) == 1 and isinstance(values[0], list) else list(values)


def save(arrays: Arrays, path: Path) -> None:
    """Write the examples beside those of other splits that the file holds; other processes see the old or the new."""
    if not arrays:
        return
    before: Arrays = {}
    try:
        before = load(path) if path.exists() else {}
    except InputError as error:
        logger.warning("the examples of other splits are lost: %s", error)
    merged = {**before, **arrays}
    flat = {f"{place}/{field}": array for place, fields in merged.items() for field, array in fields.items()}

    def write(aside: Path) -> None:
        with aside.open("wb") as file:  # to a path numpy would add .npz
            np.savez_compressed(file, **flat)  # type: ignore[arg-type]

    write_whole(path, write)


def load(path: Path) -> Arrays:
    """The examples of a file written by :func:`save`.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    arrays: Arrays = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                place, field = key.rsplit("/", 1)
                arrays.setdefault(place, {})[field] = file[key]
        for place, fields in arrays.items():
            numbers = [fields["value"]] if "value" in fields else [fields["gold"], fields["similarity"]]
            numeric = all(one.dtype.kind in "biuf" for one in numbers)
            if not numeric or {one.shape for one in numbers} != {(numbers[0].size,)}:
                raise ValueError(f"{place} does not hold one number an example")
    except Exception as error:  # what zipfile, zlib and numpy raise of damaged bytes has no common root
        why = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"the examples in {path} cannot be read ({why}); evaluate the task again") from None
    return arrays
