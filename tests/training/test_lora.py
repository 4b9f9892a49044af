"""Adapters: trained, killed and resumed, merged, and a model like any other wherever a model is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from piccolo_st.__main__ import dispatch
from piccolo_st.config import parse_run
from piccolo_st.errors import InputError
from piccolo_st.evaluation.loading import load_model
from piccolo_st.modeling import LoraSettings, load_trained, wrapped
from piccolo_st.modeling.loading import load_encoder
from piccolo_st.modeling.portable.saving import load_portable, save_native, save_portable
from piccolo_st.releasing import RunRecord
from piccolo_st.training import FinetuneConfig, TrainingRun
from tests.conftest import build_encoder
from tests.helpers.architectures import saved_encoder, small_encoder
from tests.helpers.evaluation_data import write_jsonl, write_search
from tests.helpers.resume_cases import make_datasets, weights_hash

pytest.importorskip("peft")

TEXTS = ["查询：山水", "山川河海风雨云", "春夏秋冬"]
Start = Callable[..., TrainingRun]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return build_encoder(tmp_path / "base")


@pytest.fixture
def start(base: Path, tmp_path: Path) -> Start:
    """A run of four steps from dotted settings laid over a small configuration; built, not trained."""
    rows = make_datasets(40)["pairs"].to_list()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    own = {"source": str(tmp_path / "rows.jsonl"), "task": "retrieval", "holdout": {"queries": 5, "min_corpus": 5}}

    def make(name: str, **settings: Any) -> TrainingRun:
        content: dict[str, Any] = {
            "model": {"name_or_path": str(base), "query_length": 16, "document_length": 24},
            "data": {"mixture": {"datasets": {"faq": own}}, "batch_size": 8},
            "lora": {"rank": 4},
            "train": {"output_dir": str(tmp_path / name), "max_steps": 4, "save_steps": 2, "learning_rate": 1e-2,
                      "disable_tqdm": True},
        }  # fmt: skip
        for key, value in settings.items():
            section, _, field = key.partition("__")
            content[section] = {**content.get(section, {}), field: value}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
        return TrainingRun(parse_run([str(tmp_path / f"{name}.yaml")], FinetuneConfig, tmp_path / "run.yaml"))

    return make


def apart(one: SentenceTransformer, other: SentenceTransformer) -> float:
    return max(float(np.abs(one.encode_query(TEXTS) - other.encode_query(TEXTS)).max()),
               float(np.abs(one.encode(TEXTS) - other.encode(TEXTS)).max()))  # fmt: skip


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a layer behind it, the best one": {
        "model__dimension": 16, "train__load_best_model_at_end": True, "train__eval_strategy": "steps",
        "train__eval_steps": 2, "train__metric_for_best_model": "eval_faq_ndcg@10",
    },
    "cached and checkpointed": {"loss__mini_batch_size": 4, "train__activation_checkpointing": True},
    "dora with dropout": {"lora__use_dora": True, "lora__dropout": 0.1, "lora__targets": ["query", "value"],
                          "lora__config": {"use_rslora": True}},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_an_adapter_is_trained_resumed_and_merged(
    name: str, start: Start, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start("whole", **RUNS[name])
    before = {key: value.clone() for key, value in whole.model[0].model.get_base_model().state_dict().items()}
    whole.train()
    after = whole.model[0].model.get_base_model().state_dict()
    moved = {
        key.split("lora_")[1].split(".")[0] for key in after if "lora_" in key and (after[key] != before[key]).any()
    }
    assert "B" in moved and ("magnitude_vector" in moved) == ("dora" in name)
    assert all(torch.equal(after[key], before[key]) for key in after if "lora_" not in key)
    assert not any("pooler" in key for key in after if "lora_" in key)

    monkeypatch.setenv("PICCOLO_ST_MAX_SECONDS", "1e-9")
    start("run", **RUNS[name]).train()
    monkeypatch.delenv("PICCOLO_ST_MAX_SECONDS")
    again = start("run", **RUNS[name])
    again.train()
    assert weights_hash(again.model) == weights_hash(whole.model) and again.trainer.state.global_step == 4

    config = json.loads((tmp_path / "run" / "checkpoint-4" / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == str(base) and config["r"] == 4 and config["lora_alpha"] == 8
    assert not (tmp_path / "run" / "checkpoint-4" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "model" / "adapter_config.json").exists()
    again.model.eval()
    for folder in ("model", "adapter"):
        assert apart(load_portable(tmp_path / "run" / folder, device="cpu"), again.model) < 1e-5


def test_a_base_of_4_bits_is_merged_without_rounding(tmp_path: Path) -> None:
    """Without an evaluation, in which bitsandbytes rounds the weights anew on a CPU."""
    dequantize = pytest.importorskip("bitsandbytes").functional.dequantize_4bit
    folder = saved_encoder(tmp_path / "base", model=small_encoder("qwen3", hidden_size=64, head_dim=16))
    settings = LoraSettings(rank=4, load_in_4bit=True)
    models = [load_encoder(folder, pooling="lasttoken", lora=settings, dtype="bfloat16") for _ in "ab"]
    for name, weight in models[0].named_parameters():
        if weight.requires_grad:
            assert "lora_" in name and weight.dtype == torch.float32
            torch.nn.init.normal_(weight, std=0.1)
    layer: Any = models[0].train()[0].model.get_base_model().layers[0].self_attn.q_proj
    assert layer.weight.dtype == torch.uint8
    rows = {"input_ids": torch.arange(18).reshape(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    with torch.autocast("cpu", torch.bfloat16):
        models[0](dict(rows))["sentence_embedding"].square().sum().backward()
    assert layer.lora_A["default"].weight.grad.abs().sum() > 0 and layer.lora_B["default"].weight.grad.abs().sum() > 0

    save_native(models[0], tmp_path / "checkpoint", create_model_card=False)
    assert load_trained(models[1], tmp_path / "checkpoint") and weights_hash(models[1]) == weights_hash(models[0])
    save_portable(models[0], tmp_path / "merged")
    left = SentenceTransformer(str(tmp_path / "merged"), device="cpu")
    base = dequantize(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    assert torch.equal(
        left[0].model.layers[0].self_attn.q_proj.weight, base + layer.get_delta_weight("default").to(base)
    )


def test_a_folder_with_an_adapter_is_a_model_like_any_other(start: Start, base: Path, tmp_path: Path) -> None:
    first = start("first", model__instructions="none")
    first.train()
    folder = tmp_path / "first" / "adapter"
    options: dict[str, Any] = {"instructions": "none", "query_length": 16, "document_length": 24}
    merged = load_encoder(str(folder), **options)
    assert not wrapped(merged) and apart(merged, first.model.eval()) < 1e-5
    assert all(weight.requires_grad for weight in merged.parameters())
    further = start("further", model__name_or_path=str(folder), model__instructions="none")
    assert wrapped(further.model) and apart(further.model, first.model) < 1e-5
    trained = [name for name, weight in further.model.named_parameters() if weight.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    further.train()
    assert apart(SentenceTransformer(str(tmp_path / "further" / "adapter"), device="cpu"), further.model.eval()) < 1e-5
    assert apart(further.model, first.model) > 1e-4
    assert apart(load_model(folder, device="cpu").model, first.model) < 1e-5

    with pytest.raises(InputError, match=r"is trained further as it is, with r 4, got 8; set that, or train another"):
        load_encoder(str(folder), lora=LoraSettings(rank=8), **options)
    build_encoder(base, seed=1)
    rule = "was trained on other weights than those of its base, .*base, as they are now; put that base back"
    with pytest.raises(InputError, match=rule):
        load_encoder(str(folder), **options)
    with pytest.raises(InputError, match=rule):
        load_model(folder, device="cpu")
    build_encoder(base, hidden_size=16)  # which transformers refuses
    with pytest.raises(InputError, match=r"model.name_or_path cannot be loaded, .*mismatched_sizes"):
        load_encoder(str(folder), **options)


def test_an_adapter_goes_on_with_the_instructions_it_was_saved_with(start: Start, tmp_path: Path) -> None:
    own = {"query": "山：", "document": "水："}
    first = start("first", model__instructions=own)
    first.train()
    folder = tmp_path / "first" / "adapter"
    assert apart(load_encoder(str(folder), query_length=16, document_length=24), first.model.eval()) < 1e-5
    further = start("further", model__name_or_path=str(folder))
    further.train()
    assert further.trainer.args.prompts == {"faq": {"query": "山：", "positive": "水："}}
    for name in ("adapter", "model"):
        assert SentenceTransformer(str(tmp_path / "further" / name), device="cpu").prompts == own
    assert RunRecord.read(tmp_path / "further").configuration["model"]["instructions"] == own

    told = start("told", model__name_or_path=str(folder), model__instructions={"query": "花："})
    assert told.model.prompts == {"query": "花：", "document": ""}
    assert start("whole", model__name_or_path=str(tmp_path / "first" / "model")).model.prompts == own
    saved = folder / "config_sentence_transformers.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text("utf-8")), "prompts": {}}), "utf-8")
    without = start("without", model__name_or_path=str(folder))
    piccolo = {"query": "查询：", "document": "结果："}
    assert without.model.prompts == piccolo and without.config.resolved["model"]["instructions"] == "piccolo"


def test_an_adapter_of_a_decoder_that_sees_both_ways_still_does(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "base")
    model = load_encoder(folder, pooling="lasttoken", bidirectional=True, lora=LoraSettings(rank=4))
    save_native(model, tmp_path / "adapter", create_model_card=False)
    for lora in (None, LoraSettings(rank=4)):
        again = load_encoder(str(tmp_path / "adapter"), lora=lora)
        assert apart(again.to("cpu"), model.to("cpu")) < 1e-5
        assert again[0].model.config.is_causal is False


def test_the_commands_take_an_adapter_for_the_model_that_it_makes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mteb")
    model = load_encoder(str(base), lora=LoraSettings(rank=4)).to("cpu")
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    save_native(model, tmp_path / "adapter", create_model_card=False)
    save_portable(model, tmp_path / "merged", create_model_card=False)
    save_portable(load_encoder(str(base)), tmp_path / "untrained", create_model_card=False)
    write_jsonl(tmp_path / "rows.jsonl", make_datasets(40)["pairs"].to_list())
    dataset = {"source": "rows.jsonl", "task": "retrieval"}
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"datasets": {"faq": dataset}}), "utf-8")
    write_search(tmp_path / "search")
    task = {"name": "OwnSearch", "type": "Retrieval", "data": "search"}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": [task]}), "utf-8")
    texts = [f"{first}{second}天地" for first in "山川河海" for second in "风雨云春"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), "utf-8")
    shown: list[Any] = []
    monkeypatch.setattr("piccolo_st.demo.serve", lambda searcher, *_: shown.append(searcher))
    scores, mined, found = {}, {}, {}
    for name in ("adapter", "merged", "untrained"):
        folder, out = str(tmp_path / name), tmp_path / f"out of {name}"
        dispatch(["evaluate", folder, "--benchmark", str(tmp_path / "tasks.yaml"), "--output", str(out / "scores")])
        [result] = out.rglob("OwnSearch.json")
        scores[name] = json.loads(result.read_text("utf-8"))["scores"]["test"][0]["main_score"]
        mining = ["--mine.model", folder, "--mine.settings", "{num_negatives: 1, relative_margin: null}"]
        places = ["--data.output", str(out), "--data.cache", str(out / "cache")]
        dispatch(["prepare", "mine", str(tmp_path / "mixture.yaml"), *places, *mining])
        mined[name] = (out / "mine" / "faq" / "part-00000.parquet").read_bytes()
        dispatch(["demo", folder, "--corpus", str(tmp_path / "texts.txt")])
        found[name] = [hit.index for hit in shown[-1].search("山雨", 32, top=len(texts)).hits]
    for each in (scores, mined, found):
        assert each["adapter"] == each["merged"] != each["untrained"], each


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "targets": ({"lora__targets": ["q_proj"]},
                r"lora.targets must name layers of BertModel that can .*\(dense, key, query, value\), .* \['q_pr"),
    "field": ({"lora__config": {"use_rslra": True}}, r"LoraConfig refuses section lora: .*did you mean use_rslora"),
    "instruction": ({"model__instructions": {"task": "山" * 20, "template": "{task}"}},
                    r"query_length=16 is too short for the instruction '山+': .* takes 23 tokens; raise query_l"),
    "own": ({"lora__config": {"r": 3}}, r"lora.config must leave out .* a setting of its own, got r \(lora.rank\)"),
    "built": ({"model__name_or_path": None}, r"lora.rank must be empty for an encoder that is built"),
    "4 bits": ({"lora__load_in_4bit": True}, r"load_in_4bit needs a CUDA GPU, .* got cpu; set it to false"),
    "average": ({"train__average_with_start": 0.5}, r"average_with_start must be 0 with an adapter.*got 0.5"),
    "positions": ({"model__positions": 900}, r"model.positions must be empty with an adapter.*got 900"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, start: Start) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        start("refused", **settings)
