"""The 35 datasets of c-mteb-35 in small: real repository ids, commits, configurations, splits and columns.

Each repository is built as ``datasets`` writes one: a README whose metadata lists the configurations, and Parquet
files. The rows are a few dozen texts of tests/helpers/evaluation_data.py.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from piccolo_st.evaluation.benchmarks import C_MTEB_35, BenchmarkTask
from piccolo_st.evaluation.tasks import mteb_task
from tests.helpers.evaluation_data import TOPICS, sentence
from tests.helpers.hub_server import HubServer

Rows = Sequence[Mapping[str, Any]]
NAMES = list(TOPICS)


def add_cmteb(hub: HubServer) -> None:
    """Put the repository of every task on the Hub, at the commit that mteb asks for."""
    for number, task in enumerate(C_MTEB_35.tasks):
        known = mteb_task(task)
        splits = list(known.metadata.eval_splits)
        tables = _TABLES[task.type](random.Random(number), task, splits)
        path, sha = known.metadata.dataset["path"], known.metadata.revision
        hub.add_repo(path, repository(tables), kind="dataset", sha=sha)


def repository(tables: Mapping[str, Mapping[str, Rows]]) -> dict[str, bytes]:
    """Configuration -> split -> rows, as the files of a dataset repository."""
    files: dict[str, bytes] = {}
    configs = []
    for config, splits in tables.items():
        folder = "data" if config == "default" else config
        data_files = []
        for split, rows in splits.items():
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
            files[f"{folder}/{split}-00000-of-00001.parquet"] = buffer.getvalue()
            data_files.append({"split": split, "path": f"{folder}/{split}-*"})
        configs.append({"config_name": config, "data_files": data_files})
    files["README.md"] = f"---\n{yaml.safe_dump({'configs': configs}, sort_keys=False)}---\n".encode()
    return files


def _sentences(rng: random.Random, count: int, length: tuple[int, int] = (6, 20)) -> list[tuple[str, int]]:
    """Texts and the number of their topic, every topic equally often."""
    return [(sentence(rng, NAMES[i % len(NAMES)], rng.randint(*length)), i % len(NAMES)) for i in range(count)]


def _pairs(rng: random.Random, count: int) -> list[tuple[str, str, int]]:
    """Two texts, and 1 when they have one topic."""
    pairs = []
    for index in range(count):
        first = rng.choice(NAMES)
        second = first if index % 2 else rng.choice([name for name in NAMES if name != first])
        pairs.append((sentence(rng, first, 10), sentence(rng, second, 12), index % 2))
    return pairs


def _search(rng: random.Random, task: BenchmarkTask, splits: list[str]) -> dict[str, dict[str, Rows]]:
    (split,) = splits
    documents = [text for text, _ in _sentences(rng, 32, (10, 60))]
    judged = range(12)
    tables: dict[str, dict[str, Rows]] = {
        "corpus": {split: [{"_id": f"d{i}", "text": text, "title": ""} for i, text in enumerate(documents)]},
        "queries": {split: [{"_id": f"q{i}", "text": documents[i][: len(documents[i]) // 2]} for i in judged]},
        "default": {split: [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in judged]},
    }
    if task.type == "Reranking":
        ranked = [[f"d{i}", *(f"d{rng.randrange(12, 32)}" for _ in range(6))] for i in judged]
        tables["top_ranked"] = {
            split: [{"query-id": f"q{i}", "corpus-ids": list(dict.fromkeys(ids))} for i, ids in enumerate(ranked)]
        }
    return tables


def _sts(rng: random.Random, task: BenchmarkTask, splits: list[str]) -> dict[str, dict[str, Rows]]:
    extra = {} if task.subset == "default" else {"lang": task.subset}
    return {
        "default": {
            split: [
                {"sentence1": a, "sentence2": b, "score": 1.0 + 2.0 * same + rng.random(), **extra}
                for a, b, same in _pairs(rng, 40)
            ]
            for split in splits
        }
    }


def _pair_classification(rng: random.Random, task: BenchmarkTask, splits: list[str]) -> dict[str, dict[str, Rows]]:
    """All pairs as lists in one row."""
    tables = {}
    for split in splits:
        first, second, labels = zip(*_pairs(rng, 40), strict=True)
        tables[split] = [{"sent1": list(first), "sent2": list(second), "labels": list(labels)}]
    return {"default": tables}


def _classification(rng: random.Random, task: BenchmarkTask, splits: list[str]) -> dict[str, dict[str, Rows]]:
    massive = task.name.startswith("Massive")
    extra = {"lang": task.subset} if massive else {}
    config = task.subset if task.name == "AmazonReviewsClassification" else "default"
    binary = task.name in ("Waimai", "OnlineShopping", "JDReview")
    return {
        config: {
            split: [
                {"text": text, "label": NAMES[topic] if massive else topic % 2 if binary else topic, **extra}
                for text, topic in _sentences(rng, 160 if split == "train" else 40)
            ]
            for split in ["train", *splits]
        }
    }


def _clustering(rng: random.Random, task: BenchmarkTask, splits: list[str]) -> dict[str, dict[str, Rows]]:
    """Three sets, each a row of texts and their labels."""
    tables = {}
    for split in splits:
        sets = [_sentences(rng, 40) for _ in range(3)]
        tables[split] = [
            {"sentences": [text for text, _ in rows], "labels": [str(topic) for _, topic in rows]} for rows in sets
        ]
    return {"default": tables}


_TABLES = {
    "Classification": _classification,
    "Clustering": _clustering,
    "PairClassification": _pair_classification,
    "Reranking": _search,
    "Retrieval": _search,
    "STS": _sts,
}
