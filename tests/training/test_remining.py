"""A run whose negatives change: what its batches hold, on any number of ranks, and after it was killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from piccolo_st.config import parse_run
from piccolo_st.distributed import get_rank
from piccolo_st.errors import InputError
from piccolo_st.hashing import text_ids
from piccolo_st.releasing import RunRecord
from piccolo_st.training import FinetuneConfig, TrainingRun
from tests.helpers.forked import kill
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import ZERO1, make_datasets, stop_after, weights_hash

# Of 18 optimizer steps, the last 10 read what was judged after 4, 8 and 12.
REMINING = {"every": 4, "share": 1.0, "decline": 1.01, "ceiling": 2.0}


def configuration(folder: Path, encoder: Path, settings: Mapping[str, Any]) -> Path:
    """A run of three epochs over 48 rows, 8 a step, with two mined negatives each."""
    rows = make_datasets(48)["pairs"].to_list()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    content: dict[str, Any] = {
        "model": {"name_or_path": str(encoder)},
        "data": {
            "mixture": {"datasets": {"faq": {"source": str(folder / "rows.jsonl"), "task": "retrieval"}}},
            "batch_size": 8,
            "mining_model": "self",
            "mining": {"num_negatives": 2, "relative_margin": None},
            "remining": REMINING,
        },
        "loss": {"temperature": 0.05},
        "train": {"output_dir": str(folder / "run"), "num_train_epochs": 3, "learning_rate": 1e-3,
                  "logging_steps": 6, "save_steps": 5, "cpu_threads": 1, "disable_tqdm": True},
    }  # fmt: skip
    for key, value in settings.items():
        section, name = key.split(".")
        content[section][name] = value
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    return path


def build(path: Path) -> TrainingRun:
    return TrainingRun(parse_run([str(path)], FinetuneConfig, path))


def train(folder: Path, encoder: Path, stop: int | None = None, **settings: Any) -> tuple[TrainingRun, list[Any]]:
    """The run, and of each of its micro-steps (optimizer step, rows, ids of the negatives of each row)."""
    folder.mkdir(exist_ok=True)
    run, seen = build(configuration(folder, encoder, settings)), []
    trainer: Any = run.trainer
    stock = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ids: list[list[int]] = [[] for _ in inputs["row_ids"]]
        for owner, text in zip(inputs["negative_owner"].tolist(), inputs["negative_text_id"].tolist(), strict=True):
            ids[owner].append(text)
        seen.append((trainer.state.global_step, inputs["row_ids"].tolist(), ids))
        return stock(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    if stop is None:
        run.train()
    else:
        stop_after(trainer, stop)
        with run._owned:
            trainer.train()
    return run, seen


def test_the_batches_hold_what_was_judged_and_the_record_tells_it(encoder_dir: Path, tmp_path: Path) -> None:
    run, seen = train(tmp_path, encoder_dir)
    candidates = run.train_dataset["faq"]["negative"]
    assert {len(texts) for texts in candidates} == {6}
    first = {row: text_ids(texts[:2]).tolist() for row, texts in enumerate(candidates)}
    changed = [step for step, rows, ids in seen for row, own in zip(rows, ids, strict=True) if own != first[row]]
    assert changed and min(changed) >= 8 and max(changed) == 17
    negatives = run.trainer.negatives
    assert negatives is not None
    held = {row: own for step, rows, ids in seen if step >= 12 for row, own in zip(rows, ids, strict=True)}
    for row, own in held.items():
        assert own == text_ids([candidates[row][place] for place in negatives.datasets["faq"].places[row]]).tolist()
    measured = RunRecord.read(tmp_path / "run").measured
    assert measured["negatives_judged"] == 3 * 2 * 8 * 4 - 2 * 2 * 8 and measured["negatives_replaced"] > 0
    assert 0 < measured["remining_time"] < 1
    assert next(one["negatives_judged"] for one in run.trainer.state.log_history if "loss" in one) == 64


@pytest.mark.parametrize(
    "settings",
    [
        {"train.dataloader_num_workers": 1},
        {"loss.mini_batch_size": 3, "data.batch_size": 4, "train.gradient_accumulation_steps": 2},
        {"data.remining": {"rule": "hardest", "every": None, "share": 0.5}, "data.num_negatives": 1},
    ],
)
def test_a_run_that_was_stopped_goes_on_exactly(settings: dict[str, Any], encoder_dir: Path, tmp_path: Path) -> None:
    """Workers read ahead of a judgement, and what they had read is read again."""
    whole, expected = train(tmp_path / "whole", encoder_dir, **settings)
    train(tmp_path / "parts", encoder_dir, stop=12, **settings)
    again, seen = train(tmp_path / "parts", encoder_dir, **settings)
    assert seen == [one for one in expected if one[0] >= 10]
    assert weights_hash(again.model) == weights_hash(whole.model)
    ends = [run.trainer.negatives for run in (whole, again)]
    assert ends[0] is not None and ends[1] is not None and ends[0].replaced == ends[1].replaced > 0
    np.testing.assert_array_equal(ends[0].datasets["faq"].places, ends[1].datasets["faq"].places)


def on_ranks(rank: int, world: int, folder: str, encoder: str, engine: str) -> Any:
    if engine == "zero1":  # as `accelerate launch --config_file recipes/accelerate/cpu_zero1.yaml` does
        os.environ |= {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": ZERO1,
            "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file,zero3_init_flag",
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
            "ACCELERATE_MIXED_PRECISION": "no",
        }
    run, seen = train(Path(folder), Path(encoder), **{"data.batch_size": 8 // world})
    assert get_rank() == rank and run.trainer.negatives is not None
    return run.trainer.negatives.datasets["faq"].places.tolist(), seen, weights_hash(run.model)


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero1", marks=pytest.mark.slow)])
def test_every_rank_has_the_negatives_of_a_run_alone(engine: str, encoder_dir_no_dropout: Path, tmp_path: Path) -> None:
    if engine == "zero1":
        pytest.importorskip("deepspeed")
    found = {}
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        chosen = engine if world == 2 else "ddp"
        found[world] = run_ranks(on_ranks, world, str(folder), str(encoder_dir_no_dropout), chosen, timeout=280)
    [alone], several = found[1], found[2]
    assert alone[0] == several[0][0] == several[1][0] and several[0][2] == several[1][2]
    for (step, rows, ids), left, right in zip(alone[1], several[0][1], several[1][1], strict=True):
        assert (step, rows, ids) == (left[0], left[1] + right[1], left[2] + right[2])


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_weights(encoder_dir: Path, tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", encoder_dir)
    folder = tmp_path / "killed"
    for checkpoint in (5, 10, 15):
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            train(folder, encoder_dir)
            os._exit(0)
        deadline = time.monotonic() + 120
        while not (folder / "run" / f"checkpoint-{checkpoint}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        kill(pid)
        assert not (folder / "run" / "model").exists()
    again, seen = train(folder, encoder_dir)
    assert seen[0][0] >= 15
    assert weights_hash(again.model) == weights_hash(whole.model)


def test_batches_are_not_read_further_ahead_than_a_judgement_holds(encoder_dir: Path, tmp_path: Path) -> None:
    path = configuration(tmp_path, encoder_dir, {"train.dataloader_num_workers": 2})
    run = build(path)
    with pytest.raises(InputError, match=r"at most 4 optimizer steps ahead, got 6 with train.dataloader_num_workers 2"):
        run.train()


def test_a_checkpoint_without_the_state_goes_on_where_that_is_accepted(encoder_dir: Path, tmp_path: Path) -> None:
    train(tmp_path, encoder_dir, stop=7, **{"data.remining": None})
    with pytest.raises(InputError, match=r"configuration.data.remining"):
        train(tmp_path, encoder_dir)
    run, seen = train(tmp_path, encoder_dir, **{"train.accept_changes": True})
    assert seen[0][0] == 5 and run.trainer.negatives is not None and run.trainer.negatives.replaced
