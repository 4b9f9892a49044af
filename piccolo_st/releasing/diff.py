"""What a release would change on the Hub: every file against the remote, and the state that was seen."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from piccolo_st.tables import table

# Weights in another format that some consumer would prefer to the released ones.
_WEIGHTS = ("*.bin", "*.safetensors", "*.h5", "*.msgpack", "*.onnx", "*.ckpt", "*.pt")


@dataclass(frozen=True)
class FileChange:
    """A file of the release: its size in bytes and what it is to the remote ("new", "changed", "unchanged")."""

    path: str
    size: int
    change: str


@dataclass(frozen=True)
class RemoteDiff:
    """A release against the remote as it was at ``head``.

    Attributes:
        repo_id: the repository.
        revision: the branch that is released to.
        exists: whether the repository is there.
        head: the commit at the tip of the branch, or None while the repository or the branch is not there.
        private: whether the repository is private; None while it is not there.
        files: the files of the release, in order.
        deleted: remote files that the release deletes.
        kept: remote files that the release does not have and leaves as they are.
        tagged: the commit that the wanted tag stands on already, if any.
        repo_type: "model" or "space".
    """

    repo_id: str
    revision: str
    exists: bool
    head: str | None
    private: bool | None
    files: tuple[FileChange, ...]
    deleted: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    tagged: str | None = None
    repo_type: str = "model"

    @property
    def sent(self) -> list[str]:
        """The paths that differ from the remote."""
        return [file.path for file in self.files if file.change != "unchanged"]

    @property
    def done(self) -> bool:
        """Whether the branch holds the release already."""
        return self.head is not None and not self.sent and not self.deleted

    def __str__(self) -> str:
        state = "does not exist yet" if not self.exists else "private" if self.private else "public"
        at = f", {self.revision} at {self.head[:8]}" if self.head else ""
        rows = [[file.change, f"{file.size:,}", file.path] for file in self.files]
        rows += [["deleted", "", path] for path in self.deleted] + [["only there", "", path] for path in self.kept]
        size = sum(file.size for file in self.files if file.change != "unchanged")
        kind = "Space " if self.repo_type == "space" else ""
        lines = [f"{kind}{self.repo_id} ({state}{at})", "", table(["change", "bytes", "file"], rows), ""]
        lines.append(
            f"{len(self.sent)} of {len(self.files)} files differ, {size:,} bytes; {len(self.deleted)} deleted."
        )
        stale = [path for path in self.kept if any(fnmatch.fnmatch(path, pattern) for pattern in _WEIGHTS)]
        if stale:
            lines.append(
                f"Note: {', '.join(stale)} would stay; other weights than the released ones may be loaded from there. "
                "Delete them with --delete PATTERN."
            )
        if results := [path for path in self.kept if path.startswith(".eval_results/")]:
            lines.append(
                f"Note: {', '.join(results)} would stay, and the Hub shows them as results of the released weights. "
                "Where they were measured on others, delete them with --delete '.eval_results/*'."
            )
        return "\n".join(lines)


def diff_remote(
    api: HfApi,
    folder: Path,
    files: Sequence[str],
    repo_id: str,
    *,
    revision: str = "main",
    tag: str | None = None,
    delete: Sequence[str] = (),
    repo_type: str = "model",
) -> RemoteDiff:
    """Compare the files with the remote by the hashes the Hub keeps; downloads nothing."""
    exists, head, private, tagged = True, None, None, None
    remote: dict[str, RepoFile] = {}
    try:
        private = api.repo_info(repo_id, repo_type=repo_type).private
        refs = api.list_repo_refs(repo_id, repo_type=repo_type)
        tagged = next((ref.target_commit for ref in refs.tags if ref.name == tag), None)
        head = next((ref.target_commit for ref in refs.branches if ref.name == revision), None)
        remote = remote_files(api, repo_id, head, repo_type)
    except RepositoryNotFoundError:
        exists = False
    others = [path for path in remote if path not in files and path != ".gitattributes"]
    deleted = tuple(path for path in others if any(fnmatch.fnmatch(path, pattern) for pattern in delete))
    kept = tuple(path for path in others if path not in deleted)
    changes = file_changes(folder, files, remote)
    return RemoteDiff(repo_id, revision, exists, head, private, changes, deleted, kept, tagged, repo_type)


def remote_files(api: HfApi, repo_id: str, commit: str | None, repo_type: str = "model") -> dict[str, RepoFile]:
    """The files of a commit by path; none where there is no commit."""
    if commit is None:
        return {}
    entries = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def file_changes(folder: Path, files: Sequence[str], remote: Mapping[str, RepoFile]) -> tuple[FileChange, ...]:
    """Every file of the release against the remote ones, by size and by the hash that the Hub keeps."""
    changes = []
    for name in files:
        change = "new" if name not in remote else "unchanged" if _same(folder / name, remote[name]) else "changed"
        changes.append(FileChange(name, (folder / name).stat().st_size, change))
    return tuple(changes)


def _same(path: Path, remote: RepoFile) -> bool:
    if path.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        return sha256(path) == remote.lfs.sha256
    return git_hash(path.read_bytes()) == remote.blob_id


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as the Hub names its large files."""
    with path.open("rb") as file:
        return sha_fileobj(file).hex()


def describe_movement(api: HfApi, diff: RemoteDiff, seen: str | None, now: str | None) -> str:
    """What happened on the branch since it was looked at: the commits and the files they changed, in a sentence."""
    repo_id, revision, repo_type = diff.repo_id, diff.revision, diff.repo_type
    titles = []
    for commit in api.list_repo_commits(repo_id, revision=revision, repo_type=repo_type) if now else []:
        if commit.commit_id == seen:
            break
        titles.append(f"{commit.commit_id[:8]} {commit.title!r} by {', '.join(commit.authors)}")
    try:
        before = {path: file.blob_id for path, file in remote_files(api, repo_id, seen, repo_type).items()}
    except RevisionNotFoundError:  # the branch was rewritten, and that commit is gone
        before = {}
    after = {path: file.blob_id for path, file in remote_files(api, repo_id, now, repo_type).items()}
    files = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return (
        f"{revision} of {repo_id} moved from {(seen or 'nothing')[:8]} to {(now or 'nothing')[:8]} since it was "
        f"looked at ({'; '.join(titles) or 'history rewritten'}; files: {', '.join(files) or 'none'})"
    )
