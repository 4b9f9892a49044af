"""A run learns from teachers' embeddings alone: a batch's texts become as similar as its teachers find them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertModel

from piccolo_st.config import parse_run
from piccolo_st.training import FinetuneConfig, TrainingRun
from piccolo_st.training.assembly import load
from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import ZERO1_ENVIRONMENT

DIGITS = "一二三四五六七八九十"
TEXTS = [a + b + c for a in DIGITS for b in DIGITS for c in "天月年"]


def write_run(model: Any, encoder: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A teacher, made of ``model``, and the configuration of a run that learns from it; its rows and the teacher lie in
    ``folder``.
    """
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    model.save_pretrained(str(folder / "teacher"))
    rows = [{"query": query, "positive": text} for query, text in zip(TEXTS, TEXTS[100:] + TEXTS[:100], strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    teachers = [{"name_or_path": str(folder / "teacher"), "instructions": "none"}]
    return model, {
        "model": {"name_or_path": str(encoder), "instructions": "none"},
        "data": {"mixture": {"root": str(folder), "datasets": {"faq": {"source": "rows.jsonl", "task": "retrieval"}}}},
        "loss": {"distillation": {"teachers": teachers, "similarity_weight": 100.0, "contrastive_weight": 0}},
        "train": {"output_dir": str(folder / "run"), "max_steps": 12, "learning_rate": 3e-3, "save_strategy": "no"},
    }


def test_a_run_comes_nearer_to_its_teachers(
    make_model: Callable[..., Any], encoder_dir_no_dropout: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    teacher, content = write_run(make_model(), encoder_dir_no_dropout, tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    code, out, err = command("finetune", tmp_path / "run.yaml")
    assert code == 0, (out, err)

    def apart(model: Any) -> float:
        of_model, of_teacher = (one.encode(TEXTS, normalize_embeddings=True) for one in (model, teacher))
        return float(np.square(of_model @ of_model.T - of_teacher @ of_teacher.T).mean())

    start = SentenceTransformer(str(encoder_dir_no_dropout), device="cpu")
    trained = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    assert apart(trained) < 0.5 * apart(start)
    assert "zhang2024jasperstella" in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")


def test_a_checkpoint_without_a_pooler_is_one_model_under_every_seed(
    encoder_dir_no_dropout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As teacher, guide and miner: its texts are embedded once."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    bare = str(tmp_path / "bare")
    BertModel.from_pretrained(encoder_dir_no_dropout, add_pooling_layer=False).save_pretrained(bare)
    AutoTokenizer.from_pretrained(encoder_dir_no_dropout).save_pretrained(bare)
    rows = [{"query": query, "positive": text} for query, text in zip(TEXTS[:20], TEXTS[20:40], strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    faq = {"source": str(tmp_path / "rows.jsonl"), "task": "retrieval"}
    content: dict[str, Any] = {
        "model": {"name_or_path": str(encoder_dir_no_dropout)},
        "data": {"mixture": {"datasets": {"faq": faq}}, "mining_model": bare},
        "loss": {"guide": bare, "distillation": {"teachers": [{"name_or_path": bare}], "similarity_weight": 1.0}},
    }
    found = []
    for seed in (1, 2):
        content["train"] = {"output_dir": str(tmp_path / f"{seed}"), "seed": seed}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(content), "utf-8")
        load(parse_run([str(tmp_path / "run.yaml")], FinetuneConfig, tmp_path / "run.yaml"))
        found.append(sorted(path.relative_to(tmp_path) for path in tmp_path.glob("cache/**/*.npy")))
    assert found[0] and found[0] == found[1]


def _train(rank: int, world: int, path: str) -> list[float]:
    if world > 1:
        os.environ |= ZERO1_ENVIRONMENT
    run = TrainingRun(parse_run([path], FinetuneConfig, Path(path)))
    run.train()
    return [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_teachers_on_two_ranks_under_zero_1_teach_what_they_teach_one_process(
    make_model: Callable[..., Any], encoder_dir_no_dropout: Path, tmp_path: Path
) -> None:
    """With all terms of Jasper, and gradient caching on the ranks alone."""
    pytest.importorskip("deepspeed")
    _, content = write_run(make_model(), encoder_dir_no_dropout, tmp_path)
    content["loss"]["distillation"] |= {"cosine_weight": 10.0, "ranking_weight": 20.0, "contrastive_weight": 1.0}
    content["train"] |= {"logging_steps": 1, "max_steps": 6}
    losses, vectors = {}, {}
    for world in (1, 2):
        content["data"]["batch_size"] = 16 // world
        content["train"]["output_dir"] = str(tmp_path / f"run-{world}")
        if world == 2:
            content["loss"]["mini_batch_size"] = 3
        path = tmp_path / f"run-{world}.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        losses[world], *others = run_ranks(_train, world, str(path), timeout=280)  # the first compiles an op
        assert all(one == losses[world] for one in others) and len(losses[world]) == 6
        vectors[world] = SentenceTransformer(str(tmp_path / f"run-{world}" / "model"), device="cpu").encode(TEXTS)
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
    assert np.abs(vectors[1] - vectors[2]).max() < 1e-4
