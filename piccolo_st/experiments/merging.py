"""One model out of several checkpoints of one ancestor, by weights that are given or searched on a held-out task.

    (1) the merge is sentence-transformers' own (mergekit): ``linear`` (a weighted mean of the weights), ``slerp``
        (along the arc between two models) or ``task_arithmetic`` (the base and weighted differences from it);
    (2) where tasks are given, each weight in turn takes the values 0, 1/steps, ... 1, the best stays, and a second
        round goes on from there; a mixture is scored once, and found again by a search that goes on after a kill;
    (3) the result is saved so that it loads everywhere, with the lengths and the instruction pooling of the first; its
        card and ``merge.json`` say what it is made of.

Weights that were searched have seen the tasks: what the result is worth is measured on others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from piccolo_st.cache import write_whole
from piccolo_st.errors import InputError, MissingPackage, reason
from piccolo_st.evaluation import evaluate
from piccolo_st.modeling import content_hash, load_pretrained, put_back_state, save_portable
from piccolo_st.releasing import markdown_table, replace_block

Method = Literal["linear", "slerp", "task_arithmetic"]

Weights = tuple[float, ...]


@dataclass(frozen=True)
class Merge:
    """What is merged, and how.

    Attributes:
        names: of the models, as they are given: directories or Hub ids.
        method: linear, slerp or task_arithmetic.
        base: the model whose differences task_arithmetic adds up.

    Raises:
        InputError: too few or too many models, or a base that the method needs or does not read.
    """

    names: tuple[str, ...]
    method: Method = "linear"
    base: str | None = None

    def __post_init__(self) -> None:
        if len(self.names) < 2 or (self.method == "slerp" and len(self.names) > 2):
            most = "two models" if self.method == "slerp" else "two models or more"
            raise InputError(f"{self.method} merges {most}, got {len(self.names)}; name others, or another method")
        if (self.base is None) == (self.method == "task_arithmetic"):
            rule = "needs a base" if self.base is None else "reads no base; name it among the models"
            raise InputError(f"{self.method} {rule}, got {self.base or 'none'}")

    def load(self) -> tuple[list[SentenceTransformer], SentenceTransformer | None]:
        """The models and the base, on the CPU.

        Raises:
            InputError: one cannot be loaded.
        """

        def load(name: str) -> SentenceTransformer:
            return load_pretrained(SentenceTransformer, name, "a model to merge", device="cpu")

        return [load(name) for name in self.names], None if self.base is None else load(self.base)

    def usual(self, weights: Sequence[float]) -> Weights:
        """Weights as they count: of linear and slerp only their ratio does.

        Raises:
            InputError: not one for each model, or none above zero.
        """
        if len(weights) != len(self.names):
            raise InputError(f"weights must be one for each of {len(self.names)} models, got {len(weights)}")
        total = 1.0 if self.method == "task_arithmetic" else sum(weights)
        if min(weights) < 0 or not any(weights):
            raise InputError(f"weights must be at least 0, and one of them above, got {list(weights)}")
        return tuple(round(weight / total, 6) for weight in weights)

    def apply(
        self, models: Sequence[SentenceTransformer], base: SentenceTransformer | None, weights: Weights
    ) -> SentenceTransformer:
        """The merged model; the others are left as they are.

        Raises:
            MissingPackage: mergekit is not installed.
            InputError: the models are not alike.
        """
        parameters: dict[str, object] = {"t": weights[1]} if self.method == "slerp" else {"weight": list(weights)}
        try:
            return SentenceTransformer.merge(list(models), self.method, base_model=base, parameters=parameters)
        except ImportError as error:
            raise MissingPackage("merging", "mergekit", "merge") from error
        except ValueError as error:
            raise InputError(
                f"the models cannot be merged: {reason(error)}; merge checkpoints that were trained from one base"
            ) from None


def search_weights(merge: Merge, score: Callable[[Weights], float], steps: int) -> tuple[Weights, dict[Weights, float]]:
    """The best weights found, and the score of all that were tried, in the order of the trials.

    Args:
        merge: what is merged.
        score: of a mixture, higher is better; asked once for each.
        steps: the values of a weight are 0, 1/steps, ... 1.
    """
    count = len(merge.names)
    best = merge.usual([1 / count] * count)
    tried = {best: score(best)}
    for _ in range(2):
        before = best
        for place in range(count):
            for step in range(steps + 1):
                trial = _with(merge, best, place, step / steps)
                if any(trial) and trial not in tried:
                    tried[trial] = score(trial)
            best = max(tried, key=lambda weights: tried[weights])  # of equal ones the first
        if best == before:
            break
    return best, tried


def _with(merge: Merge, weights: Weights, place: int, value: float) -> Weights:
    """One weight changed; where only ratios count, the others share the rest as they did, or equally."""
    others = sum(weights) - weights[place]
    rest = [1.0 if merge.method == "task_arithmetic" else (1 - value) / others * one if others
            else (1 - value) / (len(weights) - 1) for one in weights]  # fmt: skip
    if merge.method == "task_arithmetic":
        rest = list(weights)
    rest[place] = value
    return tuple(round(one, 6) for one in rest)


def merge_checkpoints(
    merge: Merge,
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    tasks: Sequence[str] = (),
    steps: int = 10,
    say: Callable[[str], object] = print,
) -> SentenceTransformer:
    """Merge, save to ``output`` and say there what it is made of.

    Args:
        merge: what is merged.
        output: folder of the model.
        weights: one for each model; None: searched where tasks are given, else equal (linear, slerp) or 1 / models.
        tasks: tasks to search on, as ``evaluate`` takes them; their results stay in ``output``-search.
        steps: of the search.
        say: is given each line of progress.

    Raises:
        InputError: models or weights that cannot be merged, or tasks that cannot be scored.
    """
    if weights is not None and tasks:
        raise InputError("give weights, or tasks to search them on, and not both")
    models, base = merge.load()

    def score(trial: Weights) -> float:
        merged = merge.apply(models, base, trial)
        results = output.with_name(f"{output.name}-search")
        measured = evaluate(merged, tasks, output=results)
        if failed := [f"{task}: {why}" for one in measured for task, why in one.failures.items()]:
            raise InputError(
                f"each task of a search must have a score, got failures in {'; '.join(failed)}; mend those or leave "
                f"them out, and the search goes on from {results}"
            )
        scores = [value for one in measured for value in one.scores.values()]
        found = sum(scores) / len(scores)
        say(f"{'  '.join(f'{weight:.3f}' for weight in trial)}   {found:.2f}")
        return found

    tried: dict[Weights, float] = {}
    if tasks:
        chosen, tried = search_weights(merge, score, steps)
    else:
        chosen = merge.usual(weights if weights is not None else [1 / len(models)] * len(models))
    merged = merge.apply(models, base, chosen)
    put_back_state(merged, merge.names[0])  # only now, since models whose lengths differ would not be merged
    save_portable(merged, output)
    made_of = {
        "method": merge.method,
        "models": [{"model": shown(name), "weight": weight, "content": content_hash(model)}
                   for name, weight, model in zip(merge.names, chosen, models, strict=True)],
        "base": None if merge.base is None or base is None
        else {"model": shown(merge.base), "content": content_hash(base)},
        "searched_on": [Path(task).name for task in tasks],
        "tried": [{"weights": trial, "score": found} for trial, found in tried.items()],
    }  # fmt: skip
    write_whole(output / "merge.json", json.dumps(made_of, ensure_ascii=False, indent=1))
    _write_card(output, merge, made_of, tried.get(chosen))
    return merged


def shown(name: str) -> str:
    """A model as others may know it: a Hub id, or the end of a path."""
    return "/".join(Path(name).parts[-2:]) if Path(name).is_dir() else name


def _write_card(folder: Path, merge: Merge, made_of: dict[str, Any], best: float | None) -> None:
    card = ModelCard.load(folder / "README.md")
    given = [*merge.names, *([merge.base] if merge.base else [])]
    if public := [name for name in given if not Path(name).is_dir()]:
        card.data["base_model"] = public
    card.data["base_model_relation"] = "merge"
    card.data["tags"] = [*(card.data.get("tags") or []), "merge"]
    rows = [[one["model"], f"{one['weight']:g}", f"`{one['content'][:12]}`"] for one in made_of["models"]]
    if made_of["base"]:
        rows.append([made_of["base"]["model"], "the base", f"`{made_of['base']['content'][:12]}`"])
    text = f"## Made of\n\nMerged by `{merge.method}` (sentence-transformers, mergekit) from\n\n"
    text += markdown_table(["model", "weight", "content"], rows)
    if best is not None:
        text += (
            f"\n\nThe weights were searched on {', '.join(made_of['searched_on'])}: the best of "
            f"{len(made_of['tried'])} mixtures has {best:.2f}, which says nothing of other data."
        )
    card.text = replace_block(card.text, "made of", text)
    write_whole(folder / "README.md", str(card))
