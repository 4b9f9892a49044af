"""A small retrieval set as an evaluator for the trainer.

sentence-transformers' ``InformationRetrievalEvaluator`` does the work: it encodes with ``encode_query`` and
``encode_document``, so prompts and the two lengths apply. This adds checks, so that a mistake in the ids does not pass
for a low score, and metric names without the similarity in them: ``faq_ndcg@10`` instead of ``faq_cosine_ndcg@10``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from piccolo_st.errors import InputError
from piccolo_st.modeling import other_lengths

if TYPE_CHECKING:
    from piccolo_st.data import Mixture


class RetrievalEvaluator(InformationRetrievalEvaluator):
    """Search a corpus for every query; the primary metric is nDCG@10.

    Args:
        queries: id -> text.
        corpus: id -> text.
        relevant: query id -> ids of its relevant documents, at least one; queries without an entry are not searched.
        name: prefix of the metrics.
        batch_size: texts in one forward pass.
        query_length, document_length: tokens at which texts are cut; None: at the model's own lengths.
        **kwargs: anything else that ``InformationRetrievalEvaluator`` takes, such as ``truncate_dim`` or ``ndcg_at_k``.

    Raises:
        InputError: ``relevant`` names an unknown query or document, or nothing is left to search for.
    """

    def __init__(
        self,
        queries: Mapping[str, str],
        corpus: Mapping[str, str],
        relevant: Mapping[str, Iterable[str]],
        name: str = "",
        *,
        batch_size: int = 32,
        query_length: int | None = None,
        document_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.lengths = query_length, document_length
        documents = {query: set(ids) for query, ids in relevant.items()}
        for query, ids in documents.items():
            if query not in queries:
                raise InputError(
                    f"retrieval set {name!r}: `relevant` names query {query!r}, which `queries` has not; leave it out"
                )
            if not ids:
                raise InputError(f"retrieval set {name!r}: query {query!r} has no relevant document; leave it out")
            if unknown := sorted(ids - corpus.keys()):
                raise InputError(
                    f"retrieval set {name!r}: query {query!r} names document {unknown[0]!r}, which `corpus` has not; "
                    "leave it out"
                )
        if not documents:
            raise InputError(
                f"retrieval set {name!r} has no query with a relevant document; give `relevant` at least one"
            )
        super().__init__(dict(queries), dict(corpus), documents, batch_size=batch_size, name=name, **kwargs)

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Search, and return the metrics."""
        with other_lengths(model, *self.lengths):
            return super().__call__(model, output_path, epoch, steps)

    def prefix_name_to_metrics(self, metrics: dict[str, float], name: str) -> dict[str, float]:
        """The metrics by their short names, with the name of the set in front."""
        if len(self.score_function_names) == 1:
            similarity = f"{self.score_function_names[0]}_"
            metrics = {key.removeprefix(similarity): value for key, value in metrics.items()}
            self.primary_metric = self.primary_metric and self.primary_metric.removeprefix(similarity)
        return super().prefix_name_to_metrics(metrics, name)


def held_out_evaluators(mixture: Mixture, **options: Any) -> list[RetrievalEvaluator]:
    """One evaluator for each held-out retrieval set of a mixture, named as the set.

    A dataset that is trained with instructions or lengths of its own is searched with the same; the others with the
    model's.

    Args:
        mixture: its ``holdouts`` and ``specs`` are read.
        **options: as :class:`RetrievalEvaluator`.
    """
    evaluators = []
    for name, held in mixture.holdouts.items():
        spec = mixture.specs[name]
        prompts = {"query": None, "document": None} if spec.instruction is None else spec.instruction.prompts
        evaluators.append(
            RetrievalEvaluator(
                held.queries,
                held.corpus,
                held.relevant,
                name,
                query_prompt=prompts["query"],
                corpus_prompt=prompts["document"],
                query_length=spec.query_length,
                document_length=spec.document_length,
                **options,
            )
        )
    return evaluators
