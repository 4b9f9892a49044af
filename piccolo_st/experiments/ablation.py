"""What each part of the recipe is worth: the same encoder, data, steps and samples, one part more at a time.

The YAML has the sections of a stage 2 run, from which every variant starts, and two more: ``ablation`` (seeds, tasks,
where results go) and ``variants``, in the order of the table.

(1) a variant is what its ``after`` is, with ``set`` laid over it; the chain of ``after`` leads to the first one;
(2) each variant and seed trains in a directory of its own: ``stock`` through sentence-transformers' own trainer, loss,
    collator and default sampler, any other through ``TrainingRun``; with ``stage1``, a stage 1 run comes before it;
(3) the model is scored: nDCG@10 of the mixture's held-out retrieval sets, and local tasks through mteb;
(4) ``result.json`` is written aside and renamed. A variant that has one for the same configuration is not run again,
    so a driver that was killed goes on with the run it was killed in;
(5) one table and one picture: mean, spread over the seeds, and the difference to ``after``.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from sentence_transformers import SentenceTransformer

from piccolo_st import cache, environment, tables
from piccolo_st.config import Config, merge, parse_run, read_yaml
from piccolo_st.data import Mixture, load_mixture
from piccolo_st.errors import InputError, nearest, shown
from piccolo_st.evaluation import held_out_evaluators
from piccolo_st.experiments.stock import train_stock
from piccolo_st.modeling import PRESETS, EncoderSettings, cached_encoder
from piccolo_st.schema import Whole, build
from piccolo_st.training import TIME_LIMIT, FinetuneConfig, PretrainConfig, TrainingRun

MEAN = "mean"
Sections: TypeAlias = dict[str, Any]
"""Of a run's configuration: name -> the mapping that YAML has there; or dotted keys -> values."""


@dataclass(frozen=True)
class AblationSettings:
    """What is compared, and where the results go.

    Attributes:
        output_dir: where runs, the table and the picture go.
        seeds: each variant runs once with each.
        tasks: local tasks, as in a file of them; paths start at the mixture's root.
    """

    output_dir: str = "runs/ablation"
    seeds: tuple[Whole, ...] = (1, 2, 3)
    tasks: tuple[Mapping[str, object], ...] = ()

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"ablation.seeds must be different numbers, at least one, got {list(self.seeds)}")


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: its key in the YAML and its directory.
        label: what the table calls it.
        after: the variant it changes; None: the sections of the file.
        stock: trained by sentence-transformers alone; None: as ``after`` is.
        concatenated: a stock run trains on one dataset of all pairs, shuffled, in place of one dataset after another.
        set: dotted keys of the sections -> values.
        stage1: dotted keys for a stage 1 run whose model this one starts from; None: as ``after`` is; {}: none.
    """

    name: str
    label: str = ""
    after: str | None = None
    stock: bool | None = None
    concatenated: bool = False
    set: Mapping[str, Any] = field(default_factory=dict)
    stage1: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ResolvedVariant:
    """What one variant runs with, once the chain of ``after`` is followed."""

    variant: Variant
    stock: bool
    sections: Sections
    stage1: Sections | None


class Ablation:
    """The variants of a file, run or read.

    Args:
        path: the YAML.
        overrides: dotted keys -> values, laid over the file; see ``configuration.parse_overrides``.

    Raises:
        InputError: an unknown key, a variant that follows none or itself.
    """

    def __init__(self, path: Path, overrides: Sections | None = None) -> None:
        content = merge(read_yaml(path), overrides or {})
        own = {name: content.pop(name, None) or {} for name in ("ablation", "variants")}
        self.path = path
        self.settings = build(AblationSettings, own["ablation"], f"section 'ablation' of {path}")
        self.output = Path(self.settings.output_dir)
        if not isinstance(own["variants"], Mapping):
            raise InputError(f"variants of {path} must be a mapping of names to variants, got {shown(own['variants'])}")
        self.variants = {
            name: build(Variant, settings, f"variant {name!r} of {path}", name=name)
            for name, settings in own["variants"].items()
        }
        if not self.variants:
            raise InputError(f"{path} has no variants; give `variants` at least one")
        by_label: dict[str, str] = {}
        for name, variant in self.variants.items():
            label = variant.label.strip() or name
            other = by_label.setdefault(label, name)
            if other != name:
                raise InputError(f"labels of {path} must differ, {name!r} and {other!r} are both {label!r}; change one")
        self._base = content
        self.resolved = {name: self._resolve(name, ()) for name in self.variants}

    def _resolve(self, name: str, through: tuple[str, ...]) -> ResolvedVariant:
        """Step (1)."""
        variant = self.variants[name]
        if name in through:
            raise InputError(f"variant {name!r} of {self.path} comes after itself; change `after`")
        if variant.after is None:
            before = ResolvedVariant(variant, False, self._base, None)
        elif variant.after in self.variants:
            before = self._resolve(variant.after, (*through, name))
        else:
            raise InputError(
                f"`after` of variant {name!r} of {self.path} must be a variant, got {variant.after!r}"
                f"{nearest(variant.after, list(self.variants))}"
            )
        stage1 = before.stage1 if variant.stage1 is None else dict(variant.stage1) or None
        stock = before.stock if variant.stock is None else variant.stock
        if variant.concatenated and not stock:
            raise InputError(
                f"`concatenated` of variant {name!r} of {self.path} needs a stock run, got `stock: false`; remove it"
            )
        return ResolvedVariant(variant, stock, merge(before.sections, variant.set), stage1)

    def run(self, only: Sequence[str] = (), say: Callable[[str], None] = print) -> None:
        """Run what has no result yet, seed by seed, so that an early look compares all variants.

        Args:
            only: names of variants; empty means all.
            say: gets a line after each run.

        Raises:
            InputError: an unknown name, a time limit, or what a variant cannot run with.
        """
        if self.settings.tasks:
            from piccolo_st.evaluation import evaluate  # noqa: F401  # a missing mteb is told before hours of training
        for name in only:
            if name not in self.variants:
                raise InputError(f"unknown variant {name!r} in {self.path}{nearest(name, list(self.variants))}")
        for name in only or self.variants:
            limit = os.environ.get(TIME_LIMIT) or (self.resolved[name].sections.get("train") or {}).get("max_seconds")
            if limit:  # the result of a run that was cut short would be kept as that of all its steps
                raise InputError(
                    f"variants are compared at equal steps, so {name!r} must have no time limit, got {limit} seconds; "
                    f"unset train.max_seconds and {TIME_LIMIT}"
                )
        for seed in self.settings.seeds:
            for name in only or self.variants:
                if self.result(name, seed) is None:
                    scores = self._run_one(self.resolved[name], seed)
                    shown = "  ".join(f"{task} {score:.2f}" for task, score in scores.items())
                    say(f"{name}, seed {seed}: {shown}")

    def result(self, name: str, seed: int) -> dict[str, float] | None:
        """The scores of a variant with a seed, or None if there are none for this configuration."""
        path = self._folder(name, seed) / "result.json"
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return found["scores"] if found["configuration"] == self._key(self.resolved[name], seed) else None

    def scores(self) -> dict[str, list[dict[str, float]]]:
        """Variant -> the scores of each finished seed, percent, with their mean under ``MEAN``."""
        found: dict[str, list[dict[str, float]]] = {}
        for name in self.variants:
            results = [self.result(name, seed) for seed in self.settings.seeds]
            if done := [scores for scores in results if scores is not None]:
                found[name] = [{**scores, MEAN: statistics.fmean(scores.values())} for scores in done]
        return found

    def write(self) -> str:
        """Write ``table.md``, ``ablation.json`` and ``ablation.png``; returns the table as plain text."""
        scores = self.scores()
        if not scores:
            return "no variant has a result yet"
        header, rows = self._rows(scores)
        lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
        cache.write_whole(self.output / "table.md", "\n".join(lines) + "\n")
        record = {"versions": environment.versions(), "seeds": list(self.settings.seeds), "scores": scores}
        cache.write_whole(self.output / "ablation.json", json.dumps(record, ensure_ascii=False, indent=2) + "\n")
        labels = {name: self.variants[name].label or name for name in scores}
        means = {labels[name]: [one[MEAN] for one in found] for name, found in scores.items()}
        title = "mean of the held-out sets, percent; one dot a seed"
        tables.picture(_plot_spread, means, self.output / "ablation.png", title)
        return tables.table(header, rows)

    def _rows(self, scores: Mapping[str, Sequence[Mapping[str, float]]]) -> tuple[list[str], list[list[str]]]:
        """Step (5)."""
        tasks = list(next(iter(scores.values()))[0])
        header = ["variant", *tasks, "lowest to highest", "difference to", "seeds"]
        rows = []
        for name, found in scores.items():
            cells = [_mean_and_spread([one[task] for one in found]) for task in tasks]
            means = [one[MEAN] for one in found]
            after = self.variants[name].after
            gain = ""
            if after is not None and after in scores:
                gain = f"{statistics.fmean(means) - statistics.fmean(one[MEAN] for one in scores[after]):+.2f} {after}"
            span = f"{min(means):.2f} to {max(means):.2f}"
            rows.append([self.variants[name].label or name, *cells, span, gain, str(len(found))])
        return header, rows

    # Steps (2) to (4).

    def _folder(self, name: str, seed: int) -> Path:
        return self.output / "runs" / name / f"seed-{seed}"

    def _key(self, one: ResolvedVariant, seed: int) -> str:
        tasks = [dict(task) for task in self.settings.tasks]
        return cache.digest([one.stock, one.variant.concatenated, one.sections, one.stage1, seed, tasks])

    def _run_one(self, resolved: ResolvedVariant, seed: int) -> dict[str, float]:
        folder = self._folder(resolved.variant.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        fixed: Sections = {"train.seed": seed, "train.save_strategy": "no", "train.resume": "never"}
        sections = merge(resolved.sections, {"model.name_or_path": self._encoder(resolved.sections)})
        if resolved.stage1 is not None:
            before = merge(sections, {**resolved.stage1, **fixed, "train.output_dir": str(folder / "stage1")})
            run = TrainingRun(_parsed(before, PretrainConfig, folder / "stage1.yaml"))
            run.train()
            sections = merge(sections, {"model.name_or_path": str(folder / "stage1" / "model")})
            del run
        sections = merge(sections, {**fixed, "train.output_dir": str(folder / "run")})
        config = _parsed(sections, FinetuneConfig, folder / "run.yaml")
        if resolved.stock:
            mixture, model = train_stock(config, concatenated=resolved.variant.concatenated)
        else:
            run = TrainingRun(config)
            run.train()
            mixture, model = run.mixture, run.model
            del run
        seconds = time.perf_counter() - start
        scores = self._score(model, mixture, config, folder)
        result = {
            "variant": resolved.variant.name,
            "seed": seed,
            "configuration": self._key(resolved, seed),
            "scores": scores,
            "seconds": round(seconds, 1),
            "mixture": mixture.fingerprint,
            "versions": environment.versions(),
        }
        cache.write_whole(folder / "result.json", json.dumps(result, ensure_ascii=False, indent=2) + "\n")
        del model
        gc.collect()
        return scores

    def _encoder(self, sections: Sections) -> str:
        """The checkpoint that the sections name, or one encoder for all variants, built from the file's own mixture."""
        model = sections.get("model") or {}
        if model.get("name_or_path"):
            return str(model["name_or_path"])
        settings = build(EncoderSettings, model.get("build") or {}, "model.build", section="model.build")
        mixture = load_mixture(self._base["data"]["mixture"])
        made_of = [mixture.fingerprint, "each text once"]
        return str(cached_encoder(settings, mixture.texts(), made_of, [PRESETS["piccolo"]]))

    def _score(
        self, model: SentenceTransformer, mixture: Mixture, config: FinetuneConfig, folder: Path
    ) -> dict[str, float]:
        """Step (3): task -> percent."""
        model.eval()
        model.max_seq_length = config.model.document_length  # what plain encode, of scores and classes, cuts at
        batch = config.evaluation.batch_size
        scores = {}
        for search in held_out_evaluators(mixture, batch_size=batch, write_csv=False):
            scores[search.name] = 100.0 * float(search(model)[f"{search.name}_ndcg@10"])
        if self.settings.tasks:
            from piccolo_st.evaluation import evaluate

            [evaluation] = evaluate(
                model, str(self._tasks_file(config)), output=folder / "mteb", overwrite=True, device="cpu"
            )
            if evaluation.failures:
                failures = "; ".join(f"{task}: {why}" for task, why in evaluation.failures.items())
                raise InputError(f"each of ablation.tasks must have a score, got failures in {failures}")
            scores |= evaluation.scores
        return scores

    def _tasks_file(self, config: FinetuneConfig) -> Path:
        """The tasks as a file, with paths that hold wherever it lies."""
        mixture = config.mixture
        root = Path(str(mixture.get("root") or ".") if isinstance(mixture, Mapping) else Path(mixture).parent).resolve()
        tasks = [
            {key: str(root / str(value)) if key in ("data", "train") else value for key, value in task.items()}
            for task in self.settings.tasks
        ]
        path = self.output / "tasks.yaml"
        path.write_text(yaml.safe_dump({"tasks": tasks}, allow_unicode=True), encoding="utf-8")
        return path


def _plot_spread(groups: Mapping[str, Sequence[float]], path: Path, title: str = "") -> Path:
    """Draw one bar a group, its mean, with a dot for each value, first group on top, into a PNG.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    figure = tables.empty_figure(8, 1.2 + 0.34 * len(groups))
    axes = figure.subplots()
    names = list(groups)[::-1]
    axes.barh(names, [sum(groups[name]) / len(groups[name]) for name in names], color="#b9cde6")
    for place, name in enumerate(names):
        axes.plot(groups[name], [place] * len(groups[name]), "o", color="#1f4e79", markersize=4)
    values = [value for group in groups.values() for value in group]
    axes.set_xlim(max(0.0, min(values) - 5), max(values) + 2)
    figure.suptitle(title, fontsize=10)  # over the labels too, which may leave the axes little room
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _parsed(sections: Sections, kind: type[Config], path: Path) -> Config:
    """The sections through a file, as a recipe would read them."""
    path.write_text(yaml.safe_dump(dict(sections), allow_unicode=True, sort_keys=False), encoding="utf-8")
    return parse_run([str(path)], kind, path)


def _mean_and_spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
