"""Damage is named: whatever a file that is read back holds, it is read, done anew, or refused in one sentence.

Every kind of file is damaged in many ways (tests/helpers/mutations.py), and read as a run, a command or a library call
reads it. A traceback of anything but an InputError, or a sentence of several lines, is a failure.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from piccolo_st import save_portable
from piccolo_st.config import parse_run
from piccolo_st.curation import stages
from piccolo_st.data import load_mixture
from piccolo_st.errors import InputError
from piccolo_st.evaluation import per_example
from piccolo_st.evaluation.benchmarks import C_MTEB_35
from piccolo_st.evaluation.bootstrap import compare_models
from piccolo_st.evaluation.results import read_results
from piccolo_st.modeling.loading import load_encoder
from piccolo_st.modeling.portable.readers import check_portable
from piccolo_st.releasing.record import RunRecord
from piccolo_st.training import checkpoint, manifest, resume
from piccolo_st.training.training_arguments import FinetuneConfig
from tests.helpers.mutations import mutations
from tests.helpers.resume_cases import Case, make_trainer, weights_hash

SLOW_FACTOR = 7
CASE = Case(batch_size=8, rows=24)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: relative to the folder of the test.
        make: writes it, and what lies beside it, into a folder.
        read: reads it there; what it gives is not looked at.
        count: how often it is damaged by the fast test.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    count: int = 18


def _run(encoder: Path, folder: Path, **options: Any) -> str:
    trainer = make_trainer(encoder, folder, CASE, save_steps=4, max_steps=8, **options)
    trainer.train()
    return weights_hash(trainer.model)


def _newest(folder: Path) -> None:
    """The checkpoint that a run goes on from: the damaged one, or the one before, which is whole."""
    found, skipped = checkpoint.newest_complete(folder / "run", resume.check_complete)
    assert found is not None, skipped
    for sentence in skipped:
        assert "checkpoint-8" in sentence and "\n" not in sentence


def _sealed_again(folder: Path) -> None:
    """As whoever changes a checkpoint on purpose leaves it: with a manifest that vouches for the change."""
    newest = max((folder / "run").glob("checkpoint-*"), key=manifest.step_of)
    run = json.loads((newest / "manifest.json").read_text())["run"]
    (newest / "manifest.json").unlink()
    manifest.seal(newest, run)
    _newest(folder)


def _checkpoints(encoder: Path) -> Callable[[Path], None]:
    return lambda folder: (_run(encoder, folder / "run"), None)[1]


def _results(folder: Path) -> None:
    scores = {"hf_subset": "default", "main_score": 0.5, "cosine_spearman": 0.5, "languages": ["cmn-Hans"]}
    for task in ("ATEC", "BQ"):
        file = {"task_name": task, "dataset_revision": "a" * 40, "mteb_version": "2.26.0", "scores": {"test": [scores]}}
        path = folder / "results" / f"{task}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(file))
        arrays = {"gold": np.arange(4.0), "similarity": np.arange(4.0) / 9}
        per_example.save({"test/default": arrays}, per_example.examples_path(path))
    lines = [vars(one) for one in read_results(folder / "results")]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task, dataset = {"type": "STS"}, {"type": "C-MTEB/ATEC", "name": "MTEB ATEC", "config": "default", "split": "test"}
    entry = {"task": task, "dataset": dataset, "metrics": [{"type": "cos_sim_spearman", "value": 50.0}]}
    card = {"model-index": [{"name": "m", "results": [entry]}], "tags": ["sentence-transformers"]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")


def _compare(folder: Path) -> None:
    compare_models(folder / "results", folder / "results", C_MTEB_35, resamples=2)


def _record(folder: Path) -> None:
    RunRecord(
        configuration={"model": {"name_or_path": "x"}, "train": {"seed": 1}},
        losses={"faq": {"name": "PiccoloLoss"}},
        steps=3,
        evaluations=[{"step": 1, "eval_loss": 0.5}],
        log=[{"step": 1, "loss": 0.5}],
    ).write(folder)


def _configuration(folder: Path) -> None:
    content = {
        "model": {"name_or_path": "x", "instructions": {"query": "查询：", "document": "结果："}},
        "data": {"mixture": {"datasets": {"faq": {"source": "rows.jsonl", "task": "sts"}}}, "batch_size": 8},
        "loss": {"temperature": 0.05, "directions": ["query_to_doc"]},
        "train": {"output_dir": "run", "max_steps": 3, "eval_steps": 2, "use_cpu": True, "learning_rate": 1e-4},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))


def _parse(folder: Path) -> None:
    parse_run([str(folder / "run.yaml")], FinetuneConfig, folder / "run.yaml")


def _mixture(folder: Path) -> None:
    rows = [{"query": f"问{n}", "positive": f"答{n}", "negative": f"错{n}"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    datasets = {"faq": {"source": "rows.jsonl", "task": "retrieval", "holdout": {"queries": 3, "min_corpus": 5}}}
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    _rows(folder)
    # Named so that the table can name them: their own names are hashes.
    for number, path in enumerate(sorted((folder / "cache").glob("*/data.arrow"))):
        (folder / f"entry-{number}").symlink_to(path.parent)
    (folder / "contents").symlink_to(next((folder / "cache" / "contents").iterdir()))


def _rows(folder: Path) -> None:
    mixture = load_mixture(folder / "mixture.yaml", cache_dir=folder / "cache")
    assert [len(dataset[:]["query"]) for dataset in mixture.train.values()] == [37]
    str(mixture.report)


def _any_mixture(folder: Path) -> None:
    load_mixture(folder / "mixture.yaml", cache_dir=folder / "cache")


def _model(encoder: Path) -> Callable[[Path], None]:
    return lambda folder: save_portable(load_encoder(str(encoder)), folder / "model")


def _load(folder: Path) -> None:
    check_portable(folder / "model")
    load_encoder(str(folder / "model"))


def _claimed(folder: Path) -> None:
    stages.claim(folder / "made", "identity", {"settings": {"a": 1}})


def kinds(encoder: Path) -> list[Kind]:
    """Every kind of file that is read back."""
    newest, run, model = "run/checkpoint-8/", _checkpoints(encoder), _model(encoder)
    small = ["modules.json", "config.json", "config_sentence_transformers.json", "sentence_bert_config.json",
             "tokenizer_config.json", "tokenizer.json", "1_Pooling/config.json", "model.safetensors"]  # fmt: skip
    return [
        Kind(newest + "manifest.json", run, _newest, 60),
        Kind(newest + "model.safetensors", run, _newest),
        Kind(newest + "trainer_state.json", run, _sealed_again, 60),
        *[Kind(newest + name, run, _sealed_again) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")],
        Kind("results/ATEC.json", _results, lambda folder: read_results(folder / "results"), 40),
        Kind("results/BQ.json", _results, _compare),
        Kind("results/examples/ATEC.npz", _results, _compare),
        Kind("results.jsonl", _results, lambda folder: read_results(folder / "results.jsonl"), 40),
        Kind("README.md", _results, lambda folder: read_results(folder / "README.md")),
        Kind("run.json", _record, RunRecord.read, 40),
        Kind("config.yaml", _record, RunRecord.read),
        Kind("run.yaml", _configuration, _parse, 40),
        Kind("mixture.yaml", _mixture, _any_mixture),
        Kind("contents", _mixture, _rows),
        *[Kind(f"entry-{n}/{name}", _mixture, _rows) for n in (0, 1) for name in ("data.arrow", "report.json")],
        Kind("made/made_of.json", _claimed, _claimed),
        *[Kind(f"model/{name}", model, _load, 5) for name in small],
        *[Kind(f"model/{name}", model, lambda folder: check_portable(folder / "model"), 20) for name in small],
    ]


NAMES = [kind.name for kind in kinds(Path())]


def _damage(kind: Kind, folder: Path, count: int, seed: int) -> tuple[int, list[str]]:
    """Damage a file, read it, put it back; returns how often it was refused, and what was no sentence."""
    folder.mkdir()
    kind.make(folder)
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept, symlinks=True)
    content = (folder / kind.name).read_bytes()
    refused, faults = 0, []
    for what, damaged in mutations(kind.name, content, count, seed):
        target = (folder / kind.name).resolve()
        target.write_bytes(damaged)
        try:
            kind.read(folder)
        except InputError as error:
            refused += 1
            if "\n" in str(error):
                faults.append(f"{what}: several lines: {error}")
        except Exception as error:
            faults.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
        shutil.rmtree(folder)
        shutil.copytree(kept, folder, symlinks=True)
    shutil.rmtree(kept)
    return refused, faults


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_damage_is_named(number: int, encoder_dir_no_dropout: Path, tmp_path: Path) -> None:
    kind = kinds(encoder_dir_no_dropout)[number]
    _, faults = _damage(kind, tmp_path / "here", kind.count, 0)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_times(encoder_dir_no_dropout: Path, tmp_path: Path) -> None:
    """Prints the table: kind of file, mutations, refused, tracebacks."""
    total, lines = 0, [f"{'file':<42} {'mutations':>9} {'refused':>7} {'tracebacks':>10}"]
    found: list[str] = []
    for number, kind in enumerate(kinds(encoder_dir_no_dropout)):
        count = kind.count * SLOW_FACTOR
        refused, faults = _damage(kind, tmp_path / str(number), count, 1)
        total += count
        lines.append(f"{kind.name:<42} {count:>9} {refused:>7} {len(faults):>10}")
        found += [f"{kind.name}, {fault}" for fault in faults]
    print("\n".join([*lines, f"{'all':<42} {total:>9} {'':>7} {len(found):>10}"]))
    assert not found, "\n".join(found)
    assert total >= 5000
