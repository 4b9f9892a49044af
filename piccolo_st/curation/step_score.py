"""The step ``score``: a cross-encoder's scores of each row's positives and negatives, to be learnt from.

    (1) score: each part of a retrieval dataset with negatives is scored and written, so that a killed run loses one
        part at most; the columns pos_scores and neg_scores are FlagEmbedding's, lists as long as the row's texts are
        many, and take the place of scores that rows had before;
    (2) copy: other datasets go on unchanged.

The mixture that it leaves names the columns, so that a run with ``loss.distillation`` learns from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from piccolo_st.curation.job import Job, Part, finish, write_part
from piccolo_st.curation.stages import Stage
from piccolo_st.data import flatten, is_scored
from piccolo_st.errors import MixtureError
from piccolo_st.modeling import load_pretrained
from piccolo_st.schema import Count, setting

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


@dataclass(frozen=True)
class ScoreSettings:
    """Who scores, and how much at a time."""

    model: str | None = setting(None, "A cross-encoder's Hub id or folder.")
    max_length: Count | None = setting(
        None, "Tokens of a query and a text together; longer ones are cut; empty: its own."
    )
    normalize: bool = setting(False, "Scores between 0 and 1, by a sigmoid; else what the model's last layer gives.")
    batch_size: Count = setting(32, "Pairs scored at a time.")
    part_rows: Count = setting(10_000, "Rows a task and an output file.")


@dataclass(frozen=True, eq=False)
class ScoreStep:
    """The step over one mixture.

    Attributes:
        job: its input and output.
        settings: who scores.
    """

    job: Job
    settings: ScoreSettings

    def stages(self) -> list[Stage]:
        """What to run, in order.

        Raises:
            MixtureError: no model is named, or no dataset has negatives.
        """
        if self.settings.model is None:
            raise MixtureError("score.model must name a cross-encoder, got none; set --score.model to its id or folder")
        if not self.scored:
            raise MixtureError(
                "a retrieval dataset must have negatives to be scored, got none that has; mine them first"
            )
        parts = self.parts
        return [Stage("score", len(parts), partial(_score, self)), Stage("finish", 1, partial(_finish, self))]

    @property
    def scored(self) -> set[str]:
        """The datasets that get scores: retrieval, with negatives."""
        mixture = self.job.mixture
        return {
            name
            for name, dataset in mixture.train.items()
            if mixture.specs[name].task == "retrieval"
            and any(column.partition("_")[0] == "negative" for column in dataset.column_names)
        }

    @property
    def parts(self) -> list[Part]:
        """Parts of all datasets; of one that is not scored they are copied."""
        return self.job.parts(self.settings.part_rows)


@lru_cache(maxsize=1)
def _model(name: str, max_length: int | None) -> CrossEncoder:
    from sentence_transformers import CrossEncoder

    model = load_pretrained(CrossEncoder, name, "score.model")
    if model.num_labels != 1:
        raise MixtureError(
            f"score.model must give one score a pair, got {name} with {model.num_labels}; choose a reranker"
        )
    if max_length is not None:
        model.max_length = max_length
    return model


def _score(step: ScoreStep, task: int) -> None:
    part = step.parts[task]
    table = step.job.table(part)
    if part.dataset not in step.scored:
        return write_part(step.job.folder, part, table)
    if is_scored(table):
        table = table.drop_columns(["label"])
    sides = {side: _texts(table, side) for side in ("positive", "negative")}
    pairs = [
        pair
        for texts, owners in sides.values()
        for pair in zip(table["query"].take(pa.array(owners)).to_pylist(), texts.to_pylist(), strict=True)
    ]
    scores = iter(np.split(_predict(step.settings, pairs), [len(sides["positive"][0])]))
    lowest = np.full(table.num_rows, np.inf, dtype=np.float32)
    above = 0
    for side, (_, owners) in sides.items():
        own = next(scores)
        if side == "positive":
            np.minimum.at(lowest, owners, own)
        else:
            above = int((own > lowest[owners]).sum())
        table = table.append_column(f"{side[:3]}_scores", _lists(own, owners, table.num_rows))
    counted = ["scores"] * len(pairs) + ["negatives above a positive"] * above
    return write_part(step.job.folder, part, table, counted)


def _texts(table: pa.Table, side: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """The texts of a side row by row, and the (m,) row of each."""
    parts = [
        flatten(table[name])
        if pa.types.is_list(table.schema.field(name).type)
        else (table[name].combine_chunks(), np.arange(table.num_rows))
        for name in table.column_names
        if name.partition("_")[0] == side
    ]
    texts, owners = pa.concat_arrays([one for one, _ in parts]), np.concatenate([rows for _, rows in parts])
    order = np.argsort(owners, kind="stable")
    return pc.take(texts, pa.array(order)), owners[order]


def _lists(scores: NDArray[np.float32], owners: NDArray[np.int64], rows: int) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=rows))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(scores, type=pa.float32()))


def _predict(settings: ScoreSettings, pairs: list[tuple[str, str]]) -> NDArray[np.float32]:
    """(pairs,) The scores; a pair that comes twice is scored once.

    Raises:
        MixtureError: one that is not finite.
    """
    import torch

    assert settings.model is not None
    activation = torch.nn.Sigmoid() if settings.normalize else torch.nn.Identity()
    place = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    found = _model(settings.model, settings.max_length).predict(
        list(place), batch_size=settings.batch_size, activation_fn=activation, show_progress_bar=False
    )
    scores = np.asarray(found, dtype=np.float32)[[place[pair] for pair in pairs]]
    if not np.isfinite(scores).all():
        first = pairs[int(np.flatnonzero(~np.isfinite(scores))[0])]
        raise MixtureError(
            f"the scores of {settings.model} must be finite, got another for {first[0][:40]!r} and {first[1][:40]!r}; "
            "choose another model, or weights in float32"
        )
    return scores


def _finish(step: ScoreStep, _: int) -> None:
    finish(step.job, "score", step.parts)
