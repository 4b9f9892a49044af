"""Whatever sentence-transformers saves and loads is trained, saved, resumed and loaded; the rest is refused at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Router
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    Dropout,
    LayerNorm,
    Pooling,
    StaticEmbedding,
    Transformer,
    WeightedLayerPooling,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from piccolo_st.errors import InputError
from piccolo_st.modeling.instructions import set_prompts
from piccolo_st.modeling.pooling import set_instruction_pooling
from piccolo_st.modeling.portable.saving import load_portable, save_portable
from piccolo_st.training.manifest import CheckpointError
from piccolo_st.training.trainer import PiccoloTrainer
from piccolo_st.training.training_arguments import PiccoloTrainingArguments
from tests.helpers.resume_cases import make_datasets, stop_after, weights_hash

TEXTS = ["查询：山水", "山川河海风雨云", "春夏秋冬"]


class Scale(Module):
    """A module of a user's own, with a weight."""

    config_keys: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(32))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features["sentence_embedding"] = features["sentence_embedding"] * self.factor
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> Scale:
        return cls.load_torch_weights(model_name_or_path, model=cls(), **_of_hub(kwargs))


def _of_hub(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
    return {name: value for name, value in kwargs.items() if name in names}


def transformer(encoder: Path, **kwargs: Any) -> Any:
    return Transformer(str(encoder), **kwargs)


def layers(encoder: Path) -> list[Any]:
    first = transformer(encoder, config_kwargs={"output_hidden_states": True})
    return [first, WeightedLayerPooling(32, 2, layer_start=1), Pooling(32)]


def router(encoder: Path) -> list[Any]:
    return [
        Router.for_query_document(
            [transformer(encoder), Pooling(32)], [transformer(encoder), Pooling(32), LayerNorm(32)]
        )
    ]


def instructions(encoder: Path) -> list[Any]:
    return [transformer(encoder), Pooling(32), LayerNorm(32)]


def words(encoder: Path) -> list[Any]:
    tokenizer = WhitespaceTokenizer(sorted({text for rows in make_datasets()["pairs"] for text in rows.values()}))
    return [WordEmbeddings(tokenizer, torch.randn(len(tokenizer.get_vocab()), 16)), LSTM(16, 16), Pooling(32)]


KINDS: dict[str, Callable[[Path], list[Any]]] = {
    "plain": lambda encoder: [transformer(encoder), Pooling(32)],
    "layer norm": lambda encoder: [transformer(encoder), Pooling(32), LayerNorm(32)],
    "residual dense": lambda encoder: [transformer(encoder), Pooling(32), Dense(32, 32, use_residual=True)],
    "layers": layers,
    "router": router,
    "static": lambda encoder: [StaticEmbedding(transformer(encoder).tokenizer, embedding_dim=32)],
    "words": words,
    "cnn": lambda encoder: [transformer(encoder), CNN(32, 8), Pooling(24)],
    "dropout": lambda encoder: [transformer(encoder), Pooling(32), Dropout(0.1)],
    "modes": lambda encoder: [transformer(encoder), Pooling(32, ("mean", "cls"))],
    "instructions": instructions,
    "own module": lambda encoder: [transformer(encoder), Pooling(32), Scale()],
}


def make(kind: str, encoder: Path, output: Path, **options: Any) -> PiccoloTrainer:
    torch.manual_seed(0)
    loss = options.pop("loss", MultipleNegativesRankingLoss)
    model = SentenceTransformer(modules=KINDS[kind](encoder), device="cpu")
    if kind == "instructions":
        set_prompts(model)
        set_instruction_pooling(model, "piccolo", include_instruction=False)
    arguments = PiccoloTrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=4,
        max_steps=4,
        save_steps=2,
        learning_rate=1e-2,
        disable_tqdm=True,
        router_mapping={"query": "query", "positive": "document"} if kind == "router" else None,
        **options,
    )
    data = make_datasets()["pairs"]
    return PiccoloTrainer(model=model, args=arguments, train_dataset=data, loss=loss(model))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_trained_saved_and_resumed(kind: str, encoder_dir: Path, tmp_path: Path) -> None:
    whole = make(kind, encoder_dir, tmp_path / "whole")
    whole.train()
    killed = make(kind, encoder_dir, tmp_path / "run")
    stop_after(killed, 3)
    killed.train()
    again = make(kind, encoder_dir, tmp_path / "run")
    again.train()
    assert again.state.global_step == 4
    assert weights_hash(again.model) == weights_hash(whole.model) != weights_hash(killed.model)

    folder = tmp_path / "model"
    again.save_model(str(folder))
    stock = SentenceTransformer(str(folder), device="cpu", trust_remote_code=kind == "own module")
    loaded = load_portable(folder, device="cpu", trust_remote_code=kind == "own module")

    def same(model: SentenceTransformer, encode: str, texts: list[str]) -> bool:
        mine, theirs = (getattr(one, encode)(texts) for one in (again.model, model))
        return float(abs(mine - theirs).max()) < 1e-6  # a trained model packs its rows, which rounds otherwise

    encode = "encode_document" if kind == "router" else "encode"
    assert same(stock, "encode_query", TEXTS[1:]) and same(loaded, encode, TEXTS)
    # Stock Pooling finds instructions only where encode_query puts them.
    assert same(stock, encode, TEXTS) == (kind != "instructions")
    types = [entry["type"] for entry in json.loads((folder / "modules.json").read_text())]
    assert not [name for name in types if name.startswith("piccolo_st")]


def test_a_model_that_is_not_portable_is_said_to_be_at_the_start(
    encoder_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make("plain", encoder_dir, tmp_path / "plain").train()
    assert "layout" not in caplog.text
    make("layer norm", encoder_dir, tmp_path / "norm").train()
    assert "saved in a layout that is sentence-transformers' own: a portable checkpoint must be a T" in caplog.text
    assert "got ['Transformer', 'Pooling', 'LayerNorm']" in caplog.text


class Unsavable(Scale):
    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("no idea how")


class NoModule(torch.nn.Module):
    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features


def twice(encoder: Path) -> list[Any]:
    first = transformer(encoder)
    first.auto_model = torch.nn.Sequential(first.model)  # as get_peft_model wraps it
    return [first, Pooling(32)]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            lambda encoder: [*KINDS["plain"](encoder), Unsavable()],
            r"would not hold it: module '2', a Unsavable, cannot be saved: NotImplementedError: no idea how; mend its",
        ),
        (
            lambda encoder: [*KINDS["plain"](encoder), NoModule()],
            r"'2' is a NoModule, which has no save; .*as a sub",
        ),
        (twice, r"module '0' holds a second encoder in auto_model, .*set \.model, as in model\[0\]\.model = get_peft"),
    ],
    ids=["unsavable", "no module", "auto_model"],
)
def test_what_no_checkpoint_could_hold_is_refused_before_the_first_step(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: Any, message: str
) -> None:
    monkeypatch.setitem(KINDS, "faulty", modules)
    trainer = make("faulty", encoder_dir, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0 and not list((tmp_path / "run").glob("checkpoint-*"))


class Classified(torch.nn.Module):
    """A loss with weights of its own, which the trainer trains and no model holds."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model, self.classifier = model, torch.nn.Linear(64, 1)

    def forward(self, features: Any, labels: Any) -> torch.Tensor:
        vectors = torch.cat([self.model(one)["sentence_embedding"] for one in features], dim=1)
        return self.classifier(vectors).square().mean()


def test_weights_of_a_loss_are_saved_and_resumed(encoder_dir: Path, tmp_path: Path) -> None:
    whole = make("plain", encoder_dir, tmp_path / "whole", loss=Classified)
    whole.train()
    stop_after(killed := make("plain", encoder_dir, tmp_path / "run", loss=Classified), 3)
    killed.train()
    again = make("plain", encoder_dir, tmp_path / "run", loss=Classified)
    before = again.loss.classifier.weight.clone()
    again.train()
    assert weights_hash(again.loss) == weights_hash(whole.loss) and (again.loss.classifier.weight != before).any()
    other = make("plain", encoder_dir, tmp_path / "run", accept_changes=True)
    other.args.max_steps = 6
    with pytest.raises(CheckpointError, match=r"weights {.*'loss\.classifier\.weight': \(1, 64\)} .* have none; go on"):
        other.train()


def test_an_adapter_of_peft_is_trained_saved_and_resumed(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")

    def modules(encoder: Path) -> list[Any]:
        first = transformer(encoder)
        settings = peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=4, target_modules=["query", "value"])
        first.model = peft.get_peft_model(first.model, settings)
        return [first, Pooling(32)]

    monkeypatch.setitem(KINDS, "peft", modules)
    test_each_kind_is_trained_saved_and_resumed("peft", encoder_dir, tmp_path)
    assert not (tmp_path / "run" / "checkpoint-4" / "model.safetensors").exists()
    stock = SentenceTransformer(str(tmp_path / "run" / "checkpoint-4"), device="cpu")
    with pytest.raises(InputError, match=r"needs whole weights, got an adapter .* put the encoder into its wrapper"):
        save_portable(stock, tmp_path / "portable")
