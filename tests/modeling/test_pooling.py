"""InstructionPooling against a plain loop over rows, and against stock Pooling wherever that can say the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from piccolo_st.errors import InputError
from piccolo_st.modeling.instructions import Instructions, dataset_prompts, set_prompts
from piccolo_st.modeling.pooling import InstructionPooling, set_instruction_pooling
from tests.helpers.ranks import run_ranks

ModelMaker = Callable[..., SentenceTransformer]
MODES = Pooling.POOLING_MODES
CLS, SEP = 1, 2
INSTRUCTIONS = ([CLS, 3, 4], [CLS, 3, 4, 5], [CLS, 6])  # the first is the beginning of the second


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[int]], str]:
    """Rows as token ids, and the padding side. Tokens are few, so that rows that nearly have an instruction occur."""
    content = st.lists(st.integers(3, 9), max_size=6)
    begin = st.sampled_from([[CLS], [], *INSTRUCTIONS])
    row = st.builds(lambda start, text, end: [*start, *text, *end], begin, content, st.sampled_from([[SEP], []]))
    return draw(st.lists(row.filter(len), min_size=1, max_size=5)), draw(st.sampled_from(["left", "right"]))


def features_of(rows: list[list[int]], side: str, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    width = max(map(len, rows)) + seed % 2
    ids, mask = torch.zeros(len(rows), width).long(), torch.zeros(len(rows), width).long()
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    tokens = torch.randn(len(rows), width, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {"input_ids": ids, "attention_mask": mask, "token_embeddings": tokens.to(dtype)}


def flattened(features: dict[str, Tensor]) -> dict[str, Any]:
    mask = features["attention_mask"].bool()
    borders = torch.cat([torch.zeros(1).int(), mask.sum(1).cumsum(0).int()])
    return {
        "input_ids": features["input_ids"][mask][None],
        "token_embeddings": features["token_embeddings"][mask][None],
        "cu_seq_lens_q": borders,
        "seq_idx": torch.repeat_interleave(torch.arange(len(mask)), mask.sum(1))[None].int(),
    }


def pool_by_hand(rows: list[list[int]], features: dict[str, Tensor], mode: str) -> Tensor:
    """Every row on its own: take off its longest instruction, unless nothing is left, and reduce the rest."""
    vectors = []
    for i, row in enumerate(rows):
        tokens = features["token_embeddings"][i][features["attention_mask"][i].bool()].double()
        found = max((len(ids) for ids in INSTRUCTIONS if row[: len(ids)] == ids), default=0)
        found = found if found < len(row) else 0
        tokens, weights = tokens[found:], torch.arange(found + 1, len(row) + 1).double()[:, None]
        vectors.append(
            {
                "cls": tokens[0],
                "lasttoken": tokens[-1],
                "max": tokens.amax(0),
                "mean": tokens.mean(0),
                "mean_sqrt_len_tokens": tokens.sum(0) / len(tokens) ** 0.5,
                "weightedmean": (tokens * weights).sum(0) / weights.sum(),
            }[mode]
        )
    return torch.stack(vectors)


@pytest.mark.parametrize("mode", MODES)
@given(
    batch=batches(),
    seed=st.integers(0, 99),
    flat=st.booleans(),
    dtype=st.sampled_from(["float64", "float32", "bfloat16"]),
)
@settings(max_examples=100)
def test_every_row_loses_its_own_instruction(mode: Any, batch: Any, seed: int, flat: bool, dtype: str) -> None:
    rows, side = batch
    features = features_of(rows, side, getattr(torch, dtype), seed)
    pooling = InstructionPooling(4, mode, include_instruction=False, instruction_ids=INSTRUCTIONS)
    given_features = flattened(features) if flat else features
    before = {name: tensor.clone() for name, tensor in given_features.items()}
    got = pooling(given_features)["sentence_embedding"]
    tolerance = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}[dtype]
    assert got.dtype == features["token_embeddings"].dtype
    torch.testing.assert_close(got.double(), pool_by_hand(rows, features, mode), rtol=tolerance, atol=tolerance)
    assert all(torch.equal(given_features[name], tensor) for name, tensor in before.items())  # nothing changed in place


@pytest.mark.parametrize("mode", [*MODES, ("mean", "weightedmean", "cls")])
@given(batch=batches(), seed=st.integers(0, 99), flat=st.booleans())
def test_equals_stock_pooling_where_all_rows_have_one_instruction(mode: Any, batch: Any, seed: int, flat: bool) -> None:
    rows, side = batch
    instruction = INSTRUCTIONS[seed % 3]
    # An 8 ends it: the row begins with no longer instruction, and something is left of it.
    rows = [[*instruction, 8, *row] for row in rows]
    for dtype in (torch.float64, torch.bfloat16):
        features = features_of(rows, side, dtype, seed)
        features = flattened(features) if flat else features
        stock = Pooling(4, mode, include_prompt=False)({**features, "prompt_length": len(instruction)})
        # prompt_length is there as well when a prompt was given; the layer must not take off the instruction twice.
        ours = InstructionPooling(4, mode, False, INSTRUCTIONS)({**features, "prompt_length": len(instruction)})
        if mode == "weightedmean" or isinstance(mode, tuple):
            torch.testing.assert_close(ours["sentence_embedding"], stock["sentence_embedding"])
        else:
            assert torch.equal(ours["sentence_embedding"], stock["sentence_embedding"])
        included = InstructionPooling(4, mode, True, INSTRUCTIONS)({**features, "prompt_length": len(instruction)})
        assert torch.equal(included["sentence_embedding"], Pooling(4, mode)(dict(features))["sentence_embedding"])
        differ = not torch.allclose(included["sentence_embedding"], ours["sentence_embedding"])
        assert differ or mode in ("lasttoken", "max")  # guard: excluding is not a no-op


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_that_is_no_instruction_is_left_out_as_in_stock_pooling(mode: Any, side: str) -> None:
    prompts = ([CLS, 7, 8], [CLS, 3, 4, 8, 9], [CLS, 6, 9, 9])  # the last two begin with an instruction
    for prompt in prompts:
        rows = [[*prompt, 8, 5, SEP], [*prompt, 9]]
        for features in (features_of(rows, side, torch.float64), flattened(features_of(rows, side, torch.float64))):
            for length in (len(prompt), torch.tensor([len(prompt)]), torch.tensor([len(prompt)] * 2)):
                given = {**features, "prompt_length": length}
                stock = Pooling(4, mode, include_prompt=False)(dict(given))["sentence_embedding"]
                ours = InstructionPooling(4, mode, False, INSTRUCTIONS)(given)["sentence_embedding"]
                torch.testing.assert_close(ours, stock)
    whole = {**features_of([[CLS, 3, 4, 8], [CLS, 7]], side, torch.float64), "prompt_length": 4}
    expected = pool_by_hand([[CLS, 3, 4, 8], [CLS, 7]], whole, mode)  # nothing would be left: as if none was given
    torch.testing.assert_close(InstructionPooling(4, mode, False, INSTRUCTIONS)(whole)["sentence_embedding"], expected)


def test_the_blank_that_ends_a_prompt_takes_no_token_off_the_text() -> None:
    """Alone, "query: " has a last token, the blank, that the text's first token takes in."""
    features = features_of([[CLS, 3, 4, 8, 9]], "right", torch.float64)
    pooling = InstructionPooling(4, "cls", False, [[CLS, 3, 4]])
    pooled = pooling({**features, "prompt_length": 4})["sentence_embedding"]
    assert torch.equal(pooled, features["token_embeddings"][:, 3])


def test_an_instruction_never_reaches_into_the_next_row() -> None:
    """[1, 6, 7] and what follows it look like [1, 6, 7, 8, 9], but only its own [1, 6] is an instruction."""
    rows = [[CLS, 6, 7], [8, 9, 3]]
    pooling = InstructionPooling(4, "mean", False, [[CLS, 6], [CLS, 6, 7, 8, 9]])
    features = features_of(rows, "right", torch.float64)
    expected = torch.stack([features["token_embeddings"][0, 2], features["token_embeddings"][1].mean(0)])
    for given_features in (flattened(features), features):
        torch.testing.assert_close(pooling(given_features)["sentence_embedding"], expected)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("查询：今天", 4),
        ("查询：", 4),
        ("查询:今天", 0),  # the other colon
        ("查询今天：", 0),
        ("今天查询：", 0),
        ("查询：查询：今天", 4),  # only once
        ("结果：今天", 4),
        ("查", 0),
        ("", 0),
    ],
)
def test_what_is_taken_for_an_instruction(make_model: ModelMaker, text: str, tokens: int) -> None:
    model = make_model()
    pooling = set_instruction_pooling(model, "piccolo", include_instruction=False)
    features = model.preprocess([text, "今天天气好，明天下雨"])
    flat, mask = features["input_ids"].reshape(-1), features["attention_mask"]
    starts = torch.tensor([0, mask.shape[1]])
    assert pooling._instruction_lengths(flat, starts, starts + mask.sum(1)).tolist() == [tokens, 0]


def test_an_instruction_cut_by_the_length_is_not_taken_for_one(make_model: ModelMaker) -> None:
    model = make_model(query_length=4)
    pooling = set_instruction_pooling(model, "piccolo", include_instruction=False)
    features = model.preprocess(["查询：今天"], task="query")
    assert model.tokenizer.convert_ids_to_tokens(features["input_ids"][0]) == ["[CLS]", "查", "询", "[SEP]"]
    assert pooling._instruction_lengths(features["input_ids"][0], torch.tensor([0]), torch.tensor([4])).item() == 0


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_all_ways_to_give_an_instruction_give_one_vector(make_model: ModelMaker, mode: str, include: bool) -> None:
    model = make_model(pooling=mode).double()
    set_prompts(model)
    texts = ["今天天气好", "数据", "长" * 40]
    model.set_pooling_include_prompt(include)
    stock = model.encode_query(texts)
    set_instruction_pooling(model, "piccolo", include)
    exact = (
        (lambda a, b: (a == b).all()) if mode != "weightedmean" or include else (lambda a, b: abs(a - b).max() < 1e-14)
    )
    assert exact(model.encode_query(texts), stock)
    by_hand = ["查询：" + text for text in texts]
    assert (model.encode(by_hand) == model.encode_query(texts)).all()
    assert (model.encode(texts, prompt_name="query") == model.encode_query(texts)).all()
    assert (model.encode(texts, prompt="查询：") == model.encode_query(texts)).all()
    # A mixed batch has other padding, so the encoder itself rounds differently, in the last bits of float64.
    mixed = model.encode(["结果：今天的天气很好", *by_hand, "没有", ""])[1:4]
    assert abs(mixed - model.encode_query(texts)).max() < 1e-12
    without = model.encode(texts)
    assert abs(without - model.encode_query(texts)).max() > 1e-3  # the instruction is seen by the encoder either way


def test_compiled_without_a_graph_break() -> None:
    pooling = InstructionPooling(4, "mean", False, INSTRUCTIONS)
    compiled = torch.compile(pooling, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in ([[CLS, 3, 4, 7, SEP], [CLS, 8]], [[CLS, 6, 9, 9, 9, SEP]]):
        features = features_of(rows, "right", torch.float32)
        assert torch.equal(
            compiled(dict(features))["sentence_embedding"], pooling(dict(features))["sentence_embedding"]
        )


def test_autocast_and_half_precision_find_the_same_rows(make_model: ModelMaker) -> None:
    model = make_model()
    set_instruction_pooling(model, "piccolo", include_instruction=False)
    texts = ["查询：今天", "结果：明天的天气很好", "没有"]
    exact = model.encode(texts, convert_to_tensor=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.encode(texts, convert_to_tensor=True).float(), exact, rtol=0.05, atol=0.05)
    half = copy.deepcopy(model).half()
    assert half[1]._prefixes.dtype == torch.int64
    torch.testing.assert_close(half.encode(texts, convert_to_tensor=True).float(), exact, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("include", [True, False])
def test_gradient_caching_and_checkpointing_give_the_same_gradients(make_model: ModelMaker, include: bool) -> None:
    texts = [
        ["查询：今天", "没有", "查询：数据一二三", "查询："],
        ["结果：明天的天气很好", "结果：水", "结果：地", "天"],
    ]

    def gradients(checkpointing: bool, cached: bool) -> list[Tensor]:
        model = make_model().double()
        set_instruction_pooling(model, "piccolo", include)
        if checkpointing:
            model[0].auto_model.gradient_checkpointing_enable()
        model.train()
        loss = (
            CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
            if cached
            else MultipleNegativesRankingLoss(model)
        )
        loss([model.preprocess(column) for column in texts], None).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients(False, False)
    assert max(gradient.abs().max() for gradient in plain) > 1e-3
    for checkpointing, cached in ((True, False), (False, True), (True, True)):
        for got, expected in zip(gradients(checkpointing, cached), plain, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_saves_and_loads_as_a_module(make_model: ModelMaker, tmp_path: Any) -> None:
    model = make_model(pooling="weightedmean")
    keys = set(model.state_dict())
    pooling = set_instruction_pooling(model, "piccolo", include_instruction=False)
    assert set(model.state_dict()) == keys  # exchangeable with a model that has stock Pooling
    model.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert isinstance(loaded[1], InstructionPooling)
    assert loaded[1].get_config_dict() == pooling.get_config_dict()
    texts = ["查询：今天", "没有"]
    assert (loaded.encode(texts) == model.encode(texts)).all()


def test_the_switch_of_sentence_transformers_works(make_model: ModelMaker) -> None:
    model = make_model()
    pooling = set_instruction_pooling(model, "piccolo")
    included = model.encode("查询：今天")
    model.set_pooling_include_prompt(False)
    assert not pooling.include_instruction
    excluded = model.encode("查询：今天")
    pooling.include_instruction = True
    assert pooling.include_prompt and (model.encode("查询：今天") == included).all() and (excluded != included).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: InstructionPooling(4, instruction_ids=[[1], []]),
            r"instruction_ids must not hold an empty prefix.*\[\[1\], \[\]\]",
        ),
        (lambda: InstructionPooling(4, "median"), r"Invalid pooling mode: 'median'"),
        (
            lambda: InstructionPooling(4, include_instruction=False, instruction_ids=[[1]])(
                {"token_embeddings": torch.zeros(1, 2, 4)}
            ),
            r"excluding instructions needs input_ids, got the features \['token_embeddings'\]",
        ),
        (
            lambda: InstructionPooling(4, include_instruction=False, instruction_ids=[[1]])(
                {"token_embeddings": torch.zeros(1, 5, 4), "input_ids": torch.zeros(1, 2).long()}
            ),
            r"one token embedding for each of the 2 input_ids of a row, got 5",
        ),
    ],
)
def test_bad_arguments(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_set_instruction_pooling_takes_every_form_and_one_pooling(make_model: ModelMaker) -> None:
    model = make_model(pooling="cls")
    expected = set_instruction_pooling(model, "piccolo").instruction_ids
    assert model[1].pooling_mode == "cls"
    for form in (
        Instructions("查询：", "结果："),
        {"query": "查询：", "passage": "结果："},
        ["查询：", "", "结果：", "查询："],
    ):
        assert set_instruction_pooling(model, form).instruction_ids == expected  # again and again, no matter
    with pytest.raises(InputError, match=r"needs the instructions to leave out, got none; name them"):
        InstructionPooling.from_tokenizer(model.tokenizer, 32, [""], include_instruction=False)
    with pytest.raises(ValueError, match=r"exactly one Pooling module, got"):
        set_instruction_pooling(SentenceTransformer(modules=[model[0]]), "piccolo")


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("build", ["class", "from_tokenizer", "none", "empty texts"])
def test_without_instructions_it_is_stock_pooling(
    make_model: ModelMaker, tmp_path: Any, build: str, include: bool
) -> None:
    stock, model = make_model(pooling="cls"), make_model(pooling="cls")
    stock.set_pooling_include_prompt(include)
    set_instruction_pooling(model, "piccolo", not include)  # what is to be undone
    if build == "class":
        model[1] = InstructionPooling(32, "cls", include)
    elif build == "from_tokenizer":
        model[1] = InstructionPooling.from_tokenizer(model.tokenizer, 32, [], "cls")
        model.set_pooling_include_prompt(include)
    else:
        pooling = set_instruction_pooling(model, "none" if build == "none" else [""], include)
        assert type(pooling) is Pooling and pooling is model[1]
    texts = ["查询：今天天气", "好"]
    model.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    for one in (model, pickle.loads(pickle.dumps(model)), loaded):
        for prompt in (None, "结果："):
            assert (one.encode(texts, prompt=prompt) == stock.encode(texts, prompt=prompt)).all()


def _train(rank: int, world: int, model: SentenceTransformer, include: bool, folder: str) -> dict[str, Any]:
    """Three datasets with two instructions, others and none, through the stock trainer."""
    data = DatasetDict(
        retrieval=Dataset.from_dict(
            {"query": ["今天"] * 8, "positive": ["明天的天气很好"] * 8, "negative": ["水"] * 8}
        ),
        questions=Dataset.from_dict({"query": ["数据一", "数据二"] * 4, "positive": ["一", "二"] * 4}),
        sts=Dataset.from_dict({"sentence1": ["红", "蓝"] * 4, "sentence2": ["黑", "白"] * 4, "score": [0.1, 0.9] * 4}),
    )
    per_dataset = {"questions": {"query": "数：", "document": "对："}}
    columns = {name: dataset.column_names for name, dataset in data.items()}
    set_prompts(model)
    set_instruction_pooling(model, ["查询：", "结果：", "数：", "对："], include)
    before = [parameter.clone() for parameter in model.parameters()]
    ranking = MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output_dir=f"{folder}/{rank}",
            per_device_train_batch_size=2,
            num_train_epochs=1,
            learning_rate=1e-2,
            prompts=dataset_prompts(columns, "piccolo", per_dataset),
            use_cpu=True,  # the stock trainer does not see by itself that there is nothing else
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=data,
        loss={"retrieval": ranking, "questions": ranking, "sts": CoSENTLoss(model)},
    )
    trainer.train()
    moved = [
        (name, float((parameter - old).abs().max()))
        for (name, parameter), old in zip(model.named_parameters(), before, strict=True)
        if "pooler" not in name
    ]
    return {
        "moved": moved,
        "steps": trainer.state.global_step,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "vectors": model.encode(["今天", "查询：今天", "数：今天", "对："], convert_to_tensor=True),
        "type": type(model[1]).__name__,
    }


def test_trains_under_two_ranks_with_instructions_mixed_over_datasets(make_model: ModelMaker, tmp_path: Any) -> None:
    results = {}
    for include in (True, False):
        ranks = run_ranks(_train, 2, make_model(), include, str(tmp_path / str(include)), timeout=120)
        assert [rank["steps"] for rank in ranks] == [6, 6] and ranks[0]["type"] == "InstructionPooling"
        assert all(torch.isfinite(rank["vectors"]).all() for rank in ranks)
        assert torch.equal(ranks[0]["vectors"], ranks[1]["vectors"])  # both ranks end with one model
        assert all(distance > 0 for _, distance in ranks[0]["moved"]), ranks[0]["moved"]
        assert all(loss == loss for loss in ranks[0]["losses"])
        results[include] = ranks[0]["vectors"]
    assert (results[True] - results[False]).abs().max() > 1e-3  # guard: the switch reached the training
