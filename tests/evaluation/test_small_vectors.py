"""Search with bytes and bits in place of floats: what the index finds, what is kept of it, what the table says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb")
pytest.importorskip("faiss")

from sentence_transformers import SentenceTransformer

from piccolo_st.commands import evaluate as command
from piccolo_st.errors import InputError
from piccolo_st.evaluation import VectorRow, read_vector_rows, select
from piccolo_st.evaluation.runner import evaluate
from piccolo_st.evaluation.small_vectors import PRECISIONS, RESCORED, SmallVectorIndex
from piccolo_st.releasing import prepare_card
from piccolo_st.releasing.card_sections import vectors_section
from tests.helpers.evaluation_data import write_search

Model = Callable[..., SentenceTransformer]


def vectors(rows: int, dimension: int = 36, seed: int = 0, common: float = 0.05) -> np.ndarray:
    return np.random.default_rng(seed).normal(common, 1, (rows, dimension)).astype(np.float32)


def searched(precision: str, documents: np.ndarray, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    index = SmallVectorIndex(precision)  # type: ignore[arg-type]
    index.add_documents(documents, [str(i) for i in range(len(documents))])
    scores, places = index.search(queries, top_k, np.dot)
    return np.array(scores), np.array(places)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_float32_is_the_cosine_and_int8_nearly() -> None:
    documents, queries = vectors(500), vectors(20, seed=1)
    exact = unit(queries) @ unit(documents).T
    for precision, tolerance in (("float32", 1e-6), ("int8", 5e-3)):
        scores, places = searched(precision, documents, queries, 10)
        assert abs(scores - np.take_along_axis(exact, places, axis=1)).max() < tolerance
        best = -np.sort(-exact, axis=1)[:, :10]
        assert abs(scores - best).max() < 2 * tolerance
    # calibrated as sentence-transformers quantises, on the corpus
    span = unit(documents).max(axis=0) - unit(documents).min(axis=0)
    assert abs(scores - best).max() < (np.abs(unit(queries)) @ (span / 255)).max()


def test_binary_is_the_search_that_the_card_shows_where_all_are_rescored() -> None:
    documents, queries = vectors(RESCORED), vectors(20, seed=1)
    card = vectors_section([VectorRow(36, "binary", 5, 90.0, 98.0, 0.1)])
    names: dict[str, Any] = {"documents": unit(documents), "queries": unit(queries)}
    exec(card.split("```python\n")[1].split("```")[0], names)
    theirs = names["hits"]
    scores, places = searched("binary", documents, queries, RESCORED)
    assert places[:, :10].tolist() == [[hit["corpus_id"] for hit in hits] for hits in theirs]
    assert (np.diff(scores, axis=1) <= 1e-6).all() and (np.sort(places, axis=1) == np.arange(RESCORED)).all()


def test_bits_are_no_worse_for_what_all_texts_have_in_common() -> None:
    """Documents that share most of their direction: their signs alone would all be the same."""
    documents, queries = vectors(300, common=3), vectors(300, common=3)[:50]  # each query is a document
    assert (documents > 0).all(axis=1).mean() > 0.9
    _, places = searched("binary", documents, queries + vectors(50, seed=1) / 5, 1)
    assert (places[:, 0] == np.arange(50)).mean() > 0.9


def test_only_the_nearest_by_bits_are_rescored() -> None:
    documents, queries = vectors(300), vectors(8, seed=1)
    _, places = searched("binary", documents, queries, 300)
    mean = unit(documents).mean(axis=0)
    distance = ((unit(documents)[None] > mean) != (unit(queries)[:, None] > mean)).sum(axis=2)
    ranked = np.take_along_axis(distance, places, axis=1)
    assert (ranked[:, :RESCORED].max(axis=1) <= ranked[:, RESCORED:].min(axis=1)).all()
    assert (np.diff(ranked[:, RESCORED:], axis=1) >= 0).all() and (np.diff(ranked[:, :RESCORED], axis=1) < 0).any()


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    write_search(tmp_path / "search", documents=120, queries=40)
    path = tmp_path / "search.yaml"
    path.write_text("tasks: [{name: OwnSearch, type: Retrieval, data: search}]")
    return str(path)


def test_sizes_are_scored_from_one_encoding_and_kept(
    make_model: Model, tasks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save_pretrained(str(tmp_path / "model"))
    plain = evaluate(str(tmp_path / "model"), tasks, output=tmp_path / "plain")[0].scores["OwnSearch"]
    arguments = [str(tmp_path / "model"), "--benchmark", tasks, "--output", str(tmp_path / "out")]
    arguments += ["--precision", "float32,int8,binary", "--truncate_dim", "32,16"]
    command.main(arguments)
    first = capsys.readouterr().out
    lines = [line.split() for line in first.splitlines() if line.lstrip().startswith("[1/1]")]
    assert [line[3:5] for line in lines[:2]] == [["float32", "ndcg_at_10"], ["int8", "ndcg_at_10"]]
    assert len(lines) == 6 and ["16d", "binary"] in [line[3:5] for line in lines]
    (folder,) = (tmp_path / "out" / "results" / "local__model").iterdir()
    rows = read_vector_rows(folder, select(tasks)[0].benchmark)
    assert [(row.dimension, row.precision, row.size) for row in rows] == [
        (32, "float32", 128), (32, "int8", 32), (32, "binary", 4),
        (16, "float32", 64), (16, "int8", 16), (16, "binary", 2),
    ]  # fmt: skip
    assert rows[0].score == pytest.approx(plain) and rows[0].share == pytest.approx(100)
    assert all(row.seconds and row.seconds > 0 for row in rows) and rows[1].score == pytest.approx(plain, abs=2)
    assert rows[5].score < plain and rows[5].share == pytest.approx(100 * rows[5].score / plain)
    assert "% of float32" in first
    command.main(arguments)
    assert capsys.readouterr().out.count(" kept") == 6
    prepare_card(tmp_path / "model", "org/name", results=folder, benchmark=select(tasks)[0].benchmark)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    table = card.split("### 小向量 · Small vectors")[1].split("<!-- end evaluation -->")[0]
    assert f"| 16 | binary | 2 | {rows[5].score:.2f} | {rows[5].share:.1f} |" in table


def test_the_table_is_of_the_dtype_that_was_evaluated_in(
    make_model: Model, tasks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save_pretrained(str(tmp_path / "model"))
    arguments = [str(tmp_path / "model"), "--benchmark", tasks, "--output", str(tmp_path / "out")]
    command.main([*arguments, "--precision", "float32,int8"])
    capsys.readouterr()
    command.main([*arguments, "--precision", "int8", "--dtype", "bfloat16"])
    table = capsys.readouterr().out.split("search with small vectors")[1].split("written:")[0]
    assert "int8" in table and "float32" not in table.split("% of float32")[1]
    (folder,) = (tmp_path / "out" / "results" / "local__model").iterdir()
    benchmark = select(tasks)[0].benchmark
    assert [row.precision for row in read_vector_rows(folder, benchmark)] == ["float32", "int8"]
    (row,) = read_vector_rows(folder, benchmark, "bfloat16")
    assert (row.precision, row.share) == ("int8", None), "float32 was not measured in this dtype"


def test_a_plain_evaluation_is_measured_once_precisions_are_asked_for(
    make_model: Model, tasks: str, tmp_path: Path
) -> None:
    model, notes = make_model(), []
    (plain,) = evaluate(model, tasks, output=tmp_path)
    for _ in range(2):
        found = evaluate(
            model, tasks, output=tmp_path, precision=["float32", "int8"],
            on_task=lambda outcome: notes.append((outcome.precision, outcome.seconds is None, outcome.note)),
        )  # fmt: skip
    why = "the stored result does not say how large and fast vectors are"
    assert notes == [("float32", False, why), ("int8", False, ""), ("float32", True, ""), ("int8", True, "")]
    assert found[0].scores == pytest.approx(plain.scores)
    rows = read_vector_rows(plain.folder, select(tasks)[0].benchmark)
    assert [row.precision for row in rows] == ["float32", "int8"]


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_a_distance_is_not_searched_by_inner_product(
    make_model: Model, tasks: str, tmp_path: Path, similarity: str
) -> None:
    model = make_model()
    model.similarity_fn_name = similarity
    with pytest.raises(InputError, match=f"got a model whose similarity_fn_name is '{similarity}'; evaluate it with"):
        evaluate(model, tasks, output=tmp_path, precision="int8")


def test_what_no_search_can_use_is_refused(make_model: Model, tasks: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"precision must be of float32, int8, binary, got 'int4'"):
        evaluate(make_model(), tasks, output=tmp_path, precision=["int4"])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"got 'int4'"):  # one stands for a list of one
        evaluate(make_model(), tasks, output=tmp_path, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"for Retrieval tasks alone, got AFQMC"):
        evaluate(make_model(), ["AFQMC"], output=tmp_path, precision=PRECISIONS)
