"""Encoding for evaluation: this package's encoder beside mteb's own wrapper with stock settings, on the same texts.

    OMP_NUM_THREADS=2 pytest -m benchmark tests/benchmarks/test_evaluation_benchmark.py -s
    PICCOLO_DATA=FOLDER OMP_NUM_THREADS=2 pytest -m benchmark tests/benchmarks/test_evaluation_benchmark.py -s

Both take the same data loader, as mteb's tasks hand it to a model, and return the same vectors. The rounds alternate;
times are medians. FOLDER has ``retrieval/cmrc.train.jsonl`` (query, positive) and
``classification/shopping_category.train.jsonl`` (text); without it, random characters with lengths like those of short
pairs, questions, passages and reviews are encoded. The fraction of the peak counts the multiply-adds of real tokens,
padding left out, against the fastest float32 matrix product seen between the rounds: where stock is near it, nothing
is left to gain.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
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

from piccolo_st.evaluation.mteb_model import BenchmarkEncoder
from piccolo_st.modeling.fingerprint import Identity
from piccolo_st.tables import table
from tests.benchmarks.test_throughput import peak
from tests.conftest import CHARACTERS, build_encoder

ROUNDS = 5


def texts(count: int, middle: float, spread: float, longest: int, seed: int = 0) -> list[str]:
    """Texts whose lengths are log-normal around ``middle`` characters."""
    rng = random.Random(seed)
    alphabet = [character for character in CHARACTERS if "一" <= character <= "鿿"]
    lengths = [min(longest, max(3, round(middle * 2 ** rng.gauss(0, spread)))) for _ in range(count)]
    return ["".join(rng.choices(alphabet, k=length)) for length in lengths]


def workloads() -> dict[str, list[str]]:
    if folder := os.environ.get("PICCOLO_DATA"):

        def column(file: str, name: str, count: int) -> list[str]:
            with (Path(folder) / file).open(encoding="utf-8") as lines:
                return list(dict.fromkeys(json.loads(line)[name] for line in lines))[:count]

        questions = column("retrieval/cmrc.train.jsonl", "query", 400)
        passages = column("retrieval/cmrc.train.jsonl", "positive", 160)
        reviews = column("classification/shopping_category.train.jsonl", "text", 16000)[::32]
        return {
            "CMRC: questions": questions,
            "CMRC: passages": passages,
            "CMRC: questions and passages": questions + passages,
            "shopping: reviews": reviews,
        }
    reviews = texts(500, middle=30, spread=1.0, longest=500)
    return {
        "STS pairs": texts(1600, middle=14, spread=0.6, longest=60),
        "questions": texts(1200, middle=12, spread=0.8, longest=60),
        "passages": texts(300, middle=110, spread=1.0, longest=500),
        "reviews": reviews,
        "reviews, a third repeated": reviews + reviews[:250],
    }


def operations(model: SentenceTransformer, content: Sequence[str]) -> float:
    """Float operations of a forward pass over the distinct texts, padding left out."""
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embeddings" not in name)
    config = model[0].auto_model.config
    lengths = [min(len(text) + 2, model.max_seq_length) for text in dict.fromkeys(content)]  # a token a character
    attention = 4 * config.num_hidden_layers * config.hidden_size
    return float(sum(2 * weights * length + attention * length**2 for length in lengths))


def build(path: Path, layers: int, hidden: int) -> SentenceTransformer:
    build_encoder(path, hidden_size=hidden, layers=layers, dropout=0.0)
    transformer = Transformer(str(path))
    return SentenceTransformer(modules=[transformer, Pooling(hidden, "mean")], device="cpu")


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("layers", "hidden"), [(4, 256), (6, 768)])
def test_encoding_speed(tmp_path: Path, layers: int, hidden: int) -> None:
    stock, packed = build(tmp_path / "encoder", layers, hidden), build(tmp_path / "encoder", layers, hidden)
    encoders: dict[str, Callable[..., np.ndarray]] = {
        "mteb": SentenceTransformerEncoderWrapper(stock).encode,
        "piccolo_st": BenchmarkEncoder(packed, Identity("a/b", "0" * 40, "0" * 40)).encode,  # changes its model
    }
    metadata = mteb.get_task("STSB").metadata
    rows = []
    for name, content in workloads().items():
        loader = DataLoader(Dataset.from_dict({"text": content}), batch_size=32)
        times: dict[str, list[float]] = {encoder: [] for encoder in encoders}
        vectors, fastest = {}, 0.0
        for _ in range(ROUNDS):
            for encoder, encode in encoders.items():
                fastest = max(fastest, peak())
                start = time.perf_counter()
                vectors[encoder] = encode(
                    loader, task_metadata=metadata, hf_split="test", hf_subset="default", show_progress_bar=False
                )
                times[encoder].append(time.perf_counter() - start)
        assert np.allclose(*vectors.values(), atol=1e-5)
        seconds = [statistics.median(times[encoder]) for encoder in encoders]
        shares = [100 * operations(stock, content) / second / fastest for second in seconds]
        speeds = [len(content) / second for second in seconds]
        rows.append(
            [name, len(content), sum(map(len, content)) // len(content), *speeds, *shares, speeds[1] / speeds[0]]
        )
    print(f"\n{layers} layers x {hidden}, {torch.get_num_threads()} CPU threads, medians of {ROUNDS} rounds")
    header = ["texts", "count", "mean length", "mteb texts/s", "piccolo_st texts/s", "mteb, % of peak", "piccolo_st, %"]
    print(table([*header, "ratio"], rows))
