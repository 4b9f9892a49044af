"""Write the ONNX form of a checkpoint where text-embeddings-inference, transformers.js and ST's backend look for it.

``onnx/model.onnx`` takes input_ids, attention_mask and, where the encoder has segments, token_type_ids, all int64 of
shape (batch, sequence), and gives two float32 outputs: last_hidden_state (batch, sequence, hidden), which most readers
pool themselves, and sentence_embedding (batch, dimension), after pooling and every module behind it. The second is what
text-embeddings-inference takes where it is there, so that a Dense is not lost in it, and what fastembed and
transformers.js can be told to take. The weights are float32 whatever the checkpoint's are, and inside the file.

1. Load the model with sentence-transformers, in float32.
2. Export it with torch.onnx, batch and sequence of any size.
3. Run it with onnxruntime on batches of other sizes, padded ones among them, and compare with torch.
4. If asked for, write beside it ``onnx/model_quantized.onnx``, where transformers.js looks for it: onnxruntime's
   dynamic quantisation, weights in int8, a range for each channel. Compare its sentence_embedding in the same way.
5. Only then put them in their place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from piccolo_st.errors import InputError, optional
from piccolo_st.modeling.loading import load_pretrained
from piccolo_st.modeling.positions import usable_positions

OUTPUTS = ("last_hidden_state", "sentence_embedding")  # in this order: many readers take the first
TOLERANCE = 1e-4  # of a hidden state, whose entries are of the order of 1
INT8_FILE = "model_quantized.onnx"
INT8_COSINE = 0.98  # at least, of an embedding with torch's; multilingual-e5-small has 0.992 and more


def export_onnx(path: str | Path, int8: bool = False) -> Path:
    """Add ``onnx/model.onnx`` to the checkpoint in ``path`` and return its path.

    Args:
        path: folder of a checkpoint, as ``save_portable`` writes it.
        int8: whether to write ``onnx/model_quantized.onnx`` too; otherwise one that is there is removed.

    Raises:
        MissingPackage: onnx, onnxscript or onnxruntime is not installed.
        InputError: ``path`` holds no checkpoint.
        RuntimeError: onnxruntime gives other hidden states than torch, or with int8 embeddings too far from its own.
    """
    with optional("exporting to ONNX", "onnx, onnxscript and onnxruntime", "onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    path = Path(path)
    if not (path / "config.json").exists():
        raise InputError(f"{path} has no config.json; give the folder of a checkpoint, as save_portable writes it")
    options = {"dtype": torch.float32}
    model = (
        load_pretrained(SentenceTransformer, str(path), "the model", device="cpu", model_kwargs=options).float().eval()
    )
    given = model.tokenizer.model_input_names
    names: list[str] = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in given]
    sizes = {0: "batch", 1: "sequence"}
    target = path / "onnx"
    with tempfile.TemporaryDirectory(prefix=".onnx.", dir=path) as folder:
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            _Outputs(model).eval(),
            kwargs=_batch(model, names, rows=2, length=7),
            f=file,
            input_names=names,
            output_names=list(OUTPUTS),
            dynamic_shapes={name: dict(sizes) for name in names},
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        _compare(model, file, names)
        small = _quantise(model, file, names) if int8 else None
        target.mkdir(exist_ok=True)
        (target / INT8_FILE).unlink(missing_ok=True)
        if small is not None:
            small.replace(target / INT8_FILE)
        return file.replace(target / file.name)


def _quantise(model: SentenceTransformer, file: Path, names: list[str]) -> Path:
    """Step (4)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = file.with_name(INT8_FILE)
    # 7 of the 8 bits: on processors without VNNI, sums of two full products saturate.
    quantize_dynamic(file, small, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    for batch, expected, got in _both(model, small, names):
        cosine = torch.cosine_similarity(expected[1], got[1]).min().item()
        if not cosine >= INT8_COSINE:
            raise RuntimeError(
                f"in int8 an embedding of a batch of {tuple(batch['input_ids'].shape)} tokens has a cosine of "
                f"{cosine:.3f} with torch's, less than {INT8_COSINE}: nothing was written; export without int8"
            )
    return small


class _Outputs(nn.Module):
    """The model from token ids to both outputs, without those the exporter would name by itself."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.encoder, self.rest = _encoder(model), nn.ModuleList(list(model)[1:])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **segments).last_hidden_state
        features = {"token_embeddings": hidden, "attention_mask": attention_mask}
        for module in self.rest:
            features = module(features)
        return hidden, features["sentence_embedding"]


def _encoder(model: SentenceTransformer) -> PreTrainedModel:
    return cast(Transformer, model[0]).auto_model


def _batch(model: SentenceTransformer, names: list[str], rows: int, length: int) -> dict[str, Tensor]:
    """Return inputs (rows, length) of random tokens, the later rows shorter and padded on the right."""
    config = _encoder(model).config
    generator = torch.Generator().manual_seed(rows * 1000 + length)
    padding = config.pad_token_id or 0
    ids = torch.randint(padding + 1, config.vocab_size, (rows, length), generator=generator)
    lengths = torch.linspace(length, max(1, length // 2), rows).long()
    mask = (torch.arange(length) < lengths[:, None]).long()
    inputs = {
        "input_ids": ids.where(mask == 1, padding),
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
    }
    return {name: inputs[name] for name in names}


def _both(
    model: SentenceTransformer, file: Path, names: list[str]
) -> Iterator[tuple[dict[str, Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Batches from the shortest to the longest texts, torch's outputs and onnxruntime's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    positions = usable_positions(_encoder(model)) or 512
    for rows, length in ((1, 2), (3, 31), (2, min(positions, 512))):
        batch = _batch(model, names, rows, length)
        with torch.inference_mode():
            expected = _Outputs(model)(**batch)
        got = session.run(list(OUTPUTS), {name: tensor.numpy() for name, tensor in batch.items()})
        yield batch, expected, tuple(map(torch.from_numpy, got))


def _compare(model: SentenceTransformer, file: Path, names: list[str]) -> None:
    for batch, expected, got in _both(model, file, names):
        real = batch["attention_mask"].bool()
        for name, mine, theirs in zip(OUTPUTS, expected, got, strict=True):
            difference = (theirs - mine)[real if name == "last_hidden_state" else ...].abs().max().item()
            if not difference <= TOLERANCE:
                rows, length = real.shape
                raise RuntimeError(
                    f"onnxruntime and torch differ by {difference:.2e} in the {name} of a batch of {rows} x {length} "
                    f"tokens, more than {TOLERANCE:.0e}: the export to ONNX is wrong and was not kept; try another "
                    "opset"
                )
