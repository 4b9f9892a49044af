"""The texts to search: a file with one a line, a BEIR folder, or by default the definitions of the quickstart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from piccolo_st.data import DatasetSpec, load_mixture, locate, read_texts
from piccolo_st.errors import InputError


def read_corpus(source: str | Path | None = None) -> list[str]:
    """The distinct texts of a corpus, in order; whitespace within a text is one space.

    Args:
        source: a text file (UTF-8, one text a line), a folder with a ``corpus.jsonl`` as BEIR has it, or None for the
            definitions of the dictionary that the quickstart trains on, through the same checks.

    Raises:
        InputError: there is nothing there, or no text in it.
    """
    if source is None:
        mixture = load_mixture({"datasets": {"words": {"source": "jionlp:words", "task": "retrieval"}}})
        return _distinct(mixture.train["words"]["positive"])
    path = Path(source)
    if path.is_dir():
        if not (path / "corpus.jsonl").is_file():
            raise InputError(f"the corpus {path} is a folder without corpus.jsonl; give a BEIR folder or a text file")
        texts = _texts(path / "corpus.jsonl")
    else:
        try:
            texts = _distinct(path.read_text(encoding="utf-8").split("\n"))
        except FileNotFoundError:
            raise InputError(f"the corpus {path} does not exist; give a text file or a BEIR folder") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the corpus {path} cannot be read as UTF-8 text, one a line: {error}") from None
    if not texts:
        raise InputError(f"the corpus {path} has no text; give a file with one text a line, or a BEIR folder")
    return texts


def example_queries(source: str | Path | None = None) -> list[str]:
    """A few queries to try on the texts of ``read_corpus``: of a BEIR folder some of its own; of a text file none."""
    if source is None:
        return ["月亮", "雨伞", "下雨天用的东西", "做买卖的人", "心里高兴"]
    path = Path(source) / "queries.jsonl"
    return thin_out(_texts(path), 5) if path.is_file() else []


def _texts(path: Path) -> list[str]:
    spec = DatasetSpec(path.stem, str(path), "retrieval")
    return _distinct(read_texts(spec, locate(spec, Path())).found.values())


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(line for text in texts if (line := " ".join(text.split()))))


def thin_out(texts: list[str], limit: int) -> list[str]:
    """At most ``limit`` of the texts, evenly spread over all of them: a dictionary's first ones are all alike."""
    if limit < 1:
        raise InputError(f"the limit of texts to search must be at least 1, got {limit}")
    if len(texts) <= limit:
        return texts
    return [texts[place * len(texts) // limit] for place in range(limit)]
