"""What one GPU makes of training: samples, tokens, memory and the loss, beside sentence-transformers', in one run.

    CUDA_VISIBLE_DEVICES=0 python -m tests.benchmarks.test_gpu --output runs/gpu --seconds 300

Random weights, random tokens, lengths as of Chinese questions and passages; batches lie on the GPU before the clock
starts, for all contenders alike. Parts come in order of worth: one that fails leaves its error in ``gpu.json`` and the
next goes on; one that begins after the time is over is left out and named. A time is the median of single steps.

The fraction of the peak (MFU) counts the multiply-adds of real tokens alone, three times those of the forward pass,
against the product in bfloat16 that is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from piccolo_st import environment
from piccolo_st.losses import PiccoloLoss
from piccolo_st.modeling.packed.packing import use_packing
from piccolo_st.tables import table
from tests.benchmarks.loss_contenders import FLOOR_ANCHORS, floor, ours
from tests.conftest import build_encoder
from tests.helpers.architectures import small_encoder
from tests.modeling.test_packing import MODELS, build, made

Features = dict[str, Any]
PLAIN = {"temperature": 0.05, "directions": ("query_to_doc",), "mask_duplicates": False}  # what ST's loss computes


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        device: where it runs.
        shapes: name -> layers, width.
        product: rows of the square matrices of the first ceiling.
        batches: rows of stage 1 and of stage 2.
        loss_rows: N of the loss alone.
        dim: of the embeddings there.
        steps: that are measured, after three that are not.
    """

    device: str = "cuda"
    shapes: tuple[tuple[str, int, int], ...] = (("BERT-base", 12, 768), ("BERT-large", 24, 1024))
    product: int = 8192
    batches: tuple[int, int] = (1024, 8)
    loss_rows: tuple[int, ...] = (4096, 16384, 65536, 131072, 262144, 524288, 1048576)
    dim: int = 1024
    steps: int = 6


SMALL = Scale("cpu", (("tiny", 2, 32),), 64, (16, 2), (64, 128), 16, 1)


@dataclass
class Run:
    """One run of the benchmark, and what it found so far."""

    scale: Scale
    folder: Path
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.scale.device == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, step: Callable[[], object], warm: int = 3) -> float:
        """Median seconds of a step."""
        times = []
        for number in range(warm + self.scale.steps):
            self.wait()
            start = time.perf_counter()
            step()
            self.wait()
            if number >= warm:
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    def peak(self, step: Callable[[], object], warm: int = 3) -> tuple[float, float]:
        """Median seconds of a step, and the most memory that was in use, in GiB."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = self.seconds(step, warm)
        return seconds, torch.cuda.max_memory_allocated() / 2**30 if self.cuda else 0.0


def ceilings(run: Run) -> dict[str, float]:
    """The product of two square matrices in bfloat16 and in float32, in TFLOP/s, and a copy, in GB/s."""
    size = run.scale.product
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=run.scale.device, dtype=dtype) for _ in range(2))
        found[f"{name}_tflops"] = 2 * size**3 / run.seconds(lambda a=a, b=b: a @ b) / 1e12
    source = torch.empty(size * size * 4, device=run.scale.device)
    target = torch.empty_like(source)
    found["copy_gb_per_s"] = 2 * source.nbytes / run.seconds(lambda: target.copy_(source)) / 1e9
    return found


def equality(run: Run) -> list[dict[str, object]]:
    """Packed and padded rows in bfloat16, each against padded rows in float32: relative norm of the differences."""
    encoder = build_encoder(run.folder / "encoder")
    found = []
    for name in ("bert", *MODELS):
        (run.folder / name).mkdir()
        small = small_encoder("bert") if name == "bert" else made(name)
        model = build(run.folder / name, small, encoder).to(run.scale.device)
        vocabulary = model[0].model.config.vocab_size
        rows = features([70, 3, 33, 50, 8], vocabulary, run.scale.device)
        exact = embed(model, rows, run.scale.device, half=False)
        padded = embed(model, rows, run.scale.device)
        packed = use_packing(model, torch.bfloat16)
        found.append(
            {
                "model": name,
                "packs": packed,
                **{
                    f"{what} {way}": float((one - other).norm() / other.norm())
                    for way, result in (("padded", padded), ("packed", embed(model, rows, run.scale.device)))
                    for what, one, other in zip(("embeddings", "gradients"), result, exact, strict=True)
                },
            }
        )
    return found


def embed(model: SentenceTransformer, rows: Features, device: str, half: bool = True) -> tuple[Tensor, Tensor]:
    """The embeddings of some rows, and the gradients of all weights for one sum of them, as one vector."""
    model.train()
    model.zero_grad()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
        embeddings = model(dict(rows))["sentence_embedding"].float()
    (embeddings * torch.linspace(-1, 1, embeddings.shape[1], device=device)).sum().backward()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return embeddings.detach(), torch.cat(gradients).clone()


def features(lengths: list[int], vocabulary: int, device: str) -> Features:
    """Random tokens, padded on the right."""
    size = torch.tensor(lengths)
    mask = torch.arange(int(size.max())) < size[:, None]
    ids = torch.randint(5, vocabulary, mask.shape, generator=torch.Generator().manual_seed(len(lengths)))
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.long().to(device)}


def columns(rows: int, query: int, document: int, negatives: int, device: str, seed: int) -> list[Features]:
    """A batch: query, positive and negatives, each column with log-normal lengths."""
    generator = np.random.default_rng(seed)

    def column(mean: float, spread: float, longest: int) -> Features:
        lengths = generator.lognormal(np.log(mean), spread, rows).clip(4, longest).astype(int)
        return features(lengths.tolist(), 1000, device)

    return [column(18, 0.4, query)] + [column(0.35 * document, 0.6, document) for _ in range(1 + negatives)]


def bert(run: Run, layers: int, width: int, dropout: float) -> SentenceTransformer:
    """BERT of some shape with random weights, dropout 0.1 but of attention weights as given."""
    heads = max(1, width // 64)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    folder = run.folder / f"bert-{layers}-{width}-{dropout}"
    folder.mkdir(exist_ok=True)
    model = build(folder, BertModel(config), build_encoder(run.folder / "encoder"))
    return model.to(run.scale.device).train()


class CountedTokens:
    """How many tokens a model computes, padding included."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.tokens = 0
        transformer = model[0]
        assert isinstance(transformer, Transformer)
        words = cast(nn.Module, transformer.model.get_input_embeddings())
        self._handle = words.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self.tokens += args[0].numel()

    def remove(self) -> None:
        self._handle.remove()


def contenders(stage: int) -> Iterator[tuple[str, float, bool, Callable[[SentenceTransformer], nn.Module]]]:
    """Name, dropout of attention weights, whether rows are packed, and the loss of a model."""
    if stage == 2:
        yield "ST, attention dropout 0.1", 0.1, False, lambda model: MultipleNegativesRankingLoss(model)
        yield "ST", 0.0, False, lambda model: MultipleNegativesRankingLoss(model)
        yield "ours, padded", 0.0, False, lambda model: PiccoloLoss(model, **PLAIN)
        yield "ours, packed", 0.0, True, lambda model: PiccoloLoss(model, **PLAIN)
        return
    yield "ST, cached", 0.0, False, lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=256)
    tokens = 256 * 128
    yield "ours, padded", 0.0, False, lambda model: PiccoloLoss(model, **PLAIN, mini_batch_num_tokens=tokens)
    yield "ours, packed", 0.0, True, lambda model: PiccoloLoss(model, **PLAIN, mini_batch_num_tokens=tokens)


def training(run: Run, shape: tuple[str, int, int], stage: int) -> list[dict[str, object]]:
    """Steps of AdamW under autocast to bfloat16: stage 1 with caching at 128/128, stage 2 at 64/512 and 7 negatives."""
    name, layers, width = shape
    rows = run.scale.batches[stage - 1]
    batch = (
        columns(rows, 64, 512, 7, run.scale.device, 0)
        if stage == 2
        else columns(rows, 128, 128, 0, run.scale.device, 0)
    )
    lengths = [int(n) for column in batch for n in column["attention_mask"].sum(dim=1)]
    flops = 3 * layers * sum(24 * width**2 * n + 4 * width * n**2 for n in lengths)
    found: list[dict[str, object]] = []
    for contender, dropout, packed, loss_of in contenders(stage):
        model = bert(run, layers, width, dropout)
        said = use_packing(model, torch.bfloat16) if packed else False
        loss = loss_of(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        losses: list[Tensor] = []

        def step(
            loss: nn.Module = loss, optimizer: torch.optim.Optimizer = optimizer, losses: list[Tensor] = losses
        ) -> None:
            with torch.autocast(run.scale.device, dtype=torch.bfloat16):
                value = loss([dict(column) for column in batch], None)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.detach())

        counted = CountedTokens(model)
        step()
        computed = counted.tokens
        counted.remove()
        seconds, memory = run.peak(step)
        found.append(
            {
                "shape": name,
                "stage": stage,
                "contender": contender,
                "packs": said,
                "samples_per_s": rows / seconds,
                # Caching embeds every row twice.
                "computed_over_real": computed / sum(lengths) / (2 if stage == 1 else 1),
                "mfu": flops / seconds / 1e12 / run.found["ceilings"]["bf16_tflops"],
                "gib": memory,
                "syncs": synchronisations(step) if run.cuda else None,
                "first_loss": float(losses[0]),
            }
        )
        del model, loss, optimizer
    return found


def synchronisations(step: Callable[[], object]) -> int:
    """How often the host waits for the GPU in a step."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def loss_alone(run: Run) -> list[dict[str, object]]:
    """Loss and gradients of N queries and positives, N hard negatives, beside the three products alone."""
    found: list[dict[str, object]] = []
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        before = 0.0
        for rows in run.scale.loss_rows:
            if 4 * before > 8:  # what it would take
                break
            vectors = [torch.randn(rows, run.scale.dim, device=run.scale.device, requires_grad=True) for _ in range(3)]
            once = replace(run, scale=replace(run.scale, steps=1 if before > 0.1 else run.scale.steps))
            least = once.seconds(lambda v=vectors: floor(*v), warm=1) if rows >= FLOOR_ANCHORS else None
            seconds, memory = once.peak(lambda v=vectors: ours(*v), warm=1)
            before = seconds
            found.append(
                {
                    "precision": precision,
                    "rows": rows,
                    "seconds": seconds,
                    "over_products": seconds / least if least else None,
                    "gib": memory,
                    "over_inputs": memory * 2**30 / (3 * vectors[0].nbytes),
                }
            )
    torch.set_float32_matmul_precision("highest")
    return found


def parts(scale: Scale) -> dict[str, Callable[[Run], object]]:
    """Name -> what it measures, in order of worth."""
    named: dict[str, Callable[[Run], object]] = {"ceilings": ceilings, "equality": equality}
    for stage in (2, 1):
        for shape in scale.shapes:
            named[f"{shape[0]}, stage {stage}"] = lambda run, shape=shape, stage=stage: training(run, shape, stage)
    return named | {"loss": loss_alone}


def measure(scale: Scale, output: Path, limit: float) -> dict[str, Any]:
    """Run the parts that begin within a limit in seconds; ``gpu.json`` is written after each."""
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    name = torch.cuda.get_device_name() if scale.device == "cuda" else scale.device
    with tempfile.TemporaryDirectory() as folder:
        run = Run(scale, Path(folder))
        report = {"device": name, "versions": environment.versions(), "parts": run.found}
        for part, measured in parts(scale).items():
            begun = time.perf_counter()
            try:
                run.found[part] = measured(run) if begun - start < limit else "left out: the time was over"
            except Exception:  # the next part may have nothing to do with it
                run.found[part] = traceback.format_exc()
            print(f"\n{part}, {time.perf_counter() - begun:.0f} s\n{shown(run.found[part])}", flush=True)
            (output / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def shown(found: object) -> str:
    """A part's rows as a table."""
    rows = [found] if isinstance(found, dict) else found
    if not isinstance(rows, list):
        return str(found)
    cells = [
        [f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()] for row in rows
    ]
    return table(list(rows[0]), cells)


def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    found = measure(SMALL, tmp_path, 600)["parts"]
    assert {name: part for name, part in found.items() if isinstance(part, str)} == {}
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"] == found
    assert all(row["packs"] for row in found["equality"])
    for stage in (1, 2):
        own = {row["contender"]: row for row in found[f"tiny, stage {stage}"]}
        assert own["ours, packed"]["computed_over_real"] == pytest.approx(1.0, abs=0.001)
        stock = next(row for name, row in own.items() if name in ("ST", "ST, cached"))
        assert stock["computed_over_real"] > 1.2
        assert own["ours, padded"]["first_loss"] == pytest.approx(stock["first_loss"], rel=0.2)  # dropout draws anew


@pytest.mark.benchmark
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(tmp_path: Path) -> None:
    found = measure(Scale(), tmp_path, 480)["parts"]
    assert {name: part for name, part in found.items() if isinstance(part, str)} == {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--seconds", type=float, default=480, help="no part begins later")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU is to be seen; begin the command with CUDA_VISIBLE_DEVICES=0, since the tests hide them")
    measure(Scale(), given.output, given.seconds)
