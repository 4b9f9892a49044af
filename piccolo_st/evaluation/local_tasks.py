"""Files of one's own as mteb tasks: declared in YAML, read without a network, evaluated and cached like any other.

    tasks:
      - {name: FaqSearch, type: Retrieval, data: faq}                 # BEIR folder: qrels.tsv or qrels/test.tsv
      - {name: FaqRanking, type: Reranking, data: ranking.jsonl}      # query, positive (list), negative (list)
      - {name: Similarity, type: STS, data: sts.tsv}                  # sentence1, sentence2, score
      - {name: Duplicates, type: PairClassification, data: pairs.csv} # sentence1, sentence2, label
      - {name: Topics, type: Classification, data: test.jsonl, train: train.jsonl, columns: {label: topic}}
      - {name: TopicGroups, type: Clustering, data: test.jsonl}       # text, label

Paths start at the folder of the YAML file. Formats are those of a training mixture (JSON lines, JSON, CSV, TSV,
Parquet, Arrow, compressed or not). The revision of a task is a hash of what its files hold and of its declaration, so
results are computed again when either changes, and not where the files lie elsewhere. A row that cannot be used is an
error with its file and line: scores over part of a test set would be called by its name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.get_tasks import TASK_LIST

from piccolo_st.config import load_yaml
from piccolo_st.data import locate
from piccolo_st.errors import InputError
from piccolo_st.evaluation.benchmarks import BenchmarkTask, task_by_type
from piccolo_st.evaluation.local_types import CLASSES, LocalTaskSpec, dataset_spec
from piccolo_st.schema import build


def load_local_tasks(path: Path) -> list[tuple[BenchmarkTask, AbsTask]]:
    """The tasks of a file: for each its definition and an mteb task object, whose data is read when it is needed.

    Raises:
        InputError: the file is not as the module docstring says; the message names the entry and the key.
    """
    content = load_yaml(path)
    entries = content.get("tasks") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(entries, list):
        held = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path} must hold one key, `tasks`, with a list of tasks, got {held}")
    specs = [build(LocalTaskSpec, entry, f"task {number} of {path}") for number, entry in enumerate(entries, start=1)]
    taken = {task.metadata.name for task in TASK_LIST}
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1 or name in taken or not re.fullmatch(r"[\w.-]+", name):
            raise InputError(
                f"the name of a task of {path} must be letters, digits, '-', '_' and '.', occur once and be none of "
                f"mteb's own, got {name!r}{' twice' if count > 1 else ''}"
            )
    definitions = [task_by_type(spec.name, spec.type, spec.split) for spec in specs]
    return [
        (definition, _task(spec, definition, path.parent)) for definition, spec in zip(definitions, specs, strict=True)
    ]


def _task(spec: LocalTaskSpec, definition: BenchmarkTask, root: Path) -> AbsTask:
    metadata = TaskMetadata(
        name=spec.name,
        description=f"local task read from {spec.data}",
        type=spec.type,
        category="t2c" if spec.type in ("Classification", "Clustering") else "t2t",
        eval_splits=[spec.split],
        eval_langs=[spec.language],
        main_score=definition.metric,
        dataset={"path": f"local/{spec.name}", "revision": _revision(spec, root)},
    )
    members: dict[str, object] = {"metadata": metadata, "spec": spec, "root": root}
    if spec.type == "Classification":
        members |= {"samples_per_label": spec.samples_per_label, "n_experiments": spec.experiments}
    elif spec.type == "Clustering":
        members |= {"n_clusters": spec.experiments}
    return type(spec.name, (CLASSES[spec.type],), members)()


def _revision(spec: LocalTaskSpec, root: Path) -> str:
    declared = {**asdict(spec), "data": None, "train": None}
    digest = hashlib.sha256(json.dumps(declared, sort_keys=True, ensure_ascii=False, default=dict).encode())
    for source in filter(None, (spec.data, spec.train)):
        for file in locate(dataset_spec(spec, source), root).files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:40]
