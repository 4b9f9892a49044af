"""A small retrieval set as an evaluator for the trainer.

sentence-transformers' ``InformationRetrievalEvaluator`` does the work: it encodes with ``encode_query`` and
``encode_document``, so prompts and the two lengths apply. This adds checks, so that a mistake in the ids does not pass
for a low score, metric names without the similarity in them (``faq_ndcg@10`` instead of ``faq_cosine_ndcg@10``), and
how much of an nDCG@10 is chance: the middle 95% of what other draws of these queries would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from piccolo_st.errors import InputError
from piccolo_st.evaluation import per_example
from piccolo_st.evaluation.benchmarks import Benchmark, task_by_type
from piccolo_st.evaluation.bootstrap import draw_means
from piccolo_st.modeling import other_lengths

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from piccolo_st.data import Mixture

_RESAMPLES = 1000


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
        self._ndcg: list[float] = []  # of each query, at 10
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
        """Search, and return the metrics; with them ``ndcg@10_low`` and ``ndcg@10_high``."""
        with other_lengths(model, *self.lengths):
            metrics: dict[str, float] = super().__call__(model, output_path, epoch, steps)
        key = f"{self.name}_ndcg@10" if self.name else "ndcg@10"
        if key in metrics:
            drawn = draw_means(np.array(self._ndcg), _RESAMPLES, np.random.default_rng(0))
            metrics |= zip((f"{key}_low", f"{key}_high"), map(float, np.quantile(drawn, [0.025, 0.975])), strict=True)
        return metrics

    def compute_metrics(self, queries_result_list: list[Any]) -> Any:
        """The stock metrics; the nDCG@10 of each query is kept."""
        self._ndcg = []
        for query, hits in zip(self.queries_ids, queries_result_list, strict=True):
            best = sorted(hits, key=lambda hit: (-hit["score"], hit["corpus_id"]))[:10]
            found = [int(hit["corpus_id"] in self.relevant_docs[query]) for hit in best]
            ideal = [1] * min(10, len(self.relevant_docs[query]))
            self._ndcg.append(_gain(found) / _gain(ideal))
        return super().compute_metrics(queries_result_list)

    def prefix_name_to_metrics(self, metrics: dict[str, float], name: str) -> dict[str, float]:
        """The metrics by their short names, with the name of the set in front."""
        if len(self.score_function_names) == 1:
            similarity = f"{self.score_function_names[0]}_"
            metrics = {key.removeprefix(similarity): value for key, value in metrics.items()}
            self.primary_metric = self.primary_metric and self.primary_metric.removeprefix(similarity)
        return super().prefix_name_to_metrics(metrics, name)

    @property
    def examples(self) -> per_example.Arrays:
        """Of the last search, the nDCG@10 of each query, as ``per_example.py`` keeps those of a task."""
        return {"test/default": {"id": np.array(self.queries_ids), "value": np.array(self._ndcg)}}


def _gain(found: Sequence[int]) -> float:
    """The discounted cumulative gain of hits (1) and others (0), the best first."""
    return float(np.dot(found, 1 / np.log2(np.arange(len(found)) + 2)))


def search_held_out(mixture: Mixture, model: SentenceTransformer, folder: Path, batch_size: int) -> Benchmark:
    """Search the held-out sets, and keep what came of each query in a folder, where it is found the next time.

    Returns:
        The sets as the tasks of a benchmark, by which two such folders are compared (``compare_examples``).
    """
    for one in held_out_evaluators(mixture, batch_size=batch_size, write_csv=False):
        path = per_example.examples_path(folder / f"{one.name}.json")
        if not path.exists():
            one(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            per_example.save(one.examples, path)
    tasks = tuple(task_by_type(name, "Retrieval", "test") for name in mixture.holdouts)
    return Benchmark("held-out", "the run's own held-out queries", tasks)


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
