"""What several processes may use is made by one of them; the others wait for it, take over, or say who stands still."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from piccolo_st import ownership
from piccolo_st.cache import entry
from piccolo_st.errors import InputError
from tests.helpers.forked import forked, kill


def build(cache: Path, text: str, seconds: float = 0.0) -> str:
    """The text of an entry, built in so many seconds where there is none."""

    def write(folder: Path) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            (folder / "text").write_text("half")
            time.sleep(0.05)
        (folder / "text").write_text(text)

    return (entry(cache, "key", write) / "text").read_text()


def start(cache: Path, seconds: float) -> Any:
    """Begin a build in a thread of this process; returns once it is under way."""
    thread = threading.Thread(target=build, args=(cache, "first", seconds), daemon=True)
    thread.start()
    while not (cache / "key.partial" / "text").exists():
        time.sleep(0.01)
    return thread


def test_the_second_waits_for_the_first_and_takes_what_it_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    thread = start(tmp_path, ownership.PATIENCE + 1)
    with caplog.at_level(logging.WARNING):
        assert build(tmp_path, "second") == "first"
    thread.join()
    assert [record.getMessage().partition(" on host")[0] for record in caplog.records] == [
        f"waiting for process {ownership.os.getpid()}"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_the_second_takes_over_from_one_that_is_killed(tmp_path: Path) -> None:
    with forked(lambda: start(tmp_path, 300)) as pid:
        kill(pid)
        begun = time.monotonic()
        assert build(tmp_path, "second") == "second"
        assert time.monotonic() - begun < 5
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_one_that_stands_still_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "STANDSTILL", 1.0)
    monkeypatch.setattr(ownership, "PATIENCE", 0.5)
    with (
        forked(lambda: ownership.own(tmp_path / ".key.owner", tmp_path, "output")) as pid,
        pytest.raises(InputError, match=rf"key\.partial is being made by process {pid} on .* no sign of life for 1 s"),
    ):
        build(tmp_path, "second")


def test_one_that_writes_nothing_but_lives_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mining does, which encodes elsewhere and leaves its rows at the end."""
    monkeypatch.setattr(ownership, "STANDSTILL", 1.0)
    monkeypatch.setattr(ownership, "PATIENCE", 0.2)
    monkeypatch.setattr(ownership, "BEAT", 0.2)

    def encode(folder: Path) -> None:
        time.sleep(3)
        (folder / "text").write_text("first")

    with forked(lambda: threading.Thread(target=entry, args=(tmp_path, "key", encode), daemon=True).start()):
        while not (tmp_path / "key.partial").exists():
            time.sleep(0.01)
        assert build(tmp_path, "second") == "first"
