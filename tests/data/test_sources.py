"""Every format gives the same rows, each with its file and row number."""

from __future__ import annotations

import bz2
import gzip
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from piccolo_st.data import jionlp, sources, text_files
from piccolo_st.data.chunks import Item, Record, Reject
from piccolo_st.data.mixture import load_mixture
from piccolo_st.data.specs import DatasetSpec
from piccolo_st.errors import MissingPackage, MixtureError
from tests.helpers.mixtures import jsonl, load

ROWS = [{"query": f"问题{i}", "positive": f"回答{i}，好"} for i in range(7)]


TABLE = pa.Table.from_pylist(ROWS)
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LARGE = pa.schema([("query", pa.large_string()), ("positive", pa.large_string())])


def _text(content: str | bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def _separated(separator: str, quote: str) -> Callable[[Path], Path]:
    rows = [["query", "positive"], *([f"{quote}{text}{quote}" for text in row.values()] for row in ROWS)]
    return _text("".join(separator.join(cells) + "\n" for cells in rows))


def _parquet(table: pa.Table = TABLE) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        pq.write_table(table, path)
        return path

    return write


def _stream(path: Path) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=3)
    return path


def _feather(path: Path) -> Path:
    pyarrow.feather.write_feather(TABLE, str(path), compression="uncompressed")
    return path


def _saved(path: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


def _saved_splits(path: Path) -> Path:
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(str(path))
    return path


def _shards(path: Path) -> Path:
    path.mkdir()
    pq.write_table(TABLE.slice(0, 3), path / "a.parquet")
    pq.write_table(TABLE.slice(3), path / "b.parquet")
    return path


def _globbed(path: Path) -> Path:
    return _shards(path) / "*.parquet"


def _beir(path: Path) -> Path:
    path.mkdir()
    corpus = [{"_id": f"d{i}", "title": "", "text": row["positive"]} for i, row in enumerate(ROWS)]
    queries = [{"_id": f"q{i}", "text": row["query"]} for i, row in enumerate(ROWS)]
    jsonl(path / "corpus.jsonl", corpus)
    jsonl(path / "queries.jsonl", queries)
    (path / "qrels").mkdir()
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(len(ROWS)))
    (path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
    return path


FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "jsonl": ("rows.jsonl", _text(LINES)),
    "jsonl with a byte order mark": ("rows.jsonl", _text(LINES.encode("utf-8-sig"))),
    "gzip": ("rows.jsonl.gz", _text(gzip.compress(LINES.encode()))),
    "bzip2": ("rows.jsonl.bz2", _text(bz2.compress(LINES.encode()))),
    "json": ("rows.json", _text(json.dumps(ROWS, ensure_ascii=False))),
    "csv": ("rows.csv", _separated(",", '"')),
    "tsv": ("rows.tsv", _separated("\t", "")),
    "parquet": ("rows.parquet", _parquet()),
    "parquet with a dictionary": (
        "rows.parquet", _parquet(TABLE.set_column(0, "query", TABLE["query"].dictionary_encode())),
    ),
    "parquet with large strings": ("rows.parquet", _parquet(TABLE.cast(LARGE))),
    "arrow stream": ("rows.arrow", _stream),
    "feather": ("rows.feather", _feather),
    "saved dataset": ("saved", _saved),
    "saved splits": ("splits", _saved_splits),
    "folder of shards": ("shards", _shards),
    "glob": ("shards", _globbed),
    "beir": ("beir", _beir),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    file, write = FORMATS[name]
    mixture = load(write(tmp_path / file))
    dataset = mixture.train["faq"]
    assert dataset.column_names[:2] == ["query", "positive"]
    assert [{"query": row["query"], "positive": row["positive"]} for row in dataset] == ROWS
    report = mixture.report.datasets["faq"]
    assert (report.rows, report.kept, report.rejected) == (len(ROWS), len(ROWS), {})


# The training files of three peers, a row of each kind as their own readers take it, and what becomes of it.
PEERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "FlagEmbedding": (
        "retrieval",
        {"query": "问", "pos": ["答"], "neg": ["错", "误"], "pos_scores": [0.9], "neg_scores": [0.2, 0.1],
         "prompt": "查", "type": "normal"},
        {"query": "问", "positive": "答", "negative": ["错", "误"]},
        ("pos_scores", "neg_scores", "prompt", "type"),
    ),
    "uniem, triplets": (
        "retrieval",
        {"text": "问", "text_pos": "答", "text_neg": "错"},
        {"query": "问", "positive": "答", "negative": "错"},
        (),
    ),
    "piccolo-embedding, retri_contrast": (
        "retrieval",
        {"text": "问", "text_pos": "答", "text_neg": ["错", "误"], "type": "retri_contrast"},
        {"query": "问", "positive": "答", "negative": ["错", "误"]},
        ("type",),
    ),
    "piccolo-embedding, cls_contrast": (
        "classification",
        {"text": "房间很干净", "text_pos": "好评", "text_neg": ["差评"], "type": "cls_contrast"},
        {"query": "房间很干净", "positive": "好评", "negative": ["差评"]},
        ("type",),
    ),
    "piccolo-embedding, cosent": (
        "sts",
        {"text": "问", "text_pair": "问题", "label": 1, "type": "cosent"},
        {"sentence1": "问", "sentence2": "问题", "label": 1.0},
        ("type",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("source", ["rows.jsonl", "saved"])
@pytest.mark.parametrize("name", PEERS)
def test_the_formats_of_peers_are_read_as_they_are(name: str, source: str, tmp_path: Path) -> None:
    task, row, expected, unused = PEERS[name]
    jsonl(tmp_path / "rows.jsonl", [row])
    Dataset.from_list([row]).save_to_disk(tmp_path / "saved")
    columns = {"query": "text"} if task == "classification" else {}
    mixture = load(tmp_path / source, task, columns=columns, policy="error")
    assert list(mixture.train["faq"]) == [expected]
    assert mixture.report.datasets["faq"].unused_columns == unused


def test_rows_are_read_in_chunks_without_losing_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piccolo_st.data.chunks.CHUNK_ROWS", 3)
    for name in ("jsonl", "json", "csv", "parquet", "arrow stream"):
        file, write = FORMATS[name]
        path = write(tmp_path / file)
        spec = DatasetSpec("faq", str(path), "retrieval")
        chunks = list(sources.read_chunks(spec, sources.locate(spec, tmp_path)))
        assert len(chunks) == 3
        header = 1 if name == "csv" else 0
        assert [row for chunk in chunks for row in chunk.rows.tolist()] == [1 + header + i for i in range(len(ROWS))]


def _parted(items: Iterable[Item]) -> tuple[dict[int, Record], list[Reject]]:
    """Row number -> row, and what could not be read."""
    given = list(items)
    rejects = [item for item in given if isinstance(item, Reject)]
    return dict(item for item in given if not isinstance(item, Reject)), rejects


def test_lines_that_cannot_be_read_do_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
    path.write_bytes(b"\n".join([good[0], b'{"query": ', b"", good[1], b"\xff\xfe", b"[1]", good[2]]))
    rows, rejects = _parted(text_files.read_jsonl(path))
    assert list(rows) == [1, 4, 7]
    assert [(r.row, r.reason) for r in rejects] == [
        (2, "not valid JSON"),
        (5, "not UTF-8"),
        (6, "not a JSON object"),
    ]


def test_csv_quotes_and_tsv_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('query,positive\n"一,二","他说""好""\n再见"\n三,四\n', encoding="utf-8")
    rows, _ = _parted(text_files.read_delimited(tmp_path / "a.csv", ","))  # the first row ends on the third line
    assert rows == {3: {"query": "一,二", "positive": '他说"好"\n再见'}, 4: {"query": "三", "positive": "四"}}
    (tmp_path / "a.tsv").write_text('query\tpositive\n"一\t二"三"\n四\t五\t六\n', encoding="utf-8")
    rows, rejects = _parted(text_files.read_delimited(tmp_path / "a.tsv", "\t"))
    assert rows == {2: {"query": '"一', "positive": '二"三"'}}
    assert [(r.row, r.reason) for r in rejects] == [(3, "wrong number of fields")]


def test_delimited_text_that_is_not_utf8_is_found_in_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("query,positive\n一,二\n".encode() + "三,四\n".encode("gbk") + "五,六\n".encode())
    rows, rejects = _parted(text_files.read_delimited(path, ","))
    assert [record["query"] for record in rows.values()] == ["一", "五"]
    assert [(r.row, r.reason) for r in rejects] == [(3, "not UTF-8")]


def test_beir_reports_judgements_of_unknown_ids_and_takes_zero_scores_as_negatives(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "beir")
    with open(folder / "qrels" / "train.tsv", "a", encoding="utf-8") as file:
        file.write("q0\td5\t0\nq9\td1\t1\nq1\td99\t1\nq1\td2\tmany\n")
    with open(folder / "corpus.jsonl", "a", encoding="utf-8") as file:
        file.write('{"_id": "d0", "text": "again"}\n{"text": "no id"}\n')
    mixture = load(folder)
    assert mixture.train["faq"][0]["negative"] == [ROWS[5]["positive"]]
    assert mixture.train["faq"][1]["negative"] == []
    assert mixture.report.datasets["faq"].rejected == {
        "names an unknown id": 2, "an id twice": 1, "no id or text": 1, "score: not a number": 1,
    }  # fmt: skip


def test_beir_for_evaluation_becomes_a_holdout(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "beir")
    train = jsonl(tmp_path / "rows.jsonl", ROWS)
    datasets = {
        "dev": {"source": str(folder), "task": "retrieval", "use": "evaluate"},
        "faq": {"source": str(train), "task": "retrieval"},
    }
    mixture = load_mixture({"datasets": datasets}, cache_dir=tmp_path / "cache")
    holdout = mixture.holdouts["dev"]
    assert list(mixture.train) == ["faq"]
    assert holdout.queries == {f"q{i}": row["query"] for i, row in enumerate(ROWS)}
    assert holdout.corpus == {f"d{i}": row["positive"] for i, row in enumerate(ROWS)}
    assert holdout.relevant == {f"q{i}": {f"d{i}"} for i in range(len(ROWS))}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 cut off", r"a\.parquet of dataset 'faq' cannot be read as parquet: .*; check that"),
        ("a.jsonl.gz", gzip.compress(bytes(999), mtime=0)[:20], r"a\.jsonl\.gz of .* cannot be read as jsonl"),
        ("a.arrow", b"no arrow", r"a\.arrow of dataset 'faq' cannot be read as arrow"),
        ("a.json", b'{"query": "x"}', r"a\.json .* it must hold a list of objects, got dict"),
        ("a.json", b"[1,", r"a\.json of dataset 'faq' cannot be read as json"),
        ("a.csv", b"query,query\n1,2\n", r"a\.csv .* header names a column twice"),
        ("a.jsonl", b"", r"dataset 'faq' is empty: .*a\.jsonl has no rows"),
        ("a.csv", b"", r"dataset 'faq' is empty"),
        ("a.bin", b"x", r"no format is known for a\.bin of dataset 'faq'; name one with `format`"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MixtureError, match=message):
        load(tmp_path / name)
    left = [path.name for path in (tmp_path / "cache").glob("*.partial")]
    assert not left, "a failed read leaves nothing half written"


def test_a_missing_file_is_named_with_the_root(tmp_path: Path) -> None:
    spec = DatasetSpec("faq", "no/such.jsonl", "retrieval")
    with pytest.raises(
        MixtureError, match=r"source of dataset 'faq' does not exist: .*no/such\.jsonl; relative sources start"
    ):
        sources.locate(spec, tmp_path)


def test_a_bare_owner_and_name_is_a_hub_dataset_with_its_revision(tmp_path: Path) -> None:
    spec = DatasetSpec("faq", "owner/name", "retrieval", revision="abc", split="dev")
    location = sources.locate(spec, tmp_path)
    assert location.format == "hub"
    assert location.version == "owner/name@abc//dev"
    other = sources.locate(DatasetSpec("faq", "owner/name", "retrieval", revision="abd", split="dev"), tmp_path)
    assert other.version != location.version


def test_hub_datasets_are_loaded_by_revision_and_fail_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(*args: object, **kwargs: object) -> Dataset:
        asked.append((args, kwargs))
        if args[0] == "owner/gone":
            raise FileNotFoundError("404")
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    settings = {"source": "owner/name", "task": "retrieval", "revision": "abc", "subset": "zh"}
    mixture = load_mixture({"datasets": {"faq": settings}}, cache_dir=tmp_path)
    assert asked == [(("owner/name", "zh"), {"split": "train", "revision": "abc"})]
    assert mixture.train["faq"][3] == ROWS[3]
    with pytest.raises(MixtureError, match=r"Hub dataset 'owner/gone' of .* cannot be loaded \(revision None"):
        load_mixture({"datasets": {"faq": {"source": "owner/gone", "task": "retrieval"}}}, cache_dir=tmp_path)


def test_rows_of_the_hub_that_were_read_before_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: Dataset.from_list(ROWS))
    for revision, said in ((None, "dataset 'faq' has the rows of owner/name as they were read on 2"), ("abc", "")):
        mixture = {"datasets": {"faq": {"source": "owner/name", "task": "retrieval", "revision": revision}}}
        load_mixture(mixture, cache_dir=tmp_path)
        assert not caplog.text
        load_mixture(mixture, cache_dir=tmp_path)
        assert said in caplog.text and bool(said) == bool(caplog.text)
        caplog.clear()


@pytest.fixture
def dictionaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with dictionary files in jionlp's layout, found in its place."""
    folder = tmp_path / "jionlp" / "dictionary"
    folder.mkdir(parents=True)
    (tmp_path / "jionlp" / "__init__.py").write_text("raise ImportError('the package must not be imported')")
    contents = {
        "chinese_word_dictionary": "晨风\t1.清晨的风。\r\n百页\t1.见“百叶”。\r\n天方夜谭\t即。\r\n"
        "见识\t见闻和知识。\r\n动脉\t血管。\r\n坏\r\n",
        "xiehouyu": "一丈厚的烧饼\t吃不透\r\n没有下半句\r\n",
        "chinese_char_dictionary": "丁\t一\t0\t1\t2\t丁\tS\t[dīng]1.〔丁丁〕人口：人~。\r\n",
    }
    for name, text in contents.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}.txt", text)
    origin = SimpleNamespace(origin=str(tmp_path / "jionlp" / "__init__.py"))
    monkeypatch.setattr(jionlp, "find_spec", lambda name: origin if name == "jionlp" else None)
    return folder


def test_the_dictionaries_are_read_cleaned_and_counted_without_importing_their_package(dictionaries: Path) -> None:
    datasets = {name: {"source": f"jionlp:{name}", "task": "retrieval"} for name in ("words", "sayings", "characters")}
    mixture = load_mixture({"datasets": datasets}, cache_dir=dictionaries / "cache")
    assert list(mixture.train["words"]) == [
        {"query": "晨风", "positive": "1.清晨的风。"},
        {"query": "见识", "positive": "见闻和知识。"},
        {"query": "动脉", "positive": "血管。"},
    ]
    assert mixture.report.datasets["words"].rejected == {"only a cross-reference": 2, "wrong number of fields": 1}
    assert list(mixture.train["sayings"]) == [{"query": "一丈厚的烧饼", "positive": "吃不透"}]
    assert list(mixture.train["characters"]) == [{"query": "[dīng]1.〔~~〕人口：人~。", "positive": "丁"}]


def test_missing_dictionaries_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jionlp, "find_spec", lambda _: None)
    config = {"datasets": {"words": {"source": "jionlp:words", "task": "retrieval"}}}
    with pytest.raises(MissingPackage, match=r'run: pip install "piccolo_st\[quickstart\]"'):
        load_mixture(config, cache_dir=tmp_path)
    with pytest.raises(MixtureError, match=r"must be one of jionlp:words, .*, got 'jionlp:word'"):
        load_mixture({"datasets": {"words": {"source": "jionlp:word", "task": "retrieval"}}}, cache_dir=tmp_path)


def test_the_real_dictionaries_hold_what_they_promise(tmp_path: Path) -> None:
    pytest.importorskip("jionlp", reason="the extra `quickstart` is not installed")
    datasets = {name: {"source": f"jionlp:{name}", "task": "retrieval"} for name in ("words", "sayings", "characters")}
    mixture = load_mixture({"datasets": datasets}, cache_dir=tmp_path)
    kept = {name: report.kept for name, report in mixture.report.datasets.items()}
    assert kept["words"] > 33_000
    assert kept["sayings"] > 17_000
    assert kept["characters"] > 17_000
    for report in mixture.report.datasets.values():
        assert report.rows == report.kept + sum(report.rejected.values())
    assert not any(row["positive"] in row["query"] for row in mixture.train["characters"])
