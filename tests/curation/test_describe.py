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


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_text_of_another_encoding_is_named_and_then_read(
    suffix: str, encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"问题": f"第{n}次来图书馆，怎么办一张读者证？", "答案": f"凭身份证到{n}楼服务台填写登记表，即可当场办理。"}
        for n in range(1, 9)
    ]
    csv = "".join(f"{question},{answer}\n" for question, answer in [("问题", "答案"), *(row.values() for row in rows)])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path, output = tmp_path / f"faq.{suffix}", tmp_path / "faq.yaml"
    path.write_bytes((csv if suffix == "csv" else lines).encode(encoding))
    with pytest.raises(MixtureError, match=r"its text is not utf-8; .*encoding.* \(--encoding of describe\)"):
        main(["describe", str(path), "--output", str(output)])
    main(["describe", str(path), "--output", str(output), "--encoding", encoding])
    assert rows[0]["问题"] in capsys.readouterr().out
    found = load_mixture(output, cache_dir=tmp_path / "cache").train["faq"]
    assert [row["query"] for row in found] == [row["问题"] for row in rows]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("问题;答案\n怎么办证;到一楼\n", r"got 问题;答案; its fields are separated by semicolons: save it with commas"),
        ("问题\t答案\n怎么办证\t到一楼\n", r"its fields are separated otherwise: set `format: tsv`"),
        ("问题,答案\n怎么办证,到一楼,押金\n", r"got 1 that cannot among its first 1: .*csv, row 2: wrong number "
         "of fields; mend these rows"),
    ],
)  # fmt: skip
def test_what_a_file_is_that_was_read_in_vain_is_said(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text(text, encoding="utf-8")
    with pytest.raises(MixtureError, match=said):
        main(["describe", str(tmp_path / "faq.csv")])


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"query": Q, "positive": P}])
    with pytest.raises(MixtureError, match=r"encoding of dataset 'rows' .* must be one that Python knows.*'gb99999'"):
        main(["describe", str(path), "--encoding", "gb99999"])
