"""torch.compile of an encoder's layers in place, so that what packs their rows and pools them stays as it is."""

from __future__ import annotations

from collections.abc import Iterator

from sentence_transformers import SentenceTransformer
from torch import nn


def compile_layers(model: SentenceTransformer, *, backend: str | None = None, mode: str | None = None) -> int:
    """Compile the layers of a model, all alike once, for any number of rows and tokens.

    Args:
        model: what stands in lists of like blocks in it is compiled; the rest, which is small, runs as before.
        backend: of torch.compile; None: inductor.
        mode: of torch.compile.

    Returns:
        How many layers that are.
    """
    layers = list(_blocks(model))
    for layer in layers:
        layer.compile(dynamic=True, backend=backend or "inductor", mode=mode)
    return len(layers)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len({type(block) for block in child}) == 1:
            yield from child
        else:
            yield from _blocks(child)
