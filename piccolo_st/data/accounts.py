"""What came of each dataset of a mixture: rows read, kept and left out, in numbers that add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piccolo_st.data.specs import DatasetSpec
from piccolo_st.report import table


@dataclass(frozen=True)
class DatasetReport:
    """The account of one dataset.

    ``rows == kept + sum(rejected.values()) + sum(left_out.values()) + held_out - added``.

    Attributes:
        rows: rows read, faulty ones included.
        kept: rows of the dataset as it is trained on.
        rejected: reason -> faulty rows left out.
        removed: reason -> faulty items left out of lists whose row stayed.
        left_out: reason -> sound rows that the preset does not use.
        added: rows gained where one row with several positives became several.
        held_out: rows that hold a held-out query or positive.
        rejects_path: rejects.jsonl, one line for each rejected row and removed item.
        licence: what the mixture says of it.
        unused_columns: columns of the source that play no role.
    """

    name: str
    task: str
    rows: int
    kept: int
    rejected: Mapping[str, int]
    removed: Mapping[str, int]
    left_out: Mapping[str, int]
    added: int
    held_out: int
    rejects_path: Path
    licence: str | None
    unused_columns: tuple[str, ...]

    @classmethod
    def of(cls, spec: DatasetSpec, numbers: Mapping[str, Any], rejects_path: Path, held_out: int) -> DatasetReport:
        """From the numbers a store's entry holds."""
        return cls(
            name=spec.name,
            task=spec.task,
            rows=numbers["rows"],
            kept=numbers["kept"] - held_out,
            rejected=numbers["rejected"],
            removed=numbers["removed"],
            left_out=numbers["left_out"],
            added=numbers["added"],
            held_out=held_out,
            rejects_path=rejects_path,
            licence=spec.licence,
            unused_columns=tuple(numbers["unused_columns"]),
        )


@dataclass(frozen=True)
class MixtureReport:
    """The accounts of all datasets, by name."""

    datasets: Mapping[str, DatasetReport]

    def __str__(self) -> str:
        header = ("dataset", "task", "rows", "kept", "rejected", "unused", "held out")
        lines = [
            (r.name, r.task, r.rows, r.kept, sum(r.rejected.values()), sum(r.left_out.values()), r.held_out)
            for r in self.datasets.values()
        ]
        text = [table(header, lines)]
        for report in self.datasets.values():
            counts = {"rejected": report.rejected, "items removed": report.removed, "unused": report.left_out}
            for action, reasons in counts.items():
                text += [f"  {report.name}: {number:,} {action}: {reason}" for reason, number in reasons.items()]
            if report.unused_columns:
                text.append(f"  {report.name}: columns not used: {', '.join(report.unused_columns)}")
        return "\n".join(text)
