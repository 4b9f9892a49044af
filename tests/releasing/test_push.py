"""What a trainer pushes while it trains: every strategy, portable, without pickles, one commit a push."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi

from piccolo_st.errors import InputError
from piccolo_st.modeling.portable.readers import ONNX_READERS, check_portable
from piccolo_st.modeling.portable.saving import save_portable
from piccolo_st.releasing.card import PiccoloModelCardData
from piccolo_st.releasing.push import PortablePushes, push_checkpoint
from piccolo_st.training.manifest import verify
from tests.helpers.hub_clients import REPO, TOKEN
from tests.helpers.hub_server import HubServer
from tests.helpers.resume_cases import Case, make_trainer

pytest_plugins = ["tests.helpers.hub_clients"]


def test_push_checkpoint_takes_the_model_and_nothing_else(hub: HubServer, released_model: Path, tmp_path: Path) -> None:
    api = HfApi()
    api.create_repo(REPO, private=True)
    folder = Path(shutil.copytree(released_model, tmp_path / "checkpoint-3"))
    for name in ("optimizer.pt", "trainer_state.json", "training_args.bin", "rng_state.pth"):
        (folder / name).write_bytes(b"state")
    push_checkpoint(folder, REPO, message="step 3")
    repo = hub.repos["model", REPO]
    model_files = {path.relative_to(released_model).as_posix() for path in released_model.rglob("*") if path.is_file()}
    assert set(repo.resolve("main").files) == model_files | {".gitattributes"}
    push_checkpoint(folder, REPO, message="step 3 with state", state_path="last-checkpoint")
    state = {path for path in repo.resolve("main").files if path.startswith("last-checkpoint/")}
    wanted = {*model_files, "optimizer.pt", "trainer_state.json", "rng_state.pth"}
    assert state == {f"last-checkpoint/{name}" for name in wanted}
    assert len(list(repo.history("main"))) == 3


def test_what_is_not_portable_or_holds_a_secret_is_not_pushed(
    hub: HubServer, make_model: Callable[..., Any], released_model: Path, tmp_path: Path
) -> None:
    HfApi().create_repo(REPO)
    make_model().save(str(tmp_path / "new_layout"))
    with pytest.raises(InputError, match=r"is not pushed: .*\(for sentence-transformers 3\.x, "):
        push_checkpoint(tmp_path / "new_layout", REPO, message="x")
    save_portable(make_model(), tmp_path / "leaky", create_model_card=False)
    (tmp_path / "leaky" / "README.md").write_text(f"my token is {TOKEN}")
    with pytest.raises(InputError, match=r"README\.md, line 1: the token you are logged in with") as error:
        push_checkpoint(tmp_path / "leaky", REPO, message="x")
    assert TOKEN not in str(error.value)
    assert [call.route for call in hub.calls].count("commit") == 0


def test_a_push_waits_for_the_one_before_it_and_keeps_its_step(
    make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is slow: meanwhile the run goes on to the second save."""
    saved, begun, done = threading.Event(), [], []

    def pushed(folder: Path, repo_id: str, *, message: str, **options: object) -> None:
        begun.append(folder)
        if len(begun) == 1:
            assert saved.wait(60)
            time.sleep(0.2)
        done.append((message, (folder / "step").read_text()))

    monkeypatch.setattr("piccolo_st.releasing.push.push_checkpoint", pushed)
    trainer: Any = PortablePushes.__new__(PortablePushes)
    hub = {"hub_strategy": "all_checkpoints", "hub_always_push": True, "hub_revision": None, "hub_token": None}
    trainer.args = SimpleNamespace(output_dir=str(tmp_path), **hub)
    trainer.model, trainer.hub_model_id, trainer.push_in_progress = make_model(), REPO, None
    trainer.is_world_process_zero = lambda: True
    for step in ("1", "2"):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "step").write_text(step)
        trainer.state = SimpleNamespace(global_step=int(step))
        trainer._push_from_checkpoint(str(tmp_path / f"checkpoint-{step}"))
    saved.set()
    trainer.push_in_progress.wait_until_done()
    assert done == [(f"Training in progress, step {step}", step) for step in ("1", "2")]


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_every_strategy_pushes_portable_models(
    hub: HubServer, make_model: Callable[..., Any], tmp_path: Path, strategy: str
) -> None:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    class Trainer(PortablePushes, SentenceTransformerTrainer):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            save_portable(self.model, output_dir or self.args.output_dir)

    model = make_model()
    model.model_card_data = PiccoloModelCardData(model_id=REPO, local_files_only=True)
    model.model_card_data.register_model(model)
    rows = {"query": ["今天天气", "猫", "狗", "山川"] * 2, "positive": ["晴", "动物", "动物", "风"] * 2}
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=4,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        push_to_hub=True,
        hub_model_id=REPO,
        hub_strategy=strategy,
        hub_private_repo=True,
        hub_always_push=True,
        hub_token=TOKEN,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, Dataset.from_dict(rows), loss=MultipleNegativesRankingLoss(model))
    trainer.train()
    trainer.push_to_hub()

    repo = hub.repos["model", REPO]
    history = [commit.title for commit in repo.history("main")][::-1]
    during = ["Training in progress, step 1", "Training in progress, step 2"]
    assert repo.private and history == ["initial commit", *(during if strategy != "end" else []), "End of training"]
    files = repo.resolve("main").files
    folders = {path.split("/")[0] for path in files if "checkpoint" in path}
    wanted = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}
    assert folders == wanted.get(strategy, set())
    assert bool(folders) == any(path.endswith("optimizer.pt") for path in files)
    for commit in repo.history("main"):
        assert not [path for path in commit.files if path.endswith("training_args.bin")]
    for content in [*repo.contents.values(), *repo.uploads.values()]:
        assert TOKEN.encode() not in content
    assert not list((tmp_path / "run").glob("._push-*")), "staging folders are left behind"

    for name in files:
        if "checkpoint" not in name:
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / name).write_bytes(repo.read(files[name]))
    assert all(report.ok for report in check_portable(tmp_path / "copy") if report.consumer not in ONNX_READERS)
    assert json.loads((tmp_path / "copy" / "tokenizer.json").read_text())["truncation"] is None
    card = (tmp_path / "copy" / "README.md").read_text(encoding="utf-8")
    assert "## 评测 · Evaluation" in card and "### Training Hyperparameters" in card and TOKEN not in card
    loaded = SentenceTransformer(str(tmp_path / "copy"), device="cpu")
    assert (loaded.encode(["今天"]) == model.encode(["今天"])).all()


@pytest.mark.parametrize("strategy", ["every_save", "all_checkpoints"])
def test_an_adapter_is_pushed_merged_and_goes_on_elsewhere(
    hub: HubServer, encoder_dir: Path, tmp_path: Path, strategy: str
) -> None:
    from sentence_transformers import SentenceTransformer

    push = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": strategy, "hub_always_push": True}
    push |= {"max_steps": 2, "save_steps": 1}
    trainer = make_trainer(encoder_dir, tmp_path / "run", Case(lora=True), **push)
    trainer.train()
    trainer.push_to_hub()
    repo = hub.repos["model", REPO]
    during = ["Training in progress, step 1", "Training in progress, step 2"]
    assert [commit.title for commit in repo.history("main")][::-1] == ["initial commit", *during, "End of training"]
    for commit, name in zip(repo.history("main"), ("end", "step-2"), strict=False):
        for path, content in commit.files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(repo.read(content))
        assert not list((tmp_path / name).glob("adapter*"))
        loaded = SentenceTransformer(str(tmp_path / name), device="cpu")
        np.testing.assert_allclose(loaded.encode(["今天"]), trainer.model.encode(["今天"]), atol=1e-5)
    states = {path.name for path in (tmp_path / "end").glob("checkpoint-*")}
    assert states == ({"checkpoint-1", "checkpoint-2"} if strategy == "all_checkpoints" else set())
    for state in states:
        assert verify(tmp_path / "end" / state).run["resumable"]
        assert (tmp_path / "end" / state / "adapter_model.safetensors").exists()


def test_a_failed_push_is_logged_and_does_not_stop_training(
    hub: HubServer, caplog: pytest.LogCaptureFixture, released_model: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers.trainer_utils import HubStrategy

    class Trainer(PortablePushes):  # only what the mixin asks of a trainer
        hub_model_id, push_in_progress, model = REPO, None, SentenceTransformer(str(released_model), device="cpu")
        args = type("Args", (), {"hub_strategy": HubStrategy.EVERY_SAVE, "hub_always_push": True,
                                 "hub_revision": None, "hub_token": TOKEN, "output_dir": str(tmp_path)})  # fmt: skip
        state = type("State", (), {"global_step": 7})

        def is_world_process_zero(self) -> bool:
            return True

    trainer = Trainer()
    HfApi().create_repo(REPO)
    hub.fail("commit", status=500)
    with caplog.at_level(logging.ERROR, "piccolo_st"):
        trainer._push_from_checkpoint(str(released_model))
        trainer.push_in_progress.wait_until_done()
        trainer._push_from_checkpoint(str(released_model))
        trainer.push_in_progress.wait_until_done()
    assert "pushing a checkpoint to the Hub failed" in caplog.text and TOKEN not in caplog.text
    assert hub.repos["model", REPO].resolve("main").title == "Training in progress, step 7"
