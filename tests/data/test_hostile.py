"""Files that nobody meant to write, and settings out of range: one sentence, or rows lost with a reason."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from piccolo_st.data import load_mixture
from piccolo_st.errors import InputError, MixtureError
from tests.helpers.mixtures import jsonl, load

ROWS = [{"query": f"今天的问题是{i}", "positive": f"回答得很好，第{i}次"} for i in range(60)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False)
TABLES = {sep: "".join(sep.join(row) + "\n" for row in [("query", "positive"), *(tuple(r.values()) for r in ROWS)])
          for sep in ",\t;"}  # fmt: skip
PARQUET = b"PAR1" + bytes(range(256)) * 20 + b"PAR1"

SENTENCES: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "GBK": ("a.jsonl", LINES.encode("gb18030"), {}, r"60 not UTF-8.*looks like gb18030: set `encoding: gb18030`"),
    "GBK in CSV": ("a.csv", TABLES[","].encode("gb18030"), {}, r"set `encoding: gb18030`"),
    "GBK in JSON": ("a.json", ARRAY.encode("gb18030"), {}, r"cannot be read as json: .*set `encoding: gb18030`"),
    "UTF-16": ("a.jsonl", LINES.encode("utf-16"), {}, r"set `encoding: utf_16`"),
    "an array in JSON lines": ("a.jsonl", ARRAY.encode(), {}, r"it is a JSON array: set `format: json`"),
    "JSON lines in JSON": ("a.json", LINES.encode(), {}, r"it has an object a line: set `format: jsonl`"),
    "one object in JSON": ("a.json", b'{"data": 3}', {}, r"it is one object: write the list of rows"),
    "Parquet as JSON lines": ("a.jsonl", PARQUET, {}, r"it is a Parquet file: set `format: parquet`"),
    "text as Parquet": ("a.parquet", LINES.encode(), {}, r"it is plain text: check its name"),
    "gzip without its suffix": ("a.jsonl", gzip.compress(LINES.encode()), {}, r"let its name end in \.gz"),
    "a suffix without gzip": ("a.jsonl.gz", LINES.encode(), {}, r"it is not compressed: take \.gz off its name"),
    "tabs in CSV": ("a.csv", TABLES["\t"].encode(), {}, r"say which with .*set `format: tsv`"),
    "commas in TSV": ("a.tsv", TABLES[","].encode(), {}, r"say which with .*set `format: csv`"),
    "semicolons in CSV": ("a.csv", TABLES[";"].encode(), {}, r"fields are separated by semicolons"),
    "a header that does not end": ("a.csv", b'query,"positive\na,b\n', {}, r"header is no row: an unbalanced quote"),
    "an array without an end": ("a.json", b"[" * 100_000, {}, r"cannot be read as json: nested too deeply"),
    "BEIR on a file": ("a.jsonl", LINES.encode(), {"format": "beir"}, r"must be a folder for the format beir"),
    "jionlp on a file": ("a.jsonl", LINES.encode(), {"format": "jionlp"}, r"must be jionlp:words or another set"),
    "the Hub on a file": ("a.jsonl", LINES.encode(), {"format": "hub"}, r"must be of the Hub for the format hub"),
    "encoding of Parquet": ("a.parquet", b"", {"encoding": "gbk"}, r"encoding of dataset 'faq' must be left out"),
    "an unknown encoding": ("a.jsonl", b"", {"encoding": "gb-2"}, r"encoding .* must be one that Python knows"),
    "no text encoding": ("a.jsonl", b"", {"encoding": "base64"}, r"encoding .* must be one that Python knows"),
}  # fmt: skip


@pytest.mark.parametrize("name", SENTENCES)
def test_what_is_read_as_something_else_is_refused_with_the_remedy_that_fits(name: str, tmp_path: Path) -> None:
    file, content, settings, message = SENTENCES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(MixtureError, match=message):
        load(tmp_path / file, **settings)


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("classification", {"preset": {"name": "classes", "negatives": 10**9}}, r"negatives .* at most 1000, got 10"),
    ("classification", {"preset": {"name": "classes", "seed": -1}}, r"seed .* at least 0, got -1"),
    ("classification", {"labels": []}, r"labels .* must name at least one"),
    ("retrieval", {"min_characters": 10**30}, r"min_characters .* must be below 2\*\*63"),
    (
        "retrieval",
        {"min_characters": 9, "max_characters": 8},
        r"min_characters .* at most its max_characters, 8, got 9",
    ),
    ("retrieval", {"max_rejected": float("nan")}, r"max_rejected .* at least 0 and at most 1, got nan"),
    ("sts", {"score_range": [0, float("inf")]}, r"score_range.* must be a finite number, got inf"),
    ("sts", {"score_range": [-1.7e308, 1.7e308]}, r"score_range .* must be \[lowest, highest\]"),
    ("sts", {"preset": {"name": "scored_pairs", "threshold": float("nan")}}, r"threshold .* must be a finite number"),
]


@pytest.mark.parametrize(("task", "settings", "message"), SETTINGS)
def test_a_setting_out_of_range_is_refused(task: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(jsonl(tmp_path / "a.jsonl", ROWS), task, **settings)


@pytest.mark.parametrize("source", ["~nosuchuser/a.jsonl", "x" * 300 + ".jsonl", "x" * 5000 + "*.jsonl"])
def test_a_place_that_cannot_be_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(MixtureError, match=r"source of dataset 'faq' must name what can be opened, got '.*; check its"):
        load_mixture({"datasets": {"faq": {"source": source, "task": "retrieval"}}}, cache_dir=tmp_path)


def test_a_glob_of_two_formats_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.csv").write_text("query,positive\n")
    with pytest.raises(MixtureError, match=r"files of one format, got 2 files of 2 \(csv, jsonl\)"):
        load(tmp_path / "*.*")


@pytest.mark.parametrize("state", ["{", "[1]", "{}", '{"_data_files": [{"filename": 3}]}',
                                   '{"_data_files": [{"filename": "gone.arrow"}]}'])  # fmt: skip
def test_a_saved_folder_with_a_broken_state_is_refused(state: str, tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text(state)
    with pytest.raises(MixtureError, match=r"must be a folder written by save_to_disk, got .*saved, in which "):
        load(tmp_path / "saved")


LOST: dict[str, tuple[str, str]] = {
    "5,000 digits": ('{"query": "问", "positive": "答", "n": ' + "9" * 5000 + "}", "a number of too many digits"),
    "nesting of 100,000": ('{"query": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "nesting of 900": ('{"query": "问", "positive": {"a": ' + "[" * 900 + "]" * 900 + "}}", "positive: wrong type"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_a_line_that_python_cannot_hold_is_rejected(name: str, tmp_path: Path) -> None:
    line, reason = LOST[name]
    (tmp_path / "a.jsonl").write_text(LINES + line + "\n", encoding="utf-8")
    report = load(tmp_path / "a.jsonl").report.datasets["faq"]
    assert (report.kept, report.rejected) == (len(ROWS), {reason: 1})


def test_a_key_that_utf8_cannot_spell_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES + '{"query": "问", "positive": "答", "\\ud83d": 1}\n', encoding="utf-8")
    assert load(tmp_path / "a.jsonl").report.datasets["faq"].unused_columns == ("\\ud83d",)


def _gbk(texts: list[str]) -> pa.Array:
    return pa.array([text.encode("gbk") for text in texts]).view(pa.string())


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize("form", ["text", "dictionary", "list"])
def test_texts_of_a_columnar_source_that_are_not_utf8_go_by_row(form: str, format: str, tmp_path: Path) -> None:
    broken = _gbk(["晴天" if i in (3, 41) else f"a{i}" for i in range(60)])
    column = {
        "text": broken,
        "dictionary": pa.DictionaryArray.from_arrays(pa.array(range(60), pa.int32()), broken),
        "list": pa.ListArray.from_arrays(pa.array(range(61), pa.int32()), broken),
    }[form]
    table = pa.table({"query": [row["query"] for row in ROWS], "positive": column})
    if format == "parquet":
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=25)
    else:
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    report = load(tmp_path / f"a.{format}").report.datasets["faq"]
    assert (report.rows, report.kept, report.rejected) == (60, 58, {"not UTF-8": 2})
    rows = [json.loads(line)["row"] for line in report.rejects_path.read_text(encoding="utf-8").splitlines()]
    assert rows == [4, 42]


def test_a_column_twice_is_refused_and_scores_of_any_number_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["query", "query", "positive"]), tmp_path / "a.parquet")
    with pytest.raises(MixtureError, match=r"names a column twice: query, query, positive"):
        load(tmp_path / "a.parquet")
    for number, label in enumerate((pa.array([2**63 + 5, 0], pa.uint64()), pa.array([Decimal("5e18"), Decimal(0)]))):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": label}), path)
        scores = load(path, "sts", score_range=[0, 1e19]).train["faq"]["label"]
        assert scores[:] == [pytest.approx(float(label[0].as_py()) / 1e19), 0.0]


CSV: dict[str, tuple[dict[int, str], set[int], str]] = {
    "a quote that does not end": ({5: '问5,"答5'}, {5}, "an unbalanced quote"),
    "a quote that ends inside a later field": ({5: '问5,"答5', 55: '问55,答55"好'}, {5}, "an unbalanced quote"),
    "quotes around every field but one end": ({i: f'问{i},"答{i}' + '"' * (i != 50) for i in range(100)}, {50},
                                              "an unbalanced quote"),
    "text after a quoted field": ({7: '"问"7,答7'}, {7}, "not valid CSV"),
}  # fmt: skip


@pytest.mark.parametrize("name", CSV)
def test_an_unbalanced_quote_costs_its_own_line_only(name: str, tmp_path: Path) -> None:
    changed, lost, reason = CSV[name]
    lines = [changed.get(i, f"问{i},答{i}") for i in range(100)]
    (tmp_path / "a.csv").write_text("query,positive\n" + "\n".join(lines), encoding="utf-8")
    mixture = load(tmp_path / "a.csv")
    report = mixture.report.datasets["faq"]
    assert (report.rows, report.rejected) == (100, {reason: len(lost)})
    rejects = report.rejects_path.read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["row"] - 2 for line in rejects} == lost
    assert mixture.train["faq"]["query"][:] == [f"问{i}" for i in range(100) if i not in lost]


def test_a_quoted_field_over_rows_is_rejected_and_one_over_lines_is_not(tmp_path: Path) -> None:
    answers = [f"答{i}" for i in range(30)]
    answers[5], answers[20] = '"答5', '答20"'
    swallowing = "".join(f"问{i},{answer}\n" for i, answer in enumerate(answers))
    poem = '诗,"床前明月光\n疑是地上霜\n\n举头望明月, 低头思故乡\n完"\n'
    (tmp_path / "a.csv").write_text("query,positive\n" + swallowing + poem, encoding="utf-8")
    mixture = load(tmp_path / "a.csv")
    report = mixture.report.datasets["faq"]
    (reason,) = report.rejected
    assert report.rejected[reason] == 1 and "look like rows of their own" in reason
    assert mixture.train["faq"][-1]["positive"].startswith("床前明月光\n疑是地上霜\n\n举头")
    assert len(mixture.train["faq"]) == 15


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-16-le", "UTF8"])
@pytest.mark.parametrize(("name", "text"), [("a.jsonl", LINES), ("a.json", ARRAY), ("a.csv", TABLES[","]),
                                            ("a.tsv.gz", TABLES["\t"])])  # fmt: skip
def test_another_encoding_is_read_as_the_mixture_says(name: str, text: str, encoding: str, tmp_path: Path) -> None:
    content = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(load(tmp_path / name, encoding=encoding).train["faq"]) == ROWS


def test_a_byte_that_another_encoding_does_not_have_costs_its_row(tmp_path: Path) -> None:
    lines = LINES.encode("gb18030").splitlines(keepends=True)
    lines[4] = lines[4].replace("问题".encode("gb18030"), b"\xff")
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    report = load(tmp_path / "a.jsonl", encoding="gb18030").report.datasets["faq"]
    assert (report.kept, report.rejected) == (59, {"query: replacement character U+FFFD": 1})


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_long_lines_are_skipped_and_long_rows_are_read_in_small_chunks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piccolo_st.data.text_files.LINE_LIMIT", 1000)
    monkeypatch.setattr("piccolo_st.data.chunks.CHUNK_BYTES", 2000)
    monkeypatch.setattr("piccolo_st.data.columnar._FEW", 2)
    rows = [{"query": f"q{i}", "positive": str(i % 10) * (5000 if i == 3 else 500)} for i in range(30)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    elif name == "a.csv":
        cells = "".join(f"{row['query']},{row['positive']}\n" for row in rows)
        (tmp_path / name).write_text("query,positive\n" + cells, encoding="utf-8")
    else:
        jsonl(tmp_path / name, rows)
    mixture = load(tmp_path / name)
    lost = [] if name == "a.parquet" else [3]
    assert mixture.train["faq"]["query"][:] == [f"q{i}" for i in range(30) if i not in lost]
    assert sum(mixture.report.datasets["faq"].rejected.values()) == len(lost)


def test_the_first_rows_of_a_sorted_file_are_told(tmp_path: Path) -> None:
    scored = [{"sentence1": f"甲{i}", "sentence2": f"乙{i}", "label": int(i < 50)} for i in range(100)]
    (warning,) = load(jsonl(tmp_path / "a.jsonl", scored), "sts", max_rows=40).report.datasets["faq"].warnings
    assert "all of its scores are 1, and max_rows=40 reads the first rows" in warning
    assert not load(jsonl(tmp_path / "a.jsonl", scored), "sts", max_rows=60).report.datasets["faq"].warnings
    classes = [{"text": f"文本{i}", "label": "好" if i < 50 else "坏"} for i in range(100)]
    with pytest.raises(MixtureError, match=r"'好' in every row; `max_rows` reads the first ones: shuffle the file"):
        load(jsonl(tmp_path / "b.jsonl", classes), "classification", max_rows=40)
