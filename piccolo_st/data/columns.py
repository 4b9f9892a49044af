"""Which column of a source plays which role, by all of its rows.

Roles of a row, before any preset: ``query, positive[, negative | negative_1..n]`` (retrieval), ``sentence1,
sentence2, label`` (sts, pair, preset scored_pairs), ``text, label`` (classification, clustering, preset classes),
``premise, hypothesis, label`` (preset nli). Looked for only where the mixture names them: a ``label`` of pairs for
classification or clustering, and a teacher's scores of retrieval rows, ``positive_score`` and ``negative_score`` or
both in one ``label`` (``scores``).

    (1) ``find_columns`` maps roles to column names: those the mixture names, else the usual names, the peers' own
        formats among them (``shapes``);
    (2) ``Survey`` looks at a chunk before it is read, and says which columns hold lists. What a later chunk adds may
        change that; the chunks before it are then read again, so that the result does not depend on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from piccolo_st.data.chunks import Chunk, excerpt
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.strict import parse_list
from piccolo_st.data.tasks import LABELLED_TASKS, SCORED_TASKS
from piccolo_st.errors import MixtureError
from piccolo_st.modeling import COLUMNS, NUMBERED_NEGATIVE
from piccolo_st.schema import unknown_key

# Usual column names, by role, in the order in which they are tried.
ALIASES: dict[str, tuple[str, ...]] = {
    **COLUMNS,
    "query": (*COLUMNS["query"], "text", "messages", "query_text", "title"),
    "positive": (
        *COLUMNS["positive"],
        "positive_passages", "positive_messages", "answer_paragraphs", "pos_doc", "docs", "response",
        "passage", "document", "context", "body", "content", "answers",
    ),
    "negative": (
        *COLUMNS["negative"], "negative_passages", "negative_messages", "neg_doc", "rejected_response",
    ),
    "sentence1": ("sentence1", "sentence_1", "text1", "text"),
    "sentence2": ("sentence2", "sentence_2", "text2", "text_pair", "text_pos"),
    "text": ("text", "sentence"),
    "premise": ("premise", "sentence1"),
    "hypothesis": ("hypothesis", "sentence2"),
}  # fmt: skip


# Where rows name texts that stand elsewhere (``by_id``): a judgement its two, other rows their documents, by role.
QUERY_IDS = ("query-id", "query_id", "qid")
DOCUMENT_IDS = ("corpus-id", "corpus_id", "docid", "doc_id", "document_id", "pid")
LISTED_IDS = {
    "positive_document_ids": "positive", "positive_ids": "positive", "pos_ids": "positive", "pid_pos": "positive",
    "negative_document_ids": "negative", "negative_ids": "negative", "neg_ids": "negative", "pid_neg": "negative",
}  # fmt: skip

# Where a teacher's scores of the texts of a row stand: two columns, or one.
SCORE_ROLES = ("positive_score", "negative_score", "label")


@dataclass(frozen=True)
class Columns:
    """The columns of a source by role.

    Attributes:
        names: role -> column name; negatives in several columns are ``negative_1``, ``negative_2``, ...
        lists: the roles whose cells are lists of texts.
        written: those of them whose lists are written as text, in every row.
        mixed: roles in which such a list stands among other cells, where it is a fault.
        unused: the source's other columns.
    """

    names: Mapping[str, str]
    lists: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is that of lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is that of text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def required_roles(spec: DatasetSpec) -> tuple[str, ...]:
    """The roles a source must have before its preset."""
    if spec.preset is not None:
        return {
            "nli": ("premise", "hypothesis", "label"),
            "classes": ("text", "label"),
            "scored_pairs": ("sentence1", "sentence2", "label"),
        }[spec.preset.name]
    if spec.task in SCORED_TASKS:
        return ("sentence1", "sentence2", "label")
    if spec.task == "retrieval" or "query" in spec.columns:  # triplets made elsewhere serve classification as well
        return ("query", "positive")
    return ("text", "label")


def optional_roles(spec: DatasetSpec) -> tuple[str, ...]:
    """The roles a source may have beside the required ones."""
    if required_roles(spec)[0] != "query":
        return ()
    return ("negative", "label") if spec.task in LABELLED_TASKS else ("negative", *SCORE_ROLES)


def has_scores(spec: DatasetSpec, role: str) -> bool:
    """Whether a role is that of a teacher's scores."""
    return role in optional_roles(spec) and role in SCORE_ROLES and spec.task not in LABELLED_TASKS


def role_columns(spec: DatasetSpec) -> set[str]:
    """Every column that may play a role, by the usual names and those that the mixture names; numbered ones aside."""
    named = [names if isinstance(names, tuple) else (names,) for names in spec.columns.values()]
    return {name for names in (*ALIASES.values(), *named) for name in names}


def names_ids(present: Sequence[str]) -> Literal["judgements", "lists", ""]:
    """Whether rows of these columns name documents by id: each one, which it judges, or those of its roles."""
    found = set(present)
    texts = found & set(ALIASES["positive"])
    if found & LISTED_IDS.keys() and texts <= {
        "answer",
        "answers",
    }:  # tevatron's rows have an answer, which may be null
        return "lists"
    return "judgements" if found & set(QUERY_IDS) and found & set(DOCUMENT_IDS) and not texts else ""


def find_columns(spec: DatasetSpec, present: Sequence[str], file: str) -> dict[str, str]:
    """Role -> the column that plays it, of those present.

    Raises:
        MixtureError: a role named in ``columns`` that the task does not have, a column that the source does not have,
            or a required role that no column plays.
    """
    required, optional = required_roles(spec), optional_roles(spec)
    place = f"columns of dataset {spec.name!r}"
    listed = excerpt(", ".join(present), 400) or "(none)"
    for role in spec.columns:
        if role not in required and role not in optional:
            raise MixtureError(unknown_key(role, [*required, *optional], place))
    scored = tuple(role for role in SCORE_ROLES if has_scores(spec, role) and role in spec.columns)
    if scored not in ((), ("positive_score", "negative_score"), ("label",)):
        raise MixtureError(
            f"a teacher's scores are positive_score and negative_score in {place}, or label with both, got "
            f"{' and '.join(scored)}; name the other as well, or label alone"
        )
    by_id = names_ids(present)
    columns: dict[str, str] = {}
    for role in (*required, *optional):
        named = spec.columns.get(role)
        names = [named] if isinstance(named, str) else list(named or [])
        for name in names:
            if name not in present:
                raise MixtureError(
                    f"{role} of {place} must be a column of {file}, got {name!r}; its columns are {listed}"
                )
        if not names and (role in required or role == "negative") and not (role == "positive" and by_id):
            taken = set(columns.values())
            names = [name for name in ALIASES[role] if name in present and name not in taken][:1]
        if not names and role == "negative":
            numbers = {name: int(found[1]) for name in present if (found := NUMBERED_NEGATIVE.fullmatch(name))}
            names = sorted(numbers, key=numbers.__getitem__)
        if not names and role in required:
            raise MixtureError(
                f"dataset {spec.name!r} is for {spec.task}"
                + (f" by the preset {spec.preset.name!r}" if spec.preset else "")
                + f" and needs a column for {role!r}, got {file} with the columns {listed}; "
                + (
                    "its rows name texts by id: say where these stand with `corpus` and `queries`, or `format: beir`"
                    if by_id
                    else f"say which with `columns: {{{role}: NAME}}`"
                )
            )
        if len(names) == 1:
            columns[role] = names[0]
        else:
            columns.update({f"{role}_{index}": name for index, name in enumerate(names, start=1)})
    return columns


@dataclass
class Survey:
    """What has been seen of a source's columns so far.

    Attributes:
        present: its columns, in order.
        listed: those of positives and negatives that hold a list.
        gaps: those that hold null, or that a row lacks.
        written: those that hold a list written as text.
        plain: those that hold any other text.
        columns: what ``add`` said last.
    """

    present: dict[str, None] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    gaps: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    plain: set[str] = field(default_factory=set)
    columns: Columns | None = None

    def add(self, spec: DatasetSpec, chunk: Chunk) -> Columns:
        """Look at a chunk that has rows; the columns by what has been seen of the source so far.

        Raises:
            MixtureError: as find_columns.
        """
        records = chunk.records
        found = records.column_names if isinstance(records, pa.Table) else (key for row in records for key in row)
        self.present.update(dict.fromkeys(found))
        names = find_columns(spec, list(self.present), chunk.file)
        may_list = {
            role: name
            for role, name in names.items()
            if role.partition("_")[0] in ("positive", "negative") and role not in SCORE_ROLES
        }
        for column in may_list.values():
            self._look(chunk, column)
        mixed = {role for role, column in may_list.items() if column in self.written & (self.plain | self.listed)}
        written = {role for role, column in may_list.items() if column in self.written} - mixed
        # Negatives that some rows lack are lists as well, of which those rows have empty ones.
        lists = {
            role
            for role, column in may_list.items()
            if column in self.listed or (role == "negative" and column in self.gaps)
        }
        return Columns(
            names,
            frozenset(lists | written),
            frozenset(written),
            frozenset(mixed),
            tuple(name for name in self.present if name not in names.values()),
        )

    def _look(self, chunk: Chunk, column: str) -> None:
        if isinstance(chunk.records, pa.Table):
            if column in chunk.records.column_names:
                self._look_at_array(chunk.records.column(column), column)
            return
        cells = [record.get(column) for record in chunk.records]
        if column not in self.gaps and None in cells:
            self.gaps.add(column)
        if column not in self.listed and any(isinstance(cell, list) for cell in cells):
            self.listed.add(column)
        if column not in self.plain or column not in self.written:
            self._look_at_texts((cell for cell in cells if type(cell) is str), column)

    def _look_at_array(self, array: pa.ChunkedArray, column: str) -> None:
        if array.null_count:
            self.gaps.add(column)
        if is_list(array.type):
            self.listed.add(column)
        elif is_text(array.type):
            texts = array.cast(pa.string())
            bracketed = pc.fill_null(pc.match_substring_regex(texts, r"^\s*\["), False)
            if pc.any(pc.and_(pc.invert(bracketed), pc.match_substring_regex(texts, r"\S"))).as_py():
                self.plain.add(column)
            self._look_at_texts(texts.filter(bracketed).to_pylist(), column)

    def _look_at_texts(self, texts: Iterable[str], column: str) -> None:
        for text in texts:
            if not text or text.isspace():
                continue
            (self.written if text.lstrip()[0] == "[" and parse_list(text) is not None else self.plain).add(column)
