"""An output directory has one owner, who is named, who ends with his process, and who leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import UnixFileLock

from piccolo_st import ownership
from piccolo_st.errors import InputError
from piccolo_st.training import ownership as run_ownership
from piccolo_st.training.ownership import own
from tests.helpers.forked import forked, kill
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import Case, at_step, make_trainer, weights_hash

ALONE = Case(batch_size=4)


@pytest.fixture(params=["flock", "lease"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, on a file system with flock or on one without."""
    if request.param == "lease":

        def refuse(self: Any) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(UnixFileLock, "_acquire", refuse)
    return tmp_path / "run"


def test_the_second_process_is_refused_by_name_and_starts_once_the_first_is_killed(folder: Path) -> None:
    with forked(lambda: own(folder)) as pid:
        start = time.monotonic()
        with pytest.raises(
            InputError,
            match=rf"run is being written to by process {pid} on host {socket.gethostname()} since \d{{4}}-\d\d-\d\d "
            r"\d\d:\d\d; wait for it, stop it, or choose another train\.output_dir",
        ):
            own(folder)
        assert time.monotonic() - start < 5
        kill(pid)
        start = time.monotonic()
        with own(folder):
            assert time.monotonic() - start < 5
            owner = json.loads((folder / ".owner.process").read_text())
            assert owner["process"] == os.getpid()
    assert not list(folder.iterdir())


def test_a_process_owns_a_directory_until_it_has_given_up_every_part(folder: Path) -> None:
    first, second = own(folder), own(folder)
    first.release()
    first.release()
    assert list(folder.iterdir())
    del second
    assert not list(folder.iterdir())
    with forked(lambda: own(folder)), pytest.raises(InputError, match=r"is being written to by process"):
        own(folder)


def test_a_child_neither_has_nor_ends_the_ownership_of_its_parent(folder: Path) -> None:
    with own(folder) as mine:
        with forked(mine.release):
            assert (folder / ".owner.process").exists()
            with forked(lambda: time.sleep(0)):
                mine.release()
        with own(folder):  # though children that were forked meanwhile had lived on
            pass


def test_a_lease_of_another_host_is_free_when_nobody_renews_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(UnixFileLock, "_acquire", refuse)
    monkeypatch.setattr(ownership, "LEASE", 1.5)
    marker = tmp_path / ".owner.lease"
    with forked(lambda: own(tmp_path)) as pid:
        text = marker.read_text()
        kill(pid)
    marker.write_text(text.replace(socket.gethostname(), "elsewhere"))
    monkeypatch.setattr(ownership, "PATIENCE", 0.5)
    with pytest.raises(InputError, match=r"is being written to"):
        own(tmp_path)
    monkeypatch.setattr(ownership, "PATIENCE", 5.0)
    own(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output_dir .*file/run cannot be written to: Not a directory; name another"):
        own(tmp_path / "file" / "run")


# Runs.


def start(encoder: Path, output: Path, log: Path, case: Case = ALONE, sleep: bool = False, **options: Any) -> int:
    """Fork a run; its end, or its error, is in ``log``."""
    pid = os.fork()
    if pid:
        return pid
    try:
        trainer = make_trainer(encoder, output, case, **options)
        if sleep:
            at_step(trainer, 5, lambda: time.sleep(300))  # as a run that hangs
        trainer.train()
        log.write_text(weights_hash(trainer.model))
    except BaseException as error:
        log.write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(0)


def wait(condition: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_of_two_runs_the_second_is_refused_and_the_third_goes_on(encoder_dir: Path, tmp_path: Path) -> None:
    whole = make_trainer(encoder_dir, tmp_path / "whole", ALONE, max_steps=12)
    whole.train()
    output, logs = tmp_path / "run", [tmp_path / f"log-{number}" for number in range(3)]
    first = start(encoder_dir, output, logs[0], sleep=True, max_steps=12, dataloader_num_workers=2)
    try:
        wait(lambda: (output / "checkpoint-4").exists(), 60)
        began = time.monotonic()
        second = start(encoder_dir, output, logs[1], max_steps=12)
        os.waitpid(second, 0)
        assert time.monotonic() - began < 10  # building the trainer included
        assert f"InputError: {output} is being written to by process {first} on host" in logs[1].read_text()
        assert not logs[0].exists()
    finally:
        kill(first)
    third = start(encoder_dir, output, logs[2], max_steps=12)
    os.waitpid(third, 0)
    assert logs[2].read_text() == weights_hash(whole.model)
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-12", "checkpoint-8"]


def test_one_process_trains_twice_and_with_two_trainers(encoder_dir: Path, tmp_path: Path) -> None:
    trainer = make_trainer(encoder_dir, tmp_path, ALONE, max_steps=4)
    trainer.train()
    trainer.train()
    make_trainer(encoder_dir, tmp_path, ALONE, max_steps=4).train()
    broken = make_trainer(encoder_dir, tmp_path, ALONE, max_steps=6)
    with pytest.raises(ValueError, match=r"another run"):
        broken.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def _refused_rank(rank: int, world: int, encoder: str, output: str) -> str:
    trainer = make_trainer(Path(encoder), Path(output), Case(2, batch_size=2))
    try:
        trainer.train()
    except InputError as error:
        return str(error)
    return ""


def test_a_refusal_reaches_every_rank(encoder_dir: Path, tmp_path: Path) -> None:
    with forked(lambda: own(tmp_path)) as pid:
        texts = run_ranks(_refused_rank, 2, str(encoder_dir), str(tmp_path), timeout=60)
    assert len(set(texts)) == 1 and f"is being written to by process {pid}" in texts[0]


def _own_elsewhere(rank: int, world: int, folder: str) -> str:
    run_ownership.SEEN_WITHIN = 0.5
    try:
        own(Path(folder) / str(rank))
    except InputError as error:
        return str(error)
    return "owned"


def test_a_directory_of_each_machine_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    """Each rank wrote its part of a checkpoint into its machine's own; the first one missed them at the first save."""
    said = run_ranks(_own_elsewhere, 2, str(tmp_path))
    for sentence in said:
        assert f"train.output_dir must be one directory for all machines, got {tmp_path}/1, where host " in sentence
        assert "does not find what process " in sentence and "on a file system that all share" in sentence
    assert said[0].startswith("rank 1: ") and not list((tmp_path / "0").iterdir())
