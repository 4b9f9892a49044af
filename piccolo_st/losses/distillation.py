"""PiccoloLoss beside what teachers say: a reranker's scores of the texts of each row, embeddings of every text.

Of row i, the candidates c in C_i are its positive and its own hard negatives; the student scores them by s_c = cosine
over ``temperature``, the teacher by T_c, what stands in the data over ``teacher_temperature``:

    kl           sum over c of P_c (log P_c - log S_c), with P and S the softmax of T and s over C_i: FlagEmbedding's
                 kl_div less the entropy of the teacher, which is constant, and ST's DistillKLDivLoss without its factor
                 of temperature squared
    margin_mse   mean over the negatives c of ((s_p - s_c) - (T_p - T_c))^2, p the positive: ST's MarginMSELoss

Of all N texts of all ranks, queries and documents, x is the student's unit embedding and y the teachers': of several
with the weights w_k, their unit embeddings times sqrt(w_k / sum of w), one after the other, so that y_i y_j is the
weighted mean of their cosines. As stella and Jasper (Zhang et al. 2024, arXiv 2412.19048) with

    cosine       mean over the texts of 1 - x_i y_i, which needs the teachers' width
    similarity   mean over all pairs of texts of (x_i x_j - y_i y_j)^2 (similarity.py)
    ranking      mean over all two pairs of texts of how far they are from standing in the teachers' order,
                 ``ranking_margin`` apart (ranking.py)

    loss = contrastive_weight * PiccoloLoss + weight * mean over the rows of kl or margin_mse
           + cosine_weight * cosine + similarity_weight * similarity + ranking_weight * ranking
           + matryoshka_weight * mean over the smaller MRL dimensions of similarity_loss (similarity.py) of all texts of
             all ranks, cut to that dimension, with the whole embeddings as their teacher

A row without a negative of its own has nothing to compare, and its term is 0. The terms of scores look at a rank's own
rows alone, so nothing of them is gathered; all of it works from the embeddings that PiccoloLoss makes, with gradient
caching and MRL. Of MRL's dimensions the cosine is that of the largest, all else is there in each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from piccolo_st.distributed import gather_rows, get_world_size
from piccolo_st.errors import InputError
from piccolo_st.losses.batch import Batch, local_owners
from piccolo_st.losses.choices import DistillationSettings
from piccolo_st.losses.citations import JASPER, MARGIN_MSE
from piccolo_st.losses.contrast import unit
from piccolo_st.losses.piccolo import PiccoloLoss
from piccolo_st.losses.ranking import ranking_loss
from piccolo_st.losses.similarity import similarity_loss
from piccolo_st.modeling import Features


@dataclass(frozen=True, kw_only=True)
class _Taught(Batch):
    """A batch with what teachers say of this rank's own texts.

    Attributes:
        own_owner: (m,) int64, of this rank's hard negatives, which of its rows owns each.
        scores: of its positives, (n,), and of its hard negatives, (m,); float32; None where they do not count.
        vectors: embeddings of its texts, columns one after the other, (n + n + m, K); None without teachers.
    """

    own_owner: Tensor
    scores: tuple[Tensor, Tensor] | None
    vectors: Tensor | None


class DistillationLoss(PiccoloLoss):
    """The contrastive loss, and beside it or instead of it what teachers say; see the module docstring.

    Inputs: as PiccoloLoss, with ``score`` in the features of the positive and of every column of hard negatives, as
    PiccoloDataCollator makes them of a label that lists a row's scores; or that label itself, (rows, 1 + n), beside n
    columns of one negative a row. With teachers, their embeddings in each column's ``teacher``, where
    PiccoloDataCollator puts them; what the settings say of a teacher are its name and its weight.

    Args:
        model: the model to train.
        distillation: fields of DistillationSettings.
        matryoshka_dims: those of the MatryoshkaLoss around this loss; it calls this one for each.
        **contrastive: arguments of PiccoloLoss.

    Raises:
        ValueError: as PiccoloLoss, or settings that do not fit.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> loss = DistillationLoss(model, {"kind": "kl", "weight": 0.5}, temperature=0.02)
        >>> columns = [["天气", "水果"], ["今天有雨", "红的果子"], ["好天气", "树木"]]  # query, positive, negative
        >>> scores = torch.tensor([[7.1, 5.9], [8.3, -4.0]])  # of a reranker
        >>> loss([model.preprocess(texts) for texts in columns], scores).backward()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        distillation: Mapping[str, object] | None = None,
        *,
        matryoshka_dims: Sequence[int] | None = None,
        **contrastive: Any,
    ) -> None:
        super().__init__(model, **contrastive)
        self.distillation = DistillationSettings.of(distillation)
        settings = self.distillation
        if not (settings.weight or settings.contrastive_weight or settings.teachers):
            raise ValueError("weight or contrastive_weight of distillation must be above 0, got 0 for both; raise one")
        self.matryoshka_dims = sorted(matryoshka_dims or [], reverse=True)
        if settings.matryoshka_weight and len(self.matryoshka_dims) < 2:
            raise ValueError(
                "matryoshka_weight of distillation needs two or more matryoshka_dims, got "
                f"{list(self.matryoshka_dims)}; set loss.matryoshka_dims, or the weight to 0"
            )

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The mean loss of this rank's rows, scaled so that the mean over the ranks is the mean over all rows.

        Raises:
            ValueError: as PiccoloLoss, texts without scores or without teachers' embeddings, or embeddings of another
                width than theirs where the cosine counts.
        """
        return super().forward(_with_scores(list(sentence_features), labels))

    def _describe(self, columns: Sequence[Features], **further: object) -> Batch:
        scored = [features["score"] for features in columns[1:] if "score" in features]
        seen = [features["teacher"] for features in columns if "teacher" in features]
        facts = {
            "whether its texts have scores": len(scored) == len(columns) - 1,
            "whether its texts have teachers' embeddings": len(seen) == len(columns),
        }
        batch = super()._describe(columns, **further, **facts)
        has_scores, has_vectors = facts.values()
        if self.distillation.teachers and not has_vectors:
            raise InputError(
                "with teachers each column must have their embeddings, (texts, dimensions), in its features' "
                "'teacher', got a column without; give PiccoloDataCollator a teacher"
            )
        if self.distillation.weight and not has_scores:
            raise InputError(
                "distillation needs a teacher's score for each positive and negative, got a batch without; name their "
                "columns: `columns: {positive_score: pos_scores, negative_score: neg_scores}` of the dataset"
            )
        known = {item.name: getattr(batch, item.name) for item in fields(batch)}
        return _Taught(
            **known,
            own_owner=local_owners(columns),
            scores=(scored[0].float(), torch.cat([scored[0][:0], *scored[1:]]).float())
            if self.distillation.weight
            else None,
            vectors=torch.cat(seen) if self.distillation.teachers else None,
        )

    def _loss(self, embeddings: Sequence[Tensor], batch: Batch) -> Tensor:
        settings, world = self.distillation, get_world_size() if self.gather_across_devices else 1
        assert isinstance(batch, _Taught)
        texts = torch.cat([unit(rows) for rows in embeddings])
        loss = texts[:0].sum(dtype=torch.float32)  # zero, and can go backward where a smaller dimension has no term
        if batch.scores is not None:
            terms = self._terms(embeddings, batch.own_owner, batch.scores)
            loss = loss + terms.sum() * (settings.weight * world / batch.total)
        widest = not self.matryoshka_dims or embeddings[0].shape[1] == self.matryoshka_dims[0]  # MRL's first call
        if settings.matryoshka_weight and widest:
            loss = loss + settings.matryoshka_weight * self._nested(texts, world)
        if batch.vectors is not None:
            loss = loss + self._seen(texts, unit(batch.vectors).to(texts.dtype), batch, widest)
        if settings.contrastive_weight:
            loss = loss + settings.contrastive_weight * super()._loss(embeddings, batch)
        return loss

    def _nested(self, texts: Tensor, world: int) -> Tensor:
        """The mean over the smaller dimensions, scaled so that the mean over the ranks is that of all texts."""
        (everyone,), own = _of_all(world, texts)
        divisor = len(everyone) ** 2 / world
        smaller = [unit(everyone[:, :dim]) for dim in self.matryoshka_dims[1:]]
        terms = [similarity_loss(cut, everyone, rows=own, divisor=divisor) for cut in smaller]
        return torch.stack(terms).mean()

    def _seen(self, texts: Tensor, vectors: Tensor, batch: Batch, widest: bool) -> Tensor:
        """The weighted terms of the teachers' embeddings, scaled in the same way; the cosine where it is widest."""
        settings, loss = self.distillation, texts.new_zeros(())
        world = get_world_size() if self.gather_across_devices else 1
        total = 2 * batch.total + len(batch.owner)  # texts of all ranks
        if settings.cosine_weight and widest:
            check_width(texts.shape[1], vectors.shape[1])
            loss = loss + (1 - (texts * vectors).sum(dim=-1)).sum() * (settings.cosine_weight * world / total)
        if settings.similarity_weight or settings.ranking_weight:
            (everyone, taught), own = _of_all(world, texts, vectors)
        if settings.similarity_weight:
            similar = similarity_loss(everyone, taught, rows=own, divisor=total**2 / world)
            loss = loss + settings.similarity_weight * similar
        if settings.ranking_weight:
            loss = loss + settings.ranking_weight * ranking_loss(everyone, taught, settings.ranking_margin)
        return loss

    def _terms(self, embeddings: Sequence[Tensor], owner: Tensor, scores: Scores) -> Tensor:
        """(n,) The scores' term of each of this rank's rows."""
        settings = self.distillation
        queries, positives, *negatives = [unit(rows) for rows in embeddings]
        temperature = settings.temperature or (self.temperature if settings.kind == "kl" else 1.0)
        own = (queries * positives).sum(dim=-1) / temperature  # (n,)
        other = (queries[owner] * torch.cat([queries[:0], *negatives])).sum(dim=-1) / temperature  # (m,)
        teacher = [one.to(own.dtype) / settings.teacher_temperature for one in scores]
        term = divergence if settings.kind == "kl" else margin_mse
        return term((own, other), (teacher[0], teacher[1]), owner)

    def _settings(self) -> dict[str, object]:
        settings = asdict(self.distillation)
        settings["ranking_margin"] *= bool(settings["ranking_weight"])
        # Checkpoints did not have them from the beginning.
        without = ("teachers", "cosine_weight", "similarity_weight", "ranking_weight", "ranking_margin")
        known = {key: value for key, value in settings.items() if value or key not in without}
        return {**super()._settings(), "distillation": known}

    @property
    def citation(self) -> str:
        """BibTeX of what this configuration implements, for ST's model card."""
        settings = self.distillation
        scored = MARGIN_MSE * bool(settings.weight and settings.kind == "margin_mse")
        return super().citation + scored + JASPER * bool(settings.teachers)


def check_width(student: int | None, teachers: int | None) -> None:
    """Refuse to compare embeddings of different widths.

    Raises:
        InputError: saying how they become equal.
    """
    if student != teachers:
        raise InputError(
            "cosine_weight of distillation compares embeddings, which must be as wide as its teachers' one after the "
            f"other, {teachers}, got {student}; set model.dimension to {teachers}, which adds a linear layer, or use "
            "similarity_weight alone, to which widths do not matter"
        )


def _of_all(world: int, *texts: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
    """The rows of all ranks, and where this rank's own begin and end."""
    if world == 1:
        return [*texts], (0, len(texts[0]))
    gathered = gather_rows(*texts)
    return [one.rows for one in gathered], (gathered[0].own.start, gathered[0].own.stop)


def _with_scores(columns: list[Features], labels: Tensor | None) -> list[Features]:
    """The columns, with a label that has a score for each text but the query's as ``score``."""
    if labels is None or labels.ndim != 2 or labels.shape[1] != len(columns) - 1 or "score" in columns[1]:
        return columns
    return [columns[0], *({**one, "score": labels[:, place]} for place, one in enumerate(columns[1:]))]


Scores = tuple[Tensor, Tensor]
"""Of the positives, (n,), and of the hard negatives, (m,)."""


def divergence(student: Scores, teacher: Scores, owner: Tensor) -> Tensor:
    """(n,) Kullback-Leibler divergence of the student's softmax over a row's texts from the teacher's.

    Args:
        student, teacher: scores, already divided by their temperatures.
        owner: (m,) int64, the row that each hard negative belongs to.
    """
    (own, other), (own_target, other_target) = _log_softmax(student, owner), _log_softmax(teacher, owner)
    rows = own_target.exp() * (own_target - own)
    return rows.index_add(0, owner, other_target.exp() * (other_target - other))


def margin_mse(student: Scores, teacher: Scores, owner: Tensor) -> Tensor:
    """(n,) The mean over a row's hard negatives of the squared difference of two margins; 0 without any.

    Args:
        student, teacher, owner: as in :func:`divergence`.
    """
    margins = student[0][owner] - student[1] - (teacher[0][owner] - teacher[1])
    count = torch.bincount(owner, minlength=len(student[0])).clamp_min(1)
    return torch.zeros_like(student[0]).index_add(0, owner, margins.square()) / count


def _log_softmax(scores: Scores, owner: Tensor) -> Scores:
    """Over the texts of each row."""
    own, other = scores
    highest = own.detach().clone().scatter_reduce_(0, owner, other.detach(), "amax")
    total = (own - highest).exp().index_add(0, owner, (other - highest[owner]).exp())
    sums = total.log() + highest
    return own - sums, other - sums[owner]
