"""The sdist and the wheel: built from a copy of the tree without a warning, complete, and nothing else in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from piccolo_st.__main__ import COMMANDS
from piccolo_st.evaluation import C_MTEB_35, read_rows

pytest.importorskip("setuptools", minversion="70.1", reason="builds the wheel, with no other package and no network")

ROOT = Path(__file__).parent.parent
SOURCES = ["piccolo_st", "recipes", "tests", "model_cards", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md",
           "LICENSE", "CHANGELOG.md"]  # fmt: skip
DATA = {"piccolo_st/py.typed", "piccolo_st/releasing/template.md"}
# What a command finds by name: in the sdist where it stands, in the wheel inside the package.
SHIPPED = {"recipes/configs": "configs", "recipes/accelerate": "accelerate", "model_cards": "model_cards"}
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"
USE = """
import sys, piccolo_st
assert piccolo_st.__file__.startswith(sys.argv[1]), piccolo_st.__file__
for name in piccolo_st.__all__:
    getattr(piccolo_st, name)
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[2], device="cpu")
piccolo_st.save_portable(model, "out")
from piccolo_st.modeling import ONNX_READERS
print(all(report.ok for report in piccolo_st.check_portable("out") if report.consumer not in ONNX_READERS))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The "sdist" and "wheel" -> the file."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    found = {}
    for kind in ("sdist", "wheel"):
        output = tmp_path_factory.mktemp(kind)
        ran = subprocess.run(
            [sys.executable, "-W", "default", "-c", BUILD, kind, str(output)], cwd=tree, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        for word in ("Warning", "warning: no previously-included files found", "deprecated"):
            assert word not in ran.stdout + ran.stderr, ran.stdout + ran.stderr
        (found[kind],) = output.iterdir()
    return found


def package_files() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "piccolo_st").rglob("*.py")} | DATA


def shipped_files() -> set[str]:
    found = [path for folder in SHIPPED for kind in ("yaml", "json") for path in (ROOT / folder).glob(f"*.{kind}")]
    found.append(ROOT / "model_cards/piccolo-large-zh/results.jsonl")  # of which a row of c-mteb-35.yaml is computed
    return {path.relative_to(ROOT).as_posix() for path in found}


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    assert names == package_files() | {
        path.replace(folder, f"piccolo_st/{inside}", 1)
        for folder, inside in SHIPPED.items()
        for path in shipped_files()
        if path.startswith(folder)
    }
    assert built["wheel"].name.endswith("-py3-none-any.whl")
    assert "Provides-Extra: demo" in metadata and "Description-Content-Type: text/markdown" in metadata


@pytest.mark.slow
def test_the_sdist_has_the_package_the_recipes_and_no_tests(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {
            name.split("/", 1)[1] for name in archive.getnames() if "/" in name and archive.getmember(name).isfile()
        }
    names = {name for name in names if ".egg-info/" not in name}
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").glob("*.*")}
    others = {"PKG-INFO", *(name for name in SOURCES if (ROOT / name).is_file())}
    assert names == package_files() | shipped_files() | recipes | others


@pytest.mark.slow
def test_the_wheel_works_where_it_is_installed(built: dict[str, Path], encoder_dir: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(built["wheel"]) as wheel:  # a pure wheel is installed by unpacking it
        wheel.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run(
        [sys.executable, "-c", USE, str(site), str(encoder_dir)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert ran.returncode == 0 and ran.stdout.split()[-1] == "True", ran.stdout + ran.stderr

    def command(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "piccolo_st", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    for name in COMMANDS:
        assert f"-m piccolo_st {name}" in command(name, "--help")
    assert command("configs", "cpu_zero1").strip() == str(site / "piccolo_st/accelerate/cpu_zero1.yaml")
    assert "activations" in command("pretrain", "pretrain-large", "--plan")
    mixture = json.dumps({"file": "zh-mini-mixture", "root": "nowhere"})
    with pytest.raises(AssertionError, match="nowhere/"):  # the mixture is found; its data are the user's
        command("finetune", "quickstart", "--data.mixture", mixture)
    assert len(read_rows(site / "piccolo_st/model_cards/c-mteb-35.yaml", C_MTEB_35)) == 5
