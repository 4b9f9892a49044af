"""Secrets in what is written down: known by the name of their setting, by their form or by their value; left out."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar, cast

from huggingface_hub import get_token

SECRET_FORMS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a GitHub token": r"\b(?:ghp|gho|ghs|github_pat)_[A-Za-z0-9_]{30,}",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^\s/:@]+:[^\s/@]+@",
}
"""What a secret is -> how it looks."""

_LAST_WORDS = {"token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "authorization"}
_KEYS = {"api", "access", "secret", "private", "auth"}
_SPECIAL_TOKENS = {"bos", "eos", "unk", "sep", "pad", "cls", "mask"}
_LEAST = 8  # characters of a secret that is looked for inside other texts


T = TypeVar("T")


def redact(value: T, place: str = "", mark: str | None = None) -> tuple[T, list[str]]:
    """A value of mappings and lists without its secrets.

    Args:
        value: anything; what is neither a mapping nor a list nor a text stays as it is.
        place: the dotted name of the value.
        mark: what stands in a secret's place.

    Returns:
        The value, and the dotted names of what was left out.
    """
    named = {text for name, text in _texts(value, place) if _is_secret_name(name)}
    known = {text for text in [*named, *_of_this_process()] if len(text) >= _LEAST}
    found: list[str] = []

    def clean(value: object, place: str) -> object:
        if isinstance(value, Mapping):
            return {key: clean(child, f"{place}.{key}" if place else str(key)) for key, child in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(child, place) for child in value]
        if isinstance(value, str) and value and (_is_secret_name(place) or holds_secret(value, known)):
            found.append(place)
            return mark
        return value

    return cast(T, clean(value, place)), found  # mappings become dictionaries, sequences lists


def holds_secret(text: str, known: Collection[str] = ()) -> bool:
    """Whether a text has the form of a secret, or holds one of the known ones."""
    return any(secret in text for secret in known) or any(re.search(form, text) for form in SECRET_FORMS.values())


def _texts(value: object, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _texts(child, str(key))
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from _texts(child, place)
    elif isinstance(value, str):
        yield place, value


def _is_secret_name(place: str) -> bool:
    """Whether a setting's name ends as that of a secret does: hub_token, api_key, but not pad_token or num_tokens."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", place.rsplit(".", 1)[-1])]
    before = words[-2] if len(words) > 1 else ""
    if words and words[-1] in _LAST_WORDS:
        return not (words[-1] == "token" and before in _SPECIAL_TOKENS)
    return bool(words) and (words[-1] == "apikey" or (words[-1] == "key" and before in _KEYS))


def _of_this_process() -> Iterator[str]:
    """The Hub's token of this user, and what the environment's secrets hold."""
    if token := get_token():
        yield token
    for name, value in os.environ.items():
        if _is_secret_name(name.lower()):
            yield value
