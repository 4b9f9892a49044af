"""The loopback Hub against the real clients: huggingface_hub, datasets and sentence-transformers."""

from __future__ import annotations

import json
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
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("sensenova/secret")
