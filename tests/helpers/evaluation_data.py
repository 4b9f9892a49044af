"""Small Chinese test sets for the evaluation tests: six local tasks in files, built from a few topics."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TOPICS = {
    "weather": "天气晴雨云风春夏秋冬冷热",
    "land": "山川河海水地红黄蓝绿",
    "animal": "猫狗鱼鸟草花树木",
    "work": "工作学法家电力进发动",
}


def sentence(rng: random.Random, topic: str, length: int) -> str:
    """A text of ``length`` characters, most of them of the topic."""
    return "".join(rng.choice(TOPICS[topic] if rng.random() < 0.8 else "的是在不了有和人这中大") for _ in range(length))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_search(folder: Path, documents: int = 24, queries: int = 8, seed: int = 0) -> Path:
    """A BEIR folder: each query shares its topic and half of its characters with its one relevant document."""
    rng = random.Random(seed)
    topics = [rng.choice(list(TOPICS)) for _ in range(documents)]
    texts = [sentence(rng, topic, rng.randint(8, 40)) for topic in topics]
    write_jsonl(folder / "corpus.jsonl", ({"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)))
    halves = [text[: max(4, len(text) // 2)] for text in texts[:queries]]
    write_jsonl(folder / "queries.jsonl", ({"_id": f"q{i}", "text": text} for i, text in enumerate(halves)))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(queries))]
    (folder / "qrels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_local_tasks(folder: Path, seed: int = 0) -> Path:
    """One local task of each type; returns the YAML file."""
    rng = random.Random(seed)
    names = list(TOPICS)
    write_search(folder / "search", seed=seed)

    def pair(same: bool) -> tuple[str, str]:
        first = rng.choice(names)
        second = first if same else rng.choice([name for name in names if name != first])
        return sentence(rng, first, 10), sentence(rng, second, 12)

    def labelled(count: int) -> list[dict[str, str]]:
        topics = [names[index % len(names)] for index in range(count)]
        return [{"text": sentence(rng, topic, rng.randint(6, 16)), "label": topic} for topic in topics]

    ranking = []
    for topic in names * 2:
        others = [name for name in names if name != topic]
        positive = [sentence(rng, topic, 12) for _ in range(2)]
        negative = [sentence(rng, rng.choice(others), 12) for _ in range(4)]
        ranking.append({"query": sentence(rng, topic, 8), "positive": positive, "negative": negative})
    write_jsonl(folder / "ranking.jsonl", ranking)
    kinds = [index % 2 == 0 for index in range(40)]
    pairs = [(*pair(same), same) for same in kinds]
    sts = [{"sentence1": a, "sentence2": b, "score": 4.0 * same + rng.random()} for a, b, same in pairs]
    write_jsonl(folder / "sts.jsonl", sts)
    lines = ["sentence1,sentence2,label", *(f"{a},{b},{int(same)}" for a, b, same in pairs)]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_jsonl(folder / "train.jsonl", labelled(48))
    write_jsonl(folder / "test.jsonl", labelled(40))
    path = folder / "six.yaml"
    path.write_text(
        "tasks:\n"
        "  - {name: OwnSearch, type: Retrieval, data: search}\n"
        "  - {name: OwnRanking, type: Reranking, data: ranking.jsonl}\n"
        "  - {name: OwnSts, type: STS, data: sts.jsonl}\n"
        "  - {name: OwnPairs, type: PairClassification, data: pairs.csv}\n"
        "  - {name: OwnTopics, type: Classification, data: test.jsonl, train: train.jsonl, samples_per_label: 8, "
        "experiments: 3}\n"
        "  - {name: OwnGroups, type: Clustering, data: test.jsonl, experiments: 3}\n",
        encoding="utf-8",
    )
    return path
