"""The types of tasks that a dataset may be for, and the groups whose rows are alike."""

from __future__ import annotations

from typing import Literal

TaskType = Literal["retrieval", "sts", "pair", "classification", "clustering"]

SCORED_TASKS: tuple[TaskType, ...] = ("sts", "pair")
"""Rows of two sentences and a score, which may change places."""

LABELLED_TASKS: tuple[TaskType, ...] = ("classification", "clustering")
"""Rows of a text and its class."""
