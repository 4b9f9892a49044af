"""More positions than an encoder was trained with: nothing changes within the old range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from piccolo_st.errors import InputError
from piccolo_st.modeling.lengths import set_lengths
from piccolo_st.modeling.portable.saving import load_portable, save_portable
from piccolo_st.modeling.positions import counts_from_padding, extend_positions, usable_positions
from tests.helpers.architectures import small_encoder

ModelMaker = Callable[..., SentenceTransformer]


@pytest.fixture
def roberta(encoder_dir: Path, tmp_path: Path) -> SentenceTransformer:
    """A RoBERTa of 64 positions and two rows of padding before them, with the tokenizer of the tests."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir)
    tokenizer.save_pretrained(tmp_path / "roberta")
    torch.manual_seed(0)
    roberta = small_encoder("roberta", vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1)
    roberta.save_pretrained(tmp_path / "roberta")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "roberta", pad_token="[UNK]")  # id 1, as RoBERTa's padding is
    tokenizer.save_pretrained(tmp_path / "roberta")
    transformer = Transformer(str(tmp_path / "roberta"))
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")


def test_usable_positions(make_model: ModelMaker, roberta: SentenceTransformer) -> None:
    assert usable_positions(make_model()[0].auto_model) == 512
    assert usable_positions(roberta[0].auto_model) == 64
    assert usable_positions(DistilBertModel(DistilBertConfig(n_layers=1, dim=32, n_heads=2, hidden_dim=8))) == 512


@pytest.mark.parametrize(
    "name", ["bert", "distilbert", "electra", "gpt2", "roberta", "mpnet", "modernbert", "qwen3", "llama"]
)
@torch.no_grad()
def test_who_counts_positions_from_the_padding(name: str) -> None:
    torch.manual_seed(0)
    encoder = small_encoder(name, pad_token_id=1).eval()
    row = torch.arange(5, 12)
    left, right = torch.ones(2, 10, dtype=torch.long)  # of the padding's token
    left[3:], right[:7] = row, row
    mask = torch.arange(10).expand(2, 10) < 7
    states = encoder(torch.stack([right, left]), attention_mask=torch.stack([mask[0], mask[0].flip(0)]).long())
    apart = float((states.last_hidden_state[0, :7] - states.last_hidden_state[1, 3:]).abs().max())
    assert counts_from_padding(encoder) == (apart > 1e-4), apart


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("method", ["hierarchical", "repeat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_old_range_keeps_its_embeddings_and_beyond_it_texts_count(
    family: str, method: Any, dtype: torch.dtype, make_model: ModelMaker, roberta: SentenceTransformer, tmp_path: Path
) -> None:
    model = make_model() if family == "bert" else roberta
    model.to(dtype)
    old = usable_positions(model[0].auto_model)
    set_lengths(model, 16, old)
    texts = ["今天", "天" * (old - 2), "数据" * (old // 3)]
    before = model.encode_document(texts)
    extend_positions(model, 2 * old + 9, method)
    set_lengths(model, 16, 2 * old + 9)
    assert usable_positions(model[0].auto_model) == 2 * old + 9 == model.max_seq_length
    assert (model.encode_document(texts) == before).all()  # bit for bit
    assert model[0].auto_model.embeddings.position_embeddings.weight.dtype == dtype
    longest = ["天" * (2 * old + 7), "天" * (2 * old + 6) + "水"]  # with the special tokens the whole length
    vectors = model.encode_document(longest)
    assert abs(vectors[0] - vectors[1]).max() > 0
    assert (model.encode_document([text + "火" for text in longest]) == vectors).all()  # cut there, not before
    save_portable(model, tmp_path / "saved")
    assert (
        load_portable(tmp_path / "saved").encode_document([*texts, *longest])
        == model.encode_document([*texts, *longest])
    ).all()


def test_rows_are_made_as_the_methods_say(make_model: ModelMaker, roberta: SentenceTransformer) -> None:
    for model, padding_rows in ((make_model(), 0), (roberta, 2)):
        known = model[0].auto_model.embeddings.position_embeddings.weight.detach().double().clone()[padding_rows:]
        n, a = len(known), 0.4
        extend_positions(model, 3 * n, "hierarchical")
        table = model[0].auto_model.embeddings.position_embeddings.weight.detach().double()[padding_rows:]
        u = [(known[k] - a * known[0]) / (1 - a) for k in (0, 1, 2, 5)]
        torch.testing.assert_close(table[n + 5], a * u[1] + (1 - a) * u[3], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(table[2 * n + 1], a * u[2] + (1 - a) * u[1], rtol=1e-6, atol=1e-8)
        assert torch.cdist(table, table).add_(torch.eye(3 * n) * 9).min() > 1e-4  # every position is another
        extend_positions(model, 3 * n + 2, "repeat")
        table = model[0].auto_model.embeddings.position_embeddings.weight.detach().double()[padding_rows:]
        torch.testing.assert_close(table[3 * n :], known[:2], rtol=0, atol=0)


def test_the_new_rows_are_trained(make_model: ModelMaker) -> None:
    model = make_model(dropout=True)
    table = model[0].auto_model.embeddings.position_embeddings
    extend_positions(model, 520)
    table = model[0].auto_model.embeddings.position_embeddings
    features = model.preprocess(["天" * 600])
    assert features["input_ids"].shape[1] == 520
    model(features)["sentence_embedding"].sum().backward()
    assert table.weight.requires_grad and table.weight.grad[513:].abs().sum() > 0


@pytest.mark.parametrize(
    ("length", "method", "message"),
    [
        (512, "repeat", r"must be above the 512 positions"),
        (100, "hierarchical", r"must be above the 512 positions that the encoder has, got 100"),
        (
            512 * 512 + 1,
            "hierarchical",
            r"hierarchical positions reach to 512 \* 512 = 262144 tokens, got 262145",
        ),
        (600, "linear", r"the method must be 'hierarchical' or 'repeat', got 'linear'"),
    ],
)
def test_bad_lengths_are_named(make_model: ModelMaker, length: int, method: Any, message: str) -> None:
    model = make_model()
    before = model.encode("今天")
    with pytest.raises(ValueError, match=message):
        extend_positions(model, length, method)
    assert (model.encode("今天") == before).all() and model.max_seq_length == 512


def test_only_absolute_positions_can_be_extended(make_model: ModelMaker) -> None:
    model = make_model()
    model[0].model = DistilBertModel(DistilBertConfig(n_layers=1, dim=32, n_heads=2, hidden_dim=8))
    model[0].model.embeddings.position_embeddings = None
    with pytest.raises(InputError, match=r"DistilBertModel has no embeddings.position_embeddings table to extend"):
        extend_positions(model, 600)
