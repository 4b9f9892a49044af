"""What came of each dataset of a mixture: rows read, used and lost on the way, in numbers that add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piccolo_st.data.specs import DatasetSpec
from piccolo_st.tables import table

LOUD = 0.1
"""The share of rows rejected from which a dataset's rejects are a warning; ``max_rejected`` says what is too much."""


@dataclass(frozen=True)
class DatasetReport:
    """The account of one dataset.

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
    def of(
        cls, spec: DatasetSpec, numbers: Mapping[str, Any], rejects_path: Path, lost: Mapping[str, Mapping[str, int]]
    ) -> DatasetReport:
        """From the numbers a store's entry holds, and what the held-out texts took: ``held_out`` and ``removed``."""
        return cls(
            name=spec.name,
            task=spec.task,
            rows=numbers["rows"],
            added=numbers["added"],
            kept=numbers["kept"] - sum(lost["held_out"].values()),
            rejected=numbers["rejected"],
            left_out=numbers["left_out"],
            held_out=lost["held_out"],
            removed={**numbers["removed"], **lost["removed"]},
            unused_columns=tuple(numbers["unused_columns"]),
            written_lists=tuple(numbers["written"]),
            warnings=tuple(note for note in (score_note(spec, numbers), *numbers["suggestions"]) if note),
            licence=spec.licence,
            rejects_path=rejects_path,
        )

    def as_dict(self) -> dict[str, Any]:
        """The account as JSON can hold it, without the place of the rejects: a record may be published."""
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


def score_note(spec: DatasetSpec, numbers: Mapping[str, Any]) -> str | None:
    """That scores which do not fit ``score_range`` may have another scale, from the numbers of a store's entry."""
    if not numbers["misfits"]:
        return None
    (low, high), given = numbers["scores"], spec.score_range
    return (
        f"its scores run from {low:g} to {high:g} and score_range is [{given[0]:g}, {given[1]:g}], so those that were "
        f"kept may be on the wrong scale as well; if {low:g} to {high:g} is theirs, set `score_range: [{low:g}, "
        f"{high:g}]`"
    )


@dataclass(frozen=True)
class MixtureReport:
    """The accounts of all datasets, by name."""

    datasets: Mapping[str, DatasetReport]

    def __str__(self) -> str:
        return self.text()

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Name -> account, as JSON can hold it."""
        return {name: account.as_dict() for name, account in self.datasets.items()}

    def text(self, further: Mapping[str, Mapping[str, Any]] | None = None) -> str:
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
        lines = [f"  {line}" for account in self.datasets.values() for line in account.lines()]
        return "\n".join([table(header, rows), *lines])
