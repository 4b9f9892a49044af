"""Drawing, reading and collating batches beside sentence-transformers, in one run.

    pytest -m benchmark -s tests/benchmarks/test_sampler_benchmark.py

Datasets of the sampler tables have a length and nothing else. ST's sampler at 400 million rows is left out: at the 47
bytes a row that 100 million need, each rank would need 18 GiB.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from datasets import Dataset, disable_progress_bars, load_from_disk
from sentence_transformers.base.sampler import DefaultBatchSampler, ProportionalBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch.utils.data import ConcatDataset, RandomSampler

from piccolo_st.batches.collator import PiccoloDataCollator
from piccolo_st.batches.reading import HomogeneousDataset
from piccolo_st.batches.sampler import HomogeneousBatchSampler
from piccolo_st.tables import table

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(600)]

BATCH = 1024
STOCK_LIMIT = 100_000_000  # rows
POSITION = 1_000_000  # steps


class Sized:
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def _concatenation(rows: int) -> ConcatDataset:
    return ConcatDataset([Sized(rows)])


def _stock(dataset: ConcatDataset, batch_size: int) -> ProportionalBatchSampler:
    generator = torch.Generator().manual_seed(0)
    samplers = [
        DefaultBatchSampler(RandomSampler(part, generator=generator), batch_size, True, generator=generator, seed=0)
        for part in dataset.datasets
    ]
    return ProportionalBatchSampler(dataset, batch_samplers=samplers, generator=generator, seed=0)


def _ours(dataset: ConcatDataset, batch_size: int, **options: Any) -> HomogeneousBatchSampler:
    return HomogeneousBatchSampler(dataset, batch_size=batch_size, drop_last=True, **options)


def _memory(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _apart(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a process of its own, so that its memory is counted from nothing."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*args)))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def _first_and_next(make: Callable[..., Any], rows: int) -> tuple[float, float, float]:
    """Seconds to the first batch, MiB added by then, and seconds a batch after it."""
    list(next(iter(make(_concatenation(10 * BATCH), BATCH))))  # load the code: its pages are no cost of the rows
    dataset = _concatenation(rows)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest memory so far
    before, start = _memory("VmRSS"), time.perf_counter()
    batches = iter(make(dataset, BATCH))
    list(next(batches))
    first = time.perf_counter() - start
    added = (_memory("VmHWM") - before) / 2**20
    count, start = 0, time.perf_counter()
    for batch in itertools.islice(batches, 500):
        list(batch)
        count += 1
    return first, added, (time.perf_counter() - start) / count


def _start_at(make: Callable[..., Any], rows: int, batch_size: int, step: int) -> float:
    """Seconds from nothing to the first batch at a step."""
    dataset, start = _concatenation(rows), time.perf_counter()
    sampler = make(dataset, batch_size)
    list(next(iter(SkipBatchSampler(sampler, step))))  # as transformers' Trainer resumes
    return time.perf_counter() - start


def _million(rows: int) -> str:
    return f"{rows // 10**6}M"


def test_first_batch_and_steady_state() -> None:
    lines: list[list[Any]] = []
    for rows in (10**6, 10**7, 10**8, 4 * 10**8):
        for name, make in (("ST Proportional", _stock), ("Homogeneous", _ours)):
            if make is _stock and rows > STOCK_LIMIT:
                lines.append([_million(rows), name, "not run", "18 GiB", "-"])
                continue
            first, added, steady = _apart(_first_and_next, make, rows)
            lines.append([_million(rows), name, f"{first * 1e3:.1f} ms", f"{added:.1f} MiB", f"{steady * 1e3:.3f} ms"])
    print(
        f"\nSampler, one rank, batches of {BATCH} rows",
        table(["rows", "sampler", "first batch", "memory added", "each further batch"], lines),
        sep="\n",
    )


def test_start_inside_an_epoch() -> None:
    rows, batch_size = STOCK_LIMIT, 64
    lines: list[list[Any]] = []
    for name, make in (("ST Proportional", _stock), ("Homogeneous", _ours)):
        seconds = [_apart(_start_at, make, rows, batch_size, step) for step in (0, POSITION)]
        lines.append([name, *(f"{value * 1e3:.1f} ms" for value in seconds)])
    print(
        f"\nFirst batch of a resumed run, {_million(rows)} rows, batches of {batch_size}",
        table(["sampler", "at step 0", f"at step {POSITION:,}"], lines),
        sep="\n",
    )


def _aligned(sampler: Any, world: int, sizes: list[int]) -> float:
    """The share of steps at which all ranks read from one dataset, dealt out as accelerate does."""
    ends = np.cumsum(sizes)
    shards = [BatchSamplerShard(sampler, world, rank, even_batches=False) for rank in range(world)]
    steps = [
        [int(np.searchsorted(ends, next(iter(batch)), side="right")) for batch in batches]
        for batches in zip(*(_replayed(shard) for shard in shards), strict=False)
    ]
    return float(np.mean([len(set(datasets)) == 1 for datasets in steps]))


def _replayed(shard: BatchSamplerShard) -> Iterator[Any]:
    for sampler in getattr(shard.batch_sampler, "batch_samplers", ()):
        sampler.generator = torch.Generator().manual_seed(0)
    return iter(list(shard))


def test_alignment_of_the_ranks() -> None:
    sizes = [30_000 + 3000 * number for number in range(10)]
    dataset = ConcatDataset([Sized(size) for size in sizes])
    lines: list[list[Any]] = []
    for world in (2, 8, 32):
        stock = _aligned(_stock(dataset, 32), world, sizes)
        ours = _aligned(_ours(dataset, 32, world_size=world), world, sizes)
        lines.append([world, f"{stock:.1%}", f"{ours:.1%}"])
    print(
        "\nSteps at which all ranks read from one dataset, of ten",
        table(["ranks", "ST Proportional", "Homogeneous"], lines),
        sep="\n",
    )


def _text(random: np.random.Generator, low: int, high: int, alphabet: np.ndarray) -> str:
    return "".join(random.choice(alphabet, random.integers(low, high)))


@pytest.mark.parametrize("parallel", ["true", "false"])
def test_reading_and_collating(
    make_model: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parallel: str,
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    disable_progress_bars()
    random, rows = np.random.default_rng(0), 100_000
    alphabet = np.array(list("查询结果数据的是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对，。abc123"))
    texts = [[_text(random, low, high, alphabet) for _ in range(rows)] for low, high in ((5, 20), (20, 60))]
    Dataset.from_dict({"query": texts[0], "positive": texts[1]}).save_to_disk(str(tmp_path / "data"))
    plain = load_from_disk(str(tmp_path / "data"))
    named = plain.with_transform(lambda batch: {**batch, "dataset_name": ["data"] * len(batch["query"])})
    model = make_model(query_length=64, document_length=128)
    arguments = {
        "preprocess_fn": model.preprocess,
        "prompts": {"query": "查询：", "positive": "结果："},
        "router_mapping": {"query": "query", "positive": "document"},
    }
    stock, ours = SentenceTransformerDataCollator(**arguments), PiccoloDataCollator(**arguments)
    lines: list[list[Any]] = []
    for name, dataset in (("plain", plain), ("with ST's dataset names", named)):
        concatenation, homogeneous = ConcatDataset([dataset]), HomogeneousDataset([dataset])
        batches = list(itertools.islice(_ours(concatenation, BATCH), 12))
        ways = {
            "ST": (lambda batch: [concatenation[i] for i in batch], stock),  # noqa: B023
            "ours": (homogeneous.__getitems__, ours),
        }
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in (*ways, "floor")}
        for batch in batches:
            for way, (read, collate) in ways.items():
                list(batch)
                start = time.perf_counter()
                features = read(batch)
                between = time.perf_counter()
                collate(features)
                seconds[way].append((between - start, time.perf_counter() - between))
        backend = ours._tokenize._backend
        for batch in batches:  # what the tokenizer takes by itself, the floor under both
            columns = homogeneous.__getitems__(batch).columns
            start = time.perf_counter()
            for column in ("query", "positive"):
                backend.encode_batch_fast(columns[column])
            seconds["floor"].append((0.0, time.perf_counter() - start))
        floor = statistics.median(collating for _, collating in seconds.pop("floor")[2:])
        rates = {
            way: [BATCH / statistics.median(of) for of in zip(*((r, c, r + c) for r, c in times[2:]), strict=True)]
            for way, times in seconds.items()
        }
        for way, rate in rates.items():
            lines.append([name, way, *(f"{value:,.0f}" for value in rate)])
        lines.append([name, "ratio", *(f"{o / s:.1f} x" for s, o in zip(rates["ST"], rates["ours"], strict=True))])
        lines.append([name, "tokenizer alone", "-", f"{BATCH / floor:,.0f}", "-"])
    print(
        f"\nRows a second from an Arrow dataset on disk, batches of {BATCH} pairs, "
        f"tokenizer threads {'on' if parallel == 'true' else 'off'}",
        table(["dataset", "", "reading", "collating", "both"], lines),
        sep="\n",
    )
