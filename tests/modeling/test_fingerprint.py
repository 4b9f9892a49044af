"""Who a model is: the same for its saved copy, another whenever an embedding may differ, whatever its card says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from piccolo_st.modeling import Identity, content_hash, identify


@pytest.fixture
def model(make_model: Callable[..., SentenceTransformer]) -> SentenceTransformer:
    model = make_model(query_length=16, document_length=48)
    model.prompts = {"query": "查询：", "document": "结果："}
    return model


def test_a_saved_and_loaded_model_is_the_same_model(model: SentenceTransformer, tmp_path: Path) -> None:
    before = content_hash(model)
    model.encode(["天气好", "明天下雨"])
    model.encode_query(["天气"])
    model.save_pretrained(str(tmp_path / "saved"))

    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")

    assert content_hash(model) == before == content_hash(loaded)


def _other_weight(model: SentenceTransformer) -> None:
    with torch.no_grad():
        next(model.parameters())[3, 5] += 1e-6


CHANGES: dict[str, Callable[[SentenceTransformer], Any]] = {
    "weight": _other_weight,
    "dtype": lambda model: model.half(),
    "prompt": lambda model: model.prompts.update(query="查询: "),
    "default prompt": lambda model: setattr(model, "default_prompt_name", "query"),
    "pooling": lambda model: setattr(model[1], "pooling_mode", "cls"),
    "query length": lambda model: setattr(model[0], "query_length", 17),
    "activation": lambda model: setattr(model[0].model.config, "hidden_act", "relu"),
    "tokenizer": lambda model: model.tokenizer.add_tokens(["天气"]),
    "truncation": lambda model: setattr(model, "truncate_dim", 16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_another_model(model: SentenceTransformer, change: str) -> None:
    before = content_hash(model)

    CHANGES[change](model)

    assert content_hash(model) != before


def test_a_model_in_memory_is_not_what_its_card_says(model: SentenceTransformer) -> None:
    model.model_card_data.base_model = "BAAI/bge-base-zh"
    model.model_card_data.base_model_revision = "a" * 40

    identity = identify(model)

    assert identity == Identity("local/in-memory", content_hash(model), content_hash(model))
