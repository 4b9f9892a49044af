"""modeling/batching.py: chunks as pure numbers, and embeddings and gradients equal to those of the padded columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.modules import Router

from piccolo_st.modeling.batching import (
    embed_columns,
    model_reads_task,
    row_count,
    sort_rows,
    without_bookkeeping,
)
from piccolo_st.modeling.cutting import CHUNK_COST, chunk_ranges, few_chunks, token_chunks

QUERIES = ["天气", "猫和狗都是动物", "好"]
POSITIVES = ["今天天气很好，明天有雨", "狗", "好的"]
NEGATIVES = ["山", "河川海", "春夏秋冬四季", "红", "黄蓝绿白黑"]


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_chunks_cover_the_rows_and_keep_the_limit(lengths: list[int], limit: int) -> None:
    lengths = sorted(lengths, reverse=True)
    chunks = token_chunks(lengths, limit)
    assert [row for begin, end in chunks for row in range(begin, end)] == list(range(len(lengths)))
    for begin, end in chunks:
        assert end - begin == 1 or (end - begin) * lengths[begin] <= limit
        assert end == len(lengths) or (end + 1 - begin) * max(1, lengths[begin]) > limit  # one more would not fit
    assert token_chunks(lengths, None) == ([(0, len(lengths))] if lengths else [])


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=4))
def test_few_chunks_never_compute_more_than_padded_columns(columns: list[list[int]]) -> None:
    lengths = sorted((length for column in columns for length in column), reverse=True)
    most = sum(len(column) * max(column) for column in columns)
    chunks = few_chunks(lengths, most)
    assert [row for begin, end in chunks for row in range(begin, end)] == list(range(len(lengths)))
    assert sum((end - begin) * lengths[begin] for begin, end in chunks) <= most


@pytest.mark.parametrize("negatives", [1, 7])
def test_tokens_computed_at_64_and_512(negatives: int) -> None:
    """Of lognormal lengths: stock's columns, chunks without packing, and packed rows."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, typical: int, most: int) -> list[int]:
        sizes = typical * (0.6 * torch.randn(rows, generator=generator)).exp()
        return sizes.clamp(4, most).long().tolist()

    columns = [draw(256, 16, 64), *(draw(256, 260, 512) for _ in range(1 + negatives))]
    lengths = sorted((length for column in columns for length in column), reverse=True)
    stock = sum(len(column) * max(column) for column in columns)
    chunks = chunk_ranges(lengths, "auto", "cuda", False, stock)
    computed = sum((end - begin) * lengths[begin] for begin, end in chunks)
    assert len(chunks) > 1 and computed <= min(stock, 1.25 * sum(lengths))
    assert computed + (len(chunks) - 1) * CHUNK_COST <= len(lengths) * lengths[0]  # each saved what it costs
    assert chunk_ranges(lengths, "auto", "cuda", True, stock) == [(0, len(lengths))]  # packed: no padding at all


def features(model: Any, **settings: Any) -> list[dict[str, Any]]:
    columns = [model.preprocess(texts, **settings) for texts in (QUERIES, POSITIVES, NEGATIVES)]
    for column in columns:
        column.pop("modality", None)
    return columns


def column_by_column(model: Any, columns: list[dict[str, Any]]) -> list[torch.Tensor]:
    return [model(without_bookkeeping(column))["sentence_embedding"] for column in columns]


def compare(model: Any, columns: list[dict[str, Any]], chunk_tokens: int | None) -> list[dict[str, Any]]:
    """Assert equal embeddings and gradients, and unchanged features; return what the model was given."""
    before = [dict(column) for column in columns]
    results, seen = [], []
    for embed in (column_by_column, lambda model, columns: embed_columns(model, columns, chunk_tokens)):
        seen.clear()
        handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(dict(inputs[0])))
        model.zero_grad()
        embeddings = embed(model, columns)
        weights = torch.Generator().manual_seed(0)
        sum((one * torch.randn(one.shape, generator=weights, dtype=one.dtype)).sum() for one in embeddings).backward()
        handle.remove()
        results.append((embeddings, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (expected, expected_gradients), (got, gradients) = results
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
    for one, other in zip(expected_gradients, gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    for column, copy in zip(columns, before, strict=True):
        assert column.keys() == copy.keys()
        assert all(column[key] is copy[key] for key in column)
    return seen


@pytest.mark.parametrize("pooling", ["mean", "cls", "weightedmean", "lasttoken", "max"])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 24])
def test_equals_the_padded_columns(make_model: Callable[..., Any], pooling: str, chunk_tokens: int | None) -> None:
    model = make_model(pooling=pooling).double().train()
    seen = compare(model, features(model), chunk_tokens)
    shapes = [tuple(one["input_ids"].shape) for one in seen]
    if chunk_tokens == 1:
        assert [rows for rows, _ in shapes] == [1] * 11
    else:
        assert shapes == {None: [(11, 13)], 24: [(1, 13), (2, 9), (3, 7), (5, 4)]}[chunk_tokens]
    assert all(one["attention_mask"][:, -1].any() for one in seen)  # no chunk is wider than its longest row


def test_parts_for_mini_batches_have_no_more_padding_than_the_columns(make_model: Callable[..., Any]) -> None:
    model = make_model()
    columns = features(model)
    [group] = sort_rows(columns, model).groups
    parts = group.parts()
    tokens = [one["input_ids"].numel() for one in parts]
    assert len(parts) > 1 and sum(tokens) <= sum(one["input_ids"].numel() for one in columns)
    assert sum(tokens) < group.features["input_ids"].numel(), "one part would have more"
    rows = [row[: int(mask.sum())].tolist() for one in parts for row, mask in zip(*rows_of(one), strict=True)]
    assert rows == [row[: int(mask.sum())].tolist() for row, mask in zip(*rows_of(group.features), strict=True)]
    for limit in (8, 40, 100):  # with its padding, as ST counts a mini-batch without
        limited = [one["input_ids"].shape for one in group.parts(tokens=limit)]
        assert all(rows == 1 or rows * width <= limit for rows, width in limited)
        assert sum(rows for rows, _ in limited) == len(group.features["input_ids"])
        assert sum(rows * width for rows, width in limited) <= sum(tokens)
    assert [one["input_ids"].shape for one in group.parts(packed=True)] == [group.features["input_ids"].shape]


def rows_of(features: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return features["input_ids"], features["attention_mask"]


def test_the_losses_own_keys_never_reach_the_model(make_model: Callable[..., Any]) -> None:
    model = make_model().double().train()
    columns = features(model)
    columns[2]["owner"] = torch.tensor([0, 0, 1, 2, 2])
    for number, column in enumerate(columns):
        column["text_id"] = torch.arange(row_count(column)) + number
        column["task"] = "query" if number == 0 else "document"
    seen = compare(model, columns, None)
    assert len(seen) == 1
    assert not {"owner", "text_id"} & seen[0].keys()


def test_left_padding_is_embedded_as_it_came_where_positions_are_counted_from_it(
    make_model: Callable[..., Any],
) -> None:
    model = make_model().double().train()
    model.tokenizer.padding_side = "left"
    columns = features(model)
    assert columns[1]["attention_mask"][1, 0] == 0  # it really is padded on the left
    seen = compare(model, columns, 8)
    assert [one["input_ids"].shape for one in seen] == [column["input_ids"].shape for column in columns]


def test_prompt_lengths_that_differ_keep_columns_apart(make_model: Callable[..., Any]) -> None:
    model = make_model().double().train()
    model.set_pooling_include_prompt(False)
    columns = [
        model.preprocess(texts, prompt=prompt)
        for texts, prompt in ((QUERIES, "查询："), (POSITIVES, "结果："), (NEGATIVES, "结果："))
    ]
    columns[1]["prompt_length"] = columns[1]["prompt_length"] + 1  # as if its prompt were one token longer
    seen = compare(model, columns, None)
    assert sorted(one["input_ids"].shape[0] for one in seen) == [3, 8]
    columns[1]["prompt_length"] = columns[0]["prompt_length"]
    assert [one["input_ids"].shape[0] for one in compare(model, columns, None)] == [11]


def test_flattened_and_maskless_columns_are_groups_of_their_own() -> None:
    padded = {"input_ids": torch.ones(2, 4, dtype=torch.int64), "attention_mask": torch.ones(2, 4, dtype=torch.int64)}
    flat = {"input_ids": torch.ones(1, 9, dtype=torch.int64), "cu_seq_lens_q": torch.tensor([0, 4, 7, 9])}
    bare = {"input_ids": torch.ones(2, 4, dtype=torch.int64)}
    rows = sort_rows([padded, flat, bare, dict(padded)], torch.nn.Identity())
    assert rows.sizes == (2, 3, 2, 2)
    assert [group.lengths for group in rows.groups] == [(4, 4, 4, 4), None, None]
    assert rows.groups[1].chunks(1)[0].keys() == flat.keys()
    sources = torch.arange(9.0).unsqueeze(1)  # column-major row numbers
    in_group_order = [sources[[0, 1, 7, 8]], sources[2:5], sources[5:7]]
    assert torch.cat(rows.split(in_group_order)).flatten().tolist() == list(range(9))


def test_task_separates_columns_only_where_the_model_reads_it(make_model: Callable[..., Any]) -> None:
    model = make_model().double().train()
    assert not model_reads_task(model)
    queries, documents = make_model(), make_model()
    routed = type(model)(modules=[Router.for_query_document(list(queries), list(documents))], device="cpu")
    routed = routed.double().train()
    with torch.no_grad():
        next(documents.parameters()).mul_(1.5)  # so that the route makes a difference
    assert model_reads_task(routed)
    columns = [
        {**column, "task": task}
        for column, task in zip(features(model), ("query", "document", "document"), strict=True)
    ]
    seen = compare(routed, columns, None)
    assert sorted((one["task"], one["input_ids"].shape[0]) for one in seen) == [("document", 8), ("query", 3)]


def test_per_row_features_travel_with_their_rows() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    column = {"input_ids": mask * 7, "attention_mask": mask, "weight": torch.tensor([2.0, 3.0, 1.0]), "note": "same"}
    (group,) = sort_rows([column, column], torch.nn.Identity()).groups
    assert group.lengths == (3, 3, 2, 2, 1, 1)
    assert group.features["weight"].tolist() == [3, 3, 2, 2, 1, 1]
    assert [chunk["weight"].tolist() for chunk in group.chunks(6)] == [[3, 3], [2, 2, 1], [1]]
    assert [chunk["input_ids"].shape[1] for chunk in group.chunks(6)] == [3, 2, 1]
    assert group.chunks(6)[0]["note"] == "same"


def test_rows_without_any_token_survive() -> None:
    mask = torch.tensor([[0, 0], [1, 0]])
    (group,) = sort_rows([{"input_ids": mask, "attention_mask": mask}], torch.nn.Identity()).groups
    assert group.lengths == (1, 0)
    assert [tuple(chunk["input_ids"].shape) for chunk in group.chunks(1)] == [(1, 1), (1, 1)]


def test_features_without_tensors_have_no_rows() -> None:
    with pytest.raises(ValueError, match=r"features without any tensor have no rows; got the keys \['task'\]"):
        row_count({"task": "query"})
