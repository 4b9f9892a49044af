"""Mixtures of one dataset, for tests of what becomes of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from piccolo_st.data import Mixture, load_mixture


def jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines; returns the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load(source: Path, task: str = "retrieval", **settings: Any) -> Mixture:
    """The mixture of one dataset, ``faq``, with a cache beside its source."""
    datasets = {"faq": {"source": str(source), "task": task, **settings}}
    return load_mixture({"datasets": datasets}, cache_dir=source.parent / "cache")
