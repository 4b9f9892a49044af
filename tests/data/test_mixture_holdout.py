"""No held-out text is trained on, in any dataset, in any column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.data import holdout
from piccolo_st.data.mixture import Mixture, load_mixture
from piccolo_st.errors import MixtureError
from piccolo_st.hashing import text_key
from tests.helpers.mixtures import jsonl


def _load(folder: Path, rows: list[dict[str, Any]], holdout: dict[str, int], **others: list[dict[str, Any]]) -> Mixture:
    datasets: dict[str, Any] = {"words": {"source": "words.jsonl", "task": "retrieval", "holdout": holdout}}
    for name, own in {"words": rows, **others}.items():
        jsonl(folder / f"{name}.jsonl", own)
        datasets.setdefault(name, {"source": f"{name}.jsonl", "task": "retrieval"})
    return load_mixture({"root": str(folder), "datasets": datasets}, cache_dir=folder / "cache")


def _keys(texts: list[str]) -> set[str]:
    import pyarrow as pa

    return set(text_key(pa.array(texts, type=pa.string())).to_pylist())


def _trained(mixture: Mixture) -> set[str]:
    texts: list[str] = []
    for dataset in mixture.train.values():
        for row in dataset:
            for value in row.values():
                texts += value if isinstance(value, list) else [value]
    return _keys(texts)


ROWS = [{"query": f"词{i}", "positive": f"解释{i}"} for i in range(40)]


def test_queries_are_held_out_with_their_answers_and_searched_among_all(tmp_path: Path) -> None:
    mixture = _load(tmp_path, ROWS, {"queries": 5, "seed": 1, "min_corpus": 40})
    found = mixture.holdouts["words"]
    assert len(found.queries) == 5
    assert sorted(found.corpus.values()) == sorted(row["positive"] for row in ROWS)
    for query, text in found.queries.items():
        (document,) = found.relevant[query]
        assert found.corpus[document] == text.replace("词", "解释")
    held = set(found.queries.values())
    assert list(mixture.train["words"]) == [row for row in ROWS if row["query"] not in held]
    assert mixture.report.datasets["words"].held_out == {"of a held-out query": 5}


def test_each_training_text_is_given_once_and_no_held_out_one(tmp_path: Path) -> None:
    rows = [{**row, "negative": ["反例", f"反例{i}"]} for i, row in enumerate(ROWS)]
    mixture = _load(tmp_path, rows, {"queries": 5, "seed": 1, "min_corpus": 40}, others=ROWS[:20])
    texts = list(mixture.texts())
    assert len(texts) == len(set(texts))
    assert _keys(texts) == _trained(mixture)


def test_what_is_drawn_once_is_not_read_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of a run asks for it, and it takes the hashes of all rows to draw."""
    first = _load(tmp_path, ROWS, {"queries": 5, "seed": 1, "min_corpus": 40})
    monkeypatch.setattr(holdout, "draw", None)
    again = _load(tmp_path, ROWS, {"queries": 5, "seed": 1, "min_corpus": 40})
    assert again.holdouts["words"] == first.holdouts["words"]
    assert list(again.holdouts["words"].queries.items()) == list(first.holdouts["words"].queries.items())
    with pytest.raises(TypeError):
        _load(tmp_path, ROWS, {"queries": 5, "seed": 2, "min_corpus": 40})


def test_the_draw_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    def drawn(rows: list[dict[str, Any]], seed: int) -> set[str]:
        folder = tmp_path / f"{seed}-{rows[0]['query']}"
        folder.mkdir(exist_ok=True)
        return set(
            _load(folder, rows, {"queries": 5, "seed": seed, "min_corpus": 1}).holdouts["words"].queries.values()
        )

    assert drawn(ROWS, 1) == drawn(ROWS[::-1], 1)
    assert drawn(ROWS, 1) != drawn(ROWS, 2)


def test_shared_answers_are_relevant_to_both_and_trained_on_by_none(tmp_path: Path) -> None:
    rows = [{"query": f"词{i}", "positive": f"解释{i // 4}"} for i in range(40)]  # four words a definition
    mixture = _load(tmp_path, rows, {"queries": 6, "seed": 3, "min_corpus": 10})
    holdout = mixture.holdouts["words"]
    answers = {holdout.corpus[d] for found in holdout.relevant.values() for d in found}
    assert not answers & set(mixture.train["words"]["positive"])
    assert len(mixture.train["words"]) == 40 - 4 * len(answers)
    lost = {"of a held-out query": 6, "with a text of a held-out search": 4 * len(answers) - 6}
    assert mixture.report.datasets["words"].held_out == lost
    assert len(holdout.corpus) == 10


def test_a_query_with_several_answers_has_them_all(tmp_path: Path) -> None:
    rows = [{"query": f"词{i // 3}", "positive": f"解释{i}"} for i in range(30)]
    mixture = _load(tmp_path, rows, {"queries": 2, "seed": 0, "min_corpus": 30})
    assert [len(found) for found in mixture.holdouts["words"].relevant.values()] == [3, 3]
    assert len(mixture.train["words"]) == 24


def test_held_out_texts_leave_the_other_datasets_too_whatever_their_spelling(tmp_path: Path) -> None:
    held = set(_load(tmp_path, ROWS, {"queries": 5, "seed": 1, "min_corpus": 1}).holdouts["words"].queries.values())
    answer = sorted(held)[0].replace("词", "解释")
    other = [
        {"query": "别的一", "positive": f"「{answer}」！", "negative": ["对照"]},
        {"query": f" {answer.replace('解', '解 ')}", "positive": "好", "negative": ["对照"]},
        {"query": "别的二", "positive": "坏", "negative": [answer, "对照", f"{answer}。"]},
        {"query": "别的三", "positive": "中", "negative": []},
        {"query": "别的四", "positive": sorted(held)[0], "negative": []},
        {"query": f"{sorted(held)[1]}？", "positive": "下", "negative": []},
    ]
    mixture = _load(tmp_path, ROWS, {"queries": 5, "seed": 1, "min_corpus": 1}, other=other)
    assert list(mixture.train["other"]) == [
        {"query": "别的二", "positive": "坏", "negative": ["对照"]},
        {"query": "别的三", "positive": "中", "negative": []},
    ]
    report = mixture.report.datasets["other"]
    assert report.held_out == {"with a text of a held-out search": 4}
    assert report.removed == {"negative: a text of a held-out search": 2}


def test_a_smaller_corpus_holds_the_answers_and_a_draw_of_the_rest(tmp_path: Path) -> None:
    mixture = _load(tmp_path, ROWS, {"queries": 5, "seed": 1, "min_corpus": 1, "max_corpus": 12})
    holdout = mixture.holdouts["words"]
    assert len(holdout.corpus) == 12
    assert {d for found in holdout.relevant.values() for d in found} <= set(holdout.corpus)


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        ({"queries": 40}, r"holdout of dataset 'words' must leave queries to train on, got 40 of the 40 distinct ones"),
        (
            {"queries": 4},
            r"must search among at least 10000 distinct positives, got 40; lower `min_corpus`",
        ),
    ],
)
def test_a_holdout_that_cannot_be_drawn_says_why(holdout: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(MixtureError, match=message):
        _load(tmp_path, ROWS, holdout)


def test_a_holdout_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    rows = [{"query": f"词{i}", "positive": "同一个解释"} for i in range(9)]
    with pytest.raises(MixtureError, match=r"dataset 'words' has no row left without the held-out texts"):
        _load(tmp_path, rows, {"queries": 1, "min_corpus": 1})


_WORDS = st.sampled_from(["甲", "乙", "丙", "丁", "甲。", " 甲乙", "ＡＢ", "ab", "戊己"])


@given(
    rows=st.lists(
        st.tuples(_WORDS, _WORDS).filter(lambda pair: pair[0].strip() != pair[1].strip()), min_size=6, max_size=30
    ),
    other=st.lists(st.tuples(_WORDS, _WORDS, st.lists(_WORDS, max_size=3)), max_size=10),
    seed=st.integers(0, 5),
)
def test_no_held_out_text_is_ever_trained_on(
    rows: list[tuple[str, str]], other: list[tuple], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("holdout")
    words = [{"query": f"问{q}", "positive": p} for q, p in rows]
    others = [{"query": f"他{q}", "positive": p, "negative": n} for q, p, n in other]
    others.append({"query": "安全", "positive": "平安", "negative": []})
    words.append({"query": "词语", "positive": "话语"})
    try:
        mixture = _load(folder, words, {"queries": 1, "seed": seed, "min_corpus": 1}, other=others)
    except MixtureError:
        return  # everything was held out, or there was one query only
    holdout = mixture.holdouts["words"]
    answers = [holdout.corpus[d] for found in holdout.relevant.values() for d in found]
    assert answers
    assert not _keys(answers) & _trained(mixture)
    assert not _keys(list(holdout.queries.values())) & _keys(list(mixture.train["words"]["query"]))
    assert set(holdout.corpus.values()) >= set(mixture.train["words"]["positive"])
