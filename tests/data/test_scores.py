"""A teacher's scores, from the file to the batch: whose score each text has, whatever leaves its list on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st import PiccoloDataCollator, load_mixture
from piccolo_st.batches.reading import ColumnReader
from piccolo_st.data.mixture import Mixture, MixtureError
from piccolo_st.data.scores import keep_joined

FLAG = {"positive_score": "pos_scores", "negative_score": "neg_scores"}
ROW = {"query": "问", "pos": ["答"], "neg": ["错", "误"], "pos_scores": [0.5], "neg_scores": [0.25, -2]}
SCORED = {"query": "问", "positive": "答", "negative": ["错", "误"], "label": [0.5, 0.25, -2.0]}


def load(folder: Path, rows: list[dict[str, Any]], columns: dict[str, Any], **settings: Any) -> Mixture:
    if settings.pop("parquet", False):
        source = folder / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        source = folder / "rows.jsonl"
        source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    spec = {"source": str(source), "task": "retrieval", "max_rejected": 1.0, "columns": columns, **settings}
    return load_mixture({"datasets": {"faq": spec}}, cache_dir=folder / "cache")


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        (ROW, FLAG, SCORED),
        ({**ROW, "pos_scores": 0.5, "neg_scores": "[0.25, -2]"}, FLAG, SCORED),
        ({"anchor": "问", "positive": "答", "negative_1": "错", "negative_2": "误", "scores": [0.5, 0.25, -2.0]},
         {"label": "scores"},
         {"query": "问", "positive": "答", "negative_1": "错", "negative_2": "误", "label": [0.5, 0.25, -2.0]}),
        ({"query": "问", "positive": "答", "negative": "错", "label": 3.5}, {"label": "label"},
         {"query": "问", "positive": "答", "negative": "错", "label": [0.0, -3.5]}),
        ({"query": "问", "positive": "答", "negative": ["错", "误"], "label": [3.5, -1.0]}, {"label": "label"},
         {"query": "问", "positive": "答", "negative": ["错", "误"], "label": [0.0, -3.5, 1.0]}),
        ({"query": "问", "docs": ["错", "答", "误"], "labels": [0, 1, 0], "scores": [0.25, 0.5, -2.0]},
         {"label": "scores"}, SCORED),
    ],
    ids=["FlagEmbedding", "numbers and text", "ST's n-tuple", "ST's margin", "ST's margins", "ST's labelled list"],
)  # fmt: skip
def test_scores_are_read_as_they_stand(
    row: dict[str, Any], columns: dict[str, Any], expected: dict[str, Any], parquet: bool, tmp_path: Path
) -> None:
    mixture = load(tmp_path, [row], columns, parquet=parquet)
    assert list(mixture.train["faq"]) == [expected]


def test_scores_that_the_mixture_does_not_name_are_no_concern(tmp_path: Path) -> None:
    mixture = load(tmp_path, [{**ROW, "pos_scores": [], "neg_scores": None}], {})
    assert list(mixture.train["faq"]) == [{key: SCORED[key] for key in ("query", "positive", "negative")}]


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"neg_scores": [1.0]}, "negative_score: not one score for each text"),
        ({"pos_scores": [1.0, 2.0]}, "positive_score: not one score for each text"),
        ({"neg_scores": None}, "negative_score: not one score for each text"),
        ({"neg_scores": [1.0, float("nan")]}, "negative_score: not finite"),
        ({"pos_scores": [1e300]}, "positive_score: not finite"),
        ({"neg_scores": ["1", "good"]}, "negative_score: not a number"),
        ({"neg_scores": "[1, 2"}, "negative_score: not a number"),
    ],
)
def test_a_row_whose_scores_are_not_right_is_left_out_with_the_reason(
    change: dict[str, Any], reason: str, parquet: bool, tmp_path: Path
) -> None:
    rows = [{**ROW, **change}, {**ROW, "query": "再问"}]
    if parquet and any(type(value) is not type(ROW[key]) for key, value in change.items()):
        rows[1] |= {key: json.dumps(ROW[key]) for key, value in change.items() if isinstance(value, str)}
    if parquet and "good" in (change.get("neg_scores") or []):
        rows[1]["neg_scores"] = ["0.25", "-2"]
    mixture = load(tmp_path, rows, FLAG, parquet=parquet)
    assert mixture.report.datasets["faq"].rejected == {reason: 1}
    assert list(mixture.train["faq"]) == [{**SCORED, "query": "再问"}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"positive_score": "pos_scores"}, r"got positive_score; name the other as well"),
        ({**FLAG, "label": "pos_scores"}, r"got positive_score and negative_score and label"),
        ({"label": "query"}, r"rows of dataset 'faq' are faulty \(1 label: not a number"),
    ],
)
def test_columns_that_are_no_scores_are_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MixtureError, match=message):
        load(tmp_path, [ROW], columns, max_rejected=0.5)


texts = st.lists(st.sampled_from(["答", "错", "误", "", "问", "天"]), max_size=4)
rows_of_scores = st.lists(st.tuples(st.lists(st.sampled_from(["答", "好", "", "问"]), min_size=1, max_size=3), texts))


@pytest.mark.parametrize("positives", ["all", "first", "list"])
def test_a_text_that_goes_takes_its_score_with_it(positives: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A text's score here is its code point, so that it can be told from the text in every row that comes out."""

    @given(rows_of_scores)
    def check(drawn: list[tuple[list[str], list[str]]]) -> None:
        rows = [
            {"query": "问", "pos": pos, "neg": neg, "pos_scores": [*map(code, pos)], "neg_scores": [*map(code, neg)]}
            for pos, neg in [*drawn, (["好"], ["天"])]
        ]
        mixture = load(tmp_path_factory.mktemp("rows"), rows, FLAG, positives=positives)
        for row in mixture.train["faq"]:
            own = row["positive"] if isinstance(row["positive"], list) else [row["positive"]]
            assert row["label"] == [*map(code, [*own, *row["negative"]])]

    check()


def code(text: str) -> float:
    return float(ord(text)) if text else -1.0


def test_held_out_texts_take_their_scores_with_them() -> None:
    table = pa.table(
        {"query": ["a", "b"], "positive": ["c", "d"], "negative": [["e", "f", "g"], ["h"]],
         "label": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0]]}
    )  # fmt: skip
    kept = keep_joined(table, table, {"negative": torch.tensor([True, False, True, False]).numpy()})
    assert kept["label"].to_pylist() == [[1.0, 2.0, 4.0], [5.0]]


def test_the_batch_has_the_scores_of_the_texts_that_were_taken(tmp_path: Path) -> None:
    """Of lists, one positive and at most two negatives a row are drawn; the seed decides which."""
    rows = [
        {"query": f"问{i}", "pos": ["答", "好", "对"][: 1 + i % 3], "neg": [*"错误天地人"][: i % 5]} for i in range(30)
    ]
    rows = [
        {**row, "pos_scores": [*map(code, row["pos"])], "neg_scores": [*map(code, row["neg"])]}  # type: ignore[call-overload]
        for row in rows
    ]
    dataset = load(tmp_path, rows, FLAG, positives="list").train["faq"]
    read = ColumnReader(dataset)(torch.arange(30).numpy())
    batch_rows = [{name: values[i] for name, values in read.items()} for i in range(30)]
    seen: dict[str, list[str]] = {}

    def preprocess(texts: list[str], **_: Any) -> dict[str, Any]:
        seen[f"{len(seen)}"] = list(texts)
        return {"input_ids": torch.ones(len(texts), 1, dtype=torch.int64)}

    batch = PiccoloDataCollator(preprocess, seed=3, num_negatives=2)(batch_rows)
    _, positives, negatives = seen.values()
    assert batch["positive_score"].tolist() == [*map(code, positives)]
    assert batch["negative_score"].tolist() == [*map(code, negatives)]
    assert len(set(positives)) == 3 and len(negatives) == sum(min(2, i % 5) for i in range(30))
    assert "label" not in batch
