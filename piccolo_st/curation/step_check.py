"""The step ``check``: every row read and validated, and what the datasets hold, as a table and a picture.

(1) read: each dataset is read and checked (or found done), one task each; a streamed one is not copied;
(2) measure: each dataset's lengths in tokens, what the limits cut, duplicates, negatives a row;
(3) finish: report.json, report.txt, rejects.jsonl and lengths.png.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import TypedDict

from piccolo_st.cache import default_cache
from piccolo_st.curation.duplicates import identity_keys, row_keys
from piccolo_st.curation.job import Job
from piccolo_st.curation.stages import Stage
from piccolo_st.data import build, flatten, locate, parse_mixture, streaming
from piccolo_st.errors import MixtureError
from piccolo_st.modeling import column_task, load_pretrained
from piccolo_st.schema import Count, setting
from piccolo_st.stored import read_json
from piccolo_st.tables import empty_figure, picture, table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 4096  # lengths above are counted as this


@dataclass(frozen=True)
class CheckSettings:
    """How lengths are measured.

    Attributes:
        tokenizer: a tokenizer's Hub id or folder; None counts characters, of which Chinese has about one a token.
        query_length, document_length: limits in tokens where a dataset has none of its own.
        sample: rows a dataset whose texts are measured, evenly spread; duplicates are counted over all.
    """

    tokenizer: str | None = setting(None, "Tokenizer to measure with; empty: characters.")
    query_length: Count = setting(64, "Limit of queries in tokens.")
    document_length: Count = setting(512, "Limit of other texts in tokens.")
    sample: Count = setting(20_000, "Rows a dataset whose lengths are measured.")


class ColumnLengths(TypedDict):
    """Of one column: the 50th, 90th, 99th and 100th percentile, the limit, the share above it, and counts by length."""

    percentiles: list[int]
    limit: int
    cut: float
    histogram: list[int]


class Measured(TypedDict, total=False):
    """Of one dataset: duplicate rows, rows measured, columns, and the fewest, mean and most negatives of a row."""

    duplicates: int
    measured: int
    columns: dict[str, ColumnLengths]
    negatives: tuple[int, float, int]


@dataclass(frozen=True)
class CheckStep:
    """The step over one mixture.

    Attributes:
        job: its input and output.
        settings: how lengths are measured.
    """

    job: Job
    settings: CheckSettings

    def stages(self) -> list[Stage]:
        """What to run, in order."""
        names = list(parse_mixture(self.job.given)[0])
        return [
            Stage("read", len(names), partial(_read, self.job)),
            Stage("measure", len(names), partial(_measure, self)),
            Stage("finish", 1, partial(_finish, self)),
        ]


def _read(job: Job, task: int) -> None:
    specs, root, _ = parse_mixture(job.given)
    cache = Path(job.cache) if job.cache is not None else default_cache()
    spec = list(specs.values())[task]
    (streaming.index if spec.streaming else build.prepare)(spec, locate(spec, root), cache)


def _measure(step: CheckStep, task: int) -> None:
    mixture = step.job.mixture
    name = list(mixture.specs)[task]
    dataset = mixture.train.get(name, mixture.evaluation.get(name))
    path = step.job.work / f"{name}.json"
    if dataset is None:  # a retrieval evaluation
        path.write_text("{}", encoding="utf-8")
        return
    spec = mixture.specs[name]
    keys, start = np.empty(len(dataset), dtype=np.uint64), 0
    for chunk in dataset.with_format("arrow").iter(20_000):
        keys[start : start + chunk.num_rows] = row_keys(spec, identity_keys(spec, chunk), 0)
        start += chunk.num_rows
    keys.sort()
    stride = max(1, len(dataset) // step.settings.sample)
    sample = dataset.with_format("arrow")[list(range(0, len(dataset), stride))]
    measured: Measured = {
        "duplicates": int((keys[1:] == keys[:-1]).sum()),
        "measured": sample.num_rows,
        "columns": {},
    }
    limits = (spec.query_length or step.settings.query_length, spec.document_length or step.settings.document_length)
    for column in sample.column_names:
        if column == "label":
            continue
        values = sample[column].combine_chunks()
        if column == "negative" and pa.types.is_list(values.type):
            counts = pc.list_value_length(values).to_numpy(False)
            measured["negatives"] = (int(counts.min()), float(counts.mean()), int(counts.max()))
        texts = flatten(values)[0] if pa.types.is_list(values.type) else values
        lengths = token_lengths(step.settings.tokenizer, texts)
        if len(lengths):
            limit = limits[0] if column_task(column, sample.column_names) == "query" else limits[1]
            percentiles = np.percentile(lengths, [50, 90, 99, 100]).round().astype(int).tolist()
            measured["columns"][column] = {
                "percentiles": percentiles,
                "limit": limit,
                "cut": float((lengths > limit).mean()),
                "histogram": np.bincount(np.minimum(lengths, _LONGEST)).tolist(),
            }
    path.write_text(json.dumps(measured), encoding="utf-8")


def token_lengths(tokenizer: str | None, texts: pa.Array) -> np.ndarray:
    """(n,) int64: tokens with the special ones, or characters and the two special tokens of BERT."""
    if tokenizer is None:
        return pc.utf8_length(texts).to_numpy(False).astype(np.int64) + 2
    encode = _tokenizer(tokenizer)
    values, lengths = texts.to_pylist(), []
    for start in range(0, len(values), 10_000):
        lengths += [len(ids) for ids in encode(values[start : start + 10_000])["input_ids"]]
    return np.array(lengths, dtype=np.int64)


@lru_cache(maxsize=1)
def _tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return load_pretrained(AutoTokenizer.from_pretrained, name_or_path, "check.tokenizer")


def _finish(step: CheckStep, _: int) -> None:
    mixture, folder = step.job.mixture, step.job.folder
    again = f"delete {folder} and run the step again"
    measured = {n: read_json(step.job.work / f"{n}.json", Measured, again, MixtureError) for n in mixture.specs}
    accounts = mixture.report.as_dict()
    report = {"step": "check", "mixture": mixture.fingerprint, "accounts": accounts, "measured": measured}
    (folder / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
    unit = "tokens" if step.settings.tokenizer else "characters + 2"
    text = f"{mixture.report}\n\nLengths in {unit}\n{length_table(measured)}\n"
    (folder / "report.txt").write_text(text, encoding="utf-8")
    with open(folder / "rejects.jsonl", "w", encoding="utf-8") as file:
        for name, own in mixture.report.datasets.items():
            for line in own.rejects_path.read_text(encoding="utf-8").splitlines():
                file.write(json.dumps({"dataset": name, **json.loads(line)}, ensure_ascii=False) + "\n")
    picture(plot_lengths, measured, unit, folder / "lengths.png")


def length_table(measured: Mapping[str, Measured]) -> str:
    """Percentiles of length, what the limits cut, duplicates and negatives a row, as plain text."""
    header = ("dataset", "column", "50%", "90%", "99%", "longest", "limit", "cut %", "duplicate rows")
    rows = []
    for name, own in measured.items():
        for column, found in own.get("columns", {}).items():
            first = column == next(iter(own["columns"]))
            low, mean, high = own.get("negatives", (0, 0.0, 0))
            negatives = f"{low} to {high}, mean {mean:.1f}" if column == "negative" and "negatives" in own else ""
            rows.append(
                (name, column, *found["percentiles"], found["limit"], 100 * found["cut"],
                 f"{own['duplicates']:,}" if first else "", negatives)
            )  # fmt: skip
    return table((*header, "negatives a row"), rows)


def plot_lengths(measured: Mapping[str, Measured], unit: str, path: Path) -> Path:
    """A small histogram of lengths for every dataset, its limits dashed.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    shown = {name: own["columns"] for name, own in measured.items() if own.get("columns")}
    if not shown:
        return path
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure = empty_figure(4 * across, 2.6 * down)
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (name, columns) in zip(axes.flat, shown.items(), strict=False):
        longest = max(found["percentiles"][2] for found in columns.values())
        edges = np.linspace(0, max(longest, 10), 41)
        for index, (column, found) in enumerate(columns.items()):
            counts = np.array(found["histogram"], dtype=float)
            axis.hist(
                np.arange(len(counts)), edges, weights=counts / counts.sum(), alpha=0.5, label=column, color=f"C{index}"
            )
            if found["limit"] <= edges[-1]:
                axis.axvline(found["limit"], linestyle="--", linewidth=1, color=f"C{index}")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, frameon=False)
    figure.supylabel("share of the texts", fontsize=9)
    figure.supxlabel(f"length in {unit}, up to the 99th percentile; limits dashed", fontsize=9)
    figure.savefig(path, dpi=110)
    return path
