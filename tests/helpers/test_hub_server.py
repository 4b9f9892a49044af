"""The loopback Hub against the real clients: huggingface_hub, datasets and sentence-transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.helpers.hub_server import HubServer, User

TOKEN = "hf_TheSecretOfAlice"
WEIGHTS = bytes(range(256)) * 64


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    users = {
        TOKEN: User("alice", orgs=("sensenova",)),
        "hf_reader": User("alice", write=False),
        "hf_other": User("bob"),
    }
    with HubServer(users) as server:
        yield server


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_create_commit_download(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    url = api.create_repo("sensenova/tiny", private=True)
    assert url.repo_id == "sensenova/tiny"
    first = api.model_info("sensenova/tiny")
    assert first.private and [s.rfilename for s in first.siblings] == [".gitattributes"]

    operations = [add("model.safetensors", WEIGHTS), add("1_Pooling/config.json", b"{}\n"), add("空.txt", b"")]
    commit = api.create_commit("sensenova/tiny", operations, commit_message="Add", parent_commit=first.sha)
    assert api.model_info("sensenova/tiny").sha == commit.oid
    entries = {entry.path: entry for entry in api.list_repo_tree("sensenova/tiny", recursive=True)}
    assert entries["model.safetensors"].lfs.size == len(WEIGHTS)
    assert entries["1_Pooling/config.json"].lfs is None
    assert [c.title for c in api.list_repo_commits("sensenova/tiny")] == ["Add", "initial commit"]

    folder = snapshot_download("sensenova/tiny", endpoint=hub.url, token=TOKEN, local_dir=tmp_path / "copy")
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS
    assert (Path(folder) / "空.txt").read_bytes() == b""
    report = api.verify_repo_checksums("sensenova/tiny", local_dir=folder, revision=commit.oid)
    extra = [path for path in report.extra_paths or () if not path.startswith(".cache/")]  # listed before 2.3
    assert report.checked_count == 4 and not (report.mismatches or report.missing_paths or extra)
    storage = [call for call in hub.calls if call.route in ("lfs_upload", "lfs_download")]
    assert len(storage) == 2 and not any(call.token for call in storage), "a token was sent to storage"


def test_unchanged_files_and_stored_objects_are_not_sent_again(hub: HubServer, api: HfApi) -> None:
    api.create_repo("alice/tiny")
    api.create_commit("alice/tiny", [add("a.bin", WEIGHTS), add("b.json", b"1")], commit_message="one")
    head = api.model_info("alice/tiny").sha
    again = api.create_commit("alice/tiny", [add("a.bin", WEIGHTS), add("b.json", b"1")], commit_message="two")
    assert again.oid == head
    api.create_commit("alice/tiny", [add("moved.bin", WEIGHTS), CommitOperationDelete("a.bin")], commit_message="3")
    assert [call.route for call in hub.calls].count("lfs_upload") == 1


def test_parent_commit_is_checked(api: HfApi) -> None:
    api.create_repo("alice/tiny")
    seen = api.model_info("alice/tiny").sha
    api.create_commit("alice/tiny", [add("a", b"1")], commit_message="by someone else")
    with pytest.raises(HfHubHTTPError, match=r"A commit has happened since") as error:
        api.create_commit("alice/tiny", [add("a", b"2")], commit_message="mine", parent_commit=seen)
    assert error.value.response.status_code == 412


def test_refused_commits_change_nothing(hub: HubServer, api: HfApi) -> None:
    api.create_repo("alice/tiny")
    head = api.model_info("alice/tiny").sha
    with pytest.raises(EntryNotFoundError):
        operations = [add("a", b"1"), CommitOperationDelete("not-there")]
        api.create_commit("alice/tiny", operations, commit_message="x")
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "a", "content": "1", "encoding": "utf-8"}},
        {"key": "lfsFile", "value": {"path": "w.bin", "oid": "0" * 64, "size": 3}},
    ]
    request = urllib.request.Request(
        f"{hub.url}/api/models/alice/tiny/commit/main",
        "\n".join(map(json.dumps, lines)).encode(),
        {"Authorization": f"Bearer {TOKEN}"},
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    info = api.model_info("alice/tiny")
    assert info.sha == head and len(info.siblings) == 1


def test_card_metadata_is_validated(hub: HubServer, api: HfApi) -> None:
    api.create_repo("alice/tiny")
    result = EvalResult("STS", "C-MTEB/ATEC", "MTEB ATEC", "cos_sim_spearman", 54.2)
    good = ModelCard(f"---\n{ModelCardData(model_name='t', eval_results=[result]).to_yaml()}\n---\n# t\n").content
    api.create_commit("alice/tiny", [add("README.md", good.encode())], commit_message="card")
    bad = good.replace("type: STS", "kind: STS")
    assert bad != good
    with pytest.raises(ValueError, match=r"results\[0\]\.task\.type"):
        api.create_commit("alice/tiny", [add("README.md", bad.encode())], commit_message="card")
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        api.create_commit("alice/tiny", [add("README.md", b"# no metadata")], commit_message="card")


def test_access(hub: HubServer, api: HfApi) -> None:
    api.create_repo("sensenova/secret", private=True)
    bob, reader = (HfApi(endpoint=hub.url, token=token) for token in ("hf_other", "hf_reader"))
    nobody = HfApi(endpoint=hub.url, token=False)
    for client in (bob, nobody):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("sensenova/secret")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        bob.create_repo("sensenova/other")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        reader.create_repo("alice/other")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.url, token="hf_expired").whoami()
    assert api.whoami()["name"] == "alice"
    api.update_repo_settings("sensenova/secret", private=False)
    assert nobody.model_info("sensenova/secret").id == "sensenova/secret"
    api.auth_check("sensenova/secret", write=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.auth_check("sensenova/secret", write=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("sensenova/secret")
    api.delete_repo("sensenova/secret")
    assert not api.repo_exists("sensenova/secret")


def test_tags_branches_and_pull_requests(api: HfApi, hub: HubServer) -> None:
    api.create_repo("alice/tiny")
    first = api.create_commit("alice/tiny", [add("a", b"1")], commit_message="1").oid
    api.create_tag("alice/tiny", tag="v1", revision=first)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("alice/tiny", tag="v1", revision=first)
    api.create_branch("alice/tiny", branch="next")
    api.create_commit("alice/tiny", [add("a", b"2")], commit_message="2", revision="next")
    pull = api.create_commit("alice/tiny", [add("a", b"3")], commit_message="3", create_pr=True)
    assert pull.pr_num == 1
    refs = api.list_repo_refs("alice/tiny", include_pull_requests=True)
    assert {b.name for b in refs.branches} == {"main", "next"} and refs.tags[0].target_commit == first
    assert refs.pull_requests[0].target_commit == pull.oid
    assert api.model_info("alice/tiny").sha == first
    api.merge_pull_request("alice/tiny", 1)
    assert api.model_info("alice/tiny").sha == pull.oid
    api.delete_tag("alice/tiny", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("alice/tiny", revision="v1")


@pytest.mark.parametrize(
    ("how", "fields", "wanted"),
    [
        ("status", {"status": 500, "times": 2}, None),
        ("status", {"status": 429, "headers": {"Retry-After": "0"}}, None),
        ("drop", {}, None),
        ("drop_after", {}, None),
        ("cut_upload", {}, None),
        ("short_upload", {}, "another size"),
        ("status", {"status": 403}, "403 Forbidden"),
        ("status", {"status": 413}, "413"),
    ],
)
def test_upload_faults(
    hub: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch, how: str, fields: dict[str, object], wanted: str | None
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    api.create_repo("alice/tiny")
    hub.fail("lfs_upload", how, **fields)
    if wanted is None:
        api.create_commit("alice/tiny", [add("w.bin", WEIGHTS)], commit_message="1")
        assert hub.repos["model", "alice/tiny"].resolve("main").files["w.bin"].size == len(WEIGHTS)
    else:
        with pytest.raises(RuntimeError, match=r"Error while uploading 'w\.bin'") as error:
            api.create_commit("alice/tiny", [add("w.bin", WEIGHTS)], commit_message="1")
        assert wanted in str(error.value.__cause__)
        assert "w.bin" not in hub.repos["model", "alice/tiny"].resolve("main").files
    assert next(call.fault for call in hub.calls if call.route == "lfs_upload") == str(hub.faults[0])


def test_download_faults(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add_repo("alice/tiny", {"w.bin": WEIGHTS})
    hub.fail("lfs_download", "cut_download")
    api = HfApi(endpoint=hub.url, token=False)
    path = api.hf_hub_download("alice/tiny", "w.bin", local_dir=tmp_path / "cut")
    assert Path(path).read_bytes() == WEIGHTS, "resumed with a range request"
    hub.fail("lfs_download", "corrupt")
    path = api.hf_hub_download("alice/tiny", "w.bin", local_dir=tmp_path / "corrupt")
    assert Path(path).read_bytes() != WEIGHTS
    report = api.verify_repo_checksums("alice/tiny", local_dir=tmp_path / "corrupt")
    assert [mismatch["path"] for mismatch in report.mismatches] == ["w.bin"]


LOAD = """
import sys, datasets
jsonl = datasets.load_dataset("C-MTEB/AFQMC", revision=sys.argv[1])
assert jsonl["validation"][1] == {"sentence1": "查询", "sentence2": "结果", "score": 0}, jsonl
parquet = datasets.load_dataset("C-MTEB/T2Retrieval", "corpus")
assert parquet["dev"]["text"] == ["天气", "春夏"], parquet
print(jsonl["validation"].num_rows, parquet["dev"].num_rows)
"""


def test_datasets_load_from_it(hub: HubServer, tmp_path: Path) -> None:
    import datasets

    rows = [
        {"sentence1": "今天", "sentence2": "明天", "score": 1},
        {"sentence1": "查询", "sentence2": "结果", "score": 0},
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    sha = "b44c3b011063adb25877c13823db83bb193913c4"
    hub.add_repo("C-MTEB/AFQMC", {"validation.jsonl": lines}, kind="dataset", sha=sha)
    datasets.Dataset.from_dict({"id": ["1", "2"], "text": ["天气", "春夏"]}).to_parquet(tmp_path / "corpus.parquet")
    card = "---\nconfigs:\n- config_name: corpus\n  data_files:\n  - split: dev\n    path: data/corpus-*\n---\n"
    files = {"README.md": card.encode(), "data/corpus-00000.parquet": (tmp_path / "corpus.parquet").read_bytes()}
    hub.add_repo("C-MTEB/T2Retrieval", files, kind="dataset")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, sha],
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.split() == ["2", "2"], done.stderr
    assert not [call.path for call in hub.calls if call.route == "unknown"]
