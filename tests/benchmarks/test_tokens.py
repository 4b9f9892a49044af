"""Tokens computed over tokens that are there, of sentence-transformers' columns and of ours.

    PICCOLO_DATA=FOLDER pytest -m benchmark tests/benchmarks/test_tokens.py -s

FOLDER as in ``test_throughput.py``: batches of 32 queries of up to 64 tokens with their passages of up to 512, and the
passages of the next rows as 1 and as 7 negatives. Padded rows are cut as on a GPU; on a CPU chunks are smaller.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from piccolo_st.losses import PiccoloLoss
from piccolo_st.modeling import EncoderSettings, build_encoder, use_packing
from piccolo_st.modeling.batching import sort_rows
from piccolo_st.modeling.cutting import chunk_ranges
from piccolo_st.tables import table
from tests.benchmarks.test_gpu import CountedTokens
from tests.benchmarks.test_throughput import HIDDEN, PLAIN, SETS, load, read

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(600)]

ROWS, BATCHES, LENGTHS = 32, 4, (64, 512)


def computed(loss: Any, batches: list[list[dict[str, Any]]]) -> int:
    counted = CountedTokens(loss.model)
    for columns in batches:
        loss([dict(one) for one in columns], None)
    counted.remove()
    return counted.tokens


def test_no_more_tokens_than_there_are(tmp_path: Path) -> None:
    settings = EncoderSettings(hidden_size=HIDDEN, layers=1, intermediate_size=HIDDEN)
    rows = []
    for name in SETS:
        data = read(name)[: ROWS * BATCHES + 8]
        encoder = build_encoder(settings, data["query"] + data["positive"], tmp_path / name)
        for negatives in (1, 7):
            stock, ours = load(encoder, LENGTHS), load(encoder, LENGTHS)
            assert use_packing(ours)
            batches = []
            for start in range(0, ROWS * BATCHES, ROWS):
                columns = [data["query"][start : start + ROWS]]
                columns += [data["positive"][start + i : start + i + ROWS] for i in range(1 + negatives)]
                tasks = ["query"] + ["document"] * (1 + negatives)
                batches.append([stock.preprocess(texts, task=t) for texts, t in zip(columns, tasks, strict=True)])
            real = sum(int(one["attention_mask"].sum()) for columns in batches for one in columns)
            padded = 0
            for columns in batches:
                for group in sort_rows(columns, ours).groups:
                    assert group.lengths is not None
                    cuts = chunk_ranges(group.lengths, "auto", "cuda", False, group.padded)
                    padded += sum((stop - start) * group.lengths[start] for start, stop in cuts)
            packed = computed(PiccoloLoss(ours, **PLAIN), batches)
            theirs = computed(MultipleNegativesRankingLoss(stock), batches)
            assert padded <= theirs and packed <= 1.02 * real
            rows.append([name, negatives, theirs / real, padded / real, packed / real])
    print("\n" + table(["rows", "negatives", "stock", "padded", "packed"], rows))
