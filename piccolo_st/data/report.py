"""What came of each dataset of a mixture: rows read, used and lost on the way, in numbers that add up."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from piccolo_st.data.chunks import Reject
from piccolo_st.data.columns import Columns, has_scores, optional_roles, required_roles
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.errors import MixtureError
from piccolo_st.tables import table

LOUD = 0.1
"""The share of rows rejected from which a dataset's rejects are a warning; ``max_rejected`` says what is too much."""


@dataclass
class Counts:
    """What is counted while a dataset is read and checked; ``report.json`` of its cache entry.

    Attributes:
        scores: the lowest and highest score, before scaling; None without scores.
        misfits: scores out of ``score_range``, or of a pair and neither end of it.
        suggestions: what to set in order to use columns whose names speak of a role.
        misread: what the file is, where most rows were rejected and its beginning tells it.

    The others are those of DatasetReport, ``written`` its ``written_lists``; ``kept`` has the held-out rows as well.
    """

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    added: int = 0
    kept: int = 0
    unused_columns: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    suggestions: list[str] = field(default_factory=list)
    scores: list[float] | None = None
    misfits: int = 0
    misread: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Counts:
        """The counts in a cache entry."""
        counts = cls(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
        for name in ("rejected", "removed", "left_out"):
            setattr(counts, name, Counter(getattr(counts, name)))
        return counts

    def write(self, folder: Path) -> None:
        """Write them into a cache entry."""
        (folder / "report.json").write_text(json.dumps(vars(self), ensure_ascii=False, indent=1), encoding="utf-8")


@dataclass
class HeldOutCounts:
    """What left a training set with the held-out texts; ``report.json`` of its cache entry.

    Attributes:
        held_out: reason -> rows.
        removed: reason -> items of lists whose row stayed.
    """

    held_out: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)


def read_rejects(folder: Path) -> Iterator[Reject]:
    """The rejects in a cache entry, rows and items alike."""
    with open(folder / "rejects.jsonl", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            record.pop("action")
            yield Reject(**record)


def enforce(spec: DatasetSpec, counts: Counts, folder: Path, policy: str) -> None:
    """Apply the dataset's policy to what was found and stands in the cache entry ``folder``.

    Raises:
        MixtureError: a row is faulty and the policy is ``error``; too many are; none is left.
    """
    rejected = counts.rejected.total()
    found = ", ".join(f"{number} {reason}" for reason, number in counts.rejected.most_common(5))
    if counts.rows == 0:
        raise MixtureError(f"dataset {spec.name!r} is empty: {spec.source} has no rows; remove it or give it data")
    if policy == "error" and (rejected or counts.removed):
        first = next(read_rejects(folder))
        others = rejected + counts.removed.total() - 1
        more = f" and {others} more" * (others > 0)
        raise MixtureError(
            f"dataset {spec.name!r} has a faulty row and the policy 'error': {first.file}, row {first.row}: "
            f"{first.reason} ({first.excerpt}){more}; mend such rows or set `policy: drop`"
        )
    if rejected > spec.max_rejected * counts.rows:
        remedy = f"; {counts.misread}" if counts.misread else ", and check `columns` and `task`"
        if note := _score_note(spec, counts):
            remedy = f", and check its scale: {note}"
        raise MixtureError(
            f"{rejected} of the {counts.rows} rows of dataset {spec.name!r} are faulty ({found}), more than "
            f"max_rejected={spec.max_rejected:g}; look at {folder / 'rejects.jsonl'}{remedy}"
        )
    if counts.kept == 0:
        raise MixtureError(f"dataset {spec.name!r} has no row left of {counts.rows}: {found or dict(counts.left_out)}")


def _score_note(spec: DatasetSpec, counts: Counts) -> str | None:
    """That scores which do not fit ``score_range`` may have another scale."""
    if not counts.misfits or counts.scores is None:
        return None
    (low, high), given = counts.scores, spec.score_range
    return (
        f"its scores run from {low:g} to {high:g} and score_range is [{given[0]:g}, {given[1]:g}], so those that were "
        f"kept may be on the wrong scale as well; if {low:g} to {high:g} is theirs, set `score_range: [{low:g}, "
        f"{high:g}]`"
    )


def _first_rows_note(spec: DatasetSpec, counts: Counts) -> str | None:
    """That the rows which ``max_rows`` reads have all the same score, as in a file sorted by it."""
    if spec.max_rows is None or counts.rows < max(2, spec.max_rows) or counts.scores is None:
        return None
    low, high = counts.scores
    if low != high:
        return None
    return (
        f"all of its scores are {low:g}, and max_rows={spec.max_rows} reads the first rows of the file, which may be "
        "sorted by score; shuffle it, or raise `max_rows`"
    )


# What in a column's name speaks of which role, and columns of peers that look like one and are none.
_SPEAKS = {
    "label": re.compile(r"labels?|scores?"),
    "negative": re.compile(r"neg(?:s|atives?)?"),
    "positive": re.compile(r"pos(?:itives?)?"),
    "query": re.compile(r"query|queries"),
}
_NO_ROLE = {"pos_scores", "neg_scores"}


def suggestions(spec: DatasetSpec, columns: Columns) -> list[str]:
    """For each unused column whose name speaks of a role, what to set in order to use it."""
    possible = [role for role in (*required_roles(spec), *optional_roles(spec)) if not has_scores(spec, role)]
    found = []
    for column in columns.unused:
        words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower())
        role = next((role for role, name in _SPEAKS.items() if any(map(name.fullmatch, words))), None)
        if role is None or column in _NO_ROLE or words[-1] in ("id", "ids"):
            continue
        if role in possible:
            found.append(
                f"its column {column!r} looks like a {role} and is not used; to use it, set `columns: {{{role}: "
                f"{column}}}`"
            )
        elif role == "label" and {"query", "positive"} <= columns.names.keys():
            pair = f"sentence1: {columns.names['query']}, sentence2: {columns.names['positive']}, label: {column}"
            found.append(
                f"its column {column!r} looks like a label, which {spec.task} does not read; if it tells positives "
                f"from other texts, set `preset: {{name: scored_pairs}}` and `columns: {{{pair}}}`"
            )
    return found


@dataclass(frozen=True)
class DatasetReport:
    """What became of the rows of one dataset.

    ``rows + added == kept + sum(rejected.values()) + sum(left_out.values()) + sum(held_out.values())``.

    Attributes:
        rows: rows read, faulty ones included.
        added: rows gained where one row with several positives became several.
        kept: rows of the dataset as it is trained on, or evaluated.
        rejected: reason -> faulty rows.
        left_out: reason -> sound rows that the preset or ``positives: first`` does not use.
        held_out: reason -> rows that hold a held-out query or positive.
        removed: reason -> items left out of lists whose row stayed.
        unused_columns: columns of the source that play no role.
        written_lists: columns whose lists are written as text, and are read as lists.
        warnings: what to set where something looks like a setting that is not right.
        licence: what the mixture says of it.
        rejects_path: rejects.jsonl, one line for each rejected row and each faulty item.
    """

    name: str
    task: str
    rows: int
    added: int
    kept: int
    rejected: Mapping[str, int]
    left_out: Mapping[str, int]
    held_out: Mapping[str, int]
    removed: Mapping[str, int]
    unused_columns: tuple[str, ...]
    written_lists: tuple[str, ...]
    warnings: tuple[str, ...]
    licence: str | None
    rejects_path: Path

    @classmethod
    def of(cls, spec: DatasetSpec, counts: Counts, folder: Path, lost: HeldOutCounts) -> DatasetReport:
        """From what was counted while the dataset was read, and what then left it with the held-out texts."""
        notes = (_score_note(spec, counts), _first_rows_note(spec, counts), *counts.suggestions)
        return cls(
            name=spec.name,
            task=spec.task,
            rows=counts.rows,
            added=counts.added,
            kept=counts.kept - lost.held_out.total(),
            rejected=dict(counts.rejected),
            left_out=dict(counts.left_out),
            held_out=dict(lost.held_out),
            removed={**counts.removed, **lost.removed},
            unused_columns=tuple(counts.unused_columns),
            written_lists=tuple(counts.written),
            warnings=tuple(note for note in notes if note),
            licence=spec.licence,
            rejects_path=folder / "rejects.jsonl",
        )

    def as_dict(self) -> dict[str, object]:
        """The report as JSON can hold it, without the place of the rejects: a record may be published."""
        plain = dataclasses.asdict(self)
        del plain["rejects_path"]
        return plain

    def lines(self) -> Iterator[str]:
        """A line for each number that is not zero, and a warning where a setting may be wrong."""
        if self.added:
            yield f"{self.name}: {_counted(self.added, 'row')} added: one for each further positive of a row"
        losses = (
            ("row", "rejected", self.rejected),
            ("item", "removed", self.removed),
            ("row", "left out", self.left_out),
            ("row", "held out", self.held_out),
        )
        for thing, action, reasons in losses:
            for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
                yield f"{self.name}: {_counted(number, thing)} {action}: {reason}"
        rejected = sum(self.rejected.values())
        if rejected or self.removed:
            yield f"{self.name}: the rejects, row by row: {self.rejects_path}"
        if rejected >= max(1, LOUD * self.rows):
            yield f"warning: {self.name}: {rejected / self.rows:.0%} of its {self.rows:,} rows are rejected"
        for warning in self.warnings:
            yield f"warning: {self.name}: {warning}"
        if self.written_lists:
            yield f"{self.name}: lists written as text, read as lists: {', '.join(self.written_lists)}"
        if self.unused_columns:
            yield f"{self.name}: columns not used: {', '.join(self.unused_columns)}"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


@dataclass(frozen=True)
class MixtureReport:
    """The reports of all datasets, by name."""

    datasets: Mapping[str, DatasetReport]

    def __str__(self) -> str:
        return self.text()

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Name -> report, as JSON can hold it."""
        return {name: report.as_dict() for name, report in self.datasets.items()}

    def text(self, further: Mapping[str, Mapping[str, object]] | None = None) -> str:
        """A table of all datasets, and below it a line for each loss.

        Args:
            further: more columns: header -> name of dataset -> cell; empty where it has none.
        """
        further = further or {}
        header = ("dataset", "task", "rows", "rejected", "left out", "held out", "used", *further)
        cells = [
            (r.name, r.task, r.rows, *(sum(part.values()) for part in (r.rejected, r.left_out, r.held_out)), r.kept)
            for r in self.datasets.values()
        ]
        rows = [(*row, *(column.get(str(row[0]), "") for column in further.values())) for row in cells]
        lines = [f"  {line}" for report in self.datasets.values() for line in report.lines()]
        return "\n".join([table(header, rows), *lines])
