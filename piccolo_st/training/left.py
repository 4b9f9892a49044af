"""Whether a directory holds what this run left when it ended.

A checkpoint of the last step knows what the run trained with, and not what became of it after: of that, and of a run
without checkpoints, the record (``run.json``, ``config.yaml``) knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from piccolo_st.modeling import content_hash
from piccolo_st.releasing import RunRecord
from piccolo_st.training.fingerprint import changes, differences
from piccolo_st.training.resume import COMMAND_LINE, another_run


def what_was_left(
    output: Path,
    configuration: Mapping[str, Mapping[str, Any]],
    signature: Mapping[str, object],
    steps: int,
    last: bool,
) -> RunRecord | None:
    """The record of a run that ended, if it was this one, its model is there, and no checkpoint of its last step.

    Args:
        output: of the run.
        configuration: ``Configuration.resolved``.
        signature: the run's fingerprint.
        steps: of the whole run.
        last: whether the checkpoint of its last step is there too.

    Raises:
        CheckpointError: another run ended there, or this one with other settings of what is left at the end.
    """
    try:
        record = RunRecord.read(output)
    except (OSError, ValueError):  # InputError among them
        return None
    if not record.signature:  # of a version that did not write it
        return None
    ended, changed = (record.steps or 0) >= steps, changes(record.signature, signature)
    if ended and not changed:
        changed = differences(*map(_at_the_end, (record.configuration, configuration)))
    elif last:  # the record is from before the run went on, and will be written again
        return None
    if changed:
        raise another_run(output, changed, "load its model", COMMAND_LINE)
    return record if ended and not last and holds(output, configuration, record) else None


def _at_the_end(configuration: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """The settings that decide which model a run leaves, beside those that it trains with."""
    train = configuration["train"]
    names = ["average_with_start", "load_best_model_at_end"]
    if train.get("load_best_model_at_end"):
        names += ["metric_for_best_model", "greater_is_better"]
    return {f"train.{name}": train.get(name) for name in names}


def saved_hash(output: Path, configuration: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of the model in the directory of a run, which brings its code where the run trusted it.

    Args:
        output: of the run.
        configuration: ``Configuration.resolved``.

    Raises:
        OSError, ValueError: there is none, or it cannot be loaded.
    """
    trusted = bool(configuration["model"].get("trust_remote_code"))
    return content_hash(SentenceTransformer(str(output / "model"), device="cpu", trust_remote_code=trusted))


def holds(output: Path, configuration: Mapping[str, Mapping[str, Any]], record: RunRecord) -> bool:
    """Whether the directory of a run has the model of its record."""
    try:
        return record.content_hash == saved_hash(output, configuration)
    except (OSError, ValueError):
        return False
