"""Portable checkpoints, read by the versions of the libraries that their users run: really installed, really run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.environments import environment
from tests.modeling.portability.checkpoints import build, build_merged, build_rotary

SCRIPTS = Path(__file__).parent / "portability"
# Everything else (torch, numpy, ...) is shared with the environment that runs the tests. transformers 4 needs an older
# huggingface_hub, and that an older accelerate and datasets.
_TRANSFORMERS_4 = ("huggingface_hub==0.36.2", "accelerate==1.10.1", "datasets==3.6.0")
ENVIRONMENTS = {
    "3.4.1": ("sentence-transformers==3.4.1", "transformers==4.48.3", "tokenizers==0.21.4", *_TRANSFORMERS_4),
    "4.1.0": ("sentence-transformers==4.1.0", "transformers==4.52.4", "tokenizers==0.21.4", *_TRANSFORMERS_4),
    "5.1.2": ("sentence-transformers==5.1.2", "transformers==4.57.6", "tokenizers==0.22.2", *_TRANSFORMERS_4),
    "5.7.0": ("sentence-transformers==5.7.0",),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("portable")
    return folder, build(folder, encoder_dir)


def run(python: str, script: str, folder: Path, names: list[str]) -> dict[str, Any]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [python, str(SCRIPTS / script), str(folder), *names],
        capture_output=True,
        text=True,
        env=environ | {"HF_HUB_OFFLINE": "1", "USE_TF": "0"},
        cwd=folder,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("version", ENVIRONMENTS)
def test_older_versions_give_the_same_embeddings(
    version: str, checkpoints: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, names = checkpoints
    python = environment(tmp_path / "venv", *ENVIRONMENTS[version], no_deps=True)
    result = run(python, "with_sentence_transformers.py", folder, names)
    assert result["versions"]["sentence_transformers"] == version
    if version >= "5":  # the transformers of the older ones do not know all of these
        pytest.importorskip("peft")
        merged = build_merged(folder / "merged")
        more = run(python, "with_sentence_transformers.py", folder / "merged", merged)["differences"]
        print(f"sentence-transformers {version}: {more}")
        assert set(more) == set(merged) and all(difference <= 1e-5 for difference in more.values()), more
        turned = build_rotary(folder / "rotary")
        more = run(python, "with_sentence_transformers.py", folder / "rotary", turned)["differences"]
        assert set(more) == set(turned) and all(difference <= 1e-6 for difference in more.values()), more
    assert set(result["differences"]) == set(names)
    assert all(difference <= 1e-6 for difference in result["differences"].values()), result
    if version == min(ENVIRONMENTS):
        plain = run(python, "with_transformers.py", folder, ["mean", "float16"])
        assert plain["versions"]["transformers"] == "4.48.3"
        assert all(difference <= 1e-6 for difference in plain["differences"].values()), plain


@pytest.mark.slow
def test_this_version_and_transformers_alone_give_the_same_embeddings(checkpoints: tuple[Path, list[str]]) -> None:
    folder, names = checkpoints
    result = run(sys.executable, "with_sentence_transformers.py", folder, names)
    assert all(difference <= 1e-6 for difference in result["differences"].values()), result
    plain = run(sys.executable, "with_transformers.py", folder, ["mean", "float16"])
    assert all(difference <= 1e-6 for difference in plain["differences"].values()), plain
