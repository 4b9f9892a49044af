"""Time and memory of preparing data, at growing sizes.

    pytest -m benchmark -s tests/benchmarks/test_data_benchmark.py
    PICCOLO_ROWS=100000,1000000,10000000 pytest -m benchmark -s tests/benchmarks/test_data_benchmark.py

Every step runs in a process of its own. Memory is anonymous memory (RssAnon): files of a memory-mapped dataset count
as resident too, but the system takes those pages back when it needs them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from piccolo_st.data.mining import MiningSettings, mine_negatives
from piccolo_st.data.mixture import load_mixture
from piccolo_st.report import table

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]

NAMES = ["load, cold", "load, warm", "check", "dedup", "filter"]
SIZES = [int(size) for size in os.environ.get("PICCOLO_ROWS", "100000,1000000").split(",")]

MEASURED = """
import json, re, sys, threading, time
peak = 0
def watch():
    global peak
    while True:
        found = re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())
        peak = max(peak, int(found[1]) // 1024)
        time.sleep(0.05)
step, source, output, cache = sys.argv[1:]
from piccolo_st.data.mixture import load_mixture
from piccolo_st.data.prepare.steps import STEPS, PrepareData, run_step
threading.Thread(target=watch, daemon=True).start()
config = {"datasets": {"pairs": {"source": source, "task": "retrieval"}}}
start = time.perf_counter()
if step == "load":
    load_mixture(config, cache_dir=cache)
else:
    run_step(step, PrepareData(config, output, cache), STEPS[step][1](), say=lambda line: None)
print(json.dumps([time.perf_counter() - start, peak]))
"""


def _texts(generator: np.random.Generator, count: int, shortest: int, longest: int) -> pa.Array:
    """Texts of Chinese characters with frequencies that fall off as in language."""
    lengths = generator.integers(shortest, longest + 1, count)
    codes = 0x4E00 + (generator.pareto(1.0, lengths.sum()) * 40).astype(np.int64) % 4000
    text = codes.astype(np.uint32).tobytes().decode("utf-32-le").encode()
    offsets = (np.concatenate([[0], np.cumsum(lengths)]) * 3).astype(np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


def _write_pairs(folder: Path, rows: int) -> None:
    folder.mkdir()
    for number, start in enumerate(range(0, rows, 1_000_000)):
        generator, count = np.random.default_rng(number), min(1_000_000, rows - start)
        columns = {"query": _texts(generator, count, 6, 20), "positive": _texts(generator, count, 15, 60)}
        pq.write_table(pa.table(columns), folder / f"part-{number:03d}.parquet")


def test_time_and_memory_of_the_steps(tmp_path: Path) -> None:
    lines: list[list[Any]] = []
    for rows in SIZES:
        source = tmp_path / str(rows)
        _write_pairs(source, rows)
        for name in NAMES:
            arguments = [
                name.partition(",")[0],
                f"{source}/*.parquet",
                str(tmp_path / f"out-{rows}"),
                str(tmp_path / f"cache-{rows}"),
            ]
            ran = subprocess.run(
                [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, ran.stderr
            seconds, peak = json.loads(ran.stdout.splitlines()[-1])
            lines.append([name, rows, seconds, seconds / rows * 1e6, peak])
            lines.sort(key=lambda line: NAMES.index(line[0]))
    print("\n" + table(["step", "rows", "seconds", "seconds a million rows", "peak MiB"], lines))


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
