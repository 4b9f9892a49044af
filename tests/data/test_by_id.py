"""Rows that name their texts by id: each layout is read as it is, and described; what names nothing is counted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piccolo_st.commands.prepare import main
from piccolo_st.data import load_mixture
from piccolo_st.data.by_id import UNKNOWN
from piccolo_st.data.layouts import LAYOUTS
from piccolo_st.errors import MixtureError
from tests.helpers.cmteb_data import repository
from tests.helpers.hub_server import HubServer
from tests.helpers.mixtures import jsonl, load

TEXTS = {"d1": "瑞利散射使短波长的光散开", "d2": "海水是咸的", "d3": "雪是白的"}
QUERIES = {"q1": "天空为什么是蓝的", "q2": "海水是什么味道"}
TRAINED = [
    {"query": QUERIES["q1"], "positive": TEXTS["d1"], "negative": [TEXTS["d3"]]},
    {"query": QUERIES["q2"], "positive": TEXTS["d2"], "negative": []},
]
ALONE = [{name: row[name] for name in ("query", "positive")} for row in TRAINED]


def _tsv(path: Path, *rows: tuple[object, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def _rows(texts: Mapping[str, str], key: str) -> list[dict[str, str]]:
    return [{key: name, "text": text} for name, text in texts.items()]


JUDGED = [
    {"query-id": q, "corpus-id": d, "score": s} for q, d, s in (("q1", "d1", 1), ("q1", "d3", 0), ("q2", "d2", 1))
]
LOST = {"query-id": "q1", "corpus-id": "d9", "score": 1}
MTEB = {
    "corpus": {"train": _rows(TEXTS, "_id")}, "queries": {"train": _rows(QUERIES, "_id")},
    "default": {"train": [*JUDGED, LOST]},
}  # fmt: skip


def _beir(folder: Path) -> Path:
    folder.mkdir()
    jsonl(folder / "corpus.jsonl", _rows(TEXTS, "_id"))
    jsonl(folder / "queries.jsonl", _rows(QUERIES, "_id"))
    _tsv(folder / "qrels.tsv", tuple(LOST), *(tuple(row.values()) for row in [*JUDGED, LOST]))
    return folder


def _t2ranking(folder: Path) -> Path:
    _tsv(folder / "collection.tsv", ("pid", "text"), *TEXTS.items())
    _tsv(folder / "queries.train.tsv", ("qid", "text"), *QUERIES.items())
    _tsv(folder / "qrels.train.tsv", ("qid", "-", "pid", "rel"), ("q1", 0, "d3", 1))
    _tsv(folder / "qrels.retrieval.train.tsv", ("qid", "pid"), ("q1", "d1"), ("q2", "d2"), ("q1", "d9"))
    return folder


def _msmarco(folder: Path) -> Path:
    numbers = {name: name[1:] for name in (*TEXTS, *QUERIES)}
    _tsv(folder / "collection.tsv", *((numbers[name], text) for name, text in TEXTS.items()))
    _tsv(folder / "queries.train.tsv", *((numbers[name], text) for name, text in QUERIES.items()))
    _tsv(folder / "triples.train.ids.small.tsv", (1, 1, 3), (2, 2, 1), (1, 1, 9))
    return folder


def _downloaded(folder: Path) -> Path:
    for name, content in repository(MTEB).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _tevatron(folder: Path) -> Path:
    folder.mkdir()
    jsonl(folder / "corpus.jsonl", _rows(TEXTS, "docid"))
    rows = [("q1", ["d1"], ["d3"]), ("q2", ["d2"], []), ("q1", ["d1", "d9"], [])]
    jsonl(folder / "train.jsonl", (
        {"query_id": q, "query_text": QUERIES[q], "query_image": None, "positive_document_ids": positive,
         "negative_document_ids": negative, "answer": None, "source": "x"} for q, positive, negative in rows
    ))  # fmt: skip
    return folder


def _nemo(folder: Path) -> Path:
    (folder / "wiki").mkdir(parents=True)
    pq.write_table(pa.table({"id": list(TEXTS), "text": list(TEXTS.values())}), folder / "wiki" / "train.parquet")
    (folder / "wiki" / "merlin_metadata.json").write_text('{"class": "TextQADataset", "corpus_id": "wiki"}')
    rows = [("q1", ["d1"], ["d3"]), ("q2", ["d2"], []), ("q1", ["d9"], [])]
    data = [
        {"question_id": str(n), "question": QUERIES[q], "corpus_id": "wiki", "pos_doc": [{"id": d} for d in positive],
         "neg_doc": [{"id": d} for d in negative]} for n, (q, positive, negative) in enumerate(rows)
    ]  # fmt: skip
    path = folder / "rows.json"
    path.write_text(json.dumps({"corpus": [{"path": "wiki"}], "data": data}, ensure_ascii=False), encoding="utf-8")
    return path


MINED = [ALONE[0] | {"negative": TEXTS["d3"]}, ALONE[1] | {"negative": TEXTS["d1"]}]
WRITERS: dict[str, tuple[Callable[[Path], Path], list[dict[str, Any]]]] = {
    "BEIR": (_beir, TRAINED), "T2Ranking": (_t2ranking, [row | {"negative": []} for row in ALONE]),
    "MS MARCO, mMARCO": (_msmarco, MINED), "MTEB, downloaded": (_downloaded, TRAINED),
    "tevatron 2": (_tevatron, TRAINED), "NeMo, by id": (_nemo, TRAINED),
}  # fmt: skip


def test_every_layout_of_the_table_is_tried() -> None:
    assert [whose for whose, *_ in LAYOUTS if whose != "MTEB, on the Hub"] == list(WRITERS)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_layout_is_described_by_the_entry_that_reads_it(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, trained = WRITERS[layout]
    main(["describe", str(write(tmp_path / "rows")), "--output", str(tmp_path / "mixture.yaml")])
    mixture = load_mixture(tmp_path / "mixture.yaml", cache_dir=tmp_path / "cache")
    assert QUERIES["q1"] in capsys.readouterr().out
    assert list(mixture.train["rows"]) == trained
    assert mixture.report.datasets["rows"].rejected == {UNKNOWN: 1}


def test_texts_that_stand_elsewhere_are_named_beside_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    rows = jsonl(tmp_path / "triples.jsonl", [{"qid": "q1", "pid_pos": "d1", "pid_neg": "d3"}])
    corpus, queries = (
        jsonl(tmp_path / f"{key}.jsonl", _rows(texts, key)) for key, texts in (("docid", TEXTS), ("qid", QUERIES))
    )
    with pytest.raises(MixtureError, match=r"name them by id \(qid, pid_pos, pid_neg\); say where .* --corpus"):
        main(["describe", str(rows)])
    with pytest.raises(MixtureError, match="its rows name texts by id: say where these stand with `corpus`"):
        load(rows)
    with pytest.raises(MixtureError, match=r"queries of dataset 'faq' needs its corpus as well, got .*; name both"):
        load(rows, queries=str(queries))
    output = tmp_path / "mixture.yaml"
    main(["describe", str(rows), "--corpus", str(corpus), "--queries", str(queries), "--output", str(output)])
    mixture = load_mixture(output, cache_dir=tmp_path / "cache")
    assert list(mixture.train["triples"]) == [MINED[0]]
    jsonl(corpus, _rows({**TEXTS, "d3": "霜是白的"}, "docid"))
    changed = load_mixture(output, cache_dir=tmp_path / "cache")
    assert changed.train["triples"][0]["negative"] == "霜是白的" and changed.fingerprint != mixture.fingerprint


def test_ids_of_another_corpus_are_told(tmp_path: Path) -> None:
    jsonl(_tevatron(tmp_path / "rows") / "corpus.jsonl", _rows({"x": "海"}, "docid"))
    with pytest.raises(MixtureError, match=r"3 names an unknown id.*the corpus or the queries lack"):
        load(tmp_path / "rows")


def test_a_search_on_the_hub_is_assembled_from_its_configurations(tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.add_repo("mteb/T2Retrieval", repository(MTEB), kind="dataset")
        described = subprocess.run(
            [sys.executable, "-m", "piccolo_st", "prepare", "describe", "mteb/T2Retrieval"],
            env={**os.environ, **hub.environment(tmp_path), "HF_HUB_OFFLINE": "0"}, capture_output=True, text=True,
        )  # fmt: skip
    assert described.returncode == 0, described.stderr
    assert "format: beir" in described.stdout and QUERIES["q1"] in described.stdout
    assert re.search(r"T2Retrieval +retrieval +4 +1 +1 +0 +2", described.stdout) and "1: 雪是白的" in described.stdout


_ID = st.sampled_from(
    ["d1", "d2", 7, None, True, 10**400, 0.5, {"id": "d1"}, {"text": "海"}, ["d1"], [{"id": "d9"}, None]]
)
_NAMES = ("_id", "qid", "docid", "text", "title", "score", "query", "positive_ids", "pos", "neg_ids")
_ROWS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(_NAMES, _ID)), max_size=3)
_GOOD = st.sampled_from([{"query": "d1", "pos": "d1"}, {"qid": "d1", "docid": "d1"}, {"qid": "d1", "neg_ids": []}])


@settings(max_examples=150, deadline=None)
@given(rows=_ROWS, good=_GOOD, corpus=_ROWS, queries=_ROWS)
def test_any_cell_is_read_rejected_or_a_sentence(
    rows: list[Any], good: Any, corpus: list[Any], queries: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    places = {
        name: str(jsonl(folder / f"{name}.jsonl", [*given, {"_id": "d1", "text": "雪"}]))
        for name, given in (("corpus", corpus), ("queries", queries))
    }
    try:
        report = load(jsonl(folder / "rows.jsonl", [*rows, good]), max_rejected=1.0, **places).report.datasets["faq"]
    except MixtureError:
        return
    assert report.rows + report.added == report.kept + sum(report.rejected.values()) + sum(report.left_out.values())
