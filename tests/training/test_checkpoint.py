"""Checkpoints are complete or not there: sealed, published by one rename, verified byte by byte, never lost."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.training import checkpoint, manifest
from piccolo_st.training.manifest import CheckpointError


def write(output: Path, step: int, content: bytes = b"weights", **run: object) -> Path:
    folder = checkpoint.begin(output, step)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "shards").mkdir()
    (folder / "shards" / "rank_0.pt").write_bytes(b"optimizer")
    manifest.seal(folder, run)
    return checkpoint.publish(folder)


def names(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir())


def test_a_written_checkpoint_is_found_with_what_it_says_about_its_run(tmp_path: Path) -> None:
    write(tmp_path, 4)
    final = write(tmp_path, 12, cursor=96)
    found, skipped = checkpoint.newest_complete(tmp_path)
    assert found == manifest.Checkpoint(final, 12, {"cursor": 96})
    assert skipped == []
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-4"]
    files = json.loads((final / "manifest.json").read_text())["files"]
    assert set(files) == {"model.safetensors", "shards/rank_0.pt"}


def test_nothing_is_visible_before_it_is_published(tmp_path: Path) -> None:
    folder = checkpoint.begin(tmp_path, 3)
    (folder / "model.safetensors").write_bytes(b"half")
    assert checkpoint.checkpoints(tmp_path) == []
    manifest.seal(folder, {})
    assert checkpoint.newest_complete(tmp_path) == (None, [])


def test_hidden_folders_cannot_be_guessed_and_take_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        first, second = checkpoint.begin(tmp_path, 3), checkpoint.begin(tmp_path, 3)
    finally:
        os.umask(before)
    assert first != second
    assert stat.S_IMODE(first.stat().st_mode) == stat.S_IMODE(first.parent.stat().st_mode) == 0o750


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "shards" / "rank_0.pt").unlink(), r"shards/rank_0\.pt is missing"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"weigh"),
            r"model\.safetensors has 5 bytes instead of 7",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"weighty"), r"model\.safetensors .* hash differs"),
        (lambda folder: (folder / "manifest.json").unlink(), r"has no manifest\.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest\.json is not JSON \(EOF"),
        (lambda folder: edit(folder, lambda content: content.update(format=2)), r"must be one of 1, got 2"),
        (lambda folder: edit(folder, lambda content: content.pop("files")), r"has no 'files'"),
        (lambda folder: edit(folder, lambda content: content.pop("step")), r"has no 'step'"),
        (lambda folder: edit(folder, lambda content: content.update(files={})), r"holds 'files', which must have"),
        (
            lambda folder: edit(folder, lambda content: content["files"].update({"a\0b": {"size": 0, "sha256": ""}})),
            r"names 'a\\x00b', which is not a path inside",
        ),
        (
            lambda folder: edit(folder, lambda content: content["run"].update(cursor="文")),
            r"holds 'run\.cursor', which must be of type int, got '文'",
        ),
        (
            lambda folder: edit(folder, lambda content: content.update(step=9), digest=True),
            r"is not whole: its manifest\.json is not what was written",
        ),
        (
            lambda folder: edit(folder, lambda content: content["files"].update({"../x": {"size": 0, "sha256": ""}})),
            r"names '\.\./x', which is not a path inside",
        ),
        (
            lambda folder: edit(
                folder, lambda content: content["files"].update({"/etc/passwd": {"size": 0, "sha256": ""}})
            ),
            r"names '/etc/passwd'",
        ),
    ],
)  # fmt: skip
def test_a_damaged_newest_one_is_named_and_the_one_before_is_taken(tmp_path: Path, damage: object, fault: str) -> None:
    whole = write(tmp_path, 4)
    damage(write(tmp_path, 8))  # type: ignore[operator]
    found, skipped = checkpoint.newest_complete(tmp_path)
    assert found is not None and found.path == whole
    assert len(skipped) == 1 and "checkpoint-8" in skipped[0]
    with pytest.raises(CheckpointError, match=fault):
        manifest.verify(tmp_path / "checkpoint-8")


def edit(folder: Path, change: object, digest: bool = False) -> None:
    """Change a manifest, which then has no hash of itself as version 0.1.0 wrote none."""
    content = json.loads((folder / "manifest.json").read_text())
    content = content if digest else {name: value for name, value in content.items() if name != "digest"}
    change(content)  # type: ignore[operator]
    (folder / "manifest.json").write_text(json.dumps(content))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(b"weights")
    final = write(tmp_path / "run", 4)
    (final / "model.safetensors").unlink()
    (final / "model.safetensors").symlink_to(outside)  # same bytes, so only its place is wrong
    with pytest.raises(CheckpointError, match=r"leads out of the checkpoint"):
        manifest.verify(final)
    folder = checkpoint.begin(tmp_path / "run", 5)
    (folder / "link").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"leads out of the checkpoint"):
        manifest.seal(folder, {})


@given(st.text(max_size=20), st.sampled_from(["", "..", "../..", "/", "a/../..", "\\"]))
def test_no_name_in_a_manifest_leaves_the_folder(name: str, prefix: str) -> None:
    folder = Path("/nowhere/checkpoint-1")
    try:
        path = manifest._inside(folder, f"{prefix}/{name}" if prefix else name)
    except (CheckpointError, ValueError):  # ValueError: a null byte, which no file system takes
        return
    assert path.resolve().is_relative_to(folder)


def test_missing_parts_are_an_error_and_no_manifest_is_written(tmp_path: Path) -> None:
    folder = checkpoint.begin(tmp_path, 4)
    (folder / "rng_state_0.pth").write_bytes(b"state")
    with pytest.raises(CheckpointError, match=r"checkpoint-4 lacks rng_state_1\.pth, x/\*_0\.pt"):
        manifest.seal(folder, {}, ["rng_state_0.pth", "rng_state_1.pth", "x/*_0.pt"])
    assert not (folder / "manifest.json").exists()


def test_a_second_checkpoint_of_a_step_takes_the_place_of_the_first(tmp_path: Path) -> None:
    write(tmp_path, 4, b"first")
    final = write(tmp_path, 4, b"second")
    assert (final / "model.safetensors").read_bytes() == b"second"
    assert manifest.verify(final).step == 4
    assert names(tmp_path) == ["checkpoint-4"]


def test_recover_removes_leftovers_and_undoes_half_a_replacement(tmp_path: Path) -> None:
    write(tmp_path, 4)
    final = write(tmp_path, 8)
    checkpoint.begin(tmp_path, 12)
    final.rename(tmp_path / ".checkpoint-8.0123456789abcdef.replaced")  # killed before its successor arrived
    (tmp_path / ".checkpoint-2.0123456789abcdef.deleted").mkdir()
    (tmp_path / ".checkpoint-9.mine").mkdir()
    checkpoint.recover(tmp_path)
    assert names(tmp_path) == [".checkpoint-9.mine", "checkpoint-4", "checkpoint-8"]
    assert manifest.verify(final).step == 8
    checkpoint.recover(tmp_path / "not there")


def test_rotation_counts_only_complete_ones_and_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    best, *_ = (write(tmp_path, step) for step in (1, 2, 3, 4))
    for step in (2, 3, 4):
        write(tmp_path, step)
    broken = write(tmp_path, 9)
    (broken / "model.safetensors").unlink()
    assert checkpoint.rotate(tmp_path, None) == checkpoint.rotate(tmp_path, 0) == []
    assert [path.name for path in checkpoint.rotate(tmp_path, 2, keep=[best])] == ["checkpoint-2", "checkpoint-3"]
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4", "checkpoint-9"]
    assert [path.name for path in checkpoint.rotate(tmp_path, 1)] == ["checkpoint-1"]
    assert checkpoint.rotate(tmp_path, 1) == []  # checkpoint-4 is the last complete one
    found, _ = checkpoint.newest_complete(tmp_path)
    assert found is not None and found.step == 4


@given(st.sets(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 4), st.data())
def test_rotation_never_removes_the_last_complete_one(steps: set[int], limit: int, data: st.DataObject) -> None:
    import tempfile

    broken = data.draw(st.sets(st.sampled_from(sorted(steps))))
    with tempfile.TemporaryDirectory() as name:
        output = Path(name)
        for step in steps:
            folder = write(output, step)
            if step in broken:
                (folder / "model.safetensors").unlink()
        checkpoint.rotate(output, limit)
        whole = sorted(steps - broken)
        found, _ = checkpoint.newest_complete(output)
        assert (found.step if found else None) == (whole[-1] if whole else None)
        left = {int(path.name.split("-")[1]) for path in checkpoint.checkpoints(output)}
        assert left == broken | set(whole[-limit:])


def test_setting_aside_keeps_everything(tmp_path: Path) -> None:
    assert checkpoint.set_aside(tmp_path) is None
    write(tmp_path, 4)
    assert checkpoint.set_aside(tmp_path) == tmp_path / "earlier-1"
    write(tmp_path, 4)
    assert checkpoint.set_aside(tmp_path) == tmp_path / "earlier-2"
    assert manifest.verify(tmp_path / "earlier-1" / "checkpoint-4").step == 4
    assert checkpoint.checkpoints(tmp_path) == []
