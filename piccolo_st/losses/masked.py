"""How many candidates a loss leaves out as false negatives, counted without waiting for the device."""

from __future__ import annotations

from torch import Tensor


class Masked:
    """Counts of what was left out, by the reason for it, and of the rows that they belong to."""

    def __init__(self) -> None:
        self._rows = 0
        self._counts: dict[str, Tensor | int] = {}

    def add(self, rows: int, **counts: Tensor | int) -> None:
        """Count a batch of so many rows."""
        self._rows += rows
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count

    def pop(self) -> dict[str, float]:
        """The means per row since the last call, empty if there was no row; waits for the device."""
        rows, counts = self._rows, self._counts
        self._rows, self._counts = 0, {}
        return {name: float(count) / rows for name, count in counts.items()} if rows else {}
