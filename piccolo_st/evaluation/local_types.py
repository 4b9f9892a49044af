"""Local tasks of each of the six types: how the files of one are read in the form that mteb takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from datasets import Dataset, DatasetDict
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import AbsTaskClustering
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.sts import AbsTaskSTS

from piccolo_st.data import DatasetSpec, Reject, excerpt, locate, read_chunks, read_search
from piccolo_st.errors import InputError
from piccolo_st.schema import Count

_MAX_CLUSTERED = 2048  # rows drawn for each of mteb's clustering experiments


@dataclass(frozen=True)
class LocalTaskSpec:
    """One entry of a file of local tasks.

    Attributes:
        name: letters, digits, "-", "_" and "."; no name that mteb has.
        type: one of the six types.
        data: a BEIR folder (Retrieval) or a file.
        train: the file a classifier is fitted on (Classification).
        split: of a BEIR folder, for ``qrels/<split>.tsv``; the name of the split in results everywhere else.
        columns: role -> column, where they differ from those of its type in configs/evaluate_local.yaml.
        labels: label in the file -> 0 or 1 (PairClassification); by default they have to be 0 and 1.
        samples_per_label: rows of each label a classifier is fitted on; C-MTEB takes 32.
        experiments: classifiers or clusterings that the score is the mean of.
        language: of the texts, as mteb writes it.
    """

    name: str
    type: Literal["Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS"]
    data: str
    train: str | None = None
    split: str = "test"
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, int] | None = None
    samples_per_label: Count = 32
    experiments: Count = 10
    language: str = "cmn-Hans"


class LocalTask:
    """Mixed into an mteb task class: reads the files in place of loading a dataset from the Hub."""

    spec: ClassVar[LocalTaskSpec]
    root: ClassVar[Path]
    dataset: Any
    data_loaded: bool

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        """Read the files, once."""
        if not self.data_loaded:
            self.dataset = self.read()
            self.data_loaded = True

    def read(self) -> object:
        """The data in the form that mteb's class of the type takes.

        Raises:
            InputError: naming file, row and column of what cannot be used.
        """
        raise NotImplementedError

    def rows(self, source: str, roles: Mapping[str, Callable[[object], object]]) -> dict[str, list[Any]]:
        """Role -> its values in all rows, each passed through the function of its role, which raises ValueError."""
        columns = {role: self.spec.columns.get(role, role) for role in roles}
        values: dict[str, list[Any]] = {role: [] for role in roles}
        for file, number, record in _records(self.spec, source, self.root):
            for role, convert in roles.items():
                place = f"{file}, row {number}, column {columns[role]!r} of task {self.spec.name!r}"
                if columns[role] not in record:
                    raise InputError(
                        f"{place}: there is no such column, only {', '.join(record)}; name it in `columns`, as in "
                        f"{{{role}: ...}}"
                    )
                try:
                    values[role].append(convert(record[columns[role]]))
                except (TypeError, ValueError) as error:
                    raise InputError(f"{place}: {error}, got {excerpt(record[columns[role]])!r}") from None
        if not next(iter(values.values())):
            raise InputError(f"{source} of task {self.spec.name!r} has no rows; add some")
        return values


class _LocalRetrieval(LocalTask, AbsTaskRetrieval):
    def read(self) -> dict[str, dict[str, RetrievalSplitData]]:
        location = locate(dataset_spec(self.spec, self.spec.data), self.root)
        if "queries" not in location.parts:
            raise InputError(
                f"task {self.spec.name!r} needs a BEIR folder (corpus.jsonl, queries.jsonl, qrels.tsv), "
                f"got {self.spec.data!r}"
            )
        judged = read_search(location)
        _refuse(self.spec, [*judged.corpus.rejects, *judged.queries.rejects, *judged.rejects])
        corpus, queries = judged.corpus.found, judged.queries.found
        relevant: dict[str, dict[str, int]] = {}
        for one in judged.judgements:
            if one.score != int(one.score):
                raise InputError(
                    f"{one.file}, row {one.row} of task {self.spec.name!r}: a score must be whole, got {one.score}"
                )
            relevant.setdefault(one.query, {})[one.document] = int(one.score)
        relevant = {query: found for query, found in relevant.items() if max(found.values()) > 0}
        if not relevant:
            raise InputError(
                f"{location.files[-1]} of task {self.spec.name!r} has no document with a score above 0; add one"
            )
        return _search_split(self.spec, corpus, {query: queries[query] for query in relevant}, relevant)


class _LocalReranking(LocalTask, AbsTaskRetrieval):
    def read(self) -> dict[str, dict[str, RetrievalSplitData]]:
        rows = self.rows(self.spec.data, {"query": _text, "positive": _texts, "negative": _texts})
        documents: dict[str, str] = {}  # text -> id: a text that several queries rank is encoded once
        queries: dict[str, str] = {}
        relevant: dict[str, dict[str, int]] = {}
        ranked: dict[str, list[str]] = {}
        for number, (query, positive, negative) in enumerate(zip(*rows.values(), strict=True), start=1):
            if not positive or not negative:
                continue  # nothing to order; mteb leaves such queries out of its own reranking tasks as well
            key = f"q{number}"
            queries[key] = query
            scores = {documents.setdefault(text, f"d{len(documents)}"): 0 for text in negative}
            scores |= {documents.setdefault(text, f"d{len(documents)}"): 1 for text in positive}
            relevant[key], ranked[key] = scores, list(scores)
        if not queries:
            raise InputError(
                f"{self.spec.data} of task {self.spec.name!r} has no row with a positive and a negative; add one"
            )
        corpus = {key: text for text, key in documents.items()}
        return _search_split(self.spec, corpus, queries, relevant, ranked)


class _LocalSTS(LocalTask, AbsTaskSTS):
    def read(self) -> DatasetDict:
        rows = self.rows(self.spec.data, {"sentence1": _text, "sentence2": _text, "score": _number})
        if len(set(rows["score"])) < 2:
            raise InputError(f"the scores of task {self.spec.name!r} must differ, got {rows['score'][0]} in every row")
        return DatasetDict({self.spec.split: Dataset.from_dict(rows)})


class _LocalPairClassification(LocalTask, AbsTaskPairClassification):
    def read(self) -> DatasetDict:
        rows = self.rows(self.spec.data, {"sentence1": _text, "sentence2": _text, "label": self._binary})
        if len(set(rows["label"])) < 2:
            raise InputError(f"task {self.spec.name!r} needs pairs of both labels, got {rows['label'][0]} in every row")
        rows["labels"] = rows.pop("label")
        return DatasetDict({self.spec.split: Dataset.from_dict(rows)})

    def _binary(self, value: object) -> int:
        labels = self.spec.labels or {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
        if str(value) not in labels or labels[str(value)] not in (0, 1):
            raise ValueError("a label must be 0 or 1, or be mapped to one of them in `labels`")
        return labels[str(value)]


class _LocalClassification(LocalTask, AbsTaskClassification):
    def read(self) -> DatasetDict:
        if self.spec.train is None:
            raise InputError(
                f"task {self.spec.name!r} of type Classification needs `train`, the file to fit on; add it"
            )
        train = self.rows(self.spec.train, {"text": _text, "label": _label})
        test = self.rows(self.spec.data, {"text": _text, "label": _label})
        unseen = sorted(set(test["label"]) - set(train["label"]))
        if unseen:
            raise InputError(
                f"a label of task {self.spec.name!r} must be in its `train`, got {unseen[0]!r} in {self.spec.data}"
            )
        number = {label: index for index, label in enumerate(sorted(set(train["label"])))}
        for rows in (train, test):
            rows["label"] = [number[label] for label in rows["label"]]
        return DatasetDict({"train": Dataset.from_dict(train), self.spec.split: Dataset.from_dict(test)})


class _LocalClustering(LocalTask, AbsTaskClustering):
    max_fraction_of_documents_to_embed = None

    def read(self) -> DatasetDict:
        rows = self.rows(self.spec.data, {"text": _text, "label": _label})
        if len(set(rows["label"])) < 2:
            raise InputError(
                f"task {self.spec.name!r} needs at least two labels, got {rows['label'][0]!r} in every row"
            )
        number = {label: index for index, label in enumerate(sorted(set(rows["label"])))}
        data = {"sentences": rows["text"], "labels": [number[label] for label in rows["label"]]}
        self.max_documents_per_cluster = min(len(rows["text"]), _MAX_CLUSTERED)
        return DatasetDict({self.spec.split: Dataset.from_dict(data)})


#: type -> its class.
CLASSES: dict[str, type[AbsTask]] = {
    "Classification": _LocalClassification,
    "Clustering": _LocalClustering,
    "PairClassification": _LocalPairClassification,
    "Reranking": _LocalReranking,
    "Retrieval": _LocalRetrieval,
    "STS": _LocalSTS,
}


def dataset_spec(spec: LocalTaskSpec, source: str) -> DatasetSpec:
    """A file or folder of a task as one of a mixture."""
    return DatasetSpec(name=spec.name, source=source, task="retrieval", split=spec.split)


def _records(spec: LocalTaskSpec, source: str, root: Path) -> Iterator[tuple[str, int, dict[str, object]]]:
    dataset = dataset_spec(spec, source)
    location = locate(dataset, root)
    if location.format in ("beir", "hub"):
        raise InputError(f"task {spec.name!r} of type {spec.type} must be read from a file of rows, got {source!r}")
    for chunk in read_chunks(dataset, location):
        _refuse(spec, chunk.rejects)
        records = chunk.records if isinstance(chunk.records, list) else chunk.records.to_pylist()
        for row, record in zip(chunk.rows.tolist(), records, strict=True):
            yield chunk.file, row, record


def _refuse(spec: LocalTaskSpec, rejects: list[Reject]) -> None:
    if rejects:
        first, more = rejects[0], f" (and {len(rejects) - 1} more)" * (len(rejects) > 1)
        raise InputError(
            f"{first.file}, row {first.row} of task {spec.name!r}: {first.reason}, got "
            f"{first.excerpt!r}{more}; correct or remove such rows"
        )


def _search_split(
    spec: LocalTaskSpec,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    relevant: dict[str, dict[str, int]],
    ranked: dict[str, list[str]] | None = None,
) -> dict[str, dict[str, RetrievalSplitData]]:
    def table(texts: Mapping[str, str]) -> Dataset:
        return Dataset.from_dict({"id": list(texts), "text": list(texts.values())})

    data = RetrievalSplitData(corpus=table(corpus), queries=table(queries), relevant_docs=relevant, top_ranked=ranked)
    return {"default": {spec.split: data}}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text must be a string that is not empty")
    return value


def _texts(value: object) -> list[str]:
    return [_text(item) for item in (value if isinstance(value, list) else [value])]


def _number(value: object) -> float:
    with suppress(ValueError):
        if isinstance(value, (int, float, str)) and math.isfinite(number := float(value)):
            return number
    raise ValueError("a score must be a finite number")


def _label(value: object) -> str:
    if value is None or value == "":
        raise ValueError("a label must not be empty")
    return str(value)
