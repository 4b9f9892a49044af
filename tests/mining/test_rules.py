"""Mining that knows its positives: whose rules these are, what is told of them, and what is searched."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from piccolo_st.data.mixture import load_mixture
from piccolo_st.errors import MixtureError
from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.embeddings import StoredEmbeddings, store_embeddings, stored_embeddings
from piccolo_st.mining.lexical import lexical_encoder
from piccolo_st.mining.miner import Miner, mine_negatives
from piccolo_st.mining.mixture import mine_mixture
from piccolo_st.mining.report import MiningReport, report_table, report_text

KNOWN = list("一二三四五六七八九十百千天地山川河海月水火木金土人大小")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Texts of random characters: some queries have several positives, and some share characters with others."""
    generator = np.random.default_rng(3)
    queries = ["".join(generator.choice(KNOWN, 8, replace=False)) for _ in range(90)]
    rows = [queries[i % 90] for i in range(120)]
    answers = [query[: 3 + i % 6] + "".join(generator.choice(KNOWN, 4)) for i, query in enumerate(rows)]
    return Dataset.from_dict({"query": rows, "positive": answers})


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> SentenceTransformer:
    """An encoder that tells texts apart."""
    return lexical_encoder([*dataset["query"], *dataset["positive"]])


@pytest.mark.parametrize("rules", [{}, {"relative_margin": None, "absolute_margin": 0.1}, {"max_score": 0.6}])
@pytest.mark.parametrize("use_faiss", [False, True])
def test_the_rules_are_those_of_the_stock_miner(
    rules: dict[str, Any], use_faiss: bool, dataset: Dataset, model: SentenceTransformer
) -> None:
    """By default a negative stays 5% below the least similar positive of its query."""
    if use_faiss:
        pytest.importorskip("faiss")
    settings = MiningSettings(num_negatives=3, range_min=1, range_max=30, use_faiss=use_faiss, **rules)
    dataset = dataset.sort("query")  # ST counts the positives of queries in this order
    mined = mine_negatives(dataset, model, settings)
    stock = mine_hard_negatives(
        dataset, model, num_negatives=3, range_min=1, range_max=30, output_format="triplet", verbose=False,
        **{"relative_margin": 0.05, **rules},
    )  # fmt: skip
    expected: dict[tuple[str, str], list[str]] = {}
    for row in stock:
        expected.setdefault((row["query"], row["positive"]), []).append(row["negative"])
    assert len(expected) > 60
    for row in mined:
        assert sorted(row["negative"]) == sorted(expected.get((row["query"], row["positive"]), []))


def test_the_report_says_what_was_dropped_and_where_the_positives_stand(
    dataset: Dataset, model: SentenceTransformer, tmp_path: Path
) -> None:
    settings = MiningSettings(num_negatives=2, shard_rows=25, max_score=0.4)
    tables, report = Miner(dataset, model, settings, folder=tmp_path).mine_all(dataset)
    negatives = [texts for table in tables for texts in table["negative"].to_pylist()]
    assert report.queries == 90
    assert report.negatives == {n: sum(len(texts) == n for texts in negatives) for n in report.negatives}
    texts = [*dataset["query"], *dataset["positive"]]
    score = dict(zip(texts, model.encode(texts, normalize_embeddings=True), strict=True))
    answers: dict[str, list[str]] = {}
    for row in dataset:
        answers.setdefault(row["query"], []).append(row["positive"])
    ranks = []
    for query, own in answers.items():
        right = min(score[query] @ score[text] for text in own)
        ranks.append(1 + sum(score[query] @ score[text] > right for text in set(dataset["positive"]).difference(own)))
    assert report.ranks["1"] == ranks.count(1)
    assert report.ranks["2-10"] == sum(1 < rank <= 10 for rank in ranks)
    assert report.dropped.keys() == {"relative_margin", "max_score"}
    for reason, examples in report.examples.items():
        assert len(examples) == len({one.query for one in examples}) == 10
        for one in examples:
            found = score[one.query] @ score[one.candidate]
            right = min(score[one.query] @ score[text] for text in answers[one.query])
            assert found > (0.4 if reason == "max_score" else 0.95 * right) - 1e-4
            assert one.score == pytest.approx(found, abs=1e-3)
    assert MiningReport.from_json(report.to_json()) == report
    text = report_text({"all": report})
    assert text.startswith(report_table({"all": report}))
    assert f"dropped by relative_margin: {report.dropped['relative_margin']:,}, such as" in text
    assert report.examples["max_score"][9].candidate in text


def test_a_set_whose_rows_are_mostly_without_a_negative_is_told() -> None:
    dropped = Counter(relative_margin=80, range_min=9)
    for without, told in ((5, False), (6, True)):
        report = MiningReport(10, 100, dropped, negatives=Counter({0: without, 4: 10 - without}))
        said = report_table({"faq": report}).splitlines()
        assert len(said) == 3 + told
        assert not told or said[3] == (
            "faq: 6 of 10 rows have no mined negative; relative_margin dropped 80 of 100 candidates; raise range_max "
            "to look further down the ranking, or relax relative_margin"
        )


def test_of_several_miners_each_gives_its_best_and_the_trained_one_judges(
    dataset: Dataset, model: SentenceTransformer, tmp_path: Path
) -> None:
    pytest.importorskip("bm25s")
    settings = MiningSettings(num_negatives=4)
    mined = mine_negatives(dataset, ["bm25", model], settings)["negative"]
    alone = [mine_negatives(dataset, one, settings)["negative"] for one in ("bm25", model)]
    assert mined not in alone
    encoded = {
        text: model.encode(text, normalize_embeddings=True) for text in {*dataset["query"], *dataset["positive"]}
    }
    lowest: dict[str, float] = {}
    for row in dataset:
        score = float(encoded[row["query"]] @ encoded[row["positive"]])
        lowest[row["query"]] = min(score, lowest.get(row["query"], 1.0))
    from_bm25 = 0
    for row, found, by_words, by_model in zip(dataset, mined, *alone, strict=True):
        assert all(encoded[row["query"]] @ encoded[text] <= 0.95 * lowest[row["query"]] + 1e-5 for text in found)
        from_bm25 += sum(text in by_words and text not in by_model for text in found)
    assert from_bm25 > 50


def test_documents_that_nobody_asked_about_are_searched_too(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in dataset), "utf-8")
    further = [{"title": query[:2], "text": query[2:5] + "nobody"} for query in dataset["query"][:40]]
    held_out = [{"text": text} for text in dataset["positive"]]
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps(row) for row in [*further, *held_out]), "utf-8")
    rows = {"source": "rows.jsonl", "task": "retrieval", "mining": {"corpus": "more.jsonl"},
            "holdout": {"queries": 10, "min_corpus": 1}}  # fmt: skip
    mixture = load_mixture({"root": str(tmp_path), "datasets": {"rows": rows}}, cache_dir=tmp_path / "cache")
    lines: list[str] = []
    settings = {"num_negatives": 5, "relative_margin": None}
    mined = mine_mixture(mixture, "lexical", settings, tmp_path / "mined", say=lines.append)["rows"]
    found = {text for texts in mined["negative"] for text in texts}
    assert sum(text.endswith("nobody") for text in found) > 20
    holdout = mixture.holdouts["rows"]
    answers = {holdout.corpus[key] for keys in holdout.relevant.values() for key in keys}
    assert not answers & found, "an answer to a held-out query is no text to train on"
    assert lines[0].splitlines()[2].split()[:3] == ["rows", str(len(mined)), "5.00"]
    (tmp_path / "more.jsonl").write_text('{"text": "nobody"}', "utf-8")
    again = mine_mixture(mixture, "lexical", settings, tmp_path / "mined", say=lines.append)["rows"]
    assert again["negative"] != mined["negative"], "another file of the same name"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("more.jsonl", '{"passage": "x"}', r"the corpus of mining must have a column 'text', got passage in "),
        ("more.jsonl", '{"text": ""}', r"the corpus of mining must hold texts, got none in more\.jsonl"),
        ("other.jsonl", "", r"the source of dataset 'corpus of mining' does not exist: "),
    ],
)
def test_a_corpus_that_cannot_be_searched_says_why(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "positive": "b"}', "utf-8")
    (tmp_path / name).write_text(content, "utf-8")
    datasets = {"rows": {"source": "rows.jsonl", "task": "retrieval"}}
    mixture = load_mixture({"root": str(tmp_path), "datasets": datasets}, cache_dir=tmp_path / "cache")
    with pytest.raises(MixtureError, match=message):
        mine_mixture(mixture, "lexical", {"corpus": "more.jsonl"}, tmp_path / "mined")


def test_a_text_is_encoded_once_even_when_a_run_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piccolo_st.mining.embeddings._BLOCK", 4)
    encoded: list[str] = []

    def encode(texts: list[str], most: int = 100) -> NDArray[np.float32]:
        if len(encoded) >= most:
            raise KeyboardInterrupt
        encoded.extend(texts)
        return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float32)

    texts = ["天", "地", "天", *("山" * i for i in range(2, 12))]
    with pytest.raises(KeyboardInterrupt):
        stored_embeddings(tmp_path, texts, lambda block: encode(block, most=8))
    assert encoded == ["山" * i for i in range(11, 3, -1)], "longest first, in whole blocks"
    for asked in (texts, texts[::-1], texts[:2]):
        assert stored_embeddings(tmp_path, asked, encode).tolist() == [[len(text), ord(text[0])] for text in asked]
    assert sorted(encoded) == sorted(set(texts))
    assert stored_embeddings(tmp_path, [], encode).shape == (0, 2)


def test_what_is_there_takes_no_lock_and_few_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank asks for a guide's embeddings, and blocks of 13 million texts are 800 files."""
    monkeypatch.setattr("piccolo_st.mining.embeddings._BLOCK", 4)
    monkeypatch.setattr("piccolo_st.mining.embeddings._OPEN", 3)
    parts = [[f"{part} {number}" for number in range(10)] for part in range(5)]

    def encode(texts: list[str]) -> NDArray[np.float32]:
        return np.array([[float(number) for number in text.split()] for text in texts], dtype=np.float32)

    store_embeddings(tmp_path, lambda: parts, encode)
    assert len(list(tmp_path.glob("*.vectors.npy"))) == 15
    monkeypatch.setattr("piccolo_st.mining.embeddings.alone", None)
    store_embeddings(tmp_path, lambda: parts[::-1], encode)
    stored = StoredEmbeddings(tmp_path)
    assert stored([text for part in parts for text in part]).tolist() == [[a, b] for a in range(5) for b in range(10)]
    opened = [Path(f"/proc/self/fd/{one}").resolve() for one in os.listdir("/proc/self/fd")]
    assert 0 < sum(tmp_path in one.parents for one in opened) <= 3


def test_shards_and_rounds_read_what_was_encoded(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = make_model()
    seen: list[int] = []
    model[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0]["input_ids"])))
    rows = Dataset.from_dict({"query": KNOWN, "positive": KNOWN[::-1]})
    for margin in (0.05, 0.1):
        settings = MiningSettings(shard_rows=5, pool=9, relative_margin=margin)
        Miner(rows, model, settings, folder=tmp_path).mine_all(rows)
    assert sum(seen) == 2 * len(KNOWN)


def test_a_judge_drops_what_it_finds_as_good_as_the_positive(
    encoder_dir_no_dropout: Path, dataset: Dataset, model: SentenceTransformer, tmp_path: Path
) -> None:
    """A cross-encoder or another encoder, told apart by what lies in the folder."""
    from sentence_transformers import CrossEncoder

    cross = CrossEncoder(str(encoder_dir_no_dropout), num_labels=1, device="cpu")
    cross.save_pretrained(str(tmp_path / "cross"))
    guide = lexical_encoder([*dataset["query"], *dataset["positive"]], seed=7)
    guide.save_pretrained(str(tmp_path / "guide"))

    def by_guide(query: str, text: str) -> float:
        left, right = guide.encode([query, text], normalize_embeddings=True)
        return float(left @ right)

    def by_cross(query: str, text: str) -> float:
        return float(cross.predict([(query, text)])[0])

    for name, score in (("guide", by_guide), ("cross", by_cross)):
        settings = MiningSettings(num_negatives=2, relative_margin=None, judge=str(tmp_path / name), oversample=4)
        tables, report = Miner(dataset, model, settings, folder=tmp_path / "kept").mine_all(dataset)
        mined = pa.concat_tables(tables).to_pylist()
        plain = mine_negatives(dataset, model, MiningSettings(num_negatives=8, relative_margin=None))
        for row, texts in zip(mined, plain["negative"], strict=True):
            limit = score(row["query"], row["positive"])
            scores = {text: score(row["query"], text) - limit for text in texts}
            if min(map(abs, scores.values())) > 1e-5:
                assert row["negative"] == [text for text in texts if scores[text] <= 0][:2]
        assert report.dropped["judge"] > 20
        assert report.examples["judge"]
