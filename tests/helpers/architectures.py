"""Small random encoders of any architecture, and language models with a tokenizer in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, Qwen2Tokenizer

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
DECODERS = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3_text")
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OF_KIND = {**dict.fromkeys(DECODERS, GROUPED), **dict.fromkeys(("bert", "roberta", "xlm-roberta", "ernie"), STILL)}


def small_config(kind: str, **sizes: Any) -> PreTrainedConfig:
    """The configuration of a ``model_type``, without dropout."""
    return AutoConfig.for_model(kind, **{**SHAPE, **OF_KIND.get(kind, {}), **sizes})


def small_encoder(kind: str, **sizes: Any) -> PreTrainedModel:
    """An encoder of it with random weights."""
    return AutoModel.from_config(small_config(kind, **sizes))


def qwen_tokenizer() -> Qwen2Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, **{letter: 1 + place for place, letter in enumerate(letters)}}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", eos_token="<|endoftext|>")


def saved_encoder(folder: Path, tokenizer: Any = None, model: PreTrainedModel | None = None) -> str:
    """A folder with a tokenizer, qwen's if none is given, and an encoder, qwen3's of seed 0 if none is given."""
    torch.manual_seed(0)
    (tokenizer or qwen_tokenizer()).save_pretrained(folder)
    (model or small_encoder("qwen3")).save_pretrained(folder)
    return str(folder)
