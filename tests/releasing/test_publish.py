"""Releases: what is checked, what a dry run shows, what a push does, and who is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from packaging.version import Version
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from piccolo_st.__main__ import dispatch
from piccolo_st.errors import InputError
from piccolo_st.evaluation import C_MTEB_35, ModelScores, read_results, task_scores
from piccolo_st.modeling.fingerprint import content_hash
from piccolo_st.modeling.portable.contents import find_leaks, release_files
from piccolo_st.modeling.portable.saving import save_portable
from piccolo_st.releasing.card_folder import add_results, prepare_card
from piccolo_st.releasing.checks import check_release
from piccolo_st.releasing.publish import ReleaseError, release
from tests.helpers.hub_clients import HUB_VERSION, REPO, TOKEN, save_release
from tests.helpers.hub_server import HubServer

pytest_plugins = ["tests.helpers.hub_clients"]  # the fixtures hub and released_model

CARDS = Path(__file__).parent.parent.parent / "model_cards"


@pytest.fixture
def model_dir(released_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(released_model, tmp_path / "model"))


def quiet(text: str) -> None:
    """In place of print."""


def problems(model_dir: Path, name: str, **options: Any) -> str:
    checks = check_release(model_dir, REPO, **options).checks
    return " | ".join(next(check for check in checks if check.name == name).problems)


def append(model_dir: Path) -> None:
    """Change the card, and nothing else of the model."""
    with (model_dir / "README.md").open("a", encoding="utf-8") as card:
        card.write("\nmore\n")


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def write_results(model_dir: Path, tmp_path: Path, task: str = "ATEC") -> Path:
    """The folder of results that an evaluation of the model on one task leaves."""
    folder = tmp_path / "results" / "local__model" / content_hash(SentenceTransformer(str(model_dir), device="cpu"))
    folder.mkdir(parents=True)
    scores = {"test": [{"hf_subset": "default", "main_score": 0.5, "cosine_spearman": 0.25}]}
    (folder / f"{task}.json").write_text(json.dumps({"task_name": task, "dataset_revision": "1", "scores": scores}))
    return folder


# ------------------------------------------------------------------------------------------------ checks
def test_a_good_model_passes_every_check(model_dir: Path) -> None:
    found = check_release(model_dir, REPO)
    assert [check.name for check in found.checks] == ["files", "portable", "loads", "embeddings", "card", "results"]
    assert not found.problems and found.files == tuple(release_files(model_dir))


@pytest.mark.parametrize(
    "stray",
    ["training_args.bin", "checkpoint-5/model.safetensors", ".env"],
)
def test_stray_files_are_named_and_decided_about(model_dir: Path, stray: str) -> None:
    (model_dir / stray).parent.mkdir(parents=True, exist_ok=True)
    (model_dir / stray).write_text("x")
    assert f"do not belong to a published model: {stray}; leave them out with --exclude" in problems(model_dir, "files")
    assert stray not in release_files(model_dir, exclude=[stray.split("/")[0]])
    assert stray in release_files(model_dir, include=[stray])


def test_what_tools_leave_behind_is_left_out(model_dir: Path) -> None:
    for path in (".git/config", ".cache/huggingface/x", "__pycache__/x.pyc"):
        (model_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (model_dir / path).write_text("x")
    files = release_files(model_dir)
    assert not [path for path in files if path.startswith((".git", ".cache", "__"))]
    assert {"README.md", "model.safetensors", "1_Pooling/config.json", "tokenizer.json"} <= set(files)


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is empty; save the model there first"):
        release_files(tmp_path)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f"token: {TOKEN}", "a Hugging Face token"),
        ("hf_" + "a1B2" * 9, "a Hugging Face token"),
        ("AKIAABCDEFGHIJKLMNOP", "an AWS key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("trained in /home/alice/runs/1", "the path /home/alice/runs/1 of this machine"),
        (r'"path": "C:\\Users\\alice\\model"', r"the path C:\\Users\\alice\\model of this machine"),
    ],
)
def test_secrets_and_paths_are_found_and_not_repeated(model_dir: Path, line: str, found: str) -> None:
    card = model_dir / "README.md"
    text = card.read_text(encoding="utf-8") + "\n"
    number = len(text.splitlines()) + 1
    card.write_text(f"{text}{line}\n", encoding="utf-8")
    (leak,) = find_leaks(model_dir, ["README.md", "model.safetensors"])
    assert leak == f"README.md, line {number}: {found}"
    assert leak in problems(model_dir, "files")


def test_the_own_token_is_found_whatever_it_looks_like(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "unusual-token")
    edit_json(model_dir / "config.json", note="unusual-token")
    (leak,) = find_leaks(model_dir, ["config.json"])
    assert "the token you are logged in with" in leak and "unusual" not in leak


@pytest.mark.parametrize("text", ["https://example.org/home/alice", "a/home/b", "24/data", "~/data/x", "/database"])
def test_addresses_are_no_paths(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert not list(find_leaks(tmp_path, ["README.md"]))


def test_a_layout_only_new_versions_read_is_refused(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model().save(str(tmp_path))
    found = problems(tmp_path, "portable")
    assert "text-embeddings-inference" in found and "save the model with piccolo_st.save_portable" in found


def test_a_model_that_does_not_load_is_refused(model_dir: Path) -> None:
    edit_json(model_dir / "config.json", model_type="no-such-type")
    assert "sentence-transformers cannot load it: ValueError" in problems(model_dir, "loads")
    modules = json.loads((model_dir / "modules.json").read_text())
    modules[1]["type"] = "mycode.Pooling"
    (model_dir / "modules.json").write_text(json.dumps(modules))
    assert "cannot load it" in problems(model_dir, "loads")


def test_broken_weights_are_refused(model_dir: Path) -> None:
    weights = load_file(model_dir / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] = torch.nan
    save_file(weights, model_dir / "model.safetensors", {"format": "pt"})
    assert "has NaN or infinite numbers; the weights are broken" in problems(model_dir, "embeddings")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: mit\n", "", "have no license; add for example license: mit"),
        ("language:\n- zh\n", "", "have no language"),
        ("pipeline_tag: sentence-similarity\n", "", "have no pipeline_tag"),
        (f'"{REPO}"', '"sentence_transformers_model_id"', f"instead of '{REPO}'; fill it in with --fill-card"),
        (f'"{REPO}"', '"someone/else"', f"does not show how to load '{REPO}'"),
        ("查询：", "查询", "the model's query prompt '查询：' does not occur in README.md"),
        ("---\nlanguage", "---\nlanguage: [", "the metadata of README.md cannot be read"),
    ],
)
def test_incomplete_cards_are_refused(model_dir: Path, old: str, new: str, message: str) -> None:
    card = model_dir / "README.md"
    changed = card.read_text(encoding="utf-8").replace(old, new)
    assert changed != card.read_text(encoding="utf-8")
    card.write_text(changed, encoding="utf-8")
    assert message in problems(model_dir, "card")


def test_a_missing_card_and_prompts_that_are_not_there(model_dir: Path) -> None:
    edit_json(model_dir / "config_sentence_transformers.json", prompts={"query": "", "document": ""})
    found = problems(model_dir, "card")
    assert "README.md types the instruction '查询：', but the model has no such prompt" in found
    assert "set it with piccolo_st.modeling.set_prompts where it was trained with it" in found
    prepare_card(model_dir, REPO)
    assert not problems(model_dir, "card"), "the usage of a model without instructions types none"
    (model_dir / "README.md").unlink()
    assert problems(model_dir, "card") == "README.md is missing; save the model with its card"


def test_results_have_to_belong_to_the_weights(model_dir: Path) -> None:
    results = read_results(CARDS / "piccolo-large-zh" / "results.jsonl")
    evaluated = content_hash(SentenceTransformer(str(model_dir), device="cpu"))
    own = ModelScores.of(REPO, task_scores(results, C_MTEB_35), C_MTEB_35)
    add_results(model_dir, results, own, evaluated=evaluated)
    assert not problems(model_dir, "results") and not problems(model_dir, "card")
    weights = load_file(model_dir / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] += 0.5
    save_file(weights, model_dir / "model.safetensors", {"format": "pt"})
    assert f"the card's results belong to the model {evaluated[:8]}, this one is" in problems(model_dir, "results")
    assert not problems(model_dir, "results", foreign_results=True)
    card = model_dir / "README.md"
    card.write_text(re.sub(r"<!-- evaluated model.*?-->", "", card.read_text(encoding="utf-8")), encoding="utf-8")
    assert "results that name no model they were measured on" in problems(model_dir, "results")


def test_results_beside_the_card_belong_to_the_weights_too(model_dir: Path, tmp_path: Path) -> None:
    prepare_card(model_dir, REPO, results=write_results(model_dir, tmp_path))
    assert (model_dir / ".eval_results" / "ATEC.yaml").exists() and not problems(model_dir, "results")
    kept = shutil.copytree(model_dir / ".eval_results", tmp_path / "kept")
    model = SentenceTransformer(str(model_dir), device="cpu")
    model._model_card_text = None  # as of one that is trained, whose card is written anew
    with torch.no_grad():
        model[0].model.embeddings.LayerNorm.weight[0] += 0.5
    save_release(model, model_dir)
    assert not (model_dir / ".eval_results").exists(), "what was measured on the model before is none of this one's"

    shutil.copytree(kept, model_dir / ".eval_results")
    named = "the folder .eval_results has results that name no model they were measured on; add them with --results"
    assert named in problems(model_dir, "results")
    assert not problems(model_dir, "results", foreign_results=True)
    assert not problems(model_dir, "results", exclude=[".eval_results"])


def test_prepare_card_fills_in_what_a_release_asks_for(model_dir: Path, tmp_path: Path) -> None:
    card = model_dir / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(REPO, "sentence_transformers_model_id"), encoding="utf-8")
    run = tmp_path / "run"
    run.mkdir()
    config = {"model": {"query_length": 64}, "data": {"batch_size": 8}, "loss": {"temperature": 0.05}, "train": {}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    folder = write_results(model_dir, tmp_path)
    revision = folder.name
    facts = {"world_size": 2, "hardware": "2 CPU cores", "content_hash": revision}
    (run / "run.json").write_text(json.dumps(facts))
    (run / "curves.png").write_bytes(b"\x89PNG")
    card.write_text(card.read_text(encoding="utf-8").replace("license: mit\n", ""), encoding="utf-8")
    prepare_card(model_dir, REPO, results=folder, run_dir=run, metadata={"license": "apache-2.0"})
    text = card.read_text(encoding="utf-8")
    assert "license: apache-2.0\n" in text
    assert "8 x 2 = 16" in text and "2 CPU cores" in text and "![curves](curves.png)" in text and "25.00" in text
    assert not check_release(model_dir, REPO).problems
    assert (model_dir / ".eval_results" / "ATEC.yaml").exists()
    other = folder.rename(folder.parent / ("0" * 40))
    with pytest.raises(
        InputError, match=rf"belong to the model with the content hash 000000000000, .* has {revision[:12]}"
    ):
        prepare_card(model_dir, REPO, results=other)


def test_results_of_other_tasks_need_their_definition(model_dir: Path, tmp_path: Path) -> None:
    before = (model_dir / "README.md").read_bytes()
    folder = write_results(model_dir, tmp_path, "faq-test")
    (folder / "Similarity.json").write_text((folder / "faq-test.json").read_text().replace("faq-test", "Similarity"))
    message = r"must hold a whole task of c-mteb-35, got only Similarity, faq-test; name .* with --benchmark"
    with pytest.raises(InputError, match=message):
        prepare_card(model_dir, REPO, results=folder)
    assert (model_dir / "README.md").read_bytes() == before


def test_only_models_of_the_same_definition_stand_beside_a_release(
    hub: HubServer, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_results(model_dir, tmp_path)
    rows = tmp_path / "rows.yaml"
    rows.write_text("[{model: a/old, average: 60}, {model: b/new, average: 70, benchmark: 'MTEB(cmn, v1)'}]")
    given = ["release", str(model_dir), REPO, "--results", str(results), "--compare", str(rows), "--benchmark"]
    for benchmark, there, left_out in (
        ("MTEB(cmn, v1)", "b/new", "a/old (c-mteb-35)"),
        ("c-mteb-35", "a/old", "b/new (MTEB(cmn, v1))"),
    ):
        dispatch([*given, benchmark])
        assert re.findall(r"^\| \[(./\w+)\]", (model_dir / "README.md").read_text(encoding="utf-8"), re.M) == [there]
        assert f"another definition than that of {benchmark}: {left_out}\n" in capsys.readouterr().out


def test_what_a_run_measured_belongs_to_the_model_it_left(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = model_dir / "README.md"
    measured = (
        "model-index:\n- name: m\n  results:\n  - task: {type: retrieval}\n    dataset: {name: words, type: words}\n"
        "    metrics: [{type: ndcg@10, value: 0.45}]\n"
    )
    card.write_text(card.read_text(encoding="utf-8").replace("license:", measured + "license:", 1), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("train: {seed: 42}")
    (tmp_path / "curves.png").write_bytes(b"\x89PNG")
    gain = {"of": "held-out", "task": "words", "metric": None, "before": 1.0, "after": 31.25, "low": 29.0, "high": 31.5}
    revision = content_hash(SentenceTransformer(str(model_dir), device="cpu"))
    for known, problem in (("0" * 40, "name no model they were measured on"), (revision, "")):
        (tmp_path / "run.json").write_text(json.dumps({"content_hash": known, "gains": [gain]}))
        prepare_card(model_dir, REPO, run_dir=tmp_path)
        assert problem in problems(model_dir, "results") and bool(problem) is bool(problems(model_dir, "results"))
        text, curves = card.read_text(encoding="utf-8"), model_dir / "curves.png"
        assert "| seed | 42 |" in text, "the run's settings may be those of a copy in half precision"
        assert ["31.25" in text, "curves.png" in text, curves.exists()] == [not problem] * 3
        assert (f"{model_dir} is not known to be the model that it left\n" in capsys.readouterr().out) is bool(problem)
    assert "0.45" in card.read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_can_be_released(released_model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    save_portable(SentenceTransformer(str(released_model), device="cpu"), tmp_path, dtype=dtype)
    assert not check_release(tmp_path, REPO).problems


@pytest.mark.skipif(Version("2.2") > HUB_VERSION, reason="before 2.2 a card is validated at huggingface.co alone")
@pytest.mark.parametrize("name", ["piccolo-large-zh", "piccolo-base-zh"])
def test_the_published_cards_pass_the_hubs_validation(hub: HubServer, name: str) -> None:
    card = ModelCard.load(CARDS / name / "README.md")
    card.validate()
    card.content = card.content.replace("license: mit", "license: [mit]")
    with pytest.raises(ValueError, match="license"):
        card.validate()
    assert [call.route for call in hub.calls] == ["validate_yaml"] * 2


# ------------------------------------------------------------------------------------------------ dry run
def test_a_dry_run_shows_everything_and_sends_nothing(hub: HubServer, model_dir: Path) -> None:
    said: list[str] = []
    found = release(model_dir, REPO, say=said.append)
    text = "\n".join(said)
    assert found.commit is None and not hub.repos
    assert {call.method for call in hub.calls} == {"GET"}
    for file in release_files(model_dir):
        assert re.search(rf"new +{(model_dir / file).stat().st_size:,} +{re.escape(file)}$", text, re.M), file
    assert f"{REPO} (does not exist yet)" in text and "Dry run: nothing was sent" in text
    assert "ok   portable" in text and TOKEN not in text


def test_a_dry_run_compares_with_the_remote(hub: HubServer, model_dir: Path) -> None:
    head = release(model_dir, REPO, push=True, say=quiet).commit
    old = {"pytorch_model.bin": b"old", "notes.txt": b"x", ".eval_results/ATEC.yaml": b"[]"}
    hub.repos["model", REPO].put(old, "by hand")
    append(model_dir)
    said: list[str] = []
    diff = release(model_dir, REPO, delete=["notes.*"], say=said.append).diff
    assert diff.sent == ["README.md"] and diff.deleted == ("notes.txt",)
    assert set(diff.kept) == {"pytorch_model.bin", ".eval_results/ATEC.yaml"}
    assert diff.head != head and diff.private
    assert "Note: pytorch_model.bin would stay" in said[1] and re.search(r"deleted +notes.txt", said[1])
    assert "Note: .eval_results/ATEC.yaml would stay, and the Hub shows them as results of the released" in said[1]
    assert said[-1].endswith(f"--push --parent {diff.head}")
    all_of_it = release(model_dir, REPO, delete=["notes.*", "*.bin", ".eval_results/*"], say=said.append).diff
    assert not all_of_it.kept and "would stay" not in said[-2]


def test_a_model_that_fails_a_check_is_not_even_compared(hub: HubServer, model_dir: Path) -> None:
    (model_dir / "optimizer.pt").write_text("x")
    with pytest.raises(ReleaseError, match=r"is not ready to be released: .* optimizer\.pt; leave them out"):
        release(model_dir, REPO, push=True, say=quiet)
    assert not hub.calls


# ------------------------------------------------------------------------------------------------ push
def test_a_release_is_one_verified_commit_and_again_only_what_changed(hub: HubServer, model_dir: Path) -> None:
    said: list[str] = []
    found = release(model_dir, REPO, push=True, tag="v1.0", message="Release 1.0", say=said.append)
    repo = hub.repos["model", REPO]
    assert repo.private and repo.tags == {"v1.0": found.commit} and repo.branches == {"main": found.commit}
    assert [commit.title for commit in repo.history("main")] == ["Release 1.0", "initial commit"]
    files = repo.resolve("main").files
    assert set(files) == {*release_files(model_dir), ".gitattributes"}
    assert all(repo.read(files[name]) == (model_dir / name).read_bytes() for name in release_files(model_dir))
    assert [call.route for call in hub.calls].count("commit") == 1
    assert "verified: " in said[-2] and f'SentenceTransformer("{REPO}", revision="v1.0")' in said[-1]

    hub.calls.clear()
    again = release(model_dir, REPO, push=True, tag="v1.0", parent="0" * 40, say=quiet)
    assert again.commit == found.commit and again.diff.done
    assert not {call.route for call in hub.calls} & {"commit", "preupload", "lfs_upload", "create_tag", "create_repo"}
    append(model_dir)
    assert release(model_dir, REPO, push=True, parent=found.commit, say=quiet).commit != found.commit
    assert not [call for call in hub.calls if call.route.startswith("lfs_upload")], "the weights are there already"
    with pytest.raises(ReleaseError, match=rf"the tag v1.0 stands on {found.commit[:8]} already; choose another one"):
        release(model_dir, REPO, push=True, tag="v1.0", say=quiet)


def test_public_only_when_said_and_only_at_the_end(hub: HubServer, model_dir: Path) -> None:
    seen: list[bool] = []

    def look() -> None:
        repo = hub.repos["model", REPO]
        seen.append(repo.private and "model.safetensors" in repo.resolve("main").files)

    hub.before["settings"] = look
    release(model_dir, REPO, push=True, private=False, say=quiet)
    assert seen == [True] and not hub.repos["model", REPO].private
    for push in (False, True):
        with pytest.raises(
            ReleaseError, match=r"is public, so releasing there publishes the model; say so with --public"
        ):
            release(model_dir, REPO, push=push, say=quiet)
    append(model_dir)
    release(model_dir, REPO, push=True, private=False, say=quiet)


def test_branches_and_pull_requests(hub: HubServer, model_dir: Path) -> None:
    HfApi(endpoint=hub.url).create_repo(REPO, private=True)
    main = hub.repos["model", REPO].branches["main"]
    on_branch = release(model_dir, REPO, push=True, revision="next", say=quiet)
    assert hub.repos["model", REPO].branches == {"main": main, "next": on_branch.commit}
    said: list[str] = []
    pull = release(model_dir, REPO, push=True, create_pr=True, say=said.append)
    assert pull.pr_url == f"{hub.url}/{REPO}/discussions/1" and hub.repos["model", REPO].branches["main"] == main
    assert pull.pr_url in said[-1] and f'revision="{pull.commit}"' in said[-1]
    again = release(model_dir, REPO, push=True, private=False, create_pr=True, say=quiet)
    assert hub.repos["model", REPO].private, "a pull request publishes nothing"
    assert (again.commit, again.pr_url) == (pull.commit, pull.pr_url), "the open pull request is found, not doubled"
    hub.fail("refs", status=500, skip=1)
    with pytest.raises(ReleaseError, match=r"looking for a pull request of this release failed: the Hub failed"):
        release(model_dir, REPO, push=True, create_pr=True, say=quiet)
    with pytest.raises(ReleaseError, match=r"a pull request gets no tag"):
        release(model_dir, REPO, create_pr=True, tag="v1", say=quiet)


def someone_else(hub: HubServer) -> None:
    operations = [
        CommitOperationAdd("README.md", b"---\nlicense: mit\n---\n# Mine\n"),
        CommitOperationAdd("x.txt", b"1"),
    ]
    HfApi(endpoint=hub.url, token=TOKEN).create_commit(REPO, operations, commit_message="A hasty fix")


def test_a_change_since_the_dry_run_is_refused(hub: HubServer, model_dir: Path) -> None:
    release(model_dir, REPO, push=True, say=quiet)
    append(model_dir)
    parent = release(model_dir, REPO, say=quiet).diff.head
    someone_else(hub)
    theirs = hub.repos["model", REPO].branches["main"]
    message = (
        rf"main of {REPO} moved from {parent[:8]} to {theirs[:8]} since it was looked at "
        rf"\({theirs[:8]} 'A hasty fix' by alice; files: README\.md, x\.txt\)"
    )
    with pytest.raises(ReleaseError, match=message):
        release(model_dir, REPO, push=True, parent=parent, say=quiet)
    assert hub.repos["model", REPO].branches["main"] == theirs


def test_a_change_during_the_release_is_refused(hub: HubServer, model_dir: Path) -> None:
    release(model_dir, REPO, push=True, say=quiet)
    append(model_dir)
    hub.before["preupload"] = lambda: someone_else(hub)
    message = r"refused: main of .* \(\w+ 'A hasty fix' by alice; files: README\.md, x\.txt\)\. Nothing was overwritten"
    with pytest.raises(ReleaseError, match=message):
        release(model_dir, REPO, push=True, say=quiet)
    assert hub.repos["model", REPO].resolve("main").title == "A hasty fix"


def test_a_commit_that_comes_back_different_is_reported(hub: HubServer, model_dir: Path) -> None:
    hub.fail("lfs_download", "corrupt")
    with pytest.raises(ReleaseError, match=r"came back different from what was sent: model\.safetensors"):
        release(model_dir, REPO, push=True, tag="v1", private=False, say=quiet)
    repo = hub.repos["model", REPO]
    assert repo.private and not repo.tags
    release(model_dir, REPO, push=True, tag="v1", private=False, say=quiet)
    assert not repo.private and repo.tags


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"there is none; log in with `hf auth login` or set HF_TOKEN \(HTTP 401"),
        ("hf_reader", r"the token may not write there; use one with write access to that organisation \(HTTP 403"),
        ("hf_" + "expired" * 6, r"the Hub does not accept the token"),
    ],
)
def test_who_may_not_write_is_told_so(
    hub: HubServer,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(model_dir / "no-token"))
    with pytest.raises(ReleaseError, match=message) as error:
        release(model_dir, REPO, push=True, say=quiet)
    assert f"Nothing on main of {REPO} was changed" in str(error.value)
    assert token is None or token not in str(error.value)
    assert not hub.repos


def test_a_release_is_loaded_by_its_name(hub: HubServer, make_model: Callable[..., Any], tmp_path: Path) -> None:
    name = "sensenova/piccolo-large-zh"
    local = make_model()
    release(save_release(local, tmp_path / "model", name), name, push=True, tag="v1.0", say=quiet)
    loaded = SentenceTransformer(name, revision="v1.0", cache_folder=str(tmp_path / "cache"), device="cpu")
    assert loaded.prompts["query"] == "查询："
    assert (loaded.encode_query(["什么时候下雪"]) == local.encode_query(["什么时候下雪"])).all()
    assert (tmp_path / "cache" / "models--sensenova--piccolo-large-zh").is_dir()
