"""PiccoloLoss in one process: against ST's losses, ragged negatives, gradient caching, MRL, statistics, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    GlobalOrthogonalRegularizationLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch.overrides import TorchFunctionMode

from piccolo_st.losses import PiccoloLoss, SINCERELoss
from piccolo_st.losses.choices import DIRECTIONS
from piccolo_st.modeling import without_bookkeeping
from tests.losses.reference import naive_loss

QUERIES = ["天气", "猫和狗都是动物", "好", "红黄蓝"]
POSITIVES = ["今天天气很好，明天有雨", "狗", "好的", "颜色有红黄蓝绿白黑"]
NEGATIVES = [["山", "河川海", "冬", "水"], ["一二三", "四五", "六", "七八九十百"]]
TWO = ["山", "水"]
CACHING = [{}, {"mini_batch_size": 3}, {"mini_batch_num_tokens": 12}]


def preprocess(model: Any, *columns: list[str]) -> list[dict[str, Any]]:
    return [model.preprocess(list(texts)) for texts in columns]


def run(loss: Any, columns: list[dict[str, Any]], scale: float = 1.0) -> tuple[float, torch.Tensor]:
    loss.model.zero_grad()
    value = loss([dict(column) for column in columns], None)
    (value * scale).backward()
    return value.item(), torch.cat([p.grad.flatten() for p in loss.model.parameters() if p.grad is not None])


def naive(model: Any, columns: list[dict[str, Any]], owner: list[int], **settings: Any) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    q, p, *h = [model(without_bookkeeping(column))["sentence_embedding"] for column in columns]
    value = naive_loss(q, p, torch.cat([q[:0], *h]), owner, **settings)
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor], tolerance: float = 1e-10) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert other[1].norm() > 1e-4
    assert (one[1] - other[1]).norm() <= tolerance * other[1].norm()


@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize("directions", [DIRECTIONS, ("query_to_doc",), ("query_to_doc", "doc_to_query")])
@pytest.mark.parametrize("caching", CACHING)
def test_equals_st(
    make_model: Callable[..., Any], negatives: int, directions: tuple[str, ...], caching: dict[str, int]
) -> None:
    model = make_model().double()
    columns = preprocess(model, QUERIES, POSITIVES, *NEGATIVES[:negatives])
    settings = {"scale": 20.0, "directions": directions}
    expected = run(MultipleNegativesRankingLoss(model, **settings), columns)
    loss = PiccoloLoss(model, temperature=0.05, directions=directions, **caching)
    assert_same(run(loss, columns), expected)
    assert_same(run(CachedMultipleNegativesRankingLoss(model, mini_batch_size=3, **settings), columns), expected)
    with torch.no_grad():
        assert loss(columns, None).item() == pytest.approx(expected[0])


@pytest.mark.parametrize("caching", CACHING)
@pytest.mark.parametrize("chunk_tokens", [None, 16, "auto"])
def test_ragged_negatives(make_model: Callable[..., Any], caching: dict[str, int], chunk_tokens: Any) -> None:
    model = make_model().double()
    owner = [0, 0, 0, 2, 3, 3]
    columns = preprocess(model, QUERIES, POSITIVES, [*NEGATIVES[0], *NEGATIVES[1][:2]])
    columns[2]["owner"] = torch.tensor(owner)
    loss = PiccoloLoss(model, temperature=0.05, chunk_tokens=chunk_tokens, **caching)
    assert_same(run(loss, columns), naive(model, columns, owner, temperature=0.05, directions=DIRECTIONS))


@pytest.mark.parametrize("with_text_id", [False, True])
def test_the_same_text_is_no_negative(make_model: Callable[..., Any], with_text_id: bool) -> None:
    """Rows 0 and 2 ask the same; row 3 has row 1's positive; a hard negative is row 0's positive."""
    model = make_model().double()
    queries = ["天气", "猫和狗", "天气", "红黄蓝"]
    positives = ["今天天气很好", "狗", "晴", "狗"]
    negatives = ["山", "今天天气很好", "水", "雨"]
    columns = preprocess(model, queries, positives, negatives)
    if with_text_id:
        # What the collator writes decides, not the tokens: here all texts differ but rows 0 and 2's query.
        for column, texts in zip(columns, ([1, 2, 1, 3], [4, 5, 6, 7], [8, 9, 10, 11]), strict=True):
            column["text_id"] = torch.tensor(texts)
        ids = {"query_ids": [1, 2, 1, 3], "document_ids": list(range(4, 12))}
        masked = 2 * (1 + 1 + 1 + 2)
    else:
        ids = {"query_ids": [1, 2, 1, 3], "document_ids": [4, 5, 6, 5, 7, 4, 8, 9]}
        # query_to_doc: 2 + 1 + 2 + 1; query_to_query: 1 + 0 + 1 + 0; doc_to_query: 1 + 1 + 1 + 1; doc_to_doc: row 0
        # meets neither row 2's two documents nor its copy; rows 1 and 3 not each other; row 2 as row 0.
        masked = 6 + 2 + 4 + (3 + 1 + 3 + 1)
    settings = {"temperature": 0.05, "directions": DIRECTIONS}
    loss = PiccoloLoss(model, temperature=0.05)
    assert_same(run(loss, columns), naive(model, columns, list(range(4)), **settings, **ids))
    assert loss.pop_statistics() == {"masked_duplicates": masked / 4}
    assert loss.pop_statistics() == {}
    unmasked = PiccoloLoss(model, temperature=0.05, mask_duplicates=False)
    assert_same(run(unmasked, columns), naive(model, columns, list(range(4)), **settings))
    assert unmasked.pop_statistics() == {}


@pytest.mark.parametrize("caching", CACHING)
def test_a_text_is_no_negative_of_itself_in_another_role(
    make_model: Callable[..., Any], caching: dict[str, int]
) -> None:
    """The query of row 0 is the positive of row 1."""
    model = make_model().double()
    columns = preprocess(model, ["天气", "猫和狗"], ["狗", "天气"])
    loss = PiccoloLoss(model, temperature=0.05, **caching)
    settings = {"temperature": 0.05, "directions": DIRECTIONS, "query_ids": [1, 3], "document_ids": [2, 1]}
    assert_same(run(loss, columns), naive(model, columns, [], **settings))
    assert loss.pop_statistics() == {"masked_duplicates": (1 + 2 + 1 + 2) / 2}  # as DIRECTIONS are


def test_the_margin_drops_what_is_too_similar(make_model: Callable[..., Any]) -> None:
    model = make_model().double()
    columns = preprocess(model, QUERIES, POSITIVES, *NEGATIVES)
    owner = [*range(4), *range(4)]
    loss = PiccoloLoss(model, temperature=0.05, false_negative_margin=0.01)
    settings = {"temperature": 0.05, "directions": DIRECTIONS}
    got = run(loss, columns)
    assert_same(got, naive(model, columns, owner, margin=0.01, **settings))
    assert got[0] < naive(model, columns, owner, **settings)[0] - 0.1
    assert loss.pop_statistics()["masked_by_margin"] > 1


@pytest.mark.parametrize("caching", CACHING)
def test_weights_and_spread_equal_st(make_model: Callable[..., Any], caching: dict[str, int]) -> None:
    model = make_model().double()
    columns = preprocess(model, QUERIES, POSITIVES, *NEGATIVES)
    hardness = {"hardness_mode": "hard_negatives", "hardness_strength": 5.0}
    stock = MultipleNegativesRankingLoss(model, scale=20.0, directions=DIRECTIONS, **hardness)
    spread = GlobalOrthogonalRegularizationLoss(model, mean_weight=3.0, second_moment_weight=2.0, aggregation="sum")

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: list[dict[str, Any]], labels: None) -> torch.Tensor:
            embeddings = [model(column)["sentence_embedding"] for column in features]
            terms = spread.compute_loss_from_embeddings(embeddings[:2])
            assert all(term > 0.01 for term in terms.values())
            return stock.compute_loss_from_embeddings(embeddings, labels) + sum(terms.values())

    settings = {"spread_mean_weight": 3.0, "spread_weight": 2.0, **hardness, **caching}
    assert_same(run(PiccoloLoss(model, temperature=0.05, **settings), columns), run(Both(), columns))
    focal = naive(model, columns, [*range(4), *range(4)], temperature=0.05, directions=DIRECTIONS, focal_gamma=0.5)
    assert_same(run(PiccoloLoss(model, temperature=0.05, focal_gamma=0.5, **caching), columns), focal)


@pytest.mark.parametrize("caching", CACHING)
@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.01), ("relative", 0.02)])
@pytest.mark.parametrize(
    ("negatives", "anchors", "positives"), [(2, True, False), (2, False, False), (0, True, True), (0, False, True)]
)
def test_a_guide_leaves_out_what_gist_embed_does(
    make_model: Callable[..., Any],
    negatives: int,
    anchors: bool,
    positives: bool,
    strategy: str,
    margin: float,
    caching: dict[str, int],
) -> None:
    """Where both express it: GISTEmbedLoss holds positives against each other, but never against hard negatives."""
    model, guide = make_model().double(), make_model(dropout=True).double().eval()
    torch.manual_seed(1)
    for parameter in guide.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    columns = preprocess(model, QUERIES, POSITIVES, *NEGATIVES[:negatives])
    settings = {"margin_strategy": strategy, "margin": margin, "temperature": 0.05}
    stock = CachedGISTEmbedLoss(model, guide, contrast_anchors=anchors, contrast_positives=positives, **settings)
    expected = run(stock, columns)
    with torch.no_grad():
        seen = [guide(dict(column))["sentence_embedding"] for column in columns]
    directions = ["query_to_doc", *["query_to_query"] * anchors, *["doc_to_doc"] * positives]
    loss = PiccoloLoss(
        model, 0.05, directions, guide="some", guide_margin=margin, guide_margin_strategy=strategy, **caching
    )
    assert_same(run(loss, [{**column, "guide": one} for column, one in zip(columns, seen, strict=True)]), expected)
    assert loss.pop_statistics()["masked_by_guide"] > 0
    with pytest.raises(ValueError, match=r"each column must have its embeddings.*; give PiccoloDataCollator a guide"):
        loss(columns)


@pytest.mark.parametrize("caching", CACHING[1:])
def test_caching_replays_dropout(make_model: Callable[..., Any], caching: dict[str, int]) -> None:
    """The gradient is that of the loss value returned: check it by a finite difference under the same masks."""
    model = make_model(dropout=True).double().train()
    columns = preprocess(model, QUERIES, POSITIVES, NEGATIVES[0])
    loss = PiccoloLoss(model, temperature=0.05, **caching)
    torch.manual_seed(1)
    value, gradient = run(loss, columns)
    parameters = [p for p in model.parameters() if p.grad is not None]
    step = 1e-6 / gradient.norm().item()
    with torch.no_grad():
        for p in parameters:
            p += step * p.grad
    torch.manual_seed(1)
    moved, _ = run(loss, columns)
    assert (moved - value) / step == pytest.approx(gradient.norm().item() ** 2, rel=1e-4)
    torch.manual_seed(2)
    assert abs(run(loss, columns)[0] - value) > 1e-3  # other masks do make a difference


def test_the_outer_gradient_scales_the_cached_one(make_model: Callable[..., Any]) -> None:
    model = make_model().double()
    columns = preprocess(model, QUERIES, POSITIVES)
    once = run(PiccoloLoss(model, mini_batch_size=2), columns)
    scaled = run(PiccoloLoss(model, mini_batch_size=2), columns, scale=1024.0)
    torch.testing.assert_close(scaled[1], 1024 * once[1])


@pytest.mark.parametrize("caching", CACHING)
def test_inside_matryoshka_loss_it_equals_st(make_model: Callable[..., Any], caching: dict[str, int]) -> None:
    model = make_model().double()
    columns = preprocess(model, QUERIES, POSITIVES, NEGATIVES[0])
    dims, weights = [32, 16, 8], [1.0, 0.5, 0.25]
    expected = run(
        MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, directions=DIRECTIONS), dims, weights), columns
    )
    ours = MatryoshkaLoss(model, PiccoloLoss(model, temperature=0.05, chunk_tokens=16, **caching), dims, weights)
    assert_same(run(ours, columns), expected)


def test_caching_in_half_precision_keeps_small_gradients(make_model: Callable[..., Any]) -> None:
    """Embeddings in bfloat16; what is cached between the two passes is float32."""
    model = make_model().bfloat16()
    loss = PiccoloLoss(model, mini_batch_size=2)
    embeddings, _ = loss.embed_minibatch(preprocess(model, QUERIES)[0], 0, 2, False, False)
    assert embeddings.dtype == torch.float32
    value, gradient = run(loss, preprocess(model, QUERIES, POSITIVES))
    assert value > 0
    assert torch.isfinite(gradient).all()


def test_autocast_is_no_worse_than_st(make_model: Callable[..., Any]) -> None:
    model = make_model()
    columns = preprocess(model, QUERIES, POSITIVES, *NEGATIVES)
    exact = run(MultipleNegativesRankingLoss(model, directions=DIRECTIONS), columns)[1]

    def error(loss: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            gradient = run(loss, columns)[1]
        return float((gradient - exact).norm() / exact.norm())

    st = error(MultipleNegativesRankingLoss(model, directions=DIRECTIONS))
    assert 0 < error(PiccoloLoss(model, temperature=0.05)) <= st
    assert error(PiccoloLoss(model, temperature=0.05, mini_batch_size=2)) <= st


def test_features_are_left_as_they_were(make_model: Callable[..., Any]) -> None:
    model = make_model()
    for caching in CACHING:
        columns = preprocess(model, QUERIES, POSITIVES, NEGATIVES[0])
        columns[2]["owner"] = torch.arange(4)
        copies = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in c.items()} for c in columns]
        PiccoloLoss(model, **caching)(columns, None).backward()
        for column, copy in zip(columns, copies, strict=True):
            assert column.keys() == copy.keys()
            assert all(torch.equal(column[k], v) for k, v in copy.items() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("kind", [PiccoloLoss, SINCERELoss])
def test_autocast_around_the_loss_changes_no_product(make_model: Callable[..., Any], kind: type[PiccoloLoss]) -> None:
    model = make_model()
    columns, labels = preprocess(model, QUERIES, POSITIVES), torch.tensor([1, 1, 2, 2])
    plain = kind(model)
    forward = model.forward
    model.forward = torch.autocast("cpu", enabled=False)(forward)  # so that the embeddings are the same
    expected = plain(columns, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = plain(columns, labels)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


class Transfers(TorchFunctionMode):
    """Counts what would go to another device and what would be fetched from there, were the model on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.waited_for, self.fetched = 0, 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = sys._getframe(1).f_globals["__name__"].startswith("piccolo_st.")
        if ours and func is torch.Tensor.to and any(isinstance(one, torch.device) for one in args):
            self.sent += 1
            self.waited_for += not kwargs.get("non_blocking")
        self.fetched += func is torch.Tensor.cpu
        return func(*args, **kwargs)


@pytest.mark.parametrize("loss", [PiccoloLoss, SINCERELoss])
def test_the_host_waits_for_nothing_that_it_sends(make_model: Callable[..., Any], loss: type[PiccoloLoss]) -> None:
    labelled = loss is SINCERELoss
    model = make_model()
    columns = preprocess(model, QUERIES, POSITIVES, *([] if labelled else NEGATIVES))
    computed = loss(model) if labelled else loss(model, hardness_strength=5.0)
    with Transfers() as transfers:
        computed(columns, torch.tensor([1, 1, 2, 2])).backward()
    # The order of the rows and the way back, then the labels, or the places of false and of hard negatives.
    assert transfers.sent >= (3 if labelled else 2 + 2 * len(DIRECTIONS) + 2)
    assert transfers.waited_for == 0
    assert transfers.fetched == (1 if labelled else 4)  # owners and ids together, and thrice what is there already


def test_model_card_entries(make_model: Callable[..., Any]) -> None:
    loss = PiccoloLoss(make_model(), temperature=0.02, mini_batch_size=8)
    assert loss.get_config_dict() == {
        "temperature": 0.02,
        "directions": DIRECTIONS,
        "gather_across_devices": True,
        "mask_duplicates": True,
        "false_negative_margin": None,
        "mini_batch_size": 8,
        "mini_batch_num_tokens": None,
        "chunk_tokens": "auto",
    }
    assert "2308.03281" in loss.citation
    assert "2101.06983" in loss.citation
    assert "2101.06983" not in PiccoloLoss(make_model()).citation
    further = {"hardness_strength": 5.0, "focal_gamma": 0.5, "spread_weight": 1.0, "guide": "some", "guide_margin": 0.1}
    weighted = PiccoloLoss(make_model(), **further)
    assert {*further, "hardness_mode", "guide_margin_strategy"} <= weighted.get_config_dict().keys()
    assert all(paper in weighted.citation for paper in ("2503.04812", "2506.20923", "1708.06320", "2402.16829"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, r"temperature must be a positive number, got 0"),
        ({"directions": ("query_to_query",)}, r"directions must hold 'query_to_doc'"),
        ({"false_negative_margin": -1.0}, r"false_negative_margin must be None or at least 0, got -1\.0"),
        ({"hardness_mode": "all"}, r"hardness_mode must be one of in_batch_negatives, .*, got 'all'"),
        ({"hardness_strength": -1.0}, r"hardness_strength must be a number of at least 0, got -1\.0"),
        ({"focal_gamma": float("nan")}, r"focal_gamma must be a number of at least 0, got nan"),
        ({"guide_margin": float("inf")}, r"guide_margin must be a finite number, got inf"),
        ({"guide_margin_strategy": "both"}, r"guide_margin_strategy must be one of absolute, relative, got 'both'"),
        ({"spread_weight": -0.5}, r"spread_weight must be a number of at least 0, got -0\.5"),
        ({"mini_batch_size": 0}, r"mini_batch_size must be None or a whole number of at least 1, got 0"),
        (
            {"mini_batch_num_tokens": 1.5},
            r"mini_batch_num_tokens must be None or a whole number of at least 1, got 1\.5",
        ),
        ({"chunk_tokens": -3}, r"chunk_tokens must be None or a whole number of at least 1, got -3"),
        ({"chunk_tokens": "all"}, r"chunk_tokens must be None or a whole number of at least 1, got 'all'"),
    ],
)
def test_bad_settings(make_model: Callable[..., Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PiccoloLoss(make_model(), **settings)


@pytest.mark.parametrize(
    ("columns", "owner", "message"),
    [
        ([QUERIES], None, r"needs a query and a positive column, got 1 column"),
        ([QUERIES, POSITIVES[:3]], None, r"one positive for each query.*got 4 queries, 3 positives"),
        ([QUERIES, POSITIVES, TWO], None, r"column 1 must have one row for each query: it has 2 rows for 4\. Give"),
        ([QUERIES, POSITIVES, QUERIES, TWO], [0], r"column 2 must have one owner for each of its rows: it has 2 rows"),
        ([QUERIES, POSITIVES, TWO], [0, 4], r"'owner' must name one of the 4 rows .*, got 4 for hard negative 1 on"),
        ([QUERIES, POSITIVES, TWO], [-1, 0], r"got -1 for hard negative 0 on rank 0"),
    ],
)
def test_bad_columns(
    make_model: Callable[..., Any], columns: list[list[str]], owner: list[int] | None, message: str
) -> None:
    model = make_model()
    features = preprocess(model, *columns)
    if owner is not None:
        features[-1]["owner"] = torch.tensor(owner)
    with pytest.raises(ValueError, match=message):
        PiccoloLoss(model)(features, None)


@pytest.mark.parametrize(
    ("stage", "overlap", "named"), [(2, False, "stage 2:"), (1, True, "stage 1 with overlap_comm:")]
)
def test_no_gradient_caching_where_gradients_are_reduced_early(
    make_model: Callable[..., Any], stage: int, overlap: bool, named: str
) -> None:
    class Engine(torch.nn.Module):
        """Stands in for DeepSpeed's engine, which test_piccolo_ranks.py asks the same."""

        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def zero_optimization_stage(self) -> int:
            return stage

        def zero_overlap_comm(self) -> bool:
            return overlap

    model = make_model()
    loss = PiccoloLoss(model, mini_batch_size=2)
    columns = preprocess(model, QUERIES, POSITIVES)
    loss.model = Engine(model)
    with pytest.raises(ValueError, match=rf"works up to DeepSpeed ZeRO stage 1 without overlap_comm, this is {named}"):
        loss(columns, None)
