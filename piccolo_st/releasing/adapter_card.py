"""An adapter as PEFT's users publish one: its own files, and a card by which the Hub and PEFT know its base."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from piccolo_st.errors import InputError, shown
from piccolo_st.modeling import content_hash, load_pretrained
from piccolo_st.stored import read_json

_EMPTY_FORM = "[More Information Needed]"  # what PEFT's own card holds in the place of every fact
MERGED, ALONE = "merged into these weights", "alone, without its base"
"""How a card calls the model that a run with an adapter left, and that adapter."""


@dataclass(frozen=True)
class Adapter:
    """What adapter_config.json says: the kind of an adapter, its base, and the commit of that, if it is noted."""

    peft_type: str
    base_model_name_or_path: str
    revision: str | None = None


def read_adapter(folder: Path) -> Adapter | None:
    """The adapter that a directory holds; None for a whole model."""
    file = folder / "adapter_config.json"
    return read_json(file, Adapter, "put it back as PEFT saved it") if file.is_file() else None


def base_problems(adapter: Adapter, folder: Path) -> Iterator[str]:
    """Why nobody else could load the base of an adapter."""
    base = adapter.base_model_name_or_path
    if Path(base).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
        yield (
            f"the adapter's base must be the id of a model on the Hub, got {base!r} in {folder}/adapter_config.json; "
            "put the id, and as revision the commit, of the model that this is a copy of, or release the whole model "
            "of the run, which needs no base"
        )


def metadata_problems(adapter: Adapter, data: Mapping[str, object]) -> Iterator[str]:
    """What the metadata of an adapter's card say otherwise than the Hub and PEFT read them."""
    for key, value in _metadata(adapter).items():
        if data.get(key) != value:
            found = shown(data.get(key))
            yield f"the metadata of README.md must have {key}: {value}, got {found}; write it with --fill-card"


def _metadata(adapter: Adapter) -> dict[str, str]:
    return {
        "library_name": "peft",
        "base_model": adapter.base_model_name_or_path,
        "base_model_relation": "adapter",
    }


def fill_card(card: ModelCard, adapter: Adapter, folder: Path, run_dir: Path | None) -> ModelCard:
    """The card of an adapter with its metadata; in place of PEFT's empty form the card of the model its run left.

    Raises:
        InputError: it is the empty form, and there is no run whose model has a card.
    """
    if _EMPTY_FORM in card.text:
        path = run_dir / "model" / "README.md" if run_dir is not None else None
        if path is None or not path.is_file():
            raise InputError(
                f"{folder}/README.md must say something, got PEFT's empty form; give the run that left the adapter "
                "with --run-dir, whose model has a card, or write one"
            )
        card = ModelCard.load(path)
    own = [adapter.peft_type.lower(), f"base_model:adapter:{adapter.base_model_name_or_path}"]  # as PEFT tags them
    tags = list(dict.fromkeys([*(card.data.get("tags") or []), *own]))
    for key, value in {**_metadata(adapter), "tags": tags}.items():
        card.data[key] = value
    return card


def is_of_the_run(model: SentenceTransformer, run_dir: Path, content: str | None, texts: list[str]) -> bool:
    """Whether the model of an adapter gives the vectors of the whole model that its run left, of that content hash."""
    if not (run_dir / "model").is_dir():
        return False
    whole = load_pretrained(SentenceTransformer, str(run_dir / "model"), "the model", device="cpu")
    own, merged = (one.encode(texts, normalize_embeddings=True, convert_to_numpy=True) for one in (model, whole))
    return content_hash(whole) == content and float(abs(own - merged).max()) < 1e-4
