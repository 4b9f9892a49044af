"""What the columns of a source are, by all of its rows: which play a role, and which hold lists.

A chunk is looked at before it is read. What it adds may change what a column is, and the chunks before it are then
read again by whoever reads, so that the result does not depend on the order of the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from piccolo_st.data.chunks import Chunk
from piccolo_st.data.columns import Roles, find_columns, is_list, is_text, may_list, optional_roles, required_roles
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.data.strict import parse_list


@dataclass
class Survey:
    """What has been seen of a source so far.

    Attributes:
        present: its columns, in order.
        listed: those of positives and negatives that hold a list.
        gaps: those that hold null, or that a row lacks.
        written: those that hold a list written as text.
        plain: those that hold any other text.
    """

    present: dict[str, None] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    gaps: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    plain: set[str] = field(default_factory=set)

    def add(self, spec: DatasetSpec, chunk: Chunk) -> Roles:
        """Look at a chunk that has rows; the roles by what has been seen now.

        Raises:
            MixtureError: as find_columns.
        """
        self.present.update(dict.fromkeys(chunk.column_names()))
        columns = find_columns(spec, list(self.present), chunk.file)
        open_roles = {role: column for role, column in columns.items() if may_list(role)}
        for column in open_roles.values():
            self._look(chunk, column)
        mixed = {role for role, column in open_roles.items() if column in self.written & (self.plain | self.listed)}
        written = {role for role, column in open_roles.items() if column in self.written} - mixed
        # Negatives that some rows lack are lists as well, of which those rows have empty ones.
        lists = {
            role
            for role, column in open_roles.items()
            if column in self.listed or (role == "negative" and column in self.gaps)
        }
        return Roles(
            columns,
            frozenset(lists | written),
            frozenset(written),
            frozenset(mixed),
            tuple(name for name in self.present if name not in columns.values()),
        )

    def _look(self, chunk: Chunk, column: str) -> None:
        if isinstance(chunk.records, pa.Table):
            if column in chunk.records.column_names:
                self._look_at_array(chunk.records.column(column), column)
            return
        cells = chunk.cells(column)
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
            self._look_at_texts(iter(texts.filter(bracketed).to_pylist()), column)

    def _look_at_texts(self, texts: Iterator[str], column: str) -> None:
        for text in texts:
            if not text or text.isspace():
                continue
            (self.written if text.lstrip()[0] == "[" and parse_list(text) is not None else self.plain).add(column)


# What in a column's name speaks of which role, and columns of peers that look like one and are none.
_SPEAKS = {
    "label": re.compile(r"labels?|scores?"),
    "negative": re.compile(r"neg(?:s|atives?)?"),
    "positive": re.compile(r"pos(?:itives?)?"),
    "query": re.compile(r"query|queries"),
}
_NO_ROLE = {"pos_scores", "neg_scores"}


def suggestions(spec: DatasetSpec, roles: Roles) -> list[str]:
    """For each unused column whose name speaks of a role, what to set in order to use it."""
    possible = (*required_roles(spec), *optional_roles(spec))
    found = []
    for column in roles.unused:
        words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower())
        role = next((role for role, name in _SPEAKS.items() if any(map(name.fullmatch, words))), None)
        if role is None or column in _NO_ROLE or words[-1] in ("id", "ids"):
            continue
        if role in possible:
            found.append(
                f"its column {column!r} looks like a {role} and is not used; to use it, set `columns: {{{role}: "
                f"{column}}}`"
            )
        elif role == "label" and {"query", "positive"} <= roles.columns.keys():
            pair = f"sentence1: {roles.columns['query']}, sentence2: {roles.columns['positive']}, label: {column}"
            found.append(
                f"its column {column!r} looks like a label, which {spec.task} does not read; if it tells positives "
                f"from other texts, set `preset: {{name: scored_pairs}}` and `columns: {{{pair}}}`"
            )
    return found
