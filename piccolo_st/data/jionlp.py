"""Three sets of real Chinese pairs that the package jionlp ships, read from its zip files without importing it.

    words        a word -> its definition                        (chinese_word_dictionary.zip)
    sayings      first half -> second half of a two-part saying  (xiehouyu.zip)
    characters   a definition -> its character                   (chinese_char_dictionary.zip)

What the files need, found by reading them: words lists entries that only point to another one (见"百叶", 同"茄子",
"即。"); sayings has a few lines without a second half; the characters' definitions write the headword as ``~`` in
phrases but in full in examples, which would give the answer away, so it is written ``~`` everywhere.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from piccolo_st.data.chunks import Item, Reject, excerpt
from piccolo_st.errors import MissingPackage, MixtureError

_ARCHIVES = {
    "words": "chinese_word_dictionary",
    "sayings": "xiehouyu",
    "characters": "chinese_char_dictionary",
}
_FIELDS = {"words": 2, "sayings": 2, "characters": 8}

# A definition that is nothing but a pointer to another entry, whose name may have been lost in the file.
_CROSS_REFERENCE = re.compile(r'(?:1\.)?(?:参见|亦作|也作|[见同即])(?:["“〖【《][^"”〗】》]*["”〗】》])?。?')


def archive(name: str, place: str) -> Path:
    """The zip file of a set in the installed package.

    Raises:
        MixtureError: no such set.
        MissingPackage: jionlp is not installed.
    """
    if name not in _ARCHIVES:
        sets = ", ".join(f"jionlp:{one}" for one in _ARCHIVES)
        raise MixtureError(f"the source of {place} must be one of {sets}, got 'jionlp:{name}'")
    package = find_spec("jionlp")
    path = Path(package.origin).parent / "dictionary" / f"{_ARCHIVES[name]}.zip" if package and package.origin else None
    if path is None or not path.is_file():
        raise MissingPackage(f"the source 'jionlp:{name}' of {place}", "jionlp", "quickstart")
    return path


def read(name: str, path: Path) -> Iterator[Item]:
    """The query and positive of each line."""
    with zipfile.ZipFile(path) as files, files.open(files.namelist()[0]) as raw:
        for number, line in enumerate(io.TextIOWrapper(raw, encoding="utf-8", newline="\n"), start=1):
            text = line.rstrip("\r\n")
            if not text:
                continue
            fields = text.split("\t")
            if len(fields) != _FIELDS[name]:
                yield Reject(str(path), number, "wrong number of fields", excerpt(text))
            elif name == "words" and _CROSS_REFERENCE.fullmatch(fields[1]):
                yield Reject(str(path), number, "only a cross-reference", excerpt(text))
            elif name == "characters":
                yield number, {"query": fields[7].replace(fields[0], "~"), "positive": fields[0]}
            else:
                yield number, {"query": fields[0], "positive": fields[1]}
