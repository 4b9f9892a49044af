"""From the file of a mixture to datasets, held-out sets, a report and a fingerprint."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import DatasetDict

from piccolo_st.data import build, sources
from piccolo_st.data.mixture import load_mixture, parse_mixture
from piccolo_st.data.report import read_rejects
from piccolo_st.data.specs import DatasetSpec, HoldoutSpec, PresetSpec
from piccolo_st.errors import InputError, MixtureError
from tests.helpers.mixtures import jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jsonl(tmp_path / "pairs.jsonl", [{"query": f"问{i}", "positive": f"答{i}"} for i in range(20)])
    scores = [{"sentence1": f"甲{i}", "sentence2": f"乙{i}", "score": i % 6} for i in range(12)]
    jsonl(tmp_path / "scores.jsonl", scores)
    jsonl(tmp_path / "labels.jsonl", [{"text": f"文{i}", "label": "abc"[i % 3]} for i in range(12)])
    return tmp_path


def _load(folder: Path, datasets: dict[str, Any], **settings: Any) -> Any:
    return load_mixture({"root": str(folder), "datasets": datasets, **settings}, cache_dir=folder / "cache")


MIXTURE = {
    "pairs": {"source": "pairs.jsonl", "task": "retrieval", "weight": 2, "query_length": 32},
    "scores": {"source": "scores.jsonl", "task": "sts", "score_range": [0, 5]},
    "labels": {"source": "labels.jsonl", "task": "classification"},
}


def test_a_mixture_is_a_file_with_paths_relative_to_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"datasets": MIXTURE}))
    monkeypatch.chdir(folder.parent)
    mixture = load_mixture(folder / "mixture.yaml", cache_dir=folder / "cache")
    assert isinstance(mixture.train, DatasetDict)
    assert mixture.train.column_names == {
        "pairs": ["query", "positive"],
        "scores": ["sentence1", "sentence2", "label"],
        "labels": ["query", "positive", "negative"],
    }
    assert mixture.train["pairs"][3] == {"query": "问3", "positive": "答3"}
    assert mixture.train["scores"][4]["label"] == pytest.approx(0.8)
    assert mixture.specs["pairs"].weight == 2.0
    assert mixture.specs["labels"].preset == PresetSpec("classes")
    assert mixture.train["pairs"].cache_files, "memory-mapped, not in memory"
    assert load_mixture(str(folder / "mixture.yaml"), cache_dir=folder / "cache").fingerprint == mixture.fingerprint


def test_a_mapping_begins_with_a_file_and_changes_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "shipped").mkdir()
    shipped = folder / "shipped" / "mixture.yaml"
    shipped.write_text(yaml.safe_dump({"policy": "error", "defaults": {"licence": "CC0"}, "datasets": MIXTURE}))
    monkeypatch.chdir(folder.parent)
    changes = {"pairs": {"weight": 5}, "more": {"source": "pairs.jsonl", "task": "retrieval", "max_rows": 2}}
    specs, root, policy = parse_mixture({"file": str(shipped), "root": folder.name, "datasets": changes})
    assert set(specs) == {"pairs", "scores", "labels", "more"}
    assert (specs["pairs"].weight, specs["pairs"].query_length) == (5.0, 32)
    assert (specs["scores"].score_range, specs["more"].licence) == ((0.0, 5.0), "CC0")
    assert (root, policy) == (folder, "error")
    mixture = load_mixture({"file": str(shipped), "root": folder.name}, cache_dir=folder / "cache")
    assert len(mixture.train["pairs"]) == 20
    assert parse_mixture({"file": str(shipped), "policy": "drop"})[1:] == (shipped.parent, "drop")
    assert set(parse_mixture({"file": str(shipped), "datasets": {"scores": None}})[0]) == {"pairs", "labels"}
    (folder / "next.yaml").write_text(yaml.safe_dump({"file": "shipped/mixture.yaml", "root": "."}))
    assert parse_mixture(folder / "next.yaml")[1] == folder
    shipped.write_text(yaml.safe_dump({"file": "../next.yaml"}))
    with pytest.raises(MixtureError, match=r"next.yaml begins with itself: .*next.yaml -> .*mixture.yaml; remove one"):
        parse_mixture(folder / "next.yaml")


def test_root_and_defaults_hold_for_every_dataset(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    text = yaml.safe_dump(
        {
            "root": "..",
            "defaults": {"licence": "CC0", "max_characters": 99, "task": "retrieval"},
            "datasets": {"pairs": {"source": "pairs.jsonl", "max_characters": 50}},
        }
    )
    (folder / "elsewhere" / "mixture.yaml").write_text(text)
    mixture = load_mixture(folder / "elsewhere" / "mixture.yaml", cache_dir=folder / "cache")
    assert mixture.specs["pairs"].licence == "CC0"
    assert mixture.specs["pairs"].max_characters == 50
    assert mixture.report.datasets["pairs"].licence == "CC0"


PLACE = "of dataset 'a' of the mixture"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"the mixture names no datasets; give `datasets` at least one"),
        ({"datasets": []}, r"datasets of the mixture must be a mapping of keys to values, got \[\]"),
        ({"dataset": {}}, r"unknown key 'dataset' in the mixture; did you mean datasets\?"),
        ({"datasets": {"a": None}}, r"dataset 'a' of the mixture must be a mapping of keys to values, got None"),
        ({"datasets": {"a b": {}}}, r"the name of a dataset in the mixture must be letters, .*, got 'a b'"),
        ({"datasets": {"a": {"source": "x"}}}, r"dataset 'a' of the mixture has no 'task', which is required"),
        (
            {"defaults": {"weigth": 1}, "datasets": {"a": {}}},
            r"unknown key 'weigth' in defaults .* mean weight",
        ),
    ],
)
def test_a_wrong_mixture_is_one_clear_sentence(config: dict[str, Any], message: str) -> None:
    with pytest.raises(MixtureError, match=message) as caught:
        parse_mixture(config)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError), "recipes turn it into exit code 2"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wieght": 1}, r"unknown key 'wieght' in dataset 'a' of the mixture; did you mean weight\?"),
        ({"task": "retrival"}, rf"task {PLACE} must be one of retrieval, .*, got 'retrival'"),
        ({"weight": "much"}, rf"weight {PLACE} must be of type float, got 'much'"),
        ({"repeats": True}, r"repeats .* of type int, got True"),
        ({"weight": -1}, r"weight .* must be a positive number, got -1"),
        ({"weight": float("nan")}, r"weight .* positive number, got nan"),
        ({"repeats": 0}, r"repeats .* must be a whole number of at least 1, got 0"),
        ({"score_range": [1, 0]}, rf"score_range {PLACE} must be \[lowest, highest\], got \[1\.0, 0\.0\]"),
        ({"labels": "abc"}, r"labels .* must be a list, got 'abc'"),
        ({"preset": {"name": "nil"}}, rf"preset.name {PLACE} must be one of nli, .*, got 'nil'"),
        ({"holdout": {"querys": 5}}, rf"unknown key 'querys' in holdout {PLACE}; did you mean queries\?"),
        ({"holdout": {"queries": 0}}, rf"holdout.queries {PLACE} must be a whole number of at least 1, got 0"),
        (
            {"use": "evaluate", "holdout": {"queries": 5}},
            rf"holdout {PLACE} needs `use: train`, got 'evaluate'; remove `holdout`",
        ),
    ],
)
def test_a_wrong_setting_names_its_dataset(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MixtureError, match=message):
        parse_mixture({"datasets": {"a": {"source": "x", "task": "sts", **settings}}})


def test_a_file_that_is_no_mixture_says_where(tmp_path: Path) -> None:
    with pytest.raises(MixtureError, match=r"mixture\.yaml does not exist; give the path"):
        load_mixture(tmp_path / "mixture.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"source": "scores.jsonl", "task": "retrieval"},
            r"dataset 'a' is for retrieval and needs a column for 'query', got .*scores\.jsonl with the columns "
            r"sentence1, sentence2, score; say which with `columns: \{query: NAME\}`",
        ),
        (
            {"source": "pairs.jsonl", "task": "retrieval", "preset": {"name": "nli"}},
            r"is for retrieval by the preset 'nli' and needs a column for 'premise'",
        ),
        (
            {"source": "pairs.jsonl", "task": "retrieval", "columns": {"query": "q"}},
            r"query of columns of dataset 'a' must be a column of .*, got 'q'; its columns are query, positive",
        ),
        (
            {"source": "pairs.jsonl", "task": "retrieval", "columns": {"querry": "query"}},
            r"unknown key 'querry' in columns of dataset 'a'; did you mean query\?",
        ),
        (
            {"source": "scores.jsonl", "task": "sts", "columns": {"positive": "score"}, "score_range": [0, 5]},
            r"unknown key 'positive' in columns of dataset 'a'; known are label, sentence1, sentence2",
        ),
    ],
)
def test_a_dataset_without_the_columns_of_its_role_says_which(
    settings: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(MixtureError, match=message):
        _load(folder, {"a": settings})


def test_roles_are_given_to_named_columns_and_negatives_to_several(folder: Path) -> None:
    rows = [{"q": f"问{i}", "a": f"答{i}", "n1": f"错{i}", "n2": f"误{i}"} for i in range(3)]
    jsonl(folder / "named.jsonl", rows)
    columns = {"query": "q", "positive": "a", "negative": ["n1", "n2"]}
    mixture = _load(folder, {"a": {"source": "named.jsonl", "task": "retrieval", "columns": columns}})
    assert mixture.train["a"][1] == {"query": "问1", "positive": "答1", "negative_1": "错1", "negative_2": "误1"}
    numbered = [
        {"query": f"问{i}", "positive": f"答{i}", **{f"negative_{k}": f"{k}反{i}" for k in range(1, 12)}}
        for i in (1, 2)
    ]
    jsonl(folder / "numbered.jsonl", numbered)
    mixture = _load(folder, {"a": {"source": "numbered.jsonl", "task": "retrieval"}})
    assert mixture.train["a"].column_names == ["query", "positive", *(f"negative_{k}" for k in range(1, 12))]


@pytest.mark.parametrize(
    ("positives", "expected"),
    [
        ("all", [("问", "甲"), ("问", "乙"), ("二", "丙")]),
        ("first", [("问", "甲"), ("二", "丙")]),
        ("list", [("问", ["甲", "乙"]), ("二", ["丙"])]),
    ],
)
def test_several_positives_become_rows_or_stay_a_list(positives: str, expected: list, folder: Path) -> None:
    jsonl(
        folder / "lists.jsonl",
        [{"query": "问", "pos": ["甲", "乙"], "neg": ["错"]}, {"query": "二", "pos": ["丙"], "neg": []}],
    )
    mixture = _load(folder, {"a": {"source": "lists.jsonl", "task": "retrieval", "positives": positives}})
    dataset = mixture.train["a"]
    assert list(zip(dataset["query"], dataset["positive"], strict=True)) == expected
    assert dataset["negative"][0] == ["错"]
    report = mixture.report.datasets["a"]
    assert report.rows == 2 and report.added == (positives != "list")
    assert sum(report.left_out.values()) == (positives == "first")
    assert ("1 row left out: a further positive of its row" in str(mixture.report)) == (positives == "first")


def test_fingerprints_follow_contents_and_settings_and_nothing_else(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    given = {"pairs": dict(MIXTURE["pairs"])}
    first = _load(folder, given)
    assert _load(folder, given).fingerprint == first.fingerprint
    assert _load(folder, {"pairs": {**given["pairs"], "licence": "MIT", "note": "x"}}).fingerprint == first.fingerprint
    moved = tmp_path_factory.mktemp("moved")
    (moved / "pairs.jsonl").write_bytes((folder / "pairs.jsonl").read_bytes())
    assert _load(moved, given).fingerprint == first.fingerprint
    changed = {
        "weight": _load(folder, {"pairs": {**given["pairs"], "weight": 3}}),
        "limit": _load(folder, {"pairs": {**given["pairs"], "max_characters": 5}}),
        "name": _load(folder, {"other": given["pairs"]}),
        "more": _load(folder, {**given, "scores": MIXTURE["scores"]}),
    }
    jsonl(
        folder / "pairs.jsonl",
        [{"query": f"问{i}", "positive": f"答{i}"} for i in range(19)] + [{"query": "问x", "positive": "答x"}],
    )
    changed["content"] = _load(folder, given)
    fingerprints = [first.fingerprint, *(mixture.fingerprint for mixture in changed.values())]
    assert len(set(fingerprints)) == len(fingerprints)
    assert changed["content"].train["pairs"][19] == {"query": "问x", "positive": "答x"}


# Another value for every field of a dataset, and whether its rows may be other ones then.
FIELDS: dict[str, tuple[Any, bool]] = {
    "name": ("other", False), "source": ("copy.jsonl", False), "task": ("sts", True), "format": ("tsv", True),
    "encoding": ("gb18030", True), "corpus": ("copy.jsonl", False), "queries": ("copy.jsonl", False),
    "split": ("dev", True), "revision": ("abc", True), "subset": ("zh", True), "columns": ({"query": "positive"}, True),
    "preset": (PresetSpec("scored_pairs"), True), "use": ("evaluate", True), "positives": ("first", True),
    "labels": (("a",), True), "score_range": ((0.0, 5.0), True), "min_characters": (2, True),
    "max_characters": (9, True), "policy": ("error", False), "max_rejected": (0.1, False), "max_rows": (3, True),
    "holdout": (HoldoutSpec(3), False), "mining": ({"seed": 1}, False), "instruction": ("none", False),
    "weight": (2.0, False), "repeats": (2, False), "batch_multiple": (2.0, False), "query_length": (9, False),
    "document_length": (9, False), "loss": ({"a": 1}, False), "licence": ("MIT", False), "note": ("x", False),
    "streaming": (True, False),
}  # fmt: skip


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("limit", [1, 2, 4, 5, 9, 10, 11, 12, 13, 40])
def test_max_rows_reads_so_many_rows_and_no_more(
    limit: int, format: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside a chunk of five rows and at its border, with lines that cannot be read and rows that fail a check."""
    monkeypatch.setattr("piccolo_st.data.chunks.CHUNK_ROWS", 5)
    pairs = [{"query": f"问{i}" if i % 6 != 2 else "", "positive": f"答{i}"} for i in range(1, 13)]
    jsonl(folder / "faulty.jsonl", pairs)
    lines = (folder / "faulty.jsonl").read_text(encoding="utf-8").splitlines()
    faulty = {2: "query: empty", 8: "query: empty"}
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist(pairs), folder / "faulty.parquet")
    else:
        for number in (1, 5, 11, 12):
            lines[number - 1], faulty[number] = "{", "not valid JSON"
        (folder / "faulty.jsonl").write_text("\n".join(lines), encoding="utf-8")
    spec = DatasetSpec("faulty", f"faulty.{format}", "retrieval", max_rows=limit)
    prepared = build.prepare(spec, sources.locate(spec, folder), folder / "cache")
    read = range(1, min(limit, 12) + 1)
    counts = prepared.counts
    assert (counts.rows, counts.kept) == (len(read), len(set(read) - set(faulty)))
    assert sorted((reject.row, reject.reason) for reject in read_rejects(prepared.folder)) == sorted(
        (number, reason) for number, reason in faulty.items() if number in read
    )
    assert counts.rejected.total() + counts.kept == counts.rows
    kept = [f"答{number}" for number in read if number not in faulty]
    assert (prepared.rows()["positive"][:] if kept else []) == kept


@pytest.mark.parametrize("streaming", [False, True])
def test_max_rows_does_not_look_beyond_its_last_row(
    streaming: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piccolo_st.data.chunks.CHUNK_ROWS", 5)
    (folder / "z.parquet").write_bytes(b"cut off")
    pq.write_table(
        pa.Table.from_pylist([{"query": f"问{i}", "positive": f"答{i}"} for i in range(5)]), folder / "a.parquet"
    )
    settings = {"source": "*.parquet", "task": "retrieval", "streaming": streaming}
    assert len(_load(folder, {"a": {**settings, "max_rows": 5}}).train["a"]) == 5
    with pytest.raises(MixtureError, match=r"z.parquet of dataset 'a' cannot be read"):
        _load(folder, {"a": {**settings, "max_rows": 6}})


@pytest.mark.parametrize("field", DatasetSpec.__dataclass_fields__)
def test_rows_are_kept_under_a_key_of_all_that_changes_them(field: str, folder: Path) -> None:
    (folder / "copy.jsonl").write_bytes((folder / "pairs.jsonl").read_bytes())
    value, changes = FIELDS[field]
    spec = DatasetSpec("pairs", "pairs.jsonl", "retrieval")
    location = sources.locate(spec, folder)
    key = build.row_key(spec, location, folder / "cache")
    assert (build.row_key(dataclasses.replace(spec, **{field: value}), location, folder / "cache") != key) == changes


def test_what_was_read_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _load(folder, MIXTURE)
    monkeypatch.setattr(build, "read_chunks", lambda *_: pytest.fail("read again"))
    again = _load(folder, MIXTURE)
    assert {name: list(dataset) for name, dataset in again.train.items()} == {
        name: list(dataset) for name, dataset in first.train.items()
    }


def test_a_killed_read_leaves_no_half_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_arrow", killed)
        with pytest.raises(KeyboardInterrupt):
            _load(folder, MIXTURE)
    spec = parse_mixture({"root": str(folder), "datasets": MIXTURE})[0]["pairs"]
    location = sources.locate(spec, folder)
    # What kill -9 would leave: a folder of the right name, half full.
    partial = folder / "cache" / f"{build.row_key(spec, location, folder / 'cache')}.partial"
    partial.mkdir(parents=True)
    (partial / "data.arrow").write_bytes(b"half")
    assert len(_load(folder, MIXTURE).train["pairs"]) == 20


def _count_rows(folder: str, queue: Any) -> None:
    queue.put(len(_load(Path(folder), MIXTURE).train["pairs"]))


def test_two_processes_make_one_entry(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_count_rows, args=(str(folder), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [20, 20]
    for process in processes:
        process.join(60)
    assert not list((folder / "cache").glob("*.partial"))


def test_a_cache_that_cannot_be_written_is_an_error_with_its_place(folder: Path) -> None:
    if os.geteuid() == 0:
        (folder / "cache").write_text("a file where the folder should be")
    else:
        (folder / "cache").mkdir(mode=0o500)
    with pytest.raises(MixtureError, match=r"the cache .*cache cannot be written: .*; choose another with cache_dir"):
        _load(folder, MIXTURE)


def test_evaluation_sets_are_kept_apart(folder: Path) -> None:
    datasets = {
        **MIXTURE,
        "dev": {**MIXTURE["scores"], "use": "evaluate"},
        "labelled": {**MIXTURE["labels"], "use": "evaluate"},
    }
    mixture = _load(folder, datasets)
    assert set(mixture.train) == set(MIXTURE)
    assert mixture.evaluation["dev"].column_names == ["sentence1", "sentence2", "label"]
    assert mixture.evaluation["labelled"].column_names == ["text", "label"]
    assert mixture.evaluation["labelled"][1] == {"text": "文1", "label": "b"}


def test_the_mixture_that_the_recipes_ship_names_every_task_type_and_where_it_comes_from() -> None:
    specs, _, _ = parse_mixture(Path(__file__).parents[2] / "recipes" / "configs" / "zh-mini-mixture.yaml")
    assert {spec.task for spec in specs.values()} == {"retrieval", "sts", "pair", "classification"}
    assert {spec.preset.name for spec in specs.values() if spec.preset} == {"nli", "classes"}
    assert [name for name, spec in specs.items() if spec.use == "evaluate"] == [
        "cmrc-dev", "stsb-dev", "pawsx-dev", "shopping-dev",
    ]  # fmt: skip
    assert all(spec.note for spec in specs.values())


def test_specs_name_every_field_in_their_docstring() -> None:
    missing = [name for name in DatasetSpec.__dataclass_fields__ if name not in (DatasetSpec.__doc__ or "")]
    assert not missing
