"""The model to evaluate: loaded, identified, then brought into the dtype and given the instructions asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from sentence_transformers import SentenceTransformer

from piccolo_st.distributed import process_state
from piccolo_st.errors import InputError
from piccolo_st.modeling import Identity, InstructionSpec, identify, load_pretrained, set_prompts

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Loaded:
    """A model ready to encode, who it is, and the settings that are not part of who it is."""

    model: SentenceTransformer
    identity: Identity
    settings: dict[str, str]


def load_model(
    model: SentenceTransformer | str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    instructions: InstructionSpec | None = None,
) -> Loaded:
    """Load and identify a model; see :func:`piccolo_st.evaluation.runner.evaluate` for the arguments.

    A directory is loaded as ``SentenceTransformer`` loads it, which is what whoever loads the released model gets.
    Other instructions make another model, with a revision of its own. Another dtype is the same weights computed less
    precisely: the revision stays and the dtype becomes a setting. A model passed as an object is changed in place.

    Raises:
        InputError: the model cannot be loaded, or the dtype is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    label, commit = "local/in-memory", None
    if not isinstance(model, SentenceTransformer):
        source = str(model)
        if Path(source).exists():
            label = "local/" + re.sub(r"[^\w.-]", "-", Path(source).resolve().name)
        else:
            label, commit = source, load_pretrained(_commit, source, "the model", revision=revision)
        device = device or str(process_state().device)
        model = load_pretrained(SentenceTransformer, source, "the model", revision=commit or revision, device=device)
    if instructions is not None:
        set_prompts(model, instructions)
        commit = None
    identity = identify(model, name or label, commit)
    own = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype is not None and dtype != own:
        model.to(getattr(torch, dtype))
    settings = {} if dtype in (None, own) else {"dtype": dtype}
    return Loaded(model, identity, settings)


def _commit(repository: str, revision: str | None, local_files_only: bool = False) -> str | None:
    """The commit that a repository stands at, or that was downloaded last where there is no network.

    The cache of the Hub keeps a file of a commit at ``snapshots/<commit>/<file>``.
    """

    def find(file: str) -> Path:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=local_files_only))

    try:
        path = find("config.json")
    except EntryNotFoundError:  # the encoder of an old model is in a folder of its own
        path = find("modules.json")
    return path.parent.name if re.fullmatch("[0-9a-f]{40}", path.parent.name) else None
