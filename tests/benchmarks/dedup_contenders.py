"""What test_dedup_benchmark.py compares: each finds the duplicates of the same rows in a process of its own.

    python dedup_contenders.py CONTENDER FOLDER [ENCODER]

FOLDER holds the rows as rows.parquet (query, positive) and rows.jsonl (id, text: both, with a blank between characters,
so that n-grams of words are n-grams of characters). The last line printed is JSON: seconds, seconds of the processor,
the peak of anonymous memory above that of the imports in MiB, and for each row that goes the row that it repeats. Peers
import nothing of this package, and run with their own Python.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BANDS, ROWS, SHINGLE, SIMILARITY = 12, 5, 3, 0.8
"""The LSH of MinHash, as this package's for a similarity of 0.8 and 64 permutations; see curation/shingles.py."""

Pairs = list[tuple[int, int]]
Contender = tuple[Callable[[], object], Callable[[], Pairs]]
"""What is timed, and what then tells what was found."""


def own(folder: Path, near: float | None) -> Contender:
    """The step ``dedup``, with the rows loaded before, as it finds them after another step."""
    from piccolo_st.curation.duplicates import DedupSettings
    from piccolo_st.curation.steps import PrepareData, run_step
    from piccolo_st.data import load_mixture

    config = {"datasets": {"rows": {"source": str(folder / "rows.parquet"), "task": "retrieval"}}}
    load_mixture(config, cache_dir=folder / "cache")

    data = PrepareData(config, str(folder / "own"), str(folder / "cache"))

    def found() -> Pairs:
        rejects = [row for path in (folder / "own" / "dedup" / "rejects").glob("*.jsonl") for row in _lines(path)]
        kept = [re.search(r"of row (\d+)", row["reason"]) for row in rejects]
        return [(int(of[1]) - 1, row["row"] - 1) for row, of in zip(rejects, kept, strict=True) if of]

    return lambda: run_step("dedup", data, DedupSettings(near=near), say=lambda line: None), found


def datatrove(folder: Path, near: bool) -> Contender:
    """datatrove's MinHash pipeline, or its exact one, on one worker."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.exact_dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
    )
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Blanks(WordTokenizer):  # its own for blanks needs spaCy, and is slower
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        sent_tokenize = span_tokenize = None

    out = {name: str(folder / "datatrove" / name) for name in ("sigs", "buckets", "gone", "kept", "excluded")}
    reader = JsonlReader(str(folder), glob_pattern="rows.jsonl")
    excluded = JsonlWriter(out["excluded"], compression=None)
    if near:
        config = MinhashConfig(SHINGLE, BANDS, ROWS, hash_config=HashConfig(precision=64))
        ends: list[Any] = [
            [reader, MinhashDedupSignature(out["sigs"], config, language=Blanks())],
            [MinhashDedupBuckets(out["sigs"], out["buckets"], config=config)],
            [MinhashDedupCluster(out["buckets"], out["gone"], config, save_cluster_id=True)],
            [reader, MinhashDedupFilter(out["gone"], excluded, load_cluster_ids=True),
             JsonlWriter(out["kept"], compression=None)],
        ]  # fmt: skip
        tasks = [1, BANDS, 1, 1]
    else:
        exact = ExactDedupConfig(lambda document: document.text, hash_config=HashConfig(precision=64))
        ends = [
            [reader, ExactDedupSignature(out["sigs"], exact)],
            [ExactFindDedups(out["sigs"], out["gone"], exact)],
            [reader, ExactDedupFilter(out["gone"], exact, excluded), JsonlWriter(out["kept"], compression=None)],
        ]
        tasks = [1, 1, 1]

    def run() -> None:
        for number, (pipeline, count) in enumerate(zip(ends, tasks, strict=True)):
            logs = str(folder / "datatrove" / f"logs-{number}")
            LocalPipelineExecutor(pipeline, tasks=count, workers=1, logging_dir=logs).run()

    def found() -> Pairs:
        records = [row for name in ("kept", "excluded") for path in Path(out[name]).glob("*") for row in _lines(path)]
        return _of_groups((row["metadata"].get("minhash_cluster_id", row["text"]), int(row["id"])) for row in records)

    return run, found


def text_dedup(folder: Path, near: bool) -> Contender:
    """text-dedup's command ``minhash`` or ``exact_hash``, with one process."""
    if near:
        from text_dedup import minhash as module

        options = ["--ngram", SHINGLE, "--min_length", 1, "--num_perm", BANDS * ROWS, "--b", BANDS, "--r", ROWS]
    else:
        from text_dedup import exact_hash as module

        options = []
    places = ["--path", "json", "--data_files", folder / "rows.jsonl", "--split", "train", "--column", "text"]
    places += ["--cache_dir", folder / "text_dedup-cache", "--output", folder / "text_dedup", "--num_proc", 1]

    def found() -> Pairs:
        if near:
            return _of_groups((module.uf.find(row), row) for row in list(module.uf.parent))
        from datasets import load_from_disk

        kept, rows = set(load_from_disk(str(folder / "text_dedup"))["id"]), _lines(folder / "rows.jsonl")
        first = {row["text"]: int(row["id"]) for row in reversed(rows)}
        return [(first[row["text"]], int(row["id"])) for row in rows if row["id"] not in kept]

    return lambda: module.main([str(one) for one in [*places, *options, "--debug"]], standalone_mode=False), found


def semhash(folder: Path, encoder: str) -> Contender:
    """semhash with a static model of the encoder's word embeddings: near by meaning, at its own threshold of 0.9."""
    from model2vec import StaticModel
    from safetensors.numpy import load_file
    from semhash import SemHash
    from tokenizers import Tokenizer

    weights = load_file(str(Path(encoder) / "model.safetensors"))
    vectors = next(value for name, value in weights.items() if name.endswith("word_embeddings.weight"))
    model = StaticModel(vectors.astype("float32"), Tokenizer.from_file(str(Path(encoder) / "tokenizer.json")))

    results: list[Any] = []

    def run() -> None:
        records = [{**row, "text": row["text"].replace(" ", "")} for row in _lines(folder / "rows.jsonl")]
        results.append(SemHash.from_records(records, columns=["text"], model=model).self_deduplicate())

    return run, lambda: [(int(one.duplicate_of["id"]), int(one.record["id"])) for one in results[0].filtered]


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _of_groups(rows: Any) -> Pairs:
    """Each row of a group, its first one aside, beside the first one; of (group, row)."""
    groups: dict[Any, list[int]] = {}
    for group, row in rows:
        if group != -1:
            groups.setdefault(group, []).append(row)
    return [(min(group), row) for group in groups.values() for row in group if row != min(group)]


def main(name: str, folder: Path, encoder: str = "") -> None:
    contenders: dict[str, Callable[[], Contender]] = {
        "piccolo_st": lambda: own(folder, SIMILARITY),
        "piccolo_st, exact": lambda: own(folder, None),
        "datatrove": lambda: datatrove(folder, True),
        "datatrove, exact": lambda: datatrove(folder, False),
        "text-dedup": lambda: text_dedup(folder, True),
        "text-dedup, exact": lambda: text_dedup(folder, False),
        "semhash": lambda: semhash(folder, encoder),
    }
    run, found = contenders[name]()
    peak = before = _memory()

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, _memory())
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    start, begin = time.perf_counter(), _processor()
    run()
    measured = [time.perf_counter() - start, _processor() - begin, peak - before]
    print("\n" + json.dumps([*measured, found()]))


def _memory() -> int:
    """Anonymous memory of this process in MiB."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) // 1024 if found else 0


def _processor() -> float:
    """Seconds of the processor, of this process and of those that it waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
