"""The preparation steps end to end: what they take away, what they leave, and that they resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from piccolo_st import ownership
from piccolo_st.cache import PARTIAL
from piccolo_st.curation import step_mine
from piccolo_st.curation.duplicates import DedupSettings
from piccolo_st.curation.quality import FilterSettings
from piccolo_st.curation.stages import ExecutorSettings, Stage, claim, run_stages
from piccolo_st.curation.step_check import CheckSettings
from piccolo_st.curation.step_mine import MineSettings
from piccolo_st.curation.step_score import ScoreSettings
from piccolo_st.curation.steps import PrepareData, run_step
from piccolo_st.data.build import open_arrow
from piccolo_st.data.mixture import load_mixture
from piccolo_st.errors import InputError, MixtureError
from piccolo_st.schema import build
from tests.helpers.forked import forked, kill

REPOSITORY = Path(__file__).parent.parent.parent
ALPHABET = [chr(0x4E00 + i) for i in range(3000)]


def _texts(count: int, length: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(ALPHABET, length)) for _ in range(count)]


def _changed(text: str, places: int, seed: int) -> str:
    """The text with so many characters at its end replaced."""
    return text[:-places] + _texts(1, places, seed)[0] if places else text


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _mixture(
    folder: Path, rows: dict[str, list[dict[str, Any]]], datasets: dict[str, Any], policy: str = "drop"
) -> Path:
    """A mixture file with the rows of each dataset in a file beside it; a dataset is its task, or its settings."""
    for name, own in rows.items():
        _write(folder / f"{name}.jsonl", own)
    entries = {
        name: {"source": f"{name}.jsonl", **({"task": own} if isinstance(own, str) else own)}
        for name, own in datasets.items()
    }
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"policy": "drop", "datasets": entries}, sort_keys=False))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A mixture of all kinds of datasets, with planted duplicates and evaluation texts."""
    query, positive = _texts(60, 12, 1), _texts(60, 40, 2)
    rows = [
        {"query": q, "positive": p, "negative": [n]} for q, p, n in zip(query, positive, _texts(60, 20, 3), strict=True)
    ]
    tests = _texts(20, 40, 4)
    rows[10] |= {"query": query[5], "positive": f"{positive[5]}。"}  # exact, but for punctuation
    rows[11] |= {"query": query[6], "positive": _changed(positive[6], 2, 7)}  # 36 of 40 trigrams: near
    rows[12] |= {"query": query[6], "positive": _changed(positive[6], 20, 8)}  # another answer to the same question
    rows[20]["positive"] = _changed(tests[3], 2, 9)  # a test text, nearly
    rows[21]["query"] = tests[4]
    rows[22]["negative"] = [_changed(tests[5], 1, 10), "另外一个反例"]
    scores = [
        {"sentence1": f"{a}", "sentence2": f"{b}", "score": i % 2}
        for i, (a, b) in enumerate(zip(_texts(20, 9, 5), _texts(20, 9, 6), strict=True))
    ]
    scores[6] = {"sentence1": scores[4]["sentence2"], "sentence2": scores[4]["sentence1"], "score": 0}  # swapped
    scores[8] = {**scores[5], "score": 0}  # contradicts
    planted = {
        "pairs": rows,
        "more": [rows[7], {"query": "另一个集合", "positive": "它的回答", "negative": []}],
        "scores": scores,
        "labels": [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(_texts(20, 15, 11))],
        "dev": [{"sentence1": a, "sentence2": b, "score": 1} for a, b in zip(tests[:10], tests[10:], strict=True)],
    }
    datasets = {
        "pairs": {"task": "retrieval", "weight": 2.0, "licence": "CC0"},
        "more": "retrieval",
        "scores": "pair",
        "labels": "classification",
        "dev": {"task": "sts", "use": "evaluate"},
    }
    return _mixture(tmp_path, planted, datasets).parent


def _step(folder: Path, step: str, settings: Any, mixture: str = "mixture.yaml", **executor: Any) -> tuple[Path, str]:
    said: list[str] = []
    data = PrepareData(str(folder / mixture), str(folder / "out"), str(folder / "cache"))
    return run_step(step, data, settings, ExecutorSettings(**executor), said.append), "\n".join(said)


def _rejects(out: Path) -> dict[tuple[str, int], str]:
    lines = [line for path in sorted((out / "rejects").glob("*.jsonl")) for line in path.read_text().splitlines()]
    return {(record["dataset"], record["row"]): record["reason"] for record in map(json.loads, lines)}


def _report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def _files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.parquet"))}


DEDUP = DedupSettings(part_rows=16)


def test_dedup_takes_what_was_planted_and_nothing_else(folder: Path) -> None:
    pytest.importorskip("rensa")
    out, said = _step(folder, "dedup", DEDUP)
    assert _rejects(out) == {
        ("pairs", 11): "exact duplicate of row 6 of pairs",
        ("pairs", 12): "near duplicate of row 7 of pairs",
        ("pairs", 21): "evaluation text of dev",
        ("pairs", 22): "evaluation text of dev",
        ("more", 1): "exact duplicate of row 8 of pairs",
        ("scores", 7): "exact duplicate of row 5 of scores",
        ("scores", 6): "contradictory labels for the same texts",
        ("scores", 9): "contradictory labels for the same texts",
    }
    left = load_mixture(out / "mixture.yaml", cache_dir=folder / "cache")
    assert {name: len(dataset) for name, dataset in left.train.items()} == {
        "pairs": 56,
        "more": 1,
        "scores": 17,
        "labels": 20,
    }
    before = load_mixture(folder / "mixture.yaml", cache_dir=folder / "cache")
    assert left.train.column_names == before.train.column_names
    assert left.train["pairs"][18]["negative"] == ["另外一个反例"], "an evaluation text among negatives goes alone"
    assert [row["query"] for row in left.train["pairs"]] == [
        row["query"] for i, row in enumerate(before.train["pairs"], 1) if ("pairs", i) not in _rejects(out)
    ]
    assert list(left.train["labels"]) == list(before.train["labels"])
    assert np.allclose(left.train["scores"]["label"][:4], before.train["scores"]["label"][:4])
    assert (left.specs["pairs"].weight, left.specs["pairs"].licence) == (2.0, "CC0")
    assert list(left.evaluation["dev"]) == list(before.evaluation["dev"])
    for counts in _report(out)["datasets"].values():
        assert counts["rows"] == sum(number for kind, number in counts.items() if kind != "rows")
    assert "near duplicate" in said
    assert str(out / "mixture.yaml") in said


def test_keys_sorted_in_pieces_find_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rensa")
    whole, _ = _step(folder, "dedup", DEDUP)
    whole = whole.rename(folder / "whole")
    monkeypatch.setattr("piccolo_st.curation.step_dedup._KEYS", 7)
    pieces, _ = _step(folder, "dedup", DEDUP)
    assert _rejects(pieces) == _rejects(whole)
    assert _files(pieces) == _files(whole)


def test_dedup_stays_within_datasets_or_off_when_asked(folder: Path) -> None:
    out, _ = _step(folder, "dedup", DedupSettings(near=None, across=False, decontaminate=None))
    assert set(_rejects(out)) == {("pairs", 11), ("scores", 6), ("scores", 7), ("scores", 9)}


def test_a_text_with_labels_in_two_datasets_stays_in_both(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    texts = _texts(12, 30, 1)
    rows = {
        name: [{"text": text, "label": labels[i % 2]} for i, text in enumerate([*texts, texts[3]])]
        for name, labels in (("topics", ["hotel", "food"]), ("moods", ["good", "bad"]))
    }
    _mixture(tmp_path, rows, dict.fromkeys(rows, "classification"))
    out, _ = _step(tmp_path, "dedup", DEDUP)
    assert _rejects(out) == {(name, 13): f"exact duplicate of row 4 of {name}" for name in rows}


def test_every_planted_near_duplicate_of_a_test_text_goes_at_the_stated_threshold(tmp_path: Path) -> None:
    """Judged by sets of Python strings: whoever reaches the threshold is gone, and nobody else."""
    tests = _texts(30, 30, 1)
    planted = [_changed(tests[i % 30], i % 16, i) for i in range(240)]
    rows = {
        "a": [{"query": f"第{i}个问题", "positive": text} for i, text in enumerate(planted)],
        "dev": [{"text": text, "label": "x"} for text in tests],
    }
    _mixture(tmp_path, rows, {"a": "retrieval", "dev": {"task": "classification", "use": "evaluate"}})
    out, _ = _step(tmp_path, "dedup", DedupSettings(near=None, decontaminate=0.5, part_rows=50))

    def similarity(one: str, other: str) -> float:
        a, b = ({text[i : i + 3] for i in range(len(text) - 2)} for text in (one, other))
        return len(a & b) / len(a | b)

    expected = {i + 1 for i, text in enumerate(planted) if max(similarity(text, test) for test in tests) >= 0.5}
    gone = {row for (_, row), reason in _rejects(out).items() if reason.startswith("evaluation text")}
    assert gone == expected
    assert 20 < len(expected) < 240, "some of either kind"


def test_filter_takes_broken_language_and_writes_what_stays(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    rows[3]["query"], rows[4]["positive"] = "only English words", "哈" * 30
    _write(folder / "pairs.jsonl", rows)
    out, said = _step(folder, "filter", FilterSettings(part_rows=16))
    assert _rejects(out) == {("pairs", 4): "too little Chinese", ("pairs", 5): "one character repeated"}
    assert len(load_mixture(out / "mixture.yaml", cache_dir=folder / "cache").train["pairs"]) == 58
    assert "too little Chinese" in said


def test_filter_keeps_pairs_whose_positive_ranks_high(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    positives = _texts(50, 20, 1)
    rows = [{"query": text[5:15], "positive": text} for text in positives]
    for row, other in ((7, 8), (20, 40)):
        rows[row]["query"] = positives[other][2:12]  # a question about another text
    _mixture(tmp_path, {"a": rows}, {"a": "retrieval"})
    out, _ = _step(tmp_path, "filter", FilterSettings(top_k=1, pool=60, part_rows=16))
    assert _rejects(out) == {("a", 8): "inconsistent", ("a", 21): "inconsistent"}


def test_filter_can_write_simplified_characters(tmp_path: Path) -> None:
    pytest.importorskip("opencc")
    _mixture(tmp_path, {"a": [{"query": "電腦怎麼用", "positive": "看說明書"}]}, {"a": "retrieval"})
    out, _ = _step(tmp_path, "filter", FilterSettings(simplify=True))
    left = load_mixture(out / "mixture.yaml", cache_dir=tmp_path / "cache")
    assert list(left.train["a"]) == [{"query": "电脑怎么用", "positive": "看说明书"}]


def test_mine_gives_every_retrieval_row_negatives_and_copies_the_rest(folder: Path) -> None:
    _write(folder / "lists.jsonl", [{"query": f"问{i}", "pos": ["答", f"好{i}"]} for i in range(9)])
    given = yaml.safe_load((folder / "mixture.yaml").read_text())
    given["datasets"]["lists"] = {"source": "lists.jsonl", "task": "retrieval", "positives": "list"}
    (folder / "mixture.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    mined = MineSettings(settings={"num_negatives": 2, "shard_rows": 20, "range_min": 1, "relative_margin": None})
    out, said = _step(folder, "mine", mined)
    before = load_mixture(folder / "mixture.yaml", cache_dir=folder / "cache")
    left = load_mixture(out / "mixture.yaml", cache_dir=folder / "cache")
    assert len(list((out / "pairs").glob("*.parquet"))) == 3
    given = {(row["query"], row["positive"]): row["negative"] for row in before.train["pairs"]}
    assert len(left.train["pairs"]) == len(before.train["pairs"])
    for row in left.train["pairs"]:
        own = given[row["query"], row["positive"]]
        assert row["negative"][: len(own)] == own, "given negatives come first"
        assert len(row["negative"]) >= 2
    assert list(left.train["scores"]) == list(before.train["scores"])
    assert list(left.train["labels"]) == list(before.train["labels"])
    assert list(left.train["lists"]) == list(before.train["lists"])
    report = (out / "report.txt").read_text(encoding="utf-8")
    assert report.split("\n\n")[0] in said and "lists: not mined, since its rows list their positives" in said
    assert report.splitlines()[2].split()[:4] == ["pairs", "60", "2.00", "0"]
    assert "dropped by range_min: " in report
    assert f"what was dropped and why, with examples: {out / 'report.txt'}" in said


def test_mine_searches_with_a_checkpoint_and_a_cross_encoder(
    folder: Path, make_model: Callable[..., Any], encoder_dir: Path
) -> None:
    make_model().save_pretrained(str(folder / "model"))
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(encoder_dir), num_labels=1, device="cpu").save_pretrained(str(folder / "reranker"))
    chosen = {"num_negatives": 1, "existing": "replace", "relative_margin": None}  # untrained: all texts are alike
    mined = MineSettings(str(folder / "model"), None, str(folder / "reranker"), chosen)
    out, _ = _step(folder, "mine", mined)
    negatives = load_mixture(out / "mixture.yaml", cache_dir=folder / "cache").train["pairs"]["negative"]
    assert max(map(len, negatives)) == 1
    # A second round at the same place: the checkpoint has changed, so its negatives must not be taken for these.
    make_model(pooling="cls").save_pretrained(str(folder / "model"))
    with pytest.raises(MixtureError, match=r"holds the output of another mixture or other settings"):
        _step(folder, "mine", mined)


@pytest.mark.parametrize("normalize", [False, True])
def test_score_gives_each_text_what_the_cross_encoder_does(
    folder: Path, encoder_dir: Path, monkeypatch: pytest.MonkeyPatch, normalize: bool
) -> None:
    """Ragged negatives and several positives; killed between two parts, it scores the rest."""
    from sentence_transformers import CrossEncoder

    reranker = CrossEncoder(str(encoder_dir), num_labels=1, device="cpu")
    reranker.save_pretrained(str(folder / "reranker"))
    lists = [{"query": f"问{i}", "pos": ["答", f"好{i}"], "neg": [*"错误天地人"[: i % 4]]} for i in range(9)]
    _write(folder / "lists.jsonl", lists)
    _write(folder / "numbered.jsonl", [{"query": "问", "positive": "答", "negative_1": "错", "negative_2": "误"}])
    pair = {"source": "numbered.jsonl", "task": "retrieval"}
    given = yaml.safe_load((folder / "mixture.yaml").read_text())
    given["datasets"] |= {
        "lists": {"source": "lists.jsonl", "task": "retrieval", "positives": "list"},
        "numbered": pair,
    }
    (folder / "mixture.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    asked: list[int] = []
    predict = CrossEncoder.predict

    def killed(self: Any, pairs: Any, **options: Any) -> Any:
        asked.append(len(pairs))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return predict(self, pairs, **options)

    monkeypatch.setattr(CrossEncoder, "predict", killed)
    settings = ScoreSettings(str(folder / "reranker"), normalize=normalize, part_rows=40)
    with pytest.raises(KeyboardInterrupt):
        _step(folder, "score", settings)
    out, said = _step(folder, "score", settings)
    assert asked[1] == asked[2] and asked.count(asked[0]) == 1, "the first part is done, the second was begun"
    left = load_mixture(out / "mixture.yaml", cache_dir=folder / "cache")
    before = load_mixture(folder / "mixture.yaml", cache_dir=folder / "cache")
    for name in ("pairs", "lists", "numbered"):
        assert len(left.train[name]) == len(before.train[name]) > 0
        for row in left.train[name].select(range(min(9, len(left.train[name])))):
            texts = [
                text
                for column in row
                if column not in ("query", "label")
                for text in (row[column] if isinstance(row[column], list) else [row[column]])
            ]
            scores = predict(reranker, [(row["query"], text) for text in texts], activation_fn=torch.nn.Identity())
            expected = torch.tensor(scores).sigmoid() if normalize else torch.tensor(scores)
            assert row["label"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert list(left.train["scores"]) == list(before.train["scores"])
    assert "negatives above a positive" in said and "loss.distillation" in said


def test_score_needs_a_model_and_negatives(folder: Path) -> None:
    with pytest.raises(MixtureError, match=r"score\.model must name a cross-encoder, got none"):
        _step(folder, "score", ScoreSettings())
    assert not (folder / "out").exists(), "what is refused leaves nothing"
    _mixture(folder, {"a": [{"query": "问", "positive": "答"}]}, {"a": "retrieval"})
    with pytest.raises(MixtureError, match=r"must have negatives to be scored, got none that has; mine them first"):
        _step(folder, "score", ScoreSettings("any"))


def test_a_bare_checkpoint_encodes_nothing_twice(folder: Path, encoder_dir: Path) -> None:
    """Though the pooler that it lacks is drawn whenever it is loaded."""
    from transformers import BertModel

    shutil.copytree(encoder_dir, folder / "bare")
    BertModel.from_pretrained(str(encoder_dir), add_pooling_layer=False).save_pretrained(str(folder / "bare"))
    seen = []
    for margin in (None, 0.1):
        shutil.rmtree(folder / "out", ignore_errors=True)
        _step(folder, "mine", MineSettings(str(folder / "bare"), settings={"relative_margin": margin}))
        step_mine._miner.cache_clear()  # as another process begins
        seen.append(sorted(path.relative_to(folder) for path in (folder / "cache" / "embeddings").rglob("*.npy")))
    assert seen[0]
    assert seen[0] == seen[1]


def test_check_reports_faults_lengths_and_duplicates(folder: Path, encoder_dir: Path) -> None:
    with open(folder / "pairs.jsonl", "a", encoding="utf-8") as file:
        file.write('{"query": "", "positive": "x", "negative": []}\n')
    out, said = _step(folder, "check", CheckSettings(tokenizer=str(encoder_dir), query_length=10))
    measured = _report(out)["measured"]
    assert measured["pairs"]["duplicates"] == 1
    assert measured["pairs"]["negatives"] == [1, pytest.approx(61 / 60), 2]
    query = measured["pairs"]["columns"]["query"]
    assert query["percentiles"][0] == 14, "12 characters, [CLS] and [SEP]"
    assert query["cut"] == 1.0
    assert sum(query["histogram"]) == 60
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(r["dataset"], r["row"], r["reason"]) for r in rejects] == [("pairs", 61, "query: empty")]
    assert "pairs: 1 row rejected: query: empty" in said
    assert (out / "lengths.png").stat().st_size > 10_000
    assert said.rstrip().endswith(f"report, rejected rows and histograms: {out}")


def test_check_says_of_a_streamed_dataset_what_it_says_of_a_copy_and_makes_none(tmp_path: Path) -> None:
    rows = [{"query": q, "positive": p} for q, p in zip(_texts(60, 12, 1), _texts(60, 40, 2), strict=True)]
    rows += [rows[0], {"query": "", "positive": "答"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet", row_group_size=20)
    reports = []
    for name in ("streamed", "copied"):
        entry = {"source": "../pairs.parquet", "streaming": name == "streamed"}
        (tmp_path / name).mkdir()
        _mixture(tmp_path / name, {}, {"pairs": {**entry, "task": "retrieval"}})
        out, _ = _step(tmp_path / name, "check", CheckSettings())
        reports.append({key: value for key, value in _report(out).items() if key != "mixture"})
        written = [len(open_arrow(path)) for path in (tmp_path / name / "cache").rglob("data.arrow")]
        assert written == ([0] if name == "streamed" else [61])
    assert reports[0] == reports[1] and reports[0]["measured"]["pairs"]["duplicates"] == 1


def test_steps_feed_each_other_and_held_out_sets_travel_along(folder: Path) -> None:
    mixture = yaml.safe_load((folder / "mixture.yaml").read_text())
    mixture["datasets"]["pairs"]["holdout"] = {"queries": 4, "min_corpus": 10}
    (folder / "mixture.yaml").write_text(yaml.safe_dump(mixture, sort_keys=False))
    first = load_mixture(folder / "mixture.yaml", cache_dir=folder / "cache")
    out, _ = _step(folder, "dedup", DedupSettings(near=None))
    out, _ = _step(folder, "filter", FilterSettings(), mixture="out/dedup/mixture.yaml")
    out, _ = _step(folder, "mine", MineSettings(), mixture="out/filter/mixture.yaml")
    last = load_mixture(out / "mixture.yaml", cache_dir=folder / "cache")
    assert last.holdouts["pairs_holdout"] == first.holdouts["pairs"]
    assert not set(last.holdouts["pairs_holdout"].queries.values()) & set(last.train["pairs"]["query"])
    assert set(last.train) == set(first.train)
    assert set(last.evaluation) == set(first.evaluation)


SETTINGS = {"dedup": DEDUP, "filter": FilterSettings(), "mine": MineSettings()}


@pytest.mark.parametrize("step", SETTINGS)
def test_a_dataset_may_be_named_as_the_folder_of_a_step_is(step: str, tmp_path: Path) -> None:
    texts = zip(_texts(30, 12, 1), _texts(30, 40, 2), strict=True)
    rows = [{"query": query, "positive": positive} for query, positive in texts]
    own = {"work": rows[:10], "counts": rows[10:20], "rejects": rows[20:]}
    _mixture(tmp_path, own, dict.fromkeys(own, "retrieval"))
    out, _ = _step(tmp_path, step, SETTINGS[step])
    kept = load_mixture(out / "mixture.yaml", cache_dir=tmp_path / "cache").train
    assert {name: len(dataset) for name, dataset in kept.items()} == dict.fromkeys(own, 10)


def test_a_folder_is_not_shared_by_two_settings_or_inputs(folder: Path) -> None:
    _step(folder, "filter", FilterSettings())
    _step(folder, "filter", FilterSettings())  # the same again is fine
    with pytest.raises(MixtureError, match=r"out/filter holds the output of another mixture or other settings"):
        _step(folder, "filter", FilterSettings(min_han=0.5))
    with open(folder / "pairs.jsonl", "a", encoding="utf-8") as file:
        file.write('{"query": "新的问题", "positive": "新的回答", "negative": []}\n')
    with pytest.raises(MixtureError, match=r"another mixture or other settings"):
        _step(folder, "filter", FilterSettings())
    (folder / "mine").mkdir()
    (folder / "mine" / "theirs.txt").write_text("x")
    with pytest.raises(MixtureError, match=r"mine must be empty or of this project's making"):
        claim(folder / "mine", "identity", {})


def test_a_folder_is_written_by_one_process_until_that_is_killed(folder: Path) -> None:
    with forked(lambda: ownership.own(folder / "out" / ".dedup.owner", folder, "data.output")) as pid:
        start = time.monotonic()
        with pytest.raises(InputError, match=rf"out/dedup is being written to by process {pid} .*data\.output"):
            _step(folder, "dedup", DedupSettings())
        assert time.monotonic() - start < 5
        kill(pid)
        assert (_step(folder, "dedup", DedupSettings())[0] / "mixture.yaml").is_file()
    assert [path.name for path in (folder / "out").iterdir()] == ["dedup"]


def test_a_folder_is_claimed_though_a_run_was_killed_as_it_did(tmp_path: Path) -> None:
    (tmp_path / f".made_of.json.123{PARTIAL}").write_text('{"ident')
    for _ in range(2):
        claim(tmp_path, "identity", {"step": "filter"})
    with pytest.raises(MixtureError, match=r"holds the output of another mixture"):
        claim(tmp_path, "another", {})


def test_done_tasks_are_passed_over(tmp_path: Path) -> None:
    ran: list[int] = []

    def fail_at(limit: int) -> Stage:
        def run(task: int) -> None:
            if task == limit:
                raise RuntimeError("stop")
            ran.append(task)

        return Stage("work", 5, run)

    said: list[str] = []
    with pytest.raises(RuntimeError, match="stop"):
        run_stages([fail_at(3)], tmp_path, say=said.append)
    run_stages([fail_at(9)], tmp_path, say=said.append)
    run_stages([fail_at(9)], tmp_path, say=said.append)
    assert ran == [0, 1, 2, 3, 4]
    assert "work: 2 of 5 tasks in" in said[0]
    assert "3 done before" in said[0]
    assert "work: 0 of 5 tasks in" in said[1]


def test_no_data_and_no_such_model_say_so(folder: Path) -> None:
    with pytest.raises(MixtureError, match=r"no data are named; give a mixture file"):
        run_step("check", PrepareData(), CheckSettings())
    with pytest.raises(InputError, match=r"mine\.model cannot be loaded, got 'no/such/model'"):
        _step(folder, "mine", MineSettings(model="no/such/model"))
    with pytest.raises(InputError, match=r"unknown key 'mine\.settings\.num_negative' in mine\.settings"):
        build(MineSettings, {"settings": {"num_negative": 1}}, "mine", section="mine")


def test_datatrove_runs_the_same_tasks(folder: Path) -> None:
    pytest.importorskip("datatrove")
    pytest.importorskip("rensa")
    here, _ = _step(folder, "dedup", DEDUP)
    expected = _files(here)
    here.rename(folder / "here")
    there, _ = _step(folder, "dedup", DEDUP, kind="local", workers=2, options={"start_method": "fork"})
    assert _files(there) == expected
    assert len(expected) > 5


def test_datatrove_submits_a_chain_of_jobs_to_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove")
    from datatrove.executor import SlurmPipelineExecutor

    launched: list[tuple[str, int, Any]] = []

    def run(self: Any) -> None:
        if self.depends is not None:
            run(self.depends)
        launched.append((self.job_name, self.tasks, self.partition))

    monkeypatch.setattr(SlurmPipelineExecutor, "run", run)
    options = {"partition": "cpu", "time": "01:00:00"}
    _, said = _step(folder, "dedup", DedupSettings(near=None, part_rows=16), kind="slurm", workers=8, options=options)
    assert launched == [
        ("piccolo-signatures", 9, "cpu"),
        ("piccolo-exact", 1, "cpu"),
        ("piccolo-write", 9, "cpu"),
        ("piccolo-finish", 1, "cpu"),
    ]
    assert "submitted; the output will be in" in said
    (folder / "out").rename(folder / "submitted")
    with pytest.raises(
        MixtureError, match=r"executor.options must suit datatrove's slurm executor, got {'ti.*'partition'"
    ):
        _step(folder, "dedup", DedupSettings(near=None), kind="slurm", options={"time": "01:00:00"})


def _recipe(*arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "recipes" / "prepare.py"), *arguments]


def _run(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )


def test_the_recipe_runs_a_step_on_a_mixture_file_and_refuses_in_one_sentence(folder: Path) -> None:
    output = ["--data.output", str(folder / "out"), "--data.cache", str(folder / "cache")]
    ran = _run(_recipe("filter", str(folder / "mixture.yaml"), *output, "--filter.max_query_characters", "11"))
    assert ran.returncode == 0, ran.stderr
    assert "what stays:" in ran.stdout
    assert "too long" in ran.stdout
    shutil.copy(folder / "mixture.yaml", folder / "out" / "shipped.yaml")
    moved = ["--data.mixture.root", str(folder), "--data.output", str(folder / "moved"), *output[2:]]
    ran = _run(_recipe("filter", str(folder / "out" / "shipped.yaml"), *moved))
    assert ran.returncode == 0, ran.stderr
    for arguments, message in [
        (["filtre"], r"the first argument must be a step, got 'filtre'; did you mean filter?"),
        (["check", str(folder / "no.yaml")], "no.yaml does not exist"),
        (["filter", str(folder / "mixture.yaml"), "--filter.min_hna", "1"], "did you mean filter.min_han?"),
        (["filter", str(folder / "mixture.yaml"), *output, "--filter.min_han", "0.5"], "holds the output of another"),
    ]:
        ran = _run(_recipe(*arguments))
        assert (ran.returncode, ran.stdout) == (2, "")
        assert message in ran.stderr
        assert len(ran.stderr.strip().splitlines()) == 1


def _tables(out: Path) -> dict[str, pa.Table]:
    return {str(p.relative_to(out)): pq.read_table(p) for p in sorted(out.rglob("*.parquet"))}


def _texts_left(out: Path, moved: dict[str, str]) -> dict[str, str]:
    """Every other file that a reader of the output may open; ``moved`` names what is known to differ."""
    kept = {".json", ".jsonl", ".txt", ".yaml", ".tsv"}
    texts = {str(p.relative_to(out)): p.read_text("utf-8") for p in sorted(out.rglob("*")) if p.suffix in kept}
    for name, text in texts.items():
        for one, other in moved.items():
            text = text.replace(one, other)
        texts[name] = text
    return texts


def _seen(folder: Path) -> tuple[int, int]:
    """(markers, files of any other kind with their sizes, as one number): what a step has left so far."""
    markers, rest = 0, 0
    for place, _, names in os.walk(folder):  # which passes over a folder renamed since it was listed; rglob raises
        if place.endswith(".done"):
            markers += len(names)
            continue
        for name in names:
            try:
                rest = hash((rest, name, os.stat(os.path.join(place, name)).st_size))
            except FileNotFoundError:
                continue
    return markers, rest


def _killed_until_done(command: list[str], folders: list[Path], out: Path, tasks: int, kills: int) -> list[int]:
    """Start the command again and again, and kill it so many times with SIGKILL; returns the markers at each kill.

    The moments are spread evenly over the tasks. In turns a kill comes while a task writes (a file has changed since
    the last marker) and as soon as there is another marker.
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    log, found = out.parent.with_suffix(".log"), []
    for attempt in range(kills + 1):
        with open(log, "w") as said:  # a pipe that nobody reads fills up
            process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            last = [_seen(folder) for folder in folders]
            start = sum(markers for markers, _ in last)
            while process.poll() is None and attempt < kills:
                now = [_seen(folder) for folder in folders]
                markers = sum(markers for markers, _ in now)
                moment = now != last if attempt % 2 == 0 else markers > start
                if moment and markers >= attempt * tasks // (kills + 1):
                    break
                if markers > sum(markers for markers, _ in last):
                    last = now
                time.sleep(0.001)
            if attempt < kills:
                process.kill()
            code = process.wait()
        finally:
            process.kill()
        assert code == (-signal.SIGKILL if attempt < kills else 0), log.read_text("utf-8", "replace")
        if attempt < kills:
            found.append(len(list((out / ".done").glob("*"))))
            assert not list((out / ".done").glob("finish-*")), "the kill came after the end"
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("step", "extra"),
    [
        ("check", []),
        ("dedup", ["--dedup.part_rows", "200"]),
        ("filter", ["--filter.part_rows", "200", "--filter.top_k", "5", "--filter.pool", "500"]),
        ("mine", ["--mine.settings", "{num_negatives: 2, shard_rows: 200}"]),
    ],
    ids=["check", "dedup", "filter", "mine"],
)
def test_a_step_killed_at_any_point_ends_as_if_it_had_not_been(step: str, extra: list[str], tmp_path: Path) -> None:
    """kill -9, four times, in tasks and between them; then compare with a run that was never killed."""
    for package in ("rensa", "faiss"):
        pytest.importorskip(package)
    rows = [{"query": q, "positive": p} for q, p in zip(_texts(4000, 12, 1), _texts(4000, 30, 2), strict=True)]
    tests = _texts(20, 30, 3)
    for place in range(0, 3000, 50):  # of every kind some, all over the parts
        rows[place + 1] = {**rows[place], "positive": f"{rows[place]['positive']}。"}  # exact, but for punctuation
        rows[place + 2] = {**rows[place + 7], "positive": _changed(rows[place + 7]["positive"], 2, place)}
        rows[place + 3]["positive"] = tests[place % 20]
        rows[place + 4] = {"query": "only English words", "positive": "哈" * 30}
        rows[place + 5] = {"query": "", "positive": "x"}
        rows[place + 6]["query"] = rows[place + 8]["positive"][:12]  # a question about another text
    scores = [
        {"sentence1": a, "sentence2": b, "score": i % 2}
        for i, (a, b) in enumerate(zip(_texts(1000, 9, 5), _texts(1000, 9, 6), strict=True))
    ]
    parts = {
        "a": rows[:3000],
        "b": [*rows[3000:], *rows[:200]],
        "scores": [*scores, *scores[:90]],
        "dev": [{"text": text, "label": "x"} for text in tests],
    }
    datasets = {
        "a": {"task": "retrieval", "holdout": {"queries": 20, "min_corpus": 50}},
        "b": "retrieval",
        "scores": "pair",
        "dev": {"task": "classification", "use": "evaluate"},
    }
    mixture = str(_mixture(tmp_path, parts, datasets))

    def run(name: str) -> list[str]:
        places = ["--data.output", str(tmp_path / name), "--data.cache", str(tmp_path / f"cache-{name}")]
        return [*_recipe(step, mixture), *extra, *places]

    ran = _run(run("whole"))
    assert ran.returncode == 0, ran.stderr
    whole, killed = tmp_path / "whole" / step, tmp_path / "killed" / step
    caches = [tmp_path / "cache-killed"] if step == "check" else []  # where check leaves what it has read
    tasks = len(list((whole / ".done").glob("*")))
    kills = _killed_until_done(run("killed"), [killed, *caches], killed, tasks, 4)
    assert kills == sorted(kills) and len(set(kills)) >= 3 and kills[-1] < tasks, (
        "killed in the middle, further each time"
    )

    assert {p.name for p in (whole / ".done").glob("*")} == {p.name for p in (killed / ".done").glob("*")}
    assert _texts_left(killed, {"cache-killed": "cache-whole"}) == _texts_left(whole, {})
    assert _tables(killed) == _tables(whole)
    assert not list(killed.rglob("*.partial"))
    if step == "check":
        assert (whole / "rejects.jsonl").stat().st_size > 1_000
        return
    assert len(_tables(whole)) > 10
    assert (killed / "mixture.yaml").is_file()
    if step != "mine":
        reasons = {reason.split(" of ")[0] for reason in _rejects(whole).values()}
        expected = {
            "dedup": {"exact duplicate", "near duplicate", "evaluation text"},
            "filter": {"too little Chinese", "inconsistent"},
        }
        assert expected[step] <= reasons
