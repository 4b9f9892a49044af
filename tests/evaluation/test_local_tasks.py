"""Files of one's own as mteb tasks: what is read, what is refused, and that mteb takes them for its own."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mteb")

from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS

from piccolo_st.errors import InputError
from piccolo_st.evaluation.local_tasks import load_local_tasks
from piccolo_st.evaluation.runner import evaluate
from piccolo_st.evaluation.tasks import select
from tests.helpers.evaluation_data import write_jsonl, write_local_tasks, write_search

TWO_LABELS = [{"text": "天气晴", "label": "a"}, {"text": "猫狗", "label": "b"}]


def declare(folder: Path, *entries: str) -> Path:
    path = folder / "own.yaml"
    path.write_text("tasks:\n" + "".join(f"  - {{{entry}}}\n" for entry in entries), encoding="utf-8")
    return path


def load(folder: Path, entry: str) -> AbsTask:
    """The one task of a declaration, with its data."""
    ((_, task),) = load_local_tasks(declare(folder, entry))
    task.load_data()
    return task


def test_six_types_are_mteb_tasks_with_the_metric_of_their_type(tmp_path: Path) -> None:
    pairs = load_local_tasks(write_local_tasks(tmp_path))

    assert all(isinstance(task, AbsTask) for _, task in pairs)
    assert {definition.type: definition.metric for definition, _ in pairs} == {
        "Retrieval": "ndcg_at_10",
        "Reranking": "map_at_1000",
        "STS": "cosine_spearman",
        "PairClassification": "cosine_ap",
        "Classification": "accuracy",
        "Clustering": "v_measure",
    }
    assert isinstance(pairs[0][1], AbsTaskRetrieval) and isinstance(pairs[2][1], AbsTaskSTS)
    assert [task.metadata.main_score for _, task in pairs] == [definition.metric for definition, _ in pairs]


def test_a_file_is_a_group_of_its_own(tmp_path: Path) -> None:
    local, selection = select([str(write_local_tasks(tmp_path)), "STSB"])

    assert (local.benchmark.name, len(local.tasks)) == ("six", 6)
    assert selection.benchmark.name == "selection"


def test_one_name_is_one_task_in_all_files(tmp_path: Path) -> None:
    """Both would write Own.json, and the last one would stand in both tables."""
    write_jsonl(tmp_path / "rows.jsonl", TWO_LABELS)
    own = declare(tmp_path, "name: Own, type: Clustering, data: rows.jsonl")
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text(own.read_text("utf-8"), encoding="utf-8")
    write_jsonl(tmp_path / "others.jsonl", TWO_LABELS[::-1])
    other.write_text(own.read_text("utf-8").replace("rows.jsonl", "others.jsonl"), encoding="utf-8")

    assert len(select([str(own), str(same)])) == 2
    with pytest.raises(InputError, match=r"got another 'Own' in 'other' than in 'own'; give one of them another name"):
        select([str(own), str(same), str(other)])


def test_a_beir_folder_with_titles_and_graded_judgements(tmp_path: Path) -> None:
    folder = write_search(tmp_path / "search")
    write_jsonl(folder / "corpus.jsonl", [{"_id": 7, "title": "标", "text": "天气"}, {"_id": "8", "text": "猫狗"}])
    write_jsonl(folder / "queries.jsonl", [{"_id": "a", "text": "天"}, {"_id": "b", "text": "猫"}])
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\na\t7\t2\na\t8\t1\nb\t8\t0\n", "utf-8")

    task = load(tmp_path, "name: Own, type: Retrieval, data: search")

    data = task.dataset["default"]["test"]
    assert dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True)) == {"7": "标 天气", "8": "猫狗"}
    assert data["relevant_docs"] == {"a": {"7": 2, "8": 1}}
    assert data["queries"]["id"][:] == ["a"]  # nothing is relevant to b


def test_reranking_shares_documents_between_queries(tmp_path: Path) -> None:
    rows = [
        {"query": "天", "positive": "天气", "negative": ["猫狗", "山川"]},
        {"query": "猫", "positive": ["猫狗"], "negative": ["天气"]},
        {"query": "空", "positive": [], "negative": ["天气"]},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)

    data = load(tmp_path, "name: Own, type: Reranking, data: rows.jsonl").dataset["default"]["test"]

    assert len(data["corpus"]) == 3 and len(data["queries"]) == 2
    text = dict(zip(data["corpus"]["id"], data["corpus"]["text"], strict=True))
    assert [
        {text[document]: score for document, score in relevant.items()} for relevant in data["relevant_docs"].values()
    ] == [{"猫狗": 0, "山川": 0, "天气": 1}, {"天气": 0, "猫狗": 1}]
    assert [sorted(ranked) for ranked in data["top_ranked"].values()] == [
        sorted(relevant) for relevant in data["relevant_docs"].values()
    ]


def test_columns_and_labels_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("a\tb\tkind\n天\t地\tsame\n猫\t狗\tother\n", "utf-8")

    task = load(
        tmp_path,
        "name: Own, type: PairClassification, data: rows.tsv, split: dev, labels: {same: 1, other: 0}, "
        "columns: {sentence1: a, sentence2: b, label: kind}",
    )

    assert task.dataset["dev"].to_dict() == {"sentence1": ["天", "猫"], "sentence2": ["地", "狗"], "labels": [1, 0]}


def test_compressed_files_and_text_labels(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", TWO_LABELS * 3)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write((tmp_path / "rows.jsonl").read_bytes())

    task = load(tmp_path, "name: Own, type: Classification, data: rows.jsonl.gz, train: rows.jsonl, experiments: 2")

    assert task.dataset["test"]["label"][:] == [0, 1, 0, 1, 0, 1]
    assert (task.n_experiments, task.samples_per_label) == (2, 32)


def test_the_revision_follows_the_data_and_the_declaration(tmp_path: Path) -> None:
    def revision(entry: str) -> str:
        ((_, task),) = load_local_tasks(declare(tmp_path, entry))
        return task.metadata.revision

    write_jsonl(tmp_path / "rows.jsonl", TWO_LABELS)
    plain = "name: Own, type: Clustering, data: rows.jsonl"
    first = revision(plain)

    assert revision(plain) == first
    assert revision(f"{plain}, experiments: 3") != first
    write_jsonl(tmp_path / "moved" / "rows.jsonl", TWO_LABELS)
    assert revision(plain.replace("rows.jsonl", "moved/rows.jsonl")) == first
    write_jsonl(tmp_path / "rows.jsonl", TWO_LABELS[::-1])
    assert revision(plain) != first


ROW = {"sentence1": "天", "sentence2": "地", "score": 1.0, "label": 0, "text": "天"}


@pytest.mark.parametrize(
    ("entry", "rows", "message"),
    [
        ("type: Retreival", [ROW], r"type of task 1 of .*own.yaml must be one of .*, got 'Retreival'"),
        ("type: STS, dta: x", [ROW], r"unknown key 'dta' in task 1 of .*; did you mean data\?"),
        ("type: STS", [ROW, {**ROW, "score": float("nan")}], r"row 2.*a score must be a finite number"),
        ("type: STS", [ROW, ROW], r"the scores of task 'Own' must differ, got 1.0"),
        ("type: PairClassification", [ROW, {**ROW, "label": 2}], r"row 2, column 'label'.*must be 0 or 1,.*got '2'"),
        ("type: Clustering", [ROW, {**ROW, "label": None}], r"row 2, column 'label'.*a label must not be empty"),
        ("type: Clustering", [ROW, ROW], r"task 'Own' needs at least two labels, got"),
        ("type: Classification", [ROW], r"task 'Own' of type Classification needs `train`"),
        ("type: Retrieval", [ROW], r"task 'Own' needs a BEIR folder"),
        ("type: Reranking", [ROW], r"column 'query' of task 'Own': there is no such column"),
    ],
)
def test_what_cannot_be_used_is_an_error_with_its_place(
    tmp_path: Path, entry: str, rows: list[dict[str, object]], message: str
) -> None:
    """Other messages: tests/errors/model_rows.py."""
    write_jsonl(tmp_path / "rows.jsonl", rows)

    with pytest.raises(InputError, match=message):
        load(tmp_path, f"name: Own, data: rows.jsonl, {entry}")


def test_a_name_twice_half_a_score_and_a_file_without_tasks(tmp_path: Path) -> None:
    path = write_search(tmp_path / "search") / "qrels.tsv"
    path.write_text(path.read_text("utf-8") + "q0\td1\t0.5\n", "utf-8")
    entry = "name: Own, type: Retrieval, data: search"

    with pytest.raises(InputError, match=r"a score must be whole, got 0.5"):
        load(tmp_path, entry)
    with pytest.raises(InputError, match=r"the name of a task of .* occur once .*, got 'Own' twice"):
        load_local_tasks(declare(tmp_path, entry, entry))
    (tmp_path / "own.yaml").write_text("name: Own\n", "utf-8")
    with pytest.raises(InputError, match=r"must hold one key, `tasks`"):
        load_local_tasks(tmp_path / "own.yaml")


def test_the_example_file_of_the_recipes_is_valid_as_it_stands(tmp_path: Path) -> None:
    """recipes/configs/evaluate_local.yaml names every type; its declarations load once the files are there."""
    example = Path(__file__).parents[2] / "recipes/configs/evaluate_local.yaml"
    write_search(tmp_path / "faq")
    write_jsonl(tmp_path / "ranking.jsonl", [{"query": "天", "positive": ["天气"], "negative": ["猫"]}])
    (tmp_path / "sts.tsv").write_text("question\tother\tgrade\n天\t地\t1\n猫\t狗\t2\n", "utf-8")
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,label\n天,地,same\n猫,天,different\n", "utf-8")
    for name in ("topics.test.jsonl", "topics.train.jsonl"):
        write_jsonl(tmp_path / name, TWO_LABELS * 4)
    (tmp_path / "own.yaml").write_text(example.read_text("utf-8"), "utf-8")

    pairs = load_local_tasks(tmp_path / "own.yaml")
    for _, task in pairs:
        task.load_data()

    assert len({definition.type for definition, _ in pairs}) == 6


def test_a_task_is_scored_without_a_network(
    make_model: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a local task asked for a network")

    tasks = write_local_tasks(tmp_path / "tasks")
    monkeypatch.setattr(socket.socket, "connect", refuse)

    (evaluation,) = evaluate(make_model(), str(tasks), output=tmp_path / "out")

    assert evaluation.averages.missing == ()
    assert evaluation.scores["OwnSearch"] > 50  # each query is the first half of its document


def test_a_row_that_cannot_be_used_is_found_before_anything_is_encoded(
    make_model: Callable[..., object], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "groups.jsonl", TWO_LABELS * 4)
    write_jsonl(tmp_path / "ranking.jsonl", [{"query": "天", "positives": ["天气"], "negatives": ["猫"]}])
    tasks = declare(
        tmp_path,
        "name: First, type: Clustering, data: groups.jsonl",
        "name: Second, type: Reranking, data: ranking.jsonl",
    )
    finished: list[object] = []

    with pytest.raises(
        InputError, match=r"column 'positive' of task 'Second': there is no such column, only query, posi"
    ):
        evaluate(make_model(), str(tasks), output=tmp_path / "out", on_task=finished.append)

    assert not finished and not (tmp_path / "out").exists()
