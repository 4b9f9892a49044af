"""The ONNX file: where consumers look for it, with the inputs they give, and the same embeddings from onnxruntime."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer

from piccolo_st.modeling.instructions import set_prompts
from piccolo_st.modeling.portable import onnx_export
from piccolo_st.modeling.portable.readers import check_portable
from piccolo_st.modeling.portable.saving import load_portable, save_portable
from tests.modeling.portability.checkpoints import TEXTS, xlm_roberta

ModelMaker = Callable[..., SentenceTransformer]


def embed(path: Path, texts: list[str], padding: int, file: str = "model.onnx") -> np.ndarray:
    """Embed as a server that knows only the files: tokenizer.json, onnxruntime, zeros for padding, mean pooling."""
    onnxruntime = pytest.importorskip("onnxruntime")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(60)
    encodings = tokenizer.encode_batch(texts)
    width = max(len(encoding.ids) for encoding in encodings) + padding
    arrays = {
        name: np.zeros((len(texts), width), dtype=np.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    for row, encoding in enumerate(encodings):
        arrays["input_ids"][row, : len(encoding.ids)] = encoding.ids
        arrays["attention_mask"][row, : len(encoding.ids)] = 1
    session = onnxruntime.InferenceSession(str(path / "onnx" / file), providers=["CPUExecutionProvider"])
    wanted = {entry.name: arrays[entry.name] for entry in session.get_inputs()}
    (hidden,) = session.run(["last_hidden_state"], wanted)
    mask = arrays["attention_mask"][:, :, None]
    return (hidden * mask).sum(1) / mask.sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_onnxruntime_gives_the_same_embeddings(family: str, make_model: ModelMaker, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = make_model()
    if family == "roberta":
        model = SentenceTransformer(modules=[Transformer(str(xlm_roberta(tmp_path / "encoder"))), Pooling(32)])
    model.max_seq_length = 60
    set_prompts(model)
    path = tmp_path / "checkpoint"
    save_portable(model, path, torch.float16)
    assert onnx_export.export_onnx(path, int8=True) == path / "onnx" / "model.onnx"
    assert all(report.ok for report in check_portable(path))
    assert [file.name for file in path.iterdir() if file.name.startswith(".")] == []

    graph = onnx.load(path / "onnx" / "model.onnx").graph
    inputs = [entry.name for entry in graph.input]
    assert inputs == ["input_ids", "attention_mask", "token_type_ids"][: 3 if family == "bert" else 2]
    assert [entry.name for entry in graph.output] == ["last_hidden_state", "sentence_embedding"]
    assert not any(tensor.external_data for tensor in graph.initializer)  # one file

    expected = load_portable(path, device="cpu", model_kwargs={"dtype": torch.float32})
    texts = ["查询：" + text for text in TEXTS]
    for batch in (texts, texts[:1]):
        got = embed(path, batch, padding=3)
        wanted = expected.encode(batch)
        assert abs(got - wanted).max() < 1e-5
        small = embed(path, batch, padding=3, file=onnx_export.INT8_FILE)
        cosine = (small * wanted).sum(1) / np.linalg.norm(small, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosine.min() > 0.98 and cosine.max() < 1 - 1e-7
    sizes = [(path / "onnx" / name).stat().st_size for name in ("model.onnx", onnx_export.INT8_FILE)]
    assert sizes[1] < sizes[0]


@pytest.mark.slow
def test_a_wrong_export_is_not_kept(make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    path = tmp_path / "checkpoint"
    save_portable(make_model(), path)
    export = torch.onnx.export

    def other_weights(model: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            norm = model.encoder.encoder.layer[0].output.LayerNorm
            norm.bias += 0.01
            result = export(model, *args, **kwargs)
            norm.bias -= 0.01
        return result

    monkeypatch.setattr(torch.onnx, "export", other_weights)
    with pytest.raises(
        RuntimeError, match=r"onnxruntime and torch differ by .* in the last_hidden_state of a batch of 1 x 2 tokens"
    ):
        onnx_export.export_onnx(path)
    assert not (path / "onnx").exists()


@pytest.mark.slow
def test_bytes_too_far_from_the_model_are_not_kept(
    make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    save_portable(make_model(), tmp_path)
    monkeypatch.setattr(onnx_export, "INT8_COSINE", 1 - 1e-7)
    with pytest.raises(RuntimeError, match=r"in int8 an embedding .* has a cosine of .*: nothing was written; export"):
        onnx_export.export_onnx(tmp_path, int8=True)
    assert not (tmp_path / "onnx").exists()


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'needs onnx, .* run: pip install "piccolo_st\[onnx\]"'):
        onnx_export.export_onnx(tmp_path)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match=r"has no config.json; give the folder of a checkpoint"):
        onnx_export.export_onnx(tmp_path)
