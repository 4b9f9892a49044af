"""Training steps beside FlagEmbedding and uniem, which live in environments of their own, on the same rows.

    python -m venv fe && fe/bin/pip install FlagEmbedding "transformers<5"
    python -m venv un && un/bin/pip install uniem
    PICCOLO_FLAGEMBEDDING=fe/bin/python PICCOLO_UNIEM=un/bin/python PICCOLO_DATA=FOLDER OMP_NUM_THREADS=2 \
        pytest -m benchmark tests/benchmarks/test_peer_throughput.py -s

Each peer trains through its own command or class, batch 64 with one negative a row, once for a few steps and once for
more: the difference is free of what comes before the first step. uniem has one length for all texts. Seen to run with
FlagEmbedding 1.4.2 and uniem 0.3.3.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from piccolo_st.modeling.tiny_bert import EncoderSettings, build_encoder
from piccolo_st.tables import table
from tests.benchmarks.test_throughput import HIDDEN, LAYERS, SETS, Contender, read

BATCH, SHORT, LONG = 64, 2, 8
LENGTHS = SETS["simclue"][0]

_UNIEM = """
import json, sys, time
from datasets import Dataset
from uniem.finetuner import FineTuner
rows = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
rows = [{"text": row["query"], "text_pos": row["pos"][0], "text_neg": row["neg"][0]} for row in rows]
tuner = FineTuner.from_pretrained(sys.argv[1], dataset=Dataset.from_list(rows))
start = time.perf_counter()
tuner.run(epochs=1, batch_size=int(sys.argv[3]), lr=1e-4, max_length=int(sys.argv[4]), output_dir=sys.argv[5])
print("SECONDS", time.perf_counter() - start)
"""


def write(rows: Dataset, path: Path) -> Path:
    lines = ({"query": row["query"], "pos": [row["positive"]], "neg": [row["negative"]]} for row in rows)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def seconds(command: list[str], pattern: str) -> float:
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(pattern, done.stdout + done.stderr)
    assert done.returncode == 0 and found, done.stderr[-3000:]
    return float(found[1])


def flag_embedding(python: str, encoder: Path, rows: Path, steps: int, output: Path) -> float:
    settings = {
        "model_name_or_path": encoder, "train_data": rows, "cache_path": output / "cache", "output_dir": output,
        "train_group_size": 2, "query_max_len": LENGTHS[0], "passage_max_len": LENGTHS[1], "temperature": 0.05,
        "sentence_pooling_method": "mean", "per_device_train_batch_size": BATCH, "max_steps": steps,
        "learning_rate": 1e-4, "logging_steps": 1000, "save_strategy": "no", "report_to": "none",
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    module = "FlagEmbedding.finetune.embedder.encoder_only.base"
    return seconds([python, "-m", module, "--use_cpu", *options], r"'train_runtime': '?([\d.]+)")


def uniem(python: str, encoder: Path, rows: Path, steps: int, output: Path) -> float:
    found = write(read("simclue").select(range(steps * BATCH)), output.with_suffix(".jsonl"))
    return seconds([python, "-c", _UNIEM, *map(str, (encoder, found, BATCH, LENGTHS[1], output))], r"SECONDS ([\d.]+)")


PEERS: dict[str, tuple[str, Callable[..., float]]] = {
    "FlagEmbedding": ("PICCOLO_FLAGEMBEDDING", flag_embedding),
    "uniem": ("PICCOLO_UNIEM", uniem),
}


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_steps_beside_peers(tmp_path: Path) -> None:
    here = {name: os.environ[variable] for name, (variable, _) in PEERS.items() if variable in os.environ}
    if not here:
        pytest.skip(
            f"name the Python of a peer's environment in {' or '.join(variable for variable, _ in PEERS.values())}"
        )
    data = read("simclue")
    texts = [text for column in data.to_dict().values() for text in column]
    encoder = build_encoder(EncoderSettings(layers=LAYERS, hidden_size=HIDDEN), texts, tmp_path / "encoder")
    rows = write(data, tmp_path / "rows.jsonl")
    speeds: dict[str, float] = {}
    for name, python in here.items():
        run = PEERS[name][1]
        times = [run(python, encoder, rows, steps, tmp_path / f"{name}-{steps}") for steps in (SHORT, LONG)]
        speeds[name] = BATCH * (LONG - SHORT) / (times[1] - times[0])
    for contender in (Contender("sentence-transformers", ours=False), Contender("piccolo_st", ours=True)):
        contender.train(data, encoder, LENGTHS, BATCH, LONG, tmp_path, log=1000)
        speeds[contender.name] = BATCH / statistics.median(contender.seconds)
    header = ["trainer", "samples/s", "piccolo_st is faster by"]
    print(f"\nSimCLUE, batch {BATCH}, {LAYERS} layers x {HIDDEN}, {torch.get_num_threads()} threads")
    print(table(header, [[name, speed, speeds["piccolo_st"] / speed] for name, speed in speeds.items()]))
