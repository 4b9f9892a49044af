"""Every public name has an example in its docstring, and the examples say the truth.

They run in an empty folder where the quickstart has been: ``runs/quickstart/model`` is a tiny encoder with Piccolo's
instructions.
"""

from __future__ import annotations

import doctest
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import piccolo_st
from piccolo_st.modeling import save_portable, set_prompts

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
TAKEN = re.findall(r"^from (piccolo_st[\w.]*) import (.+)$", README, re.MULTILINE)
NAMES = {name: module for module, names in TAKEN for name in names.split(", ")} | {
    name: "piccolo_st" for name in piccolo_st.__all__ if not name.startswith("__")
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_example(
    name: str, make_model: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "evaluate":
        pytest.importorskip("mteb")
    thing = getattr(import_module(NAMES[name]), name)
    [example] = doctest.DocTestFinder(recurse=False).find(thing, name, globs=vars(sys.modules[thing.__module__]).copy())
    assert example.examples, f"give the docstring of {name} an example"
    monkeypatch.chdir(tmp_path)
    model = make_model()
    set_prompts(model)
    save_portable(model, "runs/quickstart/model")
    said: list[str] = []
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append).failed
    assert not failed, "".join(said)
