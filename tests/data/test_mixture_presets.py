"""Rows of one kind turned into rows of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.data import Mixture
from piccolo_st.errors import MixtureError
from tests.helpers.mixtures import jsonl, load


def _load(folder: Path, rows: list[dict[str, Any]], task: str = "retrieval", **settings: Any) -> Mixture:
    return load(jsonl(folder / "rows.jsonl", rows), task, **settings)


NLI = [
    {"premise": "甲", "hypothesis": "甲真", "label": "entailment"},
    {"premise": "甲", "hypothesis": "甲假", "label": "contradiction"},
    {"premise": "乙", "hypothesis": "乙假", "label": "contradiction"},
    {"premise": "甲", "hypothesis": "甲或", "label": "neutral"},
    {"premise": "甲", "hypothesis": "甲也真", "label": "Entailment"},
    {"premise": "丙", "hypothesis": "丙真", "label": "entailment"},
    {"premise": "甲", "hypothesis": "甲假", "label": "contradiction"},
    {"premise": "甲", "hypothesis": "甲也真", "label": "contradiction"},
]


def test_nli_becomes_triplets_by_premise(tmp_path: Path) -> None:
    mixture = _load(tmp_path, NLI, preset={"name": "nli"})
    assert list(mixture.train["faq"]) == [
        {"query": "甲", "positive": "甲真", "negative": ["甲假", "甲也真"]},
        {"query": "甲", "positive": "甲也真", "negative": ["甲假"]},  # never its own positive, never one twice
        {"query": "丙", "positive": "丙真", "negative": []},
    ]
    assert sum(mixture.report.datasets["faq"].left_out.values()) == 5


def test_neutral_hypotheses_are_negatives_only_when_asked(tmp_path: Path) -> None:
    mixture = _load(tmp_path, NLI, preset={"name": "nli", "neutral_as_negative": True})
    assert mixture.train["faq"]["negative"][1] == ["甲假", "甲或"]


@pytest.mark.parametrize("task", ["sts", "pair"])
def test_nli_becomes_scores_where_the_task_is_of_scores(tmp_path: Path, task: str) -> None:
    rows = [*NLI, {"premise": "同", "hypothesis": "同", "label": "entailment"},
            {"premise": "丁", "hypothesis": "丁真", "label": "-"}]  # fmt: skip
    mixture = _load(tmp_path, rows, task, preset={"name": "nli"})
    expected = [1.0, 0.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.0]
    assert list(mixture.train["faq"]) == [
        {"sentence1": row["premise"], "sentence2": row["hypothesis"], "label": score}
        for row, score in zip(NLI, expected, strict=True)
    ]
    assert mixture.report.datasets["faq"].left_out == {"no relation of that name": 1, "equal sentences": 1}


def test_nli_takes_numbers_as_the_hub_has_them(tmp_path: Path) -> None:
    names = {"entailment": 0, "neutral": 1, "contradiction": 2}
    rows = [{**row, "label": names[row["label"].lower()]} for row in NLI]
    assert _load(tmp_path, rows, preset={"name": "nli"}).train["faq"][0]["negative"] == ["甲假", "甲也真"]


def test_nli_without_entailments_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MixtureError, match=r"the preset 'nli' of dataset 'faq' must leave .*, got none of 1"):
        _load(tmp_path, NLI[1:2], preset={"name": "nli"})


@pytest.mark.parametrize(("threshold", "kept"), [(0.8, [4, 5]), (0.81, [5]), (0.2, [1, 2, 3, 4, 5])])
def test_scored_pairs_at_or_above_the_threshold_are_positives(
    threshold: float, kept: list[int], tmp_path: Path
) -> None:
    rows = [{"sentence1": f"甲{i}", "sentence2": f"乙{i}", "score": i} for i in range(6)]
    rows.append({"sentence1": "同", "sentence2": "同", "score": 5})
    mixture = _load(tmp_path, rows, preset={"name": "scored_pairs", "threshold": threshold}, score_range=[0, 5])
    assert list(mixture.train["faq"]) == [{"query": f"甲{i}", "positive": f"乙{i}"} for i in kept]
    assert mixture.report.datasets["faq"].left_out == {
        "score below the threshold": 6 - len(kept), "positive equal to the query": 1,
    }  # fmt: skip


def _class_of(text: str) -> str:
    return text[0]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    negatives=st.integers(0, 5),
    seed=st.integers(0, 3),
)
def test_labelled_texts_meet_their_own_class_and_others(
    sizes: list[int], negatives: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes[0] = max(sizes[0], 2)
    rows = [
        {"text": f"{name}{i}", "label": name}
        for name, size in zip("甲乙丙丁", sizes, strict=False)
        for i in range(size)
    ]
    rows = rows[::2] + rows[1::2]  # classes not in blocks
    folder = tmp_path_factory.mktemp("classes")
    mixture = _load(
        folder, rows, task="classification", preset={"name": "classes", "negatives": negatives, "seed": seed}
    )
    dataset = mixture.train["faq"]
    assert dataset["query"] == [row["text"] for row in rows if sizes["甲乙丙丁".index(row["label"])] > 1]
    for row in dataset:
        assert _class_of(row["positive"]) == _class_of(row["query"])
        assert row["positive"] != row["query"]
        if not negatives:
            assert set(row) == {"query", "positive", "label"}
            continue
        assert 1 <= len(row["negative"]) <= negatives
        assert len(set(row["negative"])) == len(row["negative"])
        assert all(_class_of(text) != _class_of(row["query"]) for text in row["negative"])
    if not negatives:  # numbers, equal where the class is
        named = {(_class_of(row["query"]), row["label"]) for row in dataset}
        assert all(type(label) is int for _, label in named)
        assert len(named) == len({name for name, _ in named}) == len({label for _, label in named})
    report = mixture.report.datasets["faq"]
    assert report.rows == report.kept + sum(report.left_out.values())


def test_the_classes_of_pairs_made_elsewhere_are_told_apart(tmp_path: Path) -> None:
    rows = [{"query": f"问{i}", "positive": f"答{i}", "topic": "ab"[i % 2]} for i in range(6)]
    columns = {"query": "query", "positive": "positive", "label": "topic"}
    labels = _load(tmp_path, rows, task="classification", columns=columns).train["faq"]["label"]
    assert labels[::2] == [labels[0]] * 3 and labels[1::2] == [labels[1]] * 3 and labels[0] != labels[1]
    unnamed = [{**row, "label": "x"} for row in rows]
    columns.pop("label")
    (tmp_path / "other").mkdir()
    assert (
        "label"
        not in _load(tmp_path / "other", unnamed, task="classification", columns=columns).train["faq"].column_names
    )


def test_companions_and_negatives_are_drawn_evenly(tmp_path: Path) -> None:
    rows = [{"text": f"{name}{i:03d}", "label": name} for name in "甲乙丙" for i in range(100)]
    dataset = _load(tmp_path, rows, task="classification").train["faq"]
    classes = [_class_of(text) for row in dataset for text in row["negative"]]
    assert len(classes) > 1150  # 4 drawn for each of 300, the same one twice counted once
    assert 300 < classes.count("甲") < 500  # 400 expected
    assert len(set(dataset["positive"])) > 150  # of 300, drawn with repetition


def test_the_draw_is_the_same_for_a_seed_and_another_for_another(tmp_path: Path) -> None:
    rows = [{"text": f"{name}{i}", "label": name} for name in "甲乙" for i in range(20)]

    def drawn(seed: int) -> Dataset:
        return _load(tmp_path, rows, task="classification", preset={"name": "classes", "seed": seed}).train["faq"]

    assert list(drawn(1)) == list(drawn(1))
    assert list(drawn(1)) != list(drawn(2))


def test_a_text_under_two_labels_is_never_its_own_negative(tmp_path: Path) -> None:
    rows = [{"text": f"{name}{i}", "label": name} for name in "甲乙" for i in range(3)]
    rows += [{"text": "两可", "label": "甲"}, {"text": "两可", "label": "乙"}]
    dataset = _load(tmp_path, rows, task="classification", preset={"name": "classes", "negatives": 20}).train["faq"]
    for row in dataset:
        assert not {row["query"], row["positive"]} & set(row["negative"])


def test_rows_that_are_all_faulty_are_told_before_what_the_preset_misses(tmp_path: Path) -> None:
    with pytest.raises(MixtureError, match=r"3 of the 3 rows of dataset 'faq' are faulty \(3 text: empty\)"):
        _load(tmp_path, [{"text": "", "label": "甲"}] * 3, task="clustering")


def test_one_class_alone_is_an_error(tmp_path: Path) -> None:
    rows = [{"text": f"文{i}", "label": "甲"} for i in range(3)]
    with pytest.raises(MixtureError, match=r"the preset 'classes' of dataset 'faq' needs .* labels, got '甲' in"):
        _load(tmp_path, rows, task="clustering")


def test_triplets_made_elsewhere_serve_classification_as_they_are(tmp_path: Path) -> None:
    rows = [{"text": "甲", "text_pos": "甲二", "text_neg": ["乙"], "type": "cls_contrast"}]
    columns = {"query": "text", "positive": "text_pos", "negative": "text_neg"}
    mixture = _load(tmp_path, rows, task="classification", columns=columns)
    assert list(mixture.train["faq"]) == [{"query": "甲", "positive": "甲二", "negative": ["乙"]}]
    assert mixture.specs["faq"].preset is None
