"""A run over streamed datasets ends with the weights of the run that reads the same rows from copies."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from piccolo_st.batches import HomogeneousBatchSampler
from piccolo_st.batches.windows import row_groups
from piccolo_st.config import parse_run
from piccolo_st.data import StreamedTable, streaming
from piccolo_st.data.streamed import Group
from piccolo_st.training import FinetuneConfig, TrainingRun
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import WORDS, at_step, record_rows, weights_hash

NAMES = ("one", "two", "three", "four")
STEPS, KILLED = 24, 14


def write(folder: Path, encoder: Path) -> None:
    """Four datasets of two shards in row groups of 16, with faults, and the runs that stream and that copy them."""
    for number, name in enumerate(NAMES):
        for shard in range(2):
            texts = [WORDS[(i * (number + 3) + shard) % 27 :][:4] + str(i) for i in range(60 + 8 * number)]
            rows = {"query": texts, "positive": [text[::-1] if i % 9 else "" for i, text in enumerate(texts)]}
            if name == "three":
                rows["negative"] = [[text + "反"] for text in texts]
            pq.write_table(pa.table(rows), folder / f"{name}-{shard}.parquet", row_group_size=16)
    for streamed in (True, False):
        datasets = {
            name: {"source": f"{name}-*.parquet", "task": "retrieval", "weight": 1.0 + place, "streaming": streamed}
            for place, name in enumerate(NAMES)
        }
        run = {
            "model": {"name_or_path": str(encoder)},
            "data": {"mixture": {"root": str(folder), "datasets": datasets}, "batch_size": 4, "mixing": "weights"},
            "train": {"max_steps": STEPS, "logging_steps": 4, "save_strategy": "steps", "save_steps": 6,
                      "learning_rate": 1e-3},
        }  # fmt: skip
        (folder / f"{streamed}.yaml").write_text(yaml.safe_dump(run, allow_unicode=True))


def train(rank: int, world: int, folder: str, output: str, streaming: bool, killed: int | None) -> Any:
    """Train on one rank: the hash of the weights, and the rows of each step."""

    def built(streaming: bool) -> TrainingRun:
        path = Path(folder) / f"{streaming}.yaml"
        return TrainingRun(parse_run([str(path), "--train.output_dir", f"{output}-{streaming}"], FinetuneConfig, path))

    run = built(streaming)
    found = [isinstance(dataset.data, StreamedTable) for dataset in run.train_dataset.values()]
    assert found == [streaming] * 4
    if not streaming:  # the same order as of the streamed run, from copies
        groups = [row_groups(dataset) for dataset in built(True).train_dataset.values()]
        sampler = run.config.train.multi_dataset_batch_sampler
        assert all(groups) and isinstance(sampler, partial) and sampler.func is HomogeneousBatchSampler
        run.trainer.args.multi_dataset_batch_sampler = partial(sampler, groups=groups)
    seen = record_rows(run.trainer)
    if killed is not None:
        at_step(run.trainer, killed, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run.train()
    return weights_hash(run.trainer.model), seen


def test_a_run_says_what_it_streams_and_reads_the_beginning_for_its_card(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Group] = []
    read_again = streaming._read_again
    monkeypatch.setattr(
        streaming, "_read_again", lambda spec, columns, group: reads.append(group) or read_again(spec, columns, group)
    )
    monkeypatch.setattr(StreamedTable, "window_rows", 40)
    write(tmp_path, encoder_dir)
    path = tmp_path / "True.yaml"
    options = {"card_samples": True, "max_steps": 2, "dataloader_num_workers": 1, "output_dir": tmp_path / "run"}
    given = [f"--train.{name}={value}" for name, value in options.items()]
    run = TrainingRun(parse_run([str(path), *given], FinetuneConfig, path))
    # Of 40 groups; a thousand rows drawn from everywhere would read as many.
    assert run.model.model_card_data.widget and len(reads) <= 4 * 40
    assert "streamed   four (12 row groups), one (8 row groups), " in run.describe()
    run.train()
    assert run.trainer.state.global_step == 2


@pytest.mark.slow
def test_four_streams_on_two_ranks_killed_and_resumed_equal_the_copies(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamedTable, "window_rows", 40)  # several windows in these few rows
    write(tmp_path, encoder_dir)

    def run(output: str, streaming: bool, killed: int | None = None) -> Any:
        return run_ranks(train, 2, str(tmp_path), str(tmp_path / output), streaming, killed, timeout=280)

    copied, whole = run("copied", False), run("whole", True)
    with pytest.raises(RuntimeError, match="died without a result"):
        run("killed", True, KILLED)
    resumed = run("killed", True)
    assert {hash for hash, _ in [*copied, *whole, *resumed]} == {copied[0][0]}
    for rank in range(2):
        assert whole[rank][1] == copied[rank][1]
        assert {name for _, name, _ in whole[rank][1]} == set(NAMES)
        assert resumed[rank][1] == [row for row in whole[rank][1] if row[0] >= 12]  # what the kill left
    assert [name for _, name, _ in whole[0][1]] == [name for _, name, _ in whole[1][1]]  # one dataset a step
