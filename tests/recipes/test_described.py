"""What only looks at a configuration needs no sentence-transformers, and says what the run would say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from piccolo_st.commands.train import finetune
from piccolo_st.describe import json_schema
from piccolo_st.errors import ConfigError
from piccolo_st.schema import build
from piccolo_st.training import described
from piccolo_st.training.described import described_run, described_sections, keep_description
from piccolo_st.training.training_arguments import PiccoloTrainingArguments

HEAVY = """
import sys
from piccolo_st.__main__ import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "transformers", "sentence_transformers", "mteb"}
    print("imported:", [name for name in sys.modules if name in heavy])
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("finetune --help", "--train.optim"),
        ("prepare --help", "--filter.min_han"),
        ("prepare describe --help", "--output"),
        ("evaluate --help", "--truncate_dim"),
        ("release --help", "--push"),
        ("demo --help", "--corpus"),
        ("ablation --help", "--table"),
        ("merge --help", "--method"),
        ("finetune --plan", "activations"),
        ("finetune quickstart --train.lr 1", "error: unknown key 'train.lr'"),
        ("finetune quickstart --train.optim_args [1]", "error: train.optim_args must be"),
        ("finetune quickstart --data.mixture {datasets:{words:{sauce:x}}}", "error: "),
    ],
)
def test_looking_imports_nothing_heavy(line: str, said: str) -> None:
    words = [word.replace(":", ": ") if word.startswith("{") else word for word in line.split()]
    done = subprocess.run([sys.executable, "-c", HEAVY, *words], capture_output=True, text=True, timeout=120)
    assert said in done.stdout + done.stderr
    assert "imported: []" in done.stdout


def test_what_the_description_refuses_the_run_refuses_in_the_same_words() -> None:
    sections = described_sections("finetune")
    assert sections is not None
    looked_at, refused = described_run("finetune", sections).sections()["train"], 0
    for key in sections["train"]["properties"]:
        for value in ("nonsense", -1, 0, 0.5, True, None, [1], {"a": 1}):
            try:
                build(looked_at, {key: value}, "section 'train'", section="train")
            except ConfigError as error:
                refused += 1
                with pytest.raises(ConfigError) as of_the_run:
                    build(PiccoloTrainingArguments, {key: value}, "section 'train'", section="train")
                assert str(error) == str(of_the_run.value)
    assert refused > 300


def test_the_description_of_other_versions_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(described, "LIBRARIES", ("transformers",))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert described_sections("finetune") is None
    with pytest.raises(SystemExit):  # by what is imported
        finetune(["--help"])
    slow = capsys.readouterr().out
    keep_description()
    sections = described_sections("finetune")
    assert sections is not None and sections["train"] == json.loads(json.dumps(json_schema(PiccoloTrainingArguments)))
    finetune(["--help"])
    assert capsys.readouterr().out == slow
