"""Losses for Piccolo training.

text_ids.py         which texts are the same: a 64-bit number for each
false_negatives.py  which candidates are no negatives of which row
tiles.py            a tile of all pairs: its size, and where which scores stand
guide.py            what a guide model finds too close to be a negative
masked.py           how many candidates were left out
weights.py          what hard negatives and hard rows count more
choices.py          what may be chosen: directions, where hardness goes, a guide's margin, what a teacher teaches
at_once.py          a scalar and its gradients in one pass
contrast.py         tensors in, loss and gradients out: the exact contrastive loss, tile by tile
similarity.py       tensors in, one term out: how far similarities are from a teacher's
ranking.py          tensors in, loss and gradient out: whether pairs of texts stand in a teacher's order
spread.py           tensors in, two terms out: how far texts are spread out
batch.py            what the ranks must know of a batch beside its embeddings
piccolo.py          PiccoloLoss: embeds, gathers, masks, calls contrast
sincere.py          SINCERELoss: labelled texts, each of the class a positive
distillation.py     DistillationLoss: PiccoloLoss beside what teachers say of rows and texts
quantised.py        QuantisedLoss: a loss around any of them, on the embeddings and on bytes or bits of them
hybrid.py           task type -> loss with its weight
needs.py            what a loss must find in a dataset to teach anything
citations.py        the papers
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.losses.choices import DIRECTIONS as DIRECTIONS
    from piccolo_st.losses.choices import Direction as Direction
    from piccolo_st.losses.choices import DistillationSettings as DistillationSettings
    from piccolo_st.losses.choices import HardnessMode as HardnessMode
    from piccolo_st.losses.choices import MarginStrategy as MarginStrategy
    from piccolo_st.losses.choices import SmallPrecision as SmallPrecision
    from piccolo_st.losses.choices import TeacherSettings as TeacherSettings
    from piccolo_st.losses.distillation import DistillationLoss as DistillationLoss
    from piccolo_st.losses.distillation import check_width as check_width
    from piccolo_st.losses.hybrid import OwnNegativesLoss as OwnNegativesLoss
    from piccolo_st.losses.hybrid import ScoredPairsLoss as ScoredPairsLoss
    from piccolo_st.losses.hybrid import build_losses as build_losses
    from piccolo_st.losses.hybrid import scale_dimension as scale_dimension
    from piccolo_st.losses.piccolo import PiccoloLoss as PiccoloLoss
    from piccolo_st.losses.quantised import QuantisedLoss as QuantisedLoss
    from piccolo_st.losses.sincere import OtherClassesLoss as OtherClassesLoss
    from piccolo_st.losses.sincere import SINCERELoss as SINCERELoss

__getattr__, __dir__ = lazily(__name__, __file__)
