"""Write the ONNX form of a checkpoint where text-embeddings-inference, transformers.js and ST's backend look for it.

``onnx/model.onnx`` takes input_ids, attention_mask and, where the encoder has segments, token_type_ids, all int64 of
shape (batch, sequence), and gives last_hidden_state, float32 of shape (batch, sequence, dimension). Pooling is left to
those who read it, as they expect. The weights are float32 whatever the checkpoint's are, and inside the file.

1. Load the encoder with transformers, in float32.
2. Export it with torch.onnx, batch and sequence of any size.
3. Run it with onnxruntime on batches of other sizes, padded ones among them, and compare with torch.
4. Only then put it in its place.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from piccolo_st.errors import InputError, MissingPackage
from piccolo_st.modeling.positions import usable_positions

TOLERANCE = 1e-4  # of a hidden state, whose entries are of the order of 1


def export_onnx(path: str | Path, opset: int = 18) -> Path:
    """Add ``onnx/model.onnx`` to the checkpoint in ``path`` and return its path.

    Args:
        path: folder of a checkpoint, as ``save_portable`` writes it.
        opset: version of the ONNX operators; older runtimes need older ones.

    Raises:
        MissingPackage: onnx, onnxscript or onnxruntime is not installed.
        InputError: ``path`` holds no checkpoint.
        RuntimeError: onnxruntime gives other hidden states than torch.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackage("exporting to ONNX", "onnx, onnxscript and onnxruntime", "onnx") from error
    path = Path(path)
    if not (path / "config.json").exists():
        raise InputError(f"{path} has no config.json; give the folder of a checkpoint, as save_portable writes it")
    encoder = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    given = AutoTokenizer.from_pretrained(path).model_input_names
    names: list[str] = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in given]
    sizes = {0: "batch", 1: "sequence"}
    target = path / "onnx"
    with tempfile.TemporaryDirectory(prefix=".onnx.", dir=path) as folder:
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            _HiddenStates(encoder).eval(),
            kwargs=_batch(encoder, names, rows=2, length=7),
            f=file,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_shapes={name: dict(sizes) for name in names},
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        _compare(encoder, file, names)
        target.mkdir(exist_ok=True)
        return file.replace(target / file.name)


class _HiddenStates(nn.Module):
    """The encoder without its other outputs, which the exporter would name by itself."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **segments).last_hidden_state


def _batch(encoder: PreTrainedModel, names: list[str], rows: int, length: int) -> dict[str, Tensor]:
    """Return inputs (rows, length) of random tokens, the later rows shorter and padded on the right."""
    generator = torch.Generator().manual_seed(rows * 1000 + length)
    padding = encoder.config.pad_token_id or 0
    ids = torch.randint(padding + 1, encoder.config.vocab_size, (rows, length), generator=generator)
    lengths = torch.linspace(length, max(1, length // 2), rows).long()
    mask = (torch.arange(length) < lengths[:, None]).long()
    inputs = {
        "input_ids": ids.where(mask == 1, padding),
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
    }
    return {name: inputs[name] for name in names}


def _compare(encoder: PreTrainedModel, file: Path, names: list[str]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for rows, length in ((1, 2), (3, 31), (2, min(usable_positions(encoder) or 512, 512))):
        batch = _batch(encoder, names, rows, length)
        with torch.inference_mode():
            expected = encoder(**batch).last_hidden_state
        (got,) = session.run(["last_hidden_state"], {name: tensor.numpy() for name, tensor in batch.items()})
        real = batch["attention_mask"].bool()
        difference = (torch.from_numpy(got) - expected)[real].abs().max().item()
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"onnxruntime and torch differ by {difference:.2e} in a batch of {rows} x {length} tokens, more than "
                f"{TOLERANCE:.0e}: the export to ONNX is wrong and was not kept; try another opset"
            )
