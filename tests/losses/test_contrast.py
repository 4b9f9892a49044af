"""losses/contrast.py against the naive formula in float64, and against ST's loss where both express the case."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from piccolo_st.losses import contrast
from piccolo_st.losses.choices import DIRECTIONS, HardnessMode, MarginStrategy
from piccolo_st.losses.contrast import contrastive_loss, unit
from piccolo_st.losses.false_negatives import Exclusions
from piccolo_st.losses.guide import Guide
from piccolo_st.losses.weights import Weights
from tests.losses.reference import naive_loss

MARGINS = st.sampled_from(get_args(MarginStrategy))
HARDNESS = st.sampled_from([("none", 0.0), *((mode, 5.0) for mode in get_args(HardnessMode))])
ALL_SUBSETS = [("query_to_doc", *rest) for n in range(4) for rest in itertools.combinations(DIRECTIONS[1:], n)]


def vectors(*sizes: int, dim: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dim, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def ours(q: torch.Tensor, p: torch.Tensor, h: torch.Tensor, owner: list[int], **kwargs: Any) -> contrast.Contrast:
    queries, documents = kwargs.pop("query_ids", None), kwargs.pop("document_ids", None)
    as_tensor = lambda ids: None if ids is None else torch.tensor(ids)  # noqa: E731
    exclusions = Exclusions(len(q), torch.tensor(owner, dtype=torch.int64), as_tensor(queries), as_tensor(documents))
    kwargs["false_negative_margin"] = kwargs.pop("margin", None)
    mode, strength = kwargs.pop("hardness", ("none", 0.0))
    gamma = kwargs.pop("focal_gamma", 0.0)
    if (guide := kwargs.pop("guide", None)) is not None:
        kwargs["guide"] = Guide([unit(x) for x in guide[0]], *guide[1:])
    kwargs["weights"] = Weights("all_negatives" if mode == "none" else mode, strength, gamma)
    return contrastive_loss(unit(q), unit(p), unit(h), exclusions, **kwargs)


def with_gradients(function: Any, tensors: list[torch.Tensor]) -> tuple[float, torch.Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    loss = function(*leaves)
    loss.backward()
    return loss.item(), torch.cat([leaf.grad.double().flatten() for leaf in leaves])


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.integers(1, 9))
    owner = draw(st.lists(st.integers(0, rows - 1), max_size=12))
    texts = st.integers(-3, 3) if draw(st.booleans()) else st.integers(-(2**63), 2**63 - 1)
    start = draw(st.integers(0, rows - 1))
    guides = st.integers(0, 2**31).map(lambda seed: vectors(rows, rows, len(owner), dim=5, seed=seed))
    return {
        "rows": rows,
        "owner": owner,
        "dim": draw(st.integers(1, 7)),
        "seed": draw(st.integers(0, 2**31)),
        "tile_rows": draw(st.none() | st.integers(1, 10)),
        "settings": {
            "temperature": draw(st.sampled_from([0.01, 0.05, 1.0])),
            "directions": draw(st.sampled_from(ALL_SUBSETS)),
            "rows": draw(st.none() | st.just((start, draw(st.integers(start + 1, rows))))),
            "margin": draw(st.none() | st.sampled_from([0.0, 0.1, 0.5])),
            "divisor": draw(st.none() | st.floats(0.5, 20)),
            "guide": draw(st.none() | st.tuples(guides, st.sampled_from([-0.1, 0.0, 0.2]), MARGINS)),
            "hardness": draw(HARDNESS),
            "focal_gamma": draw(st.sampled_from([0.0, 0.5, 2.0])),
            "query_ids": draw(st.lists(texts, min_size=rows, max_size=rows)),
            "document_ids": draw(st.lists(texts, min_size=rows + len(owner), max_size=rows + len(owner))),
        },
    }


@given(cases())
def test_equals_the_naive_formula_in_float64(case: dict[str, Any]) -> None:
    tensors = vectors(case["rows"], case["rows"], len(case["owner"]), dim=case["dim"], seed=case["seed"])
    loss, gradient = with_gradients(
        lambda q, p, h: ours(q, p, h, case["owner"], tile_rows=case["tile_rows"], **case["settings"]).loss, tensors
    )
    expected, reference = with_gradients(
        lambda q, p, h: naive_loss(q, p, h, case["owner"], **case["settings"]), tensors
    )
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert (gradient - reference).norm() <= 1e-12 * (1 + reference.norm())


@given(
    st.integers(2, 40), st.integers(0, 60), st.integers(16, 128), st.sampled_from(ALL_SUBSETS), st.integers(0, 2**31)
)
def test_float32_is_within_two_millionths_of_float64(
    rows: int, negatives: int, dim: int, directions: tuple[str, ...], seed: int
) -> None:
    tensors = vectors(rows, rows, negatives, dim=dim, dtype=torch.float32, seed=seed)
    owner = [m % rows for m in range(negatives)]
    settings = {"temperature": 0.05, "directions": directions}
    loss, gradient = with_gradients(lambda q, p, h: ours(q, p, h, owner, tile_rows=8, **settings).loss, tensors)
    expected, reference = with_gradients(lambda q, p, h: naive_loss(q, p, h, owner, **settings), tensors)
    assert loss == pytest.approx(expected, rel=2e-6)
    assert (gradient - reference).norm() <= 2e-6 * reference.norm()


@pytest.mark.parametrize("directions", [DIRECTIONS, ("query_to_doc",)])
@pytest.mark.parametrize(
    ("temperature", "closeness", "tolerance"), [(0.01, 0.0, 2e-6), (0.05, 1.0, 1e-5), (0.05, 2.0, 1e-5)]
)
def test_float32_at_low_temperature_and_near_convergence(
    temperature: float, closeness: float, tolerance: float, directions: tuple[str, ...]
) -> None:
    """With closeness 2 all positives win by far: the plain softmax's loss is 3e-6, and keeps five digits."""
    q, p, h = vectors(64, 64, 96, dim=64, dtype=torch.float32, seed=3)
    owner = [m % 64 for m in range(96)]
    settings = {"temperature": temperature, "directions": directions}
    tensors = [q, p + closeness * q, h]
    loss, gradient = with_gradients(lambda q, p, h: ours(q, p, h, owner, **settings).loss, tensors)
    expected, reference = with_gradients(lambda q, p, h: naive_loss(q, p, h, owner, **settings), tensors)
    assert loss == pytest.approx(expected, rel=tolerance)
    assert (gradient - reference).norm() <= tolerance * reference.norm()


def st_loss(temperature: float, directions: tuple[str, ...], **settings: Any) -> Any:
    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / temperature, directions=directions, **settings)
    return lambda *columns: loss.compute_loss_from_embeddings(list(columns), None)


@given(
    st.integers(1, 12),
    st.integers(0, 3),
    st.integers(2, 9),
    st.sampled_from([0.01, 0.05, 0.5]),
    st.sampled_from(ALL_SUBSETS),
    HARDNESS,
    st.integers(0, 2**31),
)
def test_equals_st_for_any_number_of_negative_columns(
    rows: int,
    columns: int,
    dim: int,
    temperature: float,
    directions: tuple[str, ...],
    hardness: tuple[str, float],
    seed: int,
) -> None:
    tensors = vectors(*[rows] * (2 + columns), dim=dim, seed=seed)
    settings = {"temperature": temperature, "directions": directions}
    owner = list(range(rows)) * columns

    def with_columns_joined(q: torch.Tensor, p: torch.Tensor, *hard: torch.Tensor) -> torch.Tensor:
        return ours(q, p, torch.cat([q[:0], *hard]), owner, hardness=hardness, **settings).loss

    loss, gradient = with_gradients(with_columns_joined, tensors)
    theirs = {} if hardness[0] == "none" else {"hardness_mode": hardness[0], "hardness_strength": hardness[1]}
    expected, reference = with_gradients(st_loss(**settings, **theirs), tensors)
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert (gradient - reference).norm() <= 1e-12 * (1 + reference.norm())


def test_half_precision_embeddings_under_autocast_lose_less_than_st() -> None:
    tensors = [x.bfloat16() for x in vectors(64, 64, 64, dim=128, seed=5)]
    owner = list(range(64))
    exact = with_gradients(lambda q, p, h: naive_loss(q, p, h, owner, temperature=0.05, directions=DIRECTIONS), tensors)
    with torch.autocast("cpu", torch.bfloat16):
        mine = with_gradients(
            lambda q, p, h: ours(q, p, h, owner, temperature=0.05, directions=DIRECTIONS).loss, tensors
        )
        theirs = with_gradients(st_loss(0.05, DIRECTIONS), tensors)
    error, st_error = ((one[1] - exact[1]).norm() / exact[1].norm() for one in (mine, theirs))
    assert mine[0] == pytest.approx(exact[0], rel=1e-5)
    assert error < 3e-3 < st_error  # what is left is the rounding of the gradients themselves to bfloat16


def test_tiles_hardly_change_the_result_and_runs_repeat_to_the_bit() -> None:
    tensors = vectors(300, 300, 450, dim=32, dtype=torch.float32)
    owner = [m % 300 for m in range(450)]

    def run(tile_rows: int | None) -> tuple[float, torch.Tensor]:
        return with_gradients(lambda q, p, h: ours(q, p, h, owner, temperature=0.01, tile_rows=tile_rows).loss, tensors)

    first, again = run(None), run(None)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    for tile_rows in (1, 7, 128, 1000):
        loss, gradient = run(tile_rows)
        assert loss == pytest.approx(first[0], rel=1e-6)
        assert (gradient - first[1]).norm() <= 2e-6 * first[1].norm()


def test_the_buffer_is_a_tile_and_not_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """4096 rows and 4096 negatives in 4096 x 2 x 12288 scores would be 400 MB; the largest tensor made is 32 MiB."""
    sizes = []
    for name in ("new_empty", "new_zeros"):
        original = getattr(torch.Tensor, name)

        def recorded(self: torch.Tensor, *size: Any, _original: Any = original, **kwargs: Any) -> torch.Tensor:
            made = _original(self, *size, **kwargs)
            sizes.append(made.numel() * made.element_size())
            return made

        monkeypatch.setattr(torch.Tensor, name, recorded)
    tensors = vectors(4096, 4096, 4096, dim=8, dtype=torch.float32)
    with_gradients(lambda q, p, h: ours(q, p, h, list(range(4096)), temperature=0.01).loss, tensors)
    assert 16 << 20 < max(sizes) <= 32 << 20


def test_scores_far_below_the_maximum_do_not_slow_or_break_anything() -> None:
    """At temperature 0.001 similarities of 1 and -1 are 2,000 apart: exp underflows, and must not."""
    q = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    p = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])  # each query's positive is its opposite
    loss, gradient = with_gradients(
        lambda q, p: ours(q, p, q[:0], [], temperature=0.001, directions=("query_to_doc",)).loss, [q, p]
    )
    assert loss == pytest.approx(2000.0)
    assert torch.isfinite(gradient).all()


def test_one_row_without_any_negative_has_a_constant_loss_and_no_gradient() -> None:
    tensors = vectors(1, 1, 0, dim=5)
    for directions, expected in ((("query_to_doc",), 0.0), (DIRECTIONS, torch.tensor(2.0, dtype=torch.float64).log())):
        loss, gradient = with_gradients(
            lambda q, p, h, d=directions: ours(q, p, h, [], temperature=0.01, directions=d).loss, tensors
        )
        assert loss == pytest.approx(float(expected))
        assert gradient.abs().max() < 1e-12
        assert st_loss(0.01, directions)(*tensors[:2]).item() == pytest.approx(float(expected))


def test_a_zero_vector_is_similar_to_nothing_and_gets_no_gradient() -> None:
    q, p, h = vectors(4, 4, 3, dim=6)
    q[1], h[2] = 0, 0
    leaves = [x.requires_grad_() for x in (q, p, h)]
    loss = ours(*leaves, [0, 1, 2], temperature=0.05).loss
    loss.backward()
    assert loss.item() == pytest.approx(
        naive_loss(q.detach(), p, h, [0, 1, 2], temperature=0.05, directions=DIRECTIONS).item()
    )
    assert q.grad[1].abs().max() == 0
    assert h.grad[2].abs().max() == 0
    assert all(torch.isfinite(x.grad).all() for x in leaves)
    assert q.grad[0].abs().max() > 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_makes_the_loss_nan(poison: float) -> None:
    q, p, h = vectors(4, 4, 3, dim=6)
    h[1, 0] = poison
    assert ours(q, p, h, [0, 1, 2], temperature=0.05).loss.isnan()
    assert ours(q, p, h, [0, 1, 2], temperature=0.05, margin=0.1).loss.isnan()


def test_the_backward_scales_and_runs_twice_but_not_through() -> None:
    q, p, h = vectors(4, 4, 3, dim=6)
    q.requires_grad_()
    loss = ours(q, p, h, [0, 1, 2], temperature=0.05).loss
    loss.backward(retain_graph=True)
    q.grad.zero_()  # what a leaf was given is its own
    loss.backward(retain_graph=True)
    (once,) = torch.autograd.grad(loss, q, retain_graph=True)
    assert torch.equal(q.grad, once)
    (tripled,) = torch.autograd.grad(3 * loss, q)
    assert torch.allclose(tripled, 3 * once)
    assert once.norm() > 0


def test_nothing_is_differentiated_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *_: pytest.fail("a gradient was computed"))
    q, p, h = vectors(4, 4, 3, dim=6)
    q.requires_grad_()
    with torch.no_grad():
        assert ours(q, p, h, [0, 1, 2], temperature=0.05).loss > 0
    assert ours(q.detach(), p, h, [0, 1, 2], temperature=0.05).loss > 0


def test_what_was_masked_is_counted() -> None:
    q, p, h = vectors(4, 4, 4, dim=6)
    nothing = ours(q, p, h, [0, 1, 2, 3], temperature=0.05)
    assert (nothing.masked_duplicates, nothing.masked_by_margin.item()) == (0, 0)
    # Rows 0 and 1 have one query. Each leaves out: the other's positive for its query; the other query; the other
    # query for its positive; the other's positive and hard negative for its positive.
    twins = ours(q, p, h, [0, 1, 2, 3], temperature=0.05, query_ids=[7, 7, 8, 9], document_ids=[*range(10, 18)])
    assert twins.masked_duplicates == 2 * (1 + 1 + 1 + 2)
    # With the margin at 0 a candidate more similar than the positive is left out: count them by hand.
    a, b, c = unit(q), unit(p), unit(h)
    own = (a * b).sum(1, keepdim=True)
    eye = torch.eye(4, dtype=torch.bool)
    others = torch.cat(
        [
            (a @ b.T > own) & ~eye,
            a @ c.T > own,
            (a @ a.T > own) & ~eye,
            (b @ a.T > own) & ~eye,
            (b @ b.T > own) & ~eye,
            (b @ c.T > own) & ~eye,
        ]
    )
    masked = ours(q, p, h, [0, 1, 2, 3], temperature=0.05, margin=0.0).masked_by_margin.item()
    assert masked == others.sum().item() > 0
    # The model as its own guide leaves out the same; what the margin has left out is not counted again.
    guide = ([q, p, h], 0.0, "absolute")
    guided = ours(q, p, h, [0, 1, 2, 3], temperature=0.05, guide=guide)
    assert (guided.masked_by_margin, guided.masked_by_guide) == (0, masked)
    assert ours(q, p, h, [0, 1, 2, 3], temperature=0.05, margin=0.0, guide=guide).masked_by_guide == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, r"temperature must be a positive number, got 0\.0"),
        ({"temperature": float("nan")}, r"temperature must be a positive number, got nan"),
        ({"directions": ("doc_to_query",)}, r"directions must hold 'query_to_doc'.*got \('doc_to_query',\)"),
        ({"directions": ("query_to_doc", "sideways")}, r"directions must be different names of .*'sideways'"),
        ({"directions": ("query_to_doc", "query_to_doc")}, r"directions must be different names"),
        ({"margin": -0.1}, r"false_negative_margin must be None or at least 0, got -0\.1"),
        ({"rows": (2, 5)}, r"rows must be a range within the 4 queries, got \(2, 5\)"),
        ({"rows": (2, 2)}, r"rows must be a range within the 4 queries, got \(2, 2\)"),
        ({"divisor": 0.0}, r"divisor must be positive, got 0\.0"),
        ({"tile_rows": 0}, r"tile_rows must be positive, got 0"),
        ({"owner": [0, 1, 4]}, r"owner must name one of the 4 rows, from 0 to 3, got 4 for hard negative 2"),
        ({"owner": [0, 1, -1]}, r"got -1 for hard negative 2"),
        ({"owner": [0, 1]}, r"exclusions must be for the 4 rows and 3 hard negatives, got 4 and 2"),
        ({"query_ids": [1, 2]}, r"one query id for each of 4 texts, got torch\.Size\(\[2\]\)"),
        ({"query_ids": [1, 2, 3, 4]}, r"ids of queries and of documents, or of neither, got those of one"),
        ({"p": torch.ones(3, 6, dtype=torch.float64)}, r"one positive for each query.*\(4, 6\), \(3, 6\)"),
        ({"h": torch.ones(3, 5, dtype=torch.float64)}, r"must be \(rows, dim\) with one dim"),
        (
            {"guide": (vectors(4, 4, 2, dim=5), 0.0, "absolute")},
            r"a vector for each of \[4, 4, 3\] texts, got \[4, 4, 2\]",
        ),
        ({"h": torch.ones(3, 6, dtype=torch.float32)}, r"must all be float32 or all float64"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    q, p, h = vectors(4, 4, 3, dim=6)
    arguments = {"q": q, "p": p, "h": h, "owner": [0, 1, 2], "temperature": 0.05, **change}
    with pytest.raises(ValueError, match=message):
        ours(**arguments)


def test_unit_rows_and_their_gradient() -> None:
    rows = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (rows,))
    sizes = torch.tensor([1e-15, 1.0, 1e15, 0.0])
    rows = (torch.randn(4, 7) * sizes[:, None]).requires_grad_()
    unit(rows).sum().backward()
    assert torch.allclose(unit(rows).norm(dim=1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert rows.grad is not None and not rows.grad[3].any()
    exact = rows.detach()[:3].double().requires_grad_()
    (exact / exact.norm(dim=1, keepdim=True)).sum().backward()
    assert exact.grad is not None
    assert torch.allclose(rows.grad[:3].double() * sizes[:3, None], exact.grad * sizes[:3, None], atol=1e-6)
