"""What a run leaves: its record, complete and without secrets; what it pushes; its model released by the recipe."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from piccolo_st.config import parse_run
from piccolo_st.environment import versions
from piccolo_st.redaction import redact
from piccolo_st.releasing.record import RunRecord
from piccolo_st.training.manifest import MANIFEST
from piccolo_st.training.training_arguments import FinetuneConfig, PretrainConfig
from tests.helpers.hub_clients import TOKEN
from tests.helpers.hub_server import HubServer, User

ROOT = Path(__file__).parent.parent.parent
REPO = "sensenova/run"
OTHER_TOKEN = "planted-secret-of-the-trainer"  # of no form that anything could know
PLANTED = "今天天气好的时候我要去山里"  # a training text
DIGITS = "一二三四五六七八九十"


@pytest.fixture
def folder(tmp_path: Path, encoder_dir: Path) -> Path:
    """A directory to start a run of seconds in: run.yaml, its data, and nothing else of this machine in sight."""
    numbers = [a + b for a in DIGITS for b in DIGITS]
    rows = [{"query": f"数{n}", "positive": PLANTED if n == "一一" else f"{n}的结果"} for n in numbers]
    rows += [{"query": "数", "positive": None}] * 3
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "faq.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "encoder").symlink_to(encoder_dir)
    faq = {"source": "data/faq.jsonl", "task": "retrieval", "holdout": {"queries": 10, "min_corpus": 20},
           "licence": "CC BY 4.0", "note": "数字"}  # fmt: skip
    content = {
        "model": {"name_or_path": "encoder", "query_length": 16, "document_length": 32},
        "data": {"mixture": {"datasets": {"faq": faq}}, "batch_size": 16, "mining_model": "lexical",
                 "mining": {"num_negatives": 1}},
        "train": {"output_dir": "run", "max_steps": 4, "save_steps": 2, "logging_steps": 1, "eval_on_start": True,
                  "eval_strategy": "steps", "eval_steps": 2},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return tmp_path


def recipe(hub: HubServer, folder: Path, name: str, *arguments: str, code: int = 0) -> str:
    """What a recipe says, started in ``folder`` as a person does who is logged in to the Hub."""
    environment = {**hub.environment(folder / "home", TOKEN), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    for secret in (TOKEN, OTHER_TOKEN):
        assert secret not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def server() -> Any:
    users = {TOKEN: User("alice", orgs=("sensenova",)), OTHER_TOKEN: User("alice", orgs=("sensenova",))}
    with HubServer(users) as hub:
        yield hub


def holders(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold a text: ``grep -r``."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in files if text.encode() in path.read_bytes()]


# ------------------------------------------------------------------------------------------------ secrets
def test_secrets_are_known_by_name_form_and_value() -> None:
    value = {
        "hub_token": "a-token", "model_kwargs": {"token": "b-token-b-token", "dtype": "float32"},
        "deepspeed": {"comet": {"api_key": "c"}}, "nested": [{"clientSecret": "d"}],
        "source": "https://me:word@example.org/x", "note": "uses b-token-b-token", "free": "hf_" + "A" * 34,
        "pad_token": "[PAD]", "mini_batch_num_tokens": 12, "query_tokens": "many", "use_auth_token": True, "key": "k",
    }  # fmt: skip
    clean, found = redact(value)
    assert found == ["hub_token", "model_kwargs.token", "deepspeed.comet.api_key", "nested.clientSecret", "source",
                     "note", "free"]  # fmt: skip
    assert clean["model_kwargs"] == {"token": None, "dtype": "float32"} and clean["nested"] == [{"clientSecret": None}]
    kept = ("pad_token", "mini_batch_num_tokens", "query_tokens", "use_auth_token", "key")
    assert {name: clean[name] for name in kept} == {name: value[name] for name in kept}


def test_the_secrets_of_the_environment_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert redact({"note": "logged with 0123456789abcdef"}, mark="left out") == ({"note": "left out"}, ["note"])


# ------------------------------------------------------------------------------------------------ every setting
def settings_of(section: Any) -> dict[str, Any]:
    replaced = getattr(type(section), "REPLACED", {})
    fields = [item.name for item in dataclasses.fields(section) if item.init and item.name not in replaced]
    values = {name: getattr(section, name) for name in fields}
    return {name: str(float(value) if type(value) is int else value) for name, value in values.items()}


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig], ids=["pretrain", "finetune"])
def test_the_configuration_holds_every_setting_and_starts_the_same_run(
    kind: type[FinetuneConfig], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("train: {use_cpu: true, learning_rate: 1e-4}")
    arguments = [str(tmp_path / "run.yaml"), "--train.hub_token", OTHER_TOKEN, "--train.seed", "7"]
    config = parse_run(arguments, kind, tmp_path)
    RunRecord(config.resolved).write(tmp_path)
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert OTHER_TOKEN not in text and "# Left out, being secret: train.hub_token;" in text
    written = yaml.safe_load(text)
    for name, cls in kind.sections().items():
        unset = {*getattr(cls, "REPLACED", {}), *getattr(cls, "UNREAD", {})}
        assert set(written[name]) == {item.name for item in dataclasses.fields(cls) if item.init} - unset
    again = parse_run([str(tmp_path / "config.yaml")], kind, tmp_path)
    for name in kind.sections():
        assert settings_of(getattr(again, name)) == {
            **settings_of(getattr(config, name)),
            **({"hub_token": "None"} if name == "train" else {}),
        }


def test_a_directory_without_a_record_is_named(tmp_path: Path) -> None:
    from piccolo_st.errors import InputError

    with pytest.raises(InputError, match=r"config\.yaml does not exist; name the output directory of a run that has"):
        RunRecord.read(tmp_path)
    (tmp_path / "config.yaml").write_text("train: {}")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(
        InputError, match=r"run\.json must be a mapping of keys to values, got \[\]; name the output directory"
    ):
        RunRecord.read(tmp_path)


# ------------------------------------------------------------------------------------------------ a run and its push
def test_a_run_pushes_its_model_and_neither_data_nor_secrets(server: HubServer, folder: Path) -> None:
    """With the trainer's state, the strategy that pushes most; test_push.py has the others."""
    recipe(
        server, folder, "finetune", "run.yaml", "--train.push_to_hub", "true", "--train.hub_model_id", REPO,
        "--train.hub_token", OTHER_TOKEN, "--train.hub_strategy", "checkpoint", "--train.hub_always_push", "true",
    )  # fmt: skip
    repo = server.repos["model", REPO]
    commit = repo.resolve("main")
    top = sorted(path for path in commit.files if "checkpoint" not in path)
    assert top == [
        ".gitattributes", "1_Pooling/config.json", "README.md", "config.json", "config_sentence_transformers.json",
        "curves.png", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    pushed = {path for one in repo.history("main") for path in one.files}
    for path in pushed:
        assert not any(word in path for word in ("built", ".arrow", ".lock", "training_args", "mixture", "config.yaml"))
    assert {path.split("/")[0] for path in pushed if "checkpoint" in path} == {"last-checkpoint"}
    contents = [*repo.contents.values(), *repo.uploads.values()]
    for secret in (TOKEN, OTHER_TOKEN, PLANTED):
        assert not holders(folder / "run", secret)
        assert not [content for content in contents if secret.encode() in content]
    for path in pushed:
        if path.endswith((".pt", ".pth")):
            (folder / "state").write_bytes(repo.read(commit.files[path]))
            with torch.serialization.safe_globals(_NUMPY):
                torch.load(folder / "state", weights_only=True)
    card = repo.read(commit.files["README.md"]).decode()
    assert "| faq | data/faq.jsonl | retrieval | 103 | 3 | 0 | 10 | 90 | CC BY 4.0 | 数字 |" in card
    assert "### Training Hyperparameters" in card and "widget:" not in card


def _numpy_classes() -> list[Any]:
    import numpy as np

    reconstruct = getattr(np, "_core", None) or np.core
    return [reconstruct.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]


_NUMPY = _numpy_classes()


@pytest.mark.slow
def test_a_push_that_the_hub_refuses_is_one_sentence_and_loses_nothing(server: HubServer, folder: Path) -> None:
    push = ["--train.push_to_hub", "true", "--train.hub_model_id", REPO, "--train.hub_strategy", "end"]
    server.fail("commit", status=403)
    said = recipe(server, folder, "finetune", "run.yaml", *push, code=2)
    assert "error: pushing to sensenova/run failed: the token may not write there" in said
    assert "run is as it was; start the run again to push it" in said and "Traceback" not in said
    before = (folder / "run" / "run.json").read_bytes()
    assert "is the end of this run" in recipe(server, folder, "finetune", "run.yaml", *push)
    assert "model.safetensors" in server.repos["model", REPO].resolve("main").files
    assert (folder / "run" / "run.json").read_bytes() == before
    server.fail("create_repo", status=403)  # of one that is there already, it would not matter
    elsewhere = [*push, "--train.hub_model_id", "sensenova/other"]
    said = recipe(server, folder, "finetune", "run.yaml", *elsewhere, code=2)
    assert "error: making the repository sensenova/other failed: the token may not write there" in said


# ------------------------------------------------------------------------------------------------ the record of a run
def test_the_record_says_what_the_run_was_and_a_finished_run_leaves_it(server: HubServer, folder: Path) -> None:
    recipe(server, folder, "finetune", "run.yaml", "--train.learning_rate", "1e-3")
    run = folder / "run"
    record = RunRecord.read(run)
    faq = record.datasets["faq"]
    assert (faq.source, faq.task, faq.licence, faq.note) == ("data/faq.jsonl", "retrieval", "CC BY 4.0", "数字")
    assert faq.counts["rows"] == 103 and sum(faq.counts["rejected"].values()) == 3 and faq.used == 90
    assert sum(faq.counts["held_out"].values()) == 10 and faq.settings["holdout"]["queries"] == 10
    assert (record.stage, record.precision, record.engine, record.world_size, record.steps) == (
        "fine-tuning", "fp32", "one process", 1, 4
    )  # fmt: skip
    assert record.hardware and record.versions == versions() and record.seconds and record.seconds > 0
    assert record.losses["faq"]["name"] == "PiccoloLoss" and record.losses["faq"]["temperature"] == 0.01
    assert record.configuration["train"]["learning_rate"] == 1e-3 and record.configuration["train"]["seed"] == 42

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = recipe(server, folder, "finetune", "run/config.yaml")
    assert "is the end of this run, so nothing is trained" in again
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    (run / "model" / "model.safetensors").unlink()
    recipe(server, folder, "finetune", "run.yaml", "--train.learning_rate", "1e-3")
    assert (run / "model" / "model.safetensors").read_bytes() == before[run / "model" / "model.safetensors"]


@pytest.mark.slow
def test_a_resumed_run_adds_its_seconds(server: HubServer, folder: Path) -> None:
    recipe(server, folder, "finetune", "run.yaml")
    run = folder / "run"
    manifest = run / "checkpoint-2" / MANIFEST
    content = json.loads(manifest.read_text(encoding="utf-8"))
    assert 0 < content["run"]["seconds"] <= (RunRecord.read(run).seconds or 0)
    content["run"]["seconds"] = 1000.0  # as if the first two steps had been long ones
    del content["digest"]
    manifest.write_text(json.dumps(content), encoding="utf-8")
    (run / "checkpoint-4").rename(run / "gone")
    recipe(server, folder, "finetune", "run.yaml")
    assert 1000 < (RunRecord.read(run).seconds or 0) < 1100


# ------------------------------------------------------------------------------------------------ its release
@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["piccolo", "none"])
def test_a_run_is_released_as_the_readme_says(server: HubServer, folder: Path, instructions: str) -> None:
    encoder = str((folder / "encoder").resolve())  # a path of this machine, which the card may not name
    recipe(server, folder, "finetune", "run.yaml", "--model.instructions", instructions,
           "--model.name_or_path", encoder, "--train.save_strategy", "no")  # fmt: skip
    card = ["--fill-card", "--license", "mit", "--language", "zh", "--run-dir", str(folder / "run")]
    if instructions == "piccolo":  # with what evaluating it gave
        pytest.importorskip("mteb")
        rows = [("今天天气晴", "今天天气好", 0.9), ("猫", "狗", 0.4), ("山川", "河海", 0.5), ("红", "绿白", 0.1)]
        lines = "".join(",".join(map(str, row)) + "\n" for row in [("sentence1", "sentence2", "score"), *rows])
        (folder / "pairs.csv").write_text(lines, encoding="utf-8")
        (folder / "tasks.yaml").write_text("tasks:\n  - {name: Pairs, type: STS, data: pairs.csv}\n")
        recipe(server, folder, "evaluate", "run/model", "--benchmark", "tasks.yaml")
        (result,) = (folder / "results").rglob("Pairs.json")
        card += ["--results", str(result.parent), "--benchmark", "tasks.yaml"]
    shown = recipe(server, folder, "release", "run/model", REPO, *card)
    assert "Dry run: nothing was sent" in shown and "FAIL" not in shown and not server.repos
    assert "Dry run: nothing was sent" in recipe(server, folder, "release", "run/model", REPO)
    recipe(server, folder, "release", "run/model", REPO, "--push", "--tag", "v1.0")
    repo = server.repos["model", REPO]
    text = repo.read(repo.resolve("v1.0").files["README.md"]).decode()
    assert str(folder) not in text and encoder not in text and "sentence_transformers_model_id" not in text
    assert text.count("## Usage") + text.count("· Usage") == 1 and "| CC BY 4.0 | 数字 |" in text
    for fact in ("learning rate | 2e-05", "temperature | 0.01", "seed | 42", "batch | 16 x 1 = 16", "precision | fp32"):
        assert f"| {fact} |" in text
    assert (instructions == "piccolo") == ("查询：" in text)
    if instructions == "piccolo":
        score = json.loads(result.read_text())["scores"]["test"][0]["cosine_spearman"]
        assert f"| Pairs | STS | default | test | cos_sim_spearman | {100 * score:.2f} |" in text
        assert "![curves](curves.png)" in text and "model-index:" in text
    snippets = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    installed = ("from sentence_transformers ", "import torch\nfrom transformers ")  # test_use_it_in runs the others
    ours = [snippet for snippet in snippets if snippet.startswith(installed)]
    assert len(ours) == (4 if instructions == "piccolo" else 3) and len(snippets) > len(ours)
    for snippet in ours:
        environment = server.environment(folder / "other", TOKEN)
        done = subprocess.run([sys.executable, "-c", snippet], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
