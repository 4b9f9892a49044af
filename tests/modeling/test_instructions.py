"""Instructions: presets, who gets which, and the token prefix a row with an instruction begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.base.data_collator import BaseDataCollator
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast

from piccolo_st.modeling.instructions import (
    PRESETS,
    Instructions,
    column_prompts,
    column_tasks,
    dataset_prompts,
    dataset_tasks,
    resolve_instructions,
    set_prompts,
)
from piccolo_st.modeling.pooling import instruction_token_ids

ModelMaker = Callable[..., Any]


def test_presets_are_those_of_the_model_card() -> None:
    assert PRESETS["piccolo"] == Instructions("查询：", "结果：")
    assert PRESETS["piccolo-training-notes"] == Instructions("查询: ", "结果: ")
    assert PRESETS["none"] == Instructions("", "")
    assert PRESETS["e5"] == Instructions("query: ", "passage: ")
    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert PRESETS["qwen3-embedding"] == Instructions(f"Instruct: {task}\nQuery:")  # no blank, unlike gte-Qwen2
    assert PRESETS["gte-qwen2"] == Instructions(f"Instruct: {task}\nQuery: ")
    with pytest.raises(TypeError):
        PRESETS["mine"] = Instructions()  # type: ignore[index]


def test_the_two_forms_of_the_card_tokenize_and_embed_differently(make_model: ModelMaker) -> None:
    model = make_model()
    usage, notes = (instruction_token_ids(model.tokenizer, PRESETS[name].query) for name in list(PRESETS)[:2])
    assert usage[:3] == notes[:3] and usage[3] != notes[3]
    set_prompts(model, "piccolo")
    first = model.encode_query("今天天气")
    set_prompts(model, "piccolo-training-notes")
    assert abs(first - model.encode_query("今天天气")).max() > 1e-3


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", Instructions()),
        (Instructions("问：", "答："), Instructions("问：", "答：")),
        ({"query": "问："}, Instructions("问：", "")),
        ({"query": "问：", "passage": "答："}, Instructions("问：", "答：")),
        ({}, Instructions()),
    ],
)
def test_resolve_instructions(spec: Any, expected: Instructions) -> None:
    assert resolve_instructions(spec) == expected


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            "picollo",
            ValueError,
            r"must be a preset \(piccolo, piccolo-training-notes, none, bge-zh, e5, gte-qwen2, .*\) "
            r"or instructions of your own, \{query: \"\.\.\.\", document: \"\.\.\.\"\} "
            r"or \{task: \"\.\.\.\"\}, got 'picollo'; did you mean piccolo\?$",
        ),
        (
            "查询：",
            ValueError,
            r"instructions of your own, .*, got '查询：'; known are bge-zh, e5, gte-qwen2, none, ",
        ),
        ({"question": "问："}, ValueError, r"\(or passage in the place of document\), got the keys \['question'\]$"),
        ({"document": "a", "passage": "b"}, ValueError, r"got the keys \['document', 'passage'\]$"),
        ({"query": None}, TypeError, r"the query of instructions must be a string, got None; write '' for none"),
        (3, TypeError, r"a preset \(.*\) or instructions of your own, .*, got 3$"),
        (None, TypeError, r"got None; for no instructions write none$"),
    ],
)
def test_bad_instructions_are_named(spec: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve_instructions(spec)


def test_set_prompts_serves_queries_and_documents_and_nothing_else(make_model: ModelMaker) -> None:
    model = make_model()
    model.prompts, model.default_prompt_name = {"summary": "小结：", "query": "q"}, "summary"
    set_prompts(model, "piccolo", per_task={"T2Retrieval": {"query": "问：", "document": "答："}})
    assert model.default_prompt_name is None
    assert model.prompts == {
        "summary": "小结：",
        "query": "查询：",
        "document": "结果：",
        "T2Retrieval-query": "问：",
        "T2Retrieval-document": "答：",
    }
    text = "今天天气"
    assert (model.encode_query(text) == model.encode("查询：" + text)).all()
    assert (model.encode_document(text) == model.encode("结果：" + text)).all()
    assert (model.encode(text) == model.encode(text, prompt="")).all()


def test_mteb_takes_the_prompt_names(make_model: ModelMaker) -> None:
    encoder = pytest.importorskip("mteb.models.abs_encoder").AbsEncoder
    model = make_model()
    set_prompts(model, "piccolo", per_task={"T2Retrieval": "none"})
    assert encoder.validate_task_to_prompt_name(model.prompts) == model.prompts


def test_column_tasks_and_prompts() -> None:
    columns = ["query", "positive", "negative_1", "negative_12", "label", "dataset_name"]
    tasks = {"query": "query", "positive": "document", "negative_1": "document", "negative_12": "document"}
    assert column_tasks(columns) == tasks
    assert column_prompts(columns) == {name: {"query": "查询："}.get(task, "结果：") for name, task in tasks.items()}
    assert column_tasks(["anchor", "positives", "negatives"]) == {
        "anchor": "query",
        "positives": "document",
        "negatives": "document",
    }
    assert column_prompts(columns, {"query": "问："}) == {"query": "问："}
    assert column_tasks(["question", "answer"]) == {"question": "query", "answer": "document"}
    assert column_tasks(["text", "text_pos", "text_neg"])["text"] == "query"
    for columns in (["sentence1", "sentence2", "score"], ["text", "label"], ["premise", "hypothesis", "label"]):
        assert column_tasks(columns) == {} == column_prompts(columns)


@pytest.mark.parametrize("column", ["response", "negative_", "negative_one", "Positive", "negative_1_id", "text"])
def test_a_dataset_with_an_instruction_on_one_side_only_is_refused(column: str) -> None:
    with pytest.raises(
        ValueError, match=rf"columns \['{column}'\] are neither queries nor documents, while \['query'\]"
    ):
        column_prompts(["query", column])


@given(st.lists(st.sampled_from(["query", "positive", "negative", "negative_1", "negative_2", "score"]), unique=True))
def test_prompts_follow_tasks(columns: list[str]) -> None:
    tasks, prompts = column_tasks(columns), column_prompts(columns)
    assert list(tasks) == [name for name in columns if name != "score"] == list(prompts)
    assert all(prompts[name] == ("查询：" if task == "query" else "结果：") for name, task in tasks.items())


def test_dataset_prompts_per_dataset() -> None:
    columns = {
        "t2": ["query", "positive"],
        "ques": ["query", "positive", "negative"],
        "sts": ["sentence1", "sentence2"],
    }
    assert dataset_prompts(columns, "piccolo", {"ques": "none"}) == {
        "t2": {"query": "查询：", "positive": "结果："},
        "ques": {},
        "sts": {},
    }
    assert dataset_tasks(columns)["ques"] == {"query": "query", "positive": "document", "negative": "document"}
    with pytest.raises(ValueError, match=r"instructions of single datasets must be for ques, sts, t2, got t3"):
        dataset_prompts(columns, "piccolo", {"t3": "none"})
    with pytest.raises(ValueError, match=r"\} of dataset 'sts' need a column of queries or documents, got \["):
        dataset_prompts(columns, "none", {"sts": "piccolo"})
    assert dataset_prompts(columns, "none", {"sts": "none"})["sts"] == {}


def test_the_collator_of_sentence_transformers_takes_both_forms(make_model: ModelMaker) -> None:
    model = make_model(query_length=8, document_length=16)
    rows = {
        "t2": {"query": "天" * 30, "positive": "地" * 30, "negative_1": "水"},
        "sts": {"sentence1": "红", "sentence2": "蓝", "score": 1.0},
    }
    columns = {name: list(row) for name, row in rows.items()}
    collator = BaseDataCollator(
        model.preprocess, prompts=dataset_prompts(columns), router_mapping=dataset_tasks(columns)
    )
    query, document = (instruction_token_ids(model.tokenizer, text) for text in ("查询：", "结果："))
    batch = collator([{"dataset_name": "t2", **rows["t2"]}])
    assert batch["query_input_ids"][0, :4].tolist() == query and batch["query_input_ids"].shape[1] == 8
    assert batch["positive_input_ids"][0, :4].tolist() == document and batch["positive_input_ids"].shape[1] == 16
    assert batch["negative_1_input_ids"][0, :4].tolist() == document
    assert (batch["query_task"], batch["negative_1_task"]) == ("query", "document")
    batch = collator([{"dataset_name": "sts", **rows["sts"]}])
    assert batch["sentence1_input_ids"].shape[1] == 3 and "sentence1_task" not in batch
    single = BaseDataCollator(model.preprocess, prompts=column_prompts(columns["t2"]))([rows["t2"]])
    assert single["query_input_ids"][0, :4].tolist() == query


# Tokenizers of other families, built small: what follows may join the end of the instruction.
def _unigram() -> PreTrainedTokenizerFast:
    """SentencePiece like XLM-RoBERTa's: the blank before a word is part of its first piece."""
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        "▁查询",
        "查询",
        "：",
        ":",
        "▁今天",
        "今天",
        "▁as",
        "▁a",
        "s",
        "7",
        "的",
    ]
    pieces += list("今天查询andinge▁")
    tokenizer = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(dict.fromkeys(pieces))], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def _byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE without special tokens around the text, like Qwen's; ':' and 'a' have merged with a blank."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("s", ":"), ("q", "u")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges), "<|end|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|end|>", eos_token="<|end|>")


def test_the_prefix_has_the_leading_special_tokens_and_no_trailing_ones(make_model: ModelMaker) -> None:
    tokenizer = make_model().tokenizer
    ids = instruction_token_ids(tokenizer, "查询：")
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "查", "询", "："]
    assert instruction_token_ids(tokenizer, "查询: ") == instruction_token_ids(tokenizer, "查询:")


def test_a_blank_that_joins_the_text_belongs_to_the_text() -> None:
    tokenizer = _unigram()
    for instruction in ("查询:", "查询: "):
        assert tokenizer.convert_ids_to_tokens(instruction_token_ids(tokenizer, instruction)) == ["<s>", "▁查询", ":"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("查询: 今天")["input_ids"]) == [
        "<s>",
        "▁查询",
        ":",
        "▁今天",
        "</s>",
    ]


def test_a_tokenizer_without_special_tokens_around_the_text() -> None:
    tokenizer = _byte_level()
    ids = instruction_token_ids(tokenizer, "查询：")
    assert ids == tokenizer("查询：")["input_ids"] and len(ids) == 9  # three bytes a character
    assert tokenizer.decode(instruction_token_ids(tokenizer, "qu: ")) == "qu:"


@pytest.mark.parametrize(
    ("make", "instruction", "message"),
    [
        ("wordpiece", "", r"the instruction '' has no tokens; leave it out"),
        ("wordpiece", " ", r"the instruction ' ' has no tokens"),
        ("wordpiece", "饕餮：", r"'饕餮：' has characters this tokenizer does not know"),
        ("wordpiece", "a", r"the tokens of the instruction 'a' change with the text that follows.*punctuation mark"),
        ("unigram", "查询: a", r"change with the text that follows"),
        ("unigram", "查询饕：", r"does not know"),
    ],
)
def test_instructions_no_row_can_be_told_by(make: str, instruction: str, message: str, make_model: ModelMaker) -> None:
    tokenizer = make_model().tokenizer if make == "wordpiece" else _unigram()
    with pytest.raises(ValueError, match=message):
        instruction_token_ids(tokenizer, instruction)


def test_a_tokenizer_that_knows_nothing_but_the_instruction() -> None:
    """Whatever follows is then one and the same unknown token, which is no part of the instruction."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "查", "询", "："]
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    assert instruction_token_ids(tokenizer, "查询：") == [2, 5, 6, 7]


def test_normalizers_are_followed() -> None:
    tokenizer = _unigram()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()  # the full-width colon becomes an ASCII one
    assert instruction_token_ids(tokenizer, "查询：") == instruction_token_ids(tokenizer, "查询:")
