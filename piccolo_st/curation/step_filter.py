"""The step ``filter``: length, language and repetition, and the consistency of query and positive.

(1) pool: for ``top_k``, positives of each retrieval dataset drawn at random, encoded once;
(2) filter: each part without the rows that break a rule, or whose positive is not among the ``top_k`` of the pool
    for its query; the rest perhaps written in simplified characters.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from piccolo_st.curation.job import Job, Part, finish, write_part, write_rejects
from piccolo_st.curation.quality import FilterSettings, consistent, heuristic_faults, simplified
from piccolo_st.curation.stages import Stage
from piccolo_st.mining import lexical_encoder, reading
from piccolo_st.modeling import load_pretrained

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Rows judged at once: bounds the memory of a task, whatever its part's size.
_ROWS = 20_000


@dataclass(frozen=True)
class FilterStep:
    """The step over one mixture.

    Attributes:
        job: its input and output.
        settings: which rows are kept.
    """

    job: Job
    settings: FilterSettings

    def stages(self) -> list[Stage]:
        """What to run, in order."""
        pools = [Stage("pool", len(self.pools), partial(_pool, self))] if self.pools else []
        return [
            *pools,
            Stage("filter", len(self.parts), partial(_filter, self)),
            Stage("finish", 1, partial(_finish, self)),
        ]

    @property
    def parts(self) -> list[Part]:
        """The rows in tasks."""
        return self.job.parts(self.settings.part_rows)

    @property
    def pools(self) -> list[str]:
        """The datasets whose pairs are checked for consistency: one query and one positive a row."""
        return self.job.pairs() if self.settings.top_k is not None else []

    def pool_file(self, dataset: str) -> Path:
        """The encoded pool of a dataset; its texts lie beside it."""
        return self.job.work / f"pool-{dataset}.npy"


def _pool(step: FilterStep, task: int) -> None:
    name = step.pools[task]
    dataset, size = step.job.mixture.train[name], step.settings.pool
    rows = np.arange(len(dataset))
    if size < len(dataset):
        rows = np.sort(np.random.default_rng(step.settings.seed).choice(len(dataset), size, replace=False))
    table = dataset.select_columns(["query", "positive"]).with_format("arrow")[rows.tolist()]
    path = step.pool_file(name)
    with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    texts = list(dict.fromkeys(table["positive"].to_pylist()))
    np.save(path, _encode(step, name, texts, query=False))


@lru_cache(maxsize=2)
def _encoder(step: FilterStep, name: str) -> SentenceTransformer:
    if step.settings.model != "lexical":
        from sentence_transformers import SentenceTransformer

        return load_pretrained(SentenceTransformer, step.settings.model, "filter.model")
    with pa.memory_map(str(step.pool_file(name).with_suffix(".arrow"))) as source:
        table = pa.ipc.open_file(source).read_all()
    return lexical_encoder([*table["query"].to_pylist(), *table["positive"].to_pylist()], seed=step.settings.seed)


def _encode(step: FilterStep, name: str, texts: list[str], query: bool) -> np.ndarray:
    model = _encoder(step, name)
    encode = model.encode_query if query else model.encode_document
    with nullcontext() if step.settings.model == "lexical" else reading(model, step.job.mixture.specs[name]):
        return encode(texts, batch_size=step.settings.batch_size, normalize_embeddings=True, convert_to_numpy=True)


def _filter(step: FilterStep, task: int) -> None:
    part, settings = step.parts[task], step.settings
    spec, table = step.job.mixture.specs[part.dataset], step.job.table(part)
    pieces, faults = [], []
    for start in range(0, table.num_rows, _ROWS):
        some = table.slice(start, _ROWS)
        found = heuristic_faults(spec, some, settings)
        if part.dataset in step.pools:
            pool = np.load(step.pool_file(part.dataset))
            queries, positives = (
                _encode(step, part.dataset, some[column].to_pylist(), column == "query")
                for column in ("query", "positive")
            )
            lost = ~consistent(queries, positives, pool, settings.top_k or 0)
            found[lost & (found == None)] = "inconsistent"  # noqa: E711  (elementwise)
        pieces.append(simplified(some) if settings.simplify else some)
        faults.append(found)
    written, reasons = pa.concat_tables(pieces), np.concatenate(faults)
    stays = np.array([reason is None for reason in reasons], dtype=bool)
    gone = np.flatnonzero(~stays)
    write_rejects(step.job.folder, part, table, gone, reasons[gone].tolist())
    write_part(step.job.folder, part, written.filter(pa.array(stays)), reasons[gone].tolist())


def _finish(step: FilterStep, _: int) -> None:
    finish(step.job, "filter", step.parts)
