"""A step whose loss or gradient is not finite changes no weight and is written down with its rows.

Several in a row end the run. A gradient that overflowed under an fp16 loss scale is told apart: the scaler skips that
step and lowers the scale, which is how it finds it.

All ranks take each decision together: the gradient's norm is the same on all of them, and a loss that is not finite on
one makes the gradient of all not finite (``poison``).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypedDict, cast

import torch
import torch.distributed as dist
from torch import Tensor

from piccolo_st.distributed import get_rank, get_world_size
from piccolo_st.errors import InputError
from piccolo_st.training.metrics import Batch

logger = logging.getLogger(__name__)


class NonFiniteError(InputError):
    """Several steps in a row had a loss or gradient that is not finite."""


def poison(loss: Tensor) -> Tensor:
    """The same loss, bit for bit, whose gradient is not finite where the loss is not."""
    return loss * torch.where(torch.isfinite(loss), 1.0, float("nan")).to(loss.dtype)


def rows_not_finite(values: Tensor) -> list[int]:
    """The rows of (rows, ...) that hold a number that is not finite."""
    finite = torch.isfinite(values).reshape(len(values), -1).all(1)
    return (~finite).nonzero()[:, 0].tolist()


@dataclass
class MicroStep:
    """What one rank read at a micro-step.

    Attributes:
        dataset: its name, or None where the run has only one.
        rows: numbers of the rows in that dataset, (rows,) int64, or None where the sampler does not say; perhaps on
            the device, where they stay unless something is not finite.
        inputs: the batch as the collator made it.
        loss: scalar, on the device.
    """

    dataset: str | None
    rows: Tensor | None
    inputs: Batch
    loss: Tensor


class _Report(TypedDict):
    """What a rank says of a micro-step of a step that is not finite."""

    rank: int
    dataset: str | None
    loss: str | None
    """In words; None where it is finite."""
    rows: list[int] | None
    suspects: list[int]


Texts: TypeAlias = Callable[[str | None, int], Mapping[str, object]]
"""(dataset, number of a row) -> the row itself."""


@dataclass
class NonFiniteGuard:
    """Counts steps whose loss or gradient is not finite and writes their rows down.

    Args:
        limit: steps in a row that end the run.
        folder: where ``non_finite_rows.jsonl`` is written, by the first rank.

    Attributes:
        skipped: steps that changed no weight because something was not finite, since the last log.
        overflows: steps that the fp16 scaler skipped, since the last log.
    """

    limit: int
    folder: Path
    skipped: int = 0
    overflows: int = 0
    _streak: int = 0
    _steps: list[MicroStep] = field(default_factory=list)

    @property
    def file(self) -> Path:
        """Where the rows are written."""
        return self.folder / "non_finite_rows.jsonl"

    def add(self, micro_step: MicroStep) -> None:
        """Remember a micro-step until its optimizer step is judged."""
        self._steps.append(micro_step)

    def judge(
        self,
        step: int,
        norm: float | Tensor,
        loss_scale: float | None,
        suspects: Callable[[MicroStep], list[int]],
        texts: Texts,
    ) -> bool:
        """Judge an optimizer step; on every rank, with the same result.

        Args:
            step: its number.
            norm: of the gradient of all ranks. Reading it waits for the device.
            loss_scale: of fp16, or None.
            suspects: a MicroStep -> positions of its rows that are to blame, or none.
            texts: the rows that are written down.

        Returns:
            Whether the step is sound.

        Raises:
            NonFiniteError: ``limit`` steps in a row were not.
        """
        steps, self._steps = self._steps, []
        if math.isfinite(float(norm)):
            self._streak = 0
            return True
        report = _from_every_rank([_describe(one, suspects) for one in steps])
        blamed = [one for one in report if one["loss"] is not None]
        if not blamed and loss_scale is not None and loss_scale > 1:
            self.overflows += 1
            return False
        self._streak += 1
        self.skipped += 1
        blamed = blamed or report
        if any(one["suspects"] for one in blamed):
            blamed = [cast(_Report, {**one, "rows": one["suspects"]}) for one in blamed if one["suspects"]]
        self._write(step, blamed, texts)
        message = f"the {_words(blamed)} at step {step}; the rows are in {self.file}"
        if self._streak >= self.limit:
            raise NonFiniteError(
                f"{self._streak} steps in a row were not finite, the last one because of {message}; none of them "
                "changed a weight, and the last checkpoint is from before or between them; look at those rows, lower "
                "train.learning_rate, or raise train.max_non_finite_steps"
            )
        logger.warning("skipped a step because of %s (%d of %d in a row)", message, self._streak, self.limit)
        return False

    def pop_statistics(self) -> dict[str, float]:
        """What was skipped since the last call; empty if nothing was."""
        found = {"non_finite_steps": float(self.skipped), "fp16_overflow_steps": float(self.overflows)}
        self.skipped = self.overflows = 0
        return {name: value for name, value in found.items() if value}

    def _write(self, step: int, blamed: list[_Report], texts: Texts) -> None:
        if get_rank() != 0:
            return
        lines = []
        for one in blamed:
            line = {"step": step, "rank": one["rank"], "dataset": one["dataset"], "row": None, "loss": one["loss"]}
            found = [{**line, "row": row, "content": texts(one["dataset"], row)} for row in one["rows"] or []]
            lines += found or [{**line, "content": None}]
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.file, error)


def _describe(step: MicroStep, suspects: Callable[[MicroStep], list[int]]) -> _Report:
    loss = float(step.loss)
    positions = suspects(step)
    rows = None if step.rows is None else step.rows.tolist()
    return {
        "rank": get_rank(),
        "dataset": step.dataset,
        "loss": None if math.isfinite(loss) else str(loss),
        "rows": rows,
        "suspects": [rows[position] for position in positions] if rows is not None else [],
    }


def _from_every_rank(mine: list[_Report]) -> list[_Report]:
    if get_world_size() == 1:
        return mine
    everyone: list[list[_Report]] = [[]] * get_world_size()
    dist.all_gather_object(everyone, mine)
    return [one for part in everyone for one in part]


def _words(blamed: list[_Report]) -> str:
    what = f"loss {blamed[0]['loss']}" if blamed[0]["loss"] is not None else "gradient, which is not finite,"
    places: dict[str, list[int]] = {}
    for one in blamed:
        places.setdefault(one["dataset"] or "train", []).extend(one["rows"] or [])
    named = []
    for dataset, rows in places.items():
        shown = ", ".join(str(row) for row in rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        named.append(f"dataset {dataset!r}, rows {shown or 'unknown'}")
    return f"{what} in {'; '.join(named)}"
