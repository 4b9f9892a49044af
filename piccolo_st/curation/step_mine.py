"""The step ``mine``: hard negatives for the retrieval datasets of a mixture, shard by shard.

    (1) mine: each shard (rows of whole queries) is mined and written, so that a killed run loses one shard at most;
    (2) copy: datasets of other tasks go on unchanged;
    (3) report: ``report.txt`` says what was dropped and why, with examples, and what the rows have now.

The rows of a mined dataset come out grouped by query; the sampler draws them in an order of its own anyway.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

from piccolo_st.cache import default_cache, write_whole
from piccolo_st.curation.job import Job, Part, finish, write_part
from piccolo_st.curation.stages import Stage
from piccolo_st.mining import (
    UNTRAINED,
    Miner,
    MiningReport,
    MiningSettings,
    column_texts,
    further_documents,
    load_alike,
    reading,
    shard_rows,
    with_negatives,
    write_report,
)
from piccolo_st.modeling import load_pretrained
from piccolo_st.schema import part_of, setting


@dataclass(frozen=True)
class MineSettings:
    """What mines, and how.

    Attributes:
        model: ``lexical``, ``bm25``, ``random``, or a SentenceTransformer's Hub id or folder; or a list of such, which
            all give negatives.
        tokenizer: of the lexical encoder; None: one learned from each dataset.
        reranker: a cross-encoder's Hub id or folder, which drops false negatives.
        settings: fields of MiningSettings; a dataset's own ``mining`` goes over them.
    """

    model: str | list[str] = setting(
        "lexical", "lexical, bm25, random, or a SentenceTransformer's Hub id or folder; or several, as a list."
    )
    tokenizer: str | None = setting(None, "Of the lexical encoder; empty: learned from the data.")
    reranker: str | None = setting(None, "A cross-encoder that drops false negatives.")
    settings: Annotated[dict[str, object] | None, part_of(MiningSettings)] = setting(
        None, "How negatives are chosen; a dataset's own go over them."
    )


@dataclass(frozen=True, eq=False)
class MineStep:
    """The step over one mixture.

    Attributes:
        job: its input and output.
        settings: what mines, and how.
    """

    job: Job
    settings: MineSettings

    def stages(self) -> list[Stage]:
        """What to run, in order."""
        stages = [Stage(f"mine-{name}", self.shards(name), partial(_mine, self, name)) for name in self.mined]
        copied = self.copied
        return [
            *stages,
            *([Stage("copy", len(copied), partial(_copy, self))] if copied else []),
            Stage("finish", 1, partial(_finish, self)),
        ]

    @property
    def mined(self) -> list[str]:
        """The datasets that get negatives: retrieval, one query and one positive a row."""
        return [name for name in self.job.pairs() if self.of(name).num_negatives]

    @property
    def listed(self) -> list[str]:
        """Those that would, did their rows not list their positives."""
        retrieval = [name for name in self.job.mixture.train if self.job.mixture.specs[name].task == "retrieval"]
        return [name for name in retrieval if name not in self.job.pairs() and self.of(name).num_negatives]

    @property
    def copied(self) -> list[Part]:
        """Parts of the others."""
        return [part for part in self.job.parts(200_000) if part.dataset not in self.mined]

    def of(self, name: str) -> MiningSettings:
        """The settings of one dataset."""
        own = self.job.mixture.specs[name].mining
        return MiningSettings.of(self.settings.settings, own, place=f"mining of dataset {name!r}")

    def shards(self, name: str) -> int:
        """How many shards a dataset is mined in."""
        return len(list(shard_rows(column_texts(self.job.mixture.train[name], "query"), self.of(name).shard_rows)))


@lru_cache(maxsize=1)
def _miner(
    job: Job, models: tuple[str, ...], tokenizer: str | None, reranker: str | None, settings: MiningSettings, name: str
) -> Miner:
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer

    encoders: Any = [one if one in UNTRAINED else load_alike(one, "mine.model") for one in models]
    load_tokenizer: Any = AutoTokenizer.from_pretrained
    return Miner(
        job.mixture.train[name],
        encoders,
        settings,
        corpus=further_documents(job.mixture, settings),
        tokenizer=load_pretrained(load_tokenizer, tokenizer, "mine.tokenizer") if tokenizer else None,
        reranker=load_pretrained(CrossEncoder, reranker, "mine.reranker") if reranker else None,
        folder=(Path(job.cache) if job.cache is not None else default_cache()) / "embeddings",
    )


def _mine(step: MineStep, name: str, task: int) -> None:
    given, settings = step.settings, step.of(name)
    models = (given.model,) if isinstance(given.model, str) else tuple(given.model)
    miner = _miner(step.job, models, given.tokenizer, given.reranker, settings, name)
    rows = miner.shards[task]
    with ExitStack() as stack:
        for encoder in miner.encoders:
            if not isinstance(encoder, str):
                stack.enter_context(reading(encoder, step.job.mixture.specs[name]))
        mined, report = miner.mine(task)
    own = step.job.mixture.train[name].with_format("arrow")[rows.tolist()]
    table = with_negatives(own, mined, settings.existing)
    missing = sum(not texts for texts in mined)
    counted = ["negatives"] * sum(map(len, mined)) + ["without a mined negative"] * missing
    write_whole(step.job.folder / "mined" / f"{name}-{task:05d}.json", report.to_json())
    write_part(step.job.folder, Part(name, task, 0, len(rows)), table, counted)


def _copy(step: MineStep, task: int) -> None:
    part = step.copied[task]
    write_part(step.job.folder, part, step.job.table(part))


def _finish(step: MineStep, _: int) -> None:
    reports: dict[str, MiningReport] = {}
    for name in step.mined:
        reports[name] = MiningReport()
        for task in range(step.shards(name)):
            text = (step.job.folder / "mined" / f"{name}-{task:05d}.json").read_text(encoding="utf-8")
            reports[name].add(MiningReport.from_json(text))
    write_report(reports, step.job.folder / "report.txt", step.listed)
    parts = [Part(name, task, 0, 0) for name in step.mined for task in range(step.shards(name))]
    finish(step.job, "mine", [*parts, *step.copied])
