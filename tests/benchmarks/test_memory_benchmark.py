"""What each switch of the memory recipe saves, measured on a small encoder: the table of recipes/README.md.

    pytest -m benchmark tests/benchmarks/test_memory_benchmark.py -s

Each row runs in processes of its own. Saved activations are the bytes that autograd keeps for the backward pass at
their highest, without the weights, counted with saved-tensor hooks; optimizer state is the bytes of the rank's own
moments. Both count what they name, so that the numbers do not depend on an allocator; time does depend on the machine.
"""

from __future__ import annotations

import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import build_encoder
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import Case, make_trainer

HIDDEN, LAYERS, BATCH, STEPS = 256, 4, 32, 3

# name, processes, engine, training arguments, loss options
SWITCHES: list[tuple[str, int, str, dict[str, Any], dict[str, Any]]] = [
    ("none", 2, "ddp", {}, {}),
    ("checkpointing", 2, "ddp", {"activation_checkpointing": True}, {}),
    ("caching, 8 rows", 2, "ddp", {}, {"mini_batch_size": 8}),
    ("both", 2, "ddp", {"activation_checkpointing": True}, {"mini_batch_size": 8}),
    ("bf16", 2, "ddp", {"bf16": True}, {}),
    ("ZeRO-1", 2, "zero1", {}, {}),
    ("all: ZeRO-1, bf16, both", 2, "zero1", {"bf16": True, "activation_checkpointing": True}, {"mini_batch_size": 8}),
]


class SavedBytes:
    """The most bytes that autograd keeps at once; a storage kept several times counts once, a weight not at all."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.now = self.highest = 0
        self._model = model
        self._weights: set[int] | None = None
        self._kept: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> Any:
        if self._weights is None:  # at the first step: DeepSpeed has moved them by then
            self._weights = {weight.untyped_storage().data_ptr() for weight in self._model.parameters()}
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self._weights:
            return Holder(tensor)
        self._kept[place] = self._kept.get(place, 0) + 1
        if self._kept[place] == 1:
            self.now += storage.nbytes()
            self.highest = max(self.highest, self.now)
        holder = Holder(tensor)
        weakref.finalize(holder, self._release, place, storage.nbytes())
        return holder

    def _release(self, place: int, size: int) -> None:
        self._kept[place] -= 1
        if not self._kept[place]:
            self.now -= size


class Holder:
    """What the graph keeps in a tensor's stead; when it goes, so does the tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _measure(
    rank: int, world: int, encoder: str, output: str, case: Case, options: dict[str, Any]
) -> tuple[float, float, float]:
    trainer = make_trainer(
        Path(encoder), Path(output), case, max_steps=STEPS, save_strategy="no", logging_steps=100, **options
    )
    saved = SavedBytes(trainer.model)
    began = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda holder: holder.tensor):
        trainer.train()
    seconds = (time.perf_counter() - began) / STEPS
    return saved.highest / 1e6, _optimizer_bytes(trainer.optimizer) / 1e6, seconds


def _optimizer_bytes(optimizer: Any) -> int:
    while hasattr(optimizer, "optimizer") and not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.untyped_storage().nbytes() for value in values if isinstance(value, torch.Tensor))


@pytest.mark.benchmark
def test_what_each_switch_saves(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    encoder = build_encoder(tmp_path / "encoder", hidden_size=HIDDEN, layers=LAYERS)
    print(f"\n{LAYERS} layers x {HIDDEN}, batch {BATCH} a rank, 2 ranks, torch {torch.__version__}, CPU")
    print(f"{'switch':<26} {'activations MB':>14} {'optimizer MB':>12} {'s/step':>7}")
    found = {}
    for name, world, engine, options, loss in SWITCHES:
        case = Case(world, engine, batch_size=BATCH, rows=8 * BATCH, loss=loss)
        activations, optimizer, seconds = run_ranks(
            _measure, world, str(encoder), str(tmp_path / name.replace(":", "")), case, options
        )[0]
        found[name] = (activations, optimizer)
        print(f"{name:<26} {activations:>14.1f} {optimizer:>12.1f} {seconds:>7.2f}", flush=True)
    assert found["both"][0] < found["checkpointing"][0] < found["none"][0]
    assert found["caching, 8 rows"][0] < found["none"][0]
    assert found["ZeRO-1"][1] < 0.6 * found["none"][1]
