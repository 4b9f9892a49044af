"""distributed.py on real gloo ranks: gathering with gradient, agreeing, and forwards that share a backward."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from piccolo_st.distributed import (
    agree,
    gather_rows,
    get_rank,
    get_world_size,
    last_forward_syncs,
    missing_processes,
    on_cpu,
    process_state,
)
from tests.helpers.ranks import run_ranks


def rows_of(rank: int, counts: tuple[int, ...], width: int = 3) -> torch.Tensor:
    """Different numbers on every rank, reproducible."""
    return torch.randn(counts[rank], width, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def gather_and_backward(rank: int, world: int, first: tuple[int, ...], second: tuple[int, ...]) -> dict[str, Any]:
    """Loss of rank r: (r + 1) * (sum of a quadratic of all rows), so each rank's gradients differ."""
    a, b = rows_of(rank, first).requires_grad_(), rows_of(rank, second, width=2).requires_grad_()
    numbers = torch.arange(first[rank]) + 10 * rank
    one, two, three = gather_rows(a, b, numbers)
    loss = (rank + 1) * ((one.rows**2).sum() + (two.rows**3).sum())
    loss.backward()
    return {
        "rows": one.rows.detach(),
        "own": one.rows.detach()[one.own],
        "numbers": three.rows.tolist(),
        "counts": (one.counts, two.counts),
        "gradients": (a.grad, b.grad),
    }


@pytest.mark.parametrize(
    ("first", "second"), [((2, 2), (3, 3)), ((1, 4), (0, 2)), ((2, 2), (0, 0)), ((3, 1, 2, 1), (0, 5, 0, 1))]
)
def test_rows_and_summed_gradients(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    world = len(first)
    results = run_ranks(gather_and_backward, world, first, second)
    everyone = torch.cat([rows_of(rank, first) for rank in range(world)])
    scale = sum(range(1, world + 1))
    for rank, result in enumerate(results):
        torch.testing.assert_close(result["rows"], everyone, rtol=0, atol=0)
        torch.testing.assert_close(result["own"], rows_of(rank, first), rtol=0, atol=0)
        assert result["numbers"] == [10 * r + n for r in range(world) for n in range(first[r])]
        assert result["counts"] == (first, second)
        torch.testing.assert_close(result["gradients"][0], scale * 2 * rows_of(rank, first))
        torch.testing.assert_close(result["gradients"][1], scale * 3 * rows_of(rank, second, width=2) ** 2)


def gather_without_needing_gradients_everywhere(rank: int, world: int) -> bool:
    """Rank 1 puts in no row of the second tensor and uses only the first: its backward must still take part."""
    a = torch.ones(2, 2, requires_grad=True)
    b = torch.ones(0 if rank else 3, 2, requires_grad=True)
    one, two = gather_rows(a, b)
    (one.rows.sum() if rank else one.rows.sum() + 5 * two.rows.sum()).backward()
    return bool((a.grad == 2).all() and (b.grad == 5).all())


def test_every_rank_takes_part_in_the_backward() -> None:
    assert run_ranks(gather_without_needing_gradients_everywhere, 2, timeout=30) == [True, True]


def gather_half(rank: int, world: int) -> list[float]:
    rows = torch.full((1, 2), 1.0 + rank, dtype=torch.bfloat16)
    with torch.no_grad():
        return gather_rows(rows)[0].rows.float().flatten().tolist()


def test_half_precision_and_no_gradient() -> None:
    assert run_ranks(gather_half, 2) == [[1.0, 1.0, 2.0, 2.0]] * 2


def test_alone_it_is_the_identity() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    (gathered,) = gather_rows(rows)
    assert gathered.rows is rows
    assert (gathered.counts, gathered.own, get_rank(), get_world_size()) == ((2,), slice(0, 2), 0, 1)
    assert agree("anything", {"a": 1}, rows.device, [4, 5]) == [(4, 5)]


def disagree(rank: int, world: int, kind: str) -> None:
    if kind == "facts":
        agree("the loss of this step", {"the dataset": "ab"[rank % 2], "temperature": 0.01}, torch.device("cpu"))
    elif kind == "width":
        gather_rows(torch.ones(2, 3 + rank))
    elif kind == "dtype":
        gather_rows(torch.ones(2, 3, dtype=torch.float64 if rank else torch.float32))
    elif kind == "number":
        gather_rows(*[torch.ones(2, 3)] * (1 + rank))
    elif kind == "gradient":
        gather_rows(torch.ones(2, 3, requires_grad=rank == 0))
    elif kind == "place":
        agree("A", {}, torch.device("cpu")) if rank else gather_rows(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("facts", r"disagree on the loss of this step: the dataset is a on rank 0, b on rank 1; every rank must run"),
        (
            "width",
            r"disagree on what they gather: tensor 0 is \(3,\) torch\.float32 on rank 0, \(4,\) torch\.float32 on",
        ),
        ("dtype", r"tensor 0 is \(3,\) torch\.float32 on rank 0, \(3,\) torch\.float64 on rank 1"),
        ("number", r"tensor 1 is nothing on rank 0, \(3,\) torch\.float32 on rank 1"),
        ("gradient", r"gradient is True on rank 0, False on rank 1"),
        ("place", r"what is what they gather on rank 0, A on rank 1"),
    ],
)
def test_disagreement_is_the_same_error_on_every_rank(kind: str, message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        run_ranks(disagree, 2, kind, timeout=20)
    for rank in (0, 1):
        assert re.search(rf"rank {rank} of 2 raised ValueError: the ranks .*{message}", str(error.value))


def test_too_many_counts() -> None:
    with pytest.raises(ValueError, match=r"agree exchanges at most 7 counts, got 8"):
        agree("x", {}, torch.device("cpu"), range(8))


def several_forwards(rank: int, world: int, forwards: tuple[int, ...], unused: bool) -> list[float]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, affine=False)).double().eval()
    model = DistributedDataParallel(module, find_unused_parameters=unused, broadcast_buffers=True)
    data = torch.arange(24.0, dtype=torch.float64).view(12, 2)[rank * 6 : rank * 6 + 6]
    for _ in range(2):  # buffers are broadcast at the first forward of a step only after a step has synchronised
        model.zero_grad()
        parts = data.tensor_split(forwards[rank])
        outputs = []
        for number, part in enumerate(parts, start=1):
            with last_forward_syncs(model, last=number == len(parts)):
                outputs.append(model(part))
        torch.cat(outputs).square().sum().backward()
    return module[0].weight.grad.flatten().tolist()


@pytest.mark.parametrize("unused", [False, True])
def test_ranks_may_run_different_numbers_of_forwards(unused: bool) -> None:
    results = run_ranks(several_forwards, 2, (1, 3), unused, timeout=30)
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 2).double()
    data = torch.arange(24.0, dtype=torch.float64).view(12, 2)
    scaled = module(data) / (1 + 1e-5) ** 0.5  # batch norm in evaluation mode
    (scaled.square().sum() / 2).backward()  # DistributedDataParallel averages over the two ranks
    for result in results:
        torch.testing.assert_close(torch.tensor(result, dtype=torch.float64), module.weight.grad.flatten())


def state_of(rank: int, world: int) -> tuple[int, int, str]:
    state = process_state()
    return state.process_index, state.num_processes, state.device.type


def test_without_an_accelerator_nobody_has_to_say_use_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert on_cpu()
    assert run_ranks(state_of, 2) == [(0, 2, "cpu"), (1, 2, "cpu")]


@pytest.mark.parametrize(
    ("found", "environment", "cpu"),
    [
        ("cuda", {}, False),
        ("cuda", {"WORLD_SIZE": "2"}, False),
        ("cuda", {"ACCELERATE_USE_CPU": "True"}, True),
        ("mps", {}, False),
        ("mps", {"WORLD_SIZE": "2"}, True),
    ],
)
def test_with_an_accelerator(
    found: str, environment: dict[str, str], cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_USE_CPU", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device(found))
    assert on_cpu() is cpu


def test_a_launcher_that_starts_one_process_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert missing_processes() == ""
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    assert missing_processes() == ""
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "one process where several were asked for" in missing_processes()
    assert "torchrun --nproc_per_node 2" in missing_processes()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert missing_processes() == ""
