"""Better data before a run: check, deduplicate, filter, mine, as steps that resume on any machine.

check.py       The step ``check``: every row read and validated, and what the datasets hold, as a table and a ...
dedup.py       The step ``dedup``: exact and near duplicates within and across datasets, and texts of the ...
duplicates.py  Which rows say nothing new or too much: duplicates, and texts of evaluation sets
filter.py      The step ``filter``: length, language and repetition, and the consistency of query and positive
job.py         What the preparation steps share: the mixture they read, its rows in parts, and the mixture ...
mine.py        The step ``mine``: hard negatives for the retrieval datasets of a mixture, shard by shard
quality.py     Which rows are worth training on: by their length, their language, repetition, and consistency
shingles.py    Texts as sets of character n-grams, and how much two such sets overlap: exactly, and by MinHash
stages.py      Work cut into stages of independent tasks that leave files: done once each, resumed where it ...
steps.py       Preparing a mixture before training: check, dedup, filter, mine; each resumes, and each feeds ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.curation.steps import STEPS as STEPS
    from piccolo_st.curation.steps import PrepareConfig as PrepareConfig
    from piccolo_st.curation.steps import run_step as run_step

__getattr__, __dir__ = lazily(
    __name__,
    {
        "steps": "STEPS PrepareConfig run_step",
    },
)
