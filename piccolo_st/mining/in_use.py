"""Which candidates of each row are its negatives at a step of a run: the state that re-mining keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from piccolo_st.data import DatasetSpec, arrow_parts
from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.limits import reading
from piccolo_st.mining.miner import with_negatives
from piccolo_st.mining.remining import ReminingSettings, hardest, without_easy
from piccolo_st.mining.search import EmbeddingSearch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NEGATIVES = "negatives.safetensors"
_ROWS = 50_000  # whose texts stand in memory at once

Embed = Callable[[Sequence[str], Any], NDArray[np.float32]]


@dataclass
class RowNegatives:
    """The negatives in use of one dataset.

    Attributes:
        dataset: its rows, whose ``negative`` lists each row's candidates.
        spec, mining: what the mixture and the mining settings say of it.
        lengths: how many candidates a row has: (rows,).
        counts: how many of them are used: (rows,).
        places: which, by their places in the list: (rows, most), -1 where there are fewer.
        first: their first similarities to the query, NaN where they have none yet: (rows, most).
        changed, before: the rows of the last judgement, ascending, and their ``places`` until it holds.
    """

    dataset: Dataset
    spec: DatasetSpec
    mining: MiningSettings
    lengths: NDArray[np.int32]
    counts: NDArray[np.int32]
    places: NDArray[np.int32] = field(init=False)
    first: NDArray[np.float32] = field(init=False)
    changed: NDArray[np.int64] = field(init=False)
    before: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        most = int(self.counts.max(initial=0))
        order = np.arange(most, dtype=np.int32)
        self.places = np.where(order < self.counts[:, None], order, np.int32(-1))
        self.first = np.full(self.places.shape, np.nan, np.float32)
        self.changed, self.before = np.empty(0, np.int64), np.empty((0, most), np.int32)

    @classmethod
    def of(cls, dataset: Dataset, before: Dataset, spec: DatasetSpec, mining: MiningSettings) -> RowNegatives:
        """Those of a mined dataset before its first step: its own negatives, then the first that mining chose.

        Args:
            dataset: mined, with more candidates than are used.
            before: the same rows before they were mined.
            spec, mining: as the attributes.
        """
        tables = arrow_parts(before, _ROWS)
        own = (with_negatives(table, [()] * table.num_rows, mining.existing) for table in tables)
        lengths, own_lengths = (
            np.concatenate([pc.list_value_length(table["negative"]).to_numpy() for table in parts]).astype(np.int32)
            for parts in (arrow_parts(dataset.select_columns(["negative"]), _ROWS), own)
        )
        return cls(dataset, spec, mining, lengths, np.minimum(lengths, own_lengths + mining.num_negatives))

    def at(self, rows: NDArray[np.int64], held: bool) -> NDArray[np.int32]:
        """The places of some rows' negatives: (rows, most).

        Args:
            rows: any of the dataset.
            held: whether the last judgement holds already.
        """
        found = self.places[rows]
        if not held and len(self.changed):
            where = np.searchsorted(self.changed, rows).clip(max=len(self.changed) - 1)
            old = self.changed[where] == rows
            found[old] = self.before[where[old]]
        return found

    def scores(
        self, rows: NDArray[np.int64], places: NDArray[np.int32], embed: Embed, positives: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """How like the query some of its candidates are, and its positive.

        Args:
            rows: of the dataset.
            places: which candidates: (rows, any), -1 for none.
            embed: texts and what they are read as -> unit embeddings.
            positives: whether the positive is asked for.

        Returns:
            (rows, any) and (rows,); NaN for what was not asked for.
        """
        found, right = np.full(places.shape, np.nan, np.float32), np.full(len(rows), np.nan, np.float32)
        if not len(rows):
            return found, right
        table = self.dataset.with_format("arrow")[rows]
        lists = table["negative"].to_pylist()
        owners, columns = np.nonzero(places >= 0)
        texts = [lists[row][place] for row, place in zip(owners, places[owners, columns], strict=True)]
        texts += table["positive"].to_pylist() if positives else []
        number = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        if not number:
            return found, right
        vectors, queries = embed(list(number), "document"), embed(table["query"].to_pylist(), "query")
        own = vectors[[number[text] for text in texts]]
        found[owners, columns] = np.einsum("nd,nd->n", queries[owners], own[: len(owners)])
        if positives:
            right = np.einsum("nd,nd->n", queries, own[len(owners) :])
        return found, right

    def judge(
        self, model: SentenceTransformer, rows: NDArray[np.int64], settings: ReminingSettings
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What ``update`` takes of some rows, by the model as it is; any process may do some of them."""
        places, whole = self.places[rows], settings.rule == "hardest"
        if whole:
            order = np.arange(int(self.lengths.max(initial=0)), dtype=np.int32)
            places = np.where(order < self.lengths[rows, None], order, np.int32(-1))
        found, right = np.full(places.shape, np.nan, np.float32), np.full(len(rows), np.nan, np.float32)
        with reading(model, self.spec):
            embed = EmbeddingSearch(model, (), self.mining, None).encode
            for start in range(0, len(rows), _ROWS):
                part = slice(start, start + _ROWS)
                found[part], right[part] = self.scores(rows[part], places[part], embed, whole)
        return found, right

    def update(
        self,
        rows: NDArray[np.int64],
        scores: NDArray[np.float32],
        right: NDArray[np.float32],
        settings: ReminingSettings,
    ) -> int:
        """Take what a judgement of rows, ascending, has found; how many negatives are others from now on."""
        before = self.places[rows]
        if settings.rule == "easy":
            places, self.first[rows] = without_easy(before, self.first[rows], scores, self.lengths[rows], settings)
        else:
            places = hardest(before, self.counts[rows], scores, right, self.mining.relative_margin)
        self.changed, self.before, self.places[rows] = rows, before, places
        new = (places[:, :, None] != before[:, None, :]).all(axis=2) & (places >= 0)
        return int(new.sum())


class NegativesInUse:
    """The negatives in use of a run: ``in_use`` of a HomogeneousBatchSampler.

    Args:
        settings: of the re-mining.
        names: of all datasets of the run.
        datasets: those that are re-mined.

    Attributes:
        held_from: the optimizer step from which the last judgement holds.
        judged, replaced: negatives that were judged, and that were others after it.
        seconds: that judging has taken.
    """

    def __init__(self, settings: ReminingSettings, names: Sequence[str], datasets: Mapping[str, RowNegatives]) -> None:
        self.settings, self.names, self.datasets = settings, list(names), dict(datasets)
        self.held_from = self.judged = self.replaced = 0
        self.seconds = 0.0

    def __call__(self, dataset: int, rows: NDArray[np.int64], step: int) -> NDArray[np.int32] | None:
        """Places of the negatives of some rows at an optimizer step; None for a dataset that is not re-mined."""
        own = self.datasets.get(self.names[dataset])
        return None if own is None else own.at(rows, step >= self.held_from)

    def begin(self, model: SentenceTransformer, folder: Path) -> None:
        """Find the first similarities, which the model that a run starts from gives.

        Args:
            model: that one.
            folder: where embeddings are kept.
        """
        if self.settings.rule != "easy":
            return
        for own in self.datasets.values():
            with reading(model, own.spec):
                embed = EmbeddingSearch(model, (), own.mining, folder).embed
                for start in range(0, len(own.places), _ROWS):
                    rows = np.arange(start, min(start + _ROWS, len(own.places)))
                    own.first[rows] = own.scores(rows, own.places[rows], embed)[0]

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint."""
        arrays: dict[str, NDArray[Any]] = {
            "counts": np.array([self.held_from, self.judged, self.replaced], np.int64),
            "seconds": np.array([self.seconds], np.float64),
        }
        for name, own in self.datasets.items():
            arrays |= {f"{name}.{key}": getattr(own, key) for key in ("places", "first", "changed", "before")}
        save_file(arrays, folder / NEGATIVES)

    def load(self, folder: Path) -> None:
        """Put back what ``save`` wrote.

        Raises:
            ValueError: it is the state of other datasets.
        """
        arrays = load_file(folder / NEGATIVES)
        for name, own in self.datasets.items():
            places, first, changed, before = (
                arrays[f"{name}.{key}"] for key in ("places", "first", "changed", "before")
            )
            fits = places.shape == first.shape == own.places.shape and before.shape == (len(changed), places.shape[1])
            inside = fits and bool(
                (places < own.lengths[:, None]).all() and (before < own.lengths[changed, None]).all()
            )
            if not inside:
                raise ValueError(f"{NEGATIVES} has other rows or candidates than dataset {name!r}")
            own.places, own.first, own.changed, own.before = places, first, changed, before
        self.held_from, self.judged, self.replaced = map(int, arrays["counts"])
        self.seconds = float(arrays["seconds"][0])

    def statistics(self) -> dict[str, float]:
        """What was judged and replaced so far."""
        return {"negatives_judged": self.judged, "negatives_replaced": self.replaced}
