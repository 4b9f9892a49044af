"""Streamed Parquet: the rows, counts and holdouts of a copy, and each row group read once in a shuffled pass."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from piccolo_st.batches import BatchPlan
from piccolo_st.batches.windows import row_groups
from piccolo_st.data import Mixture, StreamedTable, load_mixture
from piccolo_st.errors import MixtureError
from tests.helpers.hub_server import HubServer


def write(folder: Path, name: str = "rows", shards: int = 3) -> None:
    """Shards of 100 rows in groups of 30: lists of positives and negatives, some rows and items faulty."""
    for shard in range(shards):
        rows = [f"{shard} {row}" for row in range(100)]
        table = {
            "query": [f"问题{row}" if place % 11 else "" for place, row in enumerate(rows)],
            "positive": [[f"答{row}", f"又答{row}", ""][: 1 + place % 3] for place, row in enumerate(rows)],
            "negative": [[f"反例{row}"] * (place % 3) for place, row in enumerate(rows)],
            "other": list(range(100)),
        }
        pq.write_table(pa.table(table), folder / f"{name}-{shard}.parquet", row_group_size=30)


def load(folder: Path, **settings: Any) -> Mixture:
    datasets = {"faq": {"source": "rows-*.parquet", "task": "retrieval", **settings}}
    if "others" in settings:
        del datasets["faq"]["others"]
        datasets["others"] = settings["others"]
    return load_mixture({"root": str(folder), "datasets": datasets}, cache_dir=folder / "cache")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_rows": 155},
        {"max_rows": 60},
        {"positives": "list"},
        {"positives": "first"},
        {"holdout": {"queries": 10, "min_corpus": 10}},
        {"others": {"source": "rows-1.parquet", "task": "retrieval", "holdout": {"queries": 10, "min_corpus": 10}}},
    ],
    ids=str,
)
def test_a_stream_has_the_rows_and_the_counts_of_a_copy(settings: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path)
    copied, streamed = load(tmp_path, **settings), load(tmp_path, **settings, streaming=True)
    copy, stream = copied.train["faq"], streamed.train["faq"]
    assert isinstance(stream.data, StreamedTable) and not isinstance(copy.data, StreamedTable)
    assert stream.features == copy.features and stream.column_names == copy.column_names
    assert stream.to_list() == list(stream) == copy.to_list()
    assert streamed.report.as_dict() == copied.report.as_dict()
    assert streamed.holdouts == copied.holdouts
    rejects = [m.report.datasets["faq"].rejects_path.read_text("utf-8").splitlines() for m in (copied, streamed)]
    assert sorted(rejects[0]) == sorted(rejects[1]) and rejects[0]


def test_a_stream_is_a_dataset_like_any_other(tmp_path: Path) -> None:
    write(tmp_path)
    copy, stream = load(tmp_path).train["faq"], load(tmp_path, streaming=True).train["faq"]
    rows = np.random.default_rng(0).integers(0, len(copy), 70)
    asked = [
        lambda d: d[rows],
        lambda d: d[-1],
        lambda d: d[5:70],
        lambda d: d.with_format("arrow")[rows].to_pydict(),
        lambda d: list(d["query"]),
        lambda d: list(d.iter(37)),
        lambda d: d.select([30, 2, 5]).to_list(),
        lambda d: d.select(range(20, 90)).to_list(),
        lambda d: d.select_columns(["positive"])[:50],
        lambda d: d.remove_columns("negative")[:50],
        lambda d: d.rename_column("query", "anchor").filter(lambda row: row["anchor"] < "问题1").to_list(),
        lambda d: d.map(lambda row: {"query": row["query"] + "?"}, keep_in_memory=True).to_list(),
        lambda d: pickle.loads(pickle.dumps(d))[3],
    ]
    for ask in asked:
        assert ask(stream) == ask(copy)


def test_a_moved_source_is_read_where_it_is_now(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a")
    before = load_mixture(_at(tmp_path / "a"), cache_dir=tmp_path / "cache").train["faq"].to_list()
    (tmp_path / "a").rename(tmp_path / "b")
    assert load_mixture(_at(tmp_path / "b"), cache_dir=tmp_path / "cache").train["faq"].to_list() == before


def _at(folder: Path) -> dict[str, Any]:
    spec = {"source": "rows-*.parquet", "task": "retrieval", "streaming": True}
    return {"root": str(folder), "datasets": {"faq": spec}}


def test_other_rows_than_were_checked_are_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    stream = load(tmp_path, streaming=True).train["faq"]
    table = pq.read_table(tmp_path / "rows-0.parquet")
    pq.write_table(table.slice(0, 40), tmp_path / "rows-0.parquet", row_group_size=30)
    with pytest.raises(MixtureError, match="must stay as it is while it is trained on, got other rows"):
        stream.to_list()


def test_a_shuffled_pass_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamedTable, "window_rows", 100)
    write(tmp_path, shards=8)
    stream = load(tmp_path, streaming=True).train["faq"]
    groups, table = row_groups(stream), stream.data
    assert groups is not None and len(groups.rows) == 32 and groups.window == 100
    reads, read = [], table._read
    monkeypatch.setattr(table, "_read", lambda group: reads.append(group) or read(group))
    plan = BatchPlan([len(stream)], 8, groups=[groups], seed=3)
    seen = [plan.step(epoch, step).rows for epoch in range(2) for step in range(plan.steps())]
    passes = np.concatenate(seen[: plan.steps()]), np.concatenate(seen[plan.steps() :])
    for rows in passes:
        assert len(set(rows.tolist())) == len(rows) and (np.sort(rows) != rows).any()
    assert (passes[0] != passes[1]).any()
    counted = Dataset(table)
    for rows in seen[: plan.steps()]:
        assert len(counted[rows]["query"]) == 8
    assert len(reads) == len(set(reads)) == 32


READ = """
import json, sys
from piccolo_st.data import load_mixture
datasets = {"faq": {"source": "me/rows", "task": "retrieval", "streaming": True}}
try:
    print(json.dumps(load_mixture({"datasets": datasets}, cache_dir=sys.argv[1]).train["faq"].to_list()))
except ValueError as error:
    print(error)
"""


def test_shards_of_the_hub_are_read_where_they_lie(tmp_path: Path) -> None:
    write(tmp_path)
    shards = {f"data/train-{n}-of-3.parquet": (tmp_path / f"rows-{n}.parquet").read_bytes() for n in range(3)}
    with HubServer() as hub:
        hub.add_repo("me/rows", shards, kind="dataset")

        def read(home: str) -> str:
            environment = {**os.environ, **hub.environment(tmp_path / home), "HF_HUB_OFFLINE": "0"}
            command = [sys.executable, "-c", READ, str(tmp_path / home)]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

        assert json.loads(read("home")) == load(tmp_path).train["faq"].to_list()
        assert not [path for path in (tmp_path / "home").rglob("*") if path.suffix == ".parquet"]  # none downloaded
        hub.add_repo("me/rows", {"data/train.jsonl": b'{"query": "a", "positive": "b"}'}, kind="dataset")
        assert "streaming of dataset 'faq' needs Parquet files, got the format .jsonl" in read("other")
