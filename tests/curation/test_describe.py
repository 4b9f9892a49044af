"""``prepare describe``: the mixture that it writes reads each shape, and what it shows is what is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from piccolo_st.commands.prepare import main
from piccolo_st.data import load_mixture
from piccolo_st.errors import MixtureError
from tests.data.test_shapes import FILES, ROWS, N, P, Q
from tests.helpers.mixtures import jsonl


def _described(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, list[dict[str, Any]], Any]:
    """What is said, the rows by the mixture that is written, and the entry."""
    output = path.parent / "mixture.yaml"
    main(["describe", str(path), "--output", str(output)])
    mixture = load_mixture(output, cache_dir=path.parent / "cache")
    return capsys.readouterr().out, list(mixture.train["rows"]), mixture.specs["rows"]


@pytest.mark.parametrize("shape", [*ROWS, *FILES])
def test_every_shape_is_read_by_the_entry_that_is_written(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = ROWS[shape] if shape in ROWS else FILES[shape]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([content] if shape in ROWS else content, ensure_ascii=False), encoding="utf-8")
    text, rows, _ = _described(path, capsys)
    assert rows == expected
    assert Q in text and "length in characters + 2" in text


SCORED = [{"text1": Q, "text2": P, "score": 4.5}, {"text1": Q, "text2": N, "score": 0}]


@pytest.mark.parametrize(
    ("rows", "settings", "trained"),
    [
        (SCORED, {"task": "sts", "score_range": (0, 5)}, {"sentence1": Q, "sentence2": N, "label": 0.0}),
        ([{**row, "score": int(row["score"] > 1)} for row in SCORED], {"task": "pair"},
         {"sentence1": Q, "sentence2": N, "label": 0.0}),
        ([{"anchor": Q, "positive": P, "label": 0}, {"anchor": Q, "positive": N, "label": 1}], {"task": "retrieval"},
         {"query": Q, "positive": N}),
        ([{"sentence1": P, "sentence2": N, "label": "contradiction"}, {"sentence1": P, "sentence2": Q,
          "label": "entailment"}], {"task": "retrieval"}, {"query": P, "positive": Q, "negative": [N]}),
        ([{"正文": P, "标题": "蓝"}], {"columns": {"query": "标题", "positive": "正文"}},
         {"query": "蓝", "positive": P}),
    ],
)  # fmt: skip
def test_labels_and_unknown_names_decide_the_entry(
    rows: list[dict[str, Any]], settings: dict[str, Any], trained: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _, found, spec = _described(jsonl(tmp_path / "rows.jsonl", rows), capsys)
    assert found[-1] == trained
    assert {name: getattr(spec, name) for name in settings} == settings


def test_one_prompt_is_the_instruction_and_several_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"query": Q, "pos": [P], "prompt": "检索："}
    (tmp_path / "one").mkdir()
    _, _, spec = _described(jsonl(tmp_path / "one" / "rows.jsonl", [row]), capsys)
    assert spec.instruction is not None and (spec.instruction.query, spec.instruction.document) == ("检索：", "")
    text, _, spec = _described(jsonl(tmp_path / "rows.jsonl", [row, {**row, "query": N, "prompt": "找："}]), capsys)
    assert spec.instruction is None and "its rows have 2 prompts, which are not used" in text


def test_what_cannot_be_told_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MixtureError, match="must have columns of a known kind, got id; name them with `columns`"):
        main(["describe", str(jsonl(tmp_path / "rows.jsonl", [{"id": 1}]))])
