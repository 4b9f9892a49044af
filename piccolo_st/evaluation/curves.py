"""The evaluations of a run: as rows, as a table, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from piccolo_st.tables import empty_figure, table

# Metric of the table -> the ending of its key in the trainer's log history.
METRICS = {"nDCG@10": "_ndcg@10", "recall@10": "_recall@10", "MRR@10": "_mrr@10"}


def evaluations(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The retrieval evaluations of a trainer's log history, in order.

    Args:
        history: ``trainer.state.log_history``.

    Returns:
        One dictionary per evaluation: "step", and each metric of ``METRICS`` in percent. When several sets were
        searched, a metric is the mean over them.
    """
    found: list[dict[str, float]] = []
    for entry in history:
        values: dict[str, float] = {}
        for name, ending in METRICS.items():
            scores = [100.0 * value for key, value in entry.items() if key.endswith(ending)]
            if scores:
                values[name] = sum(scores) / len(scores)
        if values:
            found.append({"step": entry.get("step", 0.0), **values})
    return found


def before_and_after(history: Sequence[Mapping[str, float]]) -> str:
    """The table of the first evaluation against the last one, in percent; empty text when there are not two."""
    points = evaluations(history)
    if len(points) < 2:
        return ""
    first, last = points[0], points[-1]
    rows = [[name, first[name], last[name], last[name] - first[name]] for name in METRICS]
    return table(["held-out search", "before", "after", "gain"], rows)


def plot_curves(history: Sequence[Mapping[str, float]], path: Path, title: str = "") -> Path:
    """Draw the logged loss and the search metrics over steps into one PNG.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    points = evaluations(history)
    figure = empty_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    for name, curve in (("training", losses), ("held out", held_out)):
        if curve:
            left.plot(*zip(*curve, strict=True), linewidth=1.2, label=name, marker="o" if name == "held out" else None)
    if held_out:
        left.legend()
    left.set(title="training loss", xlabel="step", ylabel="loss")
    for name in METRICS if points else ():
        right.plot([point["step"] for point in points], [point[name] for point in points], marker="o", label=name)
    right.set(title="search over held-out queries", xlabel="step", ylabel="percent", ylim=(0, 100))
    if points:
        right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=120)
    return path
