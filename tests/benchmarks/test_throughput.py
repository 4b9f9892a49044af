"""Training steps beside stock sentence-transformers: same encoder, rows, order, loss and optimizer, in one run.

    OMP_NUM_THREADS=2 pytest -m benchmark tests/benchmarks/test_throughput.py -s
    PICCOLO_DATA=FOLDER OMP_NUM_THREADS=2 pytest -m benchmark tests/benchmarks/test_throughput.py -s

FOLDER has ``retrieval/simclue.train.jsonl`` (query, positive, negative) and ``retrieval/cmrc.train.jsonl`` (query,
positive); without it, rows of random characters with lengths like theirs are made. The contenders train in turns, a few
steps at a time; times are medians over all steps but each turn's first, and the ratio is the median of the rounds'.

The fraction of the peak counts the multiply-adds of real tokens, padding left out, three times those of the forward
pass, against the fastest of some float32 matrix products right before and after the same turn: a machine's clock, and
what its neighbours leave of it, change from one turn to the next. It is the median over the turns.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from piccolo_st.batches import HomogeneousBatchSampler
from piccolo_st.losses import PiccoloLoss
from piccolo_st.losses.batch import describe
from piccolo_st.modeling import EncoderSettings, build_encoder
from piccolo_st.modeling.lengths import set_lengths
from piccolo_st.tables import table
from piccolo_st.training.trainer import PiccoloTrainer
from piccolo_st.training.training_arguments import PiccoloTrainingArguments
from tests.benchmarks.test_memory_benchmark import SavedBytes
from tests.conftest import CHARACTERS
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import Case, make_trainer

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

LAYERS, HIDDEN = 4, 256
PLAIN = {"temperature": 0.05, "directions": ("query_to_doc",), "mask_duplicates": False}  # what ST's loss computes
# name -> lengths of query and passage, and column -> (mean, spread) of the characters of its texts
SETS: dict[str, tuple[tuple[int, int], dict[str, tuple[float, float]]]] = {
    "simclue": ((64, 128), {"query": (16, 8), "positive": (14, 7), "negative": (15, 7)}),
    "cmrc": ((64, 512), {"query": (16, 6), "positive": (517, 220)}),
}
DROPOUT = [float(p) for p in os.environ.get("PICCOLO_DROPOUT", "0.1,0.0").split(",")]


def read(name: str) -> Dataset:
    if folder := os.environ.get("PICCOLO_DATA"):
        path = Path(folder) / "retrieval" / f"{name}.train.jsonl"
        return Dataset.from_list([json.loads(line) for line in path.open(encoding="utf-8")])
    generator = np.random.default_rng(0)
    characters = [character for character in CHARACTERS if "一" <= character <= "鿿"]

    def texts(mean: float, spread: float) -> list[str]:
        lengths = np.maximum(4, generator.normal(mean, spread, 2000)).astype(int)
        return ["".join(generator.choice(characters, length)) for length in lengths]

    return Dataset.from_dict({column: texts(*shape) for column, shape in SETS[name][1].items()})


def load(encoder: Path, lengths: tuple[int, int]) -> SentenceTransformer:
    transformer = Transformer(str(encoder))
    model = SentenceTransformer(modules=[transformer, Pooling(HIDDEN, "mean")], device="cpu")
    set_lengths(model, *lengths)
    return model


class Clock(TrainerCallback):
    """When each step of the current turn ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


@dataclass
class Contender:
    """A way to train, and the seconds of its steps."""

    name: str
    ours: bool
    caching: int | None = None
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def train(
        self, data: Dataset, encoder: Path, lengths: tuple[int, int], batch: int, steps: int, output: Path, log: int
    ) -> SentenceTransformerTrainer:
        torch.manual_seed(0)
        model = load(encoder, lengths)
        clock = Clock()
        settings: dict[str, Any] = {
            "output_dir": str(output),
            "per_device_train_batch_size": batch,
            "batch_sampler": HomogeneousBatchSampler,
            "router_mapping": {column: "query" if column == "query" else "document" for column in data.column_names},
            "max_steps": steps,
            "learning_rate": 1e-4,
            "warmup_steps": 0,
            "logging_steps": log,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        if self.ours:
            arguments = PiccoloTrainingArguments(**settings, resume="never")
            caching = {"mini_batch_num_tokens": self.caching} if self.caching else {}
            loss: Any = PiccoloLoss(model, **PLAIN, **caching)
            trainer = PiccoloTrainer(model, arguments, train_dataset=data, loss=loss, callbacks=[clock])
        else:
            arguments = SentenceTransformerTrainingArguments(**settings)
            loss = (
                CachedMultipleNegativesRankingLoss(model, mini_batch_size=self.caching)
                if self.caching
                else MultipleNegativesRankingLoss(model)
            )
            trainer = SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss, callbacks=[clock])
        trainer.train()
        self.seconds += np.diff(clock.ends).tolist()
        self.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return trainer


def peak() -> float:
    """The fastest of some float32 matrix products, in operations a second."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def operations(encoder: Path, lengths: tuple[int, int], data: Dataset, batch: int) -> tuple[float, float, float]:
    """Of a mean step: float operations on real tokens, real tokens, and the share of padding in padded columns."""
    model = load(encoder, lengths)
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embeddings" not in name)
    sizes, padded = [], 0
    rows = data[: min(len(data), 20 * batch)]
    for column, texts in rows.items():
        for start in range(0, len(texts), batch):
            task = "query" if column == "query" else "document"
            mask = model.preprocess(texts[start : start + batch], task=task)["attention_mask"]
            sizes.append(mask.sum(1).double())
            padded += mask.numel()
    tokens = torch.cat(sizes)
    steps = len(next(iter(rows.values()))) / batch
    total = float(6 * weights * tokens.sum() + 12 * LAYERS * HIDDEN * tokens.square().sum())
    return total / steps, float(tokens.sum()) / steps, 1 - float(tokens.sum()) / padded


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, float], Path]:
    folder = tmp_path_factory.mktemp("encoders")
    found = {}
    for name in SETS:
        texts = [text for column in read(name).to_dict().values() for text in column]
        for dropout in {*DROPOUT, 0.0}:
            settings = EncoderSettings(layers=LAYERS, hidden_size=HIDDEN, dropout=dropout)
            found[name, dropout] = build_encoder(settings, texts, folder / f"{name}-{dropout}")
    return found


@pytest.mark.parametrize("dropout", DROPOUT)
@pytest.mark.parametrize(("name", "batch", "steps"), [("simclue", 64, 8), ("cmrc", 16, 4)])
def test_steps(name: str, batch: int, steps: int, dropout: float, encoders: dict[Any, Path], tmp_path: Path) -> None:
    data, lengths, encoder = read(name), SETS[name][0], encoders[name, dropout]
    contenders = [Contender("sentence-transformers", ours=False), Contender("piccolo_st", ours=True)]
    work, tokens, padding = operations(encoder, lengths, data, batch)
    turns: list[list[float]] = [[] for _ in contenders]  # seconds a step of each turn
    shares: list[list[float]] = [[] for _ in contenders]
    peaks = [peak()]
    for _ in range(5):
        for contender, seconds, found in zip(contenders, turns, shares, strict=True):
            before = len(contender.seconds)
            contender.train(data, encoder, lengths, batch, steps, tmp_path, log=1000)
            seconds.append(statistics.median(contender.seconds[before:]))
            peaks.append(peak())
            found.append(work / seconds[-1] / max(peaks[-2:]))
    rows = []
    for contender, seconds, found in zip(contenders, turns, shares, strict=True):
        second = statistics.median(contender.seconds)
        ratio = statistics.median(first / own for first, own in zip(turns[0], seconds, strict=True))
        rows.append([contender.name, batch / second, tokens / second, 100 * statistics.median(found), ratio])
    header = ["trainer", "samples/s", "tokens/s", "% of peak", "ratio"]
    print(
        f"\n{name}, batch {batch}, lengths {lengths}, dropout {dropout}, {LAYERS} layers x {HIDDEN}, "
        f"{torch.get_num_threads()} threads, padding of stock batches {padding:.0%}, peak of the turns "
        f"{min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f} GFLOP/s"
    )
    print(table(header, rows))


@pytest.mark.parametrize("name", list(SETS))
def test_loss_curves_are_equal_without_dropout(name: str, encoders: dict[Any, Path], tmp_path: Path) -> None:
    data, (lengths, _) = read(name), SETS[name]
    batch, steps = (16, 40) if name == "simclue" else (4, 40)
    contenders = [Contender("sentence-transformers", ours=False), Contender("piccolo_st", ours=True)]
    for contender in contenders:
        contender.train(data, encoders[name, 0.0], lengths, batch, steps, tmp_path, log=1)
    stock, ours = (np.array(contender.losses) for contender in contenders)
    assert len(stock) == steps and stock[-1] < stock[0], "the run learns nothing, so equal losses would say little"
    difference = np.abs(ours - stock) / np.abs(stock)
    print(f"\n{name}: {steps} losses from {stock[0]:.3f} to {stock[-1]:.3f}, apart by {difference.max():.1e} at most")
    assert difference.max() < 1e-4


def test_gradient_caching(encoders: dict[Any, Path], tmp_path: Path) -> None:
    """Batch 1,024 through the cache against batch 64 without it: time a sample, and what autograd keeps."""
    data, lengths = read("simclue"), SETS["simclue"][0]
    encoder = encoders["simclue", DROPOUT[0]]
    contenders = [
        (Contender("piccolo_st, batch 64", ours=True), 64, 9),
        (Contender("piccolo_st, batch 1,024, cached", ours=True, caching=2048), 1024, 3),
        (Contender("sentence-transformers, batch 1,024, cached", ours=False, caching=32), 1024, 2),
    ]
    rows: list[list[Any]] = []
    for contender, batch, steps in contenders:
        contender.train(data, encoder, lengths, batch, steps, tmp_path, log=1000)
        sample = 1000 * statistics.median(contender.seconds) / batch
        rows.append([contender.name, sample, sample / rows[0][1] if rows else 1.0, "not measured"])
    for row, (contender, batch, _) in zip(rows, contenders[:2], strict=False):
        kept = SavedBytes(load(encoder, lengths))
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda holder: holder.tensor):
            contender.train(data, encoder, lengths, batch, 1, tmp_path, log=1000)
        row[3] = f"{kept.highest / 1e6:,.0f}"
    print("\n" + table(["trainer", "ms a sample", "ratio", "activations MB"], rows))


@pytest.mark.parametrize(("name", "batch", "steps"), [("simclue", 64, 12), ("cmrc", 16, 6)])
def test_what_is_not_the_encoder(
    name: str, batch: int, steps: int, encoders: dict[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of a step that sampler, reading and collator take, and that the loss takes without the embeddings.

    The gradients of the loss are made in its forward pass, so that its backward pass is one product more.
    """
    spent = {"loss": 0.0}

    def timed(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent["loss"] += time.perf_counter() - start

        return call

    monkeypatch.setattr(PiccoloLoss, "_loss", timed(PiccoloLoss._loss))
    monkeypatch.setattr("piccolo_st.losses.piccolo.describe", timed(describe))
    contender = Contender("piccolo_st", ours=True)
    data = read(name)
    trainer = contender.train(data, encoders[name, DROPOUT[0]], SETS[name][0], batch, steps, tmp_path, log=steps)
    logged = next(entry for entry in trainer.state.log_history if "data_wait" in entry)
    loss = spent["loss"] / steps / statistics.median(contender.seconds)
    rows = [[name, 100 * logged["data_wait"], 100 * loss, 100 * (logged["data_wait"] + loss)]]
    print("\n" + table(["rows", "sampler, reading, collator, % of a step", "loss, %", "together, %"], rows))


def test_zero1_beside_ddp(tmp_path: Path) -> None:
    """Steps of two processes with a thread each under DDP and under ZeRO-1, in turns."""
    pytest.importorskip("deepspeed")
    settings = EncoderSettings(layers=LAYERS, hidden_size=HIDDEN)
    encoder = build_encoder(settings, [CHARACTERS], tmp_path / "encoder")
    seconds: dict[str, list[float]] = {"ddp": [], "zero1": []}
    for turn in range(3):
        for engine, found in seconds.items():
            case = Case(2, engine, batch_size=64, rows=16 * 128)
            found += run_ranks(_clocked, 2, str(encoder), str(tmp_path / f"{engine}-{turn}"), case, timeout=600)[0]
    medians = {engine: statistics.median(found) for engine, found in seconds.items()}
    rows = [[engine, 1000 * second, second / medians["ddp"]] for engine, second in medians.items()]
    print(f"\n2 processes, batch 64 each, {LAYERS} layers x {HIDDEN}\n" + table(["engine", "ms a step", "ratio"], rows))


def _clocked(rank: int, world: int, encoder: str, output: str, case: Case) -> list[float]:
    trainer = make_trainer(Path(encoder), Path(output), case, max_steps=12, save_strategy="no", logging_steps=100)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return np.diff(clock.ends)[1:].tolist()


def test_profile(encoders: dict[Any, Path], tmp_path: Path) -> None:
    """Where a step goes: python -m pytest -m benchmark tests/benchmarks/test_throughput.py -s -k profile."""
    contender = Contender("piccolo_st", ours=True)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        contender.train(read("simclue"), encoders["simclue", DROPOUT[0]], SETS["simclue"][0], 64, 6, tmp_path, log=1000)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=48))
