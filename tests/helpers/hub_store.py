"""What the loopback Hub of tests/helpers/hub_server.py stores: repositories with commits, branches, tags and LFS
objects.

A commit is a whole tree, ``path -> Blob``, and never changes; a branch is a name for a commit. A commit request is
checked completely before anything is changed, so a refused one leaves no trace. Object ids are git's own (SHA-1 of
the blob, and for LFS files of their pointer), because huggingface_hub compares them with what it computes itself.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

LFS_PATTERNS = ("*.arrow", "*.bin", "*.h5", "*.model", "*.onnx", "*.parquet", "*.pt", "*.safetensors", "*.zip")
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
LFS_SIZE = 10_000_000  # bytes; larger files go to LFS whatever they are called


class HubError(Exception):
    """An answer other than success: HTTP status, text, and the X-Error-Code by which huggingface_hub tells errors."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """One file of a tree: its git object id, its size in bytes, and for an LFS file the SHA-256 of its content."""

    oid: str
    size: int
    sha256: str | None = None

    @classmethod
    def of(cls, content: bytes, lfs: bool) -> Blob:
        if not lfs:
            return cls(git_oid(content), len(content))
        return cls.of_lfs(hashlib.sha256(content).hexdigest(), len(content))

    @classmethod
    def of_lfs(cls, sha256: str, size: int) -> Blob:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(git_oid(pointer.encode()), size, sha256)

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """A whole tree with its message; ``number`` counts a repository's commits and stands in for the clock."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    number: int
    files: Mapping[str, Blob]

    @property
    def date(self) -> str:
        return f"2024-01-01T{self.number // 3600:02d}:{self.number // 60 % 60:02d}:{self.number % 60:02d}.000Z"


def validate_card(text: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) of a README's metadata, by the rules the Hub applies before it accepts a commit."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", text, re.S)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"], []
    if not isinstance(data, dict):
        return ["metadata should be a mapping"], []
    errors = []
    for key in ("tags", "datasets", "language"):
        value = data.get(key, [])
        if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
            errors.append(f'"{key}" must be a string or an array of strings')
    for key in ("license", "pipeline_tag", "library_name"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    if "model-index" in data:
        errors += _model_index_errors(data["model-index"])
    return errors, []


def _model_index_errors(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            errors.append(f'"model-index[{i}]" needs "name" and "results"')
            continue
        for j, result in enumerate(model["results"]):
            place = f"model-index[{i}].results[{j}]"
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append(f'"{place}.task.type" is required')
            if not all(isinstance(result.get("dataset", {}).get(key), str) for key in ("type", "name")):
                errors.append(f'"{place}.dataset" needs "type" and "name"')
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or not all(
                isinstance(m.get("type"), str) and "value" in m for m in metrics
            ):
                errors.append(f'"{place}.metrics" needs "type" and "value" each')
    return errors


@dataclass
class Repository:
    """A model, dataset or Space repository. ``uploads`` are the LFS objects in storage, committed or not."""

    id: str
    kind: str  # "model", "dataset" or "space"
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # name -> sha; "refs/pr/1" as well
    tags: dict[str, str] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)  # git oid -> bytes of regular files
    uploads: dict[str, bytes] = field(default_factory=dict)  # sha256 -> bytes

    def add_commit(
        self,
        branch: str,
        files: Mapping[str, Blob],
        title: str,
        message: str = "",
        author: str = "system",
        sha: str = "",
    ) -> Commit:
        parent, number = self.branches.get(branch), len(self.commits)
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        sha = sha or hashlib.sha1(f"{self.id} {parent} {number} {title}\n{listing}".encode()).hexdigest()
        commit = Commit(sha, parent, title, message, author, number, dict(sorted(files.items())))
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def put(self, files: Mapping[str, bytes], title: str = "Add files", branch: str = "main", sha: str = "") -> Commit:
        """Commit ``files`` (path -> content) as the server's own author, beside what the branch holds."""
        tree = dict(self.commits[self.branches[branch]].files) if branch in self.branches else {}
        for path, content in files.items():
            lfs = self.upload_mode(path, content[:512], len(content)) == "lfs"
            blob = tree[path] = Blob.of(content, lfs)
            if blob.sha256:
                self.uploads[blob.sha256] = content
            else:
                self.contents[blob.oid] = content
        return self.add_commit(branch, tree, title, sha=sha)

    def resolve(self, revision: str) -> Commit:
        """The commit a branch, tag, pull request reference or commit id stands for."""
        name = revision.removeprefix("refs/heads/")
        sha = self.branches.get(name) or self.tags.get(name) or revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def read(self, blob: Blob) -> bytes:
        return self.uploads[blob.sha256] if blob.sha256 else self.contents[blob.oid]

    def history(self, revision: str) -> Iterator[Commit]:
        commit: Commit | None = self.resolve(revision)
        while commit is not None:
            yield commit
            commit = self.commits.get(commit.parent) if commit.parent else None

    @staticmethod
    def upload_mode(path: str, sample: bytes, size: int) -> str:
        large = size > LFS_SIZE or b"\0" in sample
        return "lfs" if large or any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS) else "regular"

    def commit(self, branch: str, lines: list[dict[str, Any]], author: str, pull_request: bool) -> tuple[Commit, str]:
        """Apply one NDJSON commit request; returns the commit and the reference it is on."""
        header = lines[0]["value"]
        head = self.resolve(branch)
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if header.get("parentCommit") not in (None, head.sha) and not pull_request:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files, contents = dict(head.files), {}
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            path = value["path"]
            if key == "file":
                content = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"]
                content = content.encode() if isinstance(content, str) else content
                if path == "README.md" and (errors := validate_card(content.decode())[0]):
                    raise HubError(400, "Invalid metadata in README.md", errors=[{"message": e} for e in errors])
                files[path] = Blob.of(content, lfs=False)
                contents[files[path].oid] = content
            elif key == "lfsFile":
                if value["oid"] not in self.uploads:
                    raise HubError(400, f'Your push was rejected because an LFS pointer has no content: "{path}"')
                files[path] = Blob.of_lfs(value["oid"], len(self.uploads[value["oid"]]))
            elif key in ("deletedFile", "deletedFolder"):
                gone = [
                    p for p in files if p == path or (key == "deletedFolder" and p.startswith(path.rstrip("/") + "/"))
                ]
                if not gone:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for name in gone:
                    del files[name]
            else:
                raise HubError(400, f"Unknown operation {key!r}")
        self.contents.update(contents)
        if pull_request:
            branch = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in self.branches)}"
            self.branches[branch] = head.sha
        return self.add_commit(branch, files, header["summary"], header.get("description", ""), author), branch

    def tree(self, commit: Commit, folder: str = "", recursive: bool = False) -> list[dict[str, Any]]:
        """The entries of a folder as the ``tree`` and ``paths-info`` endpoints list them."""
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in commit.files.items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = prefix + "/".join(parts[:depth])
                entries.setdefault(name, {"type": "directory", "oid": git_oid(name.encode()), "size": 0, "path": name})
            if recursive or len(parts) == 1:
                entries[path] = self.entry(path, blob)
        if prefix and not entries:
            raise HubError(404, f"{folder} does not exist on {commit.sha}", "EntryNotFound")
        return [entries[name] for name in sorted(entries)]

    @staticmethod
    def entry(path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
        if blob.sha256:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 127 + len(str(blob.size))}
        return entry

    def info(self, commit: Commit, blobs: bool = False) -> dict[str, Any]:
        """What ``model_info`` and ``dataset_info`` read."""
        siblings: list[dict[str, Any]] = []
        for path, blob in commit.files.items():
            sibling: dict[str, Any] = {"rfilename": path}
            if blobs:
                entry = self.entry(path, blob)
                lfs = {**entry["lfs"], "sha256": blob.sha256} if blob.sha256 else None
                sibling |= {"size": blob.size, "blobId": blob.oid} | ({"lfs": lfs} if lfs else {})
            siblings.append(sibling)
        return {
            "_id": hashlib.sha1(self.id.encode()).hexdigest()[:24],
            "id": self.id,
            "modelId": self.id,
            "author": self.id.split("/")[0],
            "sha": commit.sha,
            "lastModified": commit.date,
            "private": self.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
