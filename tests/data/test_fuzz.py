"""Any file gives rows that add up, or one sentence; never a traceback, a dead process, an hour or all the memory.

A case is rows of any types, written in a format and an encoding, perhaps damaged: bytes changed, cut off, put in or
doubled. What dies in C++ takes the test with it; the file it died of is then the newest under pytest's base folder.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piccolo_st.data import chunks
from piccolo_st.data.report import DatasetReport
from piccolo_st.errors import InputError
from tests.helpers.mixtures import load

GOOD = {
    "retrieval": {"query": "今天的天气", "positive": "今天是晴天"},
    "sts": {"sentence1": "天气好", "sentence2": "晴天", "label": 1},
    "classification": {"text": "房间很干净", "label": "好评"},
}
TASKS = {
    "retrieval": ("query", "positive", "negative", "hard_neg", "score"),
    "sts": ("sentence1", "sentence2", "label", "score"),
    "classification": ("text", "label", "id"),
}
_TEXT = st.text(st.sampled_from("天气晴雨甲乙丙ab,;\t\n\r\"'[]{}\\0_1\x00\x85\u200b\ufeff\ufffd😀\ud83d"), max_size=8)
_WRITTEN = st.lists(_TEXT, max_size=2).map(repr) | st.lists(_TEXT, max_size=2).map(json.dumps)
_NUMBER = st.integers(-3, 9) | st.integers(10**18, 10**25) | st.floats() | st.sampled_from(["0.5", "0_1", "１", "nan"])
_CELL = st.one_of(
    st.sampled_from(["问题", "回答", "天气很好"]), _TEXT, _WRITTEN, _NUMBER, st.none(), st.booleans(),
    st.lists(_TEXT | st.none(), max_size=3), st.dictionaries(_TEXT, st.integers(), max_size=2),
)  # fmt: skip


@st.composite
def _rows(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    """A task, and rows: good ones, and others whose cells are of one kind a column, as files have them, or of any."""
    task = draw(st.sampled_from(sorted(TASKS)))
    kinds = {
        name: draw(st.sampled_from([_CELL, _TEXT, _TEXT, _NUMBER, st.lists(_TEXT, max_size=2), _WRITTEN]))
        for name in TASKS[task]
    }
    row = st.fixed_dictionaries(
        {name: kinds[name] for name in TASKS[task][:2]}, optional={name: kinds[name] for name in TASKS[task][2:]}
    )
    return task, [GOOD[task]] * draw(st.integers(0, 2)) + draw(st.lists(row, min_size=1, max_size=12))


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _delimited(separator: str) -> Callable[[list[dict[str, Any]]], str]:
    def write(rows: list[dict[str, Any]]) -> str:
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
        if separator == ",":
            cells = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in cells]
        return "".join(separator.join(row) + "\n" for row in cells)

    return write


def _columnar(write: Callable[[pa.Table, io.BytesIO], object]) -> Callable[[list[dict[str, Any]]], bytes]:
    def to_bytes(rows: list[dict[str, Any]]) -> bytes:
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {}
        for name in names:
            cells = [row.get(name) for row in rows]
            try:
                columns[name] = pa.array(cells)
            except (pa.ArrowException, OverflowError, UnicodeError, TypeError):
                texts = [json.dumps(cell).encode("gb18030") for cell in cells]
                columns[name] = pa.array(texts).view(pa.string())  # as programs write that do not look
        sink = io.BytesIO()
        try:
            write(pa.table(columns), sink)
        except (pa.ArrowException, UnicodeError):  # of a type that the format does not have
            write(pa.table({name: [repr(row.get(name)).encode() for row in rows] for name in names}), sink)
        return sink.getvalue()

    return to_bytes


def _stream(table: pa.Table, sink: io.BytesIO) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


TEXTS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "jsonl": _lines, "json": lambda rows: json.dumps(rows), "csv": _delimited(","), "tsv": _delimited("\t"),
}  # fmt: skip
COLUMNAR: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "parquet": _columnar(lambda table, sink: pq.write_table(table, sink, row_group_size=4)),
    "arrow": _columnar(_stream),
    "feather": _columnar(lambda table, sink: pyarrow.feather.write_feather(table, sink, compression="uncompressed")),
}
_ENCODINGS = st.sampled_from(["utf-8"] * 4 + ["utf-8-sig", "gb18030", "utf-16", "utf-16-le", "big5", "cp1252"])
_POSITION = st.floats(0, 1, exclude_max=True)
_PIECE = st.sampled_from(
    [b'"', b"\n", b"\r", b"\x00", b"\xff", b",", b"\t", b"{", b"[" * 3000, b"9" * 5000, b"\\ud83d"]
)
_DAMAGE = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), _POSITION, st.integers(0, 255)),
        st.tuples(st.just("cut"), _POSITION, st.none()),
        st.tuples(st.just("put in"), _POSITION, _PIECE),
        st.tuples(st.just("double"), _POSITION, st.integers(1, 64)),
    ),
    max_size=4,
)


def _damaged(content: bytes, damage: list[tuple[str, float, Any]]) -> bytes:
    for kind, share, value in damage:
        place = int(share * len(content))
        head, tail = content[:place], content[place:]
        if kind == "byte":
            content = head + bytes([value]) + tail[1:]
        elif kind == "cut":
            content = head
        else:
            content = head + (value if kind == "put in" else tail[:value]) + tail
    return content


def _adds_up(report: DatasetReport) -> bool:
    lost = sum(sum(part.values()) for part in (report.rejected, report.left_out, report.held_out))
    return report.rows + report.added == report.kept + lost


_COUNTER = iter(range(10**9))


def _try(path: Path, task: str, **given: Any) -> DatasetReport | None:
    """The account of a file's rows; None where it is refused, which is an InputError or nothing."""
    use = {"use": "evaluate"} if task == "classification" else {}
    try:
        mixture = load(path, task, max_rejected=1, **use, **given)
    except InputError as error:
        str(error).encode("utf-8", "backslashreplace")
        assert "\n" not in str(error) and len(str(error)) < 3000
        return None
    report = mixture.report.datasets["faq"]
    dataset = (mixture.train or mixture.evaluation)["faq"]
    assert _adds_up(report)
    assert len(list(dataset)) == report.kept  # every text can be read
    str(mixture.report)
    json.dumps(report.as_dict(), ensure_ascii=False).encode()
    rejects = [json.loads(line) for line in report.rejects_path.read_text(encoding="utf-8").splitlines()]
    assert Counter(r["reason"] for r in rejects if r["action"] == "row rejected") == Counter(report.rejected)
    return report


def _fuzz(folder: Path, rows_of: tuple[str, list[dict[str, Any]]], format: str, encoding: str, **how: Any) -> None:
    damage, told, packed = how["damage"], how["told"], how["packed"]
    task, rows = rows_of
    settings: dict[str, Any] = {}
    if format in TEXTS:
        content = TEXTS[format](rows).encode(encoding, "surrogatepass" if encoding.startswith("utf-8") else "ignore")
        settings = {"encoding": encoding} if told else {}
    else:
        content = COLUMNAR[format](rows)
    packed = packed and format in TEXTS
    content = _damaged(gzip.compress(content, 1) if packed else content, damage)
    path = folder / f"{next(_COUNTER)}.{format}{'.gz' * packed}"
    path.write_bytes(content)
    _try(path, task, **settings)
    path.unlink()


_CASE = {
    "rows": _rows(), "format": st.sampled_from([*TEXTS, *COLUMNAR]), "encoding": _ENCODINGS, "damage": _DAMAGE,
    "told": st.booleans(), "packed": st.booleans(),
}  # fmt: skip
_QUICK = 5_000  # milliseconds a case at most


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@settings(max_examples=300, deadline=_QUICK, suppress_health_check=list(HealthCheck))
@given(**_CASE)
def test_any_file_adds_up_or_is_one_sentence(tmp_path_factory: pytest.TempPathFactory, **case: Any) -> None:
    _fuzz(tmp_path_factory.getbasetemp(), case.pop("rows"), **case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_files_in_bounded_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, before = tmp_path_factory.mktemp("fuzz"), _peak()

    @settings(max_examples=20_000, deadline=_QUICK, suppress_health_check=list(HealthCheck))
    @given(**_CASE)
    def many(**case: Any) -> None:
        _fuzz(folder, case.pop("rows"), **case)

    many()
    assert _peak() - before < 1 << 20, "more than a GiB for files of some KB"


@settings(max_examples=60, deadline=_QUICK, suppress_health_check=list(HealthCheck))
@given(given_rows=_rows(), format=st.sampled_from(["jsonl", "json", "csv", "parquet", "arrow"]), order=st.randoms())
def test_the_order_of_rows_never_matters(
    given_rows: tuple[str, list[dict[str, Any]]], format: str, order: random.Random,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    task, rows = given_rows
    shuffled = list(rows)
    order.shuffle(shuffled)
    found, before = [], chunks.CHUNK_ROWS
    for one in (rows, shuffled):
        names = list(dict.fromkeys(name for row in rows for name in row))
        one = [{name: row.get(name) for name in names} for row in one] if format != "jsonl" else one
        content = TEXTS[format](one).encode("utf-8", "surrogatepass") if format in TEXTS else COLUMNAR[format](one)
        path = tmp_path_factory.getbasetemp() / f"{next(_COUNTER)}.{format}"
        path.write_bytes(content)
        try:
            chunks.CHUNK_ROWS = 3
            report = _try(path, task)
        finally:
            chunks.CHUNK_ROWS = before
        found.append(report and (report.kept, Counter(report.rejected), Counter(report.removed)))
    assert found[0] == found[1]


@settings(max_examples=100, deadline=_QUICK, suppress_health_check=list(HealthCheck))
@given(given_rows=_rows().filter(lambda found: found[0] != "classification"), damage=st.just([]) | _DAMAGE)
def test_a_stream_of_any_file_is_what_its_copy_is(
    given_rows: tuple[str, list[dict[str, Any]]], damage: list[tuple[str, float, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    task, rows = given_rows
    path = tmp_path_factory.getbasetemp() / f"{next(_COUNTER)}.parquet"
    path.write_bytes(_damaged(COLUMNAR["parquet"](rows), damage))
    copied, streamed = _try(path, task), _try(path, task, streaming=True)
    assert (copied and copied.as_dict()) == (streamed and streamed.as_dict())
    if copied is not None and streamed is not None:
        both = [load(path, task, max_rejected=1, streaming=streaming).train["faq"] for streaming in (False, True)]
        assert both[0].to_list() == both[1].to_list()
