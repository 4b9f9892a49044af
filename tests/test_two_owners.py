"""Two owners of each kind of folder: the second is told in seconds, and has it seconds after the first is killed.

The table is printed: pytest -s tests/test_two_owners.py
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from piccolo_st.cache import entry
from piccolo_st.curation.step_check import CheckSettings
from piccolo_st.curation.steps import PrepareData, run_step
from piccolo_st.errors import InputError
from piccolo_st.ownership import own
from piccolo_st.training.ownership import own as own_run
from tests.helpers.forked import forked, kill

LIMIT = 5.0  # seconds


def prepare(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"query": "天", "positive": "天气"}\n', encoding="utf-8")
    (folder / "mixture.yaml").write_text("datasets: {a: {source: a.jsonl, task: retrieval}}")
    data = PrepareData(mixture=str(folder / "mixture.yaml"), output=str(folder), cache=str(folder / "cache"))
    run_step("check", data, CheckSettings(), say=lambda line: None)


def build(folder: Path) -> None:
    entry(folder, "key", lambda made: (made / "text").write_text("whole"))


# kind -> where its owner stands, and what the second one does
KINDS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "output directory of a run": (".owner", lambda folder: own_run(folder).release()),
    "folder of a preparation step": (".check.owner", prepare),
    "result of an evaluation": (".Task.owner", lambda folder: own(folder / ".Task.owner", folder, "output").release()),
    "entry of the cache of mixtures": (".key.owner", build),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_is_told_and_takes_over(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, second = KINDS[kind]
    waits = kind.startswith("entry")  # for what both need, in the place of being refused
    with forked(lambda: own(tmp_path / name, tmp_path, "it")) as pid:
        began = time.monotonic()
        if waits:
            monkeypatch.setattr("piccolo_st.ownership.STANDSTILL", 0.1)
        with caplog.at_level(logging.WARNING), pytest.raises(InputError, match=rf"by process {pid} on host"):
            second(tmp_path)
        told = time.monotonic() - began
        assert f"waiting for process {pid} on host" in caplog.text or not waits
        kill(pid)
        began = time.monotonic()
        second(tmp_path)
        free = time.monotonic() - began
    print(f"\n{kind:<32} told after {told:4.1f} s, free {free:4.1f} s after kill -9")
    assert told < LIMIT and free < LIMIT
