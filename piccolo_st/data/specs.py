"""What a mixture file may say: frozen dataclasses, whose annotations are the schema by which ``schema.build`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from piccolo_st.data.tasks import TaskType
from piccolo_st.modeling import Instructions, WrittenInstructions
from piccolo_st.schema import Count, Finite, Natural, Positive, Share, Whole, read_by


@dataclass(frozen=True)
class HoldoutSpec:
    """Queries kept out of training and searched for among all positives of the dataset.

    Attributes:
        queries: how many distinct queries to hold out.
        seed: which ones; the same seed and data give the same queries.
        min_corpus: the least number of distinct positives the search must range over.
        max_corpus: search among so many of them at most: the answers, and others drawn by seed; None: all.
    """

    queries: Count = 1000
    seed: Whole = 13
    min_corpus: Natural = 10_000
    max_corpus: Count | None = None


@dataclass(frozen=True)
class PresetSpec:
    """How rows of one kind become rows of another; see ``piccolo_st.data.presets``.

    Attributes:
        name: ``nli`` (premise, hypothesis, label -> triplets; for sts and pair scores), ``classes`` (text, label ->
            text, same class, other classes), ``scored_pairs`` (sentence1, sentence2, score -> positives at or above
            ``threshold``).
        threshold: the least score, after scaling to 0..1, that makes a pair a positive (``scored_pairs``).
        negatives: how many texts of other classes are drawn for a row; the same one twice counts once; 0 keeps the
            label instead, and the loss compares all texts of the batch by it (``classes``).
        neutral_as_negative: whether neutral hypotheses count as negatives beside contradictions (``nli``).
        seed: which texts of the same and of other classes are drawn (``classes``).
    """

    name: Literal["nli", "classes", "scored_pairs"]
    threshold: Finite = 0.8
    negatives: Annotated[Natural, Field(le=1000)] = 4
    neutral_as_negative: bool = False
    seed: Natural = 13


def _instruction(value: object, place: str) -> Instructions | None:
    return None if value is None else Instructions.from_plain(value, place)


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset of a mixture.

    Attributes:
        name: its key in the mixture file.
        source: a file, a glob of files, a folder of data by id (BEIR, MTEB, T2Ranking, MS MARCO), a folder written by
            ``save_to_disk``, ``jionlp:words``, ``jionlp:sayings``, ``jionlp:characters``, or a Hub id (``owner/name``).
        task: what the rows are for; decides the columns and, in a hybrid run, the loss.
        format: ``auto`` goes by the suffix or the folder's contents; ``beir`` is a folder of data by id, or the
            configurations corpus, queries and qrels of a Hub dataset, as MTEB has them.
        encoding: of the text of JSON lines, JSON, CSV and TSV, as Python names it: ``gb18030``, ``utf-16``, ``big5``.
        split: of a Hub dataset, a saved DatasetDict, or a folder of data by id (``qrels/<split>.tsv``).
        revision: of a Hub dataset; a commit hash makes the mixture reproducible.
        subset: a Hub dataset's configuration name.
        corpus: where the documents stand that the rows name by id, with an id and a text each: as ``source``.
        queries: the same of the queries, where the rows name these by id too.
        columns: role -> column name; roles not named are looked for under the usual names.
        preset: rows of one kind turned into rows of another.
        use: ``train``, or ``evaluate`` (kept apart, never trained on).
        positives: of a row with several: one row for each (``all``), only the ``first``, or the ``list`` as it is.
        labels: the labels allowed; anything else is a fault. None allows any.
        score_range: lowest and highest score of ``sts`` and ``pair`` rows; labels are scaled to 0..1.
        min_characters, max_characters: shorter and longer texts are faults.
        policy: what a faulty row does: ``drop`` (and write it to rejects.jsonl) or ``error``. None: the mixture's.
        max_rejected: the largest share of faulty rows before the dataset counts as misread, which is an error.
        max_rows: read only so many rows, faulty ones among them.
        streaming: whether Parquet files are trained on where they lie, row group by row group, and not copied; their
            rows are then shuffled by row groups, within about 65,536 rows.
        holdout: queries kept for evaluation.
        mining: settings for hard negatives, as ``piccolo_st.mining.miner.MiningSettings`` takes them.
        instruction: what goes before this dataset's queries and documents, a preset's name or a mapping of both; None:
            the run's.
        weight: the dataset's share where the sampler mixes by weights.
        repeats: how often an epoch visits each row.
        batch_multiple: this dataset's per-device batch as a multiple of the run's.
        query_length, document_length: where this dataset's queries and other texts are cut, in tokens, instruction
            included; None: the run's.
        loss: options of the loss for this dataset: ``weight`` (by default 1; of sts and pair 0.04, of classes without
            labels 0.2), ``temperature``, for retrieval those of section ``loss`` and ``distillation``.
        licence, note: for the reader and the model card.
    """

    name: str
    source: str
    task: TaskType
    format: Literal[
        "auto", "jsonl", "json", "csv", "tsv", "xlsx", "parquet", "arrow", "beir", "saved", "hub", "jionlp"
    ] = "auto"
    encoding: str = "utf-8"
    split: str = "train"
    revision: str | None = None
    subset: str | None = None
    corpus: str | None = None
    queries: str | None = None
    columns: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    preset: PresetSpec | None = None
    use: Literal["train", "evaluate"] = "train"
    positives: Literal["all", "first", "list"] = "all"
    labels: tuple[str, ...] | None = None
    score_range: tuple[Finite, ...] = (0.0, 1.0)
    min_characters: Natural = 1
    max_characters: Count = 20_000
    policy: Literal["drop", "error"] | None = None
    max_rejected: Share = 0.5
    max_rows: Count | None = None
    streaming: bool = False
    holdout: HoldoutSpec | None = None
    mining: Mapping[str, object] | None = None
    instruction: Annotated[Instructions | None, read_by(_instruction, str | WrittenInstructions | None)] = None
    weight: Positive | None = None
    repeats: Count = 1
    batch_multiple: Positive = 1.0
    query_length: Count | None = None
    document_length: Count | None = None
    loss: Mapping[str, object] = field(default_factory=dict)
    licence: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class MixtureSpec:
    """Datasets and what holds for all of them: a file, or the mapping under ``data.mixture``.

    Attributes:
        datasets: name -> dataset.
        file: a mixture file to begin with; what stands beside this key is laid over it, dataset by dataset and field
            by field; a dataset that is null there is left out.
        root: the folder that relative sources start from; None: the mixture file's folder.
        policy: what a faulty row does where its dataset does not say.
        defaults: fields given to every dataset that does not set them itself.
        tests: a mixture file of evaluation sets that were drawn of the same data, as ``prepare split`` leaves it: what
            is like their texts goes in ``prepare dedup``, and their answers are no negatives. A run reads it only where
            it mines from ``corpus``.
    """

    datasets: Mapping[str, object] = field(default_factory=dict)
    file: str | None = None
    root: str | None = None
    policy: Literal["drop", "error"] = "drop"
    defaults: Mapping[str, object] = field(default_factory=dict)
    tests: str | None = None
