"""Hard negatives: texts that look like the answer to a query and are not.

candidates.py  Candidates for negatives: settings, and three ways to find what looks like an answer
lexical.py     An encoder that needs no training: a random projection of TF-IDF, as a stock SentenceTransformer
limits.py      What a dataset's own instruction and lengths do wherever its texts are cut: batches, mining ...
miner.py       Hard negatives: texts that look like the answer to a query and are not
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.mining.candidates import MiningSettings as MiningSettings
    from piccolo_st.mining.lexical import lexical_encoder as lexical_encoder
    from piccolo_st.mining.limits import check_dataset as check_dataset
    from piccolo_st.mining.limits import dataset_limits as dataset_limits
    from piccolo_st.mining.limits import reading as reading
    from piccolo_st.mining.miner import Miner as Miner
    from piccolo_st.mining.miner import mine_mixture as mine_mixture
    from piccolo_st.mining.miner import shard_rows as shard_rows
    from piccolo_st.mining.miner import with_negatives as with_negatives

__getattr__, __dir__ = lazily(__name__, __file__)
