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
import gc
import itertools
import json
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
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
from piccolo_st.losses.contrast import contrastive_loss, unit
from piccolo_st.losses.false_negatives import Exclusions
from piccolo_st.modeling import compile_layers, use_packing
from piccolo_st.tables import table
from tests.benchmarks.loss_contenders import FLOOR_ANCHORS, floor, ours
from tests.conftest import build_encoder
from tests.helpers.architectures import small_encoder
from tests.modeling.test_packing import MODELS, build, made

Features = dict[str, Any]
Shape = tuple[str, int, int, int]
PLAIN_KINDS = ("bert", "roberta", "xlm-roberta", "ernie", "nomic_bert")
PLAIN = {"temperature": 0.05, "directions": ("query_to_doc",), "mask_duplicates": False}  # what ST's loss computes


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        device: where it runs.
        shapes: name, layers, width, and the rows of stage 2: what stock has memory for.
        product: rows of the square matrices of the first ceiling.
        batch: rows of stage 1.
        loss_rows: N of the loss alone.
        pairs: N of the same in one direction, without hard negatives, once.
        dim: of the embeddings there.
        steps: that are measured, after three that are not.
        compiler: torch.compile's backend.
    """

    device: str = "cuda"
    shapes: tuple[Shape, ...] = (("BERT-base", 12, 768, 32), ("BERT-large", 24, 1024, 12))
    product: int = 8192
    batch: int = 1024
    loss_rows: tuple[int, ...] = (4096, 16384, 65536, 262144)
    pairs: int = 1_048_576
    dim: int = 1024
    steps: int = 6
    compiler: str = "inductor"


SMALL = Scale("cpu", (("tiny", 2, 32, 2),), 64, 16, (64, 128), 256, 16, 1, "eager")


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
    """Packed rows beside padded ones: on a CPU in float32, and both in bfloat16 beside padded rows in float32.

    In float32 the largest difference, of the largest number; in bfloat16 the relative norm of the differences.
    """
    encoder = build_encoder(run.folder / "encoder")
    found = []
    for name in (*PLAIN_KINDS, *MODELS):
        (run.folder / name).mkdir()
        small = made(name) if name in MODELS else small_encoder(name)
        model = build(run.folder / name, small, encoder).to(run.scale.device)
        vocabulary = model[0].model.config.vocab_size
        rows = features([70, 3, 33, 50, 8], vocabulary, run.scale.device)
        exact = embed(model, rows, run.scale.device, half=False)
        padded = embed(model, rows, run.scale.device)
        row: dict[str, object] = {"model": name, "packs": use_packing(model, torch.bfloat16)}
        compared = {"padded, bf16": padded, "packed, bf16": embed(model, rows, run.scale.device)}
        if not run.cuda:
            compared = {"packed, fp32": embed(model, rows, run.scale.device, half=False), **compared}
        for way, result in compared.items():
            for what, one, other in zip(("embeddings", "gradients"), result, exact, strict=True):
                apart = one - other
                share = apart.abs().max() / other.abs().max() if "fp32" in way else apart.norm() / other.norm()
                row[f"{what} {way}"] = float(share)
        found.append(row)
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


@dataclass(frozen=True)
class Contender:
    """Who trains.

    Attributes:
        loss: of a model.
        dropout: of attention weights.
        packed: whether rows are packed.
        compiled: whether the encoder's layers are compiled.
        rows: how many times as many.
    """

    loss: Callable[[SentenceTransformer], nn.Module]
    dropout: float = 0.0
    packed: bool = False
    compiled: bool = False
    rows: int = 1


def contenders(stage: int) -> dict[str, Contender]:
    """Those of a stage, by name."""

    def ours(**options: int) -> Callable[[SentenceTransformer], nn.Module]:
        return lambda model: PiccoloLoss(model, **PLAIN, **options)

    tokens = {"mini_batch_num_tokens": 256 * 128} if stage == 1 else {}
    found = {
        "ours, padded": Contender(ours(**tokens)),
        "ours, packed": Contender(ours(**tokens), packed=True),
        "ours, packed, layers compiled": Contender(ours(**tokens), packed=True, compiled=True),
    }
    if stage == 1:
        cached = Contender(lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=256))
        return {"ST, cached": cached} | found
    stock = Contender(MultipleNegativesRankingLoss)
    found["ours, packed, layers compiled, three times the rows"] = Contender(ours(), packed=True, compiled=True, rows=3)
    return {"ST, attention dropout 0.1": replace(stock, dropout=0.1), "ST": stock} | found


def training(run: Run, shape: Shape, stage: int) -> list[dict[str, object]]:
    """Steps of AdamW under autocast to bfloat16: stage 1 with caching at 128/128, stage 2 at 64/512 and 7 negatives."""
    name, layers, width, rows = shape
    found: list[dict[str, object]] = []
    for contender, settings in contenders(stage).items():
        sizes = (settings.rows * rows, 64, 512, 7) if stage == 2 else (run.scale.batch, 128, 128, 0)
        batches = [columns(*sizes, run.scale.device, seed) for seed in range(2)]  # two, so that shapes change
        lengths = [int(n) for batch in batches for column in batch for n in column["attention_mask"].sum(dim=1)]
        flops = 3 * layers * sum(24 * width**2 * n + 4 * width * n**2 for n in lengths) / 2
        step = Step(run, shape, settings, batches)
        counted = CountedTokens(step.model)
        step()
        step()
        computed = counted.tokens
        counted.remove()
        seconds, memory = run.peak(step)
        found.append(
            {
                "shape": name,
                "stage": stage,
                "contender": contender,
                "packs": step.packs,
                "samples_per_s": sizes[0] / seconds,
                # Caching embeds every row twice.
                "computed_over_real": computed / sum(lengths) / (2 if stage == 1 else 1),
                "mfu": flops / seconds / 1e12 / run.found["ceilings"]["bf16_tflops"],
                "gib": memory,
                "syncs": synchronisations(step) if run.cuda else None,
                "first_loss": float(step.losses[0]),
            }
        )
        print(found[-1], flush=True)
        del step
        gc.collect()
    return found


class Step:
    """A step of training of one contender, which takes the batches in turns."""

    def __init__(self, run: Run, shape: Shape, settings: Contender, batches: Sequence[list[Features]]) -> None:
        self.device = run.scale.device
        self.model = bert(run, shape[1], shape[2], settings.dropout)
        self.packs = use_packing(self.model, torch.bfloat16) if settings.packed else False
        if settings.compiled:
            compile_layers(self.model, backend=run.scale.compiler)
        self.loss = settings.loss(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.losses: list[Tensor] = []
        self.batches = itertools.cycle(batches)

    def __call__(self) -> None:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            value = self.loss([dict(column) for column in next(self.batches)], None)
        value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(value.detach())


def profile(run: Run, shape: Shape) -> dict[str, str]:
    """Where the time of a step of stage 2 goes, packed, as it is and with compiled layers."""
    found = {}
    for name, settings in contenders(2).items():
        if not settings.packed or settings.rows > 1:
            continue
        batches = [columns(shape[3], 64, 512, 7, run.scale.device, seed) for seed in range(2)]
        step = Step(run, shape, settings, batches)
        for _ in range(4):
            step()
        run.wait()
        activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * run.cuda
        with torch.profiler.profile(activities=activities) as profiler:
            begun = time.perf_counter()
            step()
            launched = time.perf_counter() - begun
            run.wait()
            whole = time.perf_counter() - begun
        by = "self_cuda_time_total" if run.cuda else "self_cpu_time_total"
        shown = profiler.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=90)
        found[name] = f"launched in {launched * 1000:.0f} ms of {whole * 1000:.0f}\n{shown}"
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
        before, last = 0.0, 1
        for rows in run.scale.loss_rows:
            expected = before * (rows / last) ** 2
            if expected > 100:
                break
            slow = expected > 1
            vectors = [torch.randn(rows, run.scale.dim, device=run.scale.device, requires_grad=True) for _ in range(3)]
            once = replace(run, scale=replace(run.scale, steps=1 if slow else run.scale.steps))
            least = once.seconds(lambda v=vectors: floor(*v), warm=1) if rows >= FLOOR_ANCHORS and not slow else None
            seconds, memory = once.peak(lambda v=vectors: ours(*v), warm=0 if slow else 1)
            before, last = seconds, rows
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
            print(found[-1], flush=True)
    torch.set_float32_matmul_precision("high")
    rows = run.scale.pairs
    pairs = [torch.randn(rows, run.scale.dim, device=run.scale.device, requires_grad=True) for _ in range(2)]
    once = replace(run, scale=replace(run.scale, steps=1))
    seconds, memory = once.peak(lambda: one_direction(*pairs), warm=0)
    over = memory * 2**30 / (2 * pairs[0].nbytes)
    found.append(
        {
            "precision": "high, pairs",
            "rows": rows,
            "seconds": seconds,
            "over_products": None,
            "gib": memory,
            "over_inputs": over,
        }
    )
    torch.set_float32_matmul_precision("highest")
    return found


def one_direction(queries: Tensor, positives: Tensor) -> None:
    """The loss of queries against all positives."""
    none = queries.new_zeros(0, queries.shape[1])
    exclusions = Exclusions(len(queries), torch.arange(0))
    contrastive_loss(
        unit(queries), unit(positives), none, exclusions, temperature=0.05, directions=("query_to_doc",)
    ).loss.backward()


def parts(scale: Scale) -> dict[str, Callable[[Run], object]]:
    """Name -> what it measures, in order of worth."""
    named: dict[str, Callable[[Run], object]] = {"ceilings": ceilings}
    for stage in (2, 1):
        for shape in scale.shapes:
            named[f"{shape[0]}, stage {stage}"] = lambda run, shape=shape, stage=stage: training(run, shape, stage)
        if stage == 2:
            named["profile"] = lambda run: profile(run, scale.shapes[-1])
    return named | {"loss": loss_alone, "equality": equality}


def measure(scale: Scale, output: Path, limit: float, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run the parts of some names, or all, that begin within a limit in seconds; ``gpu.json`` is written after each."""
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    name = torch.cuda.get_device_name() if scale.device == "cuda" else scale.device
    with tempfile.TemporaryDirectory() as folder:
        run = Run(scale, Path(folder))
        report = {"device": name, "versions": environment.versions(), "parts": run.found}
        for part, measured in parts(scale).items():
            if only and part not in (*only, "ceilings"):
                continue
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
    if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
        return "\n\n".join(f"{name}: {value}" for name, value in found.items())
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
    assert list(found["profile"]) == ["ours, packed", "ours, packed, layers compiled"]
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"] == found
    for row in found["equality"]:
        assert row["packs"] and max(row[f"{what} packed, fp32"] for what in ("embeddings", "gradients")) < 1e-5
    for stage in (1, 2):
        own = {row["contender"]: row for row in found[f"tiny, stage {stage}"]}
        assert own["ours, packed"]["computed_over_real"] == pytest.approx(1.0, abs=0.001)
        stock = next(row for name, row in own.items() if name in ("ST", "ST, cached"))
        assert stock["computed_over_real"] > 1.2
        assert own["ours, padded"]["computed_over_real"] <= stock["computed_over_real"]
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
    parser.add_argument("--only", nargs="+", choices=list(parts(Scale())), default=[], help="parts; all without it")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU is to be seen; begin the command with CUDA_VISIBLE_DEVICES=0, since the tests hide them")
    measure(Scale(), given.output, given.seconds, given.only)
