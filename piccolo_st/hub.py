"""Requests to the Hub that end, and what went wrong with them in a sentence.

huggingface_hub waits without end for the answer to most of its requests, and for as long as a ``Retry-After`` says.
``finite_waits`` gives it, through ``set_client_factory``, a client whose every request

(1) connects, sends and hears something within ``SILENCE`` seconds, or is a timeout that huggingface_hub may retry;
(2) is refused where the Hub asks for more than ``LONGEST_WAIT`` seconds of patience: when to come back is told;
(3) ends with the time that is left, where ``deadline`` surrounds it: also a body that trickles either way.

hf-xet, which moves large files where the Hub has it, keeps its own timeouts (HF_XET_CLIENT_READ_TIMEOUT, 120 s).
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from huggingface_hub import constants, get_session, get_token, is_offline_mode, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # loaded on first use

from piccolo_st.errors import InputError

if TYPE_CHECKING:
    import httpx2 as httpx
else:  # huggingface_hub changed from httpx to httpx2, and either may be installed beside it for something else
    httpx = sys.modules[HfHubHTTPError.__bases__[0].__module__]

#: Seconds in which the Hub must connect, take or send something.
SILENCE = 60.0
#: Seconds that a request is put off at most when the Hub asks for it; its own windows are 300 s.
LONGEST_WAIT = 300.0

# What huggingface_hub asks again for.
_RETRIED = (408, 429, 500, 502, 503, 504)


class HubWait(InputError):
    """The Hub takes longer than is waited for; the message names the request."""


@dataclass(frozen=True)
class _Limits:
    silence: float = SILENCE
    seconds: float = float("inf")
    end: float = float("inf")  # of time.monotonic

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


# Of the process, and no context variable: huggingface_hub uploads in threads.
_limits = _Limits()
_installed = False
# Why nothing is asked: a Hub that did not answer before; see ``from_cache_if_unreachable``.
_away = ""
# The Hub that did not answer -> when it was asked, and what went wrong.
_silent: dict[str, tuple[float, str]] = {}
_SILENT_FOR = 60.0
_guard = threading.Lock()
_stopped = threading.Event()


def finite_waits() -> None:
    """Give huggingface_hub's client its timeouts, once in a process; it stays with proxies and certificates as set."""
    global _installed
    with _guard:
        if _installed:
            return
        seen = get_session()
        hooks: dict[str, list[Callable[..., object]]] = {
            "request": [*seen.event_hooks["request"], _before],
            "response": [*seen.event_hooks["response"], _after],
        }
        follow = seen.follow_redirects
        set_client_factory(lambda: httpx.Client(event_hooks=hooks, follow_redirects=follow, timeout=SILENCE))
        _installed = True


def unreachable() -> str:
    """Why the Hub gives nothing to download, in words; an empty text where it answers, or nobody wants to ask it.

    One request, ended by huggingface_hub's own HF_HUB_ETAG_TIMEOUT (10 s), in place of its six a file. A Hub that
    did not answer is not asked again for a minute.
    """
    finite_waits()
    hub, now = constants.ENDPOINT, time.monotonic()
    if is_offline_mode():
        return ""
    if hub in _silent and now - _silent[hub][0] < _SILENT_FOR:
        return _silent[hub][1]
    try:
        get_session().head(hub, timeout=constants.HF_HUB_ETAG_TIMEOUT, follow_redirects=False)
    except (HubWait, httpx.HTTPError) as error:
        _silent[hub] = now, hub_reason(error)
        return _silent[hub][1]
    return ""


@contextmanager
def from_cache_if_unreachable() -> Iterator[str]:
    """Around downloads of a library that cannot be told to take its cache: as offline, if the Hub does not answer.

    The library takes what it has, or raises a ConnectionError of its own; what it gets is what ``unreachable`` says.
    """
    global _away
    before, _away = _away, unreachable()
    try:
        yield _away
    finally:
        _away = before


@contextmanager
def deadline(seconds: float, silence: float = SILENCE) -> Iterator[None]:
    """Around requests of this process that must end within ``seconds`` altogether; see the module docstring.

    What huggingface_hub sleeps between two tries (8 s at most) is not cut short.

    Args:
        seconds: for all of them.
        silence: in place of ``SILENCE``.

    Raises:
        HubWait: they did not end.
        InputError: a time that is not above 0.
    """
    global _limits
    if not (seconds > 0 and silence > 0):
        raise InputError(f"deadline and timeout must be seconds above 0, got {seconds:g} and {silence:g}")
    finite_waits()
    before, _limits = _limits, _Limits(silence, seconds, time.monotonic() + seconds)
    try:
        yield
    finally:
        _limits = before


def _before(request: httpx.Request) -> None:
    """(1) and (3): what httpx is to wait for this request's every read and write."""
    _in_time(request)
    given = request.extensions.get("timeout", {})
    longest = min(_limits.silence, _limits.left)
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: min(given.get(kind) or longest, longest) for kind in kinds}
    if isinstance(request.stream, httpx.SyncByteStream):
        request.stream = _Watched(request.stream, request)


def _after(response: httpx.Response) -> None:
    """(2) and (3)."""
    wait = _asked_wait(response)
    if wait is not None and response.status_code in _RETRIED and wait > min(LONGEST_WAIT, _limits.left):
        response.read()
        raise HubWait(f"the Hub asks to wait {_in_words(wait)} before {_named(response.request)}")
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _Watched(response.stream, response.request)


def stop() -> None:
    """End what is sent or received in other threads, at its next piece; no request of this process follows."""
    _stopped.set()


def _in_time(request: httpx.Request) -> None:
    if _away:
        raise OfflineModeIsEnabled(_away)
    if _stopped.is_set():
        raise HubWait(f"stopped, at {_named(request)}")
    if _limits.left <= 0:
        raise HubWait(f"the deadline of {_limits.seconds:,g} s passed, at {_named(request)}")


class _Watched(httpx.SyncByteStream):
    """A body, sent or received, that is not waited for after the deadline however steadily it trickles."""

    def __init__(self, stream: httpx.SyncByteStream, request: httpx.Request) -> None:
        self._stream, self._request = stream, request

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            _in_time(self._request)
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _asked_wait(response: httpx.Response) -> int | None:
    """Seconds that the Hub asks to wait for, in either of its two headers."""
    said = response.headers.get("Retry-After", "").strip()
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    return int(said) if re.fullmatch("[0-9]{1,9}", said) else None


def _in_words(wait: int) -> str:
    back = datetime.now() + timedelta(seconds=wait)
    return f"{wait:,} s, until {back:%Y-%m-%d %H:%M},"


def _named(request: httpx.Request) -> str:
    url = request.url
    return f"{request.method} {url.scheme}://{url.netloc.decode()}{url.path}"  # a query may hold a signature


def hub_reason(error: BaseException, token: str | None = None) -> str:
    """What went wrong, in a sentence; without credentials, signatures of storage addresses and request ids.

    Args:
        error: what the Hub or the network raised.
        token: a token that was used in place of the one that huggingface_hub is logged in with.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(isinstance(link, LocalTokenNotFoundError) for link in chain):
        return "there is no token; log in with `hf auth login` or set HF_TOKEN"
    for link in chain:
        if isinstance(link, HubWait):
            return _clean(str(link), token)
        if isinstance(link, httpx.TransportError):
            return _clean(_transport_reason(link), token)
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            return _status_reason(link, token)
    last = chain[-1]
    return _clean(f"{type(last).__name__}: {last}", token)


def _transport_reason(error: httpx.TransportError) -> str:
    """Of a request that got no answer: which, and why."""
    said = f"{type(error).__name__}: {error}".rstrip(".")
    try:
        request = error.request
    except RuntimeError:  # httpx raised it of no request
        return said
    if isinstance(error, httpx.TimeoutException):
        said = f"the Hub was silent for {request.extensions['timeout']['read']:,.3g} s"
    if _limits.left <= 0:
        said = f"the deadline of {_limits.seconds:,g} s passed"
    return f"{said}, at {_named(request)}"


def _status_reason(error: HfHubHTTPError, token: str | None) -> str:
    status = error.response.status_code
    said = f": {_clean(error.server_message, token)}" if error.server_message else ""
    wait = _asked_wait(error.response)
    meaning = {
        401: "the Hub does not accept the token, or there is none; log in with `hf auth login` or set HF_TOKEN",
        403: "the token may not write there; use one with write access to that organisation",
        404: "the Hub does not know it, or does not show it to this token",
        409: "it conflicts with something that is going on or there already",
        413: "a file or the request is larger than the Hub accepts",
        429: f"too many requests; wait {'some seconds' if wait is None else _in_words(wait).rstrip(',')}",
    }.get(status, "the Hub failed" if status >= 500 else "the Hub refused")
    return f"{meaning} (HTTP {status}{said})"


def _clean(text: str, token: str | None = None) -> str:
    text = " ".join(str(text).split())
    for secret in filter(None, (token, get_token())):
        text = text.replace(secret, "***")
    return re.sub(r"\?[^\s'\")]+", "", text)[:300].rstrip(".")
