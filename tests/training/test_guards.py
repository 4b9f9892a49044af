"""Guards: what cannot work is refused, what is not finite is skipped and written down, signals save, ranks agree."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformerTrainingArguments

from piccolo_st.errors import InputError
from piccolo_st.training.disk import cannot_write
from piccolo_st.training.guards import STOPPED, StopSignals, TrainingStopped, check_supported
from piccolo_st.training.manifest import CheckpointError
from piccolo_st.training.non_finite import MicroStep, NonFiniteError, NonFiniteGuard, poison
from piccolo_st.training.training_arguments import PiccoloTrainingArguments
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import Case, at_step, make_datasets, make_trainer, record_rows, weights_hash

ALONE = Case(batch_size=4)


def _fails(error: Exception) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    return refuse


# What is refused at the start.


def arguments(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "save_on_each_node": False,
            "activation_checkpointing": False,
            "activation_checkpointing_kwargs": None,
            "deepspeed": None,
            "fp16": False,
            "bf16": False,
            **values,
        }
    )


@pytest.mark.parametrize(
    ("args", "stage", "cached", "message"),
    [
        (
            {"fp16": True}, None, [],
            r'fp16 scales the loss, .*"Attempting to unscale FP16 gradients"\), got weights in float16; load the model '
            r"with model.dtype float32 .*model.float\(\)",
        ),
        ({}, 2, ["PiccoloLoss"], r"ZeRO stage 2 .* fails with gradient caching \(of PiccoloLoss\).*use ZeRO stage 1$"),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            2, [], r"reentrant checkpointing.*use_reentrant: false",
        ),
        ({"save_on_each_node": True}, None, [], r"save_on_each_node .* a directory that all nodes share"),
        ({"deepspeed": "zero1.json"}, None, [], r"must be unset on a CPU, got 'zero1.json'; .*/cpu_zero1.yaml"),
    ],
)  # fmt: skip
def test_what_is_known_to_fail_is_refused(args: Any, stage: int | None, cached: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_supported(arguments(**args), stage, cached, {torch.float32, torch.float16} if "fp16" in args else ())


def test_what_works_is_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    check_supported(arguments(), 1, ["PiccoloLoss"])
    check_supported(arguments(activation_checkpointing=True), 2, [])
    check_supported(arguments(deepspeed="zero1.json"), 1, [])
    check_supported(arguments(fp16=True), None, [], {torch.float32})
    # DeepSpeed keeps float32 masters of weights in half precision.
    check_supported(arguments(deepspeed="zero1.json", fp16=True), 0, [], {torch.float16})
    for precision in ({}, {"bf16": True}, {"fp16": True}):
        check_supported(arguments(deepspeed="zero1.json", **precision), 1, [], {torch.float16})
    assert not caplog.text
    check_supported(arguments(deepspeed="zero1.json"), 0, [], {torch.bfloat16})
    assert "the weights that are trained are bfloat16" in caplog.text


def test_a_process_that_sees_several_gpus_trains_on_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = PiccoloTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8)
    args._n_gpu = 4  # as transformers finds them, for torch's DataParallel
    args._use_one_gpu()
    assert args.n_gpu == 1 and args.train_batch_size == 8
    assert "this one sees 4" in caplog.text and "python -m piccolo_st launch" in caplog.text


def test_checkpointing_is_not_reentrant_unless_asked_for(encoder_dir: Path, tmp_path: Path) -> None:
    trainer = make_trainer(encoder_dir, tmp_path, ALONE, activation_checkpointing=True, max_steps=1)
    assert trainer.args.activation_checkpointing_kwargs == {"use_reentrant": False}
    trainer.train()
    assert trainer.model[0].model.encoder.layer[0].gradient_checkpointing


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_where_transformers_calls_it_gradient_checkpointing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 5.23, whose own fields know nothing of each other: both hold the same, whichever was set."""
    stock = SentenceTransformerTrainingArguments.__post_init__
    fields = [f"{kind}_checkpointing{part}" for kind in ("activation", "gradient") for part in ("", "_kwargs")]

    def old(self: Any) -> None:
        given = {field: getattr(self, field) for field in fields}
        stock(self)
        vars(self).update(given)

    monkeypatch.setattr("piccolo_st.training.training_arguments._OLD_NAME", True)
    monkeypatch.setattr(SentenceTransformerTrainingArguments, "__post_init__", old)
    args = PiccoloTrainingArguments(str(tmp_path), **{name: True})
    assert args.gradient_checkpointing and args.activation_checkpointing
    assert args.gradient_checkpointing_kwargs == args.activation_checkpointing_kwargs == {"use_reentrant": False}


# Not finite.


@pytest.mark.parametrize("value", [1.5, -0.0, 3e38, 1e-40])
def test_a_finite_loss_and_its_gradient_stay_as_they_are(value: float) -> None:
    loss = torch.tensor(value, requires_grad=True)
    poisoned = poison(loss)
    (gradient,) = torch.autograd.grad(poisoned, loss)
    assert poisoned.detach().numpy().tobytes() == loss.detach().numpy().tobytes() and gradient.item() == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_makes_its_gradient_so(value: float) -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    poison(weight + torch.tensor(value)).backward()  # without poison, the gradient would be 1
    assert torch.isnan(weight.grad)


def judge(guard: NonFiniteGuard, step: int, norm: float, loss: float = 1.0, scale: float | None = None) -> bool:
    guard.add(MicroStep("pairs", torch.tensor([3, 5]), {}, torch.tensor(loss)))
    return guard.judge(step, norm, scale, lambda one: [1], lambda dataset, row: {"query": f"{dataset} {row}"})


def test_a_streak_ends_the_run_and_a_sound_step_ends_the_streak(tmp_path: Path) -> None:
    guard = NonFiniteGuard(2, tmp_path)
    assert not judge(guard, 1, float("nan"), float("nan"))
    assert judge(guard, 2, 1.0)
    assert not judge(guard, 3, float("inf"))
    with pytest.raises(
        NonFiniteError, match=r"2 steps in a row .* loss nan in dataset 'pairs', rows 5 at step 4; .*jsonl"
    ):
        judge(guard, 4, float("nan"), float("nan"))
    assert guard.pop_statistics() == {"non_finite_steps": 3.0}
    lines = [json.loads(line) for line in guard.file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 4]
    assert lines[2] == {
        "step": 4, "rank": 0, "dataset": "pairs", "row": 5, "loss": "nan", "content": {"query": "pairs 5"},
    }  # fmt: skip


def test_an_fp16_overflow_is_not_counted_against_the_run(tmp_path: Path) -> None:
    guard = NonFiniteGuard(1, tmp_path)
    for step in range(3):
        assert not judge(guard, step, float("inf"), scale=65536.0)
    assert guard.pop_statistics() == {"fp16_overflow_steps": 3.0}
    assert not guard.file.exists()
    with pytest.raises(NonFiniteError, match=r"loss nan"):  # the loss itself: no scale is to blame
        judge(guard, 4, float("inf"), float("nan"), scale=65536.0)
    with pytest.raises(NonFiniteError, match=r"gradient, which is not finite"):  # a scale of 1 cannot be too large
        judge(guard, 5, float("inf"), scale=1.0)


def plant_nan(trainer: Any, text: str) -> None:
    """Make the embedding of one character NaN."""
    token = trainer.model.tokenizer.convert_tokens_to_ids(text)
    with torch.no_grad():
        trainer.model[0].model.embeddings.word_embeddings.weight[token] = float("nan")


def planted_datasets() -> Any:
    """Row 5 of the pairs, and no other, holds the character that is planted."""
    return make_datasets().map(
        lambda row, index: {"query": "今" if index == 5 and "negative" not in row else row["query"]}, with_indices=True
    )


def test_a_planted_row_is_skipped_named_and_written_down(
    encoder_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(
        encoder_dir, tmp_path, ALONE, datasets=planted_datasets(), num_train_epochs=1, logging_steps=3
    )
    plant_nan(trainer, "今")
    trainer.train()
    warned = [record.message for record in caplog.records if "skipped a step" in record.message]
    assert len(warned) == 1 and "dataset 'pairs', rows 5 at step" in warned[0]
    (line,) = [json.loads(line) for line in (tmp_path / "non_finite_rows.jsonl").read_text().splitlines()]
    assert (line["dataset"], line["row"], line["content"]["query"]) == ("pairs", 5, "今")
    weights = dict(trainer.model.named_parameters())
    spoiled = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    assert len(spoiled) == 1 and "word_embeddings" in spoiled[0]  # what was planted, and nothing that it touched
    assert any(entry.get("non_finite_steps") for entry in trainer.state.log_history)


def test_rows_that_stay_bad_end_the_run(encoder_dir: Path, tmp_path: Path) -> None:
    trainer = make_trainer(encoder_dir, tmp_path, ALONE, max_non_finite_steps=3)
    plant_nan(trainer, "[CLS]")
    with pytest.raises(NonFiniteError, match=r"3 steps in a row were not finite.*at step 3"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def _planted_rank(rank: int, world: int, encoder: str, output: str) -> Any:
    trainer = make_trainer(
        Path(encoder), Path(output), Case(2, batch_size=2), datasets=planted_datasets(), num_train_epochs=1
    )
    plant_nan(trainer, "今")
    trainer.train()
    return trainer.state.global_step


def test_two_ranks_skip_the_planted_row_together(encoder_dir: Path, tmp_path: Path) -> None:
    assert run_ranks(_planted_rank, 2, str(encoder_dir), str(tmp_path)) == [9, 9]
    lines = [json.loads(line) for line in (tmp_path / "non_finite_rows.jsonl").read_text().splitlines()]
    assert {(line["dataset"], line["row"]) for line in lines} == {("pairs", 5)}


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_step_boundary_and_the_run_goes_on(
    encoder_dir: Path, tmp_path: Path, number: int
) -> None:
    whole = make_trainer(encoder_dir, tmp_path / "whole", ALONE, max_steps=8)
    whole.train()
    before = signal.getsignal(number)
    trainer = make_trainer(encoder_dir, tmp_path / "run", ALONE, max_steps=8)
    at_step(trainer, 5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(TrainingStopped, match=r"stopped by SIG(TERM|INT) at step 6 of 8; the same command") as stopped:
        trainer.train()
    assert stopped.value.code == STOPPED == 75
    assert signal.getsignal(number) is before
    assert (tmp_path / "run" / "checkpoint-6" / "manifest.json").exists()
    again = make_trainer(encoder_dir, tmp_path / "run", ALONE, max_steps=8)
    seen = record_rows(again)
    again.train()
    assert [step for step, *_ in seen] == [6, 7]
    assert weights_hash(again.model) == weights_hash(whole.model)


def test_a_second_interrupt_ends_at_once() -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher repeating the first
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGINT"
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def _signalled_rank(rank: int, world: int, encoder: str, output: str) -> Any:
    trainer = make_trainer(Path(encoder), Path(output), Case(2, batch_size=2), max_steps=9)
    if rank == 1:
        at_step(trainer, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        trainer.train()
    except TrainingStopped as stopped:
        return trainer.state.global_step, stopped.code
    return None


def test_a_signal_to_one_rank_stops_all_at_the_same_step(encoder_dir: Path, tmp_path: Path) -> None:
    results = run_ranks(_signalled_rank, 2, str(encoder_dir), str(tmp_path))
    assert results[0] == results[1] and results[0] in [(5, 75), (6, 75)]
    assert (tmp_path / f"checkpoint-{results[0][0]}").exists()


# Ranks.


def _differing_rank(rank: int, world: int, encoder: str, output: str, what: str) -> None:
    options: dict[str, Any] = {"max_steps": 2}
    if what == "data":
        options["datasets"] = make_datasets(24 + 4 * rank)
    trainer = make_trainer(Path(encoder), Path(output), Case(2, batch_size=2), **options)
    trainer.args.learning_rate += rank if what == "configuration" else 0
    trainer.train()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("data", r"plan\.sizes is \[24, 12\] on rank 0, \[28, 14\] on rank 1.*start every process from the same files"),
        ("configuration", r"the ranks disagree on the run: train\.learning_rate is 0\.001 on rank 0, 1\.001 on rank 1"),
    ],
)
def test_ranks_that_differ_end_before_the_first_step(
    encoder_dir: Path, tmp_path: Path, what: str, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        run_ranks(_differing_rank, 2, str(encoder_dir), str(tmp_path), what, timeout=60)


def _dying_rank(rank: int, world: int, encoder: str, output: str) -> None:
    trainer = make_trainer(Path(encoder), Path(output), Case(2, batch_size=2))
    if rank == 1:
        at_step(trainer, 6, _fails(MemoryError("planted")))
    trainer.train()


def test_when_a_rank_dies_the_other_ends_with_a_clear_error(encoder_dir: Path, tmp_path: Path) -> None:
    # run_ranks gives the survivor two seconds after rank 1 has gone.
    message = (
        r"rank 0 of 2 raised LostRankError: another process of the run has ended or does not answer, noticed by rank 0 "
        r"\(process \d+\) after step 6: (.|\n)*rank 1 of 2 raised MemoryError: planted"
    )
    with pytest.raises(RuntimeError, match=message):
        run_ranks(_dying_rank, 2, str(encoder_dir), str(tmp_path), timeout=60)
    assert (tmp_path / "checkpoint-4" / "manifest.json").exists()


# Disks.


@pytest.mark.parametrize(
    ("place", "code"),
    [("piccolo_st.training.saving.save_portable", 28), ("torch.save", 5), ("os.fsync", 28), ("os.fsync", 5)],
)
def test_a_disk_that_refuses_ends_the_run_and_leaves_the_checkpoint_before(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int
) -> None:
    trainer = make_trainer(encoder_dir, tmp_path, ALONE)
    at_step(trainer, 6, lambda: monkeypatch.setattr(place, _fails(OSError(code, os.strerror(code)))))
    remedy = {28: "make room or choose another", 5: "choose a train.output_dir that can be written to"}[code]
    message = rf"checkpoint-8 could not .*{os.strerror(code)}.*the one before, checkpoint-4, is as it was; {remedy}"
    with pytest.raises(CheckpointError, match=message):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def _full_disk_rank(rank: int, world: int, encoder: str, output: str) -> str:
    import resource

    trainer = make_trainer(Path(encoder), Path(output), Case(2, batch_size=2))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the kernel refuses to write larger files
    try:
        trainer.train()
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_rank_that_cannot_write_ends_all_of_them(encoder_dir: Path, tmp_path: Path) -> None:
    messages = run_ranks(_full_disk_rank, 2, str(encoder_dir), str(tmp_path), timeout=60)
    assert all("checkpoint-4 could not be written" in message for message in messages)
    assert "rank 0 failed with" in messages[1]
    assert not list(tmp_path.glob("*checkpoint*"))


def _cut_archive(rank: int, world: int, folder: str) -> str:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        torch.save(torch.zeros(20_000), f"{folder}/archive.pt")
    except RuntimeError as error:
        return str(cannot_write(Path(folder), 4, error))
    return ""


def test_an_archive_that_was_cut_short_is_the_disks_fault(tmp_path: Path) -> None:
    (message,) = run_ranks(_cut_archive, 1, str(tmp_path), timeout=60)
    assert "make room, raise what a file may have here (ulimit -f)" in message and "not to blame" not in message


def _left_alone(rank: int, world: int, folder: str) -> str:
    group = dist.new_group()
    if rank == 1:
        dist.destroy_process_group(group)
        return ""
    try:
        dist.all_reduce(torch.zeros(1), group=group)
    except RuntimeError as error:
        return str(cannot_write(Path(folder), 8, error))
    return ""


def test_a_rank_whose_other_has_ended_points_to_it_and_to_an_older_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-8").mkdir()  # a damaged one, in whose place the new one was to stand
    message, _ = run_ranks(_left_alone, 2, str(tmp_path), timeout=60)
    assert message.endswith(
        "there is none before it; another process ended first: mend what its own message names, and start the run again"
    )


def test_a_directory_that_cannot_be_written_to_any_more(encoder_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    trainer = make_trainer(encoder_dir, tmp_path, ALONE)
    monkeypatch.setattr("piccolo_st.training.checkpoint.begin", _fails(OSError(30, os.strerror(30))))
    with pytest.raises(CheckpointError, match=r"checkpoint-4 could not .*Read-only file system.*there is none before"):
        trainer.train()


def test_a_save_that_fails_by_no_fault_of_the_disk_does_not_ask_for_room(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(encoder_dir, tmp_path, ALONE)
    monkeypatch.setattr("piccolo_st.training.saving.save_portable", _fails(KeyError("weight")))
    with pytest.raises(CheckpointError, match=r"KeyError: 'weight'; .*the disk is not to blame: mend what") as raised:
        trainer.train()
    assert "room" not in str(raised.value)
    monkeypatch.setattr("piccolo_st.training.saving.save_portable", _fails(RuntimeError("file write failed")))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(CheckpointError, match=r"0\.0 GB are free\): RuntimeError: file write failed; .*make room"):
        trainer.train()
