"""The recipes as a person starts them: help, a small run to its end, and every kind of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import yaml
from sentence_transformers import SentenceTransformer

from piccolo_st.__main__ import COMMANDS
from piccolo_st.modeling.fingerprint import content_hash
from piccolo_st.shipped import find, shipped
from piccolo_st.training.ownership import own
from tests.helpers.forked import forked

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
Finetune = Callable[..., tuple[int, str, str]]
DIGITS = "一二三四五六七八九十"


def launch(*arguments: str, cwd: Path = ROOT, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    """``accelerate launch`` with these arguments, as a person would type it, two threads at most."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path, encoder_dir: Path) -> Path:
    """A run of a few seconds: two retrieval sets (one with ragged negatives) and one of scored pairs."""
    numbers = [a + b for a in DIGITS for b in DIGITS]
    faq = [{"query": f"数{n}", "positive": f"{n}的结果"} for n in numbers]
    ragged = [
        {"query": f"天{n}", "positive": f"{n}天", "negative": [f"{m}月" for m in numbers[: i % 4]]}
        for i, n in enumerate(numbers)
    ]
    pairs = [{"sentence1": n, "sentence2": m, "score": float(n[0] == m[0])} for n, m in zip(numbers, numbers[5:])]  # noqa: B905
    content = {
        "model": {"name_or_path": str(encoder_dir), "query_length": 16, "document_length": 32},
        "data": {
            "mixture": {
                "root": str(tmp_path),
                "datasets": {
                    "faq": {
                        "source": str(write_rows(tmp_path / "faq.jsonl", faq)),
                        "task": "retrieval",
                        "holdout": {"queries": 10, "min_corpus": 20},
                    },
                    "ragged": {"source": str(write_rows(tmp_path / "ragged.jsonl", ragged)), "task": "retrieval"},
                    "pairs": {"source": str(write_rows(tmp_path / "pairs.jsonl", pairs)), "task": "sts"},
                },
            },
            "batch_size": 16,
            "mining_model": "lexical",
            "mining": {"num_negatives": 2},
        },
        "train": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 6,
            "learning_rate": 1e-3,
            "eval_on_start": True,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_strategy": "steps",
            "save_steps": 3,
            "logging_steps": 1,
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture
def finetune(command: Finetune) -> Finetune:
    """The command finetune, in this process: (exit code, standard output, standard error)."""
    return partial(command, "finetune")


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


def test_help_names_every_command_and_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from piccolo_st.__main__ import dispatch\n"
        "dispatch([]); print(time.perf_counter() - start, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    shown = python("-c", code, cwd=tmp_path).stdout.splitlines()
    seconds, *loaded = shown.pop().split()
    assert float(seconds) < 0.3 and loaded == ["False", "False"]
    assert {name for name in COMMANDS if any(line.split()[:1] == [name] for line in shown)} == set(COMMANDS)
    assert [recipe.stem for recipe in RECIPES] == sorted(set(COMMANDS) - {"card", "configs", "launch"})


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_how_it_is_started(name: str, command: Finetune) -> None:
    code, shown, _ = command(name, "--help")
    assert code == 0 and f"-m piccolo_st {name}" in shown and len(shown.splitlines()) > 5


def test_help_needs_no_package_of_an_extra(tmp_path: Path) -> None:
    """In processes of their own, since the packages have been imported by others in this one."""
    optional = "bm25s datatrove deepspeed faiss gradio jionlp matplotlib mteb onnx onnxruntime onnxscript opencc rensa"
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({optional.split()}))\n"
        "for recipe in sys.argv[1:]:\n"
        "    sys.argv = [recipe, '--help']\n"
        "    try:\n"
        "        runpy.run_path(recipe, run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (recipe, end.code)\n"
    )
    ran = python("-c", code, *RECIPES, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert all(f"-m piccolo_st {recipe.stem}" in ran.stdout for recipe in RECIPES)


def test_a_path_wins_over_the_name_of_a_shipped_configuration(
    tmp_path: Path, command: Finetune, finetune: Finetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find("quickstart") == shipped()["quickstart"] and find("nowhere.yaml") == Path("nowhere.yaml")
    assert set(shipped()) >= {"zh-mini-mixture", "cpu_zero1", "c-mteb-35"}
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("mdoel: {}", encoding="utf-8")
    code, _, error = finetune("quickstart")
    assert code == 2 and "unknown section 'mdoel' in quickstart, line 1; did you mean model?" in error
    code, where, _ = command("configs", "cpu_zero1")
    assert code == 0 and Path(where.strip()).is_file()
    assert all(f"\n{name} " in "\n" + command("configs")[1] for name in shipped())
    code, _, error = finetune("quikstart")
    assert code == 2 and "got 'quikstart'; did you mean quickstart? known are " in error and "zh-mini," in error


def test_a_run_from_yaml_to_a_model_that_stock_code_searches_with(
    config: Path, finetune: Finetune, tmp_path: Path
) -> None:
    code, out, _ = finetune(str(config))
    assert code == 0, out
    for name in ("faq", "ragged", "pairs"):
        assert f"\n{name} " in out
    assert "6 of 16 samples (16 x 1 processes x 1 accumulated)" in out
    assert "held-out search" in out and "nDCG@10" in out

    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in record["evaluations"]] == [0, 3, 6]
    assert record["content_hash"] == content_hash(SentenceTransformer(str(run / "model"), device="cpu"))
    resolved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["train"]["max_steps"] == 6
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.rglob("training_args.bin")), "a checkpoint holds nothing that would be unpickled"

    snippet = out[out.index("from sentence_transformers import") :].strip()
    assert max(map(len, snippet.splitlines())) <= 60 + len(str(run))
    searched = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path)
    assert searched.returncode == 0, searched.stderr
    assert "tensor([[" in searched.stdout


def test_a_time_limit_ends_a_run_as_its_last_step_would(
    config: Path, finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICCOLO_ST_MAX_SECONDS", "1e-9")  # the first step is taken in any case
    code, out, err = finetune(str(config))
    assert code == 0, err
    assert "ended      at step 1 of 6, after train.max_seconds=1e-09; the same command without it" in out
    run = tmp_path / "run"
    assert (run / "model" / "modules.json").exists() and (run / "curves.png").exists()
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in record["evaluations"]] == [0, 1] and "held-out search" in out
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]

    monkeypatch.delenv("PICCOLO_ST_MAX_SECONDS")
    code, out, err = finetune(str(config))
    assert code == 0 and "ended  " not in out, err
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in record["evaluations"]] == [0, 1, 3, 6]


def test_overrides_reach_the_run(config: Path, finetune: Finetune, tmp_path: Path) -> None:
    code, out, err = finetune(
        str(config), "--train.max_steps", "2", "--data.batch_size", "8", "--model.instructions", "none",
        "--train.eval_strategy", "no", "--train.eval_on_start", "false", "--train.save_strategy", "no",
        "--model.dimension", "24", "--loss.matryoshka_dims", "[24, 12]",
    )  # fmt: skip
    assert code == 0, err
    assert "2 of 8 samples" in out
    model = SentenceTransformer(str(tmp_path / "run" / "model"))
    assert model.prompts["query"] == "" and model.get_embedding_dimension() == 24


BAD_INPUT = [
    (["--loss.directions", "[query_to_nowhere]"], "query_to_nowhere"),
    (["--data.mixture.datasets.faq.columns", "{query: question}"], "question"),
    (["--data.mining.num_negativs", "2"], "unknown key 'data.mining.num_negativs'"),
    (["--data.mixing", "weights"], "must have a weight where data.mixing is 'weights', got none for 'faq'"),
    (["--data.mixture.datasets.faq.weight", "2"], "has the weight 2, which data.mixing 'proportional' does not read"),
    (["--train.output_dir", "/proc/no/such"], "train.output_dir /proc/no/such cannot be written to"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD_INPUT, ids=[" ".join(case[0]) for case in BAD_INPUT])
def test_bad_input_is_one_sentence_and_exit_code_2(
    config: Path, finetune: Finetune, arguments: list[str], said: str, tmp_path: Path
) -> None:
    code, _, err = finetune(str(config), *arguments)
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0], err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "model").exists()


def test_the_misspelt_key_under_accelerate_launch() -> None:
    ran = launch("recipes/finetune.py", "recipes/configs/quickstart.yaml", "--data.bach_size", "8")
    assert ran.returncode != 0
    assert "error: unknown key 'data.bach_size' in the command line; did you mean data.batch_size?" in ran.stderr


FINETUNE = ("-m", "piccolo_st", "finetune")
ZERO1 = str(ROOT / "recipes" / "accelerate" / "cpu_zero1.yaml")
BUILT = ["--model.name_or_path", "null", "--model.build", "{hidden_size: 16, layers: 1, heads: 2, vocab_size: 200}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "model", "engine"),
    [
        (["--config_file", ZERO1], [], "DeepSpeed, 2 process(es)"),
        (["--config_file", ZERO1], BUILT, "DeepSpeed, 2 process(es)"),
        (["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"], BUILT,
         "DDP, 2 process(es)"),
    ],
    ids=["zero1", "zero1, built", "ddp, built"],
)  # fmt: skip
def test_two_processes_do_the_same_job(
    config: Path, tmp_path: Path, start: list[str], model: list[str], engine: str
) -> None:
    """From any working directory; the model given, or built by the first of them."""
    if "--config_file" in start:
        pytest.importorskip("deepspeed")
    ran = launch(*start, *FINETUNE, str(config), *model, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert f"compute    cpu, fp32, {engine}" in ran.stdout and "held-out search" in ran.stdout
    assert (tmp_path / "run" / "model" / "modules.json").exists()


@pytest.mark.slow
def test_a_time_limit_ends_two_processes_at_the_same_step(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("PICCOLO_ST_MAX_SECONDS", "1e-9")
    ran = launch("--config_file", ZERO1, *FINETUNE, str(config), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "ended      at step 1 of 6" in ran.stdout and (tmp_path / "run" / "model" / "modules.json").exists()
    monkeypatch.delenv("PICCOLO_ST_MAX_SECONDS")
    ran = launch("--config_file", ZERO1, *FINETUNE, str(config), cwd=tmp_path)
    assert ran.returncode == 0 and "ended  " not in ran.stdout, ran.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoint-6").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--config_file", ZERO1)], ids=["1", "2"])
def test_a_launched_run_is_refused_on_every_rank(config: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Before it mines or builds anything; then, once the first is killed, it trains to its end."""
    if options:
        pytest.importorskip("deepspeed")
    with forked(lambda: own(tmp_path / "run")) as pid:
        ran = launch(*options, "recipes/finetune.py", str(config), timeout=120)
        assert ran.returncode != 0
        assert ran.stderr.count(f"error: {tmp_path / 'run'} is being written to by process {pid} on host") == 1
        assert {path.name for path in (tmp_path / "run").iterdir()} == {".owner.lock", ".owner.process"}
    ran = launch(*options, "recipes/finetune.py", str(config))
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
def test_what_the_launcher_did_not_start_is_said(config: Path, tmp_path: Path) -> None:
    ran = launch("--cpu", "--num_processes", "2", *FINETUNE, str(config), "--train.max_steps", "1", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "plain, 1 process(es)" in ran.stdout
    assert "accelerate launch started one process where several were asked for" in ran.stdout
    two = ["torchrun", "--nproc_per_node", "2", *FINETUNE, str(config), "--train.max_steps", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = subprocess.run(
        [*two, "--train.resume", "never"], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "DDP, 2 process(es)" in ran.stdout and "several were asked for" not in ran.stdout


def test_the_launchers_configurations_hold_from_any_working_directory() -> None:
    """The settings of DeepSpeed stand in the files themselves, and are the same in each."""
    found = []
    for path in sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if content["distributed_type"] == "DEEPSPEED":
            found.append(json.loads(content["deepspeed_config"]["deepspeed_config_file"]))
    assert len(found) == 3 and all(one == found[0] for one in found)
    assert found[0]["zero_optimization"]["stage"] == 1
