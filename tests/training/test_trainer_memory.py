"""The memory recipe of the card: bf16 or fp16, non-reentrant checkpointing, caching and ZeRO-1 together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.resume_cases import ZERO1, Case, make_trainer, train_with

RECIPE = {"activation_checkpointing": True, "max_steps": 3}
CACHED = {"mini_batch_size": 2}


def _losses(rank: int, world: int, encoder: str, output: str, case: Case, options: dict[str, Any]) -> list[float]:
    trainer = make_trainer(Path(encoder), Path(output), case, logging_steps=1, **options)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_bf16_with_caching_and_checkpointing_runs_under_zero1_and_learns_as_ddp_does(
    encoder_dir_no_dropout: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    found = {}
    for engine in ("ddp", "zero1"):
        case = Case(2, engine, batch_size=4, loss=CACHED)
        options = {**RECIPE, "bf16": True}
        found[engine] = run_ranks(_losses, 2, str(encoder_dir_no_dropout), str(tmp_path / engine), case, options)[0]
        assert (tmp_path / engine / "checkpoint-3" / "manifest.json").exists()
    assert found["zero1"] == pytest.approx(found["ddp"], rel=0.05)  # bf16 weights under DeepSpeed, autocast under DDP
    assert len(found["ddp"]) == 3


@pytest.mark.slow
def test_the_recipe_goes_on_bit_for_bit_under_zero1(encoder_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    case = Case(2, "zero1", batch_size=4, loss=CACHED, options={"bf16": True, "activation_checkpointing": True})
    run = lambda name, **options: run_ranks(train_with, 2, str(encoder_dir), str(tmp_path / name), case, options)  # noqa: E731
    whole = run("whole")
    run("parts", stop=9)
    assert [rank[0] for rank in run("parts")] == [rank[0] for rank in whole]


def _fp16_engine(rank: int, world: int, encoder: str, output: str) -> dict[str, Any]:
    """The engine configuration that DeepSpeed makes of the recipe with fp16; the engine itself needs a GPU."""
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig

    trainer = make_trainer(Path(encoder), Path(output), Case(2, "zero1", batch_size=4, accumulation=3))
    plugin = trainer.accelerator.state.deepspeed_plugin
    trainer.args.fp16 = True  # transformers refuses fp16 on a CPU, so it is switched on behind its back
    plugin.hf_ds_config = type(plugin.hf_ds_config)(json.loads(ZERO1))
    plugin.hf_ds_config.trainer_config_process(trainer.args)
    plugin.hf_ds_config.trainer_config_finalize(trainer.args, trainer.model, 10)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)  # so that it knows its world
    config = DeepSpeedConfig(plugin.hf_ds_config.config)
    return {
        "stage": config.zero_config.stage,
        "fp16": config.float16_config.enabled,
        "bf16": config.bfloat16_config.enabled,
        "dynamic": config.float16_config.loss_scale == 0,
        "scale": config.float16_config.initial_scale_power,
        "batch": (config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps, config.train_batch_size),
        "clipping": config.gradient_clipping,
    }


@pytest.mark.slow
def test_the_fp16_recipe_makes_the_engine_configuration_it_should(encoder_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    expected = {
        "stage": 1,
        "fp16": True,
        "bf16": False,
        "dynamic": True,
        "scale": 16,
        "batch": (4, 3, 24),
        "clipping": 1.0,
    }
    assert run_ranks(_fp16_engine, 2, str(encoder_dir), str(tmp_path)) == [expected, expected]
