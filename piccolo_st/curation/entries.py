"""A file looked at: the entry of a mixture that reads it, and the rows as the trainer will see them.

(1) the first rows say what the columns hold; the first of ``_READINGS`` that fits them becomes the entry;
(2) the entry is loaded as any mixture is, at most ``LOOKED_AT`` rows of it: what is shown is what is trained on;
(3) what the entry leaves to the reader to decide is a warning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from piccolo_st.config import to_yaml
from piccolo_st.curation.step_check import token_lengths
from piccolo_st.data import (
    DatasetSpec,
    Location,
    Reject,
    build,
    excerpt,
    find_columns,
    flatten,
    is_search,
    load_mixture,
    locate,
    looks_like,
    names_ids,
    parse_mixture,
    read_chunks,
    role_columns,
    unfold,
)
from piccolo_st.errors import ConfigError, MixtureError
from piccolo_st.tables import table

LOOKED_AT, SHOWN = 1000, 10
"""Rows that are read of a source, and those that are shown."""

Entry = dict[str, Any]
Rows = list[dict[str, Any]]

# What rows may be read as, in the order in which it is tried: settings, and whether the cells of the label fit.
_READINGS: tuple[Entry, ...] = (
    {"task": "retrieval", "preset": {"name": "nli"}},
    {"task": "sts"},
    {"task": "sts", "columns": {"sentence1": "messages", "sentence2": "positive_messages"}},
    {"task": "retrieval"},
    {"task": "classification", "preset": {"name": "classes"}},
)


def describe(
    sources: Sequence[str],
    model: str | None,
    output: Path | None,
    texts: Mapping[str, str] | None = None,
    encoding: str | None = None,
) -> None:
    """Look at sources, say what is found, and give the mixture that reads them.

    Args:
        sources: files, folders, globs, or Hub ids.
        model: whose tokenizer measures lengths; None: characters and two.
        output: where the mixture is written; None: it is only shown.
        texts: ``corpus``, and perhaps ``queries`` -> where the texts stand that the rows name by id.
        encoding: of the text of all of them; None: UTF-8.

    Raises:
        ConfigError: no source, or the output is there.
        MixtureError: a source cannot be read, or nothing that it may be is known.
    """
    if not sources:
        raise ConfigError("describe needs a file, a folder, a glob or a Hub id, got none; name one or more")
    if output is not None and output.exists():
        raise ConfigError(f"--output must be a new file, got {output}; remove it, or name another")
    entries: dict[str, Entry] = {}
    for source in sources:
        name = _name(source, entries)
        entry, warnings = propose(name, source, texts or {}, encoding)
        print(_described(name, entry, warnings, model))
        entries[name] = entry
    text = to_yaml({"datasets": entries}, width=120)
    if output is None:
        print(f"the mixture that reads this (--output FILE writes it):\n\n{text}")
    else:
        output.write_text(text, encoding="utf-8")
        print(f"the mixture that reads this: {output}; train on it with `--data.mixture {output}`")


def _name(source: str, taken: Sequence[str] | dict[str, Entry]) -> str:
    stem = Path(source.rstrip("/*")).name.split(".")[0] if "*" not in Path(source).name else Path(source).parent.name
    plain = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in stem).lstrip("_-") or "data"
    return next(name for name in (plain, *(f"{plain}_{i}" for i in range(2, len(taken) + 3))) if name not in taken)


def propose(name: str, source: str, texts: Mapping[str, str], encoding: str | None = None) -> tuple[Entry, list[str]]:
    """The entry that reads a source, and what its reader has to decide.

    Raises:
        MixtureError: it cannot be read, or has no rows or columns of a known kind.
    """
    root = Path.cwd()
    entry: Entry = {key: _placed(place, root) for key, place in {"source": source, **texts}.items()}
    if encoding is not None:
        entry["encoding"] = encoding
    spec = _spec(name, {**entry, "task": "retrieval"})
    location = locate(spec, root)
    if location.format == "hub" and is_search(spec):
        return {**entry, "format": "beir", "task": "retrieval"}, []
    if location.format in ("beir", "jionlp"):
        return {**entry, "task": "retrieval"}, []
    rows, present, rejects = _first_rows(spec, location)
    if len(rejects) > len(rows):
        first = rejects[0]
        raise MixtureError(
            f"{source} must have rows that can be read, got {len(rejects):,} that cannot among its first "
            f"{len(rejects) + len(rows):,}: {first.file}, row {first.row}: {first.reason}; "
            + (_misread(spec, location) or "mend these rows")
        )
    for reading in _READINGS:
        try:
            roles = find_columns(_spec(name, entry | reading), present, source)
        except MixtureError:
            continue
        labels = [row.get(roles["label"]) for row in rows] if "label" in roles else None
        if (fitted := _fitted(reading, labels)) is not None:
            return _completed(entry | fitted, roles, rows)
    if names_ids(present):
        raise MixtureError(
            f"{source} must come with its texts, got rows that name them by id ({', '.join(present)}); say where they "
            "stand with --corpus and, if queries are ids too, --queries"
        )
    named = [column for column in present if any(isinstance(row.get(column), str) for row in rows)]
    if len(named) < 2:
        raise MixtureError(
            f"{source} must have columns of a known kind, got {', '.join(present) or 'none'}; "
            + (_misread(spec, location) or "name them with `columns`")
        )
    lengths = {column: np.mean([len(str(row.get(column))) for row in rows]) for column in named}
    query, positive = sorted(named[:2], key=lengths.__getitem__)
    note = f"none of its names is known: its texts were taken as query {query!r} and positive {positive!r}; check them"
    return {**entry, "task": "retrieval", "columns": {"query": query, "positive": positive}}, [note]


def _placed(source: str, root: Path) -> str:
    place = Path(source).expanduser()
    return str(root / place) if place.exists() or "*" in source else source


def _spec(name: str, entry: Entry) -> DatasetSpec:
    return parse_mixture({"datasets": {name: entry}})[0][name]


def _first_rows(spec: DatasetSpec, location: Location) -> tuple[Rows, list[str], list[Reject]]:
    """The first rows that can be read, their columns plain; the names of the columns; the rows that cannot be read."""
    rows: Rows = []
    rejects: list[Reject] = []
    for chunk in build.first_rows(read_chunks(spec, location), LOOKED_AT):
        records = unfold(chunk, role_columns(spec), labelled=True).records
        rows += records[:LOOKED_AT].to_pylist() if isinstance(records, pa.Table) else records[:LOOKED_AT]
        rejects += chunk.rejects
    return rows[:LOOKED_AT], list(dict.fromkeys(name for row in rows for name in row)), rejects


def _misread(spec: DatasetSpec, location: Location) -> str | None:
    """What the first file is, if its beginning tells that it was read as another."""
    found = looks_like(location.files[0], location.format, spec.encoding) if location.files else None
    return f"{found} (--encoding of describe)" if found and "`encoding" in found else found


_NLI = {"entailment", "neutral", "contradiction"}


def _fitted(reading: Entry, labels: list[object] | None) -> Entry | None:
    """The reading where its labels are of its kind, with the range of its scores; else None."""
    given = [label for label in labels or [] if label is not None]
    preset = reading.get("preset", {}).get("name")
    if preset == "nli":
        return reading if given and {str(label).lower() for label in given} <= _NLI else None
    if preset == "classes":
        return reading if given else None
    if reading["task"] != "sts":
        return reading
    scores = [_number(label) for label in given]
    if not scores or None in scores:
        return None
    return {**reading, "task": "pair"} if set(scores) <= {0.0, 1.0} else {**reading, **_range(scores)}


def _number(cell: object) -> float | None:
    """The finite number that a cell is, or is written as."""
    try:
        number = float(cell) if isinstance(cell, str | int | float) and not isinstance(cell, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _range(scores: Sequence[float | None]) -> Entry:
    """``score_range`` where it is not the default."""
    known = [score for score in scores if score is not None]
    low, high = min(known), max(known)
    return {"score_range": [min(0, math.floor(low)), math.ceil(high)]} if low < 0 or high > 1 else {}


def _completed(entry: Entry, roles: dict[str, str], rows: Rows) -> tuple[Entry, list[str]]:
    warnings = []
    label = next((name for name in ("label", "score") if any(_number(row.get(name)) is not None for row in rows)), None)
    if entry["task"] == "retrieval" and "preset" not in entry and label is not None and "negative" not in roles:
        entry |= {
            "preset": {"name": "scored_pairs"},
            "columns": {"sentence1": roles["query"], "sentence2": roles["positive"], "label": label},
            **_range([_number(row.get(label)) for row in rows]),
        }
        warnings.append(f"its column {label!r} tells positives from other texts: rows below 0.8 are left out")
    if "score_range" in entry:
        low, high = entry["score_range"]
        warnings.append(f"score_range is that of the first {len(rows):,} rows, rounded: {low} to {high}; check it")
    prompts = {row["prompt"] for row in rows if isinstance(row.get("prompt"), str)}
    if len(prompts) == 1:
        entry["instruction"] = {"query": prompts.pop(), "document": ""}
        warnings.append("its prompt is the instruction of its queries, and its documents have none; check it")
    elif prompts:
        warnings.append(f"its rows have {len(prompts):,} prompts, which are not used: one dataset has one instruction")
    if {"pos_scores", "neg_scores"} & {name for row in rows for name in row}:
        warnings.append(
            "its pos_scores and neg_scores are not used; to learn from them, set `columns: {positive_score: "
            "pos_scores, negative_score: neg_scores}` and the run's loss.distillation"
        )
    return entry, warnings


def _described(name: str, entry: Entry, warnings: Sequence[str], model: str | None) -> str:
    with TemporaryDirectory() as cache:
        looked_at = {**entry, "max_rows": LOOKED_AT, "max_rejected": 1.0}
        mixture = load_mixture({"datasets": {name: looked_at}}, cache_dir=cache)
        dataset = mixture.train[name]
        columns = [column for column in dataset.column_names if column != "label"]
        shown = [(index + 1, *_cells(row)) for index, row in enumerate(islice(dataset, SHOWN))]
        lengths = list(_lengths(dataset, columns, model))
        report = "\n".join(line for line in str(mixture.report).splitlines() if cache not in line)
    unit = "tokens" if model else "characters + 2"
    parts = [
        f"{name}: {entry['source']}, of which at most {LOOKED_AT:,} rows were read\n\n{report}",
        *(f"warning: {name}: {warning}" for warning in warnings),
        table(("row", *dataset.column_names), shown),
        table((f"length in {unit}", "50%", "90%", "99%", "longest"), lengths),
    ]
    return "\n\n".join(parts) + "\n"


def _cells(row: Mapping[str, object]) -> Iterator[object]:
    for value in row.values():
        if isinstance(value, list):
            yield f"{len(value)}: {excerpt(value[0], 30)}" if value else "none"
        else:
            yield excerpt(value, 40) if isinstance(value, str) else value


def _lengths(dataset: Dataset, columns: Sequence[str], model: str | None) -> Iterator[tuple[object, ...]]:
    for column in columns:
        values = dataset.with_format("arrow")[:][column].combine_chunks()
        texts = flatten(values)[0] if pa.types.is_list(values.type) else values
        if len(texts):
            yield column, *np.percentile(token_lengths(model, texts), [50, 90, 99, 100]).round().astype(int).tolist()
