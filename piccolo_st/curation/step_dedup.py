"""The step ``dedup``: exact and near duplicates within and across datasets, and texts of the evaluation sets.

    (1) signatures: every part leaves its rows' exact keys and MinHash bands, and the rows that hold a text of an
        evaluation set, found by exact comparison; those go;
    (2) exact: rows whose keys stand earlier go; of pairs with contradictory labels all go;
    (3) candidates: one task a band finds the remaining rows that agree in it;
    (4) near: candidates are compared exactly, column by column; of similar rows the earliest stays;
    (5) write: each part without those rows, and without evaluation texts among its negatives.

Memory: a task holds the texts of one part, or the keys of some two million rows that it sorts; the last stage of (4)
holds the similar pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import pyarrow as pa

from piccolo_st.curation.duplicates import (
    DedupSettings,
    band_keys,
    contaminated,
    distinct_pairs,
    first_of_each,
    greedy_duplicates,
    identity_keys,
    row_keys,
    similar_rows,
    without_tests,
)
from piccolo_st.curation.job import Job, Part, finish, write_part, write_rejects
from piccolo_st.curation.shingles import Collection, bands_for
from piccolo_st.curation.stages import Stage
from piccolo_st.data import LABELLED_TASKS, DatasetSpec, is_scored

# Rows compared or hashed at once: bounds the memory of a task, whatever its part's size.
_ROWS = 20_000
# Keys sorted at once.
_KEYS = 2_000_000
# In the place of the first row with the same key.
_CONTRADICTED, _TESTED = -1, -2


@dataclass(frozen=True)
class DedupStep:
    """The step over one mixture.

    Attributes:
        job: its input and output.
        settings: what counts as a duplicate.
    """

    job: Job
    settings: DedupSettings

    def stages(self) -> list[Stage]:
        """What to run, in order."""
        parts = len(self.parts)
        near = []
        if self.settings.near is not None:
            near = [
                Stage("candidates", self.bands[0], partial(_candidates, self)),
                Stage("near", 1, partial(_near, self)),
            ]
        return [
            Stage("signatures", parts, partial(_signatures, self)),
            Stage("exact", 1, partial(_exact, self)),
            *near,
            Stage("write", parts, partial(_write, self)),
            Stage("finish", 1, partial(_finish, self)),
        ]

    @property
    def parts(self) -> list[Part]:
        """The rows in tasks."""
        return self.job.parts(self.settings.part_rows)

    @property
    def bands(self) -> tuple[int, int]:
        """(bands, rows a band) of the signatures; none without a search for near duplicates."""
        return bands_for(self.settings.near, self.settings.permutations) if self.settings.near is not None else (0, 0)

    def group(self, dataset: str) -> int:
        """Rows of one group may be duplicates of each other. Labels of two datasets say different things of a text, so
        that labelled texts are compared within their dataset."""
        names = list(self.job.mixture.train)
        task = self.job.mixture.specs[dataset].task
        if not self.settings.across or task in LABELLED_TASKS:
            return names.index(dataset)
        return [self.job.mixture.specs[name].task for name in names].index(task)

    def load(self, name: str) -> np.ndarray:
        """An array that a stage left, memory-mapped."""
        return np.load(self.job.work / f"{name}.npy", mmap_mode="r")

    def save(self, name: str, array: np.ndarray) -> None:
        """Leave an array."""
        np.save(self.job.work / f"{name}.npy", array)

    def offsets(self) -> np.ndarray:
        """(parts + 1,) int64: the number, over all datasets, of each part's first row."""
        return np.concatenate([[0], np.cumsum([part.stop - part.start for part in self.parts])])

    def starts(self) -> np.ndarray:
        """(datasets + 1,) int64: the number, over all datasets, of each dataset's first row."""
        return np.concatenate([[0], np.cumsum([len(dataset) for dataset in self.job.mixture.train.values()])])

    def alike(
        self, read: Callable[[int], np.ndarray], wanted: Callable[[int, slice], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(m,) rows and their keys, all rows of a key together, about ``_KEYS`` at a time to bound the memory.

        Args:
            read: a part's keys, spread evenly over uint64.
            wanted: of a part, and its rows numbered over all datasets, whether each takes part.
        """
        offsets = self.offsets()
        pieces = int(offsets[-1]) // _KEYS + 1
        for piece in range(pieces):
            rows, keys = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint64)]
            for task, (start, stop) in enumerate(pairwise(offsets.tolist())):
                own = read(task)
                places = np.flatnonzero((own % np.uint64(pieces) == piece) & wanted(task, slice(start, stop)))
                rows.append(places + start)
                keys.append(own[places])
            yield np.concatenate(rows), np.concatenate(keys)

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """(m,) float32, the scores of rows in ascending order; NaN where their dataset has none."""
        found, offsets = np.full(len(rows), np.nan, dtype=np.float32), self.offsets()
        bounds = np.searchsorted(rows, offsets).tolist()
        for task, (start, stop) in enumerate(pairwise(bounds)):
            if start < stop and (self.job.work / f"labels-{task}.npy").is_file():
                found[start:stop] = self.load(f"labels-{task}")[rows[start:stop] - offsets[task]]
        return found

    def datasets_of(self, rows: np.ndarray) -> np.ndarray:
        """The dataset, by its place in the mixture, of rows numbered over all datasets."""
        return np.searchsorted(self.starts(), rows, side="right") - 1

    def spec(self, dataset: int) -> DatasetSpec:
        """Of a dataset by its place."""
        return self.job.mixture.specs[list(self.job.mixture.train)[dataset]]

    def rows(self, dataset: int, rows: np.ndarray) -> pa.Table:
        """Rows, numbered over all datasets, of the dataset at that place."""
        numbers = (rows - self.starts()[dataset]).tolist()
        return list(self.job.mixture.train.values())[dataset].with_format("arrow")[numbers]

    def name_of(self, row: int) -> str:
        """A row for a message, counted from 1 in its dataset."""
        dataset = int(self.datasets_of(np.array(row)))
        return f"row {row - int(self.starts()[dataset]) + 1} of {list(self.job.mixture.train)[dataset]}"

    def tests(self) -> Collection | None:
        """The texts that must not be trained on."""
        texts = self.job.evaluation_texts()
        if self.settings.decontaminate is None or not texts:
            return None
        return _collection(tuple(texts), self.settings.shingle, self.job)

    def test_names(self) -> list[str]:
        """The evaluation set of each of those texts."""
        return [name for name, texts in self.job.evaluation_texts().items() for _ in range(len(texts))]


@lru_cache(maxsize=1)
def _collection(_: tuple[str, ...], shingle: int, job: Job) -> Collection:
    return Collection(pa.concat_arrays(list(job.evaluation_texts().values())), shingle)


def _signatures(step: DedupStep, task: int) -> None:
    """``keys``, ``bands``, ``tests`` (the evaluation text a row holds, or -1) and, where there are any, ``labels``."""
    part = step.parts[task]
    spec, table, group = step.job.mixture.specs[part.dataset], step.job.table(part), step.group(part.dataset)
    tests = step.tests()
    keys, bands, found = [], [], []
    for start in range(0, table.num_rows, _ROWS):
        some = table.slice(start, _ROWS)
        texts = identity_keys(spec, some)
        keys.append(row_keys(spec, texts, group))
        if step.settings.near is not None:
            bands.append(band_keys(texts, group, step.settings, *step.bands))
        which = np.full(some.num_rows, -1, dtype=np.int64)
        if tests is not None:
            overlap, nearest = contaminated(some, tests)
            which = np.where(overlap >= step.settings.decontaminate, nearest, -1)
        found.append(which)
    step.save(f"keys-{task}", np.concatenate(keys))
    step.save(f"tests-{task}", np.concatenate(found))
    if bands:
        step.save(f"bands-{task}", np.concatenate(bands, axis=1))
    if "label" in table.column_names and not is_scored(table):
        step.save(f"labels-{task}", table["label"].to_numpy().astype(np.float32))


def _exact(step: DedupStep, _: int) -> None:
    """``exact``: (n,) int64, the earliest row with the same key (often the row itself), -1 where labels contradict,
    -2 where the row holds an evaluation text."""
    exact = np.lib.format.open_memmap(
        step.job.work / "exact.npy", mode="w+", dtype=np.int64, shape=(int(step.offsets()[-1]),)
    )
    exact[:] = _TESTED
    for rows, keys in step.alike(
        lambda task: step.load(f"keys-{task}"), lambda task, _: step.load(f"tests-{task}") < 0
    ):
        first = first_of_each(keys)
        labels = step.labels(rows)
        # Scores are 0..1: two of the same pair that are far apart cannot both be right, and which is, nobody knows.
        apart = np.abs(labels - labels[first]) > 0.5
        exact[rows] = np.where(np.isin(first, first[apart]), _CONTRADICTED, rows[first])
    exact.flush()


def _candidates(step: DedupStep, band: int) -> None:
    """``candidates-BAND``: (m, 2) int64, rows that agree in the band, neighbours and with the first of their group."""
    exact = step.load("exact")
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for rows, hashes in step.alike(
        lambda task: step.load(f"bands-{task}")[band], lambda _, own: exact[own] == np.arange(own.start, own.stop)
    ):
        order = np.argsort(hashes, kind="stable")
        same = np.zeros(len(order), dtype=bool)
        same[1:] = hashes[order][1:] == hashes[order][:-1]
        begins, follows = np.flatnonzero(~same), np.flatnonzero(same)
        leader = np.repeat(order[begins], np.diff(np.append(begins, len(order))))
        for before in (leader[follows], order[follows - 1]):
            pairs.append(rows[np.stack([before, order[follows]], axis=1)])
    step.save(f"candidates-{band}", distinct_pairs(np.concatenate(pairs), len(exact)))


def _near(step: DedupStep, _: int) -> None:
    """``near``: (k, 2) int64, a row that goes and the similar row that stays."""
    pairs = np.zeros((0, 2), dtype=np.int64)
    for band in range(step.bands[0]):
        pairs = distinct_pairs(np.concatenate([pairs, step.load(f"candidates-{band}")]), int(step.offsets()[-1]))
    similar = np.zeros(len(pairs), dtype=bool)
    datasets = step.datasets_of(pairs)
    for one, other in distinct_pairs(datasets, len(step.job.mixture.train)).tolist():
        of_both = np.flatnonzero((datasets == [one, other]).all(axis=1))
        for start in range(0, len(of_both), _ROWS):
            where = of_both[start : start + _ROWS]
            sides = ((one, pairs[where, 0]), (other, pairs[where, 1]))
            left, right = (identity_keys(step.spec(dataset), step.rows(dataset, rows)) for dataset, rows in sides)
            similar[where] = similar_rows(left, right, step.settings.shingle) >= step.settings.near
    gone, kept = greedy_duplicates(pairs[similar])
    step.save("near", np.stack([gone, kept], axis=1))


def _write(step: DedupStep, task: int) -> None:
    part = step.parts[task]
    start, stop = step.offsets()[task : task + 2].tolist()
    table = step.job.table(part)
    reasons: dict[int, tuple[str, str]] = {}  # row of the part -> kind, detail
    names = step.test_names()
    for row, test in enumerate(step.load(f"tests-{task}").tolist()):
        if test >= 0:
            reasons[row] = ("evaluation text", f"of {names[test]}")
    for row, first in enumerate(step.load("exact")[start:stop].tolist()):
        if first == _CONTRADICTED:
            reasons[row] = ("contradictory labels", "for the same texts")
        elif first != _TESTED and first != start + row:
            reasons[row] = ("exact duplicate", f"of {step.name_of(first)}")
    if step.settings.near is not None:
        near = step.load("near")
        for row, kept in near[(near[:, 0] >= start) & (near[:, 0] < stop)].tolist():
            reasons[row - start] = ("near duplicate", f"of {step.name_of(kept)}")
    tests = step.tests()
    if tests is not None:
        threshold = step.settings.decontaminate
        assert threshold is not None
        pieces = [without_tests(table.slice(at, _ROWS), tests, threshold) for at in range(0, table.num_rows, _ROWS)]
        table = pa.concat_tables([piece for piece, _ in pieces])
        for row in np.flatnonzero(np.concatenate([bad for _, bad in pieces])).tolist():
            reasons.setdefault(row, ("evaluation text", "as its negative"))
    gone = np.array(sorted(reasons), dtype=np.int64)
    stays = np.ones(table.num_rows, dtype=bool)
    stays[gone] = False
    write_rejects(step.job.folder, part, table, gone, [" ".join(reasons[row]) for row in gone.tolist()])
    write_part(step.job.folder, part, table.filter(pa.array(stays)), [kind for kind, _ in reasons.values()])


def _finish(step: DedupStep, _: int) -> None:
    finish(step.job, "dedup", step.parts)
