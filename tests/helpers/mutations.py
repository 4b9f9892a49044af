"""Damage to files, by a seed: bytes lost, copies broken off, hands that edited, and what somebody made to do harm."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
from collections.abc import Iterator
from typing import Any

import yaml

DEEP = 100_000

# What may stand where anything else stood.
ODD_VALUES: list[Any] = [
    None, True, -1, 0, 0.5, 2**63, 10**30, float("nan"), float("inf"), "", "文", "a\0b", "../../x", "/etc/passwd",
    "x" * 5000, [], {}, [None], {"a": 1}, [[1, 2], [3]], "posix.system", "2020-13-45",
]  # fmt: skip


class _Runs:
    """Rebuilt from a pickle, it would end the process."""

    def __reduce__(self) -> Any:
        import os

        return os._exit, (66,)


def _pickled() -> bytes:
    import torch

    file = io.BytesIO()
    torch.save({"state": {}, "param_groups": [_Runs()]}, file)
    return file.getvalue()


def mutations(name: str, content: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(what was done, the damaged content) of a file, the same for a seed.

    Args:
        name: the file's; its ending says whether it has a structure that can be edited.
        content: whole.
        count: how many.
        seed: of the choice.
    """
    dice = random.Random(f"{name} {seed}")
    whole = [("emptied", b""), ("zeros", bytes(len(content))), ("a null byte", b"\0"), ("not UTF-8", b"\xff\xfe\xff")]
    if name.endswith((".pt", ".pth", ".npz")):
        whole += [("a pickle that runs code", _pickled()), ("a bare pickle", pickle.dumps([_Runs()]))]
    else:
        whole += [(f"{DEEP} x {text}", text.encode() * DEEP) for text in ("[", '{"a":', "{", "- ", "a: &a [*a, ")]
        whole += [("5,000 digits", b"9" * 5000), ("text", "文".encode()), ("null", b"null"), ("a list", b"[1, 2]")]
        whole += [("nothing in it", b"{}"), ("a number", b"7")]
    dice.shuffle(whole)
    for number in range(count):
        if number % 3 == 0 and whole:
            yield whole.pop()
        elif number % 3 == 1 and (edited := _edited(name, content, dice)):
            yield edited
        else:
            yield _bytes(content, dice)


def _bytes(content: bytes, dice: random.Random) -> tuple[str, bytes]:
    damaged = bytearray(content)
    place = dice.randrange(len(content))
    what = dice.choice(["cut", "flip", "flip", "hole", "twice", "noise"])
    if what == "cut":
        del damaged[place:]
    elif what == "flip":
        for _ in range(dice.choice([1, 1, 5, 40])):
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
    elif what == "hole":
        del damaged[place : place + dice.randrange(1, 60)]
    elif what == "twice":
        damaged[place:place] = damaged[max(0, place - 50) : place]
    else:
        damaged[place : place + 20] = dice.randbytes(20)
    return f"{what} at {place}", bytes(damaged)


def _edited(name: str, content: bytes, dice: random.Random) -> tuple[str, bytes] | None:
    """A structure in JSON, JSON lines or YAML with one place of it changed."""
    if name.endswith(".json"):
        value: Any = json.loads(content)
    elif name.endswith(".jsonl"):
        value = [json.loads(line) for line in content.splitlines()]
    elif name.endswith((".yaml", ".md")):
        value = yaml.safe_load(content.decode().split("---")[1] if name.endswith(".md") else content)
    else:
        return None
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return None
    holder, key = dice.choice(places)
    what = dice.choice(["drop", "value", "value", "value", "rename", "deep"])
    if what == "drop":
        del holder[key]
    elif what == "rename" and isinstance(holder, dict):
        holder["文" + str(key)] = holder.pop(key)
    elif what == "deep":
        for _ in range(dice.choice([50, 150, 400])):
            holder[key] = [holder[key]]
    else:
        holder[key] = dice.choice(ODD_VALUES)
    said = f"{what} {key!r}" + (f" = {str(holder[key])[:40]!r}" if what == "value" else "")
    if name.endswith(".json"):
        return said, json.dumps(value, ensure_ascii=False).encode()
    if name.endswith(".jsonl"):
        return said, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in value).encode()
    try:
        text = yaml.safe_dump(value, allow_unicode=True)
    except RecursionError:
        return None
    return said, (f"---\n{text}---\n" if name.endswith(".md") else text).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from _places(child)
