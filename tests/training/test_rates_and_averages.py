"""A rate for each layer, and the trained weights averaged with those that the run started from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from piccolo_st.data import load_mixture
from piccolo_st.evaluation import held_out_evaluators

DIGITS = "一二三四五六七八九十"


@pytest.fixture
def finetune(tmp_path: Path, encoder_dir: Path, command: Callable[..., tuple[int, str, str]]) -> Callable[..., Path]:
    """Four steps on pairs of which ten are held out: the run's folder."""
    rows = [{"query": f"数{a}{b}", "positive": f"{a}{b}的结果"} for a in DIGITS for b in DIGITS]
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def run(name: str, **train: Any) -> Path:
        own = {"source": "faq.jsonl", "task": "retrieval", "holdout": {"queries": 10, "min_corpus": 20}}
        content = {
            "model": {"name_or_path": str(encoder_dir)},
            "data": {"mixture": {"root": str(tmp_path), "datasets": {"faq": own}}, "batch_size": 16},
            "train": {"output_dir": str(tmp_path / name), "max_steps": 4, "learning_rate": 1e-2, "save_steps": 2,
                      "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 4, **train},
        }  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        code, out, error = command("finetune", path)
        assert code == 0 and "held-out search" in out, error
        return tmp_path / name

    return run


def test_each_part_of_the_model_is_trained_at_its_own_rate(finetune: Callable[..., Path], encoder_dir: Path) -> None:
    rates = {"[.]embeddings[.]": 0.0, "[.]layer[.]0[.]": 1e-4}
    run = finetune("layers", learning_rate_mapping=rates, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0)
    start = SentenceTransformer(str(encoder_dir), device="cpu")[0].auto_model.state_dict()
    trained = SentenceTransformer(str(run / "model"), device="cpu")[0].auto_model.state_dict()
    moved = {name: float((weight - start[name]).norm()) for name, weight in trained.items() if "pooler" not in name}
    assert all(far == 0 for name, far in moved.items() if name.startswith("embeddings."))
    [low, high] = (sum(far for name, far in moved.items() if f".layer.{layer}." in name) for layer in (0, 1))
    assert 0 < 20 * low < high


def test_the_model_is_between_start_and_end_and_was_searched_with(
    finetune: Callable[..., Path], encoder_dir: Path, tmp_path: Path
) -> None:
    ends = {share: finetune(f"run-{share}", average_with_start=share) for share in (0.0, 0.75)}
    start = SentenceTransformer(str(encoder_dir), device="cpu")[0].auto_model.state_dict()
    trained, averaged = (
        SentenceTransformer(str(ends[share] / "model"), device="cpu")[0].auto_model.state_dict() for share in ends
    )
    moved = 0
    for name, weight in averaged.items():
        torch.testing.assert_close(weight, 0.75 * start[name] + 0.25 * trained[name], rtol=1e-5, atol=1e-6)
        moved += not torch.equal(weight, trained[name])
    assert moved > len(averaged) / 2

    run = ends[0.75]
    log = json.loads((run / "run.json").read_text(encoding="utf-8"))["log"]
    searched = [entry["eval_faq_ndcg@10"] for entry in log if "eval_faq_ndcg@10" in entry]
    assert len(searched) == 3, "at the start, at the end, and of the average"
    resolved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    model = SentenceTransformer(str(run / "model"), device="cpu")
    [search] = held_out_evaluators(load_mixture(resolved["data"]["mixture"]), batch_size=128, write_csv=False)
    assert search(model)["faq_ndcg@10"] == pytest.approx(searched[-1], abs=1e-6) != searched[-2]


def test_a_run_that_goes_on_averages_with_its_first_start(
    finetune: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune("whole", average_with_start=0.5)
    monkeypatch.setenv("PICCOLO_ST_MAX_SECONDS", "1e-9")
    cut = finetune("cut", average_with_start=0.5)
    monkeypatch.delenv("PICCOLO_ST_MAX_SECONDS")
    finetune("cut", average_with_start=0.5)
    hashes = [json.loads((run / "run.json").read_text(encoding="utf-8"))["content_hash"] for run in (whole, cut)]
    assert hashes[0] == hashes[1]
