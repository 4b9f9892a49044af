"""The model to evaluate: loaded, identified, then brought into the dtype and given the instructions asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from sentence_transformers import SentenceTransformer

from piccolo_st.errors import InputError
from piccolo_st.evaluation.identity import Identity, identify
from piccolo_st.instructions import set_prompts

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Loaded:
    """A model ready to encode, who it is, and the settings that are not part of who it is."""

    model: SentenceTransformer
    identity: Identity
    settings: dict[str, Any]


def process_state() -> PartialState:
    """accelerate's view of the ranks; starts their process group under ``accelerate launch``, with gloo on CPUs."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def load_model(
    model: SentenceTransformer | str | Path,
    *,
    name: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    instructions: Any = None,
) -> Loaded:
    """Load and identify a model; see :func:`piccolo_st.evaluation.runner.evaluate` for the arguments.

    Other instructions make another model, with a revision of its own. Another dtype is the same weights computed less
    precisely: the revision stays and the dtype becomes a setting. A model passed as an object is changed in place.

    Raises:
        InputError: the model cannot be loaded, or the dtype is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    source: str | Path | None = None
    if not isinstance(model, SentenceTransformer):
        source = model
        device = device or str(process_state().device)
        try:
            model = SentenceTransformer(str(source), device=device)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{str(source)!r} cannot be loaded as a sentence-transformers model, neither as a directory nor from "
                f"the Hub: {str(error).splitlines()[0]}"
            ) from error
    if instructions is not None:
        set_prompts(model, instructions)
    identity: list[Any] = [None]
    if process_state().is_main_process:
        identity = [_identity(model, source, name, changed=instructions is not None)]
    own = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype is not None and dtype != own:
        model.to(getattr(torch, dtype))
    return Loaded(model, broadcast_object_list(identity)[0], {} if dtype in (None, own) else {"dtype": dtype})


def _identity(model: SentenceTransformer, source: str | Path | None, name: str | None, changed: bool) -> Identity:
    if changed and source is not None and not Path(source).exists():
        return identify(model, None, name or str(source))
    return identify(model, source, name)
