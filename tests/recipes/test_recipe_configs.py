"""Every configuration of a training run: parsed, its plan computed, and all but the weights built from it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from piccolo_st.__main__ import COMMANDS
from piccolo_st.config import parse_run, read_yaml
from piccolo_st.data import parse_mixture
from piccolo_st.experiments import Ablation
from piccolo_st.losses import PiccoloLoss
from piccolo_st.training import FinetuneConfig, PretrainConfig, TrainingRun
from piccolo_st.training.estimate import estimate
from piccolo_st.training.shape import encoder_shape

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "recipes" / "configs"
PRETRAINING = ["pretrain-quickstart", "zh-mini-pretrain", "pretrain-base", "pretrain-large"]
PUBLISHED = [
    "finetune-multilingual-e5-small", "finetune-bge-base-zh", "finetune-modernbert", "finetune-qwen3-embedding-0.6b",
]  # fmt: skip
FINETUNING = ["quickstart", "zh-mini", "finetune-base", "finetune-large", "finetune-large-v2", *PUBLISHED]
DIGITS = "一二三四五六七八九十"
NUMBERS = [a + b for a in DIGITS for b in DIGITS]


def rows_of(name: str) -> list[dict[str, Any]]:
    """Rows in the columns of one of zh-mini's files, all texts of which the test's tokenizer knows."""
    pairs = list(zip(NUMBERS, NUMBERS[7:] + NUMBERS[:7], strict=True))
    if name.startswith("sts/"):
        return [{"sentence1": f"数{a}", "sentence2": f"数{b}", "score": float(a[0] == b[0])} for a, b in pairs]
    if name.startswith("nli/"):
        labels = ("entailment", "contradiction", "neutral")
        return [{"premise": f"天{a}", "hypothesis": f"{b}{k}天", "label": k} for a, b in pairs for k in labels]
    if name.startswith("classification/"):
        return [{"text": f"{a}的水", "label": int(a[0] in "一二三四五")} for a, b in pairs]
    if "captions" in name:
        return [{"query": a, "positives": [f"{a}天"], "negatives": [f"{b}月"]} for a, b in pairs]
    return [{"query": f"数{a}", "positive": f"{a}的结果", "negative": f"{b}的结果"} for a, b in pairs]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder laid out as zh-mini-mixture.yaml says, with generated rows."""
    specs = read_yaml(CONFIGS / "zh-mini-mixture.yaml")["datasets"]
    for spec in specs.values():
        path = tmp_path / spec["source"]
        if path.suffix != ".jsonl":
            path.mkdir(parents=True)
            write(path / "corpus.jsonl", [{"_id": f"d{i}", "text": f"{n}风"} for i, n in enumerate(NUMBERS)])
            write(path / "queries.jsonl", [{"_id": f"q{i}", "text": f"云{n}"} for i, n in enumerate(NUMBERS)])
            judged = "".join(f"q{i}\td{i}\t1\n" for i in range(len(NUMBERS)))
            (path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, rows_of(spec["source"]))
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def overrides(name: str, root: Path, encoder: Path) -> list[str]:
    """What makes the configuration run here: data of the test, no GPU, a tiny encoder, and small batches."""
    mine = {
        "model.name_or_path": encoder, "train.output_dir": root / "run", "train.fp16": "false",
        "data.batch_size": 8, "train.dataloader_num_workers": 0,
    }  # fmt: skip
    if name in PUBLISHED:
        mine["model.instructions"] = "piccolo"  # the test's tokenizer does not know the words of theirs
    if "zh-mini" in name:
        mine["data.mixture.root"] = root
        mine["data.mixture.datasets.simclue.holdout"] = "{queries: 10, min_corpus: 20}"
    elif "quickstart" not in name:
        files = {"passages": ("retrieval/simclue.train.jsonl", "retrieval")}
        if name.endswith("v2"):
            files["similar"] = ("sts/stsb.train.jsonl", "sts")
            files["topics"] = ("classification/hotel_sentiment.train.jsonl", "classification")
        datasets = {key: {"source": str(root / file), "task": task} for key, (file, task) in files.items()}
        mine["data.mixture"] = json.dumps({"datasets": datasets})
    return [part for key, value in mine.items() for part in (f"--{key}", str(value))]


@pytest.mark.parametrize(("first", "second"), [("pretrain-quickstart", "quickstart"), ("zh-mini-pretrain", "zh-mini")])
def test_stage_1_trains_on_no_query_that_stage_2_holds_out(first: str, second: str) -> None:
    held = []
    for name in (first, second):
        datasets = read_yaml(CONFIGS / f"{name}.yaml")["data"]["mixture"]["datasets"]
        held.append({key: spec["holdout"] for key, spec in datasets.items() if "holdout" in spec})
    assert held[0] == held[1] and held[0]


@pytest.mark.parametrize("name", [*PRETRAINING, *FINETUNING])
def test_all_but_the_weights_is_built(name: str, root: Path, encoder_dir: Path) -> None:
    if "quickstart" in name:
        pytest.importorskip("jionlp")
    path = CONFIGS / f"{name}.yaml"
    sections = PretrainConfig if name in PRETRAINING else FinetuneConfig
    written = parse_run([str(path)], sections, path)
    if written.lora.rank is not None:
        pytest.importorskip("peft")
    run = TrainingRun(parse_run([str(path), *overrides(name, root, encoder_dir)], sections, path))
    transformer = run.model[0]
    assert transformer.query_length == written.model.query_length
    assert transformer.document_length == written.model.document_length
    assert "samples" in run.describe()
    losses = [one for loss in run.trainer.loss.values() for one in loss.modules() if isinstance(one, PiccoloLoss)]
    assert {loss.temperature for loss in losses} == {written.loss.temperature}
    assert {loss.directions for loss in losses} == {tuple(written.loss.directions)}
    if written.model.dimension:
        assert run.model.get_embedding_dimension() == written.model.dimension
        dims = {tuple(one.matryoshka_dims) for loss in run.trainer.loss.values() for one in loss.modules()
                if hasattr(one, "matryoshka_dims")}  # fmt: skip
        assert dims == {(1792, 1536, 1280, 1024, 768, 512, 256)}


@pytest.mark.parametrize(
    "name", ["pretrain-base", "pretrain-large", "finetune-base", "finetune-large", "finetune-large-v2", *PUBLISHED]
)
def test_the_plan_of_the_large_ones_fits_the_gpus_they_name(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    config = parse_run([str(path)], PretrainConfig if name in PRETRAINING else FinetuneConfig, path)
    found, plan = estimate(config, encoder_shape(config)), config.plan
    found.check(plan.gpu_memory_gib, plan.reserve)
    assert found.hours is not None and found.hours > 0
    if name == "pretrain-large":
        assert found.samples == pytest.approx(400e6, rel=1e-3) and plan.processes * config.data.batch_size == 32 * 1024


def test_the_recipe_of_the_card() -> None:
    path = CONFIGS / "finetune-large.yaml"
    config = parse_run([str(path)], FinetuneConfig, path)
    assert (config.model.query_length, config.model.document_length) == (64, 512)
    assert 2 <= config.data.num_negatives <= 7 and len(config.loss.directions) == 4
    assert config.train.fp16 and config.train.activation_checkpointing


@pytest.mark.parametrize(
    "name",
    [
        *PRETRAINING,
        *FINETUNING,
        "ablation-zh-mini",
        "ablation-e5",
        "ablation-english",
        "zh-mini-mixture",
        "english-mixture",
    ],
)
def test_the_header_says_how_to_start_it(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert set(re.findall(r"-m piccolo_st (\w+)", header)) & set(COMMANDS)
    assert all((ROOT / path).is_file() for path in re.findall(r"recipes/[\w./-]+\.yaml", header))
    if name in ("pretrain-base", "pretrain-large", "finetune-base", "finetune-large", "finetune-large-v2"):
        for needed in ("zero1.yaml", "multinode_zero1.yaml", "srun", "--plan", "--data.mixture", f"{name} "):
            assert needed in header


@pytest.mark.parametrize(
    "name", ["pretrain-base", "pretrain-large", "finetune-base", "finetune-large", "finetune-large-v2", *PUBLISHED]
)
def test_the_example_mixture_of_the_header_is_one(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("#   datasets:")
    stop = next(place for place in range(start + 1, len(lines)) if not lines[place].startswith("#     "))
    example = yaml.safe_load("\n".join(line[4:] for line in lines[start:stop]))
    specs, _, _ = parse_mixture(example)
    assert len(specs) >= 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ablation-*.yaml")), ids=lambda path: path.stem)
def test_the_variants_of_an_ablation_parse_and_start_from_one_encoder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, mixture = ("english", "english-mixture") if path.stem == "ablation-english" else ("e5", "zh-mini-mixture")
    tasks = Path(f"runs/{run}/split/tasks.yaml")  # what `prepare split` leaves
    tasks.parent.mkdir(parents=True)
    datasets = yaml.safe_load((CONFIGS / f"{mixture}.yaml").read_text(encoding="utf-8"))["datasets"]
    entries = [{"name": f"{name}-test", "type": "STS", "data": f"{name}.test.jsonl"} for name in datasets]
    tasks.write_text(yaml.safe_dump({"tasks": entries}))
    tasks.with_name("mixture.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    ablation = Ablation(path)
    assert len(ablation.settings.seeds) >= 3
    sections = [one.sections for one in ablation.resolved.values()]
    starts = {json.dumps([s["model"].get("name_or_path"), s["model"].get("build")]) for s in sections}
    assert len(starts) == 1, "every variant starts from the same encoder"
    for own in sections:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
        config = parse_run([str(tmp_path / "run.yaml")], FinetuneConfig, tmp_path / "run.yaml")
        assert parse_mixture(config.mixture)[0]
    only: Any = [task["only"] for task in ablation.settings.tasks if "only" in task]
    assert {name for own in only for name in own} <= {entry["name"] for entry in entries}
