"""Build one portable checkpoint of every kind and note the embeddings it has here."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer, XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

from piccolo_st.modeling.instructions import set_prompts
from piccolo_st.modeling.lengths import set_lengths
from piccolo_st.modeling.loading import load_encoder
from piccolo_st.modeling.pooling import set_instruction_pooling
from piccolo_st.modeling.portable.saving import load_portable, save_portable
from piccolo_st.modeling.positions import extend_positions
from tests.conftest import CHARACTERS
from tests.helpers.architectures import saved_encoder, small_encoder
from tests.training.test_architectures import ARCHITECTURES
from tests.training.test_architectures import base as base_of
from tests.training.test_architectures import load as load_with_adapter

TEXTS = ["今天天气好", "数据，Query 123", "猫和狗" * 30, "长" * 700, "[Q]天", ""]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def chinese_bert(folder: Path) -> Path:
    """A BERT with the tokenizer class of the Chinese ones, and a special token of its own."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(CHARACTERS.replace(" ", "")), "[Q]"]
    tokenizer = BertTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, additional_special_tokens=["[Q]"], model_max_length=512
    )
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=len(tokens), **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def xlm_roberta(folder: Path) -> Path:
    """Positions that begin behind the padding's, a SentencePiece tokenizer, no segments."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *dict.fromkeys(CHARACTERS.replace(" ", "")), "<mask>"]
    tokenizer = XLMRobertaTokenizer(vocab=[(piece, -0.1 * i) for i, piece in enumerate(pieces)], model_max_length=64)
    torch.manual_seed(2)
    config = XLMRobertaConfig(
        vocab_size=len(pieces), max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, **SIZES
    )
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build(folder: Path, encoder: Path) -> list[str]:
    """Write the checkpoints and ``NAME.npz`` with what they give here to ``folder``; return their names."""
    bert, roberta = chinese_bert(folder / "bert"), xlm_roberta(folder / "roberta")
    kinds: dict[str, tuple[Path, list[torch.nn.Module], bool]] = {
        "mean": (encoder, [Pooling(32, "mean")], True),
        "float16": (encoder, [Pooling(32, "mean")], True),
        "excluded": (encoder, [Pooling(32, "mean")], False),
        "lasttoken": (bert, [Pooling(32, "lasttoken"), Normalize()], True),
        "weightedmean": (bert, [Pooling(32, "weightedmean")], True),
        "dense": (bert, [Pooling(32, ("cls", "mean")), Dense(64, 8, activation_function=torch.nn.Tanh())], True),
        "extended": (roberta, [Pooling(32, "cls"), Normalize()], True),
    }
    for name, (source, modules, included) in kinds.items():
        model = SentenceTransformer(modules=[Transformer(str(source)), *modules], device="cpu")
        if name == "extended":
            extend_positions(model, 100)
        set_prompts(model)
        set_instruction_pooling(model, "piccolo", included)
        set_lengths(model, 16, model.max_seq_length)
        model.encode(TEXTS)  # leaves truncation and padding in the tokenizer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the excluded instructions
            save_portable(model, folder / name, torch.float16 if name == "float16" else None)
        if name == "float16":
            model = load_portable(folder / name, device="cpu", model_kwargs={"dtype": torch.float32})
        note(model, folder / f"{name}.npz", TEXTS)
    return list(kinds)


def build_merged(folder: Path) -> list[str]:
    """The same of the architectures that people fine-tune with adapters, each with one merged; return their names."""
    for name in ARCHITECTURES:
        model = load_with_adapter(name, base_of(name, folder / "bases" / name), rank=4)
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=0.3)
        save_portable(model, folder / name)
        note(load_portable(folder / name, device="cpu"), folder / f"{name}.npz", TEXTS[:-1])  # "" has no tokens here
    return list(ARCHITECTURES)


def rotary(base: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base, **scaling}


_BENDS = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
# Positions that are not the usual ones of the architecture, which an older transformers takes where it finds none.
ROTARY: dict[str, dict[str, Any]] = {
    "qwen3": rotary(1e6),  # as Qwen3-Embedding
    "llama": rotary(5e5, rope_type="llama3", **_BENDS),
    "modernbert": {"full_attention": rotary(100.0), "sliding_attention": rotary(1.6e5)},
    "gemma3_text": {"full_attention": rotary(100.0), "sliding_attention": rotary(2e4)},
}


def build_rotary(folder: Path) -> list[str]:
    """The same of encoders with rotary positions."""
    for name, positions in ROTARY.items():
        source = saved_encoder(folder / "bases" / name, model=small_encoder(name, rope_parameters=positions))
        model = load_encoder(source, instructions="e5", query_length=32, document_length=64)
        save_portable(model, folder / name)
        note(model, folder / f"{name}.npz", TEXTS[:3])
    return list(ROTARY)


def note(model: SentenceTransformer, file: Path, texts: list[str]) -> None:
    """Write the embeddings that a model gives here."""
    vectors = {kind: model.encode(texts, prompt_name=kind) for kind in ("query", "document")}
    np.savez(file, texts=np.array(texts), plain=model.encode(texts), **vectors)
