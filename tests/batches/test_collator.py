"""The collator: ST's tensors where both apply, lists of texts, ids, and what is not text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch.utils.data import DataLoader
from transformers.utils import logging
from transformers.utils.logging import warning_once as logger_warned_once

from piccolo_st.batches.collator import PiccoloDataCollator
from piccolo_st.batches.lists import sample_from_lists
from piccolo_st.batches.reading import ColumnBatch, homogeneous_dataloader
from piccolo_st.batches.sampler import HomogeneousBatchSampler
from piccolo_st.errors import InputError
from piccolo_st.hashing import mix_array, text_ids
from piccolo_st.losses import PiccoloLoss

PROMPTS = {"query": "查询：", "positive": "结果：", "negative": "结果："}
ROUTES = {"query": "query", "positive": "document", "negative": "document"}


def _rows(count: int = 6) -> list[dict[str, Any]]:
    return [
        {"query": "天气" * (i + 1), "positive": "今明晴雨" * (i % 3 + 1), "negative": "山川", "label": i / 10}
        for i in range(count)
    ]


def _ragged(lengths: list[int], visit: int = 0, first_row: int = 0) -> ColumnBatch:
    return ColumnBatch(
        {
            "query": [f"查询 {i}" for i in range(len(lengths))],
            "positive": [[f"p {i} {j}" for j in range(i + 1)] for i in range(len(lengths))],
            "negative": [[f"n {i} {j}" for j in range(length)] for i, length in enumerate(lengths)],
        },
        np.arange(first_row, first_row + len(lengths)),
        visit,
        "ragged",
    )


def _same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return list(one) == list(two) and all(
        torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype
        if isinstance(one[key], torch.Tensor)
        else one[key] == two[key]
        for key in one
    )


def _decoded(collator: PiccoloDataCollator, batch: dict[str, Any], column: str) -> list[str]:
    tokenizer = collator.preprocess_fn.__self__.tokenizer
    return [
        text.replace(" ", "") for text in tokenizer.batch_decode(batch[f"{column}_input_ids"], skip_special_tokens=True)
    ]


# As sentence-transformers does it


@pytest.mark.parametrize("prompts", [None, {}, "查询：", PROMPTS, {"data": PROMPTS}])
@pytest.mark.parametrize("columnar", [False, True])
def test_texts_labels_and_prompts_are_collated_as_st_does(
    make_model: Callable[..., Any], prompts: Any, columnar: bool
) -> None:
    model = make_model(query_length=8, document_length=12)
    arguments = {"preprocess_fn": model.preprocess, "prompts": prompts, "router_mapping": ROUTES}
    stock, ours = SentenceTransformerDataCollator(**arguments), PiccoloDataCollator(**arguments, text_ids=False)
    rows = [{**row, "dataset_name": "data"} for row in _rows()]
    given = ColumnBatch({name: [row[name] for row in rows] for name in rows[0]}, np.arange(6)) if columnar else rows
    for _ in range(2):  # the second batch takes the faster way
        batch = ours(given)
        batch.pop("row_ids", None)
        assert _same(batch, stock(rows))
    assert batch["query_input_ids"].shape[1] == 8 and batch["positive_input_ids"].shape[1] == 12


@pytest.mark.parametrize("max_length", [5, {"query": 5, "document": 7}])
def test_length_limits_of_the_run_are_taken(make_model: Callable[..., Any], max_length: Any) -> None:
    arguments = {"preprocess_fn": make_model().preprocess, "max_length": max_length, "router_mapping": ROUTES}
    stock, ours = SentenceTransformerDataCollator(**arguments), PiccoloDataCollator(**arguments, text_ids=False)
    assert _same(ours(_rows()), stock(_rows()))


def test_length_limits_may_differ_by_dataset(make_model: Callable[..., Any]) -> None:
    collator = PiccoloDataCollator(
        make_model(query_length=10).preprocess, max_length={"short": {"query": 4}, "long": {"query": 6}}
    )
    widths = []
    for name in ("short", "long", "other"):
        batch = collator([{**row, "dataset_name": name} for row in _rows()])
        widths.append((batch["query_input_ids"].shape[1], batch["positive_input_ids"].shape[1]))
    assert widths == [(4, 14), (6, 14), (10, 14)]


def test_tasks_follow_the_columns_names_unless_routed(make_model: Callable[..., Any]) -> None:
    preprocess = make_model().preprocess
    row = {"query": "a", "positive": "b", "negative_1": "c", "negative_2": "d"}
    tasks = {key: value for key, value in PiccoloDataCollator(preprocess)([row]).items() if key.endswith("_task")}
    assert tasks == {f"{column}_task": "query" if column == "query" else "document" for column in row}
    routed = PiccoloDataCollator(preprocess, router_mapping={"positive": "query"})([row])
    assert (routed["query_task"], routed["positive_task"]) == ("query", "query")
    by_dataset = PiccoloDataCollator(preprocess, router_mapping={"s": {"query": "document"}})
    assert by_dataset([{**row, "dataset_name": "s"}])["query_task"] == "document"
    assert by_dataset([{**row, "dataset_name": "t"}])["query_task"] == "query"


def test_the_trainer_finds_the_features_and_not_the_row_ids(make_model: Callable[..., Any]) -> None:
    collator = PiccoloDataCollator(make_model().preprocess, prompts=PROMPTS)
    batch = collator(_ragged([2, 0, 3]))
    features, labels = SentenceTransformerTrainer.collect_features(None, batch)
    assert [set(feature) for feature in features] == [
        {"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length", "task", "text_id", *owner}
        for owner in ([], [], ["owner"])
    ]
    assert labels is None
    assert batch["row_ids"].tolist() == [0, 1, 2] and batch["row_ids"].dtype == torch.int64
    assert batch["dataset_name"] == "ragged"


# Lists of texts


def test_ragged_lists_are_flattened_in_row_order_with_their_owners(make_model: Callable[..., Any]) -> None:
    collator = PiccoloDataCollator(make_model().preprocess)
    batch = collator(_ragged([2, 0, 3, 1]))
    assert batch["negative_owner"].tolist() == [0, 0, 2, 2, 2, 3]
    assert batch["negative_owner"].dtype == torch.int64
    assert _decoded(collator, batch, "negative") == ["n00", "n01", "n20", "n21", "n22", "n30"]
    assert batch["negative_attention_mask"].shape == batch["negative_input_ids"].shape
    assert "positive_owner" not in batch and len(batch["positive_input_ids"]) == 4


@pytest.mark.parametrize("empty", [[], None])
def test_a_batch_without_any_negative_leaves_the_column_out(make_model: Callable[..., Any], empty: Any) -> None:
    batch = ColumnBatch({"query": ["a", "b"], "positive": ["c", "d"], "negative": [empty, empty]}, np.arange(2))
    collated = PiccoloDataCollator(make_model().preprocess)(batch)
    assert "positive_input_ids" in collated
    assert not [key for key in collated if key.startswith("negative")]


@pytest.mark.parametrize("negatives", [[None, ["e"]], [[], ["e"]], [None, "e"], [[None], ["e", None]]])
def test_missing_negatives_have_no_owner(make_model: Callable[..., Any], negatives: list[Any]) -> None:
    batch = ColumnBatch({"query": ["a", "b"], "positive": ["c", "d"], "negative": negatives}, np.arange(2))
    collated = PiccoloDataCollator(make_model().preprocess)(batch)
    assert collated["negative_owner"].tolist() == [1]
    assert len(collated["negative_input_ids"]) == 1


def test_successive_visits_go_through_the_lists(make_model: Callable[..., Any]) -> None:
    collator = PiccoloDataCollator(make_model().preprocess, num_negatives=2)
    lengths = [7, 2, 0, 5]
    batches = [collator(_ragged(lengths, visit)) for visit in range(8)]
    again = collator(_ragged(lengths, 3))
    assert _same(again, batches[3])
    for batch in batches:
        assert np.bincount(batch["negative_owner"], minlength=4).tolist() == [2, 2, 0, 2]
    for row, length in enumerate(lengths):
        taken = [[t for t in _decoded(collator, batch, "negative") if t[1] == str(row)] for batch in batches]
        if length > 2:
            assert len({tuple(texts) for texts in taken}) > 1
            visits = -(-length // 2)
            assert len({text for texts in taken[:visits] for text in texts}) == length
    # Row 3 lists four positives: four visits take each once.
    assert len({_decoded(collator, batch, "positive")[3] for batch in batches[:4]}) == 4


def test_what_is_sampled_depends_on_seed_and_row_and_not_on_company(make_model: Callable[..., Any]) -> None:
    preprocess = make_model().preprocess
    lengths = [8] * 6

    def negatives(first_row: int = 0, **options: Any) -> list[str]:
        collator = PiccoloDataCollator(preprocess, num_negatives=2, **options)
        return _decoded(collator, collator(_ragged(lengths, first_row=first_row)), "negative")

    assert negatives() == negatives()
    assert negatives() != negatives(seed=1)
    assert [text[2] for text in negatives()] != [text[2] for text in negatives(first_row=100)]
    collator = PiccoloDataCollator(preprocess, num_negatives=2)
    whole = _ragged(lengths)
    alone = ColumnBatch({name: values[4:5] for name, values in whole.columns.items()}, whole.row_ids[4:5], 0)
    assert _decoded(collator, collator(alone), "negative") == negatives()[8:10]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=20),
    count=st.integers(1, 10),
    visit=st.integers(0, 20),
    seed=st.integers(0, 5),
)
def test_as_many_as_asked_for_are_chosen_of_each_list(lengths: list[int], count: int, visit: int, seed: int) -> None:
    sizes = np.array(lengths)
    keys = mix_array(seed, np.arange(len(lengths), dtype=np.uint64))
    chosen = sample_from_lists(sizes, count, keys, visit, 2)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    assert np.array_equal(chosen, np.unique(chosen))
    assert np.array_equal(np.bincount(owners[chosen], minlength=len(sizes)), np.minimum(sizes, count))


def test_every_element_of_a_list_is_chosen_as_often() -> None:
    rows = 4000
    keys = mix_array(0, np.arange(rows, dtype=np.uint64))
    chosen = sample_from_lists(np.full(rows, 5), 2, keys, 0, 2) % 5
    assert np.abs(np.bincount(chosen, minlength=5) / (2 * rows) - 0.2).max() < 0.02


def test_rows_without_numbers_are_sampled_by_their_text(make_model: Callable[..., Any]) -> None:
    """A stock dataset gives rows only; every process still samples the same."""
    collator = PiccoloDataCollator(make_model().preprocess, num_negatives=1)
    batch = list(_ragged([5, 5, 5]))
    assert _same(collator(batch), collator(batch))
    assert "row_ids" not in collator(batch)
    assert collator(batch)["negative_text_id"].tolist()[1:] == collator(batch[1:])["negative_text_id"].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_sample_what_the_main_process_would(make_model: Callable[..., Any], workers: int) -> None:
    dataset = Dataset.from_dict({key: list(values) for key, values in _ragged([6] * 12).columns.items()})
    collator = PiccoloDataCollator(make_model().preprocess, num_negatives=2)
    sampler = HomogeneousBatchSampler(dataset, batch_size=4)
    loader = homogeneous_dataloader(
        DataLoader(dataset, batch_sampler=sampler, collate_fn=collator, num_workers=workers)
    )
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        for step, batch in enumerate(batches):
            found = sampler.plan.step(epoch, step)
            expected = collator(ColumnBatch(dataset[found.rows], found.rows, found.visit))
            assert _same(batch, expected)
        epochs.append({int(row): batch for batch in batches for row in batch["row_ids"]})
    assert epochs[0].keys() == epochs[1].keys() == set(range(12))


# Text ids


def test_ids_are_of_the_text_without_prompt(make_model: Callable[..., Any]) -> None:
    preprocess = make_model().preprocess
    rows = [{"query": "a", "positive": "b"}, {"query": "b", "positive": "b"}]
    plain, prompted = PiccoloDataCollator(preprocess)(rows), PiccoloDataCollator(preprocess, prompts=PROMPTS)(rows)
    for batch in (plain, prompted):
        assert batch["query_text_id"].tolist() == text_ids(["a", "b"]).tolist()
        assert batch["positive_text_id"].tolist() == text_ids(["b", "b"]).tolist()
        assert batch["query_text_id"].dtype == torch.int64
    assert not torch.equal(plain["query_input_ids"], prompted["query_input_ids"])
    assert not [k for k in PiccoloDataCollator(preprocess, text_ids=False)(rows) if "text_id" in k]


def test_case_width_and_blanks_make_no_other_text_and_stand_against_nothing(make_model: Callable[..., Any]) -> None:
    model = make_model()
    same = ["天气 Abc", "天气abc", " 天气\nABC\r\n", "天\u3000气ＡＢＣ", "天\u200b气 aBC"]
    other = ["天气abc。", "天气 ab", "C++", "C#", ""]
    rows = [{"query": str(i), "positive": text} for i, text in enumerate(same + other)]
    batch = PiccoloDataCollator(model.preprocess)(rows)
    assert len(set(batch["positive_text_id"].tolist()[: len(same)])) == 1
    assert len(set(batch["positive_text_id"].tolist())) == 1 + len(other)
    loss = PiccoloLoss(model, directions=("query_to_doc",))
    features, _ = SentenceTransformerTrainer.collect_features(None, batch)
    loss(features)
    # Each of the five leaves out the four others.
    assert loss.pop_statistics()["masked_duplicates"] == 5 * 4 / len(rows)


def test_a_guide_sees_each_text_as_it_is_with_its_task(make_model: Callable[..., Any]) -> None:
    def guide(name: str | None, texts: list[str], task: str) -> np.ndarray | None:
        return (
            None if name != "ragged" else np.array([[len(text), task == "query"] for text in texts], dtype=np.float32)
        )

    collator = PiccoloDataCollator(make_model().preprocess, prompts=PROMPTS, guide=guide, teacher=guide)
    assert not [key for key in collator(_rows()) if key.endswith("guide")]
    batch = collator(_ragged([2, 0, 1]))
    texts = _ragged([2, 0, 1]).columns
    assert batch["query_guide"].tolist() == [[len(text), 1.0] for text in texts["query"]]
    assert batch["query_teacher"].equal(batch["query_guide"])
    assert batch["negative_guide"].tolist() == [[len(text), 0.0] for own in texts["negative"] for text in own]


def test_columns_that_look_like_ids_are_warned_about_as_st_does(
    make_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    logging.enable_propagation()
    rows = [{"query": "a", "positive": "b", "doc_id": "c", "negative_idx": "d", "id": "e", "idea": "f"}]
    for collator in (SentenceTransformerDataCollator, PiccoloDataCollator):
        caplog.clear()
        logger_warned_once.cache_clear()
        collator(make_model().preprocess)(rows)
        (warning,) = [one.getMessage() for one in caplog.records if "doc_id" in one.getMessage()]
        assert str(["doc_id", "negative_idx", "id"]) in warning and "resolve_ids" in warning
    logging.disable_propagation()


# Bad input


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([{"query": "a", "positive": None}], r"row 0 of the batch must hold text in column 'positive', got None"),
        ([{"query": "a", "positive": "b"}, {"query": 3, "positive": "b"}], "row 1 of the batch must hold text .* 3;"),
        (
            ColumnBatch({"query": ["a", None]}, np.array([70, 81]), 0, "news"),
            "row 81 of dataset 'news' must hold text in column 'query', got None; drop such rows",
        ),
        (
            ColumnBatch({"query": ["a", "b"], "positive": ["c", "d"], "negative": [["e"], [3]]}, np.array([5, 6])),
            "row 6 must hold text in column 'negative', got 3",
        ),
        (
            ColumnBatch({"query": ["a", "b"], "positive": [["c"], []]}, np.array([5, 6]), 0, "news"),
            "row 6 of dataset 'news' must list at least one text in column 'positive', got none",
        ),
        ([{"label": 1.0}], "needs a column of texts, got only label in row 0 of the batch"),
        (
            [{"query": "a", "positive": "b"}, {"query": "a", "positive": "b", "negative": "c"}],
            r"got \['query', 'positive'\] in row 0 and \['query', 'positive', 'negative'\] in row 1",
        ),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named(make_model: Callable[..., Any], batch: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PiccoloDataCollator(make_model().preprocess)(batch)


def test_no_negatives_at_all_cannot_be_asked_for() -> None:
    with pytest.raises(InputError, match="num_negatives must be None, for all, or at least 1, got 0"):
        PiccoloDataCollator(lambda texts: {}, num_negatives=0)


def test_an_empty_batch_is_empty() -> None:
    assert PiccoloDataCollator(lambda texts: {})([]) == {}
