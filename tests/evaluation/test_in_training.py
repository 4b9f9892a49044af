"""RetrievalEvaluator: sentence-transformers' evaluator with checked ids and short metric names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from piccolo_st.data.mixture import load_mixture
from piccolo_st.errors import InputError
from piccolo_st.evaluation.in_training import RetrievalEvaluator, held_out_evaluators

CORPUS = {"1": "天气今明晴雨", "2": "山川河海", "3": "猫狗鱼鸟"}
QUERIES = {"a": "天气", "b": "河海", "c": "猫狗"}
RELEVANT = {"a": ["1"], "b": ["2", "3"]}


def test_scores_are_sentence_transformers_own_under_short_names(make_model: Callable[..., SentenceTransformer]) -> None:
    model = make_model()
    evaluator = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT, "faq")
    stock = InformationRetrievalEvaluator(QUERIES, CORPUS, {k: set(v) for k, v in RELEVANT.items()}, name="faq")

    found, expected = evaluator(model), stock(model)

    low, high = (found.pop(f"faq_ndcg@10_{end}") for end in ("low", "high"))
    assert found == {key.replace("faq_cosine_", "faq_"): value for key, value in expected.items()}
    # Two queries are searched: a sample of them holds one twice in half of all draws.
    each = [RetrievalEvaluator(QUERIES, CORPUS, {k: v})(model)["ndcg@10"] for k, v in RELEVANT.items()]
    assert (low, high) == pytest.approx((min(each), max(each)))
    assert evaluator.primary_metric == "faq_ndcg@10" and found["faq_ndcg@10"] == expected["faq_cosine_ndcg@10"]
    assert found.items() <= evaluator(model).items()  # and again, with the primary metric already known


def test_without_a_name(make_model: Callable[..., SentenceTransformer]) -> None:
    evaluator = RetrievalEvaluator(QUERIES, CORPUS, RELEVANT)

    found = evaluator(make_model())

    assert evaluator.primary_metric == "ndcg@10" and "recall@10" in found


def test_queries_and_documents_get_their_own_prompt_and_length(make_model: Callable[..., SentenceTransformer]) -> None:
    model = make_model(query_length=8, document_length=12)
    model.prompts = {"query": "查询：", "document": "结果："}
    seen: list[str] = []
    model[0].register_forward_pre_hook(
        lambda module, inputs: seen.extend(
            text.replace(" ", "")
            for text in model.tokenizer.batch_decode(inputs[0]["input_ids"], skip_special_tokens=True)
        )
    )

    RetrievalEvaluator({"a": "天气今明晴雨"}, {"1": "山川河海天气今明晴雨"}, {"a": ["1"]})(model)

    assert seen == ["查询：天气今", "结果：山川河海天气今"]


def test_a_dataset_with_its_own_instruction_is_searched_with_it(
    make_model: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    rows = [{"query": f"天气今明{a}{b}", "positive": f"山川河海{a}{b}"} for a in "晴雨猫狗" for b in "鱼鸟山河"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    shared = {"source": "rows.jsonl", "task": "retrieval", "holdout": {"queries": 2, "max_corpus": 3, "min_corpus": 2}}
    own = {"usual": None, "bare": "none", "notes": "piccolo-training-notes"}
    datasets = {name: {**shared, "instruction": instruction} for name, instruction in own.items()}
    model = make_model()
    model.prompts = {"query": "查询：", "document": "结果："}
    seen: list[str] = []
    model[0].register_forward_pre_hook(
        lambda module, inputs: seen.extend(model.tokenizer.batch_decode(inputs[0]["input_ids"]))
    )

    evaluators = held_out_evaluators(load_mixture({"root": str(tmp_path), "datasets": datasets}, cache_dir=tmp_path))
    prefixes = {}
    for evaluator in evaluators:
        seen.clear()
        evaluator(model)
        prefixes[evaluator.name] = sorted({text.replace(" ", "")[5:8] for text in seen})

    assert prefixes == {"usual": ["查询：", "结果："], "bare": ["天气今", "山川河"], "notes": ["查询:", "结果:"]}


def test_metrics_are_those_of_training_and_of_the_card(
    make_model: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    model = make_model()

    RetrievalEvaluator(QUERIES, CORPUS, RELEVANT, "faq")(model, str(tmp_path), epoch=1, steps=7)

    (csv,) = tmp_path.glob("*faq*.csv")
    assert csv.read_text("utf-8").splitlines()[1].startswith("1,7,")
    assert model.model_card_data.eval_results_dict


@pytest.mark.parametrize(
    ("relevant", "message"),
    [
        ({"z": ["1"]}, r"retrieval set 'faq': `relevant` names query 'z', which `queries` has not"),
        ({"a": ["1", "9"]}, r"query 'a' names document '9', which `corpus` has not"),
        ({"a": []}, r"query 'a' has no relevant document; leave it out"),
        ({}, r"retrieval set 'faq' has no query with a relevant document"),
    ],
)
def test_ids_that_do_not_fit(relevant: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RetrievalEvaluator(QUERIES, CORPUS, relevant, "faq")
