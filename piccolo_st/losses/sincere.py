"""SINCERELoss: labelled texts drawn to all texts of their class in the batch, against all of other classes.

For text i, the texts P_i of its class without itself, the texts D_i of other classes, similarity s (cosine) and
temperature t (Feeney and Hughes 2023, arXiv 2309.14277, "Supervised Information Noise-Contrastive Estimation
REvisited"):

    loss_i = mean over p in P_i of  log( exp(s(i, p)/t) + sum over d in D_i exp(s(i, d)/t) ) - s(i, p)/t

that is, each text of the class is a positive by itself, and none stands against another, as they would in the
supervised contrastive loss of Khosla et al. 2020 (arXiv 2004.11362). With L_i = log of the sum over D_i, each term is
softplus(L_i - s(i, p)/t), and its derivatives are

    -sigmoid(L_i - s(i, p)/t)  by s(i, p)/t,  and  sigmoid(L_i - s(i, p)/t) exp(s(i, d)/t - L_i)  by s(i, d)/t

so loss and gradients are made tile by tile in one pass, as contrast.py does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from piccolo_st.distributed import gather_rows, get_world_size
from piccolo_st.losses.at_once import at_once
from piccolo_st.losses.batch import Batch, agree_on_columns
from piccolo_st.losses.citations import SINCERE
from piccolo_st.losses.contrast import check_temperature, unit
from piccolo_st.losses.piccolo import PiccoloLoss
from piccolo_st.losses.tiles import EXP_FLOOR, tile_ranges
from piccolo_st.modeling import Features, row_count


class SINCERELoss(PiccoloLoss):
    """The mean, over the texts of both columns, of the loss in the module docstring, over the texts of all ranks.

    A batch of N rows holds 2N labelled texts, and each of them is an anchor, whatever its column.

    Inputs: (text, another text of its class) and a whole number for each row, equal where the class is.

    Args:
        model: the model to train.
        temperature: t.
        gather_across_devices, mini_batch_size, mini_batch_num_tokens, chunk_tokens, show_progress_bar: as PiccoloLoss.

    Raises:
        ValueError: as PiccoloLoss.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.05,
        gather_across_devices: bool = True,
        mini_batch_size: int | None = None,
        mini_batch_num_tokens: int | None = None,
        chunk_tokens: int | str | None = "auto",
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(
            model,
            temperature,
            gather_across_devices=gather_across_devices,
            mini_batch_size=mini_batch_size,
            mini_batch_num_tokens=mini_batch_num_tokens,
            chunk_tokens=chunk_tokens,
            show_progress_bar=show_progress_bar,
        )

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The mean loss of this rank's texts, scaled so that the mean over the ranks is the mean over all texts.

        Raises:
            ValueError: not two columns that fit together, not one whole number for each row, or ranks that do not fit.
        """
        columns = list(sentence_features)
        fits = (
            len(columns) == 2
            and labels is not None
            and labels.shape == (row_count(columns[0]),)
            and not labels.is_floating_point()
        )
        agree_on_columns(
            columns,
            {"the loss": type(self).__name__, "labelled pairs": fits},
            across_ranks=self.gather_across_devices,
        )
        if not fits or labels is None:
            found = "no labels" if labels is None else f"labels of shape {tuple(labels.shape)} and type {labels.dtype}"
            raise ValueError(
                "the loss of labelled classes needs two columns of texts and a whole number for each row, got "
                f"{len(columns)} columns, {row_count(columns[0])} rows and {found}"
            )
        # The labels travel as the ids of the texts, which are exchanged with the batch and stay with it in caching.
        batch = self._describe([{**features, "text_id": labels} for features in columns])
        return self._embed_and_compare(columns, batch)

    def _loss(self, embeddings: Sequence[Tensor], batch: Batch) -> Tensor:
        columns = [unit(rows) for rows in embeddings]
        world = get_world_size() if self.gather_across_devices else 1
        own = slice(0, len(columns[0]))
        if world > 1:
            gathered = gather_rows(*columns)
            columns, own = [one.rows for one in gathered], gathered[0].own
        assert batch.queries is not None  # forward has put them there
        labels = batch.queries.to(columns[0].device, non_blocking=True)
        anchors = [slice(first + own.start, first + own.stop) for first in (0, batch.total)]
        return sincere_loss(
            torch.cat(columns), labels.repeat(2), anchors, self.temperature, divisor=2 * batch.total / world
        )

    def _settings(self) -> dict[str, object]:
        return {"temperature": self.temperature, "gather_across_devices": self.gather_across_devices}

    @property
    def citation(self) -> str:
        """BibTeX, for ST's model card."""
        return SINCERE


def sincere_loss(
    texts: Tensor,
    labels: Tensor,
    anchors: Sequence[slice],
    temperature: float,
    *,
    divisor: float | None = None,
    tile_rows: int | None = None,
) -> Tensor:
    """The losses of some texts against all, summed and divided; see the module docstring.

    A text that is alone with its class, and every text where there is one class, has loss 0 and no gradient.

    Args:
        texts: (N, D) unit vectors, float32 or float64.
        labels: (N,) whole numbers on the same device.
        anchors: the ranges of texts whose losses are summed: this rank's own.
        temperature: t.
        divisor: what the sum is divided by. None: the number of anchors, so the loss is their mean.
        tile_rows: how many anchors are computed at a time. None: as in ``contrastive_loss``.

    Returns:
        Scalar of the texts' dtype, differentiable once.

    Raises:
        ValueError: a label too few or too many, or a temperature that is not positive.
    """
    if texts.ndim != 2 or labels.shape != texts.shape[:1]:
        raise ValueError(
            f"there must be a label for each text, got texts of shape {tuple(texts.shape)} and labels of shape "
            f"{tuple(labels.shape)}"
        )
    count = sum(part.stop - part.start for part in anchors)
    # Scores, which texts are of the class, and what takes their place on the way: three buffers.
    row_bytes = 3 * len(texts) * texts.element_size()
    tiles = [
        slice(*tile)
        for part in anchors
        for tile in tile_ranges(part.start, part.stop, row_bytes, texts.device, tile_rows)
    ]
    own = partial(_loss_and_gradient, texts, labels, tiles, check_temperature(temperature), divisor or count)
    return at_once(own, texts)


def _loss_and_gradient(
    texts: Tensor, labels: Tensor, tiles: Sequence[slice], temperature: float, divisor: float, differentiable: bool
) -> tuple[Tensor, list[Tensor]]:
    loss, gradient = texts.new_zeros(()), torch.zeros_like(texts)
    for tile in tiles:
        rows = torch.arange(tile.stop - tile.start, device=texts.device)
        anchors = texts[tile] / temperature
        scores = anchors @ texts.T  # (R, N)
        same = labels[tile, None] == labels
        # L, (R, 1); -inf where all texts are of one class, of which softplus and sigmoid are 0.
        against = scores.masked_fill(same, -math.inf).logsumexp(1, keepdim=True)
        share = (scores - against).clamp_(EXP_FLOOR[texts.dtype], 0).exp_().masked_fill_(same, 0)
        same[rows, rows + tile.start] = same.new_zeros(())  # a number would be sent to a GPU, which waits
        weight = same.to(texts.dtype) / (same.sum(1, keepdim=True).clamp_min(1) * divisor)
        gap = scores.neg_().add_(against)  # L - s
        loss += (torch.nn.functional.softplus(gap, threshold=50) * weight).sum()
        if not differentiable:
            continue
        pull = gap.sigmoid_().mul_(weight)
        push = share.mul_(pull.sum(1, keepdim=True)).sub_(pull)  # the gradient of the scores
        gradient[tile] += (push @ texts).div_(temperature)
        gradient.addmm_(push.T, anchors)
    return loss, [gradient]


OtherClassesLoss = SINCERELoss  # its name before, in scripts
