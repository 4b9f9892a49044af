"""What a guide or teachers make of all texts of some training sets: embedded before the run, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.embeddings import StoredEmbeddings, store_embeddings
from piccolo_st.mining.search import EmbeddingSearch
from piccolo_st.modeling import Task, dataset_tasks

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_ROWS = 50_000  # of which texts and embeddings stand in memory at once


class StoredGuide:
    """The ``guide`` of PiccoloDataCollator, or its ``teacher``, for some datasets.

    Args:
        names: of the datasets.
        folders: where the embeddings of queries and of documents are.

    Attributes:
        made_of: the names of the folders, which say whose embeddings they hold and how it read the texts.
    """

    def __init__(self, names: Iterable[str], folders: Mapping[Task, Path]) -> None:
        self.made_of = {task: folder.name for task, folder in folders.items()}
        self.names = frozenset(names)
        self._read = {task: StoredEmbeddings(folder) for task, folder in folders.items()}

    def __call__(self, name: str | None, texts: Sequence[str], task: Task) -> NDArray[np.float32] | None:
        """The embeddings of a column's texts, (texts, dimensions); None for a dataset without a guide."""
        return self._read[task](texts) if name in self.names else None


class StoredTeachers:
    """The ``teacher`` of PiccoloDataCollator: of several models the unit embeddings, one after the other.

    Each is multiplied by the square root of its share of the weights, so the whole has length 1 and the inner product
    of two is the weighted mean of the models' similarities.

    Args:
        teachers: each with its weight, at least one, all for the same datasets.

    Attributes:
        made_of: number of a teacher -> its ``made_of``.
    """

    def __init__(self, teachers: Sequence[tuple[float, StoredGuide]]) -> None:
        self.made_of = {str(number): stored.made_of for number, (_, stored) in enumerate(teachers, start=1)}
        total = sum(weight for weight, _ in teachers)
        self._teachers = [((weight / total) ** 0.5, stored) for weight, stored in teachers]

    def __call__(self, name: str | None, texts: Sequence[str], task: Task) -> NDArray[np.float32] | None:
        """(texts, dimensions of all); None for a dataset without teachers."""
        seen = [(factor, stored(name, texts, task)) for factor, stored in self._teachers]
        parts = [np.float32(factor) * vectors for factor, vectors in seen if vectors is not None]
        return np.concatenate(parts, axis=1) if parts else None


def store_guide(model: SentenceTransformer, datasets: Mapping[str, Dataset], folder: Path) -> StoredGuide:
    """Embed every text of the datasets with a guide or teacher, each once, as its own prompts and lengths say.

    Args:
        model: the guide or teacher.
        datasets: with the columns query, positive and perhaps negatives.
        folder: where embeddings are kept, of all models; what is there is not made again.
    """
    encoder = EmbeddingSearch(model, (), MiningSettings(), folder)
    folders: dict[Task, Path] = {}
    for name, tasks in dataset_tasks({name: dataset.column_names for name, dataset in datasets.items()}).items():
        for column, task in tasks.items():
            folders.setdefault(task, folder / encoder.reading(task))
            store_embeddings(folders[task], partial(_texts, datasets[name], column), partial(encoder.encode, side=task))
    return StoredGuide(datasets, folders)


def _texts(dataset: Dataset, column: str) -> Iterator[list[str]]:
    """The distinct texts of a column of texts or of lists of texts, some rows at a time."""
    for rows in dataset.select_columns([column]).with_format("arrow").iter(_ROWS):
        values = rows[column]
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = pc.list_flatten(values)
        yield pc.unique(values).drop_null().to_pylist()
