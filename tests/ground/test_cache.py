"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from piccolo_st.cache import write_whole


@pytest.mark.parametrize("content", ["新的", lambda file: file.write_bytes("新的".encode())], ids=["text", "function"])
def test_a_file_is_written_with_its_folder_or_over_another(
    content: str | Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "file.txt"
    for _ in range(2):
        write_whole(path, content)
        assert path.read_text("utf-8") == "新的"
        assert os.listdir(path.parent) == ["file.txt"]


def test_who_fails_or_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def stopped(aside: Path) -> None:
        aside.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, stopped)
    assert os.listdir(tmp_path) == ["file.txt"], "and nothing beside it"

    child = os.fork()
    if child == 0:
        write_whole(path, lambda aside: (aside.write_text("ne"), os.kill(os.getpid(), signal.SIGKILL)))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
