"""Hard negatives: hard, never right, and no row lost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from piccolo_st.data.mixture import load_mixture
from piccolo_st.errors import InputError, MixtureError
from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.judge import by_cross_encoder
from piccolo_st.mining.lexical import Bm25, learn_tokenizer, lexical_encoder, lexical_tokens
from piccolo_st.mining.miner import (
    Miner,
    drop_false_negatives,
    mine_negatives,
    shard_rows,
    with_negatives,
)
from piccolo_st.mining.mixture import mine_mixture
from piccolo_st.mining.report import report_table

# Three topics; a text's topic is its first character, and texts of one topic share two characters.
TOPICS = ("猫狗", "山水", "红绿")


def _dataset(rows: int = 30, queries: int | None = None) -> Dataset:
    numbers = [(i, TOPICS[i % 3]) for i in range(rows)]
    query = [f"{topic}问{(i if queries is None else i % queries)}" for i, topic in numbers]
    return Dataset.from_dict({"query": query, "positive": [f"{topic}答{chr(0x4E00 + i)}" for i, topic in numbers]})


def unaware(**settings: Any) -> MiningSettings:
    """Of searches whose positives are no more like the query than the other texts of its topic."""
    return MiningSettings(relative_margin=None, **settings)


def _topic(text: str) -> str:
    return text[:2]


@pytest.mark.parametrize("model", ["lexical", "bm25"])
@pytest.mark.parametrize("sampling", ["top", "random"])
def test_negatives_are_like_the_query_and_never_its_positive(model: Any, sampling: Any) -> None:
    if model == "bm25":
        pytest.importorskip("bm25s")
    dataset = _dataset()
    mined = mine_negatives(dataset, model, unaware(num_negatives=3, range_max=8, sampling=sampling))
    assert mined.column_names == ["query", "positive", "negative"]
    assert mined["query"] == dataset["query"]
    assert mined["positive"] == dataset["positive"]
    for row in mined:
        assert len(set(row["negative"])) == 3
        assert row["positive"] not in row["negative"]
        assert all(_topic(text) == _topic(row["query"]) for text in row["negative"]), row


def test_random_negatives_are_drawn_from_everything_but_the_positives() -> None:
    dataset = _dataset(60, queries=7)
    mined = mine_negatives(dataset, "random", MiningSettings(num_negatives=4))
    right: dict[str, set[str]] = {}
    for row in dataset:
        right.setdefault(row["query"], set()).add(row["positive"])
    assert sum(len(row["negative"]) == 4 for row in mined) > 50
    assert all(not right[row["query"]] & set(row["negative"]) for row in mined)
    topics = {_topic(text) == _topic(row["query"]) for row in mined for text in row["negative"]}
    assert topics == {True, False}
    assert mined["negative"] == mine_negatives(dataset, "random", MiningSettings(num_negatives=4))["negative"]


def test_every_model_does(make_model: Callable[..., Any]) -> None:
    model = make_model()
    known = "一二三四五六七八九十百千"  # characters of the tiny vocabulary, so that no two texts are the same to it
    dataset = _dataset(12)
    dataset = dataset.remove_columns("positive").add_column(
        "positive", [f"{TOPICS[i % 3]}{c}" for i, c in enumerate(known)]
    )
    mined = mine_negatives(dataset, model, unaware(num_negatives=2))
    embeddings = model.encode_document(dataset["positive"], normalize_embeddings=True)
    queries = model.encode_query(dataset["query"], normalize_embeddings=True)
    for row, texts in enumerate(mined["negative"]):
        ranked = [dataset["positive"][i] for i in np.argsort(-(embeddings @ queries[row])) if i != row]
        assert texts == ranked[:2], "the nearest documents but the positive, nearest first"


def test_a_query_with_several_positives_gets_none_of_them_even_across_shards() -> None:
    dataset = Dataset.from_dict(
        {
            "query": ["猫狗问"] * 6 + ["山水问"] * 6,
            "positive": [f"{t}答{i}" for t in ("猫狗", "山水") for i in range(6)],
        }
    ).shuffle(seed=1)
    for size in (1, 5, 100):
        mined = mine_negatives(dataset, "lexical", unaware(num_negatives=2, shard_rows=size))
        assert mined["query"] == dataset["query"], "rows keep their order"
        for row in mined:
            assert len(row["negative"]) == 2
            assert all(_topic(text) != _topic(row["query"]) for text in row["negative"])


def test_shards_change_nothing_but_memory() -> None:
    dataset = _dataset(40, queries=7)
    whole = mine_negatives(dataset, "lexical", unaware(num_negatives=3))
    parts = mine_negatives(dataset, "lexical", unaware(num_negatives=3, shard_rows=4))
    assert whole["negative"] == parts["negative"]


def test_a_row_without_a_negative_stays_with_an_empty_list() -> None:
    dataset = Dataset.from_dict({"query": ["猫狗问", "山水问"], "positive": ["猫狗答", "山水答"]})
    mined = mine_negatives(dataset, "lexical", MiningSettings(num_negatives=1, min_score=0.9))
    assert list(mined) == [{**row, "negative": []} for row in dataset]
    assert mined.features["negative"].feature.dtype == "string"


def test_the_query_itself_is_no_negative() -> None:
    texts = [f"猫狗天气{i}" for i in range(6)]
    dataset = Dataset.from_dict({"query": texts, "positive": texts[1:] + texts[:1]})  # every query is a document
    mined = mine_negatives(dataset, "lexical", unaware(num_negatives=3))
    for row in mined:
        assert row["query"] not in row["negative"]
        assert len(row["negative"]) == 3


def test_searching_among_queries_gives_the_answers_of_similar_questions() -> None:
    # Questions and answers share no character, as a definition and the character it defines.
    dataset = Dataset.from_dict(
        {
            "query": [f"{topic}定义{i}" for i in range(4) for topic in TOPICS],
            "positive": [f"{c}{i}" for i in range(4) for c in "ABC"],
        }
    )
    mined = mine_negatives(dataset, "lexical", unaware(num_negatives=3, search="queries"))
    for row in mined:
        assert sorted(row["negative"]) == sorted(
            f"{row['positive'][0]}{i}" for i in range(4) if f"{row['positive'][0]}{i}" != row["positive"]
        )


def test_among_queries_margins_are_below_the_query_itself_and_no_rank_is_known(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_model()
    dataset = Dataset.from_dict({"query": ["天气", "天天气", "山水"], "positive": ["猫", "狗", "鱼"]})
    queries = model.encode_query(dataset["query"], normalize_embeddings=True)
    scores = queries @ queries.T
    margin = float(1 - np.sort(scores[0])[[1, 0]].mean())  # between the two others
    settings = MiningSettings(num_negatives=2, search="queries", relative_margin=margin)
    negatives, report = Miner(dataset, model, settings, folder=tmp_path).mine(0)
    below = scores < 1 - margin
    assert [set(own) for own in negatives] == [
        {text for text, low in zip(dataset["positive"], row, strict=True) if low} for row in below
    ]
    assert len(negatives[0]) == 1 and report.dropped["relative_margin"]
    assert report.ranks == {"unknown": 3}
    assert "positive first" in report_table({"faq": report}) and "100" not in report_table({"faq": report})


def test_searching_among_queries_skips_answers_that_are_right_too() -> None:
    dataset = Dataset.from_dict({"query": ["天气一", "天气二", "天气三"], "positive": ["晴", "晴", "雨"]})
    mined = mine_negatives(dataset, "lexical", unaware(num_negatives=2, search="queries"))
    assert mined["negative"] == [["雨"], ["雨"], ["晴"]]


@pytest.mark.parametrize("model", ["lexical", "bm25"])
def test_random_sampling_follows_the_seed_and_leaves_the_global_generator_alone(model: Any) -> None:
    if model == "bm25":
        pytest.importorskip("bm25s")
    dataset = _dataset()

    def mined(seed: int) -> list[list[str]]:
        chosen = unaware(num_negatives=2, range_max=9, sampling="random", seed=seed)
        return mine_negatives(dataset, model, chosen)["negative"]

    random.seed(5)
    expected = random.random()
    random.seed(5)
    first = mined(1)
    assert random.random() == expected
    assert mined(1) == first
    assert mined(2) != first


def test_mined_negatives_come_after_the_given_ones_or_in_their_place() -> None:
    table = pa.table({"query": ["a", "b"], "negative_1": ["x", "y"], "negative_2": ["z", "y"]})
    mined = [["z", "m"], []]
    assert with_negatives(table, mined, "keep").to_pylist() == [
        {"query": "a", "negative": ["x", "z", "m"]},
        {"query": "b", "negative": ["y"]},
    ]
    assert with_negatives(table, mined, "replace")["negative"].to_pylist() == [["z", "m"], []]
    ragged = pa.table({"query": ["a"], "negative": [["x"]]})
    assert with_negatives(ragged, [["m"]], "keep")["negative"].to_pylist() == [["x", "m"]]


def test_more_texts_than_an_arrow_array_holds_are_mined() -> None:
    """2 GiB of positives, all but one of them views of one text."""
    long = pa.array(["x" * 50_000_000])
    positives = pa.chunked_array([*[long] * 44, pa.array(["short"])])
    assert positives.nbytes > 2**31
    dataset = Dataset(pa.table({"query": [f"{i}" for i in range(45)], "positive": positives}), fingerprint="large")
    mined = mine_negatives(dataset, "random", MiningSettings(num_negatives=1, shard_rows=1, range_max=20))
    assert mined[0]["negative"] == ["short"] and len(mined) == 45
    assert [len(texts[0]) for texts in mined[-1:]["negative"]] == [50_000_000]


def test_negatives_stand_in_arrays_that_no_list_of_texts_outgrows() -> None:
    mined = [[f"{row}-{place}" for place in range(row % 3)] for row in range(2500)]
    column = with_negatives(pa.table({"query": ["q"] * 2500}), mined)["negative"]
    assert column.to_pylist() == mined
    assert max(map(len, column.chunks)) == 1000


def test_a_dataset_that_mines_none_stays_as_it_is(tmp_path: Path) -> None:
    """Under a run that replaces negatives, and where a teacher has scored one text twice."""
    own = {"query": "天", "positive": "地", "negative_1": "山", "negative_2": "山"}
    rows = {"own": own, "scored": {**own, "label": [0.9, 0.2, 0.1]}, "mined": own | {"query": "水"}}
    for name, row in rows.items():
        lines = [row, {**row, "query": "河", "positive": "海"}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    datasets = {
        name: {"source": f"{name}.jsonl", "task": "retrieval", "mining": {"num_negatives": int(name == "mined")}}
        for name in rows
    }
    mixture = load_mixture({"root": str(tmp_path), "datasets": datasets}, cache_dir=tmp_path / "cache")
    found = mine_mixture(mixture, "random", {"existing": "replace", "relative_margin": None}, tmp_path / "mined")
    assert found["mined"]["negative"] == [["海"], ["地"]]
    for name in ("own", "scored"):
        assert list(found[name]) == list(mixture.train[name])
        assert [found[name][0][column] for column in own] == list(own.values())


def test_a_dataset_whose_rows_list_their_positives_is_told_not_to_be_mined(tmp_path: Path) -> None:
    rows = [{"query": text, "pos": ["地", "海"], "neg": ["山"]} for text in "天水"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    faq = {"source": "rows.jsonl", "task": "retrieval", "positives": "list"}
    datasets = {"faq": faq, "none": {**faq, "mining": {"num_negatives": 0}}, "rows": {**faq, "positives": "all"}}
    for names in (list(datasets), ["faq"]):
        content = {"root": str(tmp_path), "datasets": {name: datasets[name] for name in names}}
        mixture = load_mixture(content, cache_dir=tmp_path / "cache")
        said: list[str] = []
        found = mine_mixture(mixture, "random", None, tmp_path / "mined", say=said.append)
        assert list(found["faq"]) == list(mixture.train["faq"])
        line = "faq: not mined, since its rows list their positives; `positives: all` makes a row of each"
        assert said[0].splitlines()[-1] == line and "none" not in said[0] and len(said) == 1


def test_rows_with_scores_keep_a_text_that_was_scored_twice() -> None:
    table = pa.table({"query": ["q"], "positive": ["p"], "negative_1": ["n"], "negative_2": ["n"]})
    scored = table.append_column("label", pa.array([[0.9, 0.2, 0.1]]))
    assert with_negatives(scored, [[]])["negative"].to_pylist() == [["n", "n"]]
    with pytest.raises(MixtureError, match="set num_negatives of mining to 0 for their dataset"):
        with_negatives(scored, [["m"]])


class _Reranker:
    """Scores a pair by a rule, and counts what it is asked."""

    def __init__(self, rule: Callable[[str, str], float]) -> None:
        self.rule, self.asked = rule, 0

    def predict(self, pairs: list[tuple[str, str]], **_: Any) -> np.ndarray:
        self.asked += len(pairs)
        return np.array([self.rule(*pair) for pair in pairs])


def test_a_cross_encoder_drops_false_negatives() -> None:
    reranker = _Reranker(lambda query, text: {"right": 0.9, "right too": 0.95, "close": 0.85, "wrong": 0.1}[text])
    judge = by_cross_encoder(reranker, 8)  # type: ignore[arg-type]
    arguments = (["q", "r"], ["right", "right"], [["right too", "close", "wrong"], ["wrong"]])
    assert drop_false_negatives(*arguments, judge, 0.0) == [["close", "wrong"], ["wrong"]]
    assert drop_false_negatives(*arguments, judge, 0.1) == [["wrong"], ["wrong"]]
    assert reranker.asked == 12


def test_a_cross_encoder_chooses_among_more_candidates_than_are_wanted() -> None:
    dataset = _dataset()
    plain = mine_negatives(dataset, "lexical", unaware(num_negatives=6))["negative"]
    # The two nearest candidates of every query are right answers to this cross-encoder.
    false = {(query, text) for query, texts in zip(dataset["query"], plain, strict=True) for text in texts[:2]}
    reranker = _Reranker(lambda query, text: 1.0 if (query, text) in false else 0.0)
    chosen = unaware(num_negatives=2, oversample=3)
    mined = mine_negatives(dataset, "lexical", chosen, reranker=reranker)["negative"]  # type: ignore[arg-type]
    assert mined == [texts[2:4] for texts in plain]


def test_a_real_cross_encoder_takes_part(encoder_dir_no_dropout: Any) -> None:
    from sentence_transformers import CrossEncoder

    reranker = CrossEncoder(str(encoder_dir_no_dropout), num_labels=1, device="cpu")
    dataset = _dataset(9)
    mined = mine_negatives(dataset, "lexical", MiningSettings(num_negatives=2), reranker=reranker)
    for row in mined:
        right, *scores = reranker.predict([(row["query"], text) for text in (row["positive"], *row["negative"])])
        assert all(score <= right + 1e-6 for score in scores)


def test_a_pool_bounds_what_is_searched_and_stays_the_same_over_shards(tmp_path: Path) -> None:
    dataset = _dataset(60)
    miner = Miner(dataset, "lexical", unaware(pool=10, shard_rows=7), folder=tmp_path)
    assert len(miner.documents) == 10
    own = Miner(dataset, "lexical", unaware(pool=10, shard_rows=60), folder=tmp_path)
    assert own.documents == miner.documents
    mined = {text for number in range(len(miner.shards)) for texts in miner.mine(number)[0] for text in texts}
    assert mined <= set(dataset["positive"])


@given(queries=st.lists(st.integers(0, 9), min_size=1, max_size=60), size=st.integers(1, 70))
@settings(max_examples=100)
def test_shards_hold_every_row_once_and_every_query_whole(queries: list[int], size: int) -> None:
    texts = pa.array([str(query) for query in queries])
    shards = list(shard_rows(texts, size))
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(queries)))
    owners = [{queries[row] for row in shard} for shard in shards]
    assert sum(map(len, owners)) == len(set(queries))
    assert all(len(shard) <= size or len(own) == 1 for shard, own in zip(shards, owners, strict=True))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"num_negative": 3}, r"unknown key 'num_negative' in mining; did you mean num_negatives\?"),
        ({"sampling": "best"}, r"sampling of mining must be one of top, random, got 'best'"),
        ({"num_negatives": -1}, r"num_negatives of mining must be a whole number of at least 0, got -1"),
        ({"range_min": 5, "range_max": 7, "num_negatives": 3}, r"range_min=5 to range_max=7 .* fewer candidates than"),
        ({"pool": 0}, r"pool of mining must be a whole number of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_say_why(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MiningSettings.of(mapping)


def test_settings_of_a_dataset_go_over_those_of_the_run() -> None:
    chosen = MiningSettings.of({"num_negatives": 3, "seed": 1}, {"num_negatives": 5}, None)
    assert (chosen.num_negatives, chosen.seed) == (5, 1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"sentence1": ["a"], "sentence2": ["b"]},
            r"mining needs the column 'query', got the columns sentence1, sentence2",
        ),
        ({"query": ["a"], "positive": [["b"]]}, r"mining needs one text a row in 'positive', got list<"),
    ],
)
def test_data_that_cannot_be_mined_say_why(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(MixtureError, match=message):
        mine_negatives(Dataset.from_dict(columns), "lexical")


def test_no_such_model() -> None:
    with pytest.raises(
        MixtureError,
        match=r"model of mining must be a SentenceTransformer, 'lexical', 'bm25' or 'random', got 'lexcal'",
    ):
        mine_negatives(_dataset(), "lexcal")  # type: ignore[arg-type]


def test_the_lexical_encoder_ranks_as_tf_idf() -> None:
    """Its cosines are those of vectors of term counts weighted by the square root of inverse document frequency."""
    generator = np.random.default_rng(0)
    alphabet = [chr(0x4E00 + i) for i in range(60)]
    texts = ["".join(generator.choice(alphabet, 12, p=np.arange(60, 0, -1) / 1830)) for _ in range(80)]
    counts = np.array([[text.count(character) for character in alphabet] for text in texts], dtype=float)
    weights = counts * np.sqrt(np.log1p(len(texts) / (1 + (counts > 0).sum(axis=0))))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    expected = weights @ weights.T
    errors = {}
    for dimensions in (64, 1024):
        model = lexical_encoder(texts, dimensions=dimensions)
        found = model.similarity(model.encode(texts), model.encode(texts)).numpy()
        errors[dimensions] = np.sqrt(np.mean((found - expected) ** 2))
        assert errors[dimensions] < 1.5 / np.sqrt(dimensions)
    assert errors[1024] < errors[64] / 2


def test_the_lexical_encoder_copies_the_tokenizer_it_is_given(make_model: Callable[..., Any]) -> None:
    tokenizer = make_model().tokenizer
    tokenizer.backend_tokenizer.enable_padding(length=8)
    tokenizer.backend_tokenizer.enable_truncation(4)
    before = tokenizer.backend_tokenizer.to_str()
    model = lexical_encoder(["今天天气", "明天有雨"], tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
    same = model.encode(["今天天气的" * 4, "今天天气的" * 4 + "雨"])
    assert not np.allclose(same[0], same[1]), "long texts are not cut"


def test_a_learned_tokenizer_takes_characters_and_whole_words() -> None:
    tokenizer = learn_tokenizer(["天气hello", "天气 hello"])
    assert tokenizer.encode("天气Hello").tokens == ["天", "气", "hello"]


def test_terms_are_characters_bigrams_and_words() -> None:
    assert lexical_tokens("《今天》天气Good, 2020年") == ["今", "天", "今天", "天", "气", "天气", "good", "2020", "年"]


def test_bm25_finds_the_text_that_shares_rare_terms() -> None:
    pytest.importorskip("bm25s")
    corpus = ["天气很好", "天气不好", "股票大跌", "天气股票"]
    places, scores = Bm25(corpus).search(["股票", "无关"], 4)
    assert {corpus[place] for place in places[0, :2]} == {"股票大跌", "天气股票"}
    assert places[0, 2:].tolist() == places[1, 2:].tolist() == [-1, -1]
    assert np.array_equal(np.isnan(scores), places < 0)


def test_a_dataset_with_its_own_instruction_is_mined_with_it(make_model: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"query": f"天气今明{a}{b}", "positive": f"山川河海{a}{b}"} for a in "晴雨猫狗" for b in "鱼鸟山河"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    own = {"usual": None, "bare": "none", "notes": "piccolo-training-notes"}
    datasets: dict[str, Any] = {
        name: {"source": "rows.jsonl", "task": "retrieval", "instruction": instruction}
        for name, instruction in own.items()
    }
    datasets["scores"] = {"source": "scores.jsonl", "task": "sts"}
    (tmp_path / "scores.jsonl").write_text('{"sentence1": "天", "sentence2": "地", "score": 0.5}', "utf-8")
    model = make_model()
    model.prompts = {"query": "查询：", "document": "结果："}
    seen: list[str] = []
    model[0].register_forward_pre_hook(
        lambda module, inputs: seen.extend(model.tokenizer.batch_decode(inputs[0]["input_ids"]))
    )
    prefixes = {}
    for name in datasets:
        seen.clear()
        mixture = load_mixture({"root": str(tmp_path), "datasets": {name: datasets[name]}}, cache_dir=tmp_path)
        mined = mine_mixture(mixture, model, {"num_negatives": 2}, tmp_path / "mined")
        assert ("negative" in mined[name].column_names) == (name != "scores")
        prefixes[name] = sorted({text.replace(" ", "")[5:8] for text in seen})
    expected = {"usual": ["查询：", "结果："], "bare": ["天气今", "山川河"], "notes": ["查询:", "结果:"], "scores": []}
    assert prefixes == expected
    assert model.prompts == {"query": "查询：", "document": "结果："}

    seen.clear()
    mixture = load_mixture({"root": str(tmp_path), "datasets": {"usual": datasets["usual"]}}, cache_dir=tmp_path)
    mined = mine_mixture(mixture, model, {"num_negatives": 2}, tmp_path / "mined")
    assert not seen, "what was mined is read again"
    again = mine_mixture(mixture, model, {"num_negatives": 2, "relative_margin": None}, tmp_path / "mined")
    assert not seen, "other settings, and the same embeddings"
    assert again["usual"]["negative"] != mined["usual"]["negative"]
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    mine_mixture(mixture, model, {"num_negatives": 2}, tmp_path / "mined", made_of=["another model"])
    assert len(seen) == 32, "each text of another model once"
