"""What a dataset's own instruction and lengths do wherever its texts are cut: batches, mining, held-out search.

The run's hold where a dataset says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from piccolo_st.data import DatasetSpec
from piccolo_st.errors import MixtureError
from piccolo_st.modeling import Task

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


def check_dataset(model: SentenceTransformer, spec: DatasetSpec) -> None:
    """Raise InputError if ``model`` cannot cut texts as the dataset asks; see ``lengths.check_lengths``."""
    if (spec.instruction, spec.query_length, spec.document_length) == (None, None, None):
        return
    from piccolo_st.modeling import check_lengths

    try:
        check_lengths(model, spec.query_length, spec.document_length, spec.instruction, f"dataset {spec.name!r}")
    except TypeError as error:  # no Transformer: it cuts nothing, and an instruction needs no length
        if spec.query_length is not None or spec.document_length is not None:
            raise MixtureError(f"query_length and document_length of dataset {spec.name!r}: {error}") from None


@contextmanager
def reading(model: SentenceTransformer, spec: DatasetSpec) -> Iterator[None]:
    """For a while, let ``encode_query`` and ``encode_document`` read texts as the dataset has them in training.

    Raises:
        InputError: the model cannot; see ``check_dataset``.
    """
    from piccolo_st.modeling import other_lengths

    check_dataset(model, spec)
    before = model.prompts
    if spec.instruction is not None:
        model.prompts = {**before, **spec.instruction.prompts}
    try:
        with other_lengths(model, spec.query_length, spec.document_length):
            yield
    finally:
        model.prompts = before
