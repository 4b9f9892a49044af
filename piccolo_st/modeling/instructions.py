"""Instructions: the short text put before a query or a document, and who gets which.

Piccolo puts ``查询：`` before a query and ``结果：`` before a document in retrieval, and nothing before the texts of
similarity, classification and clustering tasks. This file holds the presets and turns them into what
sentence-transformers reads:

1. ``set_prompts`` stores them in a model as prompts, so that ``encode_query``, ``encode_document`` and mteb use them.
   It never sets a default prompt: that one would also go before the texts of every task that has no instruction.
2. ``column_prompts`` and ``dataset_prompts`` are the trainer's ``args.prompts``, by column and by dataset;
   ``column_tasks`` and ``dataset_tasks`` are its ``args.router_mapping``, which picks the length limit of a column.
3. ``dataset_phrasings`` says which columns have several wordings, for the collator to draw from.

What a column is called decides what it is: ``column_role`` knows the names, and nothing else does. Nothing here imports
torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from piccolo_st.errors import InputError, nearest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Task: TypeAlias = Literal["query", "document"]

COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "query": ("query", "anchor", "question"),
        "positive": ("positive", "positives", "pos", "text_pos", "answer"),
        "negative": (
            "negative", "negatives", "neg", "negs", "text_neg",
            "hard_negative", "hard_negatives", "hard_neg", "hard_negs",
        ),
        "label": ("label", "labels", "score", "scores", "similarity_score"),
    }
)  # fmt: skip
"""The names a column of each role goes by, in the order in which they are looked for; or numbered negatives."""

NUMBERED_NEGATIVE = re.compile(r"(?:hard_)?neg(?:ative)?_?(\d+)")
"""Negatives in a column each: negative_1, neg_2, hard_neg_3."""


@dataclass(frozen=True)
class Instructions:
    """What goes before a query and before a document. An empty string is no instruction.

    Attributes:
        query: before a query.
        document: before a document.
    """

    query: str = ""
    document: str = ""

    def __post_init__(self) -> None:
        for task in ("query", "document"):
            if not isinstance(text := getattr(self, task), str):
                raise TypeError(f"the {task} instruction must be a string, got {text!r}; write '' for none")

    @property
    def prompts(self) -> dict[str, str]:
        """The same as ST prompts: ``{"query": ..., "document": ...}``."""
        return {"query": self.query, "document": self.document}

    @property
    def phrasings(self) -> dict[str, tuple[str, ...]]:
        """All that a row of training may have: ``{"query": (...), "document": (...)}``, what ``prompts`` has first."""
        return {task: (text,) for task, text in self.prompts.items()}

    @property
    def texts(self) -> set[str]:
        """Every instruction that is not empty."""
        return {text for texts in self.phrasings.values() for text in texts if text}

    @classmethod
    def from_plain(cls, value: object, place: str) -> Instructions:
        """What a configuration file says at ``place``; a string that is no preset, or anything else, is an InputError.

        The readers of configurations call this for every field that is annotated with a class that has it.
        """
        try:
            return resolve_instructions(value, place)  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(str(error)) from None

    @classmethod
    def if_any(cls, value: object, place: str) -> Instructions | None:
        """The same, or None where nothing is said."""
        return None if value is None else cls.from_plain(value, place)


@dataclass(frozen=True)
class PhrasedInstructions(Instructions):
    """Instructions in several wordings, of which each row of training draws one; the first is the model's prompt.

    Attributes:
        queries: before a query.
        documents: before a document.
    """

    queries: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()

    @property
    def phrasings(self) -> dict[str, tuple[str, ...]]:
        """All wordings."""
        return {"query": self.queries, "document": self.documents}


TASK_TEMPLATE = "Instruct: {task}\nQuery: "
"""How instruction-tuned language models have a task before a query (E5-instruct, gte-Qwen2)."""


@dataclass(frozen=True)
class WrittenInstructions:
    """Instructions as a configuration writes them; a list has several wordings, of which each row draws one.

    Attributes:
        query: before a query.
        document: before a document.
        task: in the place of both, what ``template`` is filled with before a query; a document has none then.
        template: of a task, with ``{task}`` in it.
    """

    query: str | list[str] = ""
    document: str | list[str] = ""
    task: str | list[str] = ""
    template: str = TASK_TEMPLATE


_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

PRESETS: Mapping[str, Instructions] = MappingProxyType(
    {
        # As the usage section of the Piccolo model card types them, with a full-width colon. The default.
        "piccolo": Instructions("查询：", "结果："),
        # As the training notes of the same card write them. They tokenize differently.
        "piccolo-training-notes": Instructions("查询: ", "结果: "),
        "none": Instructions(),
        # Of published models that people start from, as the card of each types them; single datasets have other tasks.
        "bge-zh": Instructions("为这个句子生成表示以用于检索相关文章："),  # hf.co/BAAI/bge-base-zh-v1.5
        "e5": Instructions("query: ", "passage: "),  # hf.co/intfloat/multilingual-e5-small
        "gte-qwen2": Instructions(f"Instruct: {_WEB_SEARCH}\nQuery: "),  # hf.co/Alibaba-NLP/gte-Qwen2-1.5B-instruct
        "qwen3-embedding": Instructions(f"Instruct: {_WEB_SEARCH}\nQuery:"),  # hf.co/Qwen/Qwen3-Embedding-0.6B
    }
)

InstructionSpec: TypeAlias = str | Instructions | Mapping[str, str | list[str]]


def resolve_instructions(spec: InstructionSpec, place: str = "instructions") -> Instructions:
    """Return the instructions that ``spec`` means.

    Args:
        spec: the name of a preset, ``Instructions``, or a mapping with the keys "query" and "document" ("passage" is
            another name of the latter; a missing key means no instruction), or "task" and perhaps "template", as
            ``WrittenInstructions`` has them.
        place: what ``spec`` is called in messages.

    Raises:
        InputError: the name is no preset, or the mapping has other keys.
        TypeError: ``spec`` is none of the three, or an instruction is not a string.
    """
    if isinstance(spec, Instructions):
        return spec
    if isinstance(spec, str) and spec in PRESETS:
        return PRESETS[spec]
    rule = (
        f"{place} must be a preset ({', '.join(PRESETS)}) or instructions of your own, "
        '{query: "...", document: "..."} or {task: "..."}'
    )
    if isinstance(spec, str):
        raise InputError(f"{rule}, got {spec!r}{nearest(spec, list(PRESETS))}")
    if not isinstance(spec, Mapping):
        raise TypeError(f"{rule}, got {spec!r}" + "; for no instructions write none" * (not spec))
    if "task" in spec and set(spec) <= {"task", "template"}:
        template = spec.get("template", TASK_TEMPLATE)
        if not isinstance(template, str) or "{task}" not in template:
            raise InputError(f"the template of {place} must have {{task}} in it, got {template!r}")
        spec = {"query": [template.replace("{task}", task) for task in _wordings(spec["task"], "task", place)]}
    if not set(spec) <= {"query", "document", "passage"} or {"document", "passage"} <= set(spec):
        raise InputError(f"{rule} (or passage in the place of document), got the keys {list(spec)}")
    queries = _wordings(spec.get("query", ""), "query", place)
    documents = _wordings(spec.get("document", spec.get("passage", "")), "document", place)
    if len(queries) == len(documents) == 1:
        return Instructions(queries[0], documents[0])
    return PhrasedInstructions(queries[0], documents[0], queries, documents)


def _wordings(value: object, name: str, place: str) -> tuple[str, ...]:
    """The wordings of one text or of a list of them."""
    texts = value if isinstance(value, list) and value else [value]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"the {name} of {place} must be a string, got {text!r}; write '' for none")
    return tuple(texts)


def set_prompts(
    model: SentenceTransformer,
    instructions: InstructionSpec = "piccolo",
    per_task: Mapping[str, InstructionSpec] | None = None,
) -> None:
    """Store the instructions in ``model.prompts``; they are saved with the model.

    ``encode_query`` and ``encode_document`` then use them without being told; ``encode`` adds nothing unless it is
    asked to. Prompts of other names stay, a default prompt is taken away.

    Args:
        model: its ``prompts`` and ``default_prompt_name`` change.
        instructions: for every retrieval task.
        per_task: instructions of single mteb tasks or task types, by name; stored under mteb's own keys
            (``T2Retrieval-query``, ``T2Retrieval-document``).

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> set_prompts(model, {"query": "问题：", "document": ""})
        >>> bool((model.encode_query("天气") == model.encode("问题：天气")).all())
        True
    """
    prompts = resolve_instructions(instructions).prompts
    for task, spec in (per_task or {}).items():
        prompts |= {f"{task}-{kind}": text for kind, text in resolve_instructions(spec).prompts.items()}
    model.prompts = {**model.prompts, **prompts}
    model.default_prompt_name = None


def saved_instructions(model: SentenceTransformer) -> Instructions:
    """The instructions that a model has as prompts.

    Raises:
        InputError: a prompt is no text, in a file that was damaged.
    """
    prompts = model.prompts
    query, document = prompts.get("query") or "", prompts.get("document") or prompts.get("passage") or ""
    try:
        return Instructions(query, document)
    except TypeError as error:
        raise InputError(
            f"the prompts saved with a model must be texts: {error}; mend its config_sentence_transformers.json, or "
            "set model.instructions"
        ) from None


def column_role(column: str) -> str | None:
    """What a column of this name holds: query, positive, negative or label; None: the name does not say."""
    if NUMBERED_NEGATIVE.fullmatch(column):
        return "negative"
    return next((role for role, names in COLUMNS.items() if column in names), None)


def column_task(column: str, columns: Collection[str]) -> Task | None:
    """Whether a column holds queries or documents; None for similarity or classification data.

    Args:
        column: its name.
        columns: all of the dataset: ``text`` is a query where documents stand beside it, and no other query.
    """
    role = column_role(column)
    if role in ("positive", "negative"):
        return "document"
    beside = {column_role(other) for other in columns}
    if role == "query" or (column == "text" and "query" not in beside and beside & {"positive", "negative"}):
        return "query"
    return None


def column_tasks(columns: Iterable[str]) -> dict[str, Task]:
    """Return the task of each column that has one, as ST's ``router_mapping`` of one dataset.

    Raises:
        InputError: only some of the text columns have a task. Such a dataset would train with an instruction on one
            side alone, unnoticed.
    """
    names = [column for column in columns if column_role(column) != "label" and column != "dataset_name"]
    found = {column: column_task(column, names) for column in names}
    tasks = {column: task for column, task in found.items() if task is not None}
    if tasks and (unknown := [column for column in names if column not in tasks]):
        raise InputError(
            f"columns {unknown} are neither queries nor documents, while {list(tasks)} are; a retrieval dataset has "
            "the columns query, positive and negative (or negative_1, negative_2, ...); rename or remove the others"
        )
    return tasks


def column_prompts(columns: Iterable[str], instructions: InstructionSpec = "piccolo") -> dict[str, str]:
    """Return ``{column: instruction}`` for one dataset, the form ST's ``args.prompts`` has for a single dataset.

    Columns without a task or with an empty instruction are left out, so similarity and classification data give {}.
    """
    prompts = resolve_instructions(instructions).prompts
    return {column: prompts[task] for column, task in column_tasks(columns).items() if prompts[task]}


def dataset_tasks(columns: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Task]]:
    """Return ``{dataset: {column: task}}``, the form ST's ``args.router_mapping`` has for a DatasetDict.

    Args:
        columns: the column names of each dataset, such as ``DatasetDict.column_names``.
    """
    return {dataset: column_tasks(names) for dataset, names in columns.items()}


def dataset_prompts(
    columns: Mapping[str, Sequence[str]],
    instructions: InstructionSpec = "piccolo",
    per_dataset: Mapping[str, InstructionSpec] | None = None,
) -> dict[str, dict[str, str]]:
    """Return ``{dataset: {column: instruction}}``, the form ST's ``args.prompts`` has for a DatasetDict.

    Args:
        columns: the column names of each dataset, such as ``DatasetDict.column_names``.
        instructions: for every dataset with query and document columns that ``per_dataset`` does not name.
        per_dataset: instructions of single datasets.

    Raises:
        InputError: ``per_dataset`` names a dataset that is not there, or gives an instruction to one that has no
            column to put it before.
    """
    per_dataset = per_dataset or {}
    if unknown := sorted(set(per_dataset) - set(columns)):
        raise InputError(
            f"instructions of single datasets must be for {', '.join(sorted(columns))}, got {', '.join(unknown)}"
        )
    prompts = {}
    for dataset, names in columns.items():
        prompts[dataset] = column_prompts(names, per_dataset.get(dataset, instructions))
        own = resolve_instructions(per_dataset.get(dataset, "none")).prompts
        if any(own.values()) and not prompts[dataset]:
            raise InputError(
                f"the instructions {own} of dataset {dataset!r} need a column of queries or documents, got "
                f"{list(names)}; rename them, or set its instructions to 'none'"
            )
    return prompts


def dataset_phrasings(
    columns: Mapping[str, Sequence[str]],
    instructions: Instructions,
    per_dataset: Mapping[str, Instructions],
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return ``{dataset: {column: wordings}}`` of the columns whose rows draw one of several.

    Args:
        columns, instructions, per_dataset: as for ``dataset_prompts``.
    """
    found = {}
    for dataset, names in columns.items():
        wordings = per_dataset.get(dataset, instructions).phrasings
        found[dataset] = {c: wordings[task] for c, task in column_tasks(names).items() if len(wordings[task]) > 1}
    return {dataset: several for dataset, several in found.items() if several}
