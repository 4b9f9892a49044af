"""Time and memory of preparing data, at growing sizes.

    pytest -m benchmark -s tests/benchmarks/test_data_benchmark.py
    PICCOLO_ROWS=100000,1000000,10000000 pytest -m benchmark -s tests/benchmarks/test_data_benchmark.py

The pairs are generated: 5% of the rows are exact duplicates, 5% near ones, 0.1% hold a text of an evaluation set.

Every step runs in a process of its own. Seconds of the processor are printed beside those of the clock, which a busy
machine stretches. Memory is anonymous memory (RssAnon): files of a memory-mapped dataset count
as resident too, but the system takes those pages back when it needs them. ``index`` and ``stream`` are ``load`` and
``read`` of a streamed dataset.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from piccolo_st.data.mixture import load_mixture
from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.miner import mine_negatives
from piccolo_st.tables import table

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]

NAMES = [
    "load, cold",
    "load, warm",
    "read 1,000 batches of 1,024",
    "index, cold",
    "stream 1,000 batches of 1,024",
    "check",
    "dedup",
    "filter",
]
SIZES = [int(size) for size in os.environ.get("PICCOLO_ROWS", "100000,1000000").split(",")]

MEASURED = """
import json, re, sys, threading, time, typing
peak = 0
def watch():
    global peak
    while True:
        found = re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())
        peak = max(peak, int(found[1]) // 1024)
        time.sleep(0.05)
step, source, tests, output, cache = sys.argv[1:]
from piccolo_st.data.mixture import load_mixture
from piccolo_st.curation.steps import PrepareConfig, PrepareData, run_step
threading.Thread(target=watch, daemon=True).start()
config = {"datasets": {
    "pairs": {"source": source, "task": "retrieval", "streaming": step in ("index", "stream")},
    "tests": {"source": tests, "task": "retrieval", "use": "evaluate"},
}}
start, begin, rows = time.perf_counter(), time.process_time(), None
if step in ("load", "index"):
    load_mixture(config, cache_dir=cache)
elif step in ("read", "stream"):
    import itertools
    from piccolo_st.batches.reading import HomogeneousDataset
    from piccolo_st.batches.sampler import HomogeneousBatchSampler
    train = HomogeneousDataset([load_mixture(config, cache_dir=cache).train["pairs"]])
    sampler = HomogeneousBatchSampler(train, batch_size=1024, drop_last=True)
    start, begin = time.perf_counter(), time.process_time()  # without torch's import
    rows = sum(len(train.__getitems__(batch)) for batch in itertools.islice(sampler, 1000))
else:
    settings = typing.get_type_hints(PrepareConfig)[step]()
    run_step(step, PrepareData(config, output, cache), settings, say=lambda line: None)
print(json.dumps([time.perf_counter() - start, time.process_time() - begin, peak, rows]))
"""


def _texts(generator: np.random.Generator, count: int, shortest: int, longest: int) -> pa.Array:
    """Texts of Chinese characters with frequencies that fall off as in language."""
    lengths = generator.integers(shortest, longest + 1, count)
    codes = 0x4E00 + (generator.pareto(1.0, lengths.sum()) * 40).astype(np.int64) % 4000
    text = codes.astype(np.uint32).tobytes().decode("utf-32-le").encode()
    offsets = (np.concatenate([[0], np.cumsum(lengths)]) * 3).astype(np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


def pairs(generator: np.random.Generator, count: int) -> pa.Table:
    return pa.table({"query": _texts(generator, count, 6, 20), "positive": _texts(generator, count, 15, 60)})


def _write_pairs(folder: Path, rows: int, tests: pa.Table) -> None:
    """Of every 1,000 rows: 50 exact duplicates, 50 with a character more in each text, one with the text of a test."""
    folder.mkdir()
    for number, start in enumerate(range(0, rows, 1_000_000)):
        count = min(1_000_000, rows - start)
        share, leaks = count // 20, count // 1000
        own = pairs(np.random.default_rng(number), count - 2 * share - leaks)
        longer = [pc.binary_join_element_wise(column, "的", "") for column in own.slice(share, share).columns]
        leaked = own.slice(2 * share, leaks).set_column(
            1, "positive", tests["positive"].take(pa.array(np.arange(leaks) % len(tests)))
        )
        near = pa.table(longer, names=own.column_names)
        table = pa.concat_tables([own, own.slice(0, share), near, leaked]).combine_chunks()
        pq.write_table(table, folder / f"part-{number:03d}.parquet", row_group_size=50_000)


def test_time_and_memory_of_the_steps(tmp_path: Path) -> None:
    lines: list[list[Any]] = []
    tests = pairs(np.random.default_rng(1 << 20), 2000)
    pq.write_table(tests, tmp_path / "tests.parquet")
    for rows in SIZES:
        source, output = tmp_path / str(rows), tmp_path / f"out-{rows}"
        _write_pairs(source, rows, tests)
        for name in NAMES:
            arguments = [
                re.split(r"\W", name)[0],
                f"{source}/*.parquet",
                str(tmp_path / "tests.parquet"),
                str(output),
                str(tmp_path / f"cache-{rows}"),
            ]
            ran = subprocess.run(
                [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, ran.stderr
            seconds, processor, peak, read = json.loads(ran.stdout.splitlines()[-1])
            millions = (read or rows) / 1e6
            lines.append([name, rows, seconds, seconds / millions, processor / millions, peak])
            lines.sort(key=lambda line: NAMES.index(line[0]))
            print(*lines, sep="\n", flush=True) if rows > 1_000_000 else None
        found = json.loads((output / "dedup" / "report.json").read_text())["datasets"]["pairs"]
        assert found["exact duplicate"] == rows // 20
        assert rows // 20 * 0.99 <= found["near duplicate"] <= rows // 20
        assert found["evaluation text"] == rows // 1000
    print("\n" + table(["step", "rows", "seconds", "a million rows", "of the processor", "peak MiB"], lines))


def test_time_of_the_dictionaries_from_file_to_negatives(tmp_path: Path) -> None:
    pytest.importorskip("jionlp")
    datasets = {name: {"source": f"jionlp:{name}", "task": "retrieval"} for name in ("words", "sayings", "characters")}
    lines: list[list[Any]] = []
    for name in ("load, cold", "load, warm"):
        start = time.perf_counter()
        mixture = load_mixture({"datasets": datasets}, cache_dir=tmp_path)
        lines.append([name, sum(map(len, mixture.train.values())), time.perf_counter() - start])
    for name, dataset in mixture.train.items():
        for search in ("positives", "queries"):
            start = time.perf_counter()
            mine_negatives(dataset, "lexical", MiningSettings(num_negatives=4, range_max=30, search=search))
            lines.append([f"mine {name} among {search}", len(dataset), time.perf_counter() - start])
    print("\n" + table(["step", "rows", "seconds"], lines))
