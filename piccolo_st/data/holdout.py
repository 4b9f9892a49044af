"""Held-out retrieval sets: queries kept out of training and searched for among all positives of their dataset.

(1) draw distinct queries by seed; with a query all its rows are held out;
(2) the corpus is every distinct positive of the dataset, of held-out and training rows alike; relevant are all
    positives of the query, which several queries may share;
(3) from the training rows of every dataset goes each that has a held-out query's text or a held-out positive's
    text in any column; in a list only that item goes, and all that goes is counted. Texts are compared by their key:
    without case, width, whitespace and punctuation.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from piccolo_st.cache import digest, entry
from piccolo_st.data.build import LAYOUT, arrow_parts, open_arrow, write_arrow
from piccolo_st.data.by_id import Judged
from piccolo_st.data.report import HeldOutCounts
from piccolo_st.data.scores import keep_joined
from piccolo_st.data.specs import DatasetSpec, HoldoutSpec
from piccolo_st.data.streamed import StreamedTable
from piccolo_st.data.validation import flatten
from piccolo_st.errors import MixtureError
from piccolo_st.hashing import text_hashes, text_key


@dataclass(frozen=True)
class RetrievalHoldout:
    """Queries, corpus and relevance in the shape that ST's InformationRetrievalEvaluator takes.

    Attributes:
        queries: query id -> text.
        corpus: document id -> text; every text once.
        relevant: query id -> ids of its documents.
    """

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant: dict[str, set[str]]


def draw(spec: DatasetSpec, dataset: Dataset) -> RetrievalHoldout:
    """Hold queries of a retrieval dataset out: those with the smallest seeded hashes, so that the same ones are drawn
    from the same texts in any order, and the dataset is read without being held in memory.

    Raises:
        MixtureError: not a retrieval dataset, too few distinct queries, or a corpus smaller than asked.
    """
    holdout = spec.holdout
    assert holdout is not None
    if not {"query", "positive"} <= set(dataset.column_names) or isinstance(dataset[0]["positive"], list):
        raise MixtureError(
            f"the holdout of dataset {spec.name!r} needs rows of one query and one positive, got the columns "
            f"{', '.join(dataset.column_names)}; remove `holdout` or set `positives: all`"
        )
    queries, documents = [], []  # hashes, by chunk
    for table in _chunks(dataset):
        queries.append(text_hashes(table["query"], holdout.seed))
        documents.append(text_hashes(table["positive"], holdout.seed))
    distinct = np.unique(np.concatenate(queries))
    if holdout.queries >= len(distinct):
        raise MixtureError(
            f"the holdout of dataset {spec.name!r} must leave queries to train on, got {holdout.queries} of the "
            f"{len(distinct)} distinct ones; lower `queries`"
        )
    chosen = distinct[: holdout.queries]
    candidates = np.unique(np.concatenate(documents))
    if len(candidates) < holdout.min_corpus:
        raise MixtureError(
            f"the holdout of dataset {spec.name!r} must search among at least {holdout.min_corpus} distinct positives, "
            f"got {len(candidates)}; lower `min_corpus` or give it more rows"
        )
    searched = _searched(holdout, candidates, queries, documents, chosen)
    query_ids: dict[str, str] = {}
    document_ids: dict[str, str] = {}
    relevant: dict[str, set[str]] = {}
    for table, own, found in zip(_chunks(dataset), queries, documents, strict=True):
        held, wanted = np.isin(own, chosen), np.isin(found, searched)
        for text in table["positive"].filter(pa.array(wanted)).to_pylist():
            document_ids.setdefault(text, f"d{len(document_ids)}")
        rows = table.filter(pa.array(held))
        for query, positive in zip(rows["query"].to_pylist(), rows["positive"].to_pylist(), strict=True):
            name = query_ids.setdefault(query, f"q{len(query_ids)}")
            relevant.setdefault(name, set()).add(document_ids[positive])
    return RetrievalHoldout(
        queries={name: text for text, name in query_ids.items()},
        corpus={name: text for text, name in document_ids.items()},
        relevant=relevant,
    )


def drawn(spec: DatasetSpec, dataset: Dataset, key: str, cache: Path) -> RetrievalHoldout:
    """What ``draw`` gives, kept in the cache: it reads every row twice, and each process of a run wants it.

    Args:
        spec: as that of ``draw``, which raises the same errors.
        dataset: likewise.
        key: the fingerprint of its rows.
        cache: folder of the entries.
    """
    assert spec.holdout is not None

    def write(folder: Path) -> None:
        found = draw(spec, dataset)
        content = {**vars(found), "relevant": {query: sorted(ids) for query, ids in found.relevant.items()}}
        (folder / "drawn.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    folder = entry(cache, digest(["drawn", LAYOUT, key, asdict(spec.holdout)]), write)
    content = json.loads((folder / "drawn.json").read_text(encoding="utf-8"))
    relevant = {query: set(ids) for query, ids in content["relevant"].items()}
    return RetrievalHoldout(content["queries"], content["corpus"], relevant)


def _chunks(dataset: Dataset) -> Iterator[pa.Table]:
    return dataset.select_columns(["query", "positive"]).with_format("arrow").iter(100_000)


def _searched(
    holdout: HoldoutSpec,
    candidates: NDArray[np.uint64],
    queries: list[NDArray[np.uint64]],
    documents: list[NDArray[np.uint64]],
    chosen: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """Hashes of the documents searched among: all, or the answers and as many others as ``max_corpus`` leaves."""
    if holdout.max_corpus is None or holdout.max_corpus >= len(candidates):
        return candidates
    rows = zip(queries, documents, strict=True)
    answers = np.unique(np.concatenate([found[np.isin(own, chosen)] for own, found in rows]))
    others = np.setdiff1d(candidates, answers, assume_unique=True)
    return np.union1d(answers, others[: max(0, holdout.max_corpus - len(answers))])


@dataclass(frozen=True)
class Forbidden:
    """Keys of texts that must not be trained on ``anywhere`` in a row; of them the queries held out of a dataset."""

    anywhere: pa.Array
    queries: dict[str, pa.Array]


def forbidden(holdouts: dict[str, RetrievalHoldout], further: Iterable[pa.Array] = ()) -> Forbidden:
    """What the holdouts keep out of training, and ``further`` keys of texts."""
    documents = [h.corpus[d] for h in holdouts.values() for found in h.relevant.values() for d in sorted(found)]
    queries = {name: pc.unique(text_key(pa.array(list(h.queries.values())))) for name, h in holdouts.items()}
    answers = text_key(pa.array(documents, type=pa.string()))
    return Forbidden(pc.unique(pa.concat_arrays([answers, *queries.values(), *further])), queries)


def hold_out(
    training: Mapping[str, Dataset],
    holdouts: dict[str, RetrievalHoldout],
    specs: Mapping[str, DatasetSpec],
    keys: Mapping[str, str],
    cache: Path,
) -> tuple[dict[str, Dataset], dict[str, HeldOutCounts]]:
    """The training sets without the held-out texts, and what each lost with them; kept in the cache.

    Args:
        training: name -> dataset.
        holdouts: those drawn from them, by the name of their dataset.
        specs: what the mixture file says of every dataset.
        keys: the fingerprint of every dataset's rows.
        cache: folder of the entries.

    Raises:
        MixtureError: a training set has no row left.
    """
    if not holdouts:
        return dict(training), {}
    held_out = [[name, keys[name], asdict(one)] for name in holdouts if (one := specs[name].holdout) is not None]
    rest: dict[str, Dataset] = {}
    lost: dict[str, HeldOutCounts] = {}
    for name, dataset in training.items():

        def write(folder: Path, dataset: Dataset = dataset, name: str = name) -> None:
            if isinstance(dataset.data, StreamedTable):
                _write_kept(folder, name, dataset.data, forbidden(holdouts))
                return
            counts = HeldOutCounts()
            tables = clean(name, arrow_parts(dataset, 100_000), forbidden(holdouts), counts)
            write_arrow(folder / "data.arrow", tables)
            _write_counts(folder, counts)

        own = name if name in holdouts else ""
        key = digest(["without held-out texts in any column", LAYOUT, own, keys[name], held_out])
        folder = entry(cache, key, write)
        if isinstance(dataset.data, StreamedTable):
            kept = json.loads((folder / _KEPT).read_text(encoding="utf-8"))
            table = dataset.data.narrowed(partial(_without, name, forbidden(holdouts)), kept, key)
            rest[name] = Dataset(table, fingerprint=key)
        else:
            rest[name] = open_arrow(folder / "data.arrow")
        counts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        lost[name] = HeldOutCounts(Counter(counts["held_out"]), Counter(counts["removed"]))
        if not len(rest[name]):
            raise MixtureError(f"dataset {name!r} has no row left without the held-out texts; lower `holdout.queries`")
    return rest, lost


_KEPT = "kept.json"
"""Of a streamed dataset, how many rows of each row group hold no held-out text."""


def _write_kept(folder: Path, name: str, table: StreamedTable, keys: Forbidden) -> None:
    counts = HeldOutCounts()
    kept = [one.num_rows for one in clean(name, table.tables(), keys, counts)]
    (folder / _KEPT).write_text(json.dumps(kept), encoding="utf-8")
    _write_counts(folder, counts)


def _write_counts(folder: Path, counts: HeldOutCounts) -> None:
    (folder / "report.json").write_text(json.dumps(vars(counts), ensure_ascii=False, indent=1), "utf-8")


def _without(name: str, keys: Forbidden, table: pa.Table) -> pa.Table:
    """The rows of a row group that hold no forbidden text."""
    return next(clean(name, [table], keys, HeldOutCounts()))


QUERY, TEXT, ITEM = "of a held-out query", "with a text of a held-out search", "a text of a held-out search"


def clean(name: str, tables: Iterable[pa.Table], keys: Forbidden, counts: HeldOutCounts) -> Iterator[pa.Table]:
    """The training rows of dataset ``name`` that hold no forbidden text; lists lose only such items."""
    for table in tables:
        bad = np.zeros(table.num_rows, dtype=bool)
        asked = np.zeros(table.num_rows, dtype=bool)
        gone: dict[str, NDArray[np.int64]] = {}
        stay: dict[str, NDArray[np.bool_]] = {}
        before = table
        for index, column in enumerate(table.schema.names):
            kind = table.schema.field(column).type
            if column == "label":  # the name of a class may be a text as well
                continue
            if pa.types.is_string(kind):
                found = text_key(table[column])
                bad |= pc.is_in(found, keys.anywhere).to_numpy(False)
                if column == "query" and name in keys.queries:
                    asked = pc.is_in(found, keys.queries[name]).to_numpy(False)
            elif pa.types.is_list(kind):
                lists = table[column].combine_chunks()
                texts, owners = flatten(lists)
                good = ~pc.is_in(text_key(texts), keys.anywhere).to_numpy(False)
                if good.all():
                    continue
                kept = np.bincount(owners[good], minlength=table.num_rows)
                gone[column] = np.bincount(owners[~good], minlength=table.num_rows)
                stay[column] = good
                if column == "positive":
                    bad |= kept == 0
                offsets = pa.array(np.concatenate([[0], np.cumsum(kept)]).astype(np.int32))
                lists = pa.ListArray.from_arrays(offsets, texts.filter(pa.array(good)))
                table = table.set_column(index, column, lists)
        table = keep_joined(table, before, stay)
        counts.held_out += Counter({QUERY: int(asked.sum()), TEXT: int((bad & ~asked).sum())})
        bad |= asked
        counts.removed += Counter({f"{column}: {ITEM}": int(items[~bad].sum()) for column, items in gone.items()})
        yield table.filter(pa.array(~bad)) if bad.any() else table


def as_holdout(judged: Judged) -> RetrievalHoldout:
    """A search read from files as a retrieval evaluation."""
    relevant: dict[str, set[str]] = {}
    for one in judged.judgements:
        if one.score > 0:
            relevant.setdefault(one.query, set()).add(one.document)
    queries, corpus = judged.queries.found, judged.corpus.found
    return RetrievalHoldout({q: queries[q] for q in relevant}, corpus, relevant)
