"""The parts of the README that are code: each part alone runs with the stock trainer; every dependency is listed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from piccolo_st.__main__ import COMMANDS
from piccolo_st.curation import STEPS
from piccolo_st.losses import PiccoloLoss
from piccolo_st.modeling import InstructionPooling
from piccolo_st.shipped import shipped
from tests.readme_commands import told
from tests.test_dependencies import requirements

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_each_part_alone(
    make_model: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments

    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", section("Each part alone"), re.S)
    assert len(snippets) == 4
    rows = {"query": [f"数{n}" for n in "一二三四五六七八"], "positive": [f"{n}的结果" for n in "一二三四五六七八"]}
    datasets = DatasetDict({"a": Dataset.from_dict(rows), "b": Dataset.from_dict(rows)})
    names: list[dict[str, Any]] = []
    for snippet in snippets:
        assert len(snippet.splitlines()) <= 12, snippet
        arguments = Arguments("out", per_device_train_batch_size=4, max_steps=2, report_to="none",
                              save_strategy="no", disable_tqdm=True)  # fmt: skip
        model = names[-1]["model"] if "trainer.model" in snippet else make_model()
        names.append({"model": model, "arguments": arguments, "datasets": datasets})
        names[-1] |= {"trainer": names[-2]["trainer"]} if "trainer.model" in snippet else {}
        exec(snippet, names[-1])
        assert type(names[-1]["trainer"]) is SentenceTransformerTrainer
        assert names[-1]["trainer"].state.global_step == 2
    assert isinstance(names[0]["loss"], PiccoloLoss)
    assert "HomogeneousBatchSampler" in str(names[1]["arguments"].multi_dataset_batch_sampler)
    assert any(isinstance(module, InstructionPooling) for module in names[2]["model"])
    assert "sentence-transformers" in capsys.readouterr().out
    assert SentenceTransformer("portable").prompts["query"] == "查询："


def test_every_command_names_what_there_is() -> None:
    found = [command.text for command in told()]
    assert len(found) > 50
    for command in found:
        for path in re.findall(r"(?:recipes|tests)/[\w./-]+", command):
            assert (ROOT / path).exists(), command
        launched = re.sub(r" launch (--\w+ (\$\([^)]*\)|\S+) )*", " ", command)
        if started := re.search(r"-m piccolo_st (\w+)(?: ([a-z][a-z0-9-]*)(?= |$))?(.*)", launched):
            module = COMMANDS[started[1]][0].rpartition(".")[0].replace(".", "/")
            code = (ROOT / "piccolo_st" / f"{module}.py").read_text(encoding="utf-8")
            assert started[2] is None or started[2] in {*shipped(), *STEPS, "describe"}, command
            for option in re.findall(r"--([\w-]+)(?![\w.-])", started[3]):
                assert f'"--{option}"' in code, command


def test_every_dependency_is_explained() -> None:
    first = [row.split("|")[1] for row in section("Dependencies").splitlines() if row.startswith("|")][2:]
    named = {name for cell in first for name in re.findall(r"[A-Za-z][\w-]*", re.sub(r"\(.*\)", "", cell))}
    assert named == {one.name for one in requirements()}
