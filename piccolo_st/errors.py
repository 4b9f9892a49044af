"""The root of the errors that bad input causes."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: the message says the rule, the value received, where it stands and the remedy.

    Recipes print the message as one sentence, without a traceback, and end with exit code 2.
    """


class ConfigError(InputError):
    """A configuration that cannot be used."""
