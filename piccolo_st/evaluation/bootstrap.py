"""Two models, task by task: the difference, and how much of it is noise.

Both models were evaluated on the same examples, so what matters is the difference on each of them. For every split:

(1) Read what each example contributed to the score of either model (``per_example.py``); gold labels must be equal.
(2) Draw examples with replacement, the same for both models, and take the difference of the two scores: the mean of
    the examples' values, Spearman's correlation with the gold scores, or the average precision (paired bootstrap;
    Efron and Tibshirani 1993, section 8).
(3) The interval of a task holds the middle 95% of these differences; a task of several splits averages over them.
(4) The tasks are drawn independently of each other, so the mean over the tasks of one draw each is a draw of the
    difference of the averages.

A difference whose interval holds 0 may be chance; of twenty tasks without a difference, one is expected to miss it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from piccolo_st.errors import InputError
from piccolo_st.evaluation import per_example
from piccolo_st.evaluation.benchmarks import Benchmark, BenchmarkTask
from piccolo_st.stored import read_json
from piccolo_st.tables import table


@dataclass(frozen=True)
class Difference:
    """B minus A on one task, in percent.

    Attributes:
        task: the task's label, or what the mean is over.
        metric: the metric that is compared; for pair classification always the average precision of the cosine.
        a, b: the two scores.
        low, high: the interval of ``b - a``.
    """

    task: str
    metric: str
    a: float
    b: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """All differences of two models, the mean over all tasks last, and the tasks that only one of them has."""

    benchmark: Benchmark
    differences: tuple[Difference, ...]
    missing: tuple[str, ...]
    confidence: float

    def table(self, a: str = "A", b: str = "B") -> str:
        """Rows of task, metric, both scores, the difference, its interval and the verdict; then what is sure."""
        rows = [
            [
                row.task,
                row.metric,
                f"{row.a:.2f}",
                f"{row.b:.2f}",
                f"{row.b - row.a:+.2f}",
                f"{row.low:+.2f} to {row.high:+.2f}",
                ("better" if row.low > 0 else "worse") if row.certain else "may be chance",
            ]
            for row in self.differences
        ]
        header = ["task", "metric", a, b, "difference", f"{self.confidence:.0%} interval", f"{b} is"]
        lines = [f"{self.benchmark.name}: {self.benchmark.description}, in percent", table(header, rows)]
        lines.append(f"gained: {self._words(lambda row: row.low > 0)}; lost: {self._words(lambda row: row.high < 0)}")
        if self.missing:
            lines.append(f"not compared, because one of the two has no examples of it: {', '.join(self.missing)}")
        return "\n".join(lines)

    def _words(self, chosen: Callable[[Difference], bool]) -> str:
        """The tasks among those of the table, without their mean, with their differences."""
        return (
            ", ".join(f"{row.task} {row.b - row.a:+.2f}" for row in self.differences[:-1] if chosen(row)) or "nothing"
        )


def compare_models(
    a: str | Path,
    b: str | Path,
    benchmark: Benchmark,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the tasks of a benchmark that both have been evaluated on.

    Args:
        a, b: the folders of their result files, ``.../results/<org>__<name>/<revision>``; the folder above is enough
            where it holds one revision.
        benchmark: the tasks and splits.
        resamples: how often the examples are drawn.
        confidence: the share of the drawn differences that an interval holds.
        seed: of the draws.

    Raises:
        InputError: a folder holds no results, the models were not evaluated on the same examples, or no task has been
            evaluated for both.
    """
    return compare_examples((result_folder(a), result_folder(b)), benchmark, resamples, confidence, seed)


def compare_examples(
    folders: tuple[Path, Path], benchmark: Benchmark, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """The same, of folders that hold the examples of two models, whatever else is in them."""
    tail = (1 - confidence) / 2
    differences: list[Difference] = []
    missing: list[str] = []
    draws: list[np.ndarray] = []
    for number, task in enumerate(benchmark.tasks):
        _same_data(folders, task)
        found = _task([folders], task, resamples, [seed, number])
        if found is None:
            missing.append(task.label)
            continue
        (score_a, score_b), drawn = found
        draws.append(drawn)
        low, high = np.quantile(drawn, [tail, 1 - tail])
        metric = "cosine_ap" if task.type == "PairClassification" else task.metric
        differences.append(Difference(task.label, metric, score_a, score_b, float(low), float(high)))
    if not differences:
        raise InputError(
            f"{folders[0]} and {folders[1]} have no task of {benchmark.name} in common; evaluate both on it first "
            "(results that were not written by piccolo_st have no examples: evaluate them again; a metric that is no "
            "mean over examples, such as F1, has none)"
        )
    low, high = np.quantile(np.mean(draws, axis=0), [tail, 1 - tail])
    mean_a, mean_b = (float(np.mean([getattr(row, side) for row in differences])) for side in ("a", "b"))
    differences.append(Difference(f"mean of {len(differences)}", "", mean_a, mean_b, float(low), float(high)))
    return Comparison(benchmark, tuple(differences), tuple(missing), confidence)


def _same_data(folders: tuple[Path, Path], task: BenchmarkTask) -> None:
    """Refuse results of two revisions of a task's data; ids and counts of examples may be equal for all that.

    A run's own held-out searches have no result files, and their folders are named after their data.
    """
    files = [folder / f"{task.name}.json" for folder in folders]
    if not all(file.exists() for file in files):
        return
    found = [read_json(file, dict[str, object], "evaluate the task again").get("dataset_revision") for file in files]
    if found[0] != found[1]:
        raise InputError(
            f"two models must be evaluated on the same data of {task.name} to be compared, got its revision {found[0]} "
            f"in {folders[0]} and {found[1]} in {folders[1]}; evaluate both again"
        )


def mean_difference(
    pairs: Sequence[tuple[Path, Path]], tasks: Sequence[BenchmarkTask]
) -> tuple[float, float, float] | None:
    """By how much one way of training is better than another, on the mean of tasks and over several runs of both.

    The runs of all pairs are scored on the same examples, so an example that is drawn is drawn for all of them: the
    interval is that of other examples, and not of other seeds.

    Args:
        pairs: the folders of result files of two models each, such as those of one seed.
        tasks: of which the mean is taken; those that a model has no examples of are left out.

    Returns:
        Second minus first in percent, and the ends of the 95% interval; None if nothing can be compared.
    """
    found = [_task(pairs, task, 1000, [0, number]) for number, task in enumerate(tasks)]
    known = [one for one in found if one is not None]
    if not known:
        return None
    low, high = np.quantile(np.mean([drawn for _, drawn in known], axis=0), [0.025, 0.975])
    return float(np.mean([b - a for (a, b), _ in known])), float(low), float(high)


def _task(
    pairs: Sequence[tuple[Path, Path]], task: BenchmarkTask, resamples: int, seed: Sequence[int]
) -> tuple[tuple[float, float], np.ndarray] | None:
    """Both scores of a task and (resamples,) drawn differences, in percent, means over splits and pairs of models.

    None if a model has no examples of it.
    """
    keys = [f"{split}/{task.subset}" for split in task.splits]
    scores, drawn = [], []
    for folders in pairs:
        paths = [per_example.examples_path(folder / f"{task.name}.json") for folder in folders]
        both = [per_example.load(path) if path.exists() else {} for path in paths]
        if not all(key in arrays for key in keys for arrays in both):
            return None
        rng = np.random.default_rng(seed)  # the same draws for every pair
        for key in keys:
            own, draws = _split(task, both[0][key], both[1][key], resamples, rng)
            scores.append(own)
            drawn.append(draws)
    score_a, score_b = 100 * np.mean(scores, axis=0)
    return (float(score_a), float(score_b)), 100 * np.mean(drawn, axis=0)


def result_folder(path: str | Path) -> Path:
    """The folder of one model's result files: ``path``, or the only revision below it.

    Raises:
        InputError: there is none, or there are several.
    """
    path = Path(path)
    folders = sorted({file.parent for file in [*path.glob("*.json"), *path.glob("*/*.json")] if _is_result(file)})
    if len(folders) != 1:
        found = f"several revisions: {', '.join(folder.name for folder in folders)}" if folders else "no result files"
        raise InputError(
            f"{path} holds {found}; give the folder of one revision, results/results/<org>__<name>/<revision>"
        )
    return folders[0]


def _is_result(file: Path) -> bool:
    try:
        return "task_name" in read_json(file, dict[str, object], "it is no result")
    except InputError:
        return False


def _split(
    task: BenchmarkTask,
    a: Mapping[str, np.ndarray],
    b: Mapping[str, np.ndarray],
    resamples: int,
    rng: np.random.Generator,
) -> tuple[tuple[float, float], np.ndarray]:
    """Both scores of one split, and (resamples,) drawn differences, as fractions."""
    for field in ("id", "gold"):
        if (field in a) != (field in b) or (field in a and not np.array_equal(a[field], b[field])):
            raise InputError(
                f"the two models were not evaluated on the same examples of {task.name}; its data changed between the "
                "two evaluations; evaluate both again"
            )
    if "value" in a:
        if a["value"].shape != b["value"].shape:
            raise InputError(
                f"{task.name} has {len(a['value'])} examples for one model and {len(b['value'])} for the other; "
                "evaluate both again"
            )
        return (float(a["value"].mean()), float(b["value"].mean())), draw_means(b["value"] - a["value"], resamples, rng)
    statistic = spearman if task.type == "STS" else average_precision
    gold = a["gold"].astype(np.float64)
    of_a, of_b = statistic(gold, a["similarity"]), statistic(gold, b["similarity"])
    drawn = np.empty(resamples)
    for number in range(resamples):
        counts = np.bincount(rng.integers(len(gold), size=len(gold)), minlength=len(gold))
        drawn[number] = of_b(counts) - of_a(counts)
    whole = np.ones(len(gold))
    return (of_a(whole), of_b(whole)), drawn


def draw_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The means, (resamples,), of so many samples of the values, each as large as they are, drawn with replacement."""
    return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)])


def _midranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """counts -> the average rank of each value in the sample that holds it ``counts`` times; sorts once."""
    _, group = np.unique(values, return_inverse=True)

    def ranks(counts: np.ndarray) -> np.ndarray:
        sizes = np.bincount(group, weights=counts)
        return (np.cumsum(sizes) - (sizes - 1) / 2)[group]

    return ranks


def spearman(gold: np.ndarray, similarity: np.ndarray) -> Callable[[np.ndarray], float]:
    """Spearman's rank correlation of a sample of pairs, as a function of how often each pair is in it.

    Args:
        gold: (n,) scores.
        similarity: (n,) cosines.
    """
    gold_ranks, similarity_ranks = _midranks(gold), _midranks(similarity)

    def statistic(weights: np.ndarray) -> float:
        x, y = gold_ranks(weights), similarity_ranks(weights)
        x, y = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
        scale = np.sqrt(np.dot(weights, x * x) * np.dot(weights, y * y))
        return float(np.dot(weights, x * y) / scale) if scale > 0 else 0.0

    return statistic


def average_precision(gold: np.ndarray, similarity: np.ndarray) -> Callable[[np.ndarray], float]:
    """Average precision of a sample of pairs, as a function of how often each pair is in it.

    Args:
        gold: (n,) labels, 0 or 1.
        similarity: (n,) cosines; equal ones are one threshold.
    """
    _, group = np.unique(-similarity, return_inverse=True)  # the most similar pairs first

    def statistic(weights: np.ndarray) -> float:
        found = np.bincount(group, weights=weights)
        positive = np.bincount(group, weights=weights * gold)
        total = positive.sum()
        if total == 0:
            return 0.0
        seen = np.cumsum(found)
        precision = np.divide(np.cumsum(positive), seen, out=np.zeros_like(seen), where=seen > 0)
        return float(np.dot(precision, positive) / total)

    return statistic
