"""Losses for Piccolo training.

text_ids.py         which texts are the same: a 64-bit number for each
false_negatives.py  which candidates are no negatives of which row
contrast.py         tensors in, loss and gradients out: the exact contrastive loss, tile by tile
batch.py            what the ranks must know of a batch beside its embeddings
piccolo.py          PiccoloLoss: embeds, gathers, masks, calls contrast
sincere.py          SINCERELoss: labelled texts, each of the class a positive
hybrid.py           task type -> loss with its weight
needs.py            what a loss must find in a dataset to teach anything
"""

from piccolo_st.losses.contrast import DIRECTIONS, Direction
from piccolo_st.losses.hybrid import OwnNegativesLoss, ScoredPairsLoss, build_losses, scale_dimension
from piccolo_st.losses.piccolo import PiccoloLoss
from piccolo_st.losses.sincere import SINCERELoss

OtherClassesLoss = SINCERELoss  # its name before, in scripts

__all__ = [
    "DIRECTIONS",
    "Direction",
    "OwnNegativesLoss",
    "PiccoloLoss",
    "SINCERELoss",
    "ScoredPairsLoss",
    "build_losses",
    "scale_dimension",
]
