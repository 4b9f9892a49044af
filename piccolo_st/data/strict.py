"""Numbers and lists written as text, where Python's own parsers take more than is meant.

``float`` takes 0_1 and full-width digits, and of adjacent strings Python makes one.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize

_ADJACENT = re.compile(r"""['"]\s*['"]""")


def parse_number(text: str) -> float | None:
    """The number that a text is in ASCII digits; None where it is none."""
    if "_" in text or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def parse_list(text: str) -> list[str] | None:
    """The list of strings that a text is, as JSON, Python or numpy would write it; None where it is none.

    Spreadsheets and ``DataFrame.to_csv`` write lists so: ``["a", "b"]``, ``['a', 'b']``, ``['a' 'b']``.
    """
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _python_list(text)
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


def _python_list(text: str) -> object:
    try:
        if not _ADJACENT.search(text):
            return ast.literal_eval(text)
        # Python makes one string of strings with nothing but space between them; numpy means several.
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        return [ast.literal_eval(token.string) for token in tokens if _is_item(token)]
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        return None


_LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT}


def _is_item(token: tokenize.TokenInfo) -> bool:
    if token.type == tokenize.STRING:
        return True
    if token.type in _LAYOUT or token.string in ("[", "]", ","):
        return False
    raise ValueError(f"{token.string!r} in a list of strings")
