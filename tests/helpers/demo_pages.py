"""Pages started for real: a command that serves one, and a browser that looks at nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def serving(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path, seconds: float = 180
) -> Iterator[str]:
    """Run a command that serves a page at GRADIO_SERVER_PORT until the block ends; yields the page's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "NO_PROXY": "127.0.0.1"}
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=cwd, env={**env, **settings}, stdout=output, stderr=subprocess.STDOUT)
    try:

        def answers() -> bool:
            assert server.poll() is None, f"the page ended with {server.returncode}: {log.read_text()[-3000:]}"
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                return bool(urllib.request.urlopen(f"{url}/config", timeout=10).status == 200)
            return False

        wait_until(answers, "the page does not answer", seconds)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_until(condition: Callable[[], Any], complaint: str, seconds: float = 60) -> None:
    """Ask again and again until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.1)


@contextlib.contextmanager
def browser(profile: Path, size: tuple[int, int] = (1400, 1000)) -> Iterator[Any]:
    """A headless Chromium that resolves no name but the loopback address; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its chromedriver on the PATH; Debian has both: apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
        *(f"user-data-dir={profile}", f"window-size={size[0]},{size[1]}", "disable-dev-shm-usage"),
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(driver, env={**os.environ, "NO_PROXY": "127.0.0.1"})
    running = webdriver.Chrome(options, service)
    try:
        yield running
    finally:
        running.quit()


def requested(running: Any) -> set[str]:
    """The addresses the page asked for over the network, since this was asked last."""
    events = [json.loads(entry["message"])["message"] for entry in running.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {each["request"]["url"] for each in sent if each["request"]["url"].startswith(("http", "ws"))}
