"""Pretraining an encoder by masked language modelling: the text, the blocks, the loss, the directory it leaves."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from piccolo_st.arguments import ENCODER
from piccolo_st.configuration import parse_run, run_recipe
from piccolo_st.data.mixture import load_mixture
from piccolo_st.encoder import load_encoder
from piccolo_st.errors import InputError
from piccolo_st.pretraining import EncoderRun, MaskedPositions, distinct_texts

ROOT = Path(__file__).parent.parent
DIGITS = "一二三四五六七八九十"
NUMBERS = [a + b for a in DIGITS for b in DIGITS]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A mixture with a held-out set and lists of negatives, and an encoder of one layer."""
    rows = [
        {"query": f"数{n}是多少", "positive": f"{n}的结果", "negative": [f"{m}月" for m in NUMBERS[i : i + 2]]}
        for i, n in enumerate(NUMBERS)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    dataset = {"source": "rows.jsonl", "task": "retrieval", "holdout": {"queries": 10, "min_corpus": 20}}
    content = {
        "model": {"build": {"vocab_size": 200, "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32}},
        "data": {"mixture": {"root": str(tmp_path), "datasets": {"rows": dataset}}, "max_length": 16, "held_out": 0.1},
        "train": {
            "output_dir": str(tmp_path / "run"), "num_train_epochs": 8, "use_cpu": True, "save_strategy": "no",
            "logging_steps": 5, "eval_strategy": "epoch", "disable_tqdm": True, "learning_rate": 1e-2,
        },
    }  # fmt: skip
    path = tmp_path / "encoder.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def test_each_training_text_is_read_once_and_no_held_out_one(config: Path) -> None:
    mixture = load_mixture(yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["mixture"])
    texts = list(distinct_texts(mixture))
    assert len(texts) == len(set(texts))
    assert set(texts) >= set(mixture.train["rows"]["query"])
    assert any(text.endswith("月") for text in texts), "texts in lists count"
    held = mixture.holdouts["rows"]
    answers = {held.corpus[document] for found in held.relevant.values() for document in found}
    assert not answers & set(texts) and not set(held.queries.values()) & set(texts)


def test_the_loss_is_that_of_the_whole_model(encoder_dir_no_dropout: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(encoder_dir_no_dropout).eval()
    ids = torch.randint(5, 50, (3, 7))
    labels = torch.where(torch.rand(3, 7) < 0.4, ids, -100)
    labels[0, 0] = ids[0, 0]
    mask = torch.ones_like(ids)
    stock = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    ours = MaskedPositions(model)(input_ids=ids, attention_mask=mask, labels=labels)["loss"]
    torch.testing.assert_close(ours, stock)


def test_a_model_of_other_parts_is_refused() -> None:
    model = DistilBertForMaskedLM(DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=8))
    with pytest.raises(InputError, match="an encoder with a head, got a DistilBertForMaskedLM; give a BERT"):
        MaskedPositions(model)


def test_blocks_are_full_and_hold_whole_texts_one_after_the_other(config: Path) -> None:
    run = EncoderRun(parse_run([str(config)], ENCODER, config))
    assert {len(row) for row in run.blocks["input_ids"]} == {16}
    decoded = run.tokenizer.decode([token for row in run.blocks["input_ids"] for token in row])
    assert "[SEP] [CLS]" in decoded and "[PAD]" not in decoded


def test_from_yaml_to_an_encoder_that_a_run_takes(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "recipes" / "pretrain_encoder.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    monkeypatch.setattr(sys, "argv", ["pretrain_encoder.py", str(config)])
    with pytest.raises(SystemExit) as stopped:
        run_recipe(recipe.main)
    shown = capsys.readouterr()
    assert stopped.value.code == 0, shown.err
    assert "--model.name_or_path" in shown.out
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    losses = [entry["eval_loss"] for entry in record["log"] if "eval_loss" in entry]
    assert losses[-1] < 3.5 < math.log(len(NUMBERS)), losses
    assert (tmp_path / "run" / "curves.png").exists()
    model = load_encoder(str(tmp_path / "run" / "model"), query_length=16, document_length=32)
    assert model.encode_query(["数一一"]).shape == (1, 16)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--data.mixture", "null"], "names no data; set data.mixture"),
        (["--data.max_length", "600"], "data.max_length must be at most the 512 positions of the encoder, got 600"),
        (["--data.masked", "1.5"], "data.masked must be above 0 and below 1, got 1.5"),
    ],
)
def test_bad_settings(config: Path, override: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EncoderRun(parse_run([str(config), *override], ENCODER, config))
