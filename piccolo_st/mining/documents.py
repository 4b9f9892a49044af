"""Documents that a user names to be searched among: files of texts, read as a dataset's are."""

from __future__ import annotations

import logging
from pathlib import Path

from piccolo_st.data import DatasetSpec, locate, read_chunks, titled
from piccolo_st.errors import MixtureError

logger = logging.getLogger(__name__)


def corpus_files(source: str, root: Path) -> tuple[Path, ...]:
    """The files of a corpus; a BEIR folder stands for its corpus.jsonl.

    Raises:
        MixtureError: nothing is there, or no format can be told from it.
    """
    return locate(_spec(source, root), root).files


def read_documents(source: str, root: Path) -> list[str]:
    """The distinct texts of a corpus, in their order: title and text joined, as everywhere.

    Args:
        source: a file or a glob (JSON lines, JSON, CSV, TSV, Parquet or Arrow) of rows of ``text`` and perhaps
            ``title``, or a BEIR folder.
        root: where relative paths start.

    Raises:
        MixtureError: nothing is there, or it holds no column ``text``.
    """
    spec = _spec(source, root)
    texts: dict[str, None] = {}
    lost = 0
    for chunk in read_chunks(spec, locate(spec, root)):
        rows = chunk.records if isinstance(chunk.records, list) else chunk.records.to_pylist()
        for row in rows:
            if "text" not in row:
                raise MixtureError(
                    f"the corpus of mining must have a column 'text', got {', '.join(map(str, row))} in {chunk.file}; "
                    "rename the column"
                )
            text = row["text"]
            if isinstance(text, str) and text.strip():
                texts[titled(row.get("title"), text)] = None
            else:
                lost += 1
        lost += len(chunk.rejects)
    if not texts:
        raise MixtureError(f"the corpus of mining must hold texts, got none in {source}; name another file")
    if lost:
        logger.warning("%s: %d rows without a text are left out of the corpus", source, lost)
    return list(texts)


def _spec(source: str, root: Path) -> DatasetSpec:
    folder = root / Path(source).expanduser()
    beir = folder.is_dir() and (folder / "corpus.jsonl").is_file()
    return DatasetSpec("corpus of mining", source=str(folder / "corpus.jsonl") if beir else source, task="retrieval")
