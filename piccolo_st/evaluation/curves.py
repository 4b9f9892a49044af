"""The evaluations of a run: as rows, as a table, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from piccolo_st.tables import empty_figure, table

# Metric of the table -> the ending of its key in the trainer's log history.
METRICS = {"nDCG@10": "_ndcg@10", "recall@10": "_recall@10", "MRR@10": "_mrr@10"}

_LINES = 9  # datasets whose losses are drawn: more colours nobody tells apart


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


def interval(entry: Mapping[str, float], key: str | None = None) -> tuple[float, float] | None:
    """The 95% interval of an evaluation's nDCG@10, in percent: of one set, or of the mean over those it searched.

    Args:
        entry: of a trainer's log history.
        key: of the set's nDCG@10; by default of all.

    Returns:
        None where a set has no interval.
    """
    keys = [key] if key else [one for one in entry if one.endswith("_ndcg@10")]
    if not keys or any(f"{one}_{end}" not in entry for one in keys for end in ("low", "high")):
        return None
    mean = sum(entry[one] for one in keys)
    # The sets are drawn independently, so that their deviations add as squares do.
    below, above = (
        math.sqrt(sum((entry[f"{one}_{end}"] - entry[one]) ** 2 for one in keys)) for end in ("low", "high")
    )
    return 100 * (mean - below) / len(keys), 100 * (mean + above) / len(keys)


def before_and_after(history: Sequence[Mapping[str, float]], left: int | None = None) -> str:
    """The table of the first evaluation against that of the model that was left, in percent.

    Args:
        history: of a trainer's log.
        left: the step whose weights were left; None: the last evaluation is theirs.

    Returns:
        Empty text when there are not two evaluations.
    """
    entries = [entry for entry in history if evaluations([entry])]
    if len(entries) < 2:
        return ""
    after = next((entry for entry in reversed(entries) if entry.get("step") == left), entries[-1])
    first, last = evaluations([entries[0], after])
    ends = interval(after)
    intervals = {"nDCG@10": f"{ends[0]:.2f} to {ends[1]:.2f}"} if ends else {}
    rows = [[name, first[name], last[name], last[name] - first[name], intervals.get(name, "")] for name in METRICS]
    width = 5 if intervals else 4
    before = f"first search (step {first['step']:g})" if first["step"] else "before"
    return table(["held-out search", before, "after", "gain", "95% of after"][:width], [row[:width] for row in rows])


def plot_curves(history: Sequence[Mapping[str, float]], path: Path, title: str = "") -> Path:
    """Draw the logged loss, that of each dataset, and the search metrics over steps into one PNG.

    The band around the nDCG@10 is its 95% interval.

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
    names = list(dict.fromkeys(key for entry in history for key in entry if key.startswith("loss_")))
    for name in names[:_LINES]:
        own = [(entry["step"], entry[name]) for entry in history if name in entry]
        left.plot(*zip(*own, strict=True), linewidth=0.8, alpha=0.8, label=name.removeprefix("loss_"))
    if held_out or names:
        left.legend(fontsize="small", title=f"{_LINES} of {len(names)} datasets" if len(names) > _LINES else None)
    left.set(title="training loss", xlabel="step", ylabel="loss")
    for name in METRICS if points else ():
        right.plot([point["step"] for point in points], [point[name] for point in points], marker="o", label=name)
    right.set(title="search over held-out queries", xlabel="step", ylabel="percent", ylim=(0, 100))
    bands = [(entry["step"], *ends) for entry in history if evaluations([entry]) and (ends := interval(entry))]
    if bands:
        right.fill_between(*zip(*bands, strict=True), alpha=0.2, label="95% of nDCG@10")
    if points:
        right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=120)
    return path
