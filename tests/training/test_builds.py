"""A lock that a killed compiler left in torch's folder of extensions: removed, or its living owner is left alone."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from piccolo_st.training import builds
from piccolo_st.training.training_arguments import PiccoloTrainingArguments
from tests.helpers.forked import forked, kill


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As torch makes it: opened, and closed only when the build is done."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    return lock


def test_a_lock_without_an_owner_is_removed_at_once_if_it_is_old(lock: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock.touch()
    os.utime(lock, (0, 0))
    with caplog.at_level(logging.WARNING):
        builds.clear_left_locks()
    assert not lock.exists() and "the process that compiled there has gone" in caplog.text


def test_a_young_one_is_waited_for_as_long_as_something_is_written(
    lock: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(builds, "STANDSTILL", 1.5)
    lock.touch()
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        builds.clear_left_locks()
    assert not lock.exists() and 1 < time.monotonic() - began < 10
    assert caplog.text.count("waiting ") == 1


def test_a_living_process_keeps_its_lock_until_kill_9(lock: Path) -> None:
    with forked(lambda: os.open(lock, os.O_CREAT | os.O_EXCL)) as pid:
        os.utime(lock, (0, 0))
        builds.clear_left_locks()
        assert lock.exists()
        kill(pid)
        builds.clear_left_locks()
        assert not lock.exists()


def test_every_run_under_deepspeed_looks(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> None:
        raise InterruptedError("looked")

    monkeypatch.setattr(builds, "clear_left_locks", look)
    PiccoloTrainingArguments(str(tmp_path / "run"))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InterruptedError, match="looked"):
        PiccoloTrainingArguments(str(tmp_path / "run"))
