"""A guide embeds each text once, as itself reads it, and its embeddings come from disk, batch by batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from piccolo_st.mining import StoredTeachers, store_guide
from piccolo_st.mining.embeddings import StoredEmbeddings, stored_embeddings

QUERIES = ["天气", "猫和狗", "天气", "红黄蓝"]
POSITIVES = ["今天天气很好", "狗", "晴", "狗"]
NEGATIVES = [["山", "水"], [], ["猫和狗"], ["山", None]]


@pytest.fixture
def datasets() -> dict[str, Dataset]:
    rows = {"query": QUERIES, "positive": POSITIVES}
    return {"plain": Dataset.from_dict(rows), "mined": Dataset.from_dict({**rows, "negative": NEGATIVES})}


def test_each_text_is_embedded_once_as_the_guide_reads_it(
    make_model: Callable[..., Any], datasets: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = make_model()
    guide.prompts = {"query": "一二：", "document": "三四："}
    expected = {
        "query": guide.encode_query(QUERIES, normalize_embeddings=True),
        "document": guide.encode_document(["山", "晴", "猫和狗"], normalize_embeddings=True),
    }
    encoded: list[tuple[str, str]] = []
    for side in ("query", "document"):
        original = getattr(guide, f"encode_{side}")

        def recorded(texts: list[str], side: str = side, original: Any = original, **settings: Any) -> Any:
            encoded.extend((side, text) for text in texts)
            return original(texts, **settings)

        monkeypatch.setattr(guide, f"encode_{side}", recorded)
    store_guide(guide, {"plain": datasets["plain"]}, tmp_path)
    stored = store_guide(guide, datasets, tmp_path)  # a run that goes on, with more data
    documents = {*POSITIVES, "山", "水", "猫和狗"}
    assert sorted(encoded) == sorted([("query", q) for q in set(QUERIES)] + [("document", d) for d in documents])
    stored = pickle.loads(pickle.dumps(stored))  # as a worker of the data loader has it
    assert stored("other", QUERIES, "query") is None
    for side, texts in (("query", QUERIES), ("document", ["山", "晴", "猫和狗"])):
        seen = stored("mined", texts, side)
        assert seen is not None and seen.dtype == np.float32
        np.testing.assert_allclose(seen, expected[side], atol=1e-6)


def test_teachers_stand_one_after_the_other_by_their_weights(
    make_model: Callable[..., Any], datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    models = [make_model(), make_model(dropout=True)]
    with torch.no_grad():
        models[1][0].auto_model.embeddings.word_embeddings.weight.mul_(-3)
    stored = [store_guide(model, {"plain": datasets["plain"]}, tmp_path) for model in models]
    teachers = pickle.loads(pickle.dumps(StoredTeachers([(1.0, stored[0]), (3.0, stored[1])])))
    assert teachers("other", QUERIES, "query") is None
    seen = teachers("plain", QUERIES, "query")
    own = [model.encode_query(QUERIES, normalize_embeddings=True) for model in models]
    assert seen.shape == (len(QUERIES), sum(one.shape[1] for one in own))
    np.testing.assert_allclose(seen @ seen.T, 0.25 * own[0] @ own[0].T + 0.75 * own[1] @ own[1].T, atol=1e-5)
    assert np.abs(own[0] @ own[0].T - own[1] @ own[1].T).max() > 1e-3


def test_a_text_that_was_never_embedded_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="never encoded"):
        StoredEmbeddings(tmp_path)(["天"])
    stored_embeddings(tmp_path, ["天", "地"], lambda texts: np.ones((len(texts), 3), np.float32))
    assert StoredEmbeddings(tmp_path)([]).shape == (0, 3)
    with pytest.raises(KeyError, match="never encoded"):
        StoredEmbeddings(tmp_path)(["天", "山"])
