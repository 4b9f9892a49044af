"""The multi-task hybrid of Piccolo2 (arXiv 2405.06932, section 3): each dataset has the loss that its task asks for.

    retrieval             PiccoloLoss, the run's temperature, weight 1
      with distillation   DistillationLoss: beside it, or instead, what a teacher's scores say of each row; not in
                          Piccolo2
    sts, pair             ST's CoSENTLoss on the labels of all ranks, temperature 0.05, weight 0.04
    classification,       softmax over each row's own positive and negatives, none of the batch's: texts of one class
    clustering            would stand against each other; temperature 0.05, weight 0.2
      with labels         SINCERELoss: each text of the batch's own class is a positive, those of other classes
                          are the negatives; temperature 0.05, weight 1; not in Piccolo2

Around any of them QuantisedLoss, if precisions of small vectors are given, and ST's MatryoshkaLoss, if dimensions are.
``build_losses`` returns the dict of losses, by name of dataset, that ST's trainer takes; the weight and temperature of
a dataset can be set by its own options. Every loss gives, over all ranks, the value and the gradient of one process,
and ranks that meet in different ones raise.

Piccolo2 also widens the embedding by a linear layer, e.g. from 1,024 to 1,792 dimensions: ``scale_dimension``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor, nn

from piccolo_st.data import LABELLED_TASKS, SCORED_TASKS, TaskType
from piccolo_st.distributed import gather_rows
from piccolo_st.errors import InputError, nearest
from piccolo_st.losses.batch import agree_on_columns, local_owners
from piccolo_st.losses.choices import SmallPrecision
from piccolo_st.losses.citations import PICCOLO2
from piccolo_st.losses.contrast import check_temperature, unit
from piccolo_st.losses.distillation import DistillationLoss
from piccolo_st.losses.piccolo import PiccoloLoss
from piccolo_st.losses.quantised import QuantisedLoss
from piccolo_st.losses.sincere import SINCERELoss
from piccolo_st.modeling import Features, embed_columns, row_count

# Temperature and weight of each task's loss where a dataset does not set them; Piccolo2's, but for labelled classes.
SCORED = {"temperature": 0.05, "weight": 0.04}
OWN_NEGATIVES = {"temperature": 0.05, "weight": 0.2}
LABELLED = {"temperature": 0.05, "weight": 1.0}


class OwnNegativesLoss(nn.Module):
    """Softmax of each query over its own positive and its own hard negatives.

    For query q_i with positive p_i, hard negatives d owned by i, similarity s = cosine and temperature t:

        loss_i = -s(q_i, p_i)/t + log( exp(s(q_i, p_i)/t) + sum over own d  exp(s(q_i, d)/t) )

    A row without a hard negative has loss 0 and no gradient.

    Inputs: as PiccoloLoss.

    Args:
        model: the model to train.
        temperature: t.
        chunk_tokens: as PiccoloLoss.

    Raises:
        ValueError: a temperature that is not positive.
    """

    def __init__(
        self, model: SentenceTransformer, temperature: float = 0.05, chunk_tokens: int | str | None = "auto"
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = check_temperature(temperature)
        self.chunk_tokens = chunk_tokens

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The mean loss of the rows, scaled so that the mean over the ranks is that of all rows; labels are ignored.

        Raises:
            ValueError: fewer than two columns, columns that do not fit together, or ranks that do not.
        """
        columns = list(sentence_features)
        rows = agree_on_columns(columns, {"the loss": type(self).__name__, "temperature": self.temperature})
        embeddings = embed_columns(self.model, columns, self.chunk_tokens)
        queries, positives, *negatives = [unit(part) for part in embeddings]
        owner = local_owners(columns)  # (M,)
        own = (queries * positives).sum(dim=-1) / self.temperature  # (N,)
        other = (queries[owner] * torch.cat([queries[:0], *negatives])).sum(dim=-1) / self.temperature  # (M,)
        highest = own.detach().clone().scatter_reduce_(0, owner, other.detach(), "amax")
        total = (own - highest).exp().index_add(0, owner, (other - highest[owner]).exp())
        return (total.log() + highest - own).sum() * (len(rows) / sum(rows))

    def get_config_dict(self) -> dict[str, object]:
        """The settings, for ST's model card."""
        return {"temperature": self.temperature, "chunk_tokens": self.chunk_tokens}

    @property
    def citation(self) -> str:
        """BibTeX, for ST's model card."""
        return PICCOLO2


class ScoredPairsLoss(CoSENTLoss):
    """ST's CoSENTLoss over the scored pairs of all ranks, embedded with little padding.

    It ranks every pair of the batch against every other, so it is one number for the global batch and not a mean over
    rows: each rank computes it whole.

    Inputs: two columns of texts and a score for each row.

    Args:
        model: the model to train.
        temperature: CoSENTLoss's scale is its inverse.
        chunk_tokens: as PiccoloLoss.

    Raises:
        ValueError: a temperature that is not positive.
    """

    def __init__(
        self, model: SentenceTransformer, temperature: float = 0.05, chunk_tokens: int | str | None = "auto"
    ) -> None:
        super().__init__(model, scale=1.0 / check_temperature(temperature))
        self.chunk_tokens = chunk_tokens

    def forward(self, sentence_features: Iterable[Features], labels: Tensor) -> Tensor:
        """The loss of the global batch.

        Raises:
            ValueError: not two columns that fit together, not one label for each row, or ranks that do not fit.
        """
        columns = list(sentence_features)
        scored = 0 if labels is None else labels.numel()
        facts = {"the loss": type(self).__name__, "scale": self.scale, "labelled": scored == row_count(columns[0])}
        agree_on_columns(columns, facts)
        if len(columns) != 2 or not facts["labelled"]:
            raise ValueError(
                f"CoSENTLoss needs two columns of texts and a score for each row, got {len(columns)} columns, "
                f"{row_count(columns[0])} rows and {scored} scores"
            )
        embeddings = embed_columns(self.model, columns, self.chunk_tokens)
        gathered = gather_rows(*[unit(rows) for rows in embeddings], labels.reshape(-1))
        *embeddings, labels = [one.rows for one in gathered]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def get_config_dict(self) -> dict[str, object]:
        """The settings, for ST's model card."""
        return {**super().get_config_dict(), "chunk_tokens": self.chunk_tokens}


class WeightedLoss(nn.Module):
    """A loss times a constant, so that losses of different scale can alternate in one run."""

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__()
        self.model = loss.model  # ST's trainer puts the wrapped model wherever it finds this name
        self.loss = loss
        self.weight = weight

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The weighted loss."""
        return self.loss(sentence_features, labels) * self.weight

    def get_config_dict(self) -> dict[str, object]:
        """The settings, for ST's model card."""
        inner: dict[str, object] = getattr(self.loss, "get_config_dict", dict)()
        return {"loss": type(self.loss).__name__, "weight": self.weight, **inner}

    @property
    def citation(self) -> str:
        """BibTeX of the loss within and of the hybrid, for ST's model card."""
        return getattr(self.loss, "citation", "") + PICCOLO2


def build_losses(
    model: SentenceTransformer,
    tasks: Mapping[str, str | tuple[str, Mapping[str, object]]],
    *,
    quantised: Sequence[SmallPrecision] | None = None,
    matryoshka_dims: Sequence[int] | None = None,
    **retrieval: object,
) -> dict[str, nn.Module]:
    """One loss for each dataset, by its task.

    Args:
        model: the model to train.
        tasks: dataset name -> task, or (task, options). Options of retrieval are ``weight``, those of PiccoloLoss and
            ``distillation``, fields of DistillationSettings over those of all, None for none; of any other task
            ``weight``, ``temperature`` and ``chunk_tokens``; of classification and clustering also ``labelled`` (rows
            are pairs with a label), which takes those of SINCERELoss.
        quantised: precisions trained together with the embeddings as they are (QuantisedLoss), at each dimension.
        matryoshka_dims: dimensions trained together (MRL), each at most the model's.
        **retrieval: options of PiccoloLoss, and ``distillation``, for every retrieval dataset that does not set them
            itself; those of caching and gathering also for labelled ones, and ``chunk_tokens`` for all.

    Returns:
        dataset name -> loss, as ``loss`` of SentenceTransformerTrainer.

    Raises:
        ValueError: no dataset, an unknown task or option (an InputError), or an option out of range; the dataset is
            named.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> losses = build_losses(model, {"faq": "retrieval", "graded": ("sts", {"weight": 1.0})}, temperature=0.02)
        >>> {name: type(loss).__name__ for name, loss in losses.items()}
        {'faq': 'PiccoloLoss', 'graded': 'ScoredPairsLoss'}
    """
    if not tasks:
        raise ValueError("build_losses needs at least one dataset, got none")
    losses: dict[str, nn.Module] = {}
    for name, value in tasks.items():
        task, options = (value, {}) if isinstance(value, str) else value
        try:
            loss, weight = _task_loss(model, task, dict(options), retrieval, matryoshka_dims)
            if quantised:
                loss = QuantisedLoss(model, loss, quantised)
            if matryoshka_dims:
                loss = MatryoshkaLoss(model, loss, list(matryoshka_dims))
        except InputError as error:  # of the dataset alone; values may as well come from the options of all of them
            raise InputError(f"loss of dataset {name!r}: {error}") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"loss of dataset {name!r}: {error}") from error
        losses[name] = loss if weight == 1.0 else WeightedLoss(loss, weight)
    return losses


def _loss_kind(
    task: str, labelled: bool, retrieval: Mapping[str, object]
) -> tuple[type[nn.Module], Mapping[str, object]]:
    """The loss of a task, and its options where a dataset does not set them."""
    passes = {key: value for key, value in retrieval.items() if key == "chunk_tokens"}
    if task in SCORED_TASKS:
        return ScoredPairsLoss, {**passes, **SCORED}
    if task not in LABELLED_TASKS:
        return PiccoloLoss, {**retrieval, "weight": 1.0}
    if not labelled:
        return OwnNegativesLoss, {**passes, **OWN_NEGATIVES}
    shared = set(signature(SINCERELoss).parameters) & set(retrieval)
    return SINCERELoss, {**{key: retrieval[key] for key in shared}, **LABELLED}


def _task_loss(
    model: SentenceTransformer,
    task: str,
    options: dict[str, object],
    retrieval: Mapping[str, object],
    matryoshka_dims: Sequence[int] | None,
) -> tuple[nn.Module, float]:
    """The loss of a dataset, and its weight."""
    if task not in get_args(TaskType):
        raise ValueError(f"the task must be one of {', '.join(get_args(TaskType))}, got {task!r}")
    labelled = task in LABELLED_TASKS and bool(options.pop("labelled", False))
    kind, defaults = _loss_kind(task, labelled, retrieval)
    further = ["labelled"] * (task in LABELLED_TASKS) + ["distillation"] * (kind is PiccoloLoss)
    known = ["weight", *list(signature(kind).parameters)[1:], *further]
    for key in options:
        if key not in known:
            raise InputError(f"unknown key {key!r}{nearest(str(key), known)}")
    chosen = {**defaults, **options}
    taught = _distillation(chosen.pop("distillation", None), retrieval.get("distillation"))
    weight = chosen.pop("weight")
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"weight must be a positive number, got {weight!r}")
    if taught is not None:
        return DistillationLoss(model, taught, matryoshka_dims=matryoshka_dims, **chosen), float(weight)
    return kind(model, **chosen), float(weight)


def _distillation(own: object, common: object) -> Mapping[str, object] | None:
    """The settings of a dataset over those of all; None: it learns from no teacher."""
    if own is None:
        return None
    if not isinstance(own, Mapping) or not isinstance(common, Mapping | None):
        raise InputError(f"distillation must be a mapping, or empty for none, got {own!r}")
    return {**(common or {}), **own}


def scale_dimension(model: SentenceTransformer, dimension: int) -> None:
    """Append ST's Dense, a linear layer without activation, that turns the embedding into ``dimension`` numbers.

    It goes before a Normalize at the end, so that the embeddings keep their length of 1. Nothing happens if the model
    already has such a layer there, as after loading a trained one. Call it before :func:`build_losses`.

    Raises:
        ValueError: a dimension below 1.
    """
    if dimension < 1:
        raise ValueError(f"the dimension must be at least 1, got {dimension}")
    modules = list(model)
    normalize = modules.pop() if isinstance(modules[-1], Normalize) else None
    if isinstance(modules[-1], Dense) and modules[-1].out_features == dimension:
        return
    width = model.get_embedding_dimension()
    assert width is not None  # it ends in a pooling or dense layer
    dense = Dense(width, dimension, activation_function=nn.Identity())
    parameter = next(model.parameters())
    dense.to(device=parameter.device, dtype=parameter.dtype)
    if normalize is None:
        model.append(dense)
    else:
        model[-1] = dense  # not insert, which knows only modules with numbers for names
        model.append(normalize)
