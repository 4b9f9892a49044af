"""Packing changes the time and nothing else: embeddings and gradients against padded rows, for any lengths."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertModel, PreTrainedModel

from piccolo_st.modeling.batching import embed_columns
from piccolo_st.modeling.loading import load_encoder
from piccolo_st.modeling.packed.attention import _SCORES, ATTENTION, SHORT, Blocks, attention, similar_lengths
from piccolo_st.modeling.packed.packing import pack, packs, packs_now, use_packing
from piccolo_st.modeling.packed.varlen import _KNOWN, Borders, Tried, View, reference
from piccolo_st.modeling.pooling import set_instruction_pooling
from piccolo_st.modeling.portable.saving import save_portable
from tests.conftest import build_encoder
from tests.helpers.architectures import small_encoder

TEXTS = ["天气今明", "雨", "山川河海春夏秋冬" * 3, "猫狗", "红黄", "天" * 90, "长短好坏快慢"]


def gradients(model: SentenceTransformer, features: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    embeddings = model(dict(features))["sentence_embedding"]
    (embeddings * torch.arange(embeddings.numel()).view_as(embeddings).cos()).sum().backward()
    return embeddings.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "weightedmean", "lasttoken"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:5]], ids=["long", "short"])
def test_embeddings_and_gradients_are_those_of_padded_rows(
    make_model: Callable[..., SentenceTransformer], pooling: str, texts: list[str]
) -> None:
    model = make_model(pooling=pooling).double()
    packed = copy.deepcopy(model)
    assert use_packing(packed) and packs(packed) and not packs(model)
    features = model.preprocess(texts)
    seen: list[torch.Size] = []
    packed[0].model.embeddings.register_forward_hook(lambda module, args, output: seen.append(output.shape))

    expected, expected_gradients = gradients(model, features)
    found, found_gradients = gradients(packed, features)

    assert seen[-1][:2] == (1, int(features["attention_mask"].sum())), "it was padded after all"
    assert torch.allclose(found, expected, atol=1e-12)
    assert len(found_gradients) == len(expected_gradients) > 20
    assert all(torch.allclose(*pair, atol=1e-11) for pair in zip(found_gradients, expected_gradients, strict=True))


def test_rows_of_one_length_are_packed_in_training_alone(make_model: Callable[..., SentenceTransformer]) -> None:
    model = make_model()
    assert use_packing(model)
    features = model.preprocess(["天气", "红黄", "猫狗"])
    seen: list[torch.Size] = []
    model[0].model.embeddings.register_forward_hook(lambda module, args, output: seen.append(output.shape[:2]))
    for training in (True, False):
        model.train(training)
        model(dict(features))
    rows, tokens = features["attention_mask"].shape
    assert seen == [(1, rows * tokens), (rows, tokens)]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:5]], ids=["long", "short"])
def test_autocast_in_bfloat16(make_model: Callable[..., SentenceTransformer], texts: list[str]) -> None:
    model = make_model()
    packed = copy.deepcopy(model)
    assert use_packing(packed)
    features = model.preprocess(texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, expected_gradients = gradients(model, features)
        found, found_gradients = gradients(packed, features)

    assert torch.allclose(found.float(), expected.float(), atol=0.05)
    similarity = torch.cosine_similarity(
        torch.cat([one.flatten() for one in found_gradients]),
        torch.cat([one.flatten() for one in expected_gradients]),
        dim=0,
    )
    assert float(similarity) > 0.99


def test_instructions_are_excluded_as_in_padded_rows(make_model: Callable[..., SentenceTransformer]) -> None:
    model = make_model()
    set_instruction_pooling(model, "piccolo", include_instruction=False)
    features = model.preprocess(["查询：" + TEXTS[0], TEXTS[2], "结果：" + TEXTS[1]])
    expected = model(dict(features))["sentence_embedding"]

    assert use_packing(model)

    assert torch.allclose(model(dict(features))["sentence_embedding"], expected, atol=1e-5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_every_text_stands_in_one_block(lengths: list[int]) -> None:
    groups = similar_lengths(lengths)

    assert sorted(text for group in groups for text in group) == list(range(len(lengths)))
    for group in groups:
        sizes = [lengths[text] for text in group]
        assert sizes[0] == max(sizes) and min(sizes) >= 0.8 * max(sizes)
    there, back, padding = Blocks(lengths).indices(heads=3)
    tokens = torch.arange(3 * sum(lengths))
    assert torch.equal(tokens[there][back], tokens)
    assert len(padding) == len(there) - len(tokens) and not set(padding.tolist()) & set(back.tolist())


def test_a_block_of_long_texts_is_small() -> None:
    assert max(map(len, similar_lengths([512] * 50))) == _SCORES // 512**2


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    long=st.booleans(),
    window=st.none() | st.integers(1, 8),
    causal=st.booleans(),
    shared=st.sampled_from([1, 2]),
)
def test_attention_with_its_own_backward(
    lengths: list[int], long: bool, window: int | None, causal: bool, shared: int
) -> None:
    """Against a mask of the whole row that is made token by token; with a long text, the other way of computing."""
    torch.manual_seed(0)
    lengths = [*lengths, SHORT + 1] if long else lengths
    query = torch.randn(1, 2, sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(1, 2 // shared, sum(lengths), 3, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    text = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    behind = torch.arange(len(text))[:, None] - torch.arange(len(text))
    seen = (text[:, None] == text) & (behind.abs() < (window or len(text))) & ((behind >= 0) | (not causal))

    def packed(*args: torch.Tensor) -> torch.Tensor:
        options = {"blocks": Blocks(lengths), "sliding_window": window, "is_causal": causal}
        return attention(torch.nn.Module(), *args, None, **options)[0]

    several = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(query, *several, seen).transpose(1, 2)
    found = packed(query, key, value)
    assert torch.allclose(found, expected)
    gradients = [torch.autograd.grad(x.cos().sum(), (query, key, value)) for x in (found, expected)]
    assert all(torch.allclose(*pair) for pair in zip(*gradients, strict=True))
    if sum(lengths) < 20:
        assert torch.autograd.gradcheck(packed, (query, key, value))


def test_attention_drops_weights_and_their_gradients() -> None:
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    lengths = [5, 3, 5]
    query, key = (torch.randn(1, 2, 13, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    value = torch.randn(1, 2, 13, 4, dtype=torch.float64, requires_grad=True)

    def run(p: float, *args: torch.Tensor, seed: int = 7) -> torch.Tensor:
        torch.manual_seed(seed)
        return attention(module, *args, None, dropout=p, blocks=Blocks(lengths))[0]

    assert torch.autograd.gradcheck(lambda *args: run(0.4, *args), (query, key, value))
    whole = run(0.0, query, key, value)
    samples = torch.stack([run(0.2, query, key, value, seed=seed).detach() for seed in range(4000)])
    assert not torch.allclose(samples[0], whole, atol=1e-3)
    assert torch.allclose(samples.mean(0), whole, atol=6 * float(samples.std(0).max()) / 4000**0.5)


def test_what_cannot_be_packed_passes_as_it_is() -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])

    assert pack({"input_ids": ids, "attention_mask": mask}) is not None
    assert pack({"input_ids": ids, "attention_mask": torch.ones_like(mask)}, full=True) is not None
    for features in (
        {"input_ids": ids, "attention_mask": torch.ones_like(mask)},  # nothing is padded
        {"input_ids": ids, "attention_mask": mask.flip(1)},  # padded on the left
        {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])},  # a text without a token
        {"input_ids": ids, "attention_mask": mask, "bbox": torch.zeros(2, 3, 4)},  # what every token has besides
        {"input_ids": ids, "attention_mask": mask, "cu_seq_lens_q": torch.tensor([0, 3, 5])},
        {"pixel_values": torch.zeros(2, 3)},
    ):
        assert pack(features) is None


def build(path: Path, model: torch.nn.Module, encoder_dir: Path) -> SentenceTransformer:
    for file in encoder_dir.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "vocab")):
            (path / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(path)
    transformer = Transformer(str(path))
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")


def test_positions_of_robertas_family(encoder_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(tmp_path, small_encoder("roberta", max_position_embeddings=200), encoder_dir)
    expected = model.encode(TEXTS)

    assert use_packing(model)

    assert torch.allclose(torch.tensor(model.encode(TEXTS)), torch.tensor(expected), atol=1e-5)


def test_a_model_that_would_change_is_left_alone(
    encoder_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Mixing(BertModel):
        """Every text sees how many texts there are: no two layouts give the same."""

        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.last_hidden_state = output.last_hidden_state * output.last_hidden_state.shape[1]
            return output

    torch.manual_seed(0)
    model = build(tmp_path, small_encoder("bert"), encoder_dir)
    model[0].model.__class__ = Mixing
    expected = model.encode(TEXTS)
    assert "runs with padding, because its embeddings would change" in refused(model, caplog)
    assert (model.encode(TEXTS) == expected).all()


BOTH = ["sliding_attention", "full_attention"] * 2
GROUPED = {"num_key_value_heads": 1, "head_dim": 16}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "modernbert": ("modernbert", {"local_attention": 32, "global_attn_every_n_layers": 2}),
    "llama": ("llama", {}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 16}),
    "qwen3": ("qwen3", {**GROUPED, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "gemma3": ("gemma3_text", {**GROUPED, "sliding_window": 16, "layer_types": BOTH}),
    "embeddinggemma": (
        "gemma3_text",
        {**GROUPED, "sliding_window": 16, "layer_types": BOTH, "use_bidirectional_attention": True},
    ),
}


def made(name: str) -> PreTrainedModel:
    kind, options = MODELS[name]
    return small_encoder(kind, num_hidden_layers=4, num_attention_heads=2, **options)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:5], TEXTS[2:3]], ids=["long", "short", "one"])
@pytest.mark.parametrize("name", MODELS)
def test_each_text_keeps_its_window_and_its_direction(
    name: str, texts: list[str], encoder_dir: Path, tmp_path: Path
) -> None:
    """Texts longer than the window, in rows of many that are longer too; one text alone has no padding to tell."""
    torch.manual_seed(0)
    model = build(tmp_path, made(name), encoder_dir)
    packed = copy.deepcopy(model)
    assert use_packing(packed)
    features = model.preprocess(texts)
    assert features["input_ids"].shape[1] > 17
    for training in (True, False):
        expected, expected_gradients = gradients(model.train(training), features)
        found, found_gradients = gradients(packed.train(training), features)
        assert torch.allclose(found, expected, atol=1e-5)
        largest = max(float(one.abs().max()) for one in expected_gradients)
        for one, other in zip(found_gradients, expected_gradients, strict=True):
            assert torch.allclose(one, other, atol=1e-5 * largest, rtol=0)


def refused(model: SentenceTransformer, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.WARNING, logger="piccolo_st.modeling.packed.packing"):
        assert not use_packing(model)
    assert not packs(model) and not model[0]._forward_pre_hooks and not model[0]._forward_hooks
    return caplog.text


def test_a_window_that_a_layer_does_not_tell_is_noticed(
    encoder_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the usual size, one key too wide, in one layer of many."""
    torch.manual_seed(0)
    model = build(tmp_path, small_encoder("modernbert", num_hidden_layers=8, local_attention=128), encoder_dir)
    assert use_packing(copy.deepcopy(model))
    model[0].model.layers[4].attn.sliding_window += 1
    assert "ModernBertModel runs with padding, because its embeddings would change" in refused(model, caplog)


def test_what_packing_does_not_know_is_refused_with_the_reason(
    encoder_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, make_model: Callable[..., SentenceTransformer]
) -> None:
    model = build(tmp_path, small_encoder("gemma2", sliding_window=16), encoder_dir)
    assert "Gemma2Model runs with padding, because its attention is eager, not sdpa" in refused(model, caplog)
    rows = torch.randn(1, 2, 5, 3)
    with pytest.raises(ValueError, match="packed texts have no softcap"):
        attention(torch.nn.Module(), rows, rows, rows, None, blocks=Blocks([5]), softcap=5.0)
    assert "because its weights are bfloat16, whose rounding" in refused(make_model().bfloat16(), caplog)
    model = build(tmp_path, small_encoder("mistral", sliding_window=100_000), encoder_dir)
    assert "would take a trial of 150," in refused(model, caplog)


def test_encode_is_the_same_and_nothing_is_saved(
    make_model: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    model = make_model(dropout=True)
    expected = torch.tensor(model.encode(TEXTS))
    tokens = model.encode(TEXTS, output_value="token_embeddings")
    model.train()

    assert use_packing(model) and use_packing(model) and model.training and model[0].training

    assert len(model[0]._forward_pre_hooks) == 1
    assert torch.allclose(torch.tensor(model.encode(TEXTS)), expected, atol=1e-5)
    for one, other in zip(model.encode(TEXTS, output_value="token_embeddings"), tokens, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    save_portable(model, tmp_path / "model")
    assert not any(ATTENTION in path.read_text(errors="ignore") for path in (tmp_path / "model").rglob("*.json"))
    assert torch.allclose(torch.tensor(SentenceTransformer(str(tmp_path / "model")).encode(TEXTS)), expected, atol=1e-5)


# A kernel for half precision, as on a GPU; here its equal in plain torch.


@pytest.mark.parametrize("name", MODELS)
def test_a_kernel_of_half_precision_packs_there_alone(name: str, encoder_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(tmp_path, made(name), encoder_dir)
    packed = copy.deepcopy(model)
    assert use_packing(packed, torch.bfloat16, kernel=reference)
    features = model.preprocess(TEXTS)
    seen: list[torch.Size] = []
    packed[0].model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[2].shape[:2]))
    assert not packs_now(packed) and torch.equal(
        packed(dict(features))["sentence_embedding"], model(dict(features))["sentence_embedding"]
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packs_now(packed)
        (found, ours), (expected, theirs) = gradients(packed, features), gradients(model, features)
    assert seen == [features["input_ids"].shape, (1, int(features["attention_mask"].sum()))]
    assert torch.allclose(found.float(), expected.float(), atol=0.05)
    pair = [torch.cat([one.flatten() for one in many]) for many in (ours, theirs)]
    assert float(torch.cosine_similarity(*pair, dim=0)) > 0.99


def test_a_loss_is_told_what_the_forward_pass_that_accelerate_wraps_will_do(
    make_model: Callable[..., SentenceTransformer],
) -> None:
    model = make_model()
    assert use_packing(model, torch.bfloat16, kernel=reference)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        assert not packs_now(model)
        prepared = accelerator.prepare(model)
        seen: list[torch.Size] = []
        model[0].model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[2].shape[:2]))
        features = model.preprocess(TEXTS)
        told = packs_now(prepared)
        [embeddings] = embed_columns(prepared, [features], chunk_tokens="auto")
        tokens = int(features["attention_mask"].sum())
        assert told and seen == [(1, tokens)] and len(embeddings) == len(TEXTS)
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)


def test_lengths_that_are_known_are_not_asked_of_the_mask(make_model: Callable[..., SentenceTransformer]) -> None:
    features = make_model().preprocess(TEXTS)
    lengths = features["attention_mask"].sum(1)
    one, other = (pack(dict(features) | more, kernel=reference) for more in ({}, {"row_lengths": lengths}))
    assert one and other and one["blocks"].borders.tolist() == [0, *lengths.cumsum(0).tolist()]
    for name in ("input_ids", "position_ids"):
        assert torch.equal(one[name], other[name])
    assert torch.equal(one["blocks"].borders, other["blocks"].borders)


def test_a_kernel_is_refused_with_the_reason(
    make_model: Callable[..., SentenceTransformer], caplog: pytest.LogCaptureFixture
) -> None:
    def short_sighted(*args: object) -> torch.Tensor:
        return reference(*args[:5], View(window=3), args[6])  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING, logger="piccolo_st.modeling.packed.packing"):
        assert not use_packing(make_model(), None, reference)
        assert not use_packing(make_model(dropout=True), torch.bfloat16, reference)
        assert not use_packing(make_model(), torch.float16, short_sighted)
    assert "set train.bf16 or train.fp16 to true" in caplog.text
    assert "set model.config_kwargs.attention_probs_dropout_prob to 0.0" in caplog.text
    assert "its attention in float16 is " in caplog.text
    rows = torch.randn(1, 2, 5, 8)
    with pytest.raises(ValueError, match=r"no dropout of attention weights, got 0.1"):
        Borders([5], torch.tensor([0, 5]), reference).attend(rows, rows, rows, View(), 1.0, 0.1)
    assert Tried(reference, torch.bfloat16)(*[torch.randn(5, 2, 8)] * 3, torch.tensor([0, 5]), 5, View(), 1.0).shape


def test_the_remedy_for_dropout_lets_a_kernel_pack(tmp_path: Path) -> None:
    """A checkpoint with dropout, loaded as a run loads it that does what the warning says."""
    folder = build_encoder(tmp_path / "encoder")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert settings["attention_probs_dropout_prob"] > 0
    assert not use_packing(load_encoder(str(folder), instructions="none"), torch.bfloat16, reference)
    remedy = {"attention_probs_dropout_prob": 0.0}
    encoder = load_encoder(str(folder), instructions="none", config_kwargs=remedy)
    assert use_packing(encoder, torch.bfloat16, reference)


def test_the_kernel_of_torch_takes_windows_and_a_scale() -> None:
    assert {"scale", "window_size"} <= _KNOWN
