"""The step ``split``: rows of every training set kept for a test, by rule, as files and as tasks of an evaluation.

(1) of each dataset distinct first texts (query, sentence1, premise or text) are drawn, those with the smallest seeded
    hashes, so that the same rows give the same ones in any order; with a text all its rows go to the test;
(2) a training row that holds a drawn text, or the answer of a drawn query, goes, in every dataset; in a list only the
    item does (see ``data/holdout.py``);
(3) the tests are written as people read them: searches in the BEIR layout, the others as JSON lines; ``tasks.yaml``
    names them all, ``mixture.yaml`` what is left to train on, and ``tests.yaml``, which that one names, the tests for
    the steps that come later.

Rows are taken as they are before a preset, so that a set of entailments has the same test whatever it is trained as.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from numpy.typing import NDArray

from piccolo_st.cache import write_whole
from piccolo_st.config import to_yaml
from piccolo_st.curation.job import USED, Job, evaluation_entry, training_entry, write_beir
from piccolo_st.curation.stages import Stage
from piccolo_st.data import (
    CONTRADICTION,
    ENTAILMENT,
    DatasetSpec,
    HeldOutCounts,
    HoldoutSpec,
    Mixture,
    RetrievalHoldout,
    arrow_parts,
    clean,
    draw,
    forbidden,
    load_mixture,
    parse_mixture,
    tests_of,
)
from piccolo_st.errors import MixtureError
from piccolo_st.hashing import text_hashes, text_key
from piccolo_st.schema import Count, PositiveShare, Whole, setting

_ROWS = 100_000  # read at once
_USED = (*USED, "preset", "labels", "holdout")  # rows are written as they are before a preset, and none is held out yet
_FIRST = ("query", "sentence1", "premise", "text")


@dataclass(frozen=True)
class SplitSettings:
    """How much is kept for a test.

    Attributes:
        rows: distinct first texts drawn of a dataset.
        share: of its distinct first texts at most.
        corpus: texts that a test searches among: the answers, and other positives of the dataset drawn by seed.
        seed: which ones.
    """

    rows: Count = setting(1000, "Distinct first texts a dataset that are kept for its test.")
    share: PositiveShare = setting(0.1, "Of a dataset's distinct first texts at most.")
    corpus: Count = setting(10_000, "Texts that a test searches among at most.")
    seed: Whole = setting(13, "Which ones are drawn.")


@dataclass(frozen=True)
class SplitStep:
    """The step over one mixture.

    Attributes:
        job: its input and output.
        settings: how much is kept for a test.
    """

    job: Job
    settings: SplitSettings

    def stages(self) -> list[Stage]:
        """What to run, in order."""
        return [Stage("split", 1, partial(_split, self))]

    def raw(self) -> Mixture:
        """The mixture with the rows of every training set as they are before their preset.

        Raises:
            MixtureError: a training set is a BEIR folder, which is queries and judgements and not rows.
        """
        given = self.job.given
        given = dict(given) if isinstance(given, dict) else {"file": given}
        own = found if isinstance(found := given.get("datasets"), dict) else {}
        names = [name for name, spec in parse_mixture(given)[0].items() if spec.use == "train"]
        over = {"use": "evaluate", "holdout": None, "streaming": False}
        raw = {name: {**own.get(name, {}), **over} for name in names}
        mixture = load_mixture({**given, "datasets": {**own, **raw}}, cache_dir=self.job.cache)
        for name in names:
            if name in mixture.holdouts:
                raise MixtureError(
                    f"dataset {name!r} of the step split must be rows, got a BEIR folder, which is a test already; "
                    "give it `use: evaluate`, or leave it out"
                )
        return mixture


def _split(step: SplitStep, _: int) -> None:
    """Steps (1) to (3)."""
    given, root, _policy = parse_mixture(step.job.given)
    raw, folder = step.raw(), step.job.folder
    names = [name for name, spec in given.items() if spec.use == "train"]
    searches: dict[str, RetrievalHoldout] = {}
    drawn: dict[str, pa.Table] = {}
    for name in names:
        first = _first(raw.evaluation[name])
        count = _count(step.settings, name, raw.evaluation[name], first)
        if first == "query":
            holdout = HoldoutSpec(count, step.settings.seed, 0, step.settings.corpus)
            searches[name] = draw(dataclasses.replace(given[name], holdout=holdout), raw.evaluation[name])
        else:
            drawn[name] = _rows_of(raw.evaluation[name], first, count, step.settings.seed)
    keys = forbidden(searches, [pc.unique(text_key(table.column(_first(table)))) for table in drawn.values()])
    datasets, tasks, counts = {}, [], {}
    tests = _earlier_tests(step.job)
    for name in names:
        lost = HeldOutCounts()
        tables = clean(name, arrow_parts(raw.evaluation[name], _ROWS), keys, lost)
        kept = _write(folder / name / "part-00000.parquet", tables)
        if name in searches:
            write_beir(folder / f"{name}_test", searches[name])
            task: dict[str, object] = {"type": "Retrieval", "data": f"{name}_test"}
            tests[f"{name}-test"] = {"source": f"{name}_test", "format": "beir", "task": "retrieval", "use": "evaluate"}
        else:
            task = _write_test(folder, given[name], drawn[name])
            tests[f"{name}-test"] = {**_read_as(task), "source": task["data"], "use": "evaluate"}
        tasks.append({"name": f"{name}-test", **task})
        held = len(searches[name].queries) if name in searches else drawn[name].num_rows
        counts[name] = {"rows": len(raw.evaluation[name]), "kept": kept, "in the test": held}
        datasets[name] = training_entry(raw.evaluation[name].column_names, given[name], root, _USED)
    for name in given.keys() - set(names):
        datasets[name] = evaluation_entry(given[name], root)
    header = f"# Made by the step 'split' from the mixture {raw.fingerprint}.\n"
    left = {"datasets": datasets, "tests": "tests.yaml"}
    for file, content in (("tests", {"datasets": tests}), ("mixture", left), ("tasks", {"tasks": tasks})):
        text = header + to_yaml(content)
        write_whole(folder / f"{file}.yaml", text)
    report = {"step": "split", "mixture": raw.fingerprint, "datasets": counts}
    write_whole(folder / "report.json", json.dumps(report, ensure_ascii=False, indent=1))


def _earlier_tests(job: Job) -> dict[str, object]:
    """The tests that the mixture names already, for a mixture elsewhere."""
    if (known := tests_of(job.given)) is None:
        return {}
    specs, root, _policy = parse_mixture(known)
    return {f"earlier-{name}": evaluation_entry(spec, root) for name, spec in specs.items()}


def _read_as(task: dict[str, object]) -> dict[str, object]:
    """How a mixture reads a test that is no search."""
    if task["type"] == "PairClassification":
        return {"task": "pair", "columns": task.get("columns", {})}
    return {"task": "sts" if task["type"] == "STS" else "classification"}


def _first(rows: Dataset | pa.Table) -> str:
    """The column of the first text."""
    return next(name for name in _FIRST if name in rows.column_names)


def _hashes(dataset: Dataset, first: str, seed: int) -> list[NDArray[np.uint64]]:
    return [text_hashes(table[first], seed) for table in arrow_parts(dataset.select_columns([first]), _ROWS)]


def _count(settings: SplitSettings, name: str, dataset: Dataset, first: str) -> int:
    distinct = len(np.unique(np.concatenate(_hashes(dataset, first, settings.seed))))
    count = min(settings.rows, int(settings.share * distinct))
    if not count:
        raise MixtureError(
            f"the test of dataset {name!r} must have a row, got {settings.share:g} of {distinct} distinct texts; raise "
            "split.share, or give it `use: evaluate`"
        )
    return count


def _rows_of(dataset: Dataset, first: str, count: int, seed: int) -> pa.Table:
    """The rows of the ``count`` first texts with the smallest hashes."""
    hashes = _hashes(dataset, first, seed)
    chosen = np.unique(np.concatenate(hashes))[:count]
    found = [t.filter(pa.array(np.isin(h, chosen))) for t, h in zip(arrow_parts(dataset, _ROWS), hashes, strict=True)]
    return pa.concat_tables(found)


def _write(path: Path, tables: Iterator[pa.Table]) -> int:
    """Write tables of one schema as one Parquet file, which others see whole or not at all; returns the rows."""
    rows = 0

    def write(aside: Path) -> None:
        nonlocal rows
        first = next(tables)
        with pq.ParquetWriter(aside, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table, row_group_size=50_000)
                rows += table.num_rows

    write_whole(path, write)
    return rows


def _write_test(folder: Path, spec: DatasetSpec, rows: pa.Table) -> dict[str, object]:
    """Write a test that is no search; returns its entry in ``tasks.yaml``."""
    file = f"{spec.name}.test.jsonl"
    task: dict[str, object] = {"type": "Classification", "train": f"{spec.name}/*.parquet"}
    if "premise" in rows.column_names:
        label = pc.utf8_lower(rows["label"])
        rows = rows.set_column(2, "label", pc.cast(pc.is_in(label, pa.array(ENTAILMENT)), pa.int8()))
        rows = rows.filter(pc.is_in(label, pa.array(ENTAILMENT + CONTRADICTION)))
        task = {"type": "PairClassification", "columns": {"sentence1": "premise", "sentence2": "hypothesis"}}
    elif "sentence1" in rows.column_names:
        scored = set(pc.unique(rows["label"]).to_pylist())
        task = (
            {"type": "PairClassification"} if scored <= {0.0, 1.0} else {"type": "STS", "columns": {"score": "label"}}
        )
    lines = (json.dumps(row, ensure_ascii=False) for row in rows.to_pylist())
    write_whole(folder / file, "".join(f"{line}\n" for line in lines))
    return {**task, "data": file}
