"""Encoding for evaluation: this package's encoder beside mteb's own wrapper with stock settings, on the same texts.

    OMP_NUM_THREADS=2 pytest -m benchmark tests/benchmarks/test_evaluation_benchmark.py -s

Both take the same data loader, as mteb's tasks hand it to a model, and return the same vectors. The rounds alternate;
times are medians. Lengths are those of short pairs (STS), of questions and passages (retrieval), and of reviews with
repetitions.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mteb")

import mteb
from datasets import Dataset
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.utils.data import DataLoader

from piccolo_st.evaluation.encoder import BenchmarkEncoder
from piccolo_st.evaluation.identity import Identity
from piccolo_st.report import table
from tests.conftest import CHARACTERS, build_encoder

ROUNDS = 3


def texts(count: int, middle: float, spread: float, longest: int, seed: int = 0) -> list[str]:
    """Texts whose lengths are log-normal around ``middle`` characters."""
    rng = random.Random(seed)
    alphabet = [character for character in CHARACTERS if "一" <= character <= "鿿"]
    lengths = [min(longest, max(3, round(middle * 2 ** rng.gauss(0, spread)))) for _ in range(count)]
    return ["".join(rng.choices(alphabet, k=length)) for length in lengths]


WORKLOADS: dict[str, list[str]] = {
    "STS pairs": texts(1600, middle=14, spread=0.6, longest=60),
    "questions": texts(1200, middle=12, spread=0.8, longest=60),
    "passages": texts(300, middle=110, spread=1.0, longest=500),
    "reviews, a third repeated": (reviews := texts(500, middle=30, spread=1.0, longest=300)) + reviews[:250],
}


def build(path: Path, layers: int, hidden: int) -> SentenceTransformer:
    build_encoder(path, hidden_size=hidden, layers=layers, dropout=0.0)
    transformer = Transformer(str(path))
    return SentenceTransformer(modules=[transformer, Pooling(hidden, "mean")], device="cpu")


@pytest.mark.benchmark
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("layers", "hidden"), [(4, 256), (6, 768)])
def test_encoding_speed(tmp_path: Path, layers: int, hidden: int) -> None:
    model = build(tmp_path / "encoder", layers, hidden)
    encoders: dict[str, Callable[..., np.ndarray]] = {
        "mteb": SentenceTransformerEncoderWrapper(model).encode,
        "piccolo_st": BenchmarkEncoder(model, Identity("a/b", "0" * 40, "0" * 40)).encode,
    }
    metadata = mteb.get_task("STSB").metadata
    rows = []
    for name, content in WORKLOADS.items():
        loader = DataLoader(Dataset.from_dict({"text": content}), batch_size=32)
        times: dict[str, list[float]] = {encoder: [] for encoder in encoders}
        vectors = {}
        for _ in range(ROUNDS):
            for encoder, encode in encoders.items():
                start = time.perf_counter()
                vectors[encoder] = encode(
                    loader, task_metadata=metadata, hf_split="test", hf_subset="default", show_progress_bar=False
                )
                times[encoder].append(time.perf_counter() - start)
        assert np.allclose(*vectors.values(), atol=1e-5)
        stock, ours = (len(content) / statistics.median(times[encoder]) for encoder in encoders)
        rows.append([name, len(content), sum(map(len, content)) // len(content), stock, ours, ours / stock])
    threads = torch.get_num_threads()
    print(f"\n{layers} layers x {hidden}, {threads} CPU threads, medians of {ROUNDS} rounds")
    print(table(["texts", "count", "mean length", "mteb texts/s", "piccolo_st texts/s", "ratio"], rows))
