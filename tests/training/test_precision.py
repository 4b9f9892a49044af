"""The dtype of what is trained: a checkpoint in half precision trains like its float32 copy, unless asked otherwise."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoModel

from piccolo_st.errors import InputError
from piccolo_st.modeling.loading import load_encoder, stored_dtype, weights_in_words
from tests.helpers.resume_cases import Case, make_datasets, make_trainer

Finetune = Callable[..., tuple[list[float], dict[str, torch.Tensor], str]]


def bare(encoder: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A checkpoint of transformers alone."""
    shutil.copytree(encoder, folder, dirs_exist_ok=True)
    AutoModel.from_pretrained(encoder).to(dtype).save_pretrained(folder)
    return folder


def modules(encoder: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A model of sentence-transformers, with a Dense."""
    torch.manual_seed(1)
    transformer = Transformer(str(encoder))
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean"), Dense(32, 16)], device="cpu")
    model.to(dtype).save(str(folder))
    return folder


@pytest.fixture
def finetune(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> Finetune:
    """Fine-tune a checkpoint: its losses, its weights, and what it printed."""
    rows = make_datasets(256)["pairs"].to_list()
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def run(checkpoint: Path, output: Path, *options: str) -> tuple[list[float], dict[str, torch.Tensor], str]:
        content = {
            "model": {"name_or_path": str(checkpoint)},
            "data": {"mixture": {"datasets": {"faq": {"source": str(data), "task": "retrieval"}}}, "batch_size": 8},
            "train": {"output_dir": str(output), "max_steps": 30, "logging_steps": 1, "save_steps": 10},
        }
        config = tmp_path / "run.yaml"
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        code, shown, error = command("finetune", config, *options)
        assert code == 0, error
        log = json.loads((output / "run.json").read_text(encoding="utf-8"))["log"]
        weights = load_file(output / "model" / "model.safetensors")
        return [entry["loss"] for entry in log if "loss" in entry], weights, shown

    return run


def never_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """The share of the weights in the layers' matrices that are what they were."""
    names = [name for name in after if name.startswith("encoder.") and after[name].ndim == 2]
    same = sum(int((before[name].double() == after[name].double()).sum()) for name in names)
    return same / sum(after[name].numel() for name in names)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("write", "dtype"),
    [
        pytest.param(bare, "bfloat16", id="bare-bfloat16"),
        pytest.param(modules, "float16", id="modules-float16"),
        pytest.param(bare, "float16", id="bare-float16"),
        pytest.param(modules, "bfloat16", id="modules-bfloat16"),
    ],
)
def test_a_checkpoint_in_half_precision_trains_like_its_float32_copy(
    write: Any, dtype: str, encoder_dir: Path, tmp_path: Path, finetune: Finetune
) -> None:
    half = write(encoder_dir, tmp_path / "half", getattr(torch, dtype))
    copied = tmp_path / "copy"
    if write is bare:
        bare(half, copied, torch.float32)
    else:
        SentenceTransformer(str(half), model_kwargs={"dtype": "float32"}).save(str(copied))
    before = load_file(half / "model.safetensors")
    assert stored_dtype(str(half)) == dtype and stored_dtype(str(copied)) == "float32"

    losses, weights, shown = finetune(half, tmp_path / "run")
    expected, _, shown_of_copy = finetune(copied, tmp_path / "run-copy")

    assert f"\nweights    float32 (stored as {dtype})\n" in shown and "\nweights    float32\n" in shown_of_copy
    assert len(losses) == 30 and losses == pytest.approx(expected, abs=1e-3)
    assert never_moved(before, weights) == 0
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_asked_for_it_stays_and_goes_on_after_an_interruption(
    dtype: str, encoder_dir: Path, tmp_path: Path, finetune: Finetune
) -> None:
    half = modules(encoder_dir, tmp_path / "half", torch.bfloat16)
    options = [] if dtype == "float32" else ["--model.dtype", dtype]
    _, weights, shown = finetune(half, tmp_path / "run", *options)
    assert f"\nweights    {dtype}" in shown
    assert ("process(es), rows without padding\n" in shown) == (dtype == "float32")  # half precision hides a fault
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, dtype)}
    assert (never_moved(load_file(half / "model.safetensors"), weights) > 0.3) == (dtype == "bfloat16")

    shutil.rmtree(tmp_path / "run" / "checkpoint-30")
    shutil.rmtree(tmp_path / "run" / "model")
    _, again, _ = finetune(half, tmp_path / "run", *options)
    assert all(again[name].equal(weights[name]) for name in weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "stored"])
def test_all_modules_are_loaded_in_what_is_asked_for(dtype: str, encoder_dir: Path, tmp_path: Path) -> None:
    folder = modules(encoder_dir, tmp_path / "half", torch.float16)
    config = folder / "sentence_bert_config.json"  # what its author loaded it with
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_args": {"torch_dtype": "float16"}}))

    model = load_encoder(str(folder), dtype=dtype)

    expected = torch.float16 if dtype == "stored" else getattr(torch, dtype)
    assert {weight.dtype for weight in model.parameters()} == {expected}
    note = "" if expected == torch.float16 else " (stored as float16)"
    assert weights_in_words(model) == str(expected).removeprefix("torch.") + note


@pytest.mark.parametrize(("dtype", "near"), [("bf16", "did you mean bfloat16?"), ("half", "known are bfloat16, float")])
def test_another_dtype_is_refused(dtype: str, near: str, encoder_dir: Path) -> None:
    with pytest.raises(InputError, match=rf"model.dtype must name the numbers .*, got '{dtype}'; ") as raised:
        load_encoder(str(encoder_dir), dtype=dtype)
    assert near in str(raised.value)


def test_what_is_stored_where_no_safetensors_says_it(encoder_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    assert stored_dtype(str(tmp_path)) == "float16"
    assert stored_dtype(str(tmp_path / "nowhere")) is None


def test_a_trainer_says_that_half_precision_loses_steps(
    encoder_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="piccolo_st.training.guards"):
        make_trainer(encoder_dir, tmp_path / "whole", Case(), max_steps=1).train()
        assert not caplog.text
        half = bare(encoder_dir, tmp_path / "half", torch.bfloat16)
        make_trainer(half, tmp_path / "run", Case(), max_steps=1).train()
    assert "the weights that are trained are bfloat16: a step that is small" in caplog.text
    assert "model.float() before the trainer" in caplog.text
