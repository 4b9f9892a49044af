"""The search behind the page: scores, ranks and the map against independent computations, and what is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piccolo_st.commands.demo import main
from piccolo_st.demo import Searcher
from piccolo_st.demo.corpus import example_queries, read_corpus, thin_out
from piccolo_st.demo.draw import MAP_POINTS, corpus_map, table
from piccolo_st.demo.page import render
from piccolo_st.demo.search import EmbeddedCorpus, Variant
from piccolo_st.errors import InputError
from piccolo_st.modeling import set_prompts

TEXTS = ["今天天气晴", "猫和狗", "山川河海", "红黄蓝绿", "春夏秋冬", "数据的结果", "电力和水"]


def corpus_of(texts: int, dimension: int, seed: int = 0) -> EmbeddedCorpus:
    return EmbeddedCorpus(np.random.default_rng(seed).normal(size=(texts, dimension)))


def variant(vectors: Any, query: Any, model: str = "m", instruction: str = "") -> Variant:
    return Variant(model, instruction, lambda text: np.asarray(query, np.float32), EmbeddedCorpus(np.array(vectors)))


@given(st.integers(1, 40), st.integers(1, 24), st.data())
def test_scores_are_cosine_similarities_of_the_first_dimensions(texts: int, whole: int, data: st.DataObject) -> None:
    dimension = data.draw(st.integers(1, whole))
    random = np.random.default_rng(texts)
    vectors, query = random.normal(size=(texts, whole)), random.normal(size=whole)
    cut, short = vectors[:, :dimension], query[:dimension]
    wanted = cut @ short / np.linalg.norm(cut, axis=1) / np.linalg.norm(short)
    found = EmbeddedCorpus(vectors).scores(query.astype(np.float32), dimension)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_a_text_without_direction_scores_0() -> None:
    corpus = EmbeddedCorpus(np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    assert corpus.scores(np.array([1, 1, 1], np.float32), 2).tolist() == pytest.approx([0, 0.5**0.5])


def test_embeddings_have_two_axes() -> None:
    with pytest.raises(ValueError, match=r"must be \(texts, dimension\) and not empty, got shape \(0, 4\)"):
        EmbeddedCorpus(np.zeros((0, 4)))


def test_the_map_is_the_principal_components() -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(200, 12)) * np.linspace(3, 0.1, 12) + 1
    unit = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    _, singular, axes = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    corpus = EmbeddedCorpus(vectors)
    projection = corpus.projection(8)
    for place in range(2):
        assert abs(float(projection.axes[:, place] @ axes[place])) == pytest.approx(1, abs=1e-4)
    assert projection.explained == pytest.approx(tuple(singular[:2] ** 2 / (singular**2).sum()), abs=1e-5)
    for text in (0, 7):
        np.testing.assert_allclose(projection.place(corpus.embeddings[text]), projection.points[text], atol=1e-6)
    assert corpus.projection(8) is projection, "computed once"


@pytest.mark.parametrize(("texts", "dimension"), [(1, 4), (5, 1), (3, 2)])
def test_the_smallest_maps(texts: int, dimension: int) -> None:
    projection = corpus_of(texts, dimension).projection(dimension)
    assert projection.points.shape == (texts, 2) and np.isfinite(projection.points).all()


def test_the_best_of_every_variant_in_the_order_of_the_first() -> None:
    vectors = np.eye(4)
    searcher = Searcher(["a", "b", "c", "d"], [variant(vectors, [4, 3, 2, 1]), variant(vectors[:, :2], [0, 1])])
    found = searcher.search("query", 4, top=2)
    assert searcher.dimension == 4
    assert [hit.index for hit in found.hits] == [0, 1]
    found = searcher.search("query", 4, top=1)
    assert [(hit.index, hit.ranks) for hit in found.hits] == [(0, (1, 2)), (1, (2, 1))]
    assert found.hits[0].scores[1] == 0 and found.hits[1].scores[1] == 1


def test_ties_keep_the_order_of_the_texts() -> None:
    searcher = Searcher(list("abc"), [variant(np.ones((3, 2)), [1, 1])])
    assert [hit.index for hit in searcher.search("q", 2).hits] == [0, 1, 2]


def test_with_and_without_instructions_as_stock_code_embeds_them(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    set_prompts(model, "piccolo")
    passes: list[list[str]] = []
    encode = model.encode_document
    monkeypatch.setattr(model, "encode_document", lambda texts, **kw: passes.append(texts) or encode(texts, **kw))
    searcher = Searcher.of({"tiny": model}, TEXTS)
    assert [each.instruction for each in searcher.variants] == ["查询：", ""]
    hits = {hit.index: hit for hit in searcher.search("天气", 16, top=len(TEXTS)).hits}
    for place, (query, document) in enumerate([("查询：", "结果："), ("", "")]):
        left = model.encode([query + "天气"], truncate_dim=16)
        right = model.encode([document + text for text in TEXTS], truncate_dim=16)
        wanted = model.similarity(left, right)[0].tolist()
        assert [hits[i].scores[place] for i in range(len(TEXTS))] == pytest.approx(wanted, abs=1e-5)
    assert hits[0].scores[0] != pytest.approx(hits[0].scores[1], abs=1e-5), "the instruction must matter here"
    assert passes == [TEXTS, TEXTS], "embedded once for each variant, not again to search"


def test_a_model_without_instructions_is_one_variant(make_model: Callable[..., Any]) -> None:
    assert [each.instruction for each in Searcher.of({"a": make_model()}, TEXTS).variants] == [""]


def test_what_is_drawn(make_model: Callable[..., Any]) -> None:
    model = make_model()
    set_prompts(model, "piccolo")
    searcher = Searcher.of({"<one>": model, "two": make_model()}, [*TEXTS, "<script>alert(1)</script>"])
    shown, maps = render(searcher, "天<b>", 16)
    assert "<script" not in shown + maps and "&lt;script&gt;" in shown
    assert "<b>" not in maps and "天&lt;b&gt;" in maps and "<one>" not in shown + maps
    assert shown.count("<tr>") == 2 + 8 and shown.count('class="bar"') == 3 * 8
    assert "with 查询：" in shown and shown.count("without") == 2 + 2 * 8
    assert maps.count("<svg") == 2 and maps.count('class="hit"') == 2 * 8 and maps.count('class="query"') == 2
    shown, maps = render(searcher, "  ", 16)
    assert shown == "" and maps.count("<svg") == 2 and "hit" not in maps


def test_long_corpora_are_drawn_thinned_and_long_texts_cut() -> None:
    points = variant(np.random.default_rng(0).normal(size=(3 * MAP_POINTS, 4)), [1, 0, 0, 0])
    assert corpus_map(points, 4).count("h0") == MAP_POINTS
    searcher = Searcher(["长" * 9999], [variant(np.ones((1, 2)), [1, 1])])
    assert len(table(searcher, searcher.search("q", 2))) < 2500


def test_reading_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("一\n\n二  三\n一\n  \n四\u2028五\n", encoding="utf-8")
    assert read_corpus(tmp_path / "texts.txt") == ["一", "二 三", "四 五"]
    rows = [{"_id": "1", "title": "题", "text": "文"}, {"_id": "2", "text": "文\n字"}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_corpus(tmp_path) == ["题 文", "文 字"] and example_queries(tmp_path) == []
    (tmp_path / "queries.jsonl").write_text("\n".join(json.dumps({"_id": n, "text": f"问{n}"}) for n in range(20)))
    assert example_queries(tmp_path) == ["问0", "问4", "问8", "问12", "问16"] and example_queries()


def test_the_default_corpus_is_the_quickstarts_definitions() -> None:
    pytest.importorskip("jionlp", reason="the quickstart reads its dictionaries")
    texts = read_corpus()
    assert len(texts) > 30_000 and len(set(texts)) == len(texts)
    assert any("月光" in text for text in thin_out(texts, 5000))


def test_what_cannot_be_searched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt does not exist; give a text file or a BEIR folder"):
        read_corpus(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match=r"limit of texts to search must be at least 1, got 0"):
        thin_out(TEXTS, 0)
    for models in (["a", "b", "c"], ["a", "a"]):
        with pytest.raises(InputError, match=rf"the page must show one model or two .* got {', '.join(models)}"):
            main(models)


def test_thinning_out_takes_from_everywhere() -> None:
    texts = [str(number) for number in range(10)]
    assert thin_out(texts, 10) == texts and thin_out(texts, 5) == ["0", "2", "4", "6", "8"]
