"""What is imported is declared in setup.cfg, where whoever needs it installs it, and not left to other packages."""

from __future__ import annotations

import ast
import configparser
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
# Modules that are not called as their distribution is. gradio and huggingface-hub bring their clients, pydantic its
# core, accelerate psutil, in the version that each needs.
DISTRIBUTION = {
    "faiss": "faiss-cpu",
    "gradio_client": "gradio",
    "httpx2": "huggingface-hub",
    "psutil": "accelerate",
    "pydantic_core": "pydantic",
    "pytrec_eval": "pytrec-eval-terrier",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# What tests/benchmarks compare with, each in an environment of its own.
PEERS = {"model2vec", "semhash", "text-dedup"}


def imported(folder: str) -> dict[str, Path]:
    """Each distribution that the code of a folder imports, wherever it does -> a file that does."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"piccolo_st", "tests", ""}:
                found[DISTRIBUTION.get(name, name.replace("_", "-"))] = path
    return found


def settings() -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None)
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    return found


def requirements(*but: str) -> list[Requirement]:
    """The requirements of setup.cfg: of the package, and of every extra but those named."""
    lines = [settings()["options"]["install_requires"]]
    lines += [text for name, text in settings()["options.extras_require"].items() if name not in but]
    return [Requirement(line) for line in "\n".join(lines).split("\n") if line and not line.startswith("%(")]


@pytest.mark.parametrize("folder", ["piccolo_st", "recipes", "tests"])
def test_every_import_is_declared(folder: str) -> None:
    found = imported(folder)
    assert "torch" in found or folder == "recipes"
    declared = {one.name.lower() for one in requirements(*([] if folder == "tests" else ["test", "dev"]))}
    missing = {name: str(path) for name, path in found.items() if name not in declared | PEERS}
    assert not missing, f"imported and not declared in setup.cfg: {missing}"


def test_every_folder_of_code_is_installed() -> None:
    named = set(settings()["options"]["packages"].split())
    code = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "piccolo_st").rglob("*.py")}
    assert named - {f"piccolo_st.{name}" for name in ("accelerate", "configs", "model_cards")} == code


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    """tests/oldest.txt pins every dependency at its lower bound in setup.cfg, and nothing else."""
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    bounds = {one.name: [b.version for b in one.specifier if b.operator == ">="] for one in requirements()}
    assert len(dict(pinned)) == len(pinned)
    assert {name: [version] for name, version in pinned} == bounds
