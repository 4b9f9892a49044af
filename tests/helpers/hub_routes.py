"""The endpoints of the loopback Hub: the table of routes, and for each a method that answers it.

``Endpoints`` knows nothing of sockets: tests/helpers/hub_server.py sets ``hub``, ``where`` (what the path's groups
matched), ``query``, ``headers``, ``body`` and ``user`` before it calls the method named after the route.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from tests.helpers.hub_store import GITATTRIBUTES, HubError, Repository, validate_card

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer

API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+|[^/]+)"
GIT = r"/(?:(?P<prefix>dataset|space)s/)?(?P<repo>[^/]+/[^/]+|[^/]+)"
ROUTES = [  # (name of the route and of the method that answers it, HTTP method, path); first match wins
    ("whoami", "GET", r"/api/whoami-v2"),
    ("validate_yaml", "POST", r"/api/validate-yaml"),
    ("create_repo", "POST", r"/api/repos/create"),
    ("tree", "GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?"),
    ("paths_info", "POST", API + r"/paths-info/(?P<revision>[^/]+)"),
    ("commits", "GET", API + r"/commits/(?P<revision>[^/]+)"),
    ("preupload", "POST", API + r"/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", API + r"/commit/(?P<revision>[^/]+)"),
    ("create_tag", "POST", API + r"/tag/(?P<revision>[^/]+)"),
    ("create_branch", "POST", API + r"/branch/(?P<name>[^/]+)"),
    ("refs", "GET", API + r"/refs"),
    ("settings", "PUT", API + r"/settings"),
    ("info", "GET", API + r"/revision/(?P<revision>[^/]+)"),
    ("info", "GET", API),
    ("lfs_batch", "POST", GIT + r"\.git/info/lfs/objects/batch"),
    ("resolve", "GET", GIT + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    ("lfs_verify", "POST", r"/lfs-verify/(?P<kind>\w+)/(?P<repo>.+)"),
    ("lfs_upload", "PUT", r"/storage/(?P<kind>\w+)/(?P<repo>.+)/(?P<sha256>[0-9a-f]{64})"),
    ("lfs_download", "GET", r"/storage/(?P<kind>\w+)/(?P<repo>.+)/(?P<sha256>[0-9a-f]{64})"),
]
WRITES = {"preupload", "lfs_batch", "commit", "create_tag", "create_branch", "settings"}
STORAGE = {"lfs_upload", "lfs_download"}  # answered without a token, behind the second port


@dataclass(frozen=True)
class User:
    """Who a token belongs to, where it may create and write (its own name and ``orgs``), and whether at all."""

    name: str
    orgs: Sequence[str] = ()
    write: bool = True

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.orgs)


@dataclass
class Answer:
    body: bytes | dict[str, Any] | list[Any] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Endpoints:
    """What every endpoint answers, and who may ask."""

    hub: HubServer
    where: dict[str, str]
    query: dict[str, str]
    headers: Any
    body: bytes
    user: User | None
    commit_sha: str = ""

    def check_write(self, repo_id: str) -> None:
        """Refuse whoever may not write to ``repo_id``."""
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if not (self.user.write and self.user.owns(repo_id)):
            raise HubError(403, f"You don't have the required permissions to write to {repo_id}")

    def repository(self) -> Repository:
        """The repository of the request, if the user may know of it."""
        kind = self.where.get("kind") or self.where.get("prefix", "model")
        repo = self.hub.repos.get((kind, self.where["repo"]))
        if repo is not None and (not repo.private or (self.user is not None and self.user.owns(repo.id))):
            return repo
        if self.user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def stored(self) -> Repository:
        """The repository of a storage request, whose signed address is permission enough."""
        return self.hub.repos[self.where["kind"], self.where["repo"]]

    def payload(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    # ------------------------------------------------------------------------------------------------ routes
    def whoami(self) -> Answer:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        role = "write" if self.user.write else "read"
        orgs = [{"type": "org", "name": org, "roleInOrg": role} for org in self.user.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return Answer({"type": "user", "name": self.user.name, "orgs": orgs, "auth": auth})

    def validate_yaml(self) -> Answer:
        errors, warnings = validate_card(self.payload()["content"])
        body = {
            key: [{"message": text} for text in texts] for key, texts in (("errors", errors), ("warnings", warnings))
        }
        return Answer(body, 400 if errors else 200)

    def create_repo(self) -> Answer:
        asked = self.payload()
        kind, user = asked.get("type") or "model", self.user
        name = f"{asked.get('organization') or (user.name if user else '')}/{asked['name']}"
        self.check_write(name)
        url = f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{name}"
        if (kind, name) in self.hub.repos:
            raise HubError(409, f"You already created this {kind} repo", url=url)
        if kind == "space" and asked.get("sdk") not in ("gradio", "docker", "static"):
            raise HubError(400, "a Space needs an sdk")
        repo = self.hub.repos[kind, name] = Repository(name, kind, asked.get("visibility") == "private")
        repo.put({".gitattributes": GITATTRIBUTES.encode()}, "initial commit")
        return Answer({"url": url, "name": name, "id": name})

    def settings(self) -> Answer:
        self.repository().private = self.payload().get("visibility") == "private"
        return Answer({})

    def info(self) -> Answer:
        repo = self.repository()
        return Answer(repo.info(repo.resolve(self.where.get("revision", "main")), "blobs" in self.query))

    def tree(self) -> Answer:
        repo = self.repository()
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        return Answer(repo.tree(repo.resolve(self.where["revision"]), self.where.get("path", ""), recursive))

    def paths_info(self) -> Answer:
        repo, asked = self.repository(), parse_qs(self.body.decode())
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = self.payload()
        entries = repo.tree(repo.resolve(self.where["revision"]), recursive=True)
        return Answer([entry for entry in entries if entry["path"] in asked.get("paths", [])])

    def commits(self) -> Answer:
        return Answer(
            [
                {"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
                for c in self.repository().history(self.where["revision"])
            ]
        )

    def refs(self) -> Answer:
        repo = self.repository()
        found: dict[str, list[Any]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for name, sha in repo.branches.items():
            pull = name.startswith("refs/pr/")
            ref = {"name": name.removeprefix("refs/pr/"), "ref": name if pull else f"refs/heads/{name}"}
            found["pullRequests" if pull else "branches"].append({**ref, "targetCommit": sha})
        for name, sha in repo.tags.items():
            found["tags"].append({"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha})
        return Answer(found)

    def preupload(self) -> Answer:
        repo = self.repository()
        held = repo.resolve(self.where["revision"]).files
        answers = []
        for file in self.payload()["files"]:
            sample = base64.b64decode(file["sample"])
            answer = {"path": file["path"], "uploadMode": repo.upload_mode(file["path"], sample, file["size"])}
            answer |= {"shouldIgnore": False}
            if file["path"] in held:
                answer["oid"] = held[file["path"]].etag
            answers.append(answer)
        return Answer({"files": answers})

    def lfs_batch(self) -> Answer:
        repo, objects = self.repository(), []
        at = f"{repo.kind}/{repo.id}"
        for item in self.payload()["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if len(repo.uploads.get(item["oid"], b"")) != item["size"]:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.storage_url}/storage/{at}/{item['oid']}?signature=x"},
                    "verify": {"href": f"{self.hub.url}/lfs-verify/{at}"},
                }
            objects.append(answer)
        return Answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self) -> Answer:
        self.stored().uploads[self.where["sha256"]] = self.body
        return Answer(headers={"ETag": f'"{self.where["sha256"]}"'})

    def lfs_verify(self) -> Answer:
        asked = self.payload()
        if len(self.stored().uploads.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(422, "The uploaded object has another size than announced")
        return Answer({})

    def commit(self) -> Answer:
        repo, wants_pr = self.repository(), "create_pr" in self.query
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        assert self.user is not None  # check_write saw to it
        commit, ref = repo.commit(self.where["revision"], lines, self.user.name, wants_pr)
        answer = {
            "success": True,
            "commitOid": commit.sha,
            "commitUrl": f"{self.hub.url}/{repo.id}/commit/{commit.sha}",
        }
        if wants_pr:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo.id}/discussions/{ref.removeprefix('refs/pr/')}"
        return Answer(answer)

    def create_tag(self) -> Answer:
        repo, tag = self.repository(), self.payload()["tag"]
        commit = repo.resolve(self.where["revision"])
        if tag in repo.tags:
            raise HubError(409, f"Tag reference already exists: refs/tags/{tag}")
        repo.tags[tag] = commit.sha
        return Answer({})

    def create_branch(self) -> Answer:
        repo, name = self.repository(), self.where["name"]
        if name in repo.branches:
            raise HubError(409, f"Reference already exists: {name}")
        repo.branches[name] = repo.resolve(self.payload().get("startingPoint", "main")).sha
        return Answer({})

    def resolve(self) -> Answer:
        repo = self.repository()
        commit = repo.resolve(self.where["revision"])
        self.commit_sha = commit.sha
        blob = commit.files.get(self.where["path"])
        if blob is None:
            raise HubError(404, f"Entry not found: {self.where['path']}", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.sha256:
            location = f"{self.hub.storage_url}/storage/{repo.kind}/{quote(repo.id)}/{blob.sha256}?signature=x"
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size), "Location": location}
            return Answer(b"", 302, headers)
        return self._range(repo.read(blob), headers)

    def lfs_download(self) -> Answer:
        return self._range(self.stored().uploads[self.where["sha256"]], {"ETag": f'"{self.where["sha256"]}"'})

    def _range(self, content: bytes, headers: dict[str, str]) -> Answer:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            return Answer(content, 200, headers)
        start, end = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
        if start >= len(content):
            raise HubError(416, "Requested range not satisfiable")
        part = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return Answer(content[start : end + 1], 206, headers | part)
