"""Data: what a mixture is and what its rows are, from the file to checked columns.

beir.py        The BEIR layout: corpus.jsonl and queries.jsonl (``_id``, ``text``, perhaps ``title``), and ...
build.py       Datasets read, checked and written once: a folder of Arrow files named by the fingerprint of ...
chunks.py      Raw rows of a source that know their file and row number, and rows that are left out
columns.py     Which column of a source plays which role, and its cells as typed Arrow arrays
holdout.py     Held-out retrieval sets: queries kept out of training and searched for among all positives of ...
jionlp.py      Three sets of real Chinese pairs that the package jionlp ships, read from its zip files without ...
mixture.py     A data mixture: one YAML that names the datasets, loaded into validated, memory-mapped datasets
presets.py     Rows of one kind turned into rows of another: what the Piccolo recipe does to labelled data
report.py      What came of each dataset of a mixture: rows read, used and lost on the way, in numbers that ...
sources.py     Readers: whatever a dataset's source is, as a stream of chunks of raw rows that know their file ...
specs.py       What a mixture file may say: frozen dataclasses, filled from a mapping and checked field by field
strict.py      JSON, numbers and lists written as text, where Python's own parsers take more than is meant
survey.py      What the columns of a source are, by all of its rows: which play a role, and which hold lists
tasks.py       The types of tasks that a dataset may be for, and the groups whose rows are alike
text_files.py  Readers of JSON lines, JSON and delimited text, row by row, faults included
validation.py  Every row is checked once: what is broken, in which file and row
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.data.beir import read_qrels as read_qrels
    from piccolo_st.data.beir import read_texts as read_texts
    from piccolo_st.data.chunks import Reject as Reject
    from piccolo_st.data.chunks import excerpt as excerpt
    from piccolo_st.data.columns import flatten as flatten
    from piccolo_st.data.holdout import RetrievalHoldout as RetrievalHoldout
    from piccolo_st.data.mixture import Mixture as Mixture
    from piccolo_st.data.mixture import load_mixture as load_mixture
    from piccolo_st.data.mixture import parse_mixture as parse_mixture
    from piccolo_st.data.report import DatasetReport as DatasetReport
    from piccolo_st.data.sources import locate as locate
    from piccolo_st.data.sources import read_chunks as read_chunks
    from piccolo_st.data.specs import DatasetSpec as DatasetSpec
    from piccolo_st.data.tasks import LABELLED_TASKS as LABELLED_TASKS
    from piccolo_st.data.tasks import SCORED_TASKS as SCORED_TASKS
    from piccolo_st.data.tasks import TaskType as TaskType

__getattr__, __dir__ = lazily(
    __name__,
    {
        "beir": "read_qrels read_texts",
        "chunks": "Reject excerpt",
        "columns": "flatten",
        "holdout": "RetrievalHoldout",
        "mixture": "Mixture load_mixture parse_mixture",
        "report": "DatasetReport",
        "sources": "locate read_chunks",
        "specs": "DatasetSpec",
        "tasks": "LABELLED_TASKS SCORED_TASKS TaskType",
    },
)
