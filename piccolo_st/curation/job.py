"""What the preparation steps share: the mixture they read, its rows in parts, and the mixture they leave behind.

A step reads a mixture and writes a folder::

    OUTPUT/made_of.json            what it was made from; another input or other settings are refused
    OUTPUT/NAME/part-00000.parquet the rows of dataset NAME that stay
    OUTPUT/NAME_holdout/           its held-out queries, in the BEIR layout
    OUTPUT/rejects/*.jsonl         the rows that went: dataset, row, reason, excerpt
    OUTPUT/report.json             the counts
    OUTPUT/mixture.yaml            a mixture of what stays: the input of the next step, or of a training run
"""

from __future__ import annotations

import dataclasses
import glob
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from piccolo_st.cache import PARTIAL, write_whole
from piccolo_st.config import to_yaml
from piccolo_st.data import DatasetSpec, Mixture, RetrievalHoldout, excerpt, load_mixture, parse_mixture
from piccolo_st.errors import MixtureError
from piccolo_st.stored import read_json

# Settings of a dataset that say what its rows are used for, and so go on to the next step or run; what a step writes is
# read by the defaults, whatever its source needed.
USED = ("task", "min_characters", "max_characters", "streaming", "mining", "instruction", "weight", "repeats",
        "batch_multiple", "query_length", "document_length", "loss", "licence", "note")  # fmt: skip

_SCORES = {"pos_scores": "positive_score", "neg_scores": "negative_score"}


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` of a dataset."""

    dataset: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """For files of this part."""
        return f"{self.dataset}-{self.number:05d}"


@dataclass(frozen=True)
class Job:
    """One step over one mixture; small and picklable, so that tasks on other machines can be given it.

    Attributes:
        config: the mixture file, or the mapping as JSON (a mapping cannot be hashed).
        cache: where datasets read and checked before are found.
        folder: the step's output.
    """

    config: str
    cache: str | None
    folder: Path

    @classmethod
    def of(cls, config: Mapping[str, object] | str | Path, cache: str | Path | None, folder: Path) -> Job:
        """From a mixture as ``load_mixture`` takes it."""
        text = json.dumps(config) if isinstance(config, Mapping) else str(Path(config).resolve())
        return cls(text, str(cache) if cache is not None else None, folder)

    @property
    def given(self) -> dict[str, object] | str:
        """The mixture as it was given."""
        return json.loads(self.config) if self.config.startswith("{") else self.config

    @property
    def mixture(self) -> Mixture:
        """The loaded mixture, the same object for every task of a process."""
        return _load(self.config, self.cache)

    @property
    def work(self) -> Path:
        """Where stages leave what the next ones need; it is no dataset's, whose name does not begin with a dot."""
        folder = self.folder / ".work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def parts(self, rows: int) -> list[Part]:
        """The training rows of all datasets in parts of ``rows``."""
        return [
            Part(name, number, start, min(start + rows, len(dataset)))
            for name, dataset in self.mixture.train.items()
            for number, start in enumerate(range(0, len(dataset), rows))
        ]

    def pairs(self) -> list[str]:
        """The retrieval datasets with one query and one positive a row."""
        return [
            name
            for name, dataset in self.mixture.train.items()
            if self.mixture.specs[name].task == "retrieval"
            and getattr(dataset.features["positive"], "dtype", None) == "string"
        ]

    def table(self, part: Part) -> pa.Table:
        """The rows of a part."""
        return self.mixture.train[part.dataset].with_format("arrow")[part.start : part.stop]

    def evaluation_texts(self) -> dict[str, pa.Array]:
        """Name -> the texts of each evaluation set: of its rows, or its queries and their answers."""
        return _evaluation_texts(self)


@lru_cache(maxsize=2)
def _load(config: str, cache: str | None) -> Mixture:
    return load_mixture(json.loads(config) if config.startswith("{") else config, cache_dir=cache)


@lru_cache(maxsize=1)
def _evaluation_texts(job: Job) -> dict[str, pa.Array]:
    texts, tests = _texts_of(job.mixture), job.mixture.test_sets(job.cache)
    for name, found in (_texts_of(tests) if tests is not None else {}).items():
        texts[name] = pa.concat_arrays([texts[name], found]) if name in texts else found
    return texts


def _texts_of(mixture: Mixture) -> dict[str, pa.Array]:
    texts: dict[str, pa.Array] = {}
    for name, dataset in mixture.evaluation.items():
        columns = [c for c, f in dataset.features.items() if getattr(f, "dtype", None) == "string" and c != "label"]
        table = dataset.select_columns(columns).with_format("arrow")[:]
        texts[name] = pa.concat_arrays([table[column].combine_chunks() for column in columns])
    for name, holdout in mixture.holdouts.items():
        answers = {document for found in holdout.relevant.values() for document in found}
        both = [*holdout.queries.values(), *(holdout.corpus[document] for document in sorted(answers))]
        texts[name] = pa.array(both, type=pa.string())
    return texts


def write_part(folder: Path, part: Part, table: pa.Table, counted: Iterable[str] = ()) -> None:
    """The rows of a part that stay, as one Parquet file, and its counts: rows, kept, and each kind ``counted``."""
    path = folder / part.dataset / f"part-{part.number:05d}.parquet"
    write_whole(path, lambda aside: pq.write_table(table, aside, row_group_size=50_000))
    counts = {"rows": part.stop - part.start, "kept": table.num_rows, **Counter(counted)}
    write_whole(folder / "counts" / f"{part.name}.json", json.dumps(counts, ensure_ascii=False))


def write_rejects(folder: Path, part: Part, table: pa.Table, rows: np.ndarray, reasons: list[str]) -> None:
    """The rows of a part that went, one JSON object a line; row numbers count from 1 in the input mixture."""
    path = folder / "rejects" / f"{part.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = table.take(pa.array(rows)).to_pylist()
    with open(path, "w", encoding="utf-8") as file:
        for row, reason, record in zip(rows.tolist(), reasons, taken, strict=True):
            shown = excerpt(" | ".join(f"{key}={value!r}" for key, value in record.items()), 240)
            line = {"dataset": part.dataset, "row": part.start + row + 1, "reason": reason, "excerpt": shown}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def finish(job: Job, step: str, parts: Iterable[Part]) -> None:
    """Write the held-out sets, mixture.yaml and, when all else is there, report.json; remove what stages left."""
    counts: dict[str, Counter[str]] = {}
    for part in parts:
        path = job.folder / "counts" / f"{part.name}.json"
        again = f"delete {job.folder} and run the step again"
        counts.setdefault(part.dataset, Counter()).update(read_json(path, dict[str, int], again, MixtureError))
    given, root, _ = parse_mixture(job.given)
    datasets: dict[str, object] = {}
    for name, spec in given.items():
        if spec.use == "evaluate":
            datasets[name] = evaluation_entry(spec, root)
        elif (job.folder / name).is_dir():
            columns = pq.read_schema(next(iter(sorted((job.folder / name).glob("*.parquet"))))).names
            datasets[name] = training_entry(columns, spec, root)
        if name in job.mixture.holdouts and spec.use == "train":
            write_beir(job.folder / f"{name}_holdout", job.mixture.holdouts[name])
            datasets[f"{name}_holdout"] = {
                "source": f"{name}_holdout", "format": "beir", "task": "retrieval", "use": "evaluate",
            }  # fmt: skip
    header = f"# Made by the step {step!r} from the mixture {job.mixture.fingerprint}.\n"
    tests = {} if job.mixture.tests is None else {"tests": str(job.mixture.tests)}
    text = header + to_yaml({"datasets": datasets, **tests})
    report = {"step": step, "mixture": job.mixture.fingerprint, "datasets": counts}
    for left in job.folder.rglob(f"*{PARTIAL}"):  # by tasks that were killed
        left.unlink()
    write_whole(job.folder / "mixture.yaml", text)
    write_whole(job.folder / "report.json", json.dumps(report, ensure_ascii=False, indent=1))
    shutil.rmtree(job.work, ignore_errors=True)


def training_entry(
    columns: Iterable[str], spec: DatasetSpec, root: Path, used: Iterable[str] = USED
) -> dict[str, object]:
    """What the next mixture says of a training set whose rows a step has written.

    Args:
        columns: of its files.
        spec: what the mixture before said of it.
        root: where that one's relative sources started.
        used: the settings that go on.
    """
    roles: dict[str, object] = {
        _SCORES.get(name, name): name for name in columns if name.partition("_")[0] != "negative"
    }
    negatives = [name for name in columns if name.partition("_")[0] == "negative"]
    if negatives:
        roles["negative"] = negatives[0] if len(negatives) == 1 else negatives
    positives = {"positives": "list"} if spec.positives == "list" else {}
    return {"source": f"{spec.name}/*.parquet", **_settings(spec, used, root), "columns": roles, **positives}


def evaluation_entry(spec: DatasetSpec, root: Path) -> dict[str, object]:
    """What a mixture elsewhere says of an evaluation set that stays where it is."""
    places = ("source", "corpus", "queries")
    named = {name: source for name in places if (source := getattr(spec, name)) is not None}
    others = [one.name for one in dataclasses.fields(spec) if one.name not in ("name", *places)]
    return {**{name: _absolute(source, root) for name, source in named.items()}, **_settings(spec, others, root)}


def _settings(spec: DatasetSpec, names: Iterable[str], root: Path) -> dict[str, object]:
    """Those of the settings that are not the defaults, as a mixture file elsewhere has them."""
    plain = dataclasses.asdict(spec)
    defaults = {f.name: f.default for f in dataclasses.fields(DatasetSpec)}
    kept = {name: plain[name] for name in names if plain[name] != defaults[name] and plain[name] not in ({}, None)}
    if spec.instruction is not None and "instruction" in kept:
        kept["instruction"] = {
            task: texts if texts[1:] else texts[0] for task, texts in spec.instruction.phrasings.items()
        }
    if spec.mining and isinstance(corpus := spec.mining.get("corpus"), str) and "mining" in kept:
        kept["mining"] = {**spec.mining, "corpus": _absolute(corpus, root)}
    return json.loads(json.dumps(kept))  # tuples become lists


def _absolute(source: str, root: Path) -> str:
    """Where a source is, from anywhere; of the Hub and of a package it stays as it is."""
    path = root / Path(source).expanduser()
    return str(path.resolve()) if glob.glob(str(path), recursive=True) else source


def write_beir(folder: Path, holdout: RetrievalHoldout) -> None:
    """A retrieval evaluation in the BEIR layout: corpus.jsonl, queries.jsonl, qrels.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", holdout.corpus), ("queries", holdout.queries)):
        lines = (json.dumps({"_id": key, "text": text}, ensure_ascii=False) for key, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    judgements = (f"{q}\t{d}\t1\n" for q, found in holdout.relevant.items() for d in sorted(found))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judgements), encoding="utf-8")
