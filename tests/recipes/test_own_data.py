"""The README's section of one's own data, walked by its text from a small checkpoint: what it names is there."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from piccolo_st.modeling import EncoderSettings
from piccolo_st.modeling.tiny_bert import build_encoder
from tests.readme_commands import ROOT, of_markdown

CHECKPOINT = "intfloat/multilingual-e5-small"


def section(name: str, title: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = [one for one in of_markdown(text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]) if "runs/faq" in one]
    assert len(found) >= 6
    return found


def test_both_languages_have_the_same_commands() -> None:
    assert section("README.md", "Your own data") == section("recipes/README.zh.md", "自己的数据：十分钟")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_section_is_walked(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "data" / "faq" / "faq.csv", tmp_path)
    (tmp_path / "general.yaml").write_text(
        "tasks: [{name: Similarity, type: STS, data: general.tsv}]", encoding="utf-8"
    )
    pairs = [
        ("今天天气很好", "今天天气不错", 5),
        ("他在看书", "她在跑步", 1),
        ("我要还书", "我想还书", 4),
        ("开门", "水果", 0),
    ]
    lines = ["sentence1\tsentence2\tscore", *(f"{a}\t{b}\t{score}" for a, b, score in pairs)]
    (tmp_path / "general.tsv").write_text("\n".join(lines), encoding="utf-8")
    faq = (tmp_path / "faq.csv").read_text(encoding="utf-8").splitlines()
    settings = EncoderSettings(vocab_size=2000, hidden_size=32, layers=1, heads=2, intermediate_size=64)
    build_encoder(settings, [*faq, *["query: passage: "] * 9], tmp_path / "checkpoint")

    def run(line: str) -> str:
        line = line.replace(CHECKPOINT, "checkpoint")
        _, *words = shlex.split(line)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    describe, split, before, finetune, after, compare, *_ = [
        "python -m piccolo_st prepare describe faq.csv --output faq.yaml",
        *section("README.md", "Your own data"),
    ]
    assert "第一次来图书馆" in run(describe) and (tmp_path / "faq.yaml").is_file()
    assert "291" in run(split)
    assert "faq-test" in run(before) and "207" in run(finetune)
    assert (tmp_path / "runs/faq-e5/model/modules.json").is_file()
    assert "Similarity" in run(after) and "95% interval" in run(compare)
