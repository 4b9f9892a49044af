"""What each part of the recipe is worth: the same encoder, data, steps and samples, one part more at a time.

The YAML has the sections of a stage 2 run, from which every variant starts, and two more: ``ablation`` (seeds, tasks,
where results go) and ``variants``, in the order of the table.

(1) a variant is what its ``after`` is, with ``set`` laid over it; the chain of ``after`` leads to the first one;
(2) each variant and seed trains in a directory of its own: through ``TrainingRun``, by sentence-transformers' own
    trainer, by FlagEmbedding, or not at all; with ``stage1``, a stage 1 run comes before it;
(3) the model is scored: nDCG@10 of the mixture's held-out retrieval sets, and local tasks through mteb;
(4) ``result.json`` is written aside and renamed. A variant that has one for the same configuration and the same rows is
    not run again, so a driver that was killed goes on with the run it was killed in;
(5) two tables and one picture (``report.py``).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from sentence_transformers import SentenceTransformer
from typing_extensions import NotRequired, TypedDict

from piccolo_st import cache, environment
from piccolo_st.config import Config, merge, parse_run, to_yaml
from piccolo_st.data import Mixture, load_mixture
from piccolo_st.errors import InputError, nearest
from piccolo_st.evaluation import held_out_evaluators
from piccolo_st.experiments import report
from piccolo_st.experiments.flag_embedding import FlagEmbeddingOptions, train_flag_embedding
from piccolo_st.experiments.memory import PeakMemory
from piccolo_st.experiments.stock import StockOptions, start_model, train_stock
from piccolo_st.experiments.tasks import read_tasks, write_tasks
from piccolo_st.experiments.variants import ResolvedVariant, Sections, read_variants
from piccolo_st.modeling import PRESETS, EncoderSettings, cached_encoder
from piccolo_st.schema import build
from piccolo_st.stored import read_json
from piccolo_st.training import TIME_LIMIT, FinetuneConfig, PretrainConfig, TrainingRun

logger = logging.getLogger(__name__)


class _Result(TypedDict):
    """What is read of result.json."""

    configuration: str
    scores: dict[str, float]
    seconds: float
    memory_mib: int | None
    examples: str | None
    mixture: str
    tasks: NotRequired[dict[str, str] | None]  # results of before it was kept count as of the present data


class Ablation:
    """The variants of a file, run or read.

    Args:
        path: the YAML.
        overrides: dotted keys -> values, laid over the file; see ``configuration.parse_overrides``.

    Attributes:
        settings: what is compared, and where the results go.
        resolved: name -> what the variant runs with.
        tasks: what it is scored on beside the mixture's held-out searches.

    Raises:
        InputError: an unknown key, a variant that follows none or itself, a task that is none.
    """

    def __init__(self, path: Path, overrides: Sections | None = None) -> None:
        self.path = path
        self.settings, self.resolved, self._base = read_variants(path, overrides or {})
        self.output = Path(self.settings.output_dir)
        self.tasks = read_tasks(self.settings, self._base, path)
        self._fingerprints: dict[str, str | None] = {}

    def run(self, only: Sequence[str] = (), say: Callable[[str], None] = print) -> None:
        """Run what has no result yet, seed by seed, so that an early look compares all variants.

        Args:
            only: names of variants; empty means all.
            say: gets a line after each run.

        Raises:
            InputError: an unknown name, a time limit, or what a variant cannot run with.
        """
        if self.tasks:
            from piccolo_st.evaluation import evaluate  # noqa: F401  # a missing mteb is told before hours of training
        for name in only:
            if name not in self.resolved:
                raise InputError(f"unknown variant {name!r} in {self.path}{nearest(name, list(self.resolved))}")
        for name in only or self.resolved:
            limit = os.environ.get(TIME_LIMIT) or (self.resolved[name].sections.get("train") or {}).get("max_seconds")
            if limit:  # the result of a run that was cut short would be kept as that of all its steps
                raise InputError(
                    f"variants are compared at equal steps, so {name!r} must have no time limit, got {limit} seconds; "
                    f"unset train.max_seconds and {TIME_LIMIT}"
                )
        for seed in self.settings.seeds:
            for name in only or self.resolved:
                if self.resolved[name].trainer == "none" and seed != self.settings.seeds[0]:
                    continue  # nothing is drawn
                if self.result(name, seed) is None:
                    found = self._run_one(self.resolved[name], seed)
                    shown = "  ".join(f"{task} {score:.2f}" for task, score in found.scores.items())
                    say(f"{name}, seed {seed}: {shown}")

    def result(self, name: str, seed: int) -> report.Result | None:
        """What a variant reached with a seed, or None if there is nothing for this configuration and data."""
        path = self._folder(name, seed) / "result.json"
        if not path.is_file():
            return None
        try:
            found = read_json(path, _Result, "the variant is run again")
        except InputError as error:
            logger.warning("%s", error)
            return None
        one = self.resolved[name]
        if found["configuration"] != self._key(one, seed):
            return None
        kept_and_now = ((found["mixture"], self._fingerprint(one)), (found.get("tasks"), self._revisions))
        if any(None not in (kept, now) and kept != now for kept, now in kept_and_now):
            logger.warning("%s is of other rows of the mixture or of a task than there are now; it is not used", path)
            return None
        examples = path.parent / found["examples"] if found["examples"] else None
        return report.Result(found["scores"], found["seconds"], found["memory_mib"], examples)

    def results(self) -> report.Results:
        """Variant -> seed -> result, of what is finished."""
        found = {name: {seed: self.result(name, seed) for seed in self.settings.seeds} for name in self.resolved}
        kept = {name: {s: one for s, one in own.items() if one is not None} for name, own in found.items()}
        return {name: own for name, own in kept.items() if own}

    def write(self) -> str:
        """Write ``table.md``, ``ablation.json`` and ``ablation.png``; returns the tables as plain text."""
        results = self.results()
        if not results:
            return "no variant has a result yet"
        return report.write(results, self.resolved, self.tasks, self.settings, self.output)

    # Steps (2) to (4).

    def _folder(self, name: str, seed: int) -> Path:
        return self.output / "runs" / name / f"seed-{seed}"

    def _key(self, one: ResolvedVariant, seed: int) -> str:
        """What decides a result beside the data: where the tasks' files lie does not."""
        tasks = [{**task.entry, **dict.fromkeys(("data", "train"))} for task in self.tasks]
        return cache.digest([one.trainer, {**one.options, "python": None}, one.sections, one.stage1, seed, tasks])

    @cached_property
    def _revisions(self) -> dict[str, str] | None:
        """Task -> the revision of its data; None if that cannot be read, as where a table is made of copied results."""
        if not self.tasks:
            return {}
        try:
            from piccolo_st.evaluation import load_local_tasks

            path = self.output / "tasks.yaml"
            write_tasks(self.tasks, path)
            return {task.metadata.name: task.metadata.revision for _, task in load_local_tasks(path)}
        except InputError as error:
            logger.warning("whether results are of the present tasks is not known: %s", error)
            return None

    def _fingerprint(self, one: ResolvedVariant) -> str | None:
        """That of the variant's mixture, which is read once; None if it cannot be."""
        mixture = one.sections["data"]["mixture"]
        key = cache.digest(mixture)
        if key not in self._fingerprints:
            try:
                self._fingerprints[key] = load_mixture(mixture).fingerprint
            except InputError as error:
                logger.warning("whether results are of the present mixture is not known: %s", error)
                self._fingerprints[key] = None
        return self._fingerprints[key]

    def _run_one(self, resolved: ResolvedVariant, seed: int) -> report.Result:
        folder = self._folder(resolved.variant.name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with PeakMemory() as memory:
            config, mixture, model = self._train(resolved, seed, folder)
        seconds = time.perf_counter() - start
        mib = None if resolved.trainer == "flag_embedding" else memory.mib  # it trains in another process
        scores, examples = self._score(model, mixture, config, folder)
        result = {
            "variant": resolved.variant.name,
            "seed": seed,
            "configuration": self._key(resolved, seed),
            "scores": scores,
            "seconds": round(seconds, 1),
            "memory_mib": mib,
            "examples": str(examples.relative_to(folder)) if examples is not None else None,
            "mixture": mixture.fingerprint,
            "tasks": self._revisions,
            "versions": environment.versions(),
        }
        cache.write_whole(folder / "result.json", json.dumps(result, ensure_ascii=False, indent=2) + "\n")
        del model
        gc.collect()
        return report.Result(scores, seconds, mib, examples)

    def _train(
        self, resolved: ResolvedVariant, seed: int, folder: Path
    ) -> tuple[FinetuneConfig, Mixture, SentenceTransformer]:
        fixed: Sections = {"train.seed": seed, "train.save_strategy": "no", "train.resume": "never"}
        sections = merge(resolved.sections, self._encoder(resolved.sections))
        if resolved.stage1 is not None:
            before = merge(sections, {**resolved.stage1, **fixed, "train.output_dir": str(folder / "stage1")})
            TrainingRun(_parsed(before, PretrainConfig, folder / "stage1.yaml")).train()
            sections = merge(sections, {"model.name_or_path": str(folder / "stage1" / "model")})
        sections = merge(sections, {**fixed, "train.output_dir": str(folder / "run")})
        config = _parsed(sections, FinetuneConfig, folder / "run.yaml")
        if resolved.trainer == "piccolo_st":
            run = TrainingRun(config)
            run.train()
            return config, run.mixture, run.model
        mixture = load_mixture(config.mixture)
        if resolved.trainer == "sentence_transformers":
            return config, mixture, train_stock(config, mixture, build(StockOptions, resolved.options, "options"))
        if resolved.trainer == "flag_embedding":
            options = build(FlagEmbeddingOptions, resolved.options, "options")
            return config, mixture, train_flag_embedding(config, mixture, options, folder / "run")
        return config, mixture, start_model(config)

    def _encoder(self, sections: Sections) -> Sections:
        """The checkpoint that the sections name, or one encoder for all variants, built from the file's own mixture."""
        model = sections.get("model") or {}
        if model.get("name_or_path"):
            return {}
        settings = build(EncoderSettings, model.get("build") or {}, "model.build", section="model.build")
        mixture = load_mixture(self._base["data"]["mixture"])
        made_of = [mixture.fingerprint, "each text once"]
        built = cached_encoder(settings, mixture.texts(), made_of, [PRESETS["piccolo"]])
        return {"model.name_or_path": str(built), "model.instructions": model.get("instructions") or "piccolo"}

    def _score(
        self, model: SentenceTransformer, mixture: Mixture, config: FinetuneConfig, folder: Path
    ) -> tuple[dict[str, float], Path | None]:
        """Step (3): task -> percent, and where what each example contributed is kept."""
        model.eval()
        model.max_seq_length = config.model.document_length  # what plain encode, of scores and classes, cuts at
        batch = config.evaluation.batch_size
        scores = {}
        for search in held_out_evaluators(mixture, batch_size=batch, write_csv=False):
            scores[search.name] = 100.0 * float(search(model)[f"{search.name}_ndcg@10"])
        if not self.tasks:
            return scores, None
        from piccolo_st.evaluation import evaluate

        write_tasks(self.tasks, self.output / "tasks.yaml")
        [evaluation] = evaluate(model, str(self.output / "tasks.yaml"), output=folder / "mteb", overwrite=True)
        if evaluation.failures:
            failures = "; ".join(f"{task}: {why}" for task, why in evaluation.failures.items())
            raise InputError(f"each of ablation.tasks must have a score, got failures in {failures}")
        return {**scores, **evaluation.scores}, evaluation.folder


def _parsed(sections: Sections, kind: type[Config], path: Path) -> Config:
    """The sections through a file, as a recipe would read them."""
    path.write_text(to_yaml(dict(sections)), encoding="utf-8")
    return parse_run([str(path)], kind, path)
