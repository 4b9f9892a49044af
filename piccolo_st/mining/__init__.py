"""Hard negatives: texts that look like the answer to a query and are not.

candidates.py  which of the texts found for a query become its negatives: the settings, and the rule
search.py      three ways to find what looks like an answer: by embeddings, by BM25, and at random
lexical.py     an encoder that needs no training, and BM25
embeddings.py  embeddings on disk: a text is encoded once for a model and a way of reading it
guide.py       a guide's and teachers' embeddings of training sets, read batch by batch
documents.py   documents that a user names to be searched among
judge.py       a second opinion on what the rules leave
limits.py      what a dataset's own instruction and lengths do wherever its texts are cut
miner.py       one dataset, shard by shard: the story from top to bottom
report.py      what was dropped and why, for a person to read
mixture.py     the training sets of a mixture, each mined once and kept
remining.py    negatives that change while a run goes on: the settings, which rows are judged when, the rules
in_use.py      which candidates of a row are its negatives at a step of a run
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.mining.candidates import MiningSettings as MiningSettings
    from piccolo_st.mining.documents import corpus_files as corpus_files
    from piccolo_st.mining.guide import StoredGuide as StoredGuide
    from piccolo_st.mining.guide import StoredTeachers as StoredTeachers
    from piccolo_st.mining.guide import store_guide as store_guide
    from piccolo_st.mining.in_use import NEGATIVES as NEGATIVES
    from piccolo_st.mining.in_use import NegativesInUse as NegativesInUse
    from piccolo_st.mining.judge import load_alike as load_alike
    from piccolo_st.mining.lexical import lexical_encoder as lexical_encoder
    from piccolo_st.mining.limits import check_dataset as check_dataset
    from piccolo_st.mining.limits import dataset_limits as dataset_limits
    from piccolo_st.mining.limits import read_at_most as read_at_most
    from piccolo_st.mining.limits import reading as reading
    from piccolo_st.mining.miner import UNTRAINED as UNTRAINED
    from piccolo_st.mining.miner import Miner as Miner
    from piccolo_st.mining.miner import column_texts as column_texts
    from piccolo_st.mining.miner import shard_rows as shard_rows
    from piccolo_st.mining.miner import with_negatives as with_negatives
    from piccolo_st.mining.mixture import further_documents as further_documents
    from piccolo_st.mining.mixture import mine_mixture as mine_mixture
    from piccolo_st.mining.mixture import negatives_in_use as negatives_in_use
    from piccolo_st.mining.remining import ReminingSettings as ReminingSettings
    from piccolo_st.mining.remining import due as due
    from piccolo_st.mining.report import MiningReport as MiningReport
    from piccolo_st.mining.report import report_table as report_table
    from piccolo_st.mining.report import write_report as write_report

__getattr__, __dir__ = lazily(__name__, __file__)
