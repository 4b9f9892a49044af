"""The multi-task hybrid of Piccolo2 (arXiv 2405.06932, section 3): each dataset has the loss that its task asks for.

    retrieval             PiccoloLoss, the run's temperature, weight 1
    sts, pair             ST's CoSENTLoss on the labels, temperature 0.05, weight 0.04
    classification,       softmax over each row's own positive and negatives, none of the batch's: texts of one class
    clustering            would stand against each other; temperature 0.05, weight 0.2

Around any of them ST's MatryoshkaLoss, if dimensions are given. ``build_losses`` returns the dict of losses, by name
of dataset, that ST's trainer takes; the weight and temperature of a dataset can be set by its own options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss
from torch import Tensor, nn

from piccolo_st.batching import Features, embed_columns
from piccolo_st.losses.batch import find_fault, local_owners
from piccolo_st.losses.contrast import check_temperature, unit
from piccolo_st.losses.piccolo import PiccoloLoss, chunk_tokens_for

# Temperature and weight of each task's loss where a dataset does not set them; Piccolo2's.
SCORED = {"temperature": 0.05, "weight": 0.04}
OWN_NEGATIVES = {"temperature": 0.05, "weight": 0.2}
_RETRIEVAL = ("retrieval",)
_SCORED = ("sts", "pair")
_CLASSES = ("classification", "clustering")
TASKS = (*_RETRIEVAL, *_SCORED, *_CLASSES)


class OwnNegativesLoss(nn.Module):
    """Softmax of each query over its own positive and its own hard negatives.

    For query q_i with positive p_i, hard negatives d owned by i, similarity s = cosine and temperature t:

        loss_i = -s(q_i, p_i)/t + log( exp(s(q_i, p_i)/t) + sum over own d  exp(s(q_i, d)/t) )

    A row without a hard negative has loss 0 and no gradient.

    Inputs: as PiccoloLoss. Each rank is on its own.

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
        """The mean loss of the rows; labels are ignored.

        Raises:
            ValueError: fewer than two columns, or columns that do not fit together.
        """
        columns = list(sentence_features)
        if fault := find_fault(columns):
            raise ValueError(fault)
        embeddings = embed_columns(self.model, columns, chunk_tokens_for(self.chunk_tokens, columns))
        queries, positives, *negatives = [unit(rows) for rows in embeddings]
        owner = local_owners(columns)  # (M,)
        rows = len(queries)
        own = (queries * positives).sum(dim=-1) / self.temperature  # (N,)
        other = (queries[owner] * torch.cat([queries[:0], *negatives])).sum(dim=-1) / self.temperature  # (M,)
        highest = own.detach().clone().scatter_reduce_(0, owner, other.detach(), "amax")
        total = (own - highest).exp().index_add(0, owner, (other - highest[owner]).exp())
        return (total.log() + highest - own).sum() / rows

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for ST's model card."""
        return {"temperature": self.temperature, "chunk_tokens": self.chunk_tokens}

    @property
    def citation(self) -> str:
        """BibTeX, for ST's model card."""
        return PICCOLO2_CITATION


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

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for ST's model card."""
        inner = getattr(self.loss, "get_config_dict", dict)()
        return {"loss": type(self.loss).__name__, "weight": self.weight, **inner}

    @property
    def citation(self) -> str:
        """BibTeX of the loss within and of the hybrid, for ST's model card."""
        return getattr(self.loss, "citation", "") + PICCOLO2_CITATION


def build_losses(
    model: SentenceTransformer,
    tasks: Mapping[str, str | tuple[str, Mapping[str, Any]]],
    *,
    matryoshka_dims: Sequence[int] | None = None,
    matryoshka_weights: Sequence[float] | None = None,
    **retrieval: Any,
) -> dict[str, nn.Module]:
    """One loss for each dataset, by its task.

    Args:
        model: the model to train.
        tasks: dataset name -> task, or (task, options). Options of retrieval are ``weight`` and those of PiccoloLoss;
            of any other task ``weight`` and ``temperature``.
        matryoshka_dims: dimensions trained together (MRL), each at most the model's.
        matryoshka_weights: one for each of them; default 1.
        **retrieval: options of PiccoloLoss for every retrieval dataset that does not set them itself.

    Returns:
        dataset name -> loss, as ``loss`` of SentenceTransformerTrainer.

    Raises:
        ValueError: no dataset, an unknown task or option, or an option out of range; the dataset is named.
    """
    if not tasks:
        raise ValueError("build_losses needs at least one dataset, but got none")
    losses: dict[str, nn.Module] = {}
    for name, value in tasks.items():
        task, options = (value, {}) if isinstance(value, str) else value
        try:
            loss, weight = _task_loss(model, task, dict(options), retrieval)
            if matryoshka_dims:
                loss = MatryoshkaLoss(model, loss, list(matryoshka_dims), matryoshka_weights)
        except (ValueError, TypeError) as error:
            raise ValueError(f"loss of dataset {name!r}: {error}") from error
        losses[name] = loss if weight == 1.0 else WeightedLoss(loss, weight)
    return losses


def _task_loss(
    model: SentenceTransformer, task: str, options: dict[str, Any], retrieval: Mapping[str, Any]
) -> tuple[nn.Module, float]:
    """The loss of a task, and its weight."""
    if task not in TASKS:
        raise ValueError(f"the task must be one of {', '.join(TASKS)}, got {task!r}")
    defaults = {**retrieval, "weight": 1.0} if task in _RETRIEVAL else SCORED if task in _SCORED else OWN_NEGATIVES
    chosen = {**defaults, **options}
    if task not in _RETRIEVAL and (unknown := sorted(set(options) - set(defaults))):
        raise ValueError(f"{task} data has the options weight and temperature, got {unknown}")
    weight = float(chosen.pop("weight"))
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight must be a positive number, got {weight}")
    if task in _RETRIEVAL:
        return PiccoloLoss(model, **chosen), weight
    temperature = check_temperature(chosen["temperature"])
    if task in _SCORED:
        return CoSENTLoss(model, scale=1.0 / temperature), weight
    return OwnNegativesLoss(model, temperature), weight


PICCOLO2_CITATION = """
@misc{huang2024piccolo2,
    title={Piccolo2: General Text Embedding with Multi-task Hybrid Loss Training},
    author={Junqin Huang and Zhongjie Hu and Zihao Jing and Mengya Gao and Yichao Wu},
    year={2024},
    eprint={2405.06932},
    archivePrefix={arXiv},
    primaryClass={cs.CL}
}
"""
