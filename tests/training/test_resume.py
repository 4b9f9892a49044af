"""A run goes on bit for bit, on other processes with the same rows, or says what has changed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from piccolo_st.training import resume, zero
from piccolo_st.training.fingerprint import data_fingerprints
from piccolo_st.training.manifest import Checkpoint, CheckpointError
from piccolo_st.training.trainer import PiccoloTrainer
from tests.helpers import resume_cases
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import (
    Case,
    at_step,
    make_datasets,
    make_trainer,
    record_rows,
    stop_after,
    tensor_hash,
    train,
    train_with,
    weights_hash,
)

ALONE = Case(batch_size=4)
DDP = Case(2, batch_size=2)
ACCUMULATED = Case(2, batch_size=2, accumulation=2, options={"save_steps": 3})
ZERO1 = Case(2, "zero1", batch_size=2)


# Pure: fingerprints and decisions.


def run_of(**changes: Any) -> dict[str, Any]:
    base = {
        "signature": {"train.seed": 1, "plan.sizes": [3]},
        "cursor": 8,
        "world_size": 2,
        "engine": "torch",
        "scaler": False,
        "resumable": True,
        "environment": {"torch": "2"},
    }
    return {**base, **changes}


def decide(before: dict[str, Any], now: dict[str, Any], accept: bool = False) -> None:
    resume.decide(Checkpoint(Path("run/checkpoint-4"), 4, before), now, accept, [resume.PLAIN, *zero.CONVERTIBLE])


def test_the_same_run_goes_on_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    decide(run_of(), run_of())
    renamed = [run_of(signature={"trainer.loss.a.class": name}) for name in ("OtherClassesLoss", "SINCERELoss")]
    decide(*renamed)
    assert not caplog.records


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (
            {},
            {"signature": {"train.seed": 2, "plan.sizes": [3]}},
            r"another run: train\.seed was 1 and is 2; .*accept_",
        ),
        ({}, {"signature": {"train.seed": 1}}, r"plan\.sizes was \[3\] and is absent"),
        ({"engine": "DeepSpeed ZeRO-1"}, {}, r"written under DeepSpeed ZeRO-1 and this run is torch"),
        (
            {"engine": "DeepSpeed ZeRO-3"},
            {"engine": "DeepSpeed ZeRO-3", "world_size": 4},
            r"written by 2 processes and there are 4; .*only for torch, DeepSpeed ZeRO-1, .*go on with 2 processes",
        ),
    ],
)
def test_what_differs_is_refused_by_name(before: dict[str, Any], now: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        decide(run_of(**before), run_of(**now))


def test_accepted_changes_other_ranks_and_other_versions_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    decide(run_of(), run_of(signature={"train.seed": 2, "plan.sizes": [3]}), accept=True)
    assert "train.seed was 1 and is 2" in caplog.text
    decide(run_of(engine="DeepSpeed ZeRO-1"), run_of(engine="DeepSpeed ZeRO-1", world_size=1))
    assert "written by 2 processes and there are 1: each step reads the same rows" in caplog.text
    decide(run_of(), run_of(world_size=4))
    assert "written by 2 processes and there are 4: each step reads the same rows" in caplog.text
    decide(run_of(), run_of(environment={"torch": "3"}))
    assert "perhaps not bit for bit: torch was 2 and is 3" in caplog.text


def test_fingerprints_tell_data_apart() -> None:
    data = make_datasets()
    before = data_fingerprints(data)
    assert before == data_fingerprints(make_datasets()) and set(before) == {"pairs", "triplets"}
    assert before["pairs"] != before["triplets"]
    changed = data["pairs"].map(lambda row, index: {"query": "山" if index == 7 else row["query"]}, with_indices=True)
    assert data_fingerprints({"pairs": changed})["pairs"] != before["pairs"]
    assert data_fingerprints({"pairs": data["pairs"].select(range(23))})["pairs"] != before["pairs"]


def test_a_file_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    torch.save({"state": Harm()}, tmp_path / "file.pt")
    with resume.weights_only([]), pytest.raises(Exception, match=r"Weights only load failed"):
        torch.load(tmp_path / "file.pt", weights_only=False)  # what DeepSpeed does
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "harm").exists()  # outside, the file does run: the guard was what held it


# Real runs of three epochs with dropout.


def whole_and_resumed(case: Case, encoder: Path, folder: Path, stops: list[int]) -> None:
    """Every part of the run ends where ``stops`` says, as if killed, and the next one goes on."""
    whole = run_ranks(train_with, case.world, str(encoder), str(folder / "whole"), case, {}, timeout=280)
    parts: list[list[Any]] = [
        run_ranks(train_with, case.world, str(encoder), str(folder / "parts"), case, {"stop": stop}, timeout=280)
        for stop in stops
    ]
    parts.append(run_ranks(train_with, case.world, str(encoder), str(folder / "parts"), case, {}, timeout=280))
    for rank in range(case.world):
        expected_hash, expected_rows, last = whole[rank]
        assert parts[-1][rank][0] == expected_hash
        assert parts[-1][rank][2] == last
        rows: dict[int, list[Any]] = {}
        for _, seen, _ in (part[rank] for part in parts):
            fresh: dict[int, list[Any]] = {}
            for step, *row in seen:
                fresh.setdefault(step, []).append(row)
            for step, read in fresh.items():  # steps after the last checkpoint are taken again, with the same rows
                assert rows.setdefault(step, read) == read
        assert [row for step in sorted(rows) for row in rows[step]] == [list(row[1:]) for row in expected_rows]
    assert whole[0][0] == whole[-1][0]
    # Not vacuous: the last part began in a later epoch, and trained only what was left.
    assert 0 < len(parts[-1][0][1]) < len(whole[0][1])


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("case", "stops"),
    [
        # 9 steps an epoch, a checkpoint every 4: the run goes on in epoch 0 and in epoch 2.
        pytest.param(ALONE, [6, 22], id="alone"),
        pytest.param(Case(batch_size=4, options={"save_steps": 9}), [19], id="at the end of an epoch", marks=slow),
        pytest.param(DDP, [14], id="ddp"),
        pytest.param(DDP, [6, 17, 25], id="ddp, several times", marks=slow),
        pytest.param(ACCUMULATED, [5, 8, 11], id="accumulated", marks=slow),
        pytest.param(ZERO1, [14], id="zero1", marks=slow),
        # From three ranks on, the order in which DDP adds gradients depends on its buckets.
        pytest.param(Case(4, batch_size=1), [14], id="four ranks", marks=slow),
        pytest.param(Case(2, batch_size=2, loss={"mini_batch_size": 1}), [14], id="caching", marks=slow),
    ],
)
def test_a_run_goes_on_bit_for_bit(case: Case, stops: list[int], encoder_dir: Path, tmp_path: Path) -> None:
    if case.engine == "zero1":
        pytest.importorskip("deepspeed")
    whole_and_resumed(case, encoder_dir, tmp_path, stops)


def rows_by_step(parts: list[Any]) -> dict[int, list[tuple[str, int]]]:
    """Step -> the rows that all ranks read, sorted."""
    rows: dict[int, list[tuple[str, int]]] = {}
    for _, seen, _ in parts:
        for step, dataset, numbers in seen:
            rows.setdefault(step, []).extend((dataset, number) for number in numbers)
    return {step: sorted(read) for step, read in rows.items()}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero1"])
def test_other_numbers_of_processes_read_the_same_rows(engine: str, encoder_dir: Path, tmp_path: Path) -> None:
    if engine == "zero1":
        pytest.importorskip("deepspeed")
    cases = [Case(2, engine, batch_size=2), Case(1, engine, batch_size=4), Case(4, engine, batch_size=1)]
    whole = rows_by_step(run_ranks(train_with, 2, str(encoder_dir), str(tmp_path / "whole"), cases[0], {}, timeout=280))
    elastic: dict[int, list[tuple[str, int]]] = {}
    for case, stop in zip(cases, [11, 21, None], strict=True):
        options = {} if stop is None else {"stop": stop}
        run = str(tmp_path / "elastic")
        parts = run_ranks(train_with, case.world, str(encoder_dir), run, case, options, timeout=280)
        found = rows_by_step(parts)
        assert found and {step: whole[step] for step in found} == found
        # The first part was stopped 3 steps after checkpoint-8, and the second one 1 after checkpoint-20.
        assert min(found) == {2: 0, 1: 8, 4: 20}[case.world]
        elastic |= found
    assert elastic == whole
    # Each epoch of 9 steps sees every row once: 24 pairs, and 12 triplets.
    for epoch in range(3):
        seen = [row for step in range(9 * epoch, 9 * epoch + 9) for row in elastic[step]]
        assert sorted(seen) == [("pairs", row) for row in range(24)] + [("triplets", row) for row in range(12)]
    assert not list((tmp_path / "elastic").glob(".*"))  # no converted checkpoint is left


class _State(TrainerCallback):
    """What ZeRO holds at a moment of a run: hashes of all master weights and moments, joined over the ranks."""

    def __init__(self, trainer: Any, moment: str) -> None:
        self.found: dict[str, Any] = {}
        setattr(self, f"on_{moment}", lambda args, state, *_, **__: self._take(trainer, state.global_step))

    def _take(self, trainer: Any, step: int) -> None:
        if step != 8:
            return
        zero = trainer.model_wrapped.optimizer
        for number, (part, weights) in enumerate(
            zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)
        ):
            state = zero.optimizer.state[part]
            values = {"weights": part, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
            for name, value in values.items():
                parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
                dist.all_gather(parts, value.detach())
                whole = torch.cat(parts)[: sum(weight.numel() for weight in weights)]  # behind it is padding
                self.found[f"{name} {number}"] = (tensor_hash(whole), bool(whole.any()))
            self.found[f"step {number}"] = float(state["step"])
        self.found["half"] = [tensor_hash(weight) for weight in trainer.model.parameters()]
        self.found["rate"] = trainer.lr_scheduler.get_last_lr()


def _zero_state(rank: int, world: int, encoder: str, output: str, case: Case, moment: str, stop: int) -> Any:
    trainer = make_trainer(Path(encoder), Path(output), case)
    state = _State(trainer, moment)
    trainer.add_callback(state)
    stop_after(trainer, stop)
    trainer.train()
    return state.found


@pytest.mark.slow
@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["fp32", "bf16"])
def test_zero1_moves_every_number_to_other_ranks(precision: dict[str, Any], encoder_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    two, four = (Case(n, "zero1", batch_size=4 // n, options=precision) for n in (2, 4))
    before = run_ranks(_zero_state, 2, str(encoder_dir), str(tmp_path), two, "step_end", 9, timeout=280)
    after = run_ranks(_zero_state, 4, str(encoder_dir), str(tmp_path), four, "train_begin", 9, timeout=280)
    for found in [*before[1:], *after]:
        assert found == before[0]
    # Not vacuous: there are moments, of the eighth step.
    assert before[0]["step 0"] == 8 and before[0]["exp_avg_sq 0"][1]


def _keeps_a_secret(rank: int, world: int, encoder: str, output: str, config: str) -> list[str]:
    """The files of a ZeRO-1 checkpoint that hold a tracker's key, which stands in DeepSpeed's configuration."""
    resume_cases.ZERO1 = config
    train(rank, world, encoder, output, Case(world, "zero1", batch_size=2), max_steps=4)
    files = [path for path in (Path(output) / "checkpoint-4").rglob("*") if path.is_file()]
    return [path.name for path in files if b"a-comet-key" in path.read_bytes()]


@pytest.mark.slow
def test_a_secret_of_deepspeeds_configuration_is_in_no_checkpoint(encoder_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    config = {**json.loads(resume_cases.ZERO1), "comet": {"enabled": False, "api_key": "a-comet-key"}}
    found = run_ranks(_keeps_a_secret, 1, str(encoder_dir), str(tmp_path / "run"), json.dumps(config), timeout=240)
    assert found == [[]]


def _dies_converting(rank: int, world: int, encoder: str, output: str, case: Case, fault: str) -> None:
    from deepspeed.checkpoint import ds_to_universal

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, fault)

    ds_to_universal.main = refuse
    make_trainer(Path(encoder), Path(output), case).train()


def _finished(rank: int, world: int, encoder: str, output: str) -> tuple[str, str]:
    case = Case(world, "zero1", batch_size=4 // world, options={"max_steps": 2})
    whole = make_trainer(Path(encoder), Path(output), case)
    whole.train()
    again = make_trainer(Path(encoder), Path(output), case)
    again.train()
    again.save_model(f"{output}/model", _internal_call=True)
    return weights_hash(whole.model), weights_hash(SentenceTransformer(f"{output}/model", device="cpu"))


@pytest.mark.slow
def test_zero1_that_was_killed_before_its_model_was_saved(encoder_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    ((trained, saved),) = run_ranks(_finished, 1, str(encoder_dir), str(tmp_path), timeout=300)
    assert saved == trained


def test_a_stream_goes_on_inside_a_later_pass(encoder_dir: Path, tmp_path: Path) -> None:
    """24 rows in batches of 4: the checkpoint of step 8 stands in the second pass."""
    case = Case(streamed=True)
    assert train(0, 1, str(encoder_dir), str(tmp_path / "run"), case, stop=9)[2] == 9
    rest, step = train(0, 1, str(encoder_dir), str(tmp_path / "run"), case)[::2]
    assert (rest, step) == train(0, 1, str(encoder_dir), str(tmp_path / "whole"), case)[::2]


@pytest.mark.slow
def test_zero1_without_a_shard_or_the_room_to_convert(encoder_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    run_ranks(train_with, 2, str(encoder_dir), str(tmp_path), ZERO1, {"stop": 9}, timeout=280)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-8"}
    other = Case(1, "zero1", batch_size=4)
    with pytest.raises(RuntimeError, match=r"checkpoint-8 could not be converted .*no room; go on with 2 processes"):
        run_ranks(_dies_converting, 1, str(encoder_dir), str(tmp_path), other, "no room", timeout=280)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-8"}

    shard = "global_step{}/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    (tmp_path / "checkpoint-8" / shard.format(8)).unlink()
    parts = run_ranks(train_with, 2, str(encoder_dir), str(tmp_path), ZERO1, {"stop": 5}, timeout=280)
    assert [step for step, *_ in parts[0][1]] == [4]  # from checkpoint-4, which is whole
    # Also out of the manifest, so that only the list of parts that a run needs can tell.
    for step in (4, 8):
        manifest = tmp_path / f"checkpoint-{step}" / "manifest.json"
        content = json.loads(manifest.read_text())
        del content["files"][shard.format(step)], content["digest"]
        manifest.write_text(json.dumps(content))
    (tmp_path / "checkpoint-4" / shard.format(4)).unlink()
    message = (
        r"no complete checkpoint in .* \(the checkpoint .*checkpoint-8 is not whole: "
        r"global_step8/\*zero_pp_rank_1_mp_rank_00_optim_states\.pt is missing; .*checkpoint-4 is not whole"
    )
    with pytest.raises(RuntimeError, match=message):
        run_ranks(train_with, 2, str(encoder_dir), str(tmp_path), ZERO1, {}, timeout=280)


# What a user sees.


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path) -> Path:
    """A run of 12 steps, ended at step 6, with checkpoint-4."""
    folder = tmp_path_factory.mktemp("stopped")
    trainer = make_trainer(encoder_dir, folder, ALONE, max_steps=12)
    stop_after(trainer, 6)
    trainer.train()
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    return folder


@pytest.fixture
def output(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def steps_taken(trainer: Any) -> list[int]:
    seen = record_rows(trainer)
    trainer.train()
    return [step for step, *_ in seen]


def test_a_checkpoint_is_a_model_and_holds_no_free_pickle(output: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = output / "checkpoint-4"
    assert SentenceTransformer(str(folder), device="cpu").encode("天地").shape == (32,)
    for path in folder.rglob("*"):
        assert path.suffix not in {".bin", ".pkl", ".pickle"} and path.name != "training_args.bin"
        if path.suffix in {".pt", ".pth"}:
            allowed = ["numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode"]
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            assert set(found) <= {*allowed, "numpy.core.multiarray._reconstruct"}, path


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        (ALONE, {"seed": 7}, r"plan\.seed was 42 and is 7; train\.seed was 42 and is 7"),
        (ALONE, {"max_steps": 20}, r"train\.max_steps was 12 and is 20"),
        (ALONE, {"datasets": make_datasets(28)}, r"data\.pairs was \w+ and is \w+; .*plan\.sizes was \[24, 12\]"),
        (Case(batch_size=2), {}, r"plan\.samples_per_block was 4 and is 2; train\.rows of a micro-step"),
    ],
)
def test_a_changed_run_is_refused_with_what_changed(
    encoder_dir: Path, output: Path, case: Case, change: dict[str, Any], message: str
) -> None:
    trainer = make_trainer(encoder_dir, output, case, **{"max_steps": 12, **change})
    with pytest.raises(CheckpointError, match=message):
        trainer.train()


def test_a_changed_configuration_is_refused(encoder_dir: Path, output: Path) -> None:
    trainer = make_trainer(encoder_dir, output, ALONE, max_steps=12)
    trainer.run_configuration = {"loss": {"temperature": 0.01}}
    with pytest.raises(CheckpointError, match=r"loss\.temperature was absent and is 0\.01"):
        trainer.train()


def test_another_batch_goes_on_at_the_same_sample_or_not_at_all(encoder_dir: Path, output: Path) -> None:
    trainer = make_trainer(encoder_dir, output, Case(batch_size=8), max_steps=12, accept_changes=True)
    seen = record_rows(trainer)
    trainer.train()
    # 16 samples in: the third batch of 8 of the new plan.
    assert seen[0][2] == tuple(trainer._plan.step(0, 2).rows.tolist())
    odd = make_trainer(encoder_dir, output, Case(batch_size=5), max_steps=40, accept_changes=True)
    shutil.rmtree(output / "checkpoint-12")  # what is left stands 16 samples and 4 steps of 8 into the run
    with pytest.raises(ValueError, match=r"multiple of the 5 samples .*, got 48"):
        odd.train()


def _settings_of(rank: int, world: int, encoder: str, output: str, case: Case, options: dict[str, Any]) -> Any:
    """Of each step that is trained: the rate that is logged, and of each group of weights rate, betas and decay."""
    groups: dict[int, list[Any]] = {}

    class Settings(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found = kwargs["optimizer"].param_groups
            groups[state.global_step] = [(one["lr"], one["betas"], one["weight_decay"]) for one in found]

    trainer = make_trainer(Path(encoder), Path(output), case, **options)
    trainer.add_callback(Settings())
    trainer.train()
    logged = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry}
    return [(step, logged[step], groups[step]) for step in groups]


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (ALONE, "constant"),
        (ALONE, "linear"),
        pytest.param(Case(1, "zero1"), "linear", marks=pytest.mark.slow),
    ],
    ids=["constant", "linear", "zero1"],
)
def test_accepted_rates_decay_and_beta_are_those_it_goes_on_with(
    case: Case, kind: str, encoder_dir: Path, tmp_path: Path
) -> None:
    if case.engine == "zero1":
        pytest.importorskip("deepspeed")
    pattern = "[.]layer[.]0[.]"
    begun = {"lr_scheduler_type": kind, "max_steps": 12, "learning_rate_mapping": {pattern: 1e-4}, "logging_steps": 1}
    other = begun | {"learning_rate": 1e-5, "learning_rate_mapping": {pattern: 2e-6}, "weight_decay": 0.1}
    other |= {"adam_beta2": 0.95}
    run = partial(run_ranks, timeout=240) if case.engine == "zero1" else lambda act, *given: [act(0, *given)]
    run(train_with, 1, str(encoder_dir), str(tmp_path / "old"), case, {**begun, "stop": 6})
    [resumed], [whole] = (
        run(_settings_of, 1, str(encoder_dir), str(tmp_path / folder), case, {**other, "accept_changes": True})
        for folder in ("old", "new")
    )
    assert [step for step, *_ in resumed] == list(range(5, 13)) and resumed == whole[4:]
    assert {group[1:] for group in resumed[0][2]} == {((0.9, 0.95), 0.1), ((0.9, 0.95), 0.0)}
    assert len({group[0] for group in resumed[0][2]}) == 2


def test_a_change_of_which_weights_have_a_rate_of_their_own_is_not_accepted(encoder_dir: Path, output: Path) -> None:
    mapping = {"[.]layer[.]0[.]": 1e-4}
    trainer = make_trainer(encoder_dir, output, ALONE, max_steps=12, accept_changes=True, learning_rate_mapping=mapping)
    message = r"patterns of the checkpoint, none, .*, got \['\[\.\]layer.*model\.name_or_path"
    with pytest.raises(CheckpointError, match=message):
        trainer.train()


def test_a_finished_run_is_loaded_and_not_trained(
    encoder_dir: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(encoder_dir, output, ALONE, max_steps=12)
    assert steps_taken(trainer) == list(range(4, 12))
    again = make_trainer(encoder_dir, output, ALONE, max_steps=12)
    assert weights_hash(again.model) != weights_hash(trainer.model)
    assert steps_taken(again) == []
    assert weights_hash(again.model) == weights_hash(trainer.model)
    assert again.state.global_step == 12 and "nothing is trained" in caplog.text


def test_never_starts_anew_and_keeps_the_earlier_checkpoints(encoder_dir: Path, output: Path) -> None:
    trainer = make_trainer(encoder_dir, output, ALONE, max_steps=5, resume="never")
    assert steps_taken(trainer) == list(range(5))
    assert (output / "earlier-1" / "checkpoint-4" / "manifest.json").exists()
    assert (output / "checkpoint-5").exists()


def test_a_path_and_the_stock_argument_name_the_checkpoint(encoder_dir: Path, output: Path, tmp_path: Path) -> None:
    named = make_trainer(encoder_dir, tmp_path / "new", ALONE, max_steps=12, resume=str(output / "checkpoint-4"))
    assert steps_taken(named) == list(range(4, 12))
    stock = make_trainer(encoder_dir, tmp_path / "empty", ALONE, max_steps=12)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*empty"):
        stock.train(resume_from_checkpoint=True)


def test_a_broken_newest_one_is_passed_over_aloud(
    encoder_dir: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(encoder_dir, output, ALONE, max_steps=12)
    stop_after(trainer, 9)
    trainer.train()
    path = output / "checkpoint-8" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    again = make_trainer(encoder_dir, output, ALONE, max_steps=12)
    assert steps_taken(again) == list(range(4, 12))
    assert re.search(r"passed over: .*checkpoint-8 .*model\.safetensors has \d+ bytes instead of", caplog.text)


def test_a_best_model_that_is_damaged_is_not_passed_over(encoder_dir: Path, output: Path) -> None:
    best = output / "checkpoint-4"
    trainer = make_trainer(encoder_dir, output, ALONE, max_steps=12, save_strategy="no")
    at_step(trainer, 8, lambda: setattr(trainer.state, "best_model_checkpoint", str(best)))
    at_step(trainer, 9, lambda: (best / "model.safetensors").write_bytes(b"cut short"))
    trainer.args.load_best_model_at_end = True
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is not whole: model.*load_best_model_at_end to false"):
        trainer.train()


def test_a_part_left_out_of_the_manifest_as_well_is_missed(encoder_dir: Path, output: Path) -> None:
    # Its manifest is sound, so only the list of parts that a run needs can tell.
    manifest = output / "checkpoint-4" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["files"]["rng_state.pth"], content["digest"]
    manifest.write_text(json.dumps(content))
    (output / "checkpoint-4" / "rng_state.pth").unlink()
    trainer = make_trainer(encoder_dir, output, ALONE, max_steps=12)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint .*rng_state\.pth is missing.*resume=.never"):
        trainer.train()


def test_save_only_model_says_that_it_cannot_go_on(encoder_dir: Path, tmp_path: Path) -> None:
    def trainer() -> PiccoloTrainer:
        return make_trainer(encoder_dir, tmp_path, ALONE, max_steps=4, save_steps=2, save_only_model=True)

    trainer().train()
    again = trainer()
    again.train()
    assert again.finished_before, "its model is all that is needed"
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer()
    with pytest.raises(CheckpointError, match=r"no optimizer state"):
        again.train()


def test_intervals_of_this_run_count_and_not_those_of_the_checkpoint(encoder_dir: Path, output: Path) -> None:
    trainer = make_trainer(encoder_dir, output, ALONE, max_steps=12, save_steps=3, save_total_limit=9)
    trainer.train()
    assert {path.name for path in output.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (4, 6, 9, 12)}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_runs_end_with_the_weights_of_one_left_alone() -> None:
    """In a process of its own, which has computed nothing before it forks the ranks."""
    pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "tests.helpers.kill_test", "--kills", "3", "--cases", "ddp", "zero1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    table = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] + row[-1:] for row in table if row and row[0] in ("ddp", "zero1")] == [
        ["ddp", "3", "yes"],
        ["zero1", "3", "yes"],
    ]
