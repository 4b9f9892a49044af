"""A Hugging Face Hub on loopback for tests: standard library (and PyYAML) only, in threads of the test's process.

It speaks what the tests ask through huggingface_hub 2.x and datasets 5.x: repositories (create, settings, info), README
validation, preupload, LFS batch / upload / verify, the NDJSON commit with its parent check, pull requests, tags,
branches, tree, paths-info, resolve with ETag and X-Repo-Commit, whoami. LFS content lives behind a second port, as it
lives on other hosts in reality, so that a token sent to storage can be seen. No Xet, no gating.

    with HubServer(users={"hf_secret": User("alice", orgs=("sensenova",))}) as hub:
        hub.add_repo("C-MTEB/AFQMC", {"data/test.jsonl": b"..."}, kind="dataset", sha="b44c3b01...")
        HfApi(endpoint=hub.url, token="hf_secret")                        # in this process, or
        subprocess.run([...], env=hub.environment(home, token="hf_secret"))  # for code that reads HF_ENDPOINT
        hub.fail("commit", status=500, times=1)                          # the next commit request fails
        [call.route for call in hub.calls]                               # what was asked, and how it ended
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.hub_routes import ROUTES, STORAGE, WRITES, Answer, Endpoints, User
from tests.helpers.hub_store import GITATTRIBUTES, HubError, Repository


@dataclass
class Call:
    """One request as it was answered. ``token`` says whether one was sent, and never which."""

    route: str
    method: str
    path: str
    user: str | None
    token: bool
    status: int = 0
    fault: str = ""


@dataclass
class Fault:
    """What goes wrong with requests to ``route``: after ``skip`` of them, for the next ``times`` (None: for good).

    ``how`` is one of: "status" (answer with ``status`` and ``headers``), "drop" (close the connection unread),
    "drop_after" (do the work, then close without an answer), "cut_upload" (close in the middle of the request
    body), "short_upload" (storage keeps half of the body and says it has it all), "cut_download" (close in the middle
    of the answer's body), "corrupt" (answer with one bit of the body flipped), "stall" (take the request and never
    answer), "drip" (answer with a byte every 0.1 s, padded with blanks that JSON ignores), "drip_upload" (take the body
    as slowly), "reset" (answer with a TCP reset).
    """

    route: str
    how: str = "status"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int | None = 1
    skip: int = 0

    def strikes(self, route: str) -> bool:
        if route != self.route or self.times == 0:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def __str__(self) -> str:
        return str(self.status) if self.how == "status" else self.how


LOOPBACK = "127.0.0.1,localhost"  # never asked for through a proxy


class HubServer:
    """The server; a context manager. ``users`` maps tokens to users; without any, repositories are read-only."""

    def __init__(self, users: Mapping[str, User] | None = None, port: int = 0) -> None:
        self.users = dict(users or {})
        self.repos: dict[tuple[str, str], Repository] = {}
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.before: dict[str, Callable[[], object]] = {}  # route -> what happens just before it is answered, once
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", p), handler) for p in (port, 0)]
        own, storage = (server.server_address[1] for server in self._servers)
        # Under another name, as the Hub's is: huggingface_hub before 2.1 tells hosts apart by it and not by the port.
        self.url, self.storage_url = f"http://127.0.0.1:{own}", f"http://localhost:{storage}"

    def __enter__(self) -> HubServer:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes], *, kind: str = "model", private: bool = False, sha: str = ""
    ) -> Repository:
        """Make a repository whose main branch holds ``files``, at commit ``sha`` where a caller pins one."""
        repo = self.repos[kind, repo_id] = Repository(repo_id, kind, private)
        repo.put({".gitattributes": GITATTRIBUTES.encode()}, "initial commit")
        repo.put(files, sha=sha)
        return repo

    def fail(self, route: str, how: str = "status", **fields: Any) -> Fault:
        """Add a fault; see Fault."""
        self.faults.append(Fault(route, how, **fields))
        return self.faults[-1]

    def environment(self, home: Path | str, token: str | None = None) -> dict[str, str]:
        """os.environ for a child process that uses this Hub, with its caches below ``home``."""
        removed = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE")
        env = {key: value for key, value in os.environ.items() if key not in removed}
        env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK}
        return env | ({"HF_TOKEN": token} if token else {})


class _Handler(Endpoints, BaseHTTPRequestHandler):
    """Routes a request, logs it, applies faults, checks access, and sends what the endpoint answers."""

    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.commit_sha = ""  # one handler answers every request of a kept-alive connection
        self.where, route = {}, "unknown"
        for name, method, pattern in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and method == ("GET" if self.command == "HEAD" else self.command):
                self.where = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                route = name
                break
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = self.hub.users.get(token)
        seen_as = f"{route}_head" if self.command == "HEAD" else route
        call = Call(seen_as, self.command, self.path, self.user.name if self.user else None, bool(token))
        with self.hub.lock:
            self.hub.calls.append(call)
            fault = next((fault for fault in self.hub.faults if fault.strikes(seen_as)), None)
        call.fault = str(fault) if fault else ""
        how, length = fault.how if fault else "", int(self.headers.get("Content-Length", 0))
        if how == "stall":
            return self._wait_for_hang_up()
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            os.dup2(os.open(os.devnull, os.O_RDWR), self.connection.fileno())  # closes it without a word of farewell
            return None
        if how == "drip_upload":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            with contextlib.suppress(OSError):
                while self.rfile.read(1):
                    time.sleep(0.1)
            return None
        if how in ("drop", "cut_upload"):
            self.rfile.read(length // 2 if how == "cut_upload" else 0)
            return self._hang_up()
        self.body = self.rfile.read(length)
        if how == "short_upload":
            self.body = self.body[: length // 2]
        answer = self._answer(route, bool(token), fault)
        call.status = answer.status
        if how == "drop_after":
            return self._hang_up()
        self._send(answer, how)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _answer(self, route: str, sent_token: bool, fault: Fault | None) -> Answer:
        try:
            if fault and fault.how == "status":
                raise HubError(fault.status, f"injected fault {fault.status}")
            if route == "unknown":
                raise HubError(404, f"no such endpoint: {self.command} {self.path}")
            if sent_token and self.user is None and route not in STORAGE:
                raise HubError(401, "Invalid credentials in Authorization header")
            if route in self.hub.before:  # outside the lock: it may well be a request of its own
                self.hub.before.pop(route)()
            with self.hub.lock:
                if route in WRITES:
                    self.check_write(self.repository().id)
                return getattr(self, route)()
        except HubError as error:
            headers = {"X-Error-Message": error.message.splitlines()[0]}
            headers |= {"X-Error-Code": error.code} if error.code else {}
            headers |= {"X-Repo-Commit": self.commit_sha} if self.commit_sha else {}
            headers |= dict(fault.headers) if fault else {}
            return Answer({"error": error.message, **error.body}, error.status, headers)

    def _wait_for_hang_up(self) -> None:
        """Until the client has had enough."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            while self.connection.recv(1 << 16):
                pass

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: Answer, how: str) -> None:
        raw = isinstance(answer.body, bytes)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        if how == "corrupt" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        if how == "drip":
            body = body.ljust(1000)
        headers = {"Content-Type": "application/octet-stream" if raw else "application/json; charset=utf-8"}
        self.send_response(answer.status)
        for key, value in {**headers, "Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if how == "drip":
            with contextlib.suppress(OSError):  # the client has had enough
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
            return
        self.wfile.write(body[: len(body) // 2] if how == "cut_download" else body)
        if how == "cut_download":
            self.wfile.flush()
            self._hang_up()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: ``calls`` is the log."""
