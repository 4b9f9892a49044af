"""Preparing a mixture before training: split, check, dedup, filter, mine, score; each resumes, and each feeds the next.

(1) a step is claimed for its input and settings, so that a folder never mixes the work of two;
(2) its stages run, here or on a cluster, passing over what is done (``stages``);
(3) it ends with a report, and (but for check) a mixture file that the next step or a training run reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import TypedDict

from piccolo_st.cache import content_digest, default_cache, digest
from piccolo_st.config import Configuration
from piccolo_st.curation.duplicates import DedupSettings
from piccolo_st.curation.job import Job
from piccolo_st.curation.quality import FilterSettings
from piccolo_st.curation.stages import ExecutorSettings, Stage, claim, run_stages
from piccolo_st.curation.step_check import CheckSettings, CheckStep
from piccolo_st.curation.step_dedup import DedupStep
from piccolo_st.curation.step_filter import FilterStep
from piccolo_st.curation.step_mine import MineSettings, MineStep
from piccolo_st.curation.step_score import ScoreSettings, ScoreStep
from piccolo_st.curation.step_split import SplitSettings, SplitStep
from piccolo_st.data import build, locate, parse_mixture, tests_of
from piccolo_st.errors import MixtureError
from piccolo_st.mining import corpus_files
from piccolo_st.ownership import own
from piccolo_st.schema import setting
from piccolo_st.stored import read_json
from piccolo_st.tables import table

Settings = CheckSettings | DedupSettings | FilterSettings | MineSettings | ScoreSettings | SplitSettings


class _Report(TypedDict):
    datasets: dict[str, dict[str, int]]


class Step(Protocol):
    """One step over one mixture."""

    def stages(self) -> list[Stage]:
        """What to run, in order."""


STEPS: dict[str, Callable[[Job, Any], Step]] = {
    "split": SplitStep,
    "check": CheckStep,
    "dedup": DedupStep,
    "filter": FilterStep,
    "mine": MineStep,
    "score": ScoreStep,
}


@dataclass(frozen=True)
class PrepareData:
    """What is prepared, and where the output goes."""

    mixture: dict[str, object] | str | None = setting(
        None, "The data mixture: a YAML file, or the mapping itself; see recipes/REFERENCE.md."
    )
    output: str = setting("runs/prepare", "Folder of the output; each step has its own inside.")
    cache: str | None = setting(None, "Where checked datasets are kept; empty: beside datasets'.")


@dataclass(frozen=True)
class PrepareConfig(Configuration):
    """The data, a section for each step, and where its tasks run."""

    data: PrepareData
    split: SplitSettings
    check: CheckSettings
    dedup: DedupSettings
    filter: FilterSettings
    mine: MineSettings
    score: ScoreSettings
    executor: ExecutorSettings


def run_step(
    step: str,
    data: PrepareData,
    settings: Settings,
    executor: ExecutorSettings | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Do one step, or what is left of it.

    Args:
        step: split, check, dedup, filter, mine or score.
        data: input and output.
        settings: of that step.
        executor: where tasks run.
        say: is given each line of progress and the report.

    Returns:
        The step's folder.

    Raises:
        MixtureError: the mixture or a setting cannot be used, a package is missing, or the folder is another's.
        InputError: another process is writing there.
    """
    if data.mixture is None:
        raise MixtureError("no data are named; give a mixture file, or a file whose section `data` has a `mixture`")
    folder = Path(data.output) / step
    job = Job.of(data.mixture, data.cache, folder.resolve())
    stages = STEPS[step](job, settings).stages()  # before the claim: what it refuses leaves nothing
    with own(folder.with_name(f".{step}.owner"), folder, "data.output"):
        made_of = {"step": step, "settings": dataclasses.asdict(settings), "mixture": job.given}
        claim(
            folder,
            digest([made_of["settings"], _inputs(job), _model_files(job, settings), *_corpora(job, settings)]),
            made_of,
        )
        finished = run_stages(stages, folder, executor, say)
    if not finished:
        say(f"submitted; the output will be in {folder}, complete when {folder / 'report.json'} is there")
    elif step == "check":
        say((folder / "report.txt").read_text(encoding="utf-8").rstrip())
        pictures = " and histograms" if (folder / "lengths.png").is_file() else ""
        say(f"report, rejected rows{pictures}: {folder}")
    else:
        if step == "mine":
            say((folder / "report.txt").read_text(encoding="utf-8").partition("\n\n")[0])
        else:
            say(_counts_table(read_json(folder / "report.json", _Report, f"delete {folder}", MixtureError)["datasets"]))
        where = {
            "mine": f"what was dropped and why, with examples: {folder / 'report.txt'}",
            "score": "a run with loss.distillation learns from its scores",
            "split": f"the tests: {folder / 'tasks.yaml'}",
        }
        say(f"what stays: {folder / 'mixture.yaml'}; " + where.get(step, f"what went: {folder / 'rejects'}"))
    return folder


def _inputs(job: Job) -> list[str]:
    """What the rows depend on: contents of the sources, and the mixture's settings."""
    cache = Path(job.cache) if job.cache is not None else default_cache()
    found: list[str] = []
    for config in (job.given, tests_of(job.given)):
        if config is not None:
            specs, root, policy = parse_mixture(config)
            rows = [build.row_key(spec, locate(spec, root), cache) for spec in specs.values()]
            found += [policy, *rows, *(digest(dataclasses.asdict(spec)) for spec in specs.values())]
    return found


def _model_files(job: Job, settings: Settings) -> list[str]:
    """What local models hold: the next round's checkpoint may lie where the last one did."""
    cache = Path(job.cache) if job.cache is not None else default_cache()
    values = [getattr(settings, name, None) or "" for name in ("model", "tokenizer", "reranker")]
    values += [str(own.get("judge") or "") for own in _mining(job, settings)]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    given = [folder for folder in map(Path, names) if folder != Path("") and folder.is_dir()]
    return [content_digest(sorted(p for p in folder.rglob("*") if p.is_file()), cache) for folder in given]


def _corpora(job: Job, settings: Settings) -> list[str]:
    """What the documents hold that a step searches beside the mixture's own; an empty list where there are none."""
    root = parse_mixture(job.given)[1]
    sources = {str(own["corpus"]) for own in _mining(job, settings) if own.get("corpus")}
    cache = Path(job.cache) if job.cache is not None else default_cache()
    return [content_digest(corpus_files(source, root), cache) for source in sorted(sources)]


def _mining(job: Job, settings: Settings) -> list[Mapping[str, object]]:
    """The settings of mining, of all and of single datasets, where the step mines."""
    if not isinstance(settings, MineSettings):
        return []
    return [own for own in (settings.settings, *(spec.mining for spec in parse_mixture(job.given)[0].values())) if own]


def _counts_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    kinds = list(dict.fromkeys(kind for own in counts.values() for kind in own))
    rows = [(name, *(own.get(kind, 0) for kind in kinds)) for name, own in counts.items()]
    totals = ("all", *(sum(own.get(kind, 0) for own in counts.values()) for kind in kinds))
    return table(("dataset", *kinds), [*rows, totals])
