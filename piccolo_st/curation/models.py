"""Loading the models that data preparation uses, with one clear sentence where they cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piccolo_st.errors import MixtureError, reason

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer


def load_sentence_transformer(name_or_path: str, place: str) -> SentenceTransformer:
    """The model that the setting ``place`` names.

    Raises:
        MixtureError: it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    return _load(SentenceTransformer, name_or_path, place)


def load_cross_encoder(name_or_path: str, place: str) -> CrossEncoder:
    """The cross-encoder that the setting ``place`` names.

    Raises:
        MixtureError: it cannot be loaded.
    """
    from sentence_transformers import CrossEncoder

    return _load(CrossEncoder, name_or_path, place)


def load_tokenizer(name_or_path: str, place: str) -> Any:
    """The tokenizer that the setting ``place`` names.

    Raises:
        MixtureError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, name_or_path, place)


def _load(load: Any, name_or_path: str, place: str) -> Any:
    try:
        return load(name_or_path)
    except (OSError, ValueError) as error:
        raise MixtureError(
            f"{place} cannot be loaded, got {name_or_path!r}: {reason(error)}; give a folder or a Hub id"
        ) from error
