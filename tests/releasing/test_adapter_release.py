"""What a run with an adapter leaves is released as either: the whole model, or the adapter for its base."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from sentence_transformers import SentenceTransformer

from piccolo_st.__main__ import dispatch
from piccolo_st.errors import InputError
from piccolo_st.modeling import content_hash, load_portable, load_pretrained
from piccolo_st.modeling.adapters import LoraSettings
from piccolo_st.modeling.loading import load_encoder
from piccolo_st.modeling.portable.saving import save_native
from piccolo_st.releasing.card_sections import evaluated_model
from piccolo_st.releasing.checks import check_release
from piccolo_st.releasing.publish import ReleaseError, release
from tests.conftest import build_encoder
from tests.helpers.architectures import saved_encoder, small_encoder
from tests.helpers.hub_clients import REPO
from tests.helpers.hub_server import HubServer
from tests.helpers.resume_cases import make_datasets

pytest.importorskip("peft")
pytest_plugins = ["tests.helpers.hub_clients"]  # the fixture hub

BASE, COMMIT = "sensenova/tiny-base", "b" * 40
QUERIES, PASSAGES = ["什么时候下雪", "山" * 90], ["冬天冷的时候会下雪。", "川河" * 60]


@pytest.fixture
def base(hub: HubServer, tmp_path: Path) -> str:
    """The id of a base on the Hub."""
    folder = build_encoder(tmp_path / "base")
    files = {one.name: one.read_bytes() for one in folder.iterdir()}
    hub.add_repo(BASE, files, sha=COMMIT)
    return BASE


def train(base: str, folder: Path, model: dict[str, Any] | None = None, **lora: Any) -> Path:
    """A run of four steps; its output directory."""
    rows = make_datasets(40)["pairs"].to_list()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    own = {"source": str(folder / "rows.jsonl"), "task": "retrieval", "holdout": {"queries": 5, "min_corpus": 5}}
    content = {
        "model": {"name_or_path": base, "query_length": 16, "document_length": 24, **(model or {})},
        "data": {"mixture": {"datasets": {"faq": own}}, "batch_size": 8},
        "lora": {"rank": 4, **lora},
        "train": {"output_dir": str(folder / "run"), "max_steps": 4, "learning_rate": 1e-2, "eval_strategy": "steps",
                  "eval_steps": 4, "disable_tqdm": True},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    dispatch(["finetune", str(folder / "run.yaml")])
    return folder / "run"


def vectors(model: Any) -> np.ndarray:
    return np.concatenate(
        [
            model.encode_query(QUERIES, normalize_embeddings=True),
            model.encode_document(PASSAGES, normalize_embeddings=True),
        ]
    )


def fill(folder: Path, *more: object) -> None:
    given = ["--fill-card", "--license", "mit", "--language", "zh", "--run-dir", folder.parent, *more]
    dispatch(["release", str(folder), REPO, *map(str, given)])


def test_a_decoder_whose_weights_are_bfloat16_is_released_with_its_adapter_merged(
    hub: HubServer, tmp_path: Path
) -> None:
    """As the recipe of Qwen3-Embedding leaves it."""
    settings = {"instructions": "e5", "pooling": "lasttoken", "dtype": "bfloat16", "document_length": 40}
    base = saved_encoder(tmp_path / "base", model=small_encoder("qwen3", pad_token_id=None))
    model = train(base, tmp_path, settings) / "model"
    with safe_open(model / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    fill(model)
    assert not check_release(model, REPO).problems


def test_an_adapter_is_pushed_pulled_and_gives_the_vectors_of_its_run(
    hub: HubServer, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(base, tmp_path)
    trained = vectors(load_portable(run / "model", device="cpu"))
    capsys.readouterr()
    fill(run / "adapter", "--adapter", "--push", "--tag", "v1.0")
    said = capsys.readouterr().out
    assert f"ok   loads (an adapter alone, for {BASE} at {COMMIT[:8]}; sentence-transformers 6 and PEFT" in said
    repo = hub.repos["model", REPO]
    files = {name: repo.read(blob) for name, blob in repo.resolve("main").files.items()}
    assert {"adapter_config.json", "adapter_model.safetensors", "1_Pooling/config.json", "tokenizer.json"} <= set(files)
    assert "model.safetensors" not in files and json.loads(files["adapter_config.json"])["revision"] == COMMIT

    text = files["README.md"].decode()
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "peft" and data["base_model"] == BASE and data["base_model_relation"] == "adapter"
    assert {"lora", f"base_model:adapter:{BASE}", "sentence-transformers"} <= set(data["tags"])
    assert "LoRA of rank 4, alpha 8, on all-linear, alone, without its base" in text and f"(`{COMMIT}`)" in text
    assert "model-index" in data and "vLLM: it loads whole models, and this is an adapter" in text
    pulled = load_pretrained(SentenceTransformer, REPO, "the model", revision="v1.0", device="cpu")
    assert evaluated_model(text) == content_hash(pulled)

    assert np.abs(vectors(SentenceTransformer(REPO, device="cpu")) - trained).max() < 1e-5
    snippet = re.search(r"<summary>PEFT</summary>\n\n```python\n(.*?)```", text, re.S)
    assert snippet and f'from_pretrained("{BASE}", revision="{COMMIT}")' in snippet[1]
    names: dict[str, Any] = {}
    exec(snippet[1], names)
    own = load_portable(run / "adapter", device="cpu")
    expected = [own.encode_query([QUERIES[0]], normalize_embeddings=True),
                own.encode_document([PASSAGES[0]], normalize_embeddings=True)]  # fmt: skip
    assert np.abs(names["query_embeddings"].numpy() - expected[0]).max() < 1e-5
    assert np.abs(names["passage_embeddings"].numpy() - expected[1]).max() < 1e-5

    release(run / "adapter", REPO, push=True, revision="next", adapter=True, say=print)
    hub.repos["model", REPO].put({"adapter_model.safetensors": b"another"}, "by hand")
    said = capsys.readouterr().out
    exec(said[said.rindex("from sentence_transformers") :], names)  # what the release says loads its branch
    assert np.abs(vectors(names["model"]) - trained).max() < 1e-5

    fill(run / "model")
    assert "ok   loads (the whole model, with the adapter of its run merged)" in capsys.readouterr().out
    text = (run / "model" / "README.md").read_text("utf-8")
    assert "on all-linear, merged into these weights" in text and "library_name: sentence-transformers" in text


def save_adapter(base: str, folder: Path, **settings: Any) -> Path:
    import torch

    model = load_encoder(base, lora=LoraSettings(rank=4, **settings))
    for name, weight in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            torch.nn.init.normal_(weight, std=0.3)
    save_native(model, folder, create_model_card=False)
    return folder


def problems(folder: Path, name: str) -> str:
    return " | ".join(
        next(one for one in check_release(folder, REPO, adapter=True).checks if one.name == name).problems
    )


def test_what_an_adapter_is_refused_for(hub: HubServer, base: str, tmp_path: Path) -> None:
    own = save_adapter(str(tmp_path / "base"), tmp_path / "own")
    assert "must be the id of a model on the Hub, got '" in problems(own, "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    assert not problems(adapter, "base") and not problems(adapter, "embeddings")
    found = problems(adapter, "card")
    assert "must have base_model_relation: adapter, got None; write it with --fill-card" in found
    with pytest.raises(InputError, match=r"README.md must say something, got PEFT's empty form; give the run"):
        dispatch(["release", str(adapter), REPO, "--adapter", "--fill-card"])
    with pytest.raises(ReleaseError, match=r"an adapter alone in .*; give the whole model .*, or .* with --adapter"):
        release(adapter, REPO)
    with pytest.raises(InputError, match=r"without what needs a whole model, got --onnx and --lengths; leave"):
        dispatch(["release", str(adapter), REPO, "--adapter", "--onnx", "--lengths", "native"])

    assert "PEFT, by " in problems(save_adapter(base, tmp_path / "dora", use_dora=True), "embeddings")
    files = {one.name: one.read_bytes() for one in build_encoder(tmp_path / "other", seed=1).iterdir()}
    hub.repos["model", BASE].put(files, "another model")
    assert "was trained on other weights than those of its base" in problems(adapter, "embeddings")


def test_a_whole_model_is_no_adapter(encoder_dir: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    code, _, error = command("release", encoder_dir, REPO, "--adapter")
    assert code == 2 and "--adapter must be given with an adapter of PEFT, got" in error
