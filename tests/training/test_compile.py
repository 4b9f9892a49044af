"""``train.torch_compile``: the loss goes through the compiled model, and what it trains stays the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from piccolo_st.modeling import compile_layers
from tests.helpers.resume_cases import Case, make_trainer


@pytest.mark.slow
@pytest.mark.timeout(900)  # a compiler of C++ builds every kernel
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("caching", [{}, {"mini_batch_num_tokens": 40}], ids=["plain", "cached"])
def test_a_compiled_run_trains_the_same(caching: dict[str, Any], encoder_dir_no_dropout: Path, tmp_path: Path) -> None:
    losses: dict[bool, list[float]] = {}
    weights: dict[bool, list[torch.Tensor]] = {}
    calls = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        counters.clear()
        trainer = make_trainer(
            encoder_dir_no_dropout,
            tmp_path / str(compiled),
            Case(loss=caching),
            torch_compile=compiled,
            max_steps=8,
            logging_steps=1,
            save_strategy="no",
        )
        before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        trainer.train()
        calls[compiled] = counters["stats"]["calls_captured"]
        losses[compiled] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        weights[compiled] = [parameter.detach().clone() for parameter in trainer.model.parameters()]

    assert calls[False] == 0 and calls[True] > 20, "the encoder was not compiled"
    assert len(losses[True]) == 8 and losses[True][-1] < losses[True][0]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    moved = max((new - old).abs().max().item() for new, old in zip(weights[False], before, strict=True))
    apart = max((one - other).abs().max().item() for one, other in zip(*weights.values(), strict=True))
    assert apart < 0.01 * moved


@pytest.mark.parametrize("caching", [{}, {"mini_batch_num_tokens": 40}], ids=["plain", "cached"])
def test_a_run_of_compiled_layers_trains_saves_and_goes_on_the_same(
    caching: dict[str, Any], encoder_dir_no_dropout: Path, tmp_path: Path
) -> None:
    """As on a GPU, by a compiler that only traces: with activation checkpointing, and on from a checkpoint."""
    weights = {}
    for name in ("plain", "compiled"):
        torch._dynamo.reset()
        counters.clear()
        for steps in (3, 6):
            trainer = make_trainer(
                encoder_dir_no_dropout,
                tmp_path / name,
                Case(loss=caching),
                max_steps=steps,
                save_steps=3,
                activation_checkpointing=True,
                packing=False,
                accept_changes=True,  # more steps
            )
            if name == "compiled":
                assert compile_layers(trainer.model, backend="eager") == 2
            trainer.train()
            assert trainer.state.global_step == steps
        assert (counters["stats"]["unique_graphs"] > 0) == (name == "compiled")
        weights[name] = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    assert all(torch.equal(*pair) for pair in zip(*weights.values(), strict=True))
