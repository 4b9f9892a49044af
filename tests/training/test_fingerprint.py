"""A run's fingerprint is what the trainer itself sees: with anything else, another run's model is not given back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from piccolo_st.losses import PiccoloLoss
from piccolo_st.training.fingerprint import weights_fingerprint
from piccolo_st.training.manifest import CheckpointError
from piccolo_st.training.trainer import PiccoloTrainer
from piccolo_st.training.training_arguments import PiccoloTrainingArguments
from tests.conftest import build_encoder
from tests.helpers.resume_cases import make_datasets, stop_after, weights_hash

Change = Callable[[SentenceTransformer, dict[str, Any]], Any]


def make(encoder: Path, output: Path, change: Change | None = None, **settings: Any) -> PiccoloTrainer:
    """A trainer as a script makes it: no run configuration, stock arguments but for the few of a short run."""
    torch.manual_seed(0)
    transformer = Transformer(str(encoder))
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    options: dict[str, Any] = {"loss": PiccoloLoss, "collate": lambda collator: None}
    if change is not None:
        change(model, options)
    arguments = PiccoloTrainingArguments(
        **{
            "output_dir": str(output), "per_device_train_batch_size": 4, "max_steps": 4, "save_steps": 2,
            "disable_tqdm": True, **options.get("arguments", {}), **settings,
        }
    )  # fmt: skip
    data = DatasetDict(pairs=make_datasets()["pairs"])
    trainer = PiccoloTrainer(model=model, args=arguments, train_dataset=data, loss=options["loss"](model))
    options["collate"](trainer.data_collator)
    return trainer


def _pooling(model: SentenceTransformer, options: dict[str, Any]) -> None:
    model[1].pooling_mode = "cls"


def _dense(model: SentenceTransformer, options: dict[str, Any]) -> None:
    model.append(Dense(32, 16))


def _prompts(model: SentenceTransformer, options: dict[str, Any]) -> None:
    model.prompts = {"query": "查询："}


def _length(model: SentenceTransformer, options: dict[str, Any]) -> None:
    model.max_seq_length = 8


def _dropout(model: SentenceTransformer, options: dict[str, Any]) -> None:
    model[0].model.config.hidden_dropout_prob = 0.3


def _weights(model: SentenceTransformer, options: dict[str, Any]) -> None:
    with torch.no_grad():
        model[0].model.encoder.layer[0].output.dense.weight += 0.01


def _frozen(model: SentenceTransformer, options: dict[str, Any]) -> None:
    model[0].model.embeddings.requires_grad_(False)


def _half(model: SentenceTransformer, options: dict[str, Any]) -> None:
    model.to(torch.bfloat16)


def set_option(**values: Any) -> Change:
    return lambda model, options: options.update(values)


CHANGES: dict[str, tuple[Change, str]] = {
    "loss": (
        set_option(loss=MultipleNegativesRankingLoss),
        r"trainer\.loss\.class was PiccoloLoss and is MultipleNegativesRankingLoss",
    ),
    "temperature": (
        set_option(loss=lambda model: PiccoloLoss(model, temperature=0.05)),
        r"trainer\.loss\.temperature was 0\.01 and is 0\.05",
    ),
    "wrapped loss": (
        set_option(loss=lambda model: MatryoshkaLoss(model, PiccoloLoss(model), [32, 16])),
        r"trainer\.loss\.class was PiccoloLoss and is MatryoshkaLoss",
    ),
    "pooling": (_pooling, r"trainer\.model\.1\.pooling_mode was mean and is cls"),
    "module": (_dense, r"trainer\.model\.modules was \['Transformer', 'Pooling'\] and is \[.*'Dense'\]"),
    "prompts": (_prompts, r'trainer\.model\.prompts was .* and is {.*"query": "查询："'),
    "length": (_length, r"trainer\.model\.0\.max_seq_length was 512 and is 8"),
    "dropout": (_dropout, r"trainer\.model\.0\.config\.hidden_dropout_prob was 0\.1 and is 0\.3"),
    "weights": (_weights, r"trainer\.model\.starting weights was [0-9a-f]{16} and is [0-9a-f]{16}"),
    "frozen": (_frozen, r"trainer\.model\.trained weights was \[39, \d+\] and is \[34, \d+\]"),
    "dtype": (_half, r"trainer\.model\.dtypes was \['torch\.float32'\] and is \['torch\.bfloat16'\]"),
    "collator": (
        set_option(collate=lambda collator: setattr(collator, "seed", 7)),
        r"trainer\.collator\.seed was 0 and is 7",
    ),
    "arguments": (
        set_option(arguments={"learning_rate_mapping": {"word_embeddings": 0.0}}),
        r'trainer\.arguments\.learning_rate_mapping was {} and is {"word_embeddings": 0\.0}',
    ),
}


@pytest.fixture(scope="module")
def finished(encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a run that has ended, and the hash of its weights."""
    output = tmp_path_factory.mktemp("run")
    trainer = make(encoder_dir, output)
    trainer.train()
    return output, weights_hash(trainer.model)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named_and_the_model_of_another_run_is_not_given_back(
    name: str, encoder_dir: Path, finished: tuple[Path, str]
) -> None:
    change, message = CHANGES[name]
    trainer = make(encoder_dir, finished[0], change)
    remedy = r'another output_dir, or start anew here with resume="never" of the arguments .* with accept_changes=True$'
    with pytest.raises(
        CheckpointError, match=rf"checkpoint-4 is of another run, which has ended: .*{message}.*{remedy}"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_same_run_gives_its_model_back(encoder_dir: Path, finished: tuple[Path, str]) -> None:
    trainer = make(encoder_dir, finished[0])
    trainer.train()
    assert weights_hash(trainer.model) == finished[1]


def test_an_accepted_change_trains_on_and_never_passes_off_what_has_ended(
    encoder_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(encoder_dir, tmp_path).train()
    change, _ = CHANGES["temperature"]
    with pytest.raises(
        CheckpointError, match=r"which has ended: .*train more steps or epochs than it had with accept_"
    ):
        make(encoder_dir, tmp_path, change, accept_changes=True).train()
    longer = make(encoder_dir, tmp_path, change, accept_changes=True, max_steps=6)
    longer.train()
    assert longer.state.global_step == 6 and "temperature was 0.01 and is 0.05" in caplog.text


def test_a_checkpoint_of_version_0_1_0_compares_what_it_has(encoder_dir: Path, tmp_path: Path) -> None:
    first = make(encoder_dir, tmp_path)
    stop_after(first, 3)
    first.train()
    manifest = tmp_path / "checkpoint-2" / "manifest.json"
    content = json.loads(manifest.read_text())
    signature = content["run"]["signature"]
    content["run"]["signature"] = {key: value for key, value in signature.items() if key[:8] != "trainer."}
    assert len(content["run"]["signature"]) < len(signature)
    del content["digest"]  # which a manifest of 0.1.0 has not
    manifest.write_text(json.dumps(content))
    again = make(encoder_dir, tmp_path, CHANGES["temperature"][0])
    again.train()
    assert again.state.global_step == 4
    with pytest.raises(CheckpointError, match=r"is of another run.*: train\.learning_rate was 2e-05 and is 0\.01"):
        make(encoder_dir, tmp_path, CHANGES["temperature"][0], learning_rate=0.01).train()


def test_the_fingerprint_tells_checkpoints_apart_and_not_what_begins_at_random(tmp_path: Path) -> None:
    def model(seed: int) -> SentenceTransformer:
        path = build_encoder(tmp_path / f"{seed}", seed=seed)
        return SentenceTransformer(modules=[Transformer(str(path)), Pooling(32), Dense(32, 8)], device="cpu")

    first, again, other = model(1), model(1), model(2)
    assert weights_fingerprint(first) == weights_fingerprint(again) != weights_fingerprint(other)
    assert (first[2].linear.weight != again[2].linear.weight).any()
    torch.nn.init.normal_(again[0].model.pooler.dense.weight)
    assert weights_fingerprint(first) == weights_fingerprint(again)
    for name, tensor in again[0].model.encoder.named_parameters():  # whichever of its tensors moves
        with torch.no_grad():
            before = tensor.clone()
            tensor += 1e-3
            assert weights_fingerprint(again) != weights_fingerprint(first), name
            tensor.copy_(before)
