"""The kinds of models that programs are tried with, and what each has to give."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize

from piccolo_st.modeling import (
    keep_lengths,
    load_portable,
    save_portable,
    saved_lengths,
    set_instruction_pooling,
    set_prompts,
)
from piccolo_st.modeling.adapters import LoraSettings, add_lora
from piccolo_st.modeling.lengths import set_lengths
from piccolo_st.releasing.card import model_use
from piccolo_st.releasing.model_use import PASSAGE, QUERY, ModelUse
from piccolo_st.releasing.use_it_in import Snippet, snippets

ModelMaker = Callable[..., SentenceTransformer]
EVERYWHERE = {"sentence-transformers", "LangChain", "LlamaIndex", "Haystack", "Chroma"}
SERVERS = {"text-embeddings-inference", "vLLM"}
ONNX = {"fastembed", "transformers.js"}
# name -> (instructions, changes to the model, programs that have a snippet once there is an ONNX file)
KINDS: dict[str, tuple[Any, str, set[str]]] = {
    "mean": ("piccolo", "", {*EVERYWHERE, *SERVERS, *ONNX, "transformers"}),
    "none": ("none", "", {*EVERYWHERE, *SERVERS, *ONNX, "transformers"}),
    "cls, query only": ({"query": "Instruct: a 'b'\nQuery: "}, "cls", {*EVERYWHERE, *SERVERS, *ONNX, "transformers"}),
    "lasttoken": ("e5", "lasttoken", {*EVERYWHERE, *SERVERS, *ONNX, "transformers"}),
    "excluded": ("piccolo", "excluded", EVERYWHERE),
    "max": ("piccolo", "max", EVERYWHERE),
    "native": ("piccolo", "native", {*EVERYWHERE, *SERVERS, *ONNX, "transformers"}),
    "dense": ("piccolo", "dense", {*EVERYWHERE, *SERVERS, *ONNX}),
    "float16": ("piccolo", "float16", {*EVERYWHERE, *SERVERS, *ONNX, "transformers"}),
    "lora": ("piccolo", "lora", {*EVERYWHERE, *SERVERS, *ONNX, "transformers"}),
}
# Most programs compute in the weights' own precision, which float16 numbers of length 1 are told from by so much.
TOLERANCE = dict.fromkeys(KINDS, 1e-5) | {"float16": 2e-3}


def save(make_model: ModelMaker, kind: str, where: Path) -> Path:
    """Save a model of a kind into a folder of ``where``, and return that."""
    instructions, change, _ = KINDS[kind]
    folder = where / kind.replace(", ", "-").replace(" ", "-")
    model = make_model(pooling=change) if change in ("cls", "lasttoken", "max") else make_model()
    set_prompts(model, instructions)
    if change == "excluded":
        set_instruction_pooling(model, instructions, False)
    if change == "native":
        set_lengths(model, 16, 48)
    if change == "dense":
        model.append(Dense(model.get_embedding_dimension(), 8, activation_function=torch.nn.Tanh()))
        model.append(Normalize())
    if change == "lora":
        pytest.importorskip("peft")
        add_lora(model, LoraSettings(rank=4))
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zeros, which would change nothing
                torch.nn.init.normal_(weight.data, std=0.05, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the excluded instructions
        save_portable(model, folder, torch.float16 if change == "float16" else None)
    if change == "native":
        keep_lengths(folder, native=True)
    return folder


def use_of(folder: Path, onnx: bool = True) -> ModelUse:
    return model_use(SentenceTransformer(str(folder), device="cpu"), str(folder), onnx, saved_lengths(folder))


def shown(use: ModelUse) -> dict[str, Snippet]:
    return {snippet.program: snippet for snippet in snippets(use) if not snippet.why_not}


def expected(folder: Path, truncate_dim: int | None = None) -> list[np.ndarray]:
    model = load_portable(folder, device="cpu", truncate_dim=truncate_dim, model_kwargs={"dtype": torch.float32})
    return [
        model.encode_query([longer(QUERY)], normalize_embeddings=True),
        model.encode_document([longer(PASSAGE)], normalize_embeddings=True),
    ]


def first(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """What is left of them for those who keep so many dimensions, of length 1 again."""
    kept = vectors[:, :dimensions]
    return kept / np.linalg.norm(kept, axis=1, keepdims=True)


def longer(text: str) -> str:
    """A text, or those in a snippet, of more tokens than the lengths of a model that has some."""
    return text.replace(QUERY, QUERY * 9).replace(PASSAGE, PASSAGE * 9)
