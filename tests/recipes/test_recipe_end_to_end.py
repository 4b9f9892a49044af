"""Both stages and Piccolo2's stage 2 in 2 processes under ZeRO-1, from configuration to a released model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from tests.helpers.hub_clients import TOKEN
from tests.helpers.hub_server import HubServer, User
from tests.recipes.test_recipe_configs import ROOT, overrides, root

__all__ = ["root"]  # the fixture

REPO = "sensenova/piccolo-mini-zh"
SHORT = {
    "train.max_steps": 3, "train.save_strategy": "no", "train.eval_strategy": "no", "train.eval_on_start": "false",
    "train.logging_steps": 1, "data.batch_size": 4,
}  # fmt: skip


def run(*command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_stages_and_the_second_version_from_configuration_to_release(root: Path, encoder_dir: Path) -> None:
    pytest.importorskip("deepspeed")
    start = encoder_dir
    (root / "recipes").symlink_to(ROOT / "recipes")  # a card may name no path of this machine, so all are relative
    with HubServer({TOKEN: User("alice", orgs=("sensenova",))}) as hub:
        environment = {**hub.environment(root / "home", TOKEN), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        for recipe, name in (
            ("pretrain", "zh-mini-pretrain"),
            ("finetune", "zh-mini"),
            ("finetune", "finetune-large-v2"),
        ):
            settings = [part for key, value in SHORT.items() for part in (f"--{key}", str(value))]
            output = Path(name)
            shown = run(
                "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu_zero1.yaml",
                f"recipes/{recipe}.py", f"recipes/configs/{name}.yaml", *overrides(name, root, start), *settings,
                "--train.output_dir", str(output),
                folder=root, environment=environment,
            )  # fmt: skip
            assert "DeepSpeed, 2 process(es)" in shown
            assert "steps      3 of 8 samples (4 x 2 processes x 1 accumulated)" in shown
            start = output / "model"
        assert SentenceTransformer(str(root / start), device="cpu").get_embedding_dimension() == 1792
        card = ["--fill-card", "--license", "mit", "--language", "zh", "--run-dir", str(output)]
        shown = run("recipes/release.py", str(start), REPO, *card, folder=root, environment=environment)
        assert "Dry run: nothing was sent" in shown and not hub.repos
        assert re.search(r"ok   portable \(not for [^:]*transformers[^:]*: the model has a Dense module", shown), shown
        run("recipes/release.py", str(start), REPO, "--push", folder=root, environment=environment)
        code = (
            f"from sentence_transformers import SentenceTransformer as S; print(S({REPO!r}).encode_query(['天']).shape)"
        )
        assert "(1, 1792)" in run("-c", code, folder=root, environment=environment)
