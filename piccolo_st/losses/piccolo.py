"""PiccoloLoss: the contrastive loss of both Piccolo stages, as a loss of sentence-transformers.

What happens in one call:

(1) the ranks agree that they run the same loss on the same kind of batch, and exchange whose hard negative is whose
    and which texts are the same;
(2) the rows of all columns are embedded, sorted by length (``modeling/batching.py``), or mini-batch by mini-batch with
    gradient caching (ST's ``CachedLossMixin``);
(3) the unit vectors of all ranks are gathered (``distributed.py``);
(4) each rank computes the losses of its own rows against all (``contrast.py``), and how far all rows are spread out
    (``spread.py``); the gradients go back to the ranks that own the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin, RandContext, has_static_embedding_input
from torch import Tensor, nn

from piccolo_st.distributed import gather_rows, get_world_size
from piccolo_st.losses.batch import Batch, describe
from piccolo_st.losses.choices import DIRECTIONS, HardnessMode, MarginStrategy
from piccolo_st.losses.citations import GISTEMBED, GRADCACHE, GTE, HARDNESS, KALM, SPREAD
from piccolo_st.losses.contrast import (
    Contrast,
    check_directions,
    check_margin,
    check_temperature,
    contrastive_loss,
    unit,
)
from piccolo_st.losses.guide import Guide, check_guide_margin
from piccolo_st.losses.masked import Masked
from piccolo_st.losses.spread import spread_out
from piccolo_st.losses.weights import Weights, check_weight
from piccolo_st.modeling import (
    Features,
    SortedRows,
    columns_stay_apart,
    embed_columns,
    packs_now,
    sort_rows,
)


@dataclass(frozen=True)
class _Step:
    """One batch on its way through the gradient cache: what is known of it, and how its rows belong together."""

    batch: Batch
    rows: SortedRows


class PiccoloLoss(CachedLossMixin, nn.Module):
    """GTE's improved contrastive loss over the negatives of all ranks.

    For query q_i with positive p_i, similarity s = cosine and temperature t (Li et al. 2023, arXiv 2308.03281):

        loss_i = -s(q_i, p_i)/t + log(  sum over documents exp(s(q_i, d)/t)    query_to_doc
                                      + sum over queries   exp(s(q_i, q)/t)    query_to_query
                                      + sum over queries   exp(s(p_i, q)/t)    doc_to_query
                                      + sum over documents exp(s(p_i, d)/t) )  doc_to_doc

    The documents are the positives and the hard negatives of all rows on all ranks. It equals ST's
    ``MultipleNegativesRankingLoss(scale=1/t, directions=..., partition_mode="joint")`` where no text occurs twice, in
    memory that grows with the number of rows instead of its square.

    Inputs: (query, positive), optionally with hard negatives as further columns (``negative`` or ``negative_1`` to
    ``negative_n``), or as one column flattened from lists of different lengths whose features hold ``owner``, the local
    row of each negative. Labels are ignored.

    Args:
        model: the model to train.
        temperature: t.
        directions: which of the four sums are in the denominator; ("query_to_doc",) is the plain softmax.
        gather_across_devices: use the rows of all ranks as negatives. Without it each rank is on its own.
        mask_duplicates: a text never stands against its own copy, query or document, nor a query against the positive
            of an equal query, on whatever rank (the rules: ``false_negatives.py``). Texts are compared by ``text_id``
            in the features where the collator wrote it, so that case, width and blanks make no difference, otherwise by
            their tokens, which begin with those of the instruction.
        false_negative_margin: leave out what is more similar than the row's positive by more than this.
        guide: leave out what a guide finds too close to be a negative (``guide.py``); its embedding of each text stands
            in the features' ``guide``, where PiccoloDataCollator puts it. What is given is its name. None: no guide.
        guide_margin, guide_margin_strategy: how far below the positive the guide's similarity must stay, as it is
            ("absolute") or as a share of the positive's ("relative").
        hardness_mode, hardness_strength: give more similar negatives of query_to_doc a larger share, as ST's
            MultipleNegativesRankingLoss (``weights.py``). 0: not; EmbeddingGemma: 5 for "hard_negatives".
        focal_gamma: weigh rows by (1 - p)^gamma, p the positive's share. 0: not; KaLM-Embedding-V2: 0.5.
        spread_mean_weight, spread_weight: of the terms that keep the batch's queries apart, and its positives
            (``spread.py``): the mean and the second moment, summed over both columns. EmbeddingGemma: 0 and 1.
        mini_batch_size: embed so many rows at a time and cache the gradients (Gao et al. 2021, arXiv 2101.06983): the
            memory of a small batch, for a second forward pass. None: no caching.
        mini_batch_num_tokens: the same, with the mini-batches cut by their number of tokens.
        chunk_tokens: without caching, the largest forward pass in tokens, padding included, rows sorted by length.
            "auto": on a CPU 2,048 where the model packs (modeling/packed/packing.py), else 512 or two rows; elsewhere
            everything at once where it packs, else up to 8 chunks of rows of similar length. None: everything at once.
        show_progress_bar: of the mini-batches.

    Raises:
        ValueError: a temperature that is not positive, unknown directions or hardness_mode, a negative margin or
            weight, a size below 1, or gradient caching with a StaticEmbedding.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> loss = PiccoloLoss(model, temperature=0.02)  # loss=loss of SentenceTransformerTrainer
        >>> columns = [["天气", "水果"], ["今天有雨", "红的果子"], ["好天气", "树木"]]  # query, positive, negative
        >>> loss([model.preprocess(texts) for texts in columns]).backward()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.01,
        directions: Sequence[str] = DIRECTIONS,
        gather_across_devices: bool = True,
        mask_duplicates: bool = True,
        false_negative_margin: float | None = None,
        guide: str | None = None,
        guide_margin: float = 0.0,
        guide_margin_strategy: MarginStrategy = "absolute",
        hardness_mode: HardnessMode = "hard_negatives",
        hardness_strength: float = 0.0,
        focal_gamma: float = 0.0,
        spread_mean_weight: float = 0.0,
        spread_weight: float = 0.0,
        mini_batch_size: int | None = None,
        mini_batch_num_tokens: int | None = None,
        chunk_tokens: int | str | None = "auto",
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = check_temperature(temperature)
        self.directions = check_directions(directions)
        self.gather_across_devices = gather_across_devices
        self.mask_duplicates = mask_duplicates
        self.false_negative_margin = check_margin(false_negative_margin)
        check_guide_margin(guide_margin, guide_margin_strategy)
        self.guide, self.guide_margin, self.guide_margin_strategy = guide, guide_margin, guide_margin_strategy
        self.hardness_mode, self.hardness_strength, self.focal_gamma = hardness_mode, hardness_strength, focal_gamma
        self._weights = Weights(hardness_mode, hardness_strength, focal_gamma)
        self.spread_mean_weight = check_weight("spread_mean_weight", spread_mean_weight)
        self.spread_weight = check_weight("spread_weight", spread_weight)
        for name, value in (
            ("mini_batch_size", mini_batch_size),
            ("mini_batch_num_tokens", mini_batch_num_tokens),
            ("chunk_tokens", None if chunk_tokens == "auto" else chunk_tokens),
        ):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be None or a whole number of at least 1, got {value!r}")
        self.mini_batch_size = mini_batch_size  # type: ignore[assignment]  # None: no caching
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.chunk_tokens = chunk_tokens
        self.show_progress_bar = show_progress_bar
        self.uses_gradient_cache = mini_batch_size is not None or mini_batch_num_tokens is not None
        if self.uses_gradient_cache and has_static_embedding_input(model):
            raise ValueError("a model with a StaticEmbedding cannot be cut into mini-batches; leave caching off")
        self._masked = Masked()

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The mean loss of this rank's rows, scaled so that the mean over the ranks is the mean over all rows.

        Args:
            sentence_features: features of the query, the positive, and any columns of hard negatives.
            labels: ignored.

        Raises:
            ValueError: fewer than two columns, columns that do not fit together, ranks that do not, or gradient
                caching inside AdaptiveLayerLoss.
        """
        columns = list(sentence_features)
        return self._embed_and_compare(columns, self._describe(columns))

    def _describe(self, columns: Sequence[Features], **further: object) -> Batch:
        """Step (1), with further facts that the ranks must have in common."""
        return describe(
            columns,
            compare_texts=self.mask_duplicates,
            across_ranks=self.gather_across_devices,
            facts={"the loss": type(self).__name__, **self._settings(), **further},
            guided=self.guide is not None,
        )

    def _embed_and_compare(self, columns: Sequence[Features], batch: Batch) -> Tensor:
        """Steps (2) to (4)."""
        if not self.uses_gradient_cache:
            return self._loss(embed_columns(self.model, columns, self.chunk_tokens), batch)
        if columns_stay_apart():
            raise ValueError(
                "AdaptiveLayerLoss and Matryoshka2dLoss embed a batch once for all layers, gradient caching embeds it "
                "again; leave mini_batch_size and mini_batch_num_tokens unset inside them"
            )
        refuse_early_reduction(self.model)
        packed = packs_now(self.model)
        rows = sort_rows(columns, self.model, packed)
        # The mixin hands what it calls the labels to calculate_loss as they are. Ours are the step.
        step = cast(Tensor, _Step(batch, rows))
        tokens = self.mini_batch_num_tokens
        return self.forward_cached([part for group in rows.groups for part in group.parts(packed, tokens)], step)

    def calculate_loss(self, reps: list[list[Tensor]], labels: object = None, *, with_backward: bool = False) -> Tensor:
        """Called by the gradient cache with the embeddings of all mini-batches; ``labels`` is the :class:`_Step`."""
        assert isinstance(labels, _Step)
        embeddings = labels.rows.split([part for group in reps for part in group])
        loss = self._loss(embeddings, labels.batch)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def embed_minibatch(self, *args: Any, **kwargs: Any) -> tuple[Tensor, RandContext | None]:
        """As ST's, but never in half precision: the gradients that are cached would underflow in float16."""
        embeddings, random_state = super().embed_minibatch(*args, **kwargs)
        return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), random_state

    def _loss(self, embeddings: Sequence[Tensor], batch: Batch) -> Tensor:
        """Steps (3) and (4). ``embeddings`` are (rows, D) for each column."""
        exclusions = batch.exclusions  # now: gathering waits for the embeddings
        queries, positives, *negatives = [unit(rows) for rows in embeddings]
        everyone: Sequence[Tensor] = [queries, positives, torch.cat([queries[:0], *negatives])]
        world = get_world_size() if self.gather_across_devices else 1
        own = (0, len(queries))
        if world > 1:
            gathered = gather_rows(*everyone)
            everyone = [one.rows for one in gathered]
            own = (gathered[0].own.start, gathered[0].own.stop)
        every_query, every_positive, every_negative = everyone
        result = contrastive_loss(
            every_query,
            every_positive,
            every_negative,
            exclusions,
            temperature=self.temperature,
            directions=self.directions,
            rows=own,
            divisor=batch.total / world,
            false_negative_margin=self.false_negative_margin,
            guide=self._guide(batch, every_query.dtype),
            weights=self._weights,
        )
        if torch.is_grad_enabled():
            self._count(own[1] - own[0], result)
        return result.loss + self._spread(every_query, every_positive)

    def _guide(self, batch: Batch, dtype: torch.dtype) -> Guide | None:
        if batch.guide is None:
            return None
        return Guide([unit(x).to(dtype) for x in batch.guide], self.guide_margin, self.guide_margin_strategy)

    def _spread(self, *columns: Tensor) -> Tensor | float:
        """The weighted terms of columns of the global batch: the same on every rank."""
        loss: Tensor | float = 0.0
        for column in columns if self.spread_mean_weight or self.spread_weight else ():
            mean, second = spread_out(column)
            loss = loss + self.spread_mean_weight * mean + self.spread_weight * second
        return loss

    def _count(self, rows: int, result: Contrast) -> None:
        counts: dict[str, Tensor | int] = {}
        if self.mask_duplicates:
            counts["masked_duplicates"] = result.masked_duplicates
        if self.false_negative_margin is not None:
            counts["masked_by_margin"] = result.masked_by_margin
        if self.guide is not None:
            counts["masked_by_guide"] = result.masked_by_guide
        self._masked.add(rows, **counts)

    def pop_statistics(self) -> dict[str, float]:
        """What was masked on this rank in training since the last call, per row; empty if nothing was computed.

        Only this call waits for the device. Keys: ``masked_duplicates`` and, with a margin or a guide,
        ``masked_by_margin`` and ``masked_by_guide``: the mean number of candidates of a row, over all directions, that
        were left out as false negatives, each counted once.
        """
        return self._masked.pop()

    def _settings(self) -> dict[str, object]:
        """What defines the loss's value; of what is off unless asked for, what is on."""
        further: dict[str, object] = {
            "guide": self.guide,
            "guide_margin": self.guide and self.guide_margin,
            "guide_margin_strategy": self.guide and self.guide_margin_strategy,
            "hardness_mode": self.hardness_mode if self.hardness_strength else None,
            "hardness_strength": self.hardness_strength,
            "focal_gamma": self.focal_gamma,
            "spread_mean_weight": self.spread_mean_weight,
            "spread_weight": self.spread_weight,
        }
        return {
            "temperature": self.temperature,
            "directions": self.directions,
            "gather_across_devices": self.gather_across_devices,
            "mask_duplicates": self.mask_duplicates,
            "false_negative_margin": self.false_negative_margin,
            **{key: value for key, value in further.items() if value},
        }

    def get_config_dict(self) -> dict[str, object]:
        """The settings, for ST's model card."""
        return {
            **self._settings(),
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
            "chunk_tokens": self.chunk_tokens,
        }

    @property
    def citation(self) -> str:
        """BibTeX of what this configuration implements, for ST's model card."""
        parts = {
            GTE: True,
            HARDNESS: self.hardness_strength > 0,
            GISTEMBED: self.guide is not None,
            KALM: self.focal_gamma > 0,
            SPREAD: self.spread_mean_weight + self.spread_weight > 0,
            GRADCACHE: self.uses_gradient_cache,
        }
        return "".join(text for text, used in parts.items() if used)


def refuse_early_reduction(model: nn.Module) -> None:
    """Raise if gradients cannot be cached under this DeepSpeed engine.

    The gradient cache runs one backward pass for each mini-batch within one step. From stage 2 on, and in stage 1 with
    ``overlap_comm``, ZeRO reduces a gradient as soon as it appears and takes the next mini-batch's for an error
    ("Gradient computed twice for this partition").

    Raises:
        ValueError: the engine is of stage 2 or 3, or overlaps communication.
    """
    stage = getattr(model, "zero_optimization_stage", lambda: 0)()
    overlaps = stage == 1 and bool(getattr(model, "zero_overlap_comm", bool)())
    if stage >= 2 or overlaps:
        raise ValueError(
            "gradient caching (mini_batch_size, mini_batch_num_tokens) works up to DeepSpeed ZeRO stage 1 without "
            f"overlap_comm, this is stage {stage}{' with overlap_comm' if overlaps else ''}: it reduces gradients "
            "after the first mini-batch. Set zero_optimization.stage to 1 and overlap_comm to false, or leave caching "
            "off"
        )
