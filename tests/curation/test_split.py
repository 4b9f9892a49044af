"""The step split: tests drawn by rule out of every kind of training set, and nothing of them left to train on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from piccolo_st.data import load_mixture
from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.mixture import further_documents

Command = Callable[..., tuple[int, str, str]]
DIGITS = "一二三四五六七八九十"
NUMBERS = [a + b for a in DIGITS for b in DIGITS]
RELATIONS = ("entailment", "neutral", "contradiction")
ROWS: dict[str, list[dict[str, Any]]] = {
    "faq": [{"query": f"数{n}", "positive": f"{n}的结果", "negative": ["一一的结果", "一二的结果"]} for n in NUMBERS],
    "alike": [{"sentence1": f"甲{n}", "sentence2": f"乙{n}", "score": i % 2} for i, n in enumerate(NUMBERS)],
    "graded": [{"sentence1": f"丙{n}", "sentence2": f"甲{n}", "score": i % 5 / 4} for i, n in enumerate(NUMBERS)],
    "relations": [{"premise": f"丁{n}", "hypothesis": f"{r}{n}", "label": r} for n in NUMBERS for r in RELATIONS],
    "topics": [{"text": f"戊{n}", "label": n[0]} for n in [*NUMBERS, *DIGITS]]
    + [{"text": d, "label": d} for d in DIGITS],
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "faq": {"task": "retrieval", "weight": 2.0},
    "alike": {"task": "pair"},
    "graded": {"task": "sts"},
    "relations": {"task": "retrieval", "preset": {"name": "nli"}},
    "topics": {"task": "classification"},
}


def split(folder: Path, command: Command, rows: dict[str, list[dict[str, Any]]], *options: str) -> Path:
    """The folder that ``prepare split`` leaves of such rows."""
    folder.mkdir()
    for name, found in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    datasets = {name: {"source": f"{name}.jsonl", **KINDS[name]} for name in rows}
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"datasets": datasets}), encoding="utf-8")
    code, out, error = command("prepare", "split", folder / "mixture.yaml", "--data.output", folder / "out", *options)
    assert code == 0 and "the tests: " in out, error
    return folder / "out" / "split"


def texts(rows: list[dict[str, Any]]) -> set[str]:
    cells = [cell for row in rows for name, cell in row.items() if name not in ("label", "score")]
    return {text for cell in cells for text in (cell if isinstance(cell, list) else [cell])}


def drawn_in(folder: Path) -> dict[str, str]:
    found = sorted([*folder.glob("*.test.jsonl"), *folder.glob("*_test/*")])
    return {str(path.relative_to(folder)): "".join(sorted(path.open(encoding="utf-8"))) for path in found}


def test_nothing_of_a_test_is_trained_on_whatever_the_order_of_rows(tmp_path: Path, command: Command) -> None:
    folder = split(tmp_path / "one", command, ROWS)
    tests = {name: [json.loads(line) for line in (folder / f"{name}.test.jsonl").open(encoding="utf-8")]
             for name in ROWS if name != "faq"}  # fmt: skip
    assert {name: len(rows) for name, rows in tests.items()} == {
        "alike": 10,
        "graded": 10,
        "relations": 20,
        "topics": 12,
    }
    queries, corpus = (
        [json.loads(line) for line in (folder / "faq_test" / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("queries", "corpus")
    )
    assert (len(queries), len(corpus)) == (10, 100)
    first = {row[next(iter(row))] for rows in tests.values() for row in rows} | {row["text"] for row in queries}
    answers = {text.removeprefix("数") + "的结果" for text in first if text.startswith("数")}
    kept = {name: pq.read_table(folder / name).to_pylist() for name in ROWS}
    assert not texts([row for rows in kept.values() for row in rows]) & (first | answers)
    for name, rows in kept.items():
        assert 0.75 * len(ROWS[name]) < len(rows) < len(ROWS[name])
    assert {row["label"] for row in kept["topics"]} == set(DIGITS), "a class may have the name of a drawn text"

    mixture = load_mixture(folder / "mixture.yaml")
    assert mixture.specs["faq"].weight == 2.0 and mixture.train["relations"].column_names[2] == "negative"
    assert not any(report.rejected or report.held_out for report in mixture.report.datasets.values())

    generator = random.Random(1)
    other = {name: generator.sample(rows, len(rows)) for name, rows in ROWS.items()}
    again = drawn_in(split(tmp_path / "two", command, other))
    assert {k: v for k, v in again.items() if "qrels" not in k and "_test/" not in k} == {
        k: v for k, v in drawn_in(folder).items() if "qrels" not in k and "_test/" not in k
    }
    assert drawn_in(split(tmp_path / "three", command, ROWS, "--split.seed", "14")) != drawn_in(folder)


def test_a_model_is_scored_on_the_tests(tmp_path: Path, command: Command, encoder_dir: Path) -> None:
    pytest.importorskip("mteb")
    folder = split(tmp_path / "one", command, ROWS)
    code, out, error = command(
        "evaluate", encoder_dir, "--benchmark", folder / "tasks.yaml", "--output", tmp_path / "scores"
    )
    assert code == 0, error
    assert all(f"{name}-test" in out for name in ROWS), out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--split.share", "0.005"], "must have a row, got 0.005 of 100 distinct texts; raise split.share"),
        (["--split.rows", "0"], "split.rows"),
        (["--data.mixture.datasets", "{faq: {source: DIR/faq_test, task: retrieval}}"], "which is a test already"),
    ],
)
def test_what_cannot_be_split(tmp_path: Path, command: Command, options: list[str], said: str) -> None:
    folder = split(tmp_path / "one", command, {"faq": ROWS["faq"]})
    own = [option.replace("DIR", str(folder)) for option in options]
    mixture = tmp_path / "one" / "mixture.yaml"
    code, _, error = command("prepare", "split", mixture, "--data.output", tmp_path / "other", *own)
    assert code == 2 and said in error, error


def test_what_is_left_is_read_by_every_later_step_and_a_run(tmp_path: Path, command: Command) -> None:
    """What its source needed to be read is gone, and what its rows are for is there: scores, wordings, a holdout."""
    scored = [
        {"q": f"数{n}", "p": f"{n}的结果", "n": [f"{n}的过程"], "ps": [2.5], "ns": [i / 100]}
        for i, n in enumerate(NUMBERS)
    ]
    lines = ["问题,答案", *(f"问{n},答{n}" for n in NUMBERS)]
    (tmp_path / "faq.csv").write_bytes("\n".join(lines).encode("gb18030"))
    (tmp_path / "more.jsonl").write_text('{"_id": "1", "text": "谁也没问过"}\n', encoding="utf-8")
    for name, rows in {
        "scored": scored,
        "ids": [{"query": f"甲{n}", "positive": f"d{i}"} for i, n in enumerate(NUMBERS)],
        "texts": [{"_id": f"d{i}", "text": f"乙{n}"} for i, n in enumerate(NUMBERS)],
        "triplets": [{"query": f"丙{n}", "positive": f"丙{n[0]}", "negative": f"丁{n}"} for n in NUMBERS],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wordings = {"query": ["查询：", "问："], "document": ""}
    datasets = {
        "faq": {"source": "faq.csv", "task": "retrieval", "encoding": "gb18030", "instruction": wordings,
                "columns": {"query": "问题", "positive": "答案"},
                "mining": {"corpus": "more.jsonl"}, "holdout": {"queries": 5, "min_corpus": 10}},
        "scored": {"source": "scored.jsonl", "task": "retrieval", "columns": {
            "query": "q", "positive": "p", "negative": "n", "positive_score": "ps", "negative_score": "ns"}},
        "ids": {"source": "ids.jsonl", "task": "retrieval", "corpus": "texts.jsonl"},
        "triplets": {"source": "triplets.jsonl", "task": "classification", "columns": {
            "query": "query", "positive": "positive"}},
    }  # fmt: skip
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"datasets": datasets}, allow_unicode=True), "utf-8")
    last, out = tmp_path / "mixture.yaml", tmp_path / "out"
    for step in ("split", "dedup"):
        code, _, error = command("prepare", step, last, "--data.output", out)
        assert code == 0, error
        last = out / step / "mixture.yaml"
        mixture = load_mixture(last, cache_dir=tmp_path / "cache")
        assert mixture.specs["faq"].instruction.phrasings == {"query": ("查询：", "问："), "document": ("",)}
        assert mixture.specs["faq"].mining == {"corpus": str(tmp_path / "more.jsonl")}
        assert len(mixture.holdouts["faq" if step == "split" else "faq_holdout"].queries) == 5
        row = mixture.train["scored"][0]
        assert row["label"] == [2.5, next(r["ns"][0] for r in scored if r["q"] == row["query"])]
        assert mixture.train["ids"][0]["positive"] == "乙" + mixture.train["ids"][0]["query"][1:]
        assert mixture.train["triplets"].column_names == ["query", "positive", "negative"]


def test_later_steps_know_the_tests(tmp_path: Path, command: Command) -> None:
    """What is nearly a test's text goes in dedup, and its answers are no negatives of a corpus that has them."""
    folder = split(tmp_path / "one", command, ROWS)
    mixture = load_mixture(folder / "mixture.yaml", cache_dir=tmp_path / "cache")
    tests = mixture.test_sets()
    assert tests is not None and not mixture.holdouts and not mixture.evaluation
    assert set(tests.holdouts) == {"faq-test"}
    assert {name: len(rows) for name, rows in tests.evaluation.items()} == {
        "alike-test": 10, "graded-test": 10, "relations-test": 20, "topics-test": 12,
    }  # fmt: skip
    corpus = [f"{n}的结果" for n in NUMBERS]
    lines = [json.dumps({"_id": text, "text": text}) + "\n" for text in corpus]
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    search = tests.holdouts["faq-test"]
    answers = {search.corpus[found] for ids in search.relevant.values() for found in ids}
    left = further_documents(mixture, MiningSettings(corpus=str(tmp_path / "corpus.jsonl")))
    assert len(answers) == 10 and set(left) == set(corpus) - answers
    kept = pq.read_table(folder / "faq").to_pylist()
    # A test's long query, and a training row that differs from it by one character.
    long = "请问读者证丢了以后应该带什么材料到哪一个窗口去补办才最快最方便"
    lines = [json.dumps({"_id": "q-long", "text": long}, ensure_ascii=False)]
    with (folder / "faq_test" / "queries.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    with (folder / "faq_test" / "qrels.tsv").open("a", encoding="utf-8") as file:
        file.write("q-long\td0\t1\n")
    pq.write_table(pa.Table.from_pylist([*kept, {**kept[0], "query": long + "呢"}]), folder / "faq/part-00000.parquet")
    code, out, error = command("prepare", "dedup", folder / "mixture.yaml", "--data.output", tmp_path / "out")
    assert code == 0, error
    rejects = "".join(path.read_text("utf-8") for path in (tmp_path / "out/dedup/rejects").glob("*.jsonl"))
    assert long + "呢" in rejects and "faq-test" in rejects, out
    assert yaml.safe_load((tmp_path / "out/dedup/mixture.yaml").read_text("utf-8"))["tests"] == str(
        folder / "tests.yaml"
    )
    code, _, error = command("prepare", "split", tmp_path / "out/dedup/mixture.yaml", "--data.output", tmp_path / "out")
    assert code == 0, error
    again = load_mixture(tmp_path / "out/split/tests.yaml", cache_dir=tmp_path / "cache")
    assert set(again.holdouts) >= {"faq-test", "earlier-faq-test"} and "earlier-topics-test" in again.evaluation
