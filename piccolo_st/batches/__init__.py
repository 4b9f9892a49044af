"""Batches: which rows stand together at which step, and how they become tensors.

blocks.py        What a batch plan is made of: datasets, cut into blocks of what one optimizer step reads over ...
collator.py      Columns of a batch -> the tensors that sentence-transformers' losses read
interleaving.py  The order of the datasets in an epoch: well mixed, evenly spread, and found for any block ...
lists.py         Which texts of a row's lists a batch takes, whose they are, and what a teacher scores them
permutation.py   A seeded shuffle of 0..n-1 that is computed, not stored: any position, in any order, in O(1) ...
plan.py          Which rows of which dataset stand at which step: a pure function of (epoch, step, rank), with ...
reading.py       Reading a homogeneous batch as one query of one Arrow table, instead of a loop over its rows
sampler.py       The batch plan as a batch sampler of sentence-transformers, for a DatasetDict or a single ...
tokenization.py  ``model.preprocess`` for plain texts, without the detours: about half its time goes into ...
windows.py       A seeded shuffle of rows that are read by groups, as a Parquet file's are: near each other in a ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.batches.collator import PiccoloDataCollator as PiccoloDataCollator
    from piccolo_st.batches.collator import list_missing as list_missing
    from piccolo_st.batches.plan import BatchPlan as BatchPlan
    from piccolo_st.batches.reading import homogeneous_dataloader as homogeneous_dataloader
    from piccolo_st.batches.sampler import HomogeneousBatchSampler as HomogeneousBatchSampler
    from piccolo_st.batches.sampler import check_dataloader as check_dataloader

__getattr__, __dir__ = lazily(__name__, __file__)
