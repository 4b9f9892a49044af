"""The ablation driver: chains of variants, runs that are kept and runs that are not, the table and the picture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from piccolo_st.commands.ablation import main
from piccolo_st.config import parse_run
from piccolo_st.data import load_mixture
from piccolo_st.errors import InputError
from piccolo_st.experiments import report
from piccolo_st.experiments.ablation import Ablation
from piccolo_st.experiments.flag_embedding import FlagEmbeddingOptions, train_flag_embedding
from piccolo_st.experiments.stock import StockOptions, train_stock
from piccolo_st.training.training_arguments import FinetuneConfig

ROOT = Path(__file__).parent.parent.parent
DIGITS = "一二三四五六七八九十"
NUMBERS = [a + b for a in DIGITS for b in DIGITS]


@pytest.fixture
def content(tmp_path: Path, encoder_dir: Path) -> dict[str, Any]:
    """Two datasets, one with ragged negatives and a held-out set, and a task."""
    rows = [
        {"query": f"数{n}", "positive": f"{n}的结果", "negative": [f"{m}月" for m in NUMBERS[i : i + 1 + i % 3]]}
        for i, n in enumerate(NUMBERS)
    ]
    pairs = [{"query": f"天{n}", "positive": f"{n}天"} for n in NUMBERS]
    scores = [{"sentence1": f"数{n}", "sentence2": f"{m}", "score": i % 5} for i, (n, m) in
              enumerate(zip(NUMBERS, NUMBERS[3:], strict=False))]  # fmt: skip
    for name, found in (("rows", rows), ("pairs", pairs), ("scores", scores)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    alike = [{"sentence1": f"数{n}", "sentence2": f"{n}的结果", "label": i % 2} for i, n in enumerate(NUMBERS)]
    (tmp_path / "alike.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alike), encoding="utf-8")
    entry = {"type": "PairClassification", "data": "alike.jsonl"}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"tasks": [{"name": n, **entry} for n in ("Alike", "Left")]}))
    holdout = {"queries": 10, "min_corpus": 20}
    datasets = {
        "rows": {"source": "rows.jsonl", "task": "retrieval", "holdout": holdout},
        "pairs": {"source": "pairs.jsonl", "task": "retrieval"},
    }
    return {
        "ablation": {
            "output_dir": str(tmp_path / "out"), "seeds": [1, 2],
            "tasks": [
                {"name": "Scores", "type": "STS", "data": "scores.jsonl", "group": "near"},
                {"file": str(tmp_path / "more.yaml"), "group": "far", "only": ["Alike"]},
            ],
        },
        "model": {"name_or_path": str(encoder_dir), "instructions": "none", "query_length": 16, "document_length": 24},
        "data": {"mixture": {"root": str(tmp_path), "datasets": datasets}, "batch_size": 8},
        "loss": {"directions": ["query_to_doc"]},
        "train": {"max_steps": 2, "learning_rate": 1e-3, "disable_tqdm": True},
        "variants": {
            "stock": {"trainer": "sentence_transformers"},
            "plain": {"after": "stock", "trainer": "piccolo_st", "label": "+ ours"},
            "start": {"trainer": "none"},
            "full": {"after": "plain", "set": {"model.instructions": "piccolo", "train.max_steps": 1},
                     "stage1": {"train.max_steps": 1}},
        },
    }  # fmt: skip


def write(content: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "ablation.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def test_every_variant_runs_once_and_a_killed_one_again(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mteb")
    path = write(content, tmp_path)
    said: list[str] = []
    main([str(path), "--table"])
    assert capsys.readouterr().out == "no variant has a result yet\n"
    main([str(path), "--only", "start,stock,plain,full"])
    said += [line for line in capsys.readouterr().out.splitlines() if ", seed " in line]
    order = [(name, seed) for seed in (1, 2) for name in ("start", "stock", "plain", "full")]
    order.remove(("start", 2))  # nothing is drawn where nothing is trained
    assert [line.split(":")[0] for line in said] == [f"{name}, seed {seed}" for name, seed in order]
    results = sorted((tmp_path / "out" / "runs").glob("*/*/result.json"))
    assert len(results) == 7
    found = json.loads(results[0].read_text(encoding="utf-8"))
    assert set(found["scores"]) == {"rows", "Scores", "Alike"} and found["seconds"] > 0
    assert not sys.platform.startswith("linux") or found["memory_mib"] > 100
    assert (tmp_path / "out/runs/full/seed-1/stage1/model").is_dir()

    results[0].rename(results[0].with_name("result.json.123"))  # as if killed before the rename
    said.clear()
    again = Ablation(path)
    again.run(say=said.append)
    assert len(said) == 1 and said[0].startswith("full, seed 1")

    by_group, by_task = again.write().split("\n\n")
    assert by_group.split("\n")[0].split()[:5] == ["variant", "held", "out", "difference", "near"]
    (ours,) = (line for line in by_group.splitlines() if line.startswith("+ ours"))
    assert ours.count(" to ") == 3, "two groups of tasks have intervals over examples, and the spread over seeds"
    assert "±" in ours and " stock" in ours and ours.split()[-1] == "2"
    assert by_task.split("\n")[0].split() == ["variant", "rows", "Scores", "Alike"]
    assert "| + ours |" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "ablation.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    main([str(path), "--table", "--ablation.against", "start"])
    header, _, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert header.count("difference against start") == 3
    assert all(" to " in row for row in rows) and len(rows) == 4

    content["train"]["learning_rate"] = 2e-3  # another configuration: nothing counts any more
    assert Ablation(write(content, tmp_path)).results() == {}


def test_results_of_other_rows_are_not_used(content: dict[str, Any], tmp_path: Path) -> None:
    """A task's file and the mixture's are replaced under the same paths, and brought back."""
    pytest.importorskip("mteb")
    content["ablation"]["seeds"] = [1]
    content["variants"] = {"start": {"trainer": "none"}}
    path = write(content, tmp_path)
    Ablation(path).run(say=lambda line: None)
    result = tmp_path / "out/runs/start/seed-1/result.json"
    old = {key: value for key, value in json.loads(result.read_text("utf-8")).items() if key != "tasks"}

    for name in ("scores", "pairs"):
        file, aside = tmp_path / f"{name}.jsonl", tmp_path / "aside.jsonl"
        file.rename(aside)
        assert set(Ablation(path).results()) == {"start"}, "what is not there cannot have changed"
        file.write_text("".join(aside.read_text("utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
        assert Ablation(path).results() == {}
        aside.replace(file)
        assert set(Ablation(path).results()) == {"start"}
    (tmp_path / "scores.jsonl").rename(tmp_path / "elsewhere.jsonl")
    content["ablation"]["tasks"][0]["data"] = "elsewhere.jsonl"
    assert set(Ablation(write(content, tmp_path)).results()) == {"start"}, "the same rows at another path"
    content["ablation"]["tasks"][0]["data"] = "other.jsonl"
    rows = (tmp_path / "elsewhere.jsonl").read_text("utf-8")
    (tmp_path / "other.jsonl").write_text(rows.replace('"score": 1', '"score": 4'), encoding="utf-8")
    assert Ablation(write(content, tmp_path)).results() == {}
    result.write_text(json.dumps(old), encoding="utf-8")
    assert set(Ablation(write(content, tmp_path)).results()) == {"start"}, "as it was kept before"


def test_a_seed_is_compared_with_the_same_seed() -> None:
    first, three = (
        {seed: report.Result({"rows": score}, 1.0) for seed, score in scores.items()}
        for scores in ({1: 82.0}, {1: 81.0, 2: 71.0, 3: 70.0})
    )
    assert report._difference(first, three, ["rows"], []) == "+1.00"
    assert report._difference(three, first, ["rows"], []) == "-8.00", "a seed that is not there: with the first"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on_and_its_table_is_that_of_one_left_alone(
    content: dict[str, Any], tmp_path: Path
) -> None:
    """kill -9, three times, each in the middle of a run: what was finished stays, and nothing else shows."""
    content["ablation"] |= {"tasks": [], "seeds": [1]}
    del content["variants"]["start"]
    path = write(content, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(output: Path) -> list[str]:
        return [sys.executable, str(ROOT / "recipes" / "ablation.py"), str(path), "--ablation.output_dir", str(output)]

    def results(output: Path) -> dict[str, tuple[int, str]]:
        return {
            str(found.relative_to(output)): (found.stat().st_mtime_ns, found.read_text("utf-8"))
            for found in sorted((output / "runs").glob("*/*/result.json"))
        }

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ran = subprocess.run(command(whole), capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr

    # (finished runs, the file of the next one that must be there) when the driver is killed; at last it is left alone
    moments, finished = [(0, "run.yaml"), (1, "run.yaml"), (2, "stage1.yaml"), None], []
    for moment in moments:
        before = results(killed)
        with open(tmp_path / "said", "w") as said:  # a pipe that nobody reads fills up
            process = subprocess.Popen(command(killed), stdout=said, stderr=subprocess.DEVNULL, env=environment)
        try:
            while process.poll() is None and moment is not None:
                begun = [
                    path for path in killed.glob(f"runs/*/*/{moment[1]}") if not path.with_name("result.json").exists()
                ]
                if begun and len(results(killed)) >= moment[0]:
                    break
                time.sleep(0.002)
            if moment is not None:
                process.kill()
            code = process.wait()
        finally:
            process.kill()
        assert code == (0 if moment is None else -signal.SIGKILL)
        after = results(killed)
        assert {name: after[name] for name in before} == before, "a finished run was done again, or lost"
        finished.append(len(after))
    assert finished == [0, 1, 2, 3], "killed in the middle, with more runs finished each time"
    shown = (tmp_path / "said").read_text("utf-8")
    assert shown.count(", seed ") == 1 and "+ ours" in shown, "the run that was left, and the table"

    assert (killed / "ablation.json").read_bytes() == (whole / "ablation.json").read_bytes()
    by_task = [(folder / "table.md").read_text("utf-8").split("\n\n")[1] for folder in (killed, whole)]
    assert by_task[0] == by_task[1], "the other table has seconds and memory"
    for name, (_, text) in results(whole).items():
        one, other = json.loads(text), json.loads(results(killed)[name][1])
        unequal = {"seconds": 0, "memory_mib": 0}
        assert {**one, **unequal} == {**other, **unequal}
    scores = json.loads((whole / "ablation.json").read_text("utf-8"))["scores"]
    assert len({json.dumps(found) for found in scores.values()}) == 3, "or the table would show nothing"


def test_a_variant_is_what_it_comes_after_and_its_own(content: dict[str, Any], tmp_path: Path) -> None:
    resolved = Ablation(write(content, tmp_path), {"data.batch_size": 4}).resolved
    trainers = [one.trainer for one in resolved.values()]
    assert trainers == ["sentence_transformers", "piccolo_st", "none", "piccolo_st"]
    assert resolved["full"].sections["model"]["instructions"] == "piccolo"
    assert resolved["plain"].sections["model"]["instructions"] == "none"
    assert all(one.sections["data"]["batch_size"] == 4 for one in resolved.values())
    assert resolved["plain"].stage1 is None and resolved["full"].stage1 == {"train.max_steps": 1}


def test_the_stock_run_is_sentence_transformers_own(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformerTrainer

    seen: list[SentenceTransformerTrainer] = []
    monkeypatch.setattr(SentenceTransformerTrainer, "train", lambda self: seen.append(self))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({name: content[name] for name in ("model", "data", "loss", "train")}))
    config = parse_run([str(path)], FinetuneConfig, path)
    mixture = load_mixture(config.mixture)
    train_stock(config, mixture)
    trainer = seen[0]
    assert type(trainer) is SentenceTransformerTrainer
    assert trainer.loss.scale == 20.0
    assert type(trainer.get_train_dataloader().batch_sampler).__name__ == "ProportionalBatchSampler"
    assert trainer.train_dataset["rows"].column_names == ["query", "positive", "negative_1"]

    train_stock(config, mixture, StockOptions(concatenated=True))
    mixed = seen[1].train_dataset
    assert mixed.column_names == ["query", "positive"] and len(mixed) == sum(map(len, trainer.train_dataset.values()))
    assert type(seen[1].get_train_dataloader().batch_sampler).__name__ == "DefaultBatchSampler"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stock": {"trainr": "none"}}, r"unknown key 'trainr' in variant 'stock' of .*; did you mean trainer\?"),
        ({}, r"has no variants; give `variants` at least one"),
        ({"a": {"options": {"scale": 50}}}, r"`options` of variant 'a' of .* must be empty for the trainer piccolo_st"),
        (
            {"a": {"trainer": "sentence_transformers", "options": {"scale": 0}}},
            r"scale of `options` of variant 'a' of .*, got 0",
        ),
    ],
)
def test_bad_variants(content: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content["variants"] = change
    with pytest.raises(InputError, match=message):
        Ablation(write(content, tmp_path))


def test_flag_embedding_gets_the_same_rows_in_its_own_form(content: dict[str, Any], tmp_path: Path) -> None:
    """An interpreter that keeps what it is given and returns the checkpoint stands for FlagEmbedding's."""
    script = tmp_path / "kept.py"
    script.write_text(
        "import json, shutil, sys\n"
        "given = dict(zip(sys.argv[2::2], sys.argv[3::2]))\n"
        "shutil.copytree(given['--model_name_or_path'], given['--output_dir'])\n"
        "json.dump([sys.argv[1], given], open(sys.argv[0] + '.json', 'w'))\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({name: content[name] for name in ("model", "data", "loss", "train")}))
    config = parse_run([str(path)], FinetuneConfig, path)
    mixture = load_mixture(config.mixture)
    options = FlagEmbeddingOptions(str(python), temperature=0.01)
    model = train_flag_embedding(config, mixture, options, tmp_path / "flag")
    assert model.encode_query(["数一"]).shape == (1, model.get_embedding_dimension())
    module, given = json.loads((tmp_path / "kept.py.json").read_text(encoding="utf-8"))
    assert module == "FlagEmbedding.finetune.embedder.encoder_only.base"
    expected = {"query_max_len": "16", "passage_max_len": "24", "temperature": "0.01", "max_steps": "2",
                "per_device_train_batch_size": "8", "learning_rate": "0.001"}  # fmt: skip
    assert {name: given[f"--{name}"] for name in expected} == expected
    assert "--query_instruction_for_retrieval" not in given
    for name, dataset in mixture.train.items():
        lines = (Path(given["--train_data"]) / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert [(row["query"], row["pos"]) for row in rows] == [(row["query"], [row["positive"]]) for row in dataset]
        assert all(row["neg"] and all(isinstance(text, str) for text in row["neg"]) for row in rows)

    python.write_text("#!/bin/sh\necho no module named FlagEmbedding; exit 3\n")
    with pytest.raises(InputError, match=r"ended with 3: no module named FlagEmbedding; see .*, and give"):
        train_flag_embedding(config, mixture, options, tmp_path / "flag")
