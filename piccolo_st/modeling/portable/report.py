"""What a check of a checkpoint comes to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConsumerReport:
    """What one consumer would stumble over; ``ok`` if nothing.

    Attributes:
        consumer: who loads it.
        problems: what is wrong with the files.
        limits: what the model is that this consumer knows nothing of, however it is saved.
        notes: what it has to be told to give the same embeddings; the snippets of the model's card tell it.
    """

    consumer: str
    problems: tuple[str, ...]
    limits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it loads, with the same embeddings once it is told what the notes say."""
        return not (self.problems or self.limits)
