"""Compiled layers: one graph for any lengths, packed or padded, and the embeddings and gradients of plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DynamoBackend
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch._dynamo.utils import counters

from piccolo_st.modeling import compile_layers, packs_now, use_packing
from piccolo_st.modeling.packed.varlen import View
from piccolo_st.training import trainer
from tests.modeling.test_packing import TEXTS, gradients

# A kernel as torch's own is one: opaque to the compiler, with a backward pass and shapes that it may rely on.


@torch.library.custom_op("piccolo_st_tests::attend", mutates_args={})
def attend(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scale: float) -> Tensor:
    return torch.einsum("hqk,khd->qhd", _weights(query, key, borders, scale), value).contiguous()


@torch.library.custom_op("piccolo_st_tests::attend_backward", mutates_args={})
def attend_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scale: float
) -> list[Tensor]:
    weights = _weights(query, key, borders, scale)
    of_weights = torch.einsum("qhd,khd->hqk", gradient, value)
    scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
    made = (
        torch.einsum("hqk,khd->qhd", scores, key),
        torch.einsum("hqk,qhd->khd", scores, query),
        torch.einsum("hqk,qhd->khd", weights, gradient),
    )
    return [one.contiguous() for one in made]


def _weights(query: Tensor, key: Tensor, borders: Tensor, scale: float) -> Tensor:
    text = torch.searchsorted(borders, torch.arange(len(query), dtype=borders.dtype), right=True)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return scores.masked_fill(text[:, None] != text, -torch.inf).softmax(-1)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.scale = inputs[5]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (*attend_backward(gradient, *ctx.saved_tensors, ctx.scale), None, None, None)


attend.register_fake(lambda query, key, value, borders, longest, scale: _like(query))
attend_backward.register_fake(
    lambda gradient, query, key, value, borders, scale: [_like(one) for one in (query, key, value)]
)
attend.register_autograd(_backward, setup_context=_keep)


def kernel(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, view: View, scale: float
) -> Tensor:
    return attend(query, key, value, borders, longest, scale)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_layers_are_compiled_once_for_any_lengths(make_model: Callable[..., SentenceTransformer], packed: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = make_model()
    assert not packed or use_packing(model, torch.bfloat16, kernel=kernel)
    compiled = copy.deepcopy(model)
    layers = compiled[0].model.encoder.layer
    assert compile_layers(compiled, backend="aot_eager") == len(layers) == 2
    for texts in (TEXTS, TEXTS[:5], TEXTS[1:6], [*TEXTS[2:3] * 2, TEXTS[0]]):
        features = model.preprocess(texts)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert packs_now(compiled) == packed
            (found, ours), (expected, theirs) = gradients(compiled, features), gradients(model, features)
        assert torch.allclose(found, expected, atol=1e-6)
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(ours, theirs, strict=True))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert compiled.state_dict().keys() == model.state_dict().keys()


def test_lists_of_like_blocks_are_what_is_compiled() -> None:
    inner = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    mixed = nn.ModuleList([nn.Sequential(inner), nn.Linear(2, 2)])
    model = nn.Sequential(nn.Linear(2, 2), mixed, nn.ModuleList([]))
    assert compile_layers(model) == 2  # type: ignore[arg-type]
    assert [module for module in model.modules() if module._compiled_call_impl is not None] == list(inner)


def test_on_a_gpu_a_run_compiles_the_layers_and_accelerate_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no CPU can do, up to the calls: packed first, because packing is tried before it is used."""
    done: list[object] = []
    monkeypatch.setattr(trainer, "use_packing", lambda model, dtype: done.append(dtype))
    monkeypatch.setattr(trainer, "compile_layers", lambda model, **options: done.append(options))
    plugin = SimpleNamespace(backend=DynamoBackend.INDUCTOR)
    settings = {"torch_compile": True, "torch_compile_backend": "inductor", "torch_compile_mode": None, "packing": True}
    run = SimpleNamespace(
        args=SimpleNamespace(device=torch.device("cuda"), bf16=True, fp16=False, **settings),
        accelerator=SimpleNamespace(state=SimpleNamespace(dynamo_plugin=plugin)),
    )
    trainer.PiccoloTrainer._speed_up(run, None)  # type: ignore[arg-type]
    assert done == [torch.bfloat16, {"backend": "inductor", "mode": None}] and plugin.backend == DynamoBackend.NO
    run.args.torch_compile = False
    trainer.PiccoloTrainer._speed_up(run, None)  # type: ignore[arg-type]
    assert done[2:] == [torch.bfloat16]
