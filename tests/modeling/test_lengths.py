"""Queries at one length, documents at another, and the instruction never cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from piccolo_st.modeling.instructions import Instructions, set_prompts
from piccolo_st.modeling.lengths import check_lengths, other_lengths, set_lengths
from piccolo_st.modeling.loading import load_encoder
from piccolo_st.modeling.pooling import set_instruction_pooling
from piccolo_st.modeling.portable import load_portable, save_portable

ModelMaker = Callable[..., SentenceTransformer]


def piccolo(make_model: ModelMaker) -> SentenceTransformer:
    model = make_model()
    set_prompts(model)
    set_instruction_pooling(model, "piccolo", include_instruction=False)
    return model


def test_queries_and_documents_are_cut_at_their_own_length(make_model: ModelMaker) -> None:
    model = piccolo(make_model)
    set_lengths(model)
    assert (model[0].query_length, model[0].document_length, model.max_seq_length) == (64, 512, 512)
    # [CLS] 查 询 ： + 59 characters + [SEP] = 64 tokens: the 60th no longer counts, the 59th does.
    text = "天" * 58
    same = model.encode_query([text + "水火", text + "水木", text + "水"])
    assert (same[0] == same[1]).all() and (same[0] == same[2]).all()
    assert (model.encode_query(text + "水") != model.encode_query(text + "火")).any()
    text = "天" * 506
    assert (model.encode_document(text + "水火") == model.encode_document(text + "水木")).all()
    assert (model.encode_document(text + "水") != model.encode_document(text + "火")).any()
    assert (model.encode("天" * 100) != model.encode("天" * 99)).any()  # plain encode has no task, hence 512


def test_both_lengths_hold_in_mteb(make_model: ModelMaker) -> None:
    mteb = pytest.importorskip("mteb")
    wrapper = pytest.importorskip("mteb.models.sentence_transformer_wrapper").SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    model = piccolo(make_model)
    set_lengths(model, 32, 128)
    seen: list[tuple[int, list[int]]] = []
    model[0].register_forward_pre_hook(
        lambda module, args: seen.append((args[0]["input_ids"].shape[1], args[0]["input_ids"][0, 1:4].tolist()))
    )
    task = mteb.get_task("T2Retrieval").metadata
    texts = DataLoader(Dataset.from_dict({"text": ["天" * 300]}), batch_size=1)
    for prompt_type in (PromptType.query, PromptType.document):
        wrapper(model).encode(
            texts, task_metadata=task, hf_split="dev", hf_subset="default", prompt_type=prompt_type, batch_size=1
        )
    ids = model.tokenizer.convert_tokens_to_ids
    assert seen == [(32, ids(["查", "询", "："])), (128, ids(["结", "果", "："]))]


def test_pretraining_has_one_length_and_keeps_the_room_for_more(make_model: ModelMaker) -> None:
    model = piccolo(make_model)
    set_lengths(model, 128, 128)
    assert (model.encode_query("天" * 124 + "水") == model.encode_query("天" * 124 + "火")).all()
    assert model.max_seq_length == 512
    set_lengths(model, 64, 512)
    assert model[0].document_length == 512


def test_a_model_that_read_less_is_saved_with_the_length_at_which_it_is_trained(
    make_model: ModelMaker, tmp_path: Path
) -> None:
    model = make_model()
    model.max_seq_length = 16  # of a published checkpoint, which the lengths of a run go beyond
    save_portable(model, tmp_path / "published")
    texts = ["天" * 50, "天" * 30]
    short = SentenceTransformer(str(tmp_path / "published"), device="cpu").encode_document(texts)
    assert (short[0] == short[1]).all(), "it was cut at 16 tokens"
    trained = load_encoder(str(tmp_path / "published"), instructions="piccolo", query_length=8, document_length=64)
    save_portable(trained, tmp_path / "saved")
    vectors = trained.encode_document(texts)
    assert (vectors[0] != vectors[1]).any()
    for load in (SentenceTransformer, load_portable):
        assert (load(str(tmp_path / "saved"), device="cpu").encode_document(texts) == vectors).all()


def test_the_instruction_has_to_fit_with_one_token_of_text(make_model: ModelMaker) -> None:
    model = piccolo(make_model)
    set_lengths(model, 6, 6)  # [CLS] 查 询 ： 天 [SEP]
    assert (model.encode_query("天水") == model.encode_query("天火")).all()
    assert (model.encode_query("天水") != model.encode_query("水天")).any()
    with pytest.raises(
        ValueError, match=r"query_length=5 is too short for the instruction '查询：'.* it takes 6 tokens"
    ):
        set_lengths(model, 5, 512)
    with pytest.raises(ValueError, match=r"document_length=5 is too short for the instruction '结果：'"):
        set_lengths(model, 64, 5)
    with pytest.raises(ValueError, match=r"query_length=0 is too short for the instruction ''.* it takes 3 tokens"):
        set_lengths(make_model(), 0, 512)
    long = Instructions("今天天气好" * 20 + "：", "结果：")
    with pytest.raises(
        ValueError, match=r"query_length=64 is too short for the instruction '今天天气.* takes 104 tokens"
    ):
        check_lengths(model, 64, 512, long)
    with pytest.raises(ValueError, match=r"query_length=5 of dataset 'faq' is too short for the instruction '查询：'"):
        check_lengths(model, 5, None, place="dataset 'faq'")
    check_lengths(model, None, None)
    with pytest.raises(ValueError, match=r"query_length=6 is too short for the instruction '今天天气好"):
        check_lengths(model, None, None, long)  # at the model's own lengths
    assert (model[0].query_length, model[0].document_length) == (6, 6)  # a refused call changes nothing


def test_lengths_hold_for_a_while_and_come_back(make_model: ModelMaker) -> None:
    model = piccolo(make_model)
    set_lengths(model, 64, 512)
    with pytest.raises(KeyError), other_lengths(model, 6):
        assert (model.encode_query("天水") == model.encode_query("天火")).all()
        assert (model.encode_document("天水") != model.encode_document("天火")).any()
        raise KeyError
    assert (model[0].query_length, model[0].document_length) == (64, 512)


def test_what_cannot_be_cut_as_asked_is_refused(make_model: ModelMaker) -> None:
    model = piccolo(make_model)
    with pytest.raises(
        ValueError, match=r"document_length=513 is more than the 512 tokens that BertModel has positions"
    ):
        set_lengths(model, 64, 513)
    model.tokenizer.truncation_side = "left"
    with pytest.raises(ValueError, match=r"cuts on the left, which cuts the instruction first"):
        set_lengths(model)
    static: Any = SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_dim=4)])
    with pytest.raises(
        TypeError, match=r"need a Transformer with a tokenizer as the first module, got StaticEmbedding"
    ):
        set_lengths(static)


def test_a_tokenizer_that_promises_too_much_is_corrected(make_model: ModelMaker) -> None:
    model = make_model()
    model.max_seq_length = 10**30  # as a tokenizer without model_max_length says
    set_lengths(model)
    assert model.max_seq_length == 512
