"""Language models as encoders: the last token of every text, both padding sides, sight in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, LlamaTokenizer, Qwen3Model

from piccolo_st.errors import InputError
from piccolo_st.losses import PiccoloLoss
from piccolo_st.modeling.decoders import see_both_ways
from piccolo_st.modeling.loading import load_encoder
from piccolo_st.modeling.portable.saving import save_portable
from tests.helpers.architectures import qwen_tokenizer, saved_encoder, small_config, small_encoder

TEXTS = ["短", "今天天气很好，明天下雨" * 9, "长短文字"]


def llama_tokenizer() -> LlamaTokenizer:
    """One that begins texts with <s> and, as it is published, does not end them."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, **{f"<0x{byte:02X}>": 4 + byte for byte in range(256)}}
    return LlamaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True, add_eos_token=False, pad_token="<unk>")


TOKENIZERS: dict[str, Callable[[], Any]] = {"llama": llama_tokenizer, "qwen": qwen_tokenizer}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_end_survives_truncation_and_saving(name: str, tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "decoder", TOKENIZERS[name]())
    plain = AutoTokenizer.from_pretrained(folder)
    end, bare = plain.eos_token_id, plain(TEXTS[2])["input_ids"]
    assert bare[-1] != end
    model = load_encoder(folder, pooling="lasttoken", query_length=24, document_length=40)
    save_portable(model, tmp_path / "saved")
    for tokenizer in (model.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert tokenizer(TEXTS[2], truncation=False)["input_ids"] == [*bare, end]
        cut = tokenizer(TEXTS[1], truncation=True, max_length=24)["input_ids"]
        assert len(cut) == 24 and cut == [*plain(TEXTS[1])["input_ids"][:23], end]
    stock = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.abs(stock.encode(TEXTS) - model.encode(TEXTS)).max() < 1e-6


def test_left_and_right_padding_and_a_text_alone_give_one_vector(tmp_path: Path) -> None:
    model = load_encoder(saved_encoder(tmp_path), pooling="lasttoken", query_length=60, document_length=60)
    right = model.encode_query(TEXTS)
    assert model.tokenizer.padding_side == "right"
    ids = model.preprocess(TEXTS, task="query")
    last = ids["attention_mask"].sum(dim=1) - 1
    states = model[0](ids)["token_embeddings"]
    own = states[torch.arange(len(TEXTS)), last].detach().numpy()  # of the end-of-text token, prompts aside
    assert np.abs(model.encode(TEXTS) - own)[[0, 2]].max() < 1e-5
    model.tokenizer.padding_side = "left"
    assert np.abs(model.encode_query(TEXTS) - right).max() < 1e-5
    assert max(np.abs(model.encode_query(text) - right[place]).max() for place, text in enumerate(TEXTS)) < 1e-5


@pytest.mark.parametrize("limit", [{"chunk_tokens": 60}, {"mini_batch_num_tokens": 60}])
@pytest.mark.parametrize("pooling", ["lasttoken", "weightedmean", "cls"])
def test_no_pass_is_larger_than_asked_on_either_padding_side(
    limit: dict[str, Any], pooling: Any, tmp_path: Path
) -> None:
    model = load_encoder(saved_encoder(tmp_path), pooling=pooling, query_length=60, document_length=60)
    texts = [TEXTS[place % 3][: 1 + place] for place in range(8)]
    passes: list[tuple[int, ...]] = []
    model[0].register_forward_pre_hook(lambda _, given: passes.append(tuple(given[0]["input_ids"].shape)))
    seen = []
    for side in ("right", "left"):
        model.tokenizer.padding_side = side
        columns = [model.preprocess(texts, task=task) for task in ("query", "document")]
        columns[0]["attention_mask"][-1] = 0  # a row without any token
        passes.clear()
        model.zero_grad()
        loss = PiccoloLoss(model, **limit)(columns)
        loss.backward()
        assert passes and all(rows == 1 or rows * width <= 60 for rows, width in passes)
        gradients = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
        seen.append((loss.detach(), gradients, list(passes)))
    (right, gradients, shapes), (left, others, as_many) = seen
    assert shapes == as_many and len(shapes) > 2
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)


def test_a_tokenizer_that_ends_texts_is_left_as_it_is(encoder_dir: Path, tmp_path: Path) -> None:
    model = load_encoder(str(encoder_dir), pooling="lasttoken", query_length=20, document_length=40)
    assert model.tokenizer("今天")["input_ids"][-1] == model.tokenizer.sep_token_id
    without = qwen_tokenizer()
    without.eos_token = None
    folder = saved_encoder(tmp_path / "without", without)
    with pytest.raises(InputError, match=r"lasttoken needs a tokenizer that ends texts .* set model.processor_kwargs"):
        load_encoder(folder, pooling="lasttoken")
    named = load_encoder(folder, pooling="lasttoken", processor_kwargs={"eos_token": "<|endoftext|>"})
    assert named.tokenizer("a")["input_ids"][-1] == 0


def test_what_a_tokenizer_gives_is_named_where_transformers_4_would_guess(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "encoder", model=small_encoder("modernbert"))
    save_portable(load_encoder(folder), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text("utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast", "whose inputs there are another encoder's"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "mistral", "gemma3_text"])
def test_a_later_token_changes_an_earlier_state_also_of_the_saved_model(name: str, tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "decoder", model=small_encoder(name))
    first = []
    for bidirectional in (False, True):
        model = load_encoder(folder, bidirectional=bidirectional, instructions="none")
        save_portable(model, tmp_path / "saved")
        stock = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
        # The shorter row is padded in one call and alone in the other: with and without a mask.
        for texts in (["abc", "abd"], ["abc", "abd", "a longer one"]):
            states = [one.numpy()[0] for one in stock.encode(texts, output_value="token_embeddings")]
            first.append(float(np.abs(states[0] - states[1]).max()))
    assert max(first[:2]) == 0 and min(first[2:]) > 1e-3
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["is_causal"] is False


class Deaf(Qwen3Model):
    """A decoder whose mask does not come from its configuration."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.config.is_causal = True
        return super().forward(*args, **kwargs)


def test_a_decoder_that_does_not_listen_is_refused() -> None:
    with pytest.raises(InputError, match=r"got Deaf, in which a later token changes no earlier state; set it to false"):
        see_both_ways(Deaf(small_config("qwen3", attn_implementation="eager")))
    for kind in ("bert", "modernbert"):
        see_both_ways(small_encoder(kind))


def test_what_reaches_transformers(encoder_dir: Path) -> None:
    model = load_encoder(
        str(encoder_dir),
        attn_implementation="eager",
        model_kwargs={"add_pooling_layer": False},
        processor_kwargs={"pad_token": "[MASK]"},
    )
    config = model[0].auto_model.config
    assert config._attn_implementation == "eager" and model[0].auto_model.pooler is None
    assert model.tokenizer.pad_token == "[MASK]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attn_implementation": "flash_attention_2"},
            r"model.attn_implementation 'flash_attention_2' needs a CUDA GPU",
        ),
        ({"attn_implementation": "spda"}, r"model.name_or_path cannot be loaded, .*spda"),
        ({"model_kwargs": {"dtype": "auto"}}, r"model_kwargs must leave out what has a setting of its own, got dtype"),
        (
            {"config_kwargs": {"dtype": "auto"}},
            r"config_kwargs must leave out what has a setting of its own",
        ),
        ({"model_kwargs": {"poolng": False}}, r"cannot be loaded, .*'poolng'"),
        (
            {"processor_kwargs": {"padding_side": "left"}},
            r"tokenizer that pads on the right, .*BertModel .*left; set model.processor_kwargs to \{padding",
        ),
        ({"pooling": "last"}, r"cannot be loaded, .*lasttoken"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str, encoder_dir: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_encoder(str(encoder_dir), **options)
