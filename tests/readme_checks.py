"""What a command of the READMEs leaves, by the READMEs' words: a check and a time for every one that is run."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.evaluation_data import write_jsonl, write_local_tasks, write_search
from tests.helpers.hub_server import HubServer
from tests.readme_commands import PLACEHOLDERS, ROOT

REPO = PLACEHOLDERS["ORG/NAME"]


@dataclass
class Place:
    """A fresh clone with a fresh virtual environment, a Hub on loopback, and how long each command took."""

    clone: Path
    venv: Path
    hub: HubServer
    env: Mapping[str, str]
    took: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Ran:
    """A command that ended well."""

    output: str
    place: Place

    def says(self, *patterns: str) -> None:
        """The output has each of the patterns."""
        for pattern in patterns:
            assert re.search(pattern, self.output), f"the output has no {pattern!r}"

    def leaves(self, folder: str, *names: str) -> None:
        """The folder of the clone has each of the files."""
        missing = [name for name in names if not (self.place.clone / folder / name).is_file()]
        assert not missing, f"{folder} lacks {missing}"

    def json(self, path: str) -> Any:
        """The content of a JSON file of the clone."""
        return json.loads((self.place.clone / path).read_text(encoding="utf-8"))


Check = Callable[[Ran], None]


@dataclass(frozen=True)
class Row:
    """What is checked of the commands with ``pattern`` (as they are written) after at most ``seconds``."""

    pattern: str
    seconds: int
    check: Check
    whole: bool = False  # run to its end, without the time limit
    serves: bool = False  # a page, until it is stopped
    late: int = 0  # after all those with less: what a user can only do, or should only do, later


def run_of(folder: str, *patterns: str) -> Check:
    """A training run: its files, the table before and after, the lines that search."""

    def check(ran: Ran) -> None:
        ran.leaves(folder, "model/modules.json", "curves.png", "config.yaml", "run.json")
        ran.says(r"held-out search\s+before\s+after\s+gain", r"nDCG@10\s", "Search with it:", *patterns)

    return check


def quickstart(ran: Ran) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    queries, texts = re.findall(r"searches ([\d,]+) held-out words among ([\d,]+)\s+definitions", readme)[0]
    run_of("runs/quickstart", f"{queries} queries among {texts} texts", "compute +cpu, fp32, plain, 1 process")(ran)
    before, after = (ran.json("runs/quickstart/run.json")["evaluations"][place]["nDCG@10"] for place in (0, -1))
    assert after - before >= 25, f"the quickstart gained only {before:.2f} -> {after:.2f}"
    printed = ran.output[ran.output.index("from sentence_transformers") :]
    assert "tensor([[" in alone(ran.place, printed)
    code, shown = re.findall(r"\n## Search with it\n.*?```python\n(.*?)```.*?```\n(.*?)```", readme, re.S)[0]
    answers = [line.partition(" [")[0] for line in shown.strip().splitlines()]
    assert [line.partition(" [")[0] for line in alone(ran.place, code).strip().splitlines()] == answers


def alone(place: Place, code: str) -> str:
    """What the code prints where there is sentence-transformers and not this package."""
    blocked = f"import sys; sys.modules['piccolo_st'] = None\n{code}"
    command = [str(place.venv / "bin" / "python"), "-I", "-c", blocked]
    ran = subprocess.run(command, cwd=place.clone, env=place.env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def goes_on(ran: Ran) -> None:
    """The run had ended: its model is loaded and its reports are written again."""
    run_of("runs/quickstart")(ran)


def installed(ran: Ran) -> None:
    command = [str(ran.place.venv / "bin" / "python"), "-c", "import piccolo_st; print(piccolo_st.__file__)"]
    found = subprocess.run(command, cwd="/", env=ran.place.env, capture_output=True, text=True, timeout=120)
    assert Path(found.stdout.strip()).is_relative_to(ran.place.clone), found.stdout + found.stderr


def planned(ran: Ran) -> None:
    ran.says("GiB", "steps", r"hours|\bh\b")


def page(ran: Ran) -> None:
    ran.says("embedding")


def dry_run(ran: Ran) -> None:
    ran.says("Dry run: nothing was sent", "--push")


def card(ran: Ran) -> None:
    dry_run(ran)
    assert not ran.place.hub.repos
    text = (ran.place.clone / "runs/quickstart/model/README.md").read_text(encoding="utf-8")
    for wanted in (REPO, "license: mit", "128 x 1 = 128", "![curves](curves.png)"):
        assert wanted in text, f"the card has no {wanted!r}"


def pushed(ran: Ran) -> None:
    ran.says("verified: ", r'revision="v1.0"')
    repo = ran.place.hub.repos["model", REPO]
    files = repo.resolve("v1.0").files
    assert {"README.md", "modules.json", "model.safetensors", "curves.png"} <= set(files)
    assert not [name for name in files if name.endswith((".arrow", ".jsonl", ".bin"))]


def space(ran: Ran) -> None:
    ran.says("verified: ")
    assert "app.py" in ran.place.hub.repos["space", REPO].resolve("main").files


def prepared(folder: str) -> Check:
    def check(ran: Ran) -> None:
        ran.leaves(folder, "report.json" if folder.endswith("check") else "mixture.yaml")

    return check


def merged(ran: Ran) -> None:
    made_of = json.loads((ran.place.clone / "runs" / "merged" / "merge.json").read_text(encoding="utf-8"))
    assert len(made_of["tried"]) == 5
    best = max(made_of["tried"], key=lambda one: one["score"])
    assert [one["weight"] for one in made_of["models"]] == best["weights"]


def evaluated(ran: Ran) -> None:
    ran.says("OwnSearch", "OwnSts", "written: ")
    assert "failed: " not in ran.output


def collected(ran: Ran) -> None:
    ran.says(r"\d+ (tests? collected|/\d+ tests collected)|\d+/\d+ tests collected")


RUNS = (
    Row(r'^pip install -e "\.\[test\]"$', 1200, installed, late=2),
    Row(r"^pip install -e ", 900, installed),
    Row(r"^python -m piccolo_st launch finetune$", 900, quickstart, whole=True),
    Row(r"accelerate/cpu\.yaml finetune$", 300, goes_on),
    Row(r"cpu_zero1\.yaml .*--train\.output_dir runs/zero1$", 600, run_of("runs/zero1", r"DeepSpeed, 2 process")),
    Row(r"^torchrun --nproc_per_node 2", 600, run_of("runs/ddp", r"DDP, 2 process")),
    Row(r"^python -m piccolo_st launch pretrain$", 600, run_of("runs/pretrain-quickstart")),
    Row(r"--train\.output_dir runs/quickstart-stage2$", 600, run_of("runs/quickstart-stage2", "runs/pretrain-quick")),
    Row(
        r"cpu_zero1\.yaml pretrain zh-mini-pretrain",
        600,
        run_of("runs/zh-mini-pretrain-zero1", r"DeepSpeed, 2 process"),
    ),
    Row(r"^python -m piccolo_st launch pretrain zh-mini", 600, run_of("runs/zh-mini-pretrain")),
    Row(r"--train\.output_dir runs/zh-mini-stage2$", 600, run_of("runs/zh-mini-stage2", "runs/zh-mini-pretrain/model")),
    Row(r"--train\.output_dir runs/zh-mini-zero1$", 600, run_of("runs/zh-mini-zero1", r"DeepSpeed, 2 process")),
    Row(r"^python -m piccolo_st launch finetune zh-mini", 600, run_of("runs/zh-mini")),
    Row(r"^python -m piccolo_st --help$", 60, lambda ran: ran.says("finetune +train", "configs +list")),
    Row(r"^python -m piccolo_st configs$", 60, lambda ran: ran.says("quickstart +The quickstart")),
    Row(r"^python -m piccolo_st configs quickstart$", 60, lambda ran: ran.says(r"/quickstart\.yaml")),
    Row(r" --plan$", 120, planned),
    Row(r"^python -m piccolo_st demo$", 500, page, serves=True),
    Row(r"^python -m piccolo_st demo MODEL OTHER ", 500, page, serves=True, late=1),
    Row(r"-m piccolo_st prepare split .*runs/zh$", 300, prepared("runs/zh/split")),
    Row(r"-m piccolo_st prepare split .*runs/e5 ", 300, prepared("runs/e5/split")),
    Row(r"-m piccolo_st prepare check .*runs/zh$", 300, prepared("runs/zh/check")),
    Row(r"-m piccolo_st prepare check ", 300, prepared("runs/prepare/check")),
    Row(r"-m piccolo_st prepare dedup .*runs/zh$", 300, prepared("runs/zh/dedup")),
    Row(r"-m piccolo_st prepare filter .*runs/zh$", 300, prepared("runs/zh/filter")),
    Row(r"-m piccolo_st prepare mine .*runs/zh ", 300, prepared("runs/zh/mine")),
    Row(r"-m piccolo_st prepare score .*runs/zh ", 300, prepared("runs/zh/score")),
    Row(r"-m piccolo_st prepare dedup MIXTURE", 300, prepared("runs/mixture/dedup")),
    Row(r"-m piccolo_st prepare dedup prepare$", 300, prepared("runs/prepare/dedup")),
    Row(r"-m piccolo_st prepare mine runs/prepare/dedup/mixture\.yaml$", 300, prepared("runs/prepare/mine")),
    Row(r"-m piccolo_st evaluate MODEL --benchmark my\.yaml$", 300, evaluated),
    Row(r"-m piccolo_st merge runs/merged ", 300, merged, late=1),  # of what the commands of the YAML files leave
    Row(r"-m piccolo_st release runs/quickstart/model ORG/NAME --fill-card ", 200, card),
    Row(r"-m piccolo_st release runs/quickstart/model ORG/NAME --push --tag v1\.0$", 200, pushed),
    Row(r"-m piccolo_st release MODEL ORG/NAME$", 200, dry_run, late=1),
    Row(r"-m piccolo_st release MODEL ORG/NAME --push --space$", 300, space, late=1),
    Row(r"^([A-Z_]+=\S+ )*pytest ", 200, collected, late=3),
)


def write_what_a_user_has(folder: Path) -> None:
    """What the placeholders stand for: data in the layout of zh-mini-mixture.yaml, texts, tasks of one's own."""
    rng = random.Random(7)
    write_local_tasks(folder / "my_tasks")
    (folder / "my_texts.txt").write_text("\n".join(text(rng, 20) for _ in range(300)), encoding="utf-8")
    mixture = yaml.safe_load((folder / "recipes/configs/zh-mini-mixture.yaml").read_text(encoding="utf-8"))
    for spec in mixture["datasets"].values():
        path = folder / PLACEHOLDERS["ROOT"] / spec["source"]
        if path.suffix == ".jsonl":
            count = 3000 if path.name == "simclue.train.jsonl" else 1000
            write_jsonl(path, [row_of(spec["source"], rng) for _ in range(count)])
        else:
            write_search(path, documents=200, queries=60)


def text(rng: random.Random, length: int) -> str:
    """Chinese characters at random, the frequent ones more often."""
    return "".join(chr(0x4E00 + int(rng.paretovariate(0.5)) % 3000) for _ in range(length))


def row_of(source: str, rng: random.Random) -> dict[str, Any]:
    """A row in the columns that zh-mini-mixture.yaml gives for the file; what belongs together shares its beginning."""
    about, other = text(rng, 8), text(rng, 8)
    first, second, third = about + text(rng, 4), about + text(rng, 6), other + text(rng, 5)
    if source.startswith("sts/"):
        alike = rng.random() < 0.5
        return {"sentence1": first, "sentence2": second if alike else third, "score": float(alike)}
    if source.startswith("nli/"):
        label = rng.choice(["entailment", "contradiction", "neutral"])
        return {"premise": first, "hypothesis": third if label == "contradiction" else second, "label": label}
    if source.startswith("classification/"):
        return {"text": first, "label": rng.randrange(2 if "hotel" in source else 10)}
    if "captions" in source:
        return {"query": first, "positives": [second], "negatives": [text(rng, 8) for _ in range(10)]}
    return {
        "query": first,
        "positive": second,
        **({"negative": third} if source.endswith("simclue.train.jsonl") else {}),
    }
