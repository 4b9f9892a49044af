"""What each part of the recipe is worth, beside sentence-transformers alone.

ablation.py  variants of one run, several seeds, one table and one picture
stock.py     the same rows and encoder trained by sentence-transformers alone
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.experiments.ablation import Ablation as Ablation

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ablation": "Ablation",
    },
)
