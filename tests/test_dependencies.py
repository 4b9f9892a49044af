"""What is imported is declared in setup.cfg, where whoever needs it installs it, and not left to other packages."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Modules that are not called as their distribution is; gradio brings its client in the version it needs.
DISTRIBUTION = {
    "faiss": "faiss-cpu",
    "gradio_client": "gradio",
    "pytrec_eval": "pytrec-eval-terrier",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


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


def declared(test_extras: bool) -> set[str]:
    """The distributions of setup.cfg: of the package and the extras of its users, or of every extra."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [settings["options"]["install_requires"]]
    lines += [text for name, text in settings["options.extras_require"].items() if test_extras or name not in TESTERS]
    return {name.lower() for name in re.findall(r"^([A-Za-z][\w-]*)", "\n".join(lines), re.M)}


TESTERS = ("test", "dev")


@pytest.mark.parametrize("folder", ["piccolo_st", "recipes", "tests"])
def test_every_import_is_declared(folder: str) -> None:
    found = imported(folder)
    assert "torch" in found or folder == "recipes"
    missing = {name: str(path) for name, path in found.items() if name not in declared(folder == "tests")}
    assert not missing, f"imported and not declared in setup.cfg: {missing}"
