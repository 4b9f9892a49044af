"""The step ``dedup`` beside datatrove, text-dedup and semhash, which live in an environment of their own.

    python -m venv peers && peers/bin/pip install datatrove[io,processing] text-dedup semhash
    PICCOLO_PEERS=peers/bin/python PICCOLO_ENCODER=FOLDER PICCOLO_ROWS=20000 \
        pytest -m benchmark -s tests/benchmarks/test_dedup_benchmark.py

The pairs are generated: of every 100 rows 5 are exact copies, 5 have a character more in each text. MinHash is cut into
the same bands everywhere; datatrove and text-dedup believe it, piccolo_st compares each candidate exactly. semhash
compares embeddings of an encoder with `model.safetensors` (PICCOLO_ENCODER), and is left out without one. Each runs
alone in one process, from the rows on disk to the rows on disk. Rows a second a core are of the processor's time, which
a busy machine stretches less than the clock's. Seen to run with datatrove 0.10.1, text-dedup 0.4.0 and semhash 0.5.0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from piccolo_st.curation.shingles import bands_for
from piccolo_st.tables import table
from tests.benchmarks import dedup_contenders
from tests.benchmarks.test_data_benchmark import pairs

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]

PEERS, ENCODER = os.environ.get("PICCOLO_PEERS"), os.environ.get("PICCOLO_ENCODER")
COUNT = int(os.environ.get("PICCOLO_ROWS", "20000"))
NEAR, EXACT = ["piccolo_st", "datatrove", "text-dedup", "semhash"], ["piccolo_st", "datatrove", "text-dedup"]


def write(folder: Path, rows: int) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Write the rows; the pairs that are equal, and those that are nearly so."""
    share = rows // 20
    own = pairs(np.random.default_rng(0), rows - 2 * share)
    longer = [pc.binary_join_element_wise(column, "的", "") for column in own.slice(share, share).columns]
    rows_of_all = pa.concat_tables([own, own.slice(0, share), pa.table(longer, names=own.column_names)])
    pq.write_table(rows_of_all, folder / "rows.parquet")
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(rows_of_all.to_pylist()):
            record = {"id": str(number), "text": " ".join(row["query"] + row["positive"])}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    copies = {(row, len(own) + row) for row in range(share)}
    return copies, {(share + row, len(own) + share + row) for row in range(share)}


@pytest.mark.skipif(PEERS is None, reason="PICCOLO_PEERS names no python")
@pytest.mark.parametrize("kind", ["near", "exact"])
def test_duplicates_beside_the_peers(kind: str, tmp_path: Path) -> None:
    assert bands_for(dedup_contenders.SIMILARITY, 64) == (dedup_contenders.BANDS, dedup_contenders.ROWS)
    copies, near = write(tmp_path, COUNT)
    planted = copies | near if kind == "near" else copies
    lines: list[list[Any]] = []
    ours: set[tuple[int, int]] = set()
    for name in NEAR if kind == "near" else EXACT:
        if name == "semhash" and ENCODER is None:
            continue
        python = sys.executable if name == "piccolo_st" else str(PEERS)
        shown = name if kind == "near" else f"{name}, exact"
        arguments = [dedup_contenders.__file__, shown, str(tmp_path), ENCODER or ""]
        done = subprocess.run([python, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        seconds, processor, peak, found = json.loads(done.stdout.splitlines()[-1])
        removed = {tuple(pair) for pair in found}
        ours = ours or removed
        speed = f"{COUNT / processor:,.0f}"
        lines.append(
            [shown, len(removed), len(removed & ours), len(removed & planted), seconds, processor, speed, peak]
        )
    header = ["", "pairs", "of ours", "of the planted", "seconds", "of the processor", "rows a second a core", "MiB"]
    print(f"\n{COUNT:,} rows, {len(planted):,} pairs planted\n" + table(header, lines))
    assert len(ours & planted) >= 0.99 * len(planted)
