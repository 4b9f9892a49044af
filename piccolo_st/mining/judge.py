"""A second opinion on what the rules leave: a cross-encoder, or another encoder, as GISTEmbed's guide.

What the judge scores above the positive's score, less ``reranker_margin``, is as good an answer as the positive.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.search import EmbeddingSearch
from piccolo_st.modeling import load_pretrained

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

Judge = Callable[[Sequence[str], Sequence[str]], NDArray[np.float32]]
"""Queries and as many texts -> how good an answer each text is, (queries,)."""


def by_cross_encoder(reranker: CrossEncoder, batch_size: int) -> Judge:
    """The scores of a cross-encoder, ``batch_size`` pairs at a time."""

    def scores(queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        pairs: Any = list(zip(queries, texts, strict=True))
        return np.asarray(reranker.predict(pairs, batch_size=batch_size, show_progress_bar=False))

    return scores


def load_judge(name: str, settings: MiningSettings, folder: Path) -> Judge:
    """The judge of a name: a directory or Hub id of a cross-encoder, or of an encoder, which reads by its own prompts.

    Args:
        name: whose.
        settings: batch_size.
        folder: where an encoder's embeddings are kept.

    Raises:
        InputError: it cannot be loaded.
    """
    from sentence_transformers import CrossEncoder

    if _is_cross_encoder(name):
        return by_cross_encoder(load_pretrained(CrossEncoder, name, "judge of mining"), settings.batch_size)
    guide = EmbeddingSearch(load_alike(name, "judge of mining"), [], settings, folder)

    def scores(queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        asked, given = guide.embed(queries, "query"), guide.embed(texts, "document")
        found: NDArray[np.float32] = np.einsum("nd,nd->n", asked, given)
        return found

    return scores


def load_alike(name: str, place: str) -> SentenceTransformer:
    """An encoder that only looks on.

    What a bare checkpoint lacks, a pooler, is drawn the same each time, whatever the seed of a run: its embeddings are
    found again by the content of the model.

    Args:
        name: a directory or a Hub id.
        place: what names it, for messages.

    Raises:
        InputError: it cannot be loaded.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_pretrained(SentenceTransformer, name, place)


def _is_cross_encoder(name: str) -> bool:
    """Sentence-transformers says what it saved; before version 5, and elsewhere, the architecture does."""
    from transformers.utils.hub import cached_file

    try:
        saved, config = (
            cached_file(name, file, _raise_exceptions_for_missing_entries=False)
            for file in ("config_sentence_transformers.json", "config.json")
        )
    except OSError:  # no such model: its loader says so
        return False
    if saved is not None:
        return bool(json.loads(Path(saved).read_text(encoding="utf-8")).get("model_type") == "CrossEncoder")
    names = json.loads(Path(config).read_text(encoding="utf-8")).get("architectures") if config else None
    return any(one.endswith("ForSequenceClassification") for one in names or [])
