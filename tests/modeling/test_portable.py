"""Portable checkpoints: what is written, what is put back, and what a check finds wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import (
    Pooling,
    Transformer,
    WeightedLayerPooling,
)
from transformers import CanineTokenizer

from piccolo_st.losses import scale_dimension
from piccolo_st.modeling import (
    CONSUMERS,
    ONNX_READERS,
    InstructionPooling,
    check_portable,
    keep_lengths,
    load_portable,
    save_portable,
    set_instruction_pooling,
    set_prompts,
)
from piccolo_st.modeling.lengths import set_lengths
from piccolo_st.modeling.portable import saving
from tests.modeling.portability.checkpoints import ROTARY, build_rotary, chinese_bert

ModelMaker = Callable[..., SentenceTransformer]
TEXTS = ["今天天气好", "数据" * 40, ""]
ST_OLD = {"sentence-transformers 3.x", "sentence-transformers 4.x", "sentence-transformers 5.x", "infinity"}
ST_6 = {"sentence-transformers 6.x", "OpenVINO", "LangChain", "LlamaIndex", "Haystack", "Chroma"}
ST = {*ST_OLD, *ST_6}
TEI, LLAMA, ONNX = (
    {"text-embeddings-inference", "text-embeddings-inference on a CPU"},
    {"llama.cpp and Ollama"},
    {*ONNX_READERS},
)
SERVERS = {*TEI, "vLLM", *LLAMA}
ALL = {*ST, *SERVERS, "transformers", *ONNX}
ONE_LENGTH = {*TEI, *LLAMA, *ONNX, "LlamaIndex"}  # of queries and passages alike


def piccolo(make_model: ModelMaker, include_instruction: bool = True, **kwargs: Any) -> SentenceTransformer:
    model = make_model(**kwargs)
    set_prompts(model)
    set_lengths(model, 16, 256)
    set_instruction_pooling(model, "piccolo", include_instruction)
    model.encode(TEXTS)  # leaves truncation and padding in the tokenizer
    return model


@pytest.fixture
def checkpoint(make_model: ModelMaker, tmp_path: Path) -> Path:
    save_portable(piccolo(make_model), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def failing(path: Path) -> dict[str, tuple[str, ...]]:
    """Consumers with problems or limits, leaving out the ONNX file, which most checkpoints here do not have."""
    reports = {report.consumer: report.problems + report.limits for report in check_portable(path)}
    assert set(reports) == ALL == set(CONSUMERS)
    for reader in ONNX_READERS:
        reports[reader] = tuple(problem for problem in reports[reader] if "onnx/model.onnx is missing" not in problem)
    return {consumer: problems for consumer, problems in reports.items() if problems}


def test_what_is_written(checkpoint: Path) -> None:
    assert [(entry["path"], entry["type"]) for entry in read(checkpoint / "modules.json")] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
    ]
    assert read(checkpoint / "sentence_bert_config.json") == {"max_seq_length": 512, "do_lower_case": False}
    pooling = read(checkpoint / "1_Pooling" / "config.json")
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens", "include_prompt"]
    assert (pooling["word_embedding_dimension"], pooling["pooling_mode"]) == (32, "mean")
    prompts = read(checkpoint / "config_sentence_transformers.json")
    assert prompts["prompts"] == {"query": "查询：", "document": "结果："} and prompts["default_prompt_name"] is None
    tokenizer = read(checkpoint / "tokenizer.json")
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None
    assert read(checkpoint / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert failing(checkpoint) == {}
    modes = {file.stat().st_mode & 0o777 for file in checkpoint.glob("*.*")}
    assert len(modes) == 1  # weights can be read by whoever can read the configs
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["checkpoint"]  # nothing left beside it


def test_loads_with_stock_classes_and_the_same_embeddings(make_model: ModelMaker, checkpoint: Path) -> None:
    model, stock = piccolo(make_model), SentenceTransformer(str(checkpoint), device="cpu")
    assert [type(module).__name__ for module in stock] == ["Transformer", "Pooling"]
    assert (stock.encode(TEXTS) == model.encode(TEXTS)).all()
    assert (stock.encode_document(TEXTS) == model.encode_document(TEXTS)).all()
    short = TEXTS[:1]
    assert (stock.encode_query(short) == model.encode_query(short)).all()


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.filterwarnings("ignore:this model excludes instructions")
def test_load_portable_puts_back_lengths_and_instruction_pooling(
    make_model: ModelMaker, tmp_path: Path, include: bool
) -> None:
    model = piccolo(make_model, include)
    save_portable(model, tmp_path / "a")
    loaded = load_portable(tmp_path / "a", device="cpu")
    assert isinstance(loaded[1], InstructionPooling)
    assert loaded[1].get_config_dict() == {**model[1].get_config_dict(), "instruction_ids": loaded[1].instruction_ids}
    assert loaded[1].instruction_ids == model[1].instruction_ids
    assert (loaded[0].query_length, loaded[0].document_length) == (16, 256)
    by_hand = ["查询：今天", "没有"]
    for name in ("encode", "encode_query", "encode_document"):
        assert (getattr(loaded, name)(TEXTS + by_hand) == getattr(model, name)(TEXTS + by_hand)).all()
    save_portable(loaded, tmp_path / "b")  # and again: nothing is lost on the way
    assert (
        read(tmp_path / "b" / "config_sentence_transformers.json")["piccolo_st"]
        == read(tmp_path / "a" / "config_sentence_transformers.json")["piccolo_st"]
    )


@pytest.mark.filterwarnings("ignore:this model excludes instructions")
def test_a_prompt_of_ones_own_is_excluded_before_and_after(make_model: ModelMaker, tmp_path: Path) -> None:
    model = piccolo(make_model, include_instruction=False)
    save_portable(model, tmp_path)
    found = model.encode(TEXTS[:2], prompt="数据：")
    for loaded in (SentenceTransformer(str(tmp_path), device="cpu"), load_portable(tmp_path, device="cpu")):
        assert (loaded.encode(TEXTS[:2], prompt="数据：") == found).all()
    model.set_pooling_include_prompt(True)
    assert (model.encode(TEXTS[:2], prompt="数据：") != found).any()


def test_lengths_are_kept_for_sentence_transformers_6_or_for_all(make_model: ModelMaker, checkpoint: Path) -> None:
    model = piccolo(make_model)
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    keep_lengths(checkpoint, native=True)
    stock = SentenceTransformer(str(checkpoint), device="cpu")
    assert (stock[0].query_length, stock[0].document_length, stock.max_seq_length) == (16, 256, 512)
    for name in ("encode", "encode_query", "encode_document"):
        assert (getattr(stock, name)(TEXTS) == getattr(model, name)(TEXTS)).all()
    assert set(failing(checkpoint)) == {*ST_OLD, *ONE_LENGTH}
    assert not any(report.problems for report in check_portable(checkpoint)[:4])
    assert load_portable(checkpoint, device="cpu")[0].query_length == 16
    keep_lengths(checkpoint, native=False)
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before
    save_portable(make_model(), checkpoint)
    with pytest.raises(ValueError, match="has no lengths of queries and documents to keep; set them with set_lengths"):
        keep_lengths(checkpoint, native=True)


def test_load_portable_loads_other_checkpoints_as_they_are(make_model: ModelMaker, tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(str(tmp_path))
    loaded = load_portable(tmp_path, device="cpu")
    assert type(loaded[1]) is Pooling and loaded[0].query_length is None
    assert (loaded.encode(TEXTS) == model.encode(TEXTS)).all()


def test_excluding_instructions_warns_of_the_difference_and_has_no_other(
    make_model: ModelMaker, tmp_path: Path
) -> None:
    model = piccolo(make_model, include_instruction=False)
    with pytest.warns(
        UserWarning, match=r"pools a prefix typed by hand, and text-embeddings-inference, vLLM"
    ) as caught:
        save_portable(model, tmp_path / "a")
    assert Path(caught[0].filename) == Path(__file__)  # points at the caller
    stock = SentenceTransformer(str(tmp_path / "a"), device="cpu")
    assert (stock.encode(TEXTS, prompt_name="query") == model.encode(TEXTS, prompt_name="query")).all()
    assert (stock.encode(TEXTS) == model.encode(TEXTS)).all()
    assert (stock.encode("查询：今天") != model.encode("查询：今天")).any()  # the named difference
    assert set(failing(tmp_path / "a")) == TYPED


def test_saving_leaves_the_model_as_it_was(make_model: ModelMaker, tmp_path: Path) -> None:
    model = piccolo(make_model)
    before, modules = model.encode(TEXTS), list(model)
    save_portable(model, tmp_path / "a", torch.float16)
    assert list(model) == modules and model.dtype == torch.float32 and model[0].query_length == 16
    assert (model.encode(TEXTS) == before).all()
    assert model.tokenizer.backend_tokenizer.truncation is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype(make_model: ModelMaker, tmp_path: Path, dtype: torch.dtype) -> None:
    model = piccolo(make_model).double()
    save_portable(model, tmp_path / "a", dtype)
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    config, name = read(tmp_path / "a" / "config.json"), str(dtype).removeprefix("torch.")
    assert (config["dtype"], config["torch_dtype"]) == (name, name)
    loaded = load_portable(tmp_path / "a", device="cpu")
    assert loaded.dtype == dtype
    for key, tensor in model[0].auto_model.state_dict().items():
        assert torch.equal(loaded[0].auto_model.state_dict()[key], tensor.to(dtype))
    assert failing(tmp_path / "a") == {}
    save_portable(model, tmp_path / "b")
    assert "weights are F64, not float16, bfloat16 or float32: save" in failing(tmp_path / "b")["vLLM"][0]


def test_rotary_positions_are_named_as_older_versions_read_them(tmp_path: Path) -> None:
    build_rotary(tmp_path)
    for name, positions in ROTARY.items():
        loaded = SentenceTransformer(str(tmp_path / name), device="cpu")
        assert loaded[0].auto_model.config.rope_parameters == positions, "as it was, also where both are read"
        assert failing(tmp_path / name) == {}
    scaled = {key: value for key, value in ROTARY["llama"].items() if key != "rope_theta"}
    older = {"qwen3": {"rope_theta": 1e6}, "llama": {"rope_theta": 5e5, "rope_scaling": scaled}}
    older["modernbert"] = {"global_rope_theta": 100.0, "local_rope_theta": 1.6e5}
    older["gemma3_text"] = {"rope_theta": 100.0, "rope_local_base_freq": 2e4}
    for name, expected in older.items():
        assert expected.items() <= read(tmp_path / name / "config.json").items()


def test_a_weight_that_overflows_is_named_and_nothing_is_written(make_model: ModelMaker, tmp_path: Path) -> None:
    model = piccolo(make_model)
    with torch.no_grad():
        model[0].auto_model.embeddings.word_embeddings.weight[7, 3] = 1e5
    message = r"weight 'embeddings.word_embeddings.weight' has values that torch.float16 cannot hold"
    with pytest.raises(ValueError, match=message):
        save_portable(model, tmp_path / "a", torch.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop_at", ["model.safetensors", "modules.json", "config.json"])
def test_an_interrupted_save_never_leaves_a_mix_that_loads(
    make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    target = tmp_path / "a"
    old = piccolo(make_model)
    save_portable(old, target)
    new = piccolo(make_model, pooling="cls")
    with torch.no_grad():
        new[0].auto_model.embeddings.word_embeddings.weight += 1
    replace = Path.replace

    def interrupted(self: Path, other: Path) -> Path:
        if self.name == stop_at:
            raise KeyboardInterrupt
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_portable(new, target)
    assert "config.json is missing" in failing(target)["sentence-transformers 6.x"]
    with pytest.raises((OSError, ValueError)):
        SentenceTransformer(str(target), device="cpu")
    monkeypatch.undo()
    save_portable(new, target)
    assert (load_portable(target, device="cpu").encode(TEXTS) == new.encode(TEXTS)).all()


def test_failing_while_writing_leaves_the_old_model(
    make_model: ModelMaker, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "_write_modules", full)
    with pytest.raises(OSError, match="no space left"):
        save_portable(piccolo(make_model, pooling="cls"), checkpoint)
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before


def test_replaces_an_older_model_and_keeps_what_is_not_of_it(make_model: ModelMaker, checkpoint: Path) -> None:
    for name in (
        "onnx/model.onnx",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "2_Dense/model.safetensors",
    ):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("of the old weights")
    for name in ("optimizer.pt", "trainer_state.json", "my_notes.txt"):
        (checkpoint / name).write_text("mine")
    (checkpoint / "README.md").write_text("a card written by hand")
    save_portable(piccolo(make_model), checkpoint, create_model_card=False)
    assert sorted(path.name for path in checkpoint.iterdir() if path.name[0] in "12mnop") == [
        "1_Pooling",
        "model.safetensors",
        "modules.json",
        "my_notes.txt",
        "optimizer.pt",
    ]
    assert (checkpoint / "README.md").read_text() == "a card written by hand"
    save_portable(piccolo(make_model), checkpoint)
    assert "SentenceTransformer" in (checkpoint / "README.md").read_text()


def test_special_tokens_of_the_model_stay_special(tmp_path: Path) -> None:
    transformer = Transformer(str(chinese_bert(tmp_path / "encoder")))
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    save_portable(model, tmp_path / "a")
    config = read(tmp_path / "a" / "tokenizer_config.json")
    assert config["additional_special_tokens"] == ["[Q]"] and "extra_special_tokens" not in config
    assert failing(tmp_path / "a") == {}
    loaded = load_portable(tmp_path / "a", device="cpu")
    assert "[Q]" in loaded.tokenizer.all_special_tokens and len(loaded.tokenizer("[Q]天")["input_ids"]) == 4
    assert (loaded.encode("[Q]天") == model.encode("[Q]天")).all()


def test_dense_and_normalize_modules(make_model: ModelMaker, tmp_path: Path) -> None:
    model = piccolo(make_model)
    model.append(Dense(32, 8, activation_function=torch.nn.Identity()))
    model.append(Normalize())
    save_portable(model, tmp_path / "a", torch.float16)
    assert read(tmp_path / "a" / "2_Dense" / "config.json").keys() == {
        "in_features",
        "out_features",
        "bias",
        "activation_function",
    }
    assert load_file(tmp_path / "a" / "2_Dense" / "model.safetensors")["linear.weight"].dtype == torch.float16
    loaded = load_portable(tmp_path / "a", device="cpu", model_kwargs={"dtype": torch.float32}).float()
    assert abs(loaded.encode(TEXTS) - model.encode(TEXTS)).max() < 2e-3
    assert set(failing(tmp_path / "a")) == {"transformers", *LLAMA}
    assert not any(report.problems for report in check_portable(tmp_path / "a") if report.consumer == "transformers")


def _multimodal(model: SentenceTransformer) -> None:
    model[0].modality_config = {**model[0].modality_config, "message": {}}


def _router(model: SentenceTransformer) -> None:
    model[0] = Router.for_query_document([model[0]], [model[0]])


def _residual(model: SentenceTransformer) -> None:
    model.append(Dense(32, 32, use_residual=True))


def _layers(model: SentenceTransformer) -> None:
    model.insert(1, WeightedLayerPooling(32, 2))


def _modes(model: SentenceTransformer) -> None:
    model[1].pooling_mode = ("mean", "cls")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_router, r"got \['Router'.*\]; save such a model with model.save_pretrained"),
        (_layers, r"got \[.*'WeightedLayerPooling'"),
        (lambda model: model.pop(0), r"must be a Transformer, .*, got \['InstructionPooling'"),
        (_multimodal, r"needs a Transformer with modality_config=.*, got .*message"),
        (_residual, r"needs modules that replace the sentence_embedding, got Dense"),
        (_modes, r"in the order \['cls', 'max', 'mean', .* got \['mean', 'cls'\]"),
    ],
)
def test_what_older_versions_cannot_express_is_refused(
    make_model: ModelMaker, tmp_path: Path, change: Callable[[SentenceTransformer], Any], message: str
) -> None:
    model = piccolo(make_model)
    change(model)
    with pytest.raises(ValueError, match=message):
        save_portable(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_tokenizer_without_a_file_that_all_read_is_refused(make_model: ModelMaker, tmp_path: Path) -> None:
    model = make_model()
    model[0].processor = CanineTokenizer()
    with pytest.raises(ValueError, match=r"CanineTokenizer has no tokenizer.json, which text-embeddings-inference"):
        save_portable(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# One thing broken at a time: (file, change) -> who stumbles, and over what.
def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = {key: value for key, value in {**read(path / name), **changes}.items() if value != "DELETE"}
        (path / name).write_text(json.dumps(content), encoding="utf-8")

    return change


def _rename(part: str, other: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        modules = path / "modules.json"
        modules.write_text(modules.read_text().replace(part, other))

    return change


def _first(path: Path) -> None:
    file = path / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"include_prompt": True, **read(file)}))


def _mixed_weights(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights["embeddings.LayerNorm.bias"] = weights["embeddings.LayerNorm.bias"].half()
    save_file(weights, path / "model.safetensors")


def _truncate(path: Path) -> None:
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-10])


POOLING = "1_Pooling/config.json"
READS_LENGTHS = ALL - ST_6
READS_WEIGHTS = ALL - ONNX
CUTS = {"transformers", *ONNX}
TRANSFORMERS_4 = {*ST_OLD, "transformers", "vLLM", "OpenVINO"}
TYPED = {*SERVERS, "transformers", *ONNX, "infinity"}  # instructions are typed before the text
BREAKAGES: list[tuple[str, Callable[[Path], Any], set[str], str]] = [
    ("no config", lambda path: (path / "config.json").unlink(), ALL, "config.json is missing"),
    ("broken json", lambda path: (path / "tokenizer.json").write_text("{"), ALL, "tokenizer.json is empty or not JSON"),
    ("no weights", lambda path: (path / "model.safetensors").unlink(), READS_WEIGHTS, "model.safetensors is missing"),
    ("cut weights", _truncate, READS_WEIGHTS, "model.safetensors is broken"),
    ("mixed weights", _mixed_weights, READS_WEIGHTS, "weights are of several types, F16, F32"),
    ("other dtype", edit("config.json", torch_dtype="float16"), READS_WEIGHTS, "torch_dtype='float16', the weights"),
    ("truncation", edit("tokenizer.json", truncation={"max_length": 9}), ALL, "truncation baked in.*'max_length': 9"),
    (
        "a call's length",
        edit("tokenizer_config.json", max_length=128),
        {"fastembed"},
        "max_length=128, where this consumer cuts; the model's length is 512",
    ),
    ("no tokenizer length", edit("tokenizer_config.json", model_max_length="DELETE"), CUTS, "length=None, where"),
    ("padding", edit("tokenizer.json", padding={"strategy": "BatchLongest"}), ALL, "padding baked in"),
    (
        "tokenizer class",
        edit("tokenizer_config.json", tokenizer_class="TokenizersBackend"),
        TRANSFORMERS_4,
        "names TokenizersBackend, a class that only transformers 5 has",
    ),
    (
        "extra tokens",
        edit("tokenizer_config.json", extra_special_tokens=["[Q]"]),
        TRANSFORMERS_4,
        "extra_special_tokens as a list",
    ),
    (
        "own module",
        _rename("sentence_transformers.models.Pooling", "piccolo_st.modeling.pooling.InstructionPooling"),
        {*ST, "vLLM", *LLAMA},
        "piccolo_st.modeling.pooling.InstructionPooling",
    ),
    (
        "new module name",
        _rename("sentence_transformers.models.", "sentence_transformers.base.modules."),
        {*ST_OLD, "vLLM", *LLAMA},
        "only sentence_transformers.models",
    ),
    ("module folder", _rename("1_Pooling", "9_Pooling"), ALL, "9_Pooling|no true or false"),
    (
        "st 6 key",
        edit("sentence_bert_config.json", query_length=64),
        {*ST_OLD, *ONE_LENGTH},
        r"has \['query_length'\], at which ver|longer texts than {'query_length': 64}",
    ),
    ("no length", edit("sentence_bert_config.json", max_seq_length="DELETE"), READS_LENGTHS, "max_seq_length=None"),
    (
        "too long",
        edit("sentence_bert_config.json", max_seq_length=513),
        READS_LENGTHS,
        "513 is more than the 512 tokens",
    ),
    ("no lower case", edit("sentence_bert_config.json", do_lower_case="DELETE"), {"vLLM"}, "has no do_lower_case"),
    ("new pooling key", edit(POOLING, embedding_dimension=32), ST_OLD, r"has \['embedding_dimension'\], at which"),
    ("no flag", edit(POOLING, pooling_mode_mean_tokens="DELETE"), READS_LENGTHS, "no true or false for"),
    ("two answers", edit(POOLING, pooling_mode="cls"), READS_LENGTHS, r"pooling_mode='cls', its flags say \['mean'\]"),
    ("dimension", edit(POOLING, word_embedding_dimension=64), READS_LENGTHS, r"dimension \{64\}, the encoder 32"),
    (
        "max pooling",
        edit(POOLING, pooling_mode="max", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True),
        {*SERVERS, "transformers", *ONNX},
        r"pools cls, mean or lasttoken, this model \['max'\]",
    ),
    ("excluded", edit(POOLING, include_prompt=False), TYPED, "which this consumer cannot"),
    ("key order", _first, {"vLLM"}, "first true key of the pooling config.*'include_prompt'"),
    (
        "null prompt",
        edit("config_sentence_transformers.json", prompts={"query": None}),
        {*ST, *TEI},
        r"the prompts \['query'\] are no strings",
    ),
    (
        "default prompt",
        edit("config_sentence_transformers.json", default_prompt_name="query"),
        {*ST, *TEI},
        "the default prompt 'query' goes before the texts of every task",
    ),
    (
        "classifier",
        edit("config.json", architectures=["BertForSequenceClassification"]),
        TEI,
        "is no embedding model",
    ),
    (
        "rotary positions",
        edit("config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        {*TRANSFORMERS_4, *TEI},
        r"has \{'rope_theta': 1000000.0\} in rope_parameters alone, which only transformers 5 reads",
    ),
    ("no padding id", edit("config.json", pad_token_id=None), TEI, "pad_token_id=None"),
    ("roberta", edit("config.json", model_type="roberta"), READS_LENGTHS, "512 is more than the 511 tokens"),
]


@pytest.mark.parametrize(("change", "consumers", "message"), [b[1:] for b in BREAKAGES], ids=[b[0] for b in BREAKAGES])
def test_a_check_says_who_stumbles_over_what(
    checkpoint: Path, change: Callable[[Path], Any], consumers: set[str], message: str
) -> None:
    import re

    change(checkpoint)
    found = failing(checkpoint)
    assert set(found) == consumers
    for consumer, problems in found.items():
        assert any(re.search(message, problem) for problem in problems), (consumer, problems)


def test_every_check_is_broken_once() -> None:
    """A check that no breakage above triggers would be one that cannot fail."""
    from piccolo_st.modeling.portable import readers

    tables = CONSUMERS, readers.LIMITS, readers.NOTES
    checks = {check.__name__ for table in tables for checks in table.values() for check in checks}
    written = {name for name, value in vars(readers).items() if getattr(value, "__annotations__", {}).get("checkpoint")}
    assert checks == written
    assert len(BREAKAGES) > len(checks)


def test_a_checkpoint_of_sentence_transformers_itself_is_not_portable(make_model: ModelMaker, tmp_path: Path) -> None:
    model = make_model()
    model.encode(TEXTS)
    model.save_pretrained(str(tmp_path))
    assert set(failing(tmp_path)) == ALL


DENSE_LOST = "onnx/model.onnx ends before the model's Dense module"


@pytest.mark.parametrize(
    ("activation", "file", "lost", "unknown"),
    [
        (torch.nn.Tanh(), None, set(), LLAMA),
        (torch.nn.GELU(), None, set(), {*LLAMA, *TEI}),
        (torch.nn.GELU(), b"last_hidden_state, sentence_embedding", set(), {*LLAMA, "text-embeddings-inference"}),
        (torch.nn.Identity(), b"last_hidden_state", {*ONNX, "text-embeddings-inference on a CPU"}, LLAMA),
    ],
)
def test_who_loses_a_dense(
    make_model: ModelMaker,
    tmp_path: Path,
    activation: torch.nn.Module,
    file: bytes | None,
    lost: set[str],
    unknown: set[str],
) -> None:
    """text-embeddings-inference on a CPU reads the ONNX file, if there is one, and then no Dense module."""
    model = piccolo(make_model)
    model.append(Dense(32, 8, activation_function=activation))
    save_portable(model, tmp_path)
    if file:
        (tmp_path / "onnx").mkdir()
        (tmp_path / "onnx" / "model.onnx").write_bytes(file)
    reports = {report.consumer: report for report in check_portable(tmp_path)}
    assert {name for name, report in reports.items() if any(DENSE_LOST in one for one in report.problems)} == lost
    assert {name for name, report in reports.items() if report.limits} == {"transformers", *unknown}
    assert all("sentence_embedding" in reports[name].notes[1] for name in ONNX)


def test_what_a_consumer_has_to_be_told_is_said(make_model: ModelMaker, checkpoint: Path, tmp_path: Path) -> None:
    told = {report.consumer for report in check_portable(checkpoint) if any("查询：" in note for note in report.notes)}
    assert told == {*TYPED, *ST_6} - {"sentence-transformers 6.x", "OpenVINO"}
    edit("sentence_bert_config.json", query_length=16, document_length=64)(checkpoint)
    cut = {report.consumer for report in check_portable(checkpoint) if any("at one length" in n for n in report.limits)}
    assert cut == ONE_LENGTH, "the snippets of others give both lengths"
    save_portable(make_model(), tmp_path / "none")
    noted = {report.consumer for report in check_portable(tmp_path / "none") if report.notes}
    assert noted == {"text-embeddings-inference", "vLLM", "infinity"}, "half precision alone"
    [vllm] = (report for report in check_portable(tmp_path / "none") if report.consumer == "vLLM")
    assert "use_activation" in vllm.notes[-1], "it normalises only for a module that does"
    normal = make_model()
    normal.append(Normalize())
    save_portable(normal, tmp_path / "normal")
    [vllm] = (report for report in check_portable(tmp_path / "normal") if report.consumer == "vLLM")
    assert not any("use_activation" in note for note in vllm.notes)


def test_what_an_earlier_call_left_in_the_tokenizer_is_not_saved(make_model: ModelMaker, tmp_path: Path) -> None:
    model = make_model()
    left = {"max_length": 128, "stride": 0, "truncation_strategy": "longest_first", "pad_to_multiple_of": None}
    model.tokenizer.init_kwargs.update(left)
    model.max_seq_length = 300
    model.save_pretrained(str(tmp_path / "stale"))
    assert read(tmp_path / "stale" / "tokenizer_config.json")["max_length"] == 128
    save_portable(SentenceTransformer(str(tmp_path / "stale"), device="cpu"), tmp_path / "saved")
    config = read(tmp_path / "saved" / "tokenizer_config.json")
    assert not set(left) & set(config) and config["model_max_length"] == 300
    assert failing(tmp_path / "saved") == {}


def test_onnx_is_reported_when_it_is_missing(checkpoint: Path) -> None:
    def onnx() -> tuple[str, ...]:
        first, second = (report.problems for report in check_portable(checkpoint) if report.consumer in ONNX_READERS)
        assert first == second
        return first

    assert onnx() == ("onnx/model.onnx is missing: python -m piccolo_st release --onnx writes it",)
    (checkpoint / "onnx").mkdir()
    shutil.copy(checkpoint / "config.json", checkpoint / "onnx" / "model.onnx")
    assert onnx() == ()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint to check: .*nowhere is not a folder"):
        check_portable(tmp_path / "nowhere")


def test_weights_that_share_a_buffer_are_saved_and_stay_there(make_model: ModelMaker, tmp_path: Path) -> None:
    """As under DeepSpeed, which keeps all weights in one buffer; safetensors refuses a part of one."""
    model = make_model()
    scale_dimension(model, 48)
    weight = model[2].linear.weight
    buffer = torch.zeros(weight.numel() + 100)
    buffer[50 : 50 + weight.numel()] = weight.data.flatten()
    weight.data = buffer[50 : 50 + weight.numel()].view_as(weight)
    save_portable(model, tmp_path / "saved")
    assert weight.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(again[2].linear.weight, weight)
