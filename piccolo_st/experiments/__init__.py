"""What each part of the recipe is worth, beside sentence-transformers and FlagEmbedding alone; and merged models.

ablation.py        variants of one run, several seeds: trained, scored, kept
variants.py        what its YAML may say, and what each variant runs with
tasks.py           what variants are scored on
report.py          the tables and the picture
stock.py           the same rows and encoder trained by sentence-transformers alone
flag_embedding.py  the same by FlagEmbedding, in an environment of its own
merging.py         one model out of several, by weights given or searched on a held-out task
memory.py          the highest memory of a process while something ran
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.experiments.ablation import Ablation as Ablation
    from piccolo_st.experiments.merging import Merge as Merge
    from piccolo_st.experiments.merging import merge_checkpoints as merge_checkpoints

__getattr__, __dir__ = lazily(__name__, __file__)
