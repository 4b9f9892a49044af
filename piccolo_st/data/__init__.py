"""Data: what a mixture is and what its rows are, from the file to checked columns. In the order of reading:

mixture.py     a YAML that names datasets, loaded into validated, memory-mapped datasets: the story from top to bottom
specs.py       what the YAML may say, field by field
tasks.py       the types of tasks, and those whose rows are alike
build.py       each dataset read, checked and written once, under the fingerprint of what went in
streaming.py   Parquet that is trained on where it lies, row group by row group, and not copied
streamed.py    its rows as a table of ``datasets``
sources.py     whatever a source is, as a stream of chunks of raw rows
chunks.py      such a chunk, and the rows that could not be read
text_files.py  JSON lines, JSON and delimited text
excel.py       the first sheet of an .xlsx
columnar.py    Parquet and Arrow, checked before anything looks at them
misread.py     what a file that was misread is, and the setting for it
strict.py      numbers and lists written as text, where Python's own parsers take more than is meant
by_id.py       rows that name their texts by id
layouts.py     folders of such data: BEIR, MTEB, T2Ranking, MS MARCO
jionlp.py      the dictionaries that the package jionlp ships
shapes.py      the shapes of peers' data, and their texts out of passages, messages and documents
columns.py     which column plays which role
cells.py       a chunk's cells as one Arrow array a role
scores.py      a teacher's scores of a row's texts, beside them
validation.py  what is broken, in which file and row
presets.py     rows of one kind turned into rows of another
report.py      rows read, used and lost on the way, in numbers that add up
holdout.py     queries kept out of training, and the other rows without their texts
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.data.build import arrow_parts as arrow_parts
    from piccolo_st.data.build import open_arrow as open_arrow
    from piccolo_st.data.build import write_arrow as write_arrow
    from piccolo_st.data.chunks import Reject as Reject
    from piccolo_st.data.chunks import excerpt as excerpt
    from piccolo_st.data.columns import SCORE_ROLES as SCORE_ROLES
    from piccolo_st.data.columns import find_columns as find_columns
    from piccolo_st.data.columns import names_ids as names_ids
    from piccolo_st.data.columns import role_columns as role_columns
    from piccolo_st.data.holdout import RetrievalHoldout as RetrievalHoldout
    from piccolo_st.data.holdout import clean as clean
    from piccolo_st.data.holdout import draw as draw
    from piccolo_st.data.holdout import forbidden as forbidden
    from piccolo_st.data.misread import looks_like as looks_like
    from piccolo_st.data.mixture import Mixture as Mixture
    from piccolo_st.data.mixture import load_mixture as load_mixture
    from piccolo_st.data.mixture import parse_mixture as parse_mixture
    from piccolo_st.data.mixture import tests_of as tests_of
    from piccolo_st.data.presets import CONTRADICTION as CONTRADICTION
    from piccolo_st.data.presets import ENTAILMENT as ENTAILMENT
    from piccolo_st.data.report import DatasetReport as DatasetReport
    from piccolo_st.data.report import HeldOutCounts as HeldOutCounts
    from piccolo_st.data.scores import is_scored as is_scored
    from piccolo_st.data.scores import keep_joined as keep_joined
    from piccolo_st.data.shapes import titled as titled
    from piccolo_st.data.shapes import unfold as unfold
    from piccolo_st.data.sources import Location as Location
    from piccolo_st.data.sources import is_search as is_search
    from piccolo_st.data.sources import locate as locate
    from piccolo_st.data.sources import read_chunks as read_chunks
    from piccolo_st.data.sources import read_search as read_search
    from piccolo_st.data.sources import read_texts as read_texts
    from piccolo_st.data.specs import DatasetSpec as DatasetSpec
    from piccolo_st.data.specs import HoldoutSpec as HoldoutSpec
    from piccolo_st.data.streamed import StreamedTable as StreamedTable
    from piccolo_st.data.tasks import LABELLED_TASKS as LABELLED_TASKS
    from piccolo_st.data.tasks import SCORED_TASKS as SCORED_TASKS
    from piccolo_st.data.tasks import TaskType as TaskType
    from piccolo_st.data.validation import flatten as flatten

__getattr__, __dir__ = lazily(__name__, __file__)
