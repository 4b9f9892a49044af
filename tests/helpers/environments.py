"""Virtual environments of a test's own, which share everything else with the one that runs the tests."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest


def environment(folder: Path, *packages: str, no_deps: bool = False, shared: bool = True, timeout: int = 280) -> str:
    """Make a virtual environment with ``packages`` of its own and the rest from this one; return its python.

    With ``no_deps`` nothing else is installed into it, whatever the packages ask for; without ``shared`` it has nothing
    from this one, for packages that need others of another time.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    if shared:
        scheme = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        Path(scheme, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--quiet", *(["--no-deps"] if no_deps else [])]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, *packages]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if installed.returncode and "No matching distribution" in installed.stderr + installed.stdout:
        pytest.skip(f"no package registry within reach: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    return str(python)
