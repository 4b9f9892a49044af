"""The faster tokenization: equal to model.preprocess, and out of the way where it could not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piccolo_st.batches.tokenization import FastPreprocess


def _same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return list(one) == list(two) and all(
        torch.equal(one[key], two[key]) if isinstance(one[key], torch.Tensor) else one[key] == two[key] for key in one
    )


class Counting:
    """A model's preprocess that counts its calls, as a bound method does keeping the model."""

    def __init__(self, model: Any) -> None:
        self.__self__ = model
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.calls += 1
        return self.__self__.preprocess(*args, **kwargs)


@pytest.fixture(scope="module")
def learned() -> dict[str, Any]:
    """Room for one FastPreprocess for all examples: what it learns takes longer than an example."""
    return {}


@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=6),
    prompt=st.sampled_from([None, "", "查询："]),
    task=st.sampled_from([None, "query", "document"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_text_is_tokenized_as_preprocess_does(
    make_model: Callable[..., Any], learned: dict[str, Any], texts: list[str], prompt: str | None, task: str | None
) -> None:
    if not learned:
        learned["counting"] = Counting(make_model(query_length=9, document_length=17))
        learned["fast"] = FastPreprocess(learned["counting"])
    counting, fast = learned["counting"], learned["fast"]
    fast(["天气"], prompt, task)
    calls = counting.calls
    assert _same(fast(texts, prompt, task), counting.__self__.preprocess(texts, prompt=prompt, task=task))
    assert counting.calls == calls  # so it was not preprocess that made them


@pytest.mark.parametrize("max_length", [3, 40])
@pytest.mark.parametrize(("padding", "truncation"), [("right", "right"), ("left", "left"), ("left", "right")])
def test_limits_and_sides_are_followed(
    make_model: Callable[..., Any], max_length: int, padding: str, truncation: str
) -> None:
    model = make_model()
    model.tokenizer.padding_side, model.tokenizer.truncation_side = padding, truncation
    fast = FastPreprocess(model.preprocess)
    texts = ["天气" * length for length in (1, 5, 30)]
    for _ in range(2):
        found = fast(texts, "查询：", "query", max_length)
        assert _same(found, model.preprocess(texts, prompt="查询：", task="query", max_length=max_length))
    assert found["input_ids"].shape[1] == max_length


def test_prompts_tasks_and_limits_are_learned_apart(make_model: Callable[..., Any]) -> None:
    model = make_model(query_length=9, document_length=17)
    fast = FastPreprocess(model.preprocess)
    texts = ["天气" * length for length in (1, 5, 30)]
    for _ in range(2):
        for prompt in (None, "查询：", "结果："):
            for task in (None, "query", "document"):
                assert _same(fast(texts, prompt, task), model.preprocess(texts, prompt=prompt, task=task))


def test_the_models_own_tokenizer_is_left_as_it_was(make_model: Callable[..., Any]) -> None:
    model = make_model()
    fast = FastPreprocess(model.preprocess)
    fast(["天气"])
    before = model.tokenizer.backend_tokenizer.to_str()
    fast(["天气"] * 3, None, None)
    assert model.tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda features: {**features, "input_ids": features["input_ids"] + 1},
        lambda features: {**features, "attention_mask": features["attention_mask"].int()},
        lambda features: {**features, "position_ids": features["input_ids"]},
        lambda features: {key: value for key, value in features.items() if key != "input_ids"},
    ],
)
def test_where_preprocess_does_something_else_it_goes_on_doing_it(
    make_model: Callable[..., Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    model = make_model()
    counting = Counting(model)
    counting_call = lambda *args, **kwargs: change(Counting.__call__(counting, *args, **kwargs))  # noqa: E731
    counting_call.__self__ = model
    fast = FastPreprocess(counting_call)
    for number in range(1, 4):
        found = fast(["天气", "今明晴雨"])
        assert counting.calls == number + 1  # one call more, to learn
        assert _same(found, change(model.preprocess(["天气", "今明晴雨"])))


def test_a_function_without_a_model_is_simply_called() -> None:
    calls: list[Any] = []

    def preprocess(texts: list[str], **kwargs: Any) -> dict[str, Any]:
        calls.append(kwargs)
        return {"input_ids": torch.zeros(len(texts), 1)}

    fast = FastPreprocess(preprocess)
    assert fast(["a", "b"])["input_ids"].shape == (2, 1)
    fast(["a"], max_length=4)
    assert calls == [{"prompt": None, "task": None}, {"prompt": None, "task": None, "max_length": 4}]


def test_a_text_longer_than_any_seen_goes_to_preprocess_where_no_limit_is_known(make_model: Callable[..., Any]) -> None:
    model = make_model()
    model.max_seq_length = 100_000
    counting = Counting(model)
    fast = FastPreprocess(counting)
    long = ["天气" * 5000]
    fast(["天气"])
    assert counting.calls == 1
    assert _same(fast(long), model.preprocess(long))
    assert counting.calls == 2
    assert _same(fast(["天气今"]), model.preprocess(["天气今"])) and counting.calls == 2
