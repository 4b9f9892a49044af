"""What mining did, for a person to read: what was dropped and why, ten examples of each, what is left, and how well the
search knows the answers.

Counts add up over shards; examples are the first ten queries of each reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from piccolo_st.cache import write_whole
from piccolo_st.data import excerpt
from piccolo_st.mining.candidates import JUDGE, REASONS, Hits
from piccolo_st.tables import table

EXAMPLES = 10


@dataclass(frozen=True)
class Example:
    """A candidate that was dropped.

    Attributes:
        query, positive: whose candidate it was; of several positives the first.
        candidate: the text.
        score, right: how like the query it and the positive are; None where that is not known.
    """

    query: str
    positive: str
    candidate: str
    score: float | None = None
    right: float | None = None


@dataclass
class MiningReport:
    """Counts of one dataset, or of a part of it.

    Attributes:
        queries: distinct ones that were searched for.
        candidates: texts that were looked at, the query and its positives not counted.
        dropped: reason -> how many of them went.
        examples: reason -> some of those.
        negatives: how many mined negatives a row has -> how many rows.
        ranks: where the positive stands among what the search finds: ``1``, ``2-10``, ``11-100``, ``later``, or
            ``unknown`` -> how many queries.
    """

    queries: int = 0
    candidates: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    negatives: Counter[int] = field(default_factory=Counter)
    ranks: Counter[str] = field(default_factory=Counter)

    def add(self, other: MiningReport) -> None:
        """Count another part in."""
        self.queries += other.queries
        self.candidates += other.candidates
        self.dropped.update(other.dropped)
        self.negatives.update(other.negatives)
        self.ranks.update(other.ranks)
        for reason, examples in other.examples.items():
            self.examples[reason] = [*self.examples.get(reason, []), *examples][:EXAMPLES]

    def drop(self, reason: str, example: Example) -> None:
        """Count one candidate that went."""
        self.dropped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES and example.query not in {one.query for one in examples}:
            examples.append(example)

    def count(
        self,
        hits: Hits,
        known: np.ndarray,
        dropped: np.ndarray,
        queries: Sequence[str],
        positives: Sequence[Sequence[str]],
        documents: Sequence[str],
    ) -> None:
        """Count what a search found for some queries and the rules dropped; arguments as of ``choose``."""
        self.candidates += int(((hits.places >= 0) & ~known).sum())
        for number, reason in enumerate(REASONS):
            rows, columns = np.nonzero(dropped == number)
            if not len(rows):
                continue
            self.dropped[reason] += len(rows)
            shown = np.unique(rows, return_index=True)[1][:EXAMPLES]
            found = [
                Example(
                    queries[row],
                    positives[row][0],
                    documents[hits.places[row, column]],
                    _score(hits.scores[row, column]),
                    _score(hits.right[row]),
                )
                for row, column in zip(rows[shown].tolist(), columns[shown].tolist(), strict=True)
            ]
            self.examples[reason] = [*self.examples.get(reason, []), *found][:EXAMPLES]

    def rank(self, hits: Hits, known: np.ndarray) -> None:
        """Count where the positives stand among what the search found; arguments as of ``choose``."""
        above = ((hits.scores > hits.right[:, None]) & ~known & (hits.places >= 0)).sum(axis=1) + 1
        everything = ((hits.places >= 0) & ~known).sum(axis=1)
        for rank, most, right in zip(above.tolist(), everything.tolist(), hits.right.tolist(), strict=True):
            if right != right:  # not a number
                self.ranks["unknown"] += 1
            elif rank > most > 0 or rank > 100:
                self.ranks["later"] += 1
            else:
                self.ranks["1" if rank == 1 else "2-10" if rank <= 10 else "11-100"] += 1

    def to_json(self) -> str:
        """Everything, for ``from_json``."""
        examples = {reason: [asdict(one) for one in own] for reason, own in self.examples.items()}
        return json.dumps({**vars(self), "examples": examples}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> MiningReport:
        """What ``to_json`` wrote."""
        value = json.loads(text)
        examples = {reason: [Example(**one) for one in own] for reason, own in value["examples"].items()}
        negatives = Counter({int(count): rows for count, rows in value["negatives"].items()})
        dropped, ranks = Counter(value["dropped"]), Counter(value["ranks"])
        return cls(value["queries"], value["candidates"], dropped, examples, negatives, ranks)


def _score(value: np.float32) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def report_table(reports: Mapping[str, MiningReport], listed: Iterable[str] = ()) -> str:
    """A line for each dataset, what to do where most rows have no negative, and the datasets that are not mined since
    their rows list their positives."""
    reasons = [reason for reason in (*REASONS, JUDGE) if any(report.dropped[reason] for report in reports.values())]
    header = ("dataset", "rows", "negatives a row", "rows without", "candidates", *reasons, "positive first, %",
              "among ten, %")  # fmt: skip
    rows = []
    for name, report in reports.items():
        lines = sum(report.negatives.values())
        mined = sum(count * rows for count, rows in report.negatives.items())
        ranked = sum(report.ranks.values()) - report.ranks["unknown"]
        first, ten = report.ranks["1"], report.ranks["1"] + report.ranks["2-10"]
        shares = [100 * count / ranked if ranked else "" for count in (first, ten)]
        dropped = [report.dropped[reason] for reason in reasons]
        rows.append((name, lines, mined / max(1, lines), report.negatives[0], report.candidates, *dropped, *shares))
    told = [line for name, one in reports.items() if (line := _advice(name, one))]
    told += [f"{name}: not mined, since its rows list their positives; `positives: all` makes a row of each"
             for name in listed]  # fmt: skip
    return "\n".join([table(header, rows), *told] if rows else told)


def _advice(name: str, report: MiningReport) -> str:
    rows, without = sum(report.negatives.values()), report.negatives[0]
    if 2 * without <= rows or not report.dropped:
        return ""
    reason, count = report.dropped.most_common(1)[0]
    return (
        f"{name}: {without:,} of {rows:,} rows have no mined negative; {reason} dropped {count:,} of "
        f"{report.candidates:,} candidates; raise range_max to look further down the ranking, or relax {reason}"
    )


def report_text(reports: Mapping[str, MiningReport], listed: Iterable[str] = ()) -> str:
    """The table, and for each dataset the negatives of its rows, the ranks of its positives and the examples."""
    parts = [report_table(reports, listed)]
    for name, report in reports.items():
        negatives = ", ".join(f"{count}: {rows:,}" for count, rows in sorted(report.negatives.items()))
        ranks = ", ".join(
            f"{rank}: {report.ranks[rank]:,}" for rank in ("1", "2-10", "11-100", "later", "unknown")
            if report.ranks[rank]
        )  # fmt: skip
        parts.append(
            f"{name}\nrows with so many mined negatives: {negatives}\nqueries by their positive's rank: {ranks}"
        )
        for reason, examples in report.examples.items():
            lines = [f"dropped by {reason}: {report.dropped[reason]:,}, such as"]
            for one in examples:
                scores = [" " * 6 if score is None else f"{score:6.3f}" for score in (one.right, one.score)]
                lines += [
                    f"  query            {excerpt(one.query, 100)}",
                    f"  positive  {scores[0]} {excerpt(one.positive, 100)}",
                    f"  candidate {scores[1]} {excerpt(one.candidate, 100)}",
                    "",
                ]
            parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def write_report(reports: Mapping[str, MiningReport], path: Path, listed: Iterable[str] = ()) -> None:
    """The text, as a file."""
    write_whole(path, report_text(reports, listed))
