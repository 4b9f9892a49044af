"""Distillation: against sentence-transformers' and FlagEmbedding's losses, formulas written out, and real ranks."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import (
    DistillKLDivLoss,
    EmbedDistillLoss,
    MarginMSELoss,
    MatryoshkaLoss,
)
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from piccolo_st.losses import DIRECTIONS, DistillationLoss, PiccoloLoss, QuantisedLoss
from piccolo_st.losses.distillation import divergence, margin_mse
from piccolo_st.losses.ranking import ranking_loss
from piccolo_st.losses.similarity import similarity_loss
from tests.helpers.ranks import run_ranks
from tests.losses.reference import naive_loss
from tests.losses.test_piccolo_ranks import Given, features, load, share

TEXTS = ["今天下雨", "明天天气好", "猫", "大狗和小猫", "红黄蓝绿", "山川河海", "天地人", "水火"]
SCORES = torch.tensor([[7.5, 2.0, -3.0], [-1.0, 0.5, 4.0]], dtype=torch.float64)
ALONE = {"contrastive_weight": 0}
SEEN = {"teachers": [{"name_or_path": "some"}], "similarity_weight": 20.0}


def square(model: Any) -> list[dict[str, Tensor]]:
    """Two rows with two hard negatives each, in a column each."""
    return [dict(model.preprocess(TEXTS[2 * column : 2 * column + 2])) for column in range(4)]


def gradient(loss: Tensor, model: Any) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None])


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_equal_to_sentence_transformers(make_model: Callable[..., Any], kind: str, temperature: float) -> None:
    """ST's margin has no temperature, and its KL has its square as a factor."""
    model = make_model().double()
    if kind == "kl":
        stock = DistillKLDivLoss(model, pairwise_cos_sim, student_temperature=temperature, teacher_temperature=3.0)
        settings, factor = {"temperature": temperature, "teacher_temperature": 3.0}, 1 / temperature**2
    else:
        stock, settings, factor = MarginMSELoss(model, pairwise_cos_sim), {}, 1.0
    expected = stock([dict(one) for one in square(model)], SCORES) * factor
    loss = DistillationLoss(model, {"kind": kind, **ALONE, **settings})(square(model), SCORES)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(loss, model), gradient(expected, model), rtol=1e-8, atol=1e-10)
    assert loss > 1e-3


def test_the_cosine_is_that_of_sentence_transformers(make_model: Callable[..., Any]) -> None:
    model = make_model().double()
    seen = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = EmbedDistillLoss(model, "cosine")([dict(one) for one in square(model)], seen)
    settings = {"weight": 0, **ALONE, **SEEN, "similarity_weight": 0, "cosine_weight": 1.0}
    batch = [{**column, "teacher": seen[:, place]} for place, column in enumerate(square(model))]
    loss = DistillationLoss(model, settings)(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(loss, model), gradient(expected, model), rtol=1e-8, atol=1e-10)
    assert loss > 1e-3


def test_equal_to_kl_div_of_flag_embedding_beside_the_contrastive_term(make_model: Callable[..., Any]) -> None:
    """Its _compute_in_batch_neg_loss (1.4.2): cross entropy with the teacher's softmax, and that of all documents."""
    model = make_model().double()
    vectors = [torch.nn.functional.normalize(model(dict(one))["sentence_embedding"], dim=-1) for one in square(model)]
    queries, passages = vectors[0], torch.stack(vectors[1:], dim=1)  # (rows, group, D)
    local = torch.einsum("rd,rgd->rg", queries, passages) / 0.05
    targets = SCORES.softmax(-1)
    taught = -(local.log_softmax(-1) * targets).sum(-1).mean()
    scores = queries @ passages.flatten(0, 1).T / 0.05
    expected = taught + torch.nn.functional.cross_entropy(scores, torch.tensor([0, 3]))
    entropy = -(targets * targets.log()).sum(-1).mean()
    loss = DistillationLoss(model, {}, temperature=0.05, directions=["query_to_doc"])(square(model), SCORES)
    torch.testing.assert_close(loss + entropy, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(loss, model), gradient(expected, model), rtol=1e-8, atol=1e-10)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 10_000))
def test_ragged_rows_are_those_written_out(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    owner = owner[torch.randperm(len(owner), generator=generator)]  # as of several columns of negatives
    given, taught = (
        tuple(20 * torch.randn(size, generator=generator, dtype=torch.float64) for size in (len(counts), len(owner)))
        for _ in range(2)
    )
    for row, count in enumerate(counts):
        mine = owner == row
        student, teacher = (torch.cat([own[row : row + 1], other[mine]]) for own, other in (given, taught))
        kl = (teacher.softmax(0) * (teacher.log_softmax(0) - student.log_softmax(0))).sum()
        margins = (student[0] - student[1:]) - (teacher[0] - teacher[1:])
        assert divergence(given, taught, owner)[row].item() == pytest.approx(kl.item(), rel=1e-9, abs=1e-12)
        expected = margins.square().mean().item() if count else 0.0
        assert margin_mse(given, taught, owner)[row].item() == pytest.approx(expected, rel=1e-9)


def scored(model: Any, rows: list[tuple[int, int, list[int]]]) -> list[dict[str, Any]]:
    """The rows of test_piccolo_ranks, with what teachers say of each text, that depends on nothing but the text."""
    columns = features(model, rows)
    texts = [[row[0] for row in rows], [row[1] for row in rows], [number for row in rows for number in row[2]]]
    for one, numbers in zip(columns, texts, strict=False):
        one["score"] = torch.tensor([float(number * 7 % 11) for number in numbers])
        one["teacher"] = torch.tensor([[float(number * k % 13 - 6) for k in range(1, 33)] for number in numbers])
    return columns


def one_step(rank: int, world: int, path: str, sizes: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
    model = load(path).double()
    loss: Any = DistillationLoss(model, temperature=0.05, **settings)
    batch = scored(model, share(rank, sizes))
    if world > 1:
        loss.model = DistributedDataParallel(model, find_unused_parameters=True)
    value = loss(batch, None)
    value.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"value": value.item(), "gradient": found}


@pytest.mark.parametrize(
    "settings",
    [
        {"distillation": {"weight": 0.5}},
        {"distillation": {"kind": "margin_mse", **ALONE}, "mini_batch_size": 3},
        {"distillation": {"contrastive_weight": 0.3, "teacher_temperature": 2.0}, "mini_batch_num_tokens": 20},
        {"distillation": {"weight": 0, **ALONE, **SEEN, "cosine_weight": 3.0}, "mini_batch_size": 3},
        {"distillation": {"weight": 0, **SEEN, "ranking_weight": 20.0}, "mini_batch_size": 3},
    ],
)
@pytest.mark.parametrize("sizes", [(4, 4), (5, 3)])
def test_two_ranks_equal_one(encoder_dir_no_dropout: Path, sizes: tuple[int, ...], settings: dict[str, Any]) -> None:
    """Rows without hard negatives among them, and gradient caching on the ranks alone."""
    path = str(encoder_dir_no_dropout)
    plain = {key: value for key, value in settings.items() if key == "distillation"}
    (alone,) = run_ranks(one_step, 1, path, (8,), plain)
    results = run_ranks(one_step, 2, path, sizes, settings)
    assert sum(result["value"] for result in results) / 2 == pytest.approx(alone["value"], rel=1e-12)
    assert alone["gradient"].norm() > 1e-3
    for result in results:
        assert (result["gradient"] - alone["gradient"]).norm() <= 1e-10 * alone["gradient"].norm()


def random_case(seed: int, world: int) -> dict[str, Any]:
    """Embeddings and what teachers say of every rank's texts, rows with 0 to 3 negatives, and settings."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    sizes = [choose.randint(1, 4) for _ in range(world)]
    owners = [[row for row in range(size) for _ in range(choose.choice([0, 0, 1, 3]))] for size in sizes]
    shapes = [(n, n, len(o)) for n, o in zip(sizes, owners, strict=True)]
    width, other = choose.randint(2, 6), choose.randint(2, 6)
    cosine = choose.choice([0.0, 10.0])
    seen = {
        "teachers": [{"name_or_path": "some"}],
        "cosine_weight": cosine,
        "similarity_weight": choose.choice([20.0, 200.0] if not cosine else [0.0, 200.0]),
        "ranking_weight": choose.choice([0.0, 20.0]),
        "ranking_margin": choose.choice([0.0, 0.015, 0.3]),
    }
    settings = {
        "kind": choose.choice(["kl", "margin_mse"]),
        "weight": choose.choice([0.0, 0.7]),
        "contrastive_weight": choose.choice([0.0, 0.3]),
        "temperature": choose.choice([None, 0.5]),
        "teacher_temperature": choose.choice([1.0, 3.0]),
    }
    return {
        "owners": owners,
        "embeddings": [[draw(count, width) for count in counts] for counts in shapes],
        "teacher": [[draw(count, width if cosine else other) for count in counts] for counts in shapes],
        "score": [[4 * draw(count).float() for count in counts] for counts in shapes],
        "settings": settings | (seen if choose.random() < 0.7 or not (settings["weight"]) else {}),
    }


def random_steps(rank: int, world: int, seeds: list[int]) -> list[tuple[float, list[Tensor]]]:
    results = []
    for seed in seeds:
        case = random_case(seed, world)
        leaves = [one.requires_grad_() for one in case["embeddings"][rank]]
        columns = [
            {"sentence_embedding": x, "teacher": seen, "score": score}
            for x, seen, score in zip(leaves, case["teacher"][rank], case["score"][rank], strict=True)
        ]
        columns[2]["owner"] = torch.tensor(case["owners"][rank], dtype=torch.int64)
        given: Any = Given()
        loss = DistillationLoss(given, case["settings"], temperature=0.1, mask_duplicates=False)
        value = loss(columns if case["owners"][rank] else columns[:2], None)
        value.backward()
        results.append((value.item(), [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]))
    return results


def written_out(case: dict[str, Any], leaves: list[list[Tensor]]) -> Tensor:
    """The formulas of the module's docstring, on all rows at once."""
    settings = {"cosine_weight": 0.0, "similarity_weight": 0.0, "ranking_weight": 0.0, **case["settings"]}
    starts = [sum(len(rank[0]) for rank in leaves[:number]) for number in range(len(leaves))]
    owner = [o + start for start, owners in zip(starts, case["owners"], strict=True) for o in owners]
    queries, positives, negatives = (torch.cat([rank[kind] for rank in leaves]) for kind in range(3))
    loss = settings["contrastive_weight"] * naive_loss(
        queries, positives, negatives, owner, temperature=0.1, directions=DIRECTIONS
    )
    q, p, h = (torch.nn.functional.normalize(x, dim=-1) for x in (queries, positives, negatives))
    _, of_positives, of_negatives = (torch.cat([rank[kind] for rank in case["score"]]).double() for kind in range(3))
    student_temperature = settings["temperature"] or (0.1 if settings["kind"] == "kl" else 1.0)
    for row in range(len(q)):
        mine = [number for number, one in enumerate(owner) if one == row]
        s = torch.stack([q[row] @ p[row], *(q[row] @ h[number] for number in mine)]) / student_temperature
        t = (
            torch.stack([of_positives[row], *(of_negatives[number] for number in mine)])
            / settings["teacher_temperature"]
        )
        if settings["kind"] == "kl":
            term = (t.softmax(0) * (t.log_softmax(0) - s.log_softmax(0))).sum()
        else:
            term = ((s[0] - s[1:]) - (t[0] - t[1:])).square().mean() if mine else s.sum() * 0
        loss = loss + settings["weight"] * term / len(q)
    x, y = torch.cat([q, p, h]), torch.cat([torch.cat([rank[kind] for rank in case["teacher"]]) for kind in range(3)])
    y = torch.nn.functional.normalize(y, dim=-1)
    loss = loss + settings["similarity_weight"] * (x @ x.T - y @ y.T).square().mean()
    if settings["ranking_weight"]:
        loss = loss + settings["ranking_weight"] * misplaced(x, y, settings["ranking_margin"])
    if settings["cosine_weight"]:
        loss = loss + settings["cosine_weight"] * (1 - torch.nn.functional.cosine_similarity(x, y)).mean()
    return loss


def misplaced(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """The relative similarity of Jasper: every two pairs of texts of which the teacher finds one more similar."""
    first, second = torch.triu_indices(len(student), len(student), 1)
    s, t = ((one @ one.T)[first, second] for one in (student, teacher))
    above = t[:, None] > t + 1e-9
    return (s - s[:, None] + margin).relu()[above].sum() / max(1, len(s) * (len(s) - 1) / 2)


@given(st.integers(3, 12), st.integers(1, 4), st.booleans(), st.sampled_from([0.0, 0.015, 0.5]), st.integers(0, 10_000))
def test_the_ranking_is_that_of_all_pairs_of_pairs(
    texts: int, width: int, equal: bool, margin: float, seed: int
) -> None:
    """Also where texts are equal, so that the teacher puts none of their pairs above the other."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(texts, size, generator=generator, dtype=torch.float64) for size in (width, 7)]
    student, teacher = (torch.nn.functional.normalize(one, dim=-1) for one in drawn)
    if equal:
        teacher[::2] = teacher[0]
    student.requires_grad_()
    loss, expected = ranking_loss(student, teacher, margin), misplaced(student, teacher, margin)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    (found,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)
    single = ranking_loss(student.detach().float(), teacher.float(), margin)
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("world", [1, 2])
def test_random_batches_equal_the_naive_formulas(world: int) -> None:
    seeds = list(range(100 * world, 100 * world + 30))
    results = run_ranks(random_steps, world, seeds)
    for number, seed in enumerate(seeds):
        case = random_case(seed, world)
        leaves = [[part.requires_grad_() for part in rank] for rank in case["embeddings"]]
        expected = written_out(case, leaves)
        expected.backward()
        found = [results[rank][number] for rank in range(world)]
        assert sum(value for value, _ in found) / world == pytest.approx(expected.item(), rel=1e-10, abs=1e-10)
        for rank in range(world):
            for leaf, gradient in zip(leaves[rank], found[rank][1], strict=True):
                wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                assert (gradient / world - wanted).norm() <= 1e-9 * (1 + wanted.norm())


def test_in_mrl_the_cosine_is_that_of_the_largest_dimension(make_model: Callable[..., Any]) -> None:
    model = make_model().double()
    batch = [{**column, "teacher": torch.eye(32)[2 * n : 2 * n + 2]} for n, column in enumerate(square(model))]
    values = {}
    for name, weights in {"similarity": {}, "cosine": {"similarity_weight": 0, "cosine_weight": 1.0}}.items():
        settings = {"weight": 0, **ALONE, **SEEN, **weights}
        loss = DistillationLoss(model, settings, matryoshka_dims=[32, 8])
        values[name] = MatryoshkaLoss(model, loss, [32, 8])(batch, None).item()
    texts = torch.cat([model(dict(column))["sentence_embedding"] for column in square(model)])
    cut = [torch.nn.functional.normalize(texts[:, :dim], dim=-1) for dim in (32, 8)]
    similar = [20 * (one @ one.T - torch.eye(8)).square().mean().item() for one in cut]
    assert values["similarity"] == pytest.approx(sum(similar), rel=1e-9)
    assert values["cosine"] == pytest.approx((1 - cut[0].diagonal()).mean().item(), rel=1e-9)


@pytest.mark.parametrize("precisions", [[], ["int8"]])
def test_the_cosine_alone_is_cached_in_mrl(make_model: Callable[..., Any], precisions: list[Any]) -> None:
    """Its smaller dimensions learn nothing, and go backward all the same."""
    model = make_model().double()
    batch = [{**column, "teacher": torch.eye(32)[2 * n : 2 * n + 2]} for n, column in enumerate(square(model))]
    settings = {"weight": 0, **ALONE, **SEEN, "similarity_weight": 0, "cosine_weight": 10.0}
    found = []
    for options in ({}, {"mini_batch_size": 1}):
        loss: Any = DistillationLoss(model, settings, matryoshka_dims=[32, 8], **options)
        loss = QuantisedLoss(model, loss, precisions) if precisions else loss
        value = MatryoshkaLoss(model, loss, [32, 8])([dict(column) for column in batch], None)
        model.zero_grad()
        value.backward()
        found.append((value.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    for plain, cached in zip(*found, strict=True):
        torch.testing.assert_close(cached, plain, rtol=1e-9, atol=1e-10)
        assert plain.norm() > 1e-3


def test_teachers_that_do_not_fit_are_refused(make_model: Callable[..., Any]) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"in its features' 'teacher', got a column without; give PiccoloDataCollator"):
        DistillationLoss(model, {"weight": 0, **SEEN})(square(model))
    batch = [{**column, "teacher": torch.ones(2, 5)} for column in square(model)]
    wide = DistillationLoss(model, {"weight": 0, **SEEN, "cosine_weight": 1.0})
    with pytest.raises(ValueError, match=r"one after the other, 5, got 32; set model\.dimension to 5"):
        wide(batch)
    for settings, words in (
        ({"cosine_weight": 1.0}, "got 0 teachers and 1, 0, 0; set both or neither"),
        ({"teachers": [{"name_or_path": "a"}]}, "got 1 teachers and 0, 0, 0"),
        ({**SEEN, "teachers": [{"name_or_path": "self", "instructions": "piccolo"}]}, "of the teacher self must be"),
        ({**SEEN, "teachers": [{"name_or_path": "a", "weigth": 1}]}, "did you mean weight"),
    ):
        with pytest.raises(ValueError, match=words):
            DistillationLoss(model, settings)


def test_the_terms_add_up_in_every_dimension(make_model: Callable[..., Any]) -> None:
    """MatryoshkaLoss around the loss, with and without gradient caching; the contrastive term is PiccoloLoss's."""
    model = make_model().double()
    values = []
    for options in ({}, {"mini_batch_size": 2}):
        parts = []
        for settings in ({"weight": 2.0, "contrastive_weight": 0.5}, {"weight": 2.0, **ALONE}):
            loss = DistillationLoss(model, settings, temperature=0.1, **options)
            parts.append(MatryoshkaLoss(model, loss, [32, 8])(square(model), SCORES).item())
        contrast = MatryoshkaLoss(model, PiccoloLoss(model, temperature=0.1, **options), [32, 8])
        assert parts[0] == pytest.approx(parts[1] + 0.5 * contrast(square(model), None).item(), rel=1e-9)
        values.append(parts[0])
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert parts[1] > 1e-2


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10_000))
def test_similarities_are_the_matrices_written_out(texts: int, width: int, tile: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(texts, size, generator=generator, dtype=torch.float64) for size in (width, 7))
    student.requires_grad_()
    loss = similarity_loss(student, teacher, tile_rows=tile)
    expected = torch.nn.functional.mse_loss(student @ student.T, teacher @ teacher.T)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    (found,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


NESTED: dict[str, Any] = {"distillation": {"weight": 0, "matryoshka_weight": 3.0}, "matryoshka_dims": [32, 16, 8]}


def nested_step(rank: int, world: int, path: str, sizes: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
    model = load(path).double()
    inner: Any = DistillationLoss(model, temperature=0.05, **settings)
    loss = MatryoshkaLoss(model, inner, settings["matryoshka_dims"])
    if world > 1:
        loss.model = inner.model = DistributedDataParallel(model, find_unused_parameters=True)
    value = loss(features(model, share(rank, sizes)), None)
    value.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"value": value.item(), "gradient": found}


@pytest.mark.parametrize("caching", [{}, {"mini_batch_size": 3}])
def test_smaller_dimensions_learn_from_the_largest(encoder_dir_no_dropout: Path, caching: dict[str, int]) -> None:
    """On one rank as written out, in value and gradient; on two, the same."""
    path = str(encoder_dir_no_dropout)
    model = load(path).double()
    batch = features(model, share(0, (8,)))
    whole = torch.cat([model(dict(one))["sentence_embedding"] for one in (  # no owner, which no model may see
        {key: value for key, value in column.items() if key != "owner"} for column in batch)])  # fmt: skip
    similar = [torch.nn.functional.normalize(whole[:, :dim], dim=-1) for dim in (32, 16, 8)]
    target = (similar[0] @ similar[0].T).detach()
    terms = [torch.nn.functional.mse_loss(one @ one.T, target) for one in similar[1:]]
    plain = MatryoshkaLoss(model, PiccoloLoss(model, temperature=0.05), [32, 16, 8])(batch, None)
    expected = plain + 3.0 * torch.stack(terms).mean()
    wanted = gradient(expected, model)
    (alone,) = run_ranks(nested_step, 1, path, (8,), {**NESTED, **caching})
    assert alone["value"] == pytest.approx(expected.item(), rel=1e-10)
    assert (alone["gradient"] - wanted).norm() <= 1e-8 * wanted.norm()
    results = run_ranks(nested_step, 2, path, (5, 3), {**NESTED, **caching})
    assert sum(result["value"] for result in results) / 2 == pytest.approx(alone["value"], rel=1e-10)
    for result in results:
        assert (result["gradient"] - wanted).norm() <= 1e-8 * wanted.norm()
    assert terms[0] > 1e-5


def test_self_distillation_needs_dimensions(make_model: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"needs two or more matryoshka_dims, got \[32\]; set loss.matryoshka_dims"):
        DistillationLoss(make_model(), {"matryoshka_weight": 1.0}, matryoshka_dims=[32])
    with pytest.raises(ValueError, match=r"must be above 0, got 0 for both; raise one"):
        DistillationLoss(make_model(), {"weight": 0, "contrastive_weight": 0})


def missing(rank: int, world: int, path: str) -> None:
    model = load(path)
    rows = share(rank, (4, 4))
    DistillationLoss(model)(features(model, rows) if rank else scored(model, rows))


def test_scores_that_are_missing_raise_on_each_rank(
    encoder_dir_no_dropout: Path, make_model: Callable[..., Any]
) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"score for each positive and negative, got a batch without; name"):
        DistillationLoss(model)(square(model))
    with pytest.raises(RuntimeError, match=r"have scores is True on rank 0, False on rank 1(?s:.*)rank 1 of 2 raised"):
        run_ranks(missing, 2, str(encoder_dir_no_dropout), timeout=20)
