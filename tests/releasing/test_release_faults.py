"""Every request of a release fails in turn: a branch never shows half of it, the same command completes it.

Run with ``-s`` for the table: request, fault, what the first command came to, what the second one came to.
"""

from __future__ import annotations

import io
import logging
import re
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version

from piccolo_st import tables
from piccolo_st.modeling import release_files
from piccolo_st.releasing.checks import ReleaseChecks
from piccolo_st.releasing.publish import ReleaseError, release
from tests.helpers.hub_clients import HUB_VERSION, REPO, TOKEN
from tests.helpers.hub_server import Call, HubServer

pytest_plugins = ["tests.helpers.hub_clients"]

MODULE = "piccolo_st.releasing.publish"
BODIES = {"POST", "PUT"}
DOWNLOADS = {"resolve", "lfs_download"}
_NO_ANSWER: set[str] = set()


@dataclass(frozen=True)
class Case:
    """A fault at the ``skip``-th request (from 0) to a route of a release, and at every one after it."""

    route: str
    skip: int
    how: str
    status: int = 500

    @property
    def fault(self) -> str:
        return f"{self.status}" if self.how == "status" else self.how


def release_once(model_dir: Path, said: list[str], **options: float) -> None:
    release(model_dir, REPO, push=True, private=False, tag="v1.0", say=said.append, **options)


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the libraries that see the token log at the most talkative level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx2", "httpcore2", "piccolo_st")]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    yield stream
    for logger, level, propagate in before:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded: test_publish.py has the checks."""
    monkeypatch.setattr(
        f"{MODULE}.check_release", lambda folder, *args, **kwargs: ReleaseChecks(tuple(release_files(folder)), ())
    )
    monkeypatch.setattr(f"{MODULE}.embed", lambda path: np.zeros(1))


@pytest.fixture
def quick(light: None, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No waiting between retries; the waits are returned."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def cases_of(calls: list[Call], only: str | None) -> list[Case]:
    """Every request of a release that went well (to one route, or to any), with every fault that can befall it."""
    cases, seen = [], {}
    for call in calls:
        skip = seen[call.route] = seen.get(call.route, -1) + 1
        if only not in (None, call.route):
            continue
        if call.route in ("resolve_head", "resolve", "lfs_download") and skip > 0:
            continue  # one file's download stands for all
        cases += [Case(call.route, skip, "status", status) for status in (500, 401, 403, 409, 413, 429)]
        cases += [Case(call.route, skip, "drop"), Case(call.route, skip, "drop_after")]
        if call.method in BODIES:
            cases.append(Case(call.route, skip, "cut_upload"))
        if call.route == "lfs_upload":
            cases.append(Case(call.route, skip, "short_upload"))
        if call.route in DOWNLOADS:
            cases += [Case(call.route, skip, "cut_download"), Case(call.route, skip, "corrupt")]
    return cases


def state_of(hub: HubServer, files: set[str]) -> str:
    """What the branch shows: nothing, or the whole release; anything between fails the test."""
    repo = hub.repos.get(("model", REPO))
    if repo is None:
        return "no repository"
    shown = set(repo.resolve("main").files) - {".gitattributes"}
    assert shown in (set(), files), f"half a release is visible: {shown}"
    assert repo.private or (shown == files and repo.tags), "public before it was complete"
    assert set(repo.tags.values()) <= {repo.branches["main"]} and (shown or not repo.tags)
    assert len(repo.commits) == 1 + bool(shown), "a commit too many"
    return "main complete" if shown else "main untouched"


@pytest.fixture
def small_model(released_model: Path, tmp_path: Path) -> Path:
    """One file of each kind (card, small, large): enough for every request that a release makes."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("README.md", "config.json", "model.safetensors"):
        shutil.copyfile(released_model / name, folder / name)
    return folder


TIMEOUT, DEADLINE, LAST_SLEEP = 0.5, 2.0, 8.0
WAITS = {
    "stall": r"(the Hub was silent for 0\.5 s|the deadline of 2 s passed), at ",
    "drip": r"the deadline of 2 s passed, at ",
    "drip_upload": r"(the Hub was silent for 0\.5 s|the deadline of 2 s passed), at ",
    "reset": r"(reset by peer|disconnected|the deadline of 2 s passed).*, at ",
    "cut_download": r"(peer closed connection|the deadline of 2 s passed).*, at |could not be read|different",
    "status": r"the Hub asks to wait 100,000 s, until \d{4}-\d\d-\d\d \d\d:\d\d, before ",
}


def waits_of(calls: list[Call]) -> list[Case]:
    """Every kind of request of a release, with everything that would keep it waiting."""
    first = {call.route: call for call in reversed(calls)}
    cases = []
    for route, call in first.items():
        hows = ["stall", "reset", "status"]
        hows += ["drip", "cut_download"] if call.method != "HEAD" and route not in _NO_ANSWER else []
        hows += ["drip_upload"] if route == "lfs_upload" else []
        cases += [Case(route, 0, how, 429) for how in hows]
    return cases


@pytest.mark.timeout(900)
@pytest.mark.parametrize("only", ["commit", pytest.param(None, marks=pytest.mark.slow)])
def test_no_request_of_a_release_waits_for_ever(
    hub: HubServer, small_model: Path, light: None, capfd: pytest.CaptureFixture[str], only: str | None
) -> None:
    release_once(small_model, [])
    calls = [call for call in hub.calls if call.status]
    files = set(hub.repos["model", REPO].resolve("main").files) - {".gitattributes"}
    rows = []
    for case in waits_of(calls):
        if only not in (None, case.route):
            continue
        hub.repos.clear()
        hub.calls.clear()
        hub.fail(case.route, case.how, status=429, headers={"Retry-After": "100000"}, times=None)
        start = time.monotonic()
        try:
            release_once(small_model, [], timeout=TIMEOUT, deadline=DEADLINE)
            said = "went on"
        except ReleaseError as error:
            said = str(error)
            assert re.search(WAITS[case.how], said) and "Run the same command again" in said, (case, said)
        seconds = time.monotonic() - start
        assert seconds < DEADLINE + LAST_SLEEP, (case, seconds)
        assert any(call.fault for call in hub.calls), f"{case} never struck"
        rows.append([case.route, case.fault, f"{seconds:.1f}", state_of(hub, files), said[:60]])
        hub.faults.clear()
        release_once(small_model, [])
        assert state_of(hub, files) == "main complete" and hub.repos["model", REPO].tags
    assert len(rows) >= (5 if only else 60)
    with capfd.disabled():
        print(f"\n{tables.table(['request', 'fault', 'seconds', 'the branch', 'said'], rows)}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("only", ["commit", pytest.param(None, marks=pytest.mark.slow)])
def test_every_request_of_a_release_may_fail(
    hub: HubServer,
    small_model: Path,
    quick: list[float],
    logged: io.StringIO,
    capfd: pytest.CaptureFixture[str],
    only: str | None,
) -> None:
    said: list[str] = []
    release_once(small_model, said)
    calls = [call for call in hub.calls if call.status]
    files = set(hub.repos["model", REPO].resolve("main").files) - {".gitattributes"}
    assert state_of(hub, files) == "main complete" and not hub.repos["model", REPO].private
    cases = cases_of(calls, only)
    rows = []
    for case in cases:
        hub.repos.clear()
        hub.calls.clear()
        quick.clear()
        headers = {"Retry-After": "7"} if case.status == 429 else {}
        hub.faults = []
        hub.fail(case.route, case.how, status=case.status, headers=headers, skip=case.skip, times=None)
        try:
            release_once(small_model, said)
            first = "went on"
        except ReleaseError as error:
            said += [str(error), "".join(traceback.format_exception(error))]
            assert "Run the same command again" in str(error) or "came back different" in str(error), str(error)
            first = "stopped"
        assert any(call.fault for call in hub.calls), f"{case} never struck"
        first = f"{first}, {state_of(hub, files)}"
        if case.status == 429 and 8.0 not in quick and "wait 7 s, until" not in said[-2]:
            pytest.fail(f"Retry-After was not heeded or passed on: {case}, {quick}, {said[-2]}")
        hub.faults.clear()
        uploads = [call for call in hub.calls if call.route == "lfs_upload" and call.status == 200 and not call.fault]
        hub.calls.clear()
        release_once(small_model, said)
        repo = hub.repos["model", REPO]
        assert state_of(hub, files) == "main complete" and not repo.private
        assert repo.tags == {"v1.0": repo.branches["main"]}
        assert all(repo.read(repo.resolve("main").files[name]) == (small_model / name).read_bytes() for name in files)
        sent = [call.route for call in hub.calls].count("lfs_upload")
        assert sent == 0 or not uploads, f"{case}: what was there already was sent again"
        rows.append([f"{case.route} {case.skip + 1}", case.fault, first, f"completed, {sent} uploads"])
    printed = capfd.readouterr()
    for text in (*said, logged.getvalue(), printed.out, printed.err):
        assert TOKEN not in text
    assert "PUT" in logged.getvalue(), "nothing was logged, so nothing was searched"
    assert len(rows) == len(cases) >= (9 if only else 100)
    with capfd.disabled():
        print(f"\n{tables.table(['request', 'fault', 'the command', 'the same command again'], rows)}")


def test_a_passing_fault_is_retried_in_the_same_command(hub: HubServer, small_model: Path, quick: list[float]) -> None:
    """What huggingface_hub retries itself does not even stop the first command."""
    listing = ("tree",) if Version("2.1") <= HUB_VERSION else ()  # it was not retried before
    for route in (*listing, "preupload", "lfs_batch", "lfs_upload", "lfs_verify"):
        hub.repos.clear()
        hub.faults = []
        hub.fail(route, status=503, times=2)
        release_once(small_model, [])
        assert hub.repos["model", REPO].tags and len([c for c in hub.calls if c.fault == "503"]) == 2
        hub.calls.clear()
