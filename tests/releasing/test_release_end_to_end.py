"""The way of a model in four commands: fine-tune, evaluate, release, load by name in a fresh process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub_clients import TOKEN
from tests.helpers.hub_server import HubServer, User

RECIPES = Path(__file__).parent.parent.parent / "recipes"
REPO = "sensenova/piccolo-quickstart-zh"
# The quickstart, cut short: a smaller encoder, a few steps, no mining.
SHORT = [
    *("--train.output_dir", "run", "--train.max_steps", "3", "--train.save_strategy", "no"),
    *("--train.eval_strategy", "no", "--train.eval_on_start", "false"),
    *("--data.mining_model", "null", "--data.batch_size", "16"),
    *("--model.build.hidden_size", "32", "--model.build.intermediate_size", "64"),
    *("--model.build.layers", "1", "--model.build.vocab_size", "4000"),
]
ENCODE = """
import sys, numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
queries, documents = ["什么时候下雪", "清晨的阳光"], ["冬天冷的时候会下雪。", "晨晖"]
parts = [model.encode_query(queries), model.encode_document(documents), model.encode(["查询：" + q for q in queries])]
np.save(sys.argv[2], np.concatenate(parts))
"""


@pytest.mark.slow
def test_fine_tune_evaluate_release_load(tmp_path: Path) -> None:
    import numpy as np

    for package in ("jionlp", "mteb"):
        pytest.importorskip(package)
    rows = [("今天天气晴", "今天天气好", 0.9), ("猫", "狗", 0.4), ("山川", "河海", 0.5), ("红", "绿白", 0.1)]
    names = ("sentence1", "sentence2", "score")
    lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "tasks.yaml").write_text("tasks:\n  - {name: Pairs, type: STS, data: pairs.jsonl}\n")

    with HubServer({TOKEN: User("alice", orgs=("sensenova",))}) as hub:

        def run(*command: str, home: str = "home") -> str:
            env = {**hub.environment(tmp_path / home, TOKEN), "PYTHONPATH": str(RECIPES.parent)}
            done = subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=env, text=True, capture_output=True, timeout=280
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert TOKEN not in done.stdout + done.stderr
            return done.stdout

        run(str(RECIPES / "finetune.py"), *SHORT)
        run(str(RECIPES / "evaluate.py"), "run/model", "--benchmark", "tasks.yaml")
        (result,) = (tmp_path / "results").rglob("Pairs.json")
        release = [str(RECIPES / "release.py"), "run/model", REPO, "--tag", "v1.0"]
        card = ["--fill-card", "--license", "mit", "--language", "zh", "--run-dir", "run"]
        results = ["--results", str(result.parent), "--benchmark", "tasks.yaml"]
        shown = run(*release, *card, *results)
        assert "Dry run: nothing was sent" in shown and not hub.repos
        pushed = run(*release, "--push")
        assert re.search(rf'SentenceTransformer\("{REPO}", revision="v1.0"\)', pushed)
        run("-c", ENCODE, REPO, "from_hub.npy", home="another_home")
        run("-c", ENCODE, "run/model", "from_disk.npy")

    from_hub, from_disk = (np.load(tmp_path / name) for name in ("from_hub.npy", "from_disk.npy"))
    assert (from_hub == from_disk).all()
    assert (from_hub[:2] == from_hub[4:]).all(), "the prompt and the instruction typed by hand"
    repo = hub.repos["model", REPO]
    readme = repo.read(repo.resolve("v1.0").files["README.md"]).decode()
    score = json.loads(result.read_text())["scores"]["test"][0]["cosine_spearman"]
    assert f"| Pairs | STS | default | test | cos_sim_spearman | {100 * score:.2f} |" in readme
    assert "16 x 1 = 16" in readme and "![curves](curves.png)" in readme and "model-index:" in readme
    assert [call.route for call in hub.calls].count("commit") == 1
