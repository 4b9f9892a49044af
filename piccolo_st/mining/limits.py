"""What a dataset's own instruction and lengths do wherever its texts are cut: batches, mining, held-out search.

The run's hold where a dataset says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from piccolo_st.data import DatasetSpec
from piccolo_st.errors import MixtureError
from piccolo_st.modeling import Instructions, Task

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def dataset_limits(specs: Iterable[DatasetSpec]) -> dict[str, dict[Task, int]]:
    """Dataset -> task -> tokens, as the collator's ``max_length`` takes it; a dataset without its own is left out."""
    limits: dict[str, dict[Task, int]] = {}
    for spec in specs:
        own: dict[Task, int | None] = {"query": spec.query_length, "document": spec.document_length}
        if found := {task: length for task, length in own.items() if length is not None}:
            limits[spec.name] = found
    return limits


def check_dataset(model: SentenceTransformer, spec: DatasetSpec, instructions: Instructions | None = None) -> None:
    """Raise InputError if ``model`` cannot cut texts as the dataset asks; see ``lengths.check_lengths``.

    ``instructions`` are those of a run, in all their wordings; None: the model's prompts, which have the first alone.
    """
    if (spec.instruction, spec.query_length, spec.document_length) == (None, None, None):
        return
    from piccolo_st.modeling import check_lengths

    try:
        said = instructions if spec.instruction is None else spec.instruction
        check_lengths(model, spec.query_length, spec.document_length, said, f"dataset {spec.name!r}")
    except TypeError as error:  # no Transformer: it cuts nothing, and an instruction needs no length
        if spec.query_length is not None or spec.document_length is not None:
            raise MixtureError(f"query_length and document_length of dataset {spec.name!r}: {error}") from None


def read_at_most(model: SentenceTransformer, tokens: int, place: str) -> None:
    """Let a model that is used as it was saved read no further than a run does, or than it does itself.

    Args:
        model: its ``query_length`` and ``document_length`` change, if it cuts texts at all.
        tokens: the longest text that the run reads; a query may be as long, since the model's own instruction may be
            longer than the run's.
        place: what names it, for messages.

    Raises:
        InputError: no text has room behind its instruction.
    """
    from piccolo_st.modeling import check_lengths

    if (most := _readable(model, tokens)) is None:
        return
    first: Any = model[0]
    for name in ("query_length", "document_length"):
        setattr(first, name, min(most, getattr(first, name) or model.max_seq_length or most))
    check_lengths(model, None, None, place=place)


def _readable(model: SentenceTransformer, length: int | None) -> int | None:
    """A length, or as much as the encoder has positions for; None for a model that cuts nothing."""
    from sentence_transformers.base.modules import Transformer

    from piccolo_st.modeling.positions import usable_positions

    if length is None or not isinstance(model[0], Transformer):
        return None
    return min(length, usable_positions(model[0].auto_model) or length)


@contextmanager
def reading(model: SentenceTransformer, spec: DatasetSpec) -> Iterator[None]:
    """For a while, let ``encode_query`` and ``encode_document`` read texts as the dataset has them in training.

    A model that is not trained on it, a miner, may have fewer positions than the dataset asks for, or cut nothing: it
    reads as much as it can.

    Raises:
        InputError: the model cannot; see ``check_dataset``.
    """
    from piccolo_st.modeling import other_lengths

    spec = replace(
        spec, query_length=_readable(model, spec.query_length), document_length=_readable(model, spec.document_length)
    )
    check_dataset(model, spec)
    before = model.prompts
    if spec.instruction is not None:
        model.prompts = {**before, **spec.instruction.prompts}
    try:
        with other_lengths(model, spec.query_length, spec.document_length):
            yield
    finally:
        model.prompts = before
