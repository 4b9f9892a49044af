"""Better data before a run: split, check, deduplicate, filter, mine, score, as steps that resume on any machine.

A step is split, check, dedup, filter, mine or score; its stages run one after the other, the tasks of a stage in any
order.

steps.py        A step over a mixture, from its claim on a folder to its report
step_check.py   The step ``check``: every row read and validated, and what the datasets hold
step_dedup.py   The step ``dedup``: exact and near duplicates, and texts of the evaluation sets
step_filter.py  The step ``filter``: length, language and repetition, and the consistency of query and positive
step_mine.py    The step ``mine``: hard negatives for retrieval datasets, shard by shard
step_score.py   The step ``score``: a cross-encoder's scores of each row's positives and negatives
entries.py      ``describe``: the entry of a mixture that reads a file, and its rows as the trainer will see them
job.py          What the steps share: the mixture they read, its rows in parts, and the mixture they leave
stages.py       Stages of independent tasks that leave files, done once each, here or by datatrove
duplicates.py   Which rows are duplicates of others, or hold texts of evaluation sets
quality.py      Which rows are worth training on, by length, language, repetition and consistency
shingles.py     Texts as sets of character n-grams, and how much two such sets overlap
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.curation.entries import describe as describe
    from piccolo_st.curation.steps import STEPS as STEPS
    from piccolo_st.curation.steps import PrepareConfig as PrepareConfig
    from piccolo_st.curation.steps import run_step as run_step

__getattr__, __dir__ = lazily(__name__, __file__)
