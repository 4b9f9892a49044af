"""The same questions and answers as CSV, as FlagEmbedding has them, and as Excel saves them, are the same rows."""

from __future__ import annotations

import csv
import datetime
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from piccolo_st import load_mixture
from piccolo_st.errors import MissingPackage, MixtureError

FAQ = Path(__file__).parent / "faq" / "faq.csv"
COLUMNS = {"query": "问题", "positive": "答案"}


def rows_of(path: Path, cache: Path, **settings: Any) -> list[dict[str, str]]:
    settings = {"source": str(path), "task": "retrieval", **settings}
    mixture = load_mixture({"datasets": {"faq": settings}}, cache_dir=cache)
    assert mixture.report.datasets["faq"].rejected == {}
    return mixture.train["faq"].to_list()


def workbook(path: Path, rows: list[list[object]], sheets: int = 1) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for number in range(1, sheets):
        book.create_sheet(f"S{number}").append(["x"])
    book.save(path)
    return path


def test_three_files_of_one_faq_are_the_same_rows(tmp_path: Path) -> None:
    with FAQ.open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    flag = tmp_path / "faq.jsonl"
    flag.write_text(
        "".join(json.dumps({"query": q, "pos": [a], "neg": []}, ensure_ascii=False) + "\n" for q, a in rows),
        encoding="utf-8",
    )
    wanted = [{"query": question, "positive": answer} for question, answer in rows]
    assert len(wanted) > 250
    assert rows_of(FAQ, tmp_path / "a", columns=COLUMNS) == wanted
    assert [{k: row[k] for k in ("query", "positive")} for row in rows_of(flag, tmp_path / "b")] == wanted
    assert rows_of(workbook(tmp_path / "faq.xlsx", [header, *rows]), tmp_path / "c", columns=COLUMNS) == wanted


def test_cells_are_read_as_csv_has_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [["query", "positive", None], ["多少", 3.0, None], [None] * 3, ["哪天", datetime.date(2026, 1, 2), None]]
    path = workbook(tmp_path / "cells.xlsx", rows, sheets=2)
    assert rows_of(path, tmp_path / "cache") == [
        {"query": "多少", "positive": "3"},
        {"query": "哪天", "positive": "2026-01-02 00:00:00"},
    ]
    assert "only the first, 'Sheet', is read" in caplog.text


@pytest.mark.parametrize("said", ["A1", "A1:B2", "A1:A6"])
def test_a_sheet_is_read_to_its_end_whatever_size_the_file_states(said: str, tmp_path: Path) -> None:
    rows = [[f"问{n}", f"答{n}"] for n in range(5)]
    right, wrong = workbook(tmp_path / "right.xlsx", [["query", "positive"], *rows]), tmp_path / "wrong.xlsx"
    with zipfile.ZipFile(right) as given, zipfile.ZipFile(wrong, "w") as made:
        for name in given.namelist():
            made.writestr(name, re.sub(rb'dimension ref="[^"]*"', f'dimension ref="{said}"'.encode(), given.read(name)))
    assert rows_of(wrong, tmp_path / "cache") == [{"query": query, "positive": answer} for query, answer in rows]


def test_rows_of_a_workbook_may_be_of_different_widths(tmp_path: Path) -> None:
    rows = [["query", "positive", "note"], ["问1", "答1"], ["问2", "答2", "好"], ["问3"], ["问4", "答4", None, "多余"]]
    path = workbook(tmp_path / "widths.xlsx", rows)
    settings = {"source": str(path), "task": "retrieval"}
    mixture = load_mixture({"datasets": {"faq": settings}}, cache_dir=tmp_path / "cache")
    assert mixture.train["faq"]["query"][:] == ["问1", "问2"]
    assert mixture.report.datasets["faq"].rejected == {"positive: empty": 1, "wrong number of fields": 1}


def test_what_is_no_workbook_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_header = workbook(tmp_path / "empty.xlsx", [])
    with pytest.raises(MixtureError, match=r"empty.xlsx of dataset 'faq' cannot be read as xlsx: .*names no column"):
        rows_of(no_header, tmp_path / "cache")
    text = tmp_path / "text.xlsx"
    text.write_text("query,positive\n", encoding="utf-8")
    with pytest.raises(MixtureError, match=r"cannot be read as xlsx: it is no workbook: .*; it is plain text"):
        rows_of(text, tmp_path / "cache")
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(MissingPackage, match=r"needs openpyxl; run: pip install .piccolo_st\[excel\]"):
        rows_of(no_header, tmp_path / "other")


def test_an_old_workbook_is_to_be_saved_anew(tmp_path: Path) -> None:
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(MixtureError, match=r"must be no \.xls, got .*old\.xls; save it as \.xlsx"):
        rows_of(tmp_path / "old.xls", tmp_path / "cache")
