"""Six architectures, whole and with an adapter: equal losses in every way of training, killed, resumed and saved.

``pytest -m slow tests/training/test_architectures.py -s`` prints one table of what was seen.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from piccolo_st import tables
from piccolo_st.batches import HomogeneousBatchSampler
from piccolo_st.losses import PiccoloLoss
from piccolo_st.modeling.adapters import LoraSettings
from piccolo_st.modeling.loading import load_encoder
from piccolo_st.modeling.portable.saving import load_portable, save_portable
from piccolo_st.training.trainer import PiccoloTrainer
from piccolo_st.training.training_arguments import PiccoloTrainingArguments
from tests.helpers.architectures import saved_encoder, small_encoder
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import ZERO1_ENVIRONMENT, make_datasets, weights_hash

STEPS, KILLED, LIMIT = 30, 17, 60
TEXTS = ["短", "今天天气很好，明天下雨" * 9, "长短文字"]  # the second is longer than LIMIT
ARCHITECTURES = {
    "Qwen3": "qwen3",
    "Llama": "llama",
    "Gemma3": "gemma3_text",
    "ModernBERT": "modernbert",
    "XLM-R": "xlm-roberta",
    "BERT": "bert",
}
DECODERS = ("Qwen3", "Llama", "Gemma3")
WAYS: dict[str, dict[str, Any]] = {
    "one process": {"world": 1},
    "caching": {"world": 1, "mini_batch_size": 3},
    "2 ranks": {"world": 2},
    "2 ranks, caching, ZeRO-1": {"world": 2, "mini_batch_size": 1, "zero": True},
}
# The losses of both datasets, all rows at once; hashes after kill -9; largest differences of losses and of vectors.
COLUMNS = ("pairs, triplets", "killed", *list(WAYS)[1:], "merged", "transformers, cut", "left, right")


def base(name: str, folder: Path) -> str:
    """A folder with a random encoder of the architecture."""
    positions = {"max_position_embeddings": 130} if name == "XLM-R" else {}
    return saved_encoder(folder, model=small_encoder(ARCHITECTURES[name], **positions))


def load(name: str, folder: str, rank: int | None) -> SentenceTransformer:
    torch.manual_seed(0)
    pooling = "lasttoken" if name in DECODERS else "mean"
    lora = LoraSettings(rank=rank)
    return load_encoder(folder, pooling=pooling, lora=lora, query_length=40, document_length=LIMIT).to("cpu")


def train(rank: int, world: int, name: str, folder: str, output: str, lora: int | None, way: dict[str, Any]) -> Any:
    """Train on one rank; the hash of the weights and the loss of every step."""
    if way.get("zero"):
        os.environ |= ZERO1_ENVIRONMENT
    model, datasets = load(name, folder, lora), make_datasets()
    kept = way == WAYS["one process"] or "killed" in way
    arguments = PiccoloTrainingArguments(
        output,
        max_steps=STEPS,
        save_strategy="steps" if kept else "no",
        save_steps=KILLED - 1,
        learning_rate=1e-3 if lora is None else 1e-2,
        logging_steps=STEPS,
        per_device_train_batch_size=4 // world,
        multi_dataset_batch_sampler=HomogeneousBatchSampler,
        disable_tqdm=True,
        cpu_threads=1,
    )
    losses = {one: PiccoloLoss(model, 0.05, mini_batch_size=way.get("mini_batch_size")) for one in datasets}
    trainer = PiccoloTrainer(model=model, args=arguments, train_dataset=datasets, loss=losses)
    seen, stock = [], trainer.training_step

    def training_step(*given: Any, **options: Any) -> Any:
        if trainer.state.global_step == way.get("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(float(value := stock(*given, **options)))
        return value

    trainer.training_step = training_step  # type: ignore[method-assign]
    trainer.train()
    if kept:
        save_portable(model, Path(output) / "merged", create_model_card=False)
    return weights_hash(model), seen


def losses_of_all_rows(model: SentenceTransformer) -> dict[str, float]:
    """The loss of each dataset, all its rows in one batch."""
    found = {}
    for name, rows in make_datasets().items():
        features = [model.preprocess(rows[column]) for column in rows.column_names]
        with torch.no_grad():
            found[name] = float(PiccoloLoss(model.eval(), 0.05)(features))
    return found


def by_transformers_alone(name: str, folder: Path, text: str) -> np.ndarray:
    """The vector of a text, written out: of its first tokens, and of the end behind them where one belongs."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = [*ids[: LIMIT - 1], tokenizer.eos_token_id] if name in DECODERS else ids[:LIMIT]
    with torch.no_grad():
        states = encoder(torch.tensor([ids])).last_hidden_state[0]
    return (states[-1] if name in DECODERS else states.mean(dim=0)).numpy()


@pytest.fixture(scope="module")
def rows() -> Iterator[list[list[object]]]:
    found: list[list[object]] = []
    yield found
    print("\n" + tables.table(["trained", *COLUMNS], found))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lora", [None, 4], ids=["whole", "adapter"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_in_every_way(name: str, lora: int | None, tmp_path: Path, rows: list[list[object]]) -> None:
    pytest.importorskip("deepspeed")
    if lora is not None:
        pytest.importorskip("peft")
    torch.manual_seed(0)
    folder = base(name, tmp_path / "base")

    def run(way: dict[str, Any], output: str) -> tuple[str, np.ndarray]:
        ranks = run_ranks(train, way["world"], name, folder, str(tmp_path / output), lora, way, timeout=200)
        return ranks[0][0], np.mean([losses for _, losses in ranks], axis=0)

    found = {place: run(way, place) for place, way in WAYS.items()}
    expected = found["one process"][1]
    apart = {place: float(np.abs(losses - expected).max()) for place, (_, losses) in found.items()}
    assert len(expected) == STEPS and max(apart.values()) < 1e-3, apart

    with pytest.raises(RuntimeError, match="died without a result"):
        run({"world": 1, "killed": KILLED}, "killed")
    saved = tmp_path / "killed" / f"checkpoint-{KILLED - 1}"
    assert (saved / "adapter_config.json").exists() == (lora is not None)
    again = run({"world": 1, "killed": None}, "killed")
    assert again[0] == found["one process"][0] and len(again[1]) == STEPS - KILLED + 1

    left = tmp_path / "one process"
    untrained, merged = load(name, folder, lora), load_portable(left / "merged", device="cpu")
    before, after = losses_of_all_rows(untrained), losses_of_all_rows(merged)
    assert all(after[dataset] < before[dataset] for dataset in before), (before, after)
    vectors = merged.encode_document(TEXTS)
    stock = SentenceTransformer(str(left / "merged"), device="cpu")  # which cuts at what the encoder takes
    assert np.abs(stock.encode_document(TEXTS[::2]) - vectors[::2]).max() < 1e-5
    checkpoint = load_portable(left / f"checkpoint-{STEPS}", device="cpu")
    merging = float(np.abs(checkpoint.encode_document(TEXTS) - vectors).max())
    alone = [by_transformers_alone(name, left / "merged", "结果：" + text) for text in TEXTS]
    cut = float(np.abs(np.stack(alone) - vectors).max())
    merged.tokenizer.padding_side = "left"
    sides = float(np.abs(merged.encode_document(TEXTS) - vectors).max())
    fall = " ".join(f"{before[dataset]:.2f} to {after[dataset]:.2f}" for dataset in before)
    seen = [*(apart[way] for way in list(WAYS)[1:]), merging, cut, sides]
    rows.append([f"{name}, {'adapter' if lora else 'whole'}", fall, "equal", *(f"{value:.0e}" for value in seen)])
    assert merging < 1e-5 and cut < 1e-5
    assert (sides < 1e-5) == (name != "BERT")  # whose positions are counted from the padding, in transformers too
