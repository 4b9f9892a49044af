"""A Space next to a model: what it consists of, how it is pushed, and that it runs with nothing else of the package."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, snapshot_download

from piccolo_st.commands.release import main
from piccolo_st.demo.space import release_space, space_files
from piccolo_st.releasing import ReleaseError, ReleaseOptions, release
from tests.helpers.demo_pages import serving
from tests.helpers.hub_clients import REPO, TOKEN
from tests.helpers.hub_server import HubServer

pytest_plugins = ["tests.helpers.hub_clients"]  # the fixtures hub and released_model
pytest.importorskip("gradio")

TEXTS = ["今天天气晴", "猫和狗", "山川河海"]
ROOT = Path(__file__).parent.parent.parent


def quiet(text: str) -> None:
    """In place of print."""


def test_what_a_space_consists_of() -> None:
    files = space_files(REPO, TEXTS, "v1.0")
    front = yaml.safe_load(files["README.md"].split("---")[1])
    assert front["sdk"] == "gradio" and front["sdk_version"] == version("gradio") and front["models"] == [REPO]
    assert front["app_file"] == "app.py" and len(front["short_description"]) <= 60
    assert f'SentenceTransformer("{REPO}", revision="v1.0")' in files["app.py"]
    assert files["corpus.txt"].split("\n") == [*TEXTS, ""]
    needed = files["requirements.txt"].split()
    assert f"sentence-transformers=={version('sentence-transformers')}" in needed
    assert not any("+" in line or "piccolo" in line for line in needed)
    compile(files["app.py"], "app.py", "exec")


def test_a_dry_run_sends_nothing_and_a_push_is_one_commit(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    diff = release_space(REPO, TEXTS).diff
    assert not hub.repos and diff.repo_type == "space" and len(diff.sent) == len(space_files(REPO, TEXTS))
    assert f"Space {REPO} (does not exist yet)" in capsys.readouterr().out
    done = release_space(REPO, TEXTS, ReleaseOptions(push=True))
    repo = hub.repos["space", REPO]
    assert repo.private and done.commit == repo.branches["main"]
    assert [call.route for call in hub.calls].count("commit") == 1
    held = {path: repo.read(blob).decode() for path, blob in repo.resolve("main").files.items()}
    assert {path: held[path] for path in diff.sent} == space_files(REPO, TEXTS)
    shown = capsys.readouterr().out
    assert "same hashes\n" in shown and "The Hub builds the Space and starts it" in shown

    again = release_space(REPO, TEXTS, ReleaseOptions(push=True, say=quiet))
    assert again.commit == done.commit and [call.route for call in hub.calls].count("commit") == 1
    changed = release_space(REPO, TEXTS[:2], ReleaseOptions(push=True, private=False, say=quiet))
    assert changed.diff.sent == ["README.md", "corpus.txt"] and not repo.private
    with pytest.raises(ReleaseError, match=r"is public, so releasing there publishes the space; say so with --public"):
        release_space(REPO, TEXTS, ReleaseOptions(push=True, say=quiet))
    assert ("model", REPO) not in hub.repos


def test_a_text_with_a_secret_is_not_pushed(hub: HubServer) -> None:
    with pytest.raises(ReleaseError, match=r"is not ready to be released: corpus\.txt, line 2: a Hugging Face token"):
        release_space(REPO, ["一", f"hf_{'a1B2' * 9}"], ReleaseOptions(push=True, say=quiet))
    assert not hub.repos


def test_a_space_that_moved_meanwhile_is_not_overwritten(hub: HubServer) -> None:
    release_space(REPO, TEXTS, ReleaseOptions(push=True, say=quiet))
    repo = hub.repos["space", REPO]
    hub.before["commit"] = lambda: repo.put({"app.py": b"print()"}, "by hand")
    with pytest.raises(ReleaseError, match=r"moved from \w+ to \w+ .*'by hand'.*files: app\.py.*Nothing was overwrit"):
        release_space(REPO, TEXTS[:2], ReleaseOptions(push=True, say=quiet))


def test_the_recipe_releases_model_and_space(
    hub: HubServer, released_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = [str(released_model), REPO, "--tag", "v1", "--corpus", str(tmp_path / "texts.txt"), "--limit", "2"]
    main([*arguments, "--space", "sensenova/page"])
    assert capsys.readouterr().out.count("Dry run: nothing was sent") == 2 and not hub.repos
    main([*arguments, "--push", "--space"])
    files = hub.repos["space", REPO].resolve("main").files
    assert hub.repos["space", REPO].read(files["corpus.txt"]).decode().split() == [TEXTS[0], TEXTS[1]]
    assert b'revision="v1"' in hub.repos["space", REPO].read(files["app.py"])
    assert set(hub.repos) == {("space", REPO), ("model", REPO)}


@pytest.mark.slow
def test_the_space_runs_with_its_own_files_alone(hub: HubServer, released_model: Path, tmp_path: Path) -> None:
    from gradio_client import Client

    release(released_model, REPO, push=True, say=quiet)
    release_space(REPO, TEXTS, ReleaseOptions(push=True, say=quiet))
    folder = snapshot_download(REPO, repo_type="space", local_dir=tmp_path / "space", endpoint=HfApi().endpoint)
    assert not (Path(folder) / "piccolo_st" / "errors.py").exists()
    environment = hub.environment(tmp_path / "home", TOKEN)
    with serving([sys.executable, "app.py"], Path(folder), environment, tmp_path / "space.log") as url:
        table, maps = Client(url, verbose=False).predict("今天", 16, api_name="/search")
    assert all(text in table for text in TEXTS) and "with 查询：" in table and maps.count("<svg") == 1
