"""tests/oldest.txt pins every dependency at its lower bound in setup.cfg, and nothing else."""

from __future__ import annotations

import configparser
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def declared() -> dict[str, str]:
    """Each dependency of setup.cfg -> its lower bound."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    found = {}
    for line in "\n".join(lines).split("\n"):
        if line and not line.startswith("%("):  # an extra that takes in another
            requirement = Requirement(line)
            (found[requirement.name],) = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    return found


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    assert len(dict(pinned)) == len(pinned)
    assert dict(pinned) == declared()
