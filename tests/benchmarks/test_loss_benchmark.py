"""The contrastive loss beside its own matrix products and ST's losses: seconds and peak memory, on the same tensors.

    pytest -m benchmark -s tests/benchmarks/test_loss_benchmark.py

Loss and gradients of N queries, N positives and N hard negatives of dimension D, float32, all four directions. Every
run is a process of its own; memory is its peak above the inputs. On a GPU (CUDA_VISIBLE_DEVICES=0 before the command)
the same table follows for larger sizes, with the products in float32 and on tensor cores.
"""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.loss_contenders import Measurement, floor, measure, ours, ours_one_rank_of_many, st, st_cached

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(600)]

CONTENDERS = {"floor": floor, "ours": ours, "ST": st, "ST cached": st_cached}
SECONDS = {"floor": 45.0, "ours": 45.0, "ST": 20.0, "ST cached": 20.0}  # what is expected to take longer is left out


def _memory_limit() -> int:
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return available * 1024 * 8 // 10


def _table(sizes: list[int], dims: list[int], device: str, memory: int) -> dict[tuple[int, int, str], Measurement]:
    print(
        f"\n{'D':>5} {'N':>6}  "
        + "  ".join(f"{name:>22}" for name in CONTENDERS)
        + "    ours/floor  ST/ours  memory ST/ours"
    )
    results: dict[tuple[int, int, str], Measurement] = {}
    for dim in dims:
        for rows in sizes:
            cells = []
            for name, contender in CONTENDERS.items():
                before = results.get((rows // 2, dim, name))
                # Both grow at most with the square of N.
                fits = before is None or (4 * before.seconds < SECONDS[name] and 4 * before.peak < memory)
                first = rows == sizes[0]
                measured = measure(contender, rows, dim, device) if first or (before and fits) else None
                if measured:
                    results[rows, dim, name] = measured
                cells.append(f"{measured.seconds:8.3f} s {measured.peak / 2**20:8.0f} MiB" if measured else "-")
            line = f"{dim:>5} {rows:>6}  " + "  ".join(f"{cell:>22}" for cell in cells)
            mine, least, theirs = (results.get((rows, dim, name)) for name in ("ours", "floor", "ST"))
            line += f"    {mine.seconds / least.seconds:9.2f}x" if mine and least else ""
            line += (
                f"  {theirs.seconds / mine.seconds:6.1f}x  {theirs.peak / mine.peak:12.1f}x" if mine and theirs else ""
            )
            print(line, flush=True)
    return results


def test_time_and_memory() -> None:
    results = _table([2048, 4096, 8192, 16384], [256, 1024], "cpu", _memory_limit())
    assert {(rows, 256, "ours") for rows in (2048, 4096, 8192)} <= results.keys()


def test_memory_grows_linearly() -> None:
    print("\nmemory of one rank that computes 1,024 of the N rows, D = 256")
    for rows in (4096, 8192, 16384, 32768, 65536):
        measured = measure(ours_one_rank_of_many, rows, 256, budget=0.0)
        print(f"{rows:>6}  {measured.peak / 2**20:8.0f} MiB  {measured.peak / rows / 1024:6.1f} KiB a row", flush=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_time_and_memory_on_a_gpu(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    print(f"\n{torch.cuda.get_device_name()}, float32 products: {precision}")
    _table([4096, 8192, 16384, 32768, 65536], [1024], "cuda", torch.cuda.mem_get_info()[0] * 8 // 10)
