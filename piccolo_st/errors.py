"""The root of the errors that bad input causes, and words for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class InputError(ValueError):
    """Input that cannot be used: the message says the rule, the value received, where it stands and the remedy.

    Recipes print the message as one sentence, without a traceback, and end with exit code 2.
    """


class ConfigError(InputError):
    """A configuration that cannot be used."""


class MissingPackage(InputError, ImportError):
    """A package that only some users install, and that what they ask for needs.

    Args:
        what: what needs it, in words that go before "needs".
        package: the package's name, or several.
        extra: the extra of this package that brings it.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f'{what} needs {package}; run: pip install "piccolo_st[{extra}]"')


@contextmanager
def optional(what: str, package: str, extra: str) -> Iterator[None]:
    """Around an import of what only some users install: MissingPackage where it is not there."""
    try:
        yield
    except ImportError as error:
        raise MissingPackage(what, package, extra) from error


def reason(error: BaseException) -> str:
    """What another library says, to stand inside a sentence: one line, no full stop; of YAML its place as well."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{getattr(error, 'problem', error)}, line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, OSError) and error.strerror:  # without its number, and the path that the sentence has
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:") if lines else type(error).__name__


def shown(value: object) -> str:
    """A received value for a message, cut after 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of over 4,300 digits
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 60 else text[:57] + "..."


_SHORT = {"lr": "learning_rate"}  # local_rank has the same initials


def _initials(key: str) -> str:
    words = key.rpartition(".")[2].split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def nearest(key: str, known: Sequence[str]) -> str:
    """``; did you mean X?`` for the known key most like ``key``, upper and lower case alike, or whose initials it is.

    Where none is like it, the known ones, if a reader can look through them.
    """
    by_lower = {one.lower(): one for one in known}
    last = key.rpartition(".")[2].lower()
    last = _SHORT.get(last, last)
    meant = [one for lower, one in by_lower.items() if last in (one.rpartition(".")[2], _initials(lower))]
    meant = meant or [one for lower, one in by_lower.items() if last in lower.rpartition(".")[2].split("_")[1:]]
    if len(meant) == 1 and key.lower() not in by_lower:  # lr, epochs
        return f"; did you mean {meant[0]}?"
    if match := difflib.get_close_matches(key.lower(), by_lower, n=1, cutoff=0.6):
        return f"; did you mean {by_lower[match[0]]}?"
    return f"; known are {', '.join(sorted(known))}" if len(known) <= 200 else ""


class MixtureError(InputError):
    """A mixture file, or the data it names, breaks a rule; the message says which, where, and what to do."""
