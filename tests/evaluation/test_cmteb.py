"""All 35 tasks of c-mteb-35 end to end: mteb's own task classes, loaded over HTTP from a Hub on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytest.importorskip("mteb")

from sentence_transformers import SentenceTransformer

from piccolo_st.evaluation.benchmarks import C_MTEB_35, MTEB_CMN_V1
from piccolo_st.evaluation.results import read_results, task_scores
from tests.helpers.cmteb_data import add_cmteb
from tests.helpers.hub_server import HubServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


def recipe(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes/evaluate.py"), *arguments]
    env = {**env, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, env=env, cwd=env["HF_HOME"], capture_output=True, text=True, timeout=800, check=False
    )


def test_all_35_tasks_run_offline(make_model: Callable[..., SentenceTransformer], tmp_path: Path) -> None:
    model = make_model(query_length=64, document_length=128)
    model.prompts = {"query": "查询：", "document": "结果："}
    model.save_pretrained(str(tmp_path / "model"))
    files = {
        str(path.relative_to(tmp_path / "model")): path.read_bytes()
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    }
    (tmp_path / "home").mkdir()
    output = tmp_path / "results"
    card = ROOT / "model_cards/piccolo-large-zh/results.jsonl"

    with HubServer() as hub:
        commit = hub.add_repo("sensenova/tiny-zh", files).branches["main"]
        add_cmteb(hub)
        env = hub.environment(tmp_path / "home")
        first = recipe(env, "sensenova/tiny-zh", "--output", str(output), "--reference", str(card))
        asked = {(re.search(r"/(\w{40})", call.path) or [""])[0] for call in hub.calls}
    assert first.returncode == 0, first.stderr[-4000:]

    # Every task has a result under the name and the commit of the model, read at the pinned commit of its data.
    folder = output / "results/sensenova__tiny-zh" / commit
    results = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    results.pop("model_meta")
    assert set(results) == {task.name for task in C_MTEB_35.tasks}
    assert all(f"/{result['dataset_revision']}" in asked for result in results.values())

    # The table, the JSON and the picture say what the result files say.
    found = task_scores(read_results(folder), C_MTEB_35)
    assert len(found) == 35
    (written,) = (output / "tables").glob("c-mteb-35--sensenova__tiny-zh--*.json")
    summary = json.loads(written.read_text("utf-8"))
    assert summary["average"] == pytest.approx(sum(found.values()) / 35)
    assert (summary["model"]["revision"], summary["benchmark"]["name"]) == (commit, "c-mteb-35")
    assert written.with_suffix(".png").stat().st_size > 10_000
    lines = first.stdout.splitlines()
    mean = next(line for line in lines if line.startswith("all "))
    assert mean.split()[-2:] == [f"{summary['average']:.2f}", "64.11"]  # the second column is the published card
    for task in C_MTEB_35.tasks:
        assert any(f" {task.label} " in line and f"{found[task.name]:.2f}" in line for line in lines), task.name

    # The Hub is gone. Today's definition needs one more split of one task; the data is in the local cache.
    second = recipe(
        {**env, "HF_HUB_OFFLINE": "1"}, "sensenova/tiny-zh", "--output", str(output), "--benchmark", "MTEB(cmn, v1)"
    )
    assert second.returncode == 0, second.stderr[-4000:]
    run = [line.split() for line in second.stdout.splitlines() if re.match(r" *\[\d+/31\]", line)]
    assert len(run) == 31
    assert [words[2] for words in run if words[-1] != "kept"] == ["MultilingualSentiment"]
    merged = json.loads((folder / "MultilingualSentiment.json").read_text("utf-8"))
    assert set(merged["scores"]) == {"validation", "test"}
    assert merged["scores"]["validation"] == results["MultilingualSentiment"]["scores"]["validation"]
    assert len(task_scores(read_results(folder, MTEB_CMN_V1), MTEB_CMN_V1)) == 31

    # Comparing the model with itself reads the examples of every task.
    compared = recipe(env, "--compare", str(folder), str(folder), "--resamples", "20")
    assert compared.returncode == 0, compared.stderr[-4000:]
    assert compared.stdout.count("may be chance") == 36
    assert "not compared" not in compared.stdout
    assert yaml.safe_load((folder / "model_meta.json").read_text("utf-8"))["name"] == "sensenova/tiny-zh"
