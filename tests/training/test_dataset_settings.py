"""Lengths and instructions of a run and of single datasets, from the YAML to the tokens of every text that is read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn

from piccolo_st.commands.prepare import main as prepare
from piccolo_st.config import parse_run
from piccolo_st.data.mixture import load_mixture
from piccolo_st.errors import InputError, MixtureError
from piccolo_st.modeling.instructions import Instructions, PhrasedInstructions
from piccolo_st.modeling.pooling import instruction_token_ids
from piccolo_st.modeling.portable.saving import load_portable, save_portable
from piccolo_st.training.estimate import show_plan
from piccolo_st.training.run import TrainingRun
from piccolo_st.training.training_arguments import FinetuneConfig
from tests.helpers.evaluation_data import write_local_tasks
from tests.recipes.test_recipes import ROOT, write_rows

DIGITS = "一二三四五六七八九十"
NUMBERS = [a + b for a in DIGITS for b in DIGITS]
LONG = "天地山水风云" * 10
PAIRS = [{"query": f"数{n}{LONG}", "positive": f"{n}的结果{LONG}{LONG}"} for n in NUMBERS]
Run = Callable[..., TrainingRun]


@pytest.fixture
def make_run(tmp_path: Path, encoder_dir_no_dropout: Path) -> Run:
    """A run of two datasets whose texts are 60 and 120 characters long; the second has what the test says."""

    def make(model: dict[str, Any] | None = None, own: dict[str, Any] | None = None, **data: Any) -> TrainingRun:
        write_rows(tmp_path / "pairs.jsonl", PAIRS)
        holdout = {"queries": 4, "min_corpus": 10, "max_corpus": 10}
        dataset = {"source": str(tmp_path / "pairs.jsonl"), "task": "retrieval", "holdout": holdout}
        content = {
            "model": {"name_or_path": str(encoder_dir_no_dropout), "query_length": 30, "document_length": 40,
                      **(model or {})},
            "data": {"mixture": {"datasets": {"plain": dataset, "other": {**dataset, **(own or {})}}}, "batch_size": 8,
                     **data},
            "train": {"output_dir": str(tmp_path / "run"), "max_steps": 2, "save_strategy": "no",
                      "disable_tqdm": True},
        }  # fmt: skip
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return TrainingRun(parse_run([str(path)], FinetuneConfig, path))

    return make


def batches(run: TrainingRun) -> dict[str, dict[str, Any]]:
    """A batch of each dataset, as the trainer gets it."""
    found: dict[str, dict[str, Any]] = {}
    for batch in run.trainer.get_train_dataloader():
        found.setdefault(batch["dataset_name"], batch)
    return found


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[tuple[int, ...], int]]]:
    """(first tokens, width) of every batch with an instruction that a model tokenizes."""
    found: list[tuple[tuple[int, ...], int]] = []
    preprocess = SentenceTransformer.preprocess

    def record(self: SentenceTransformer, *args: Any, **kwargs: Any) -> Any:
        features = preprocess(self, *args, **kwargs)
        if kwargs.get("prompt"):  # the statistics of the model card have none
            found.append((tuple(features["input_ids"][0, :4].tolist()), features["input_ids"].shape[1]))
        return features

    monkeypatch.setattr(SentenceTransformer, "preprocess", record)
    yield found


@pytest.mark.parametrize(
    ("own", "widths"),
    [({"query_length": 8, "document_length": 16}, (8, 16)), ({"document_length": 50}, (30, 50))],
    ids=["both", "one"],
)
def test_a_datasets_own_lengths_are_the_widths_of_its_batches(
    make_run: Run, own: dict[str, int], widths: tuple[int, int]
) -> None:
    found = batches(make_run(own=own))
    for name, expected in (("plain", (30, 40)), ("other", widths)):
        assert tuple(found[name][f"{column}_input_ids"].shape[1] for column in ("query", "positive")) == expected


def test_scored_pairs_are_cut_at_the_length_of_documents(make_run: Run, tmp_path: Path) -> None:
    rows = [{"sentence1": row["query"], "sentence2": row["positive"], "score": i % 2} for i, row in enumerate(PAIRS)]
    own = {"source": str(write_rows(tmp_path / "scored.jsonl", rows)), "task": "sts", "holdout": None}
    other = batches(make_run(own={**own, "document_length": 20}))["other"]
    assert {other[f"{column}_input_ids"].shape[1] for column in ("sentence1", "sentence2")} == {20}


def test_mining_and_held_out_search_read_what_training_reads(
    make_run: Run, seen: list[tuple[tuple[int, ...], int]]
) -> None:
    own = {"query_length": 12, "document_length": 20, "instruction": {"query": "五六：", "document": "七八："}}
    run = make_run(own=own, mining_model="self", mining={"num_negatives": 1})
    ids = run.model.tokenizer.convert_tokens_to_ids
    expected = {
        (tuple(ids(["[CLS]", *"查询："])), 30),
        (tuple(ids(["[CLS]", *"结果："])), 40),
        (tuple(ids(["[CLS]", *"五六："])), 12),
        (tuple(ids(["[CLS]", *"七八："])), 20),
    }
    assert set(seen) == expected
    seen.clear()
    run.trainer.evaluate()
    assert set(seen) == expected
    assert (run.model[0].query_length, run.model[0].document_length) == (30, 40)
    assert run.model.prompts["query"] == "查询："


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"document_length": 513},
            r"document_length=513 of dataset 'other' is more than the 512 tokens that BertModel",
        ),
        ({"query_length": 5}, r"query_length=5 of dataset 'other' is too short for the instruction '查询：'"),
        (
            {"instruction": {"query": ["一：", "一二三四五" * 6 + "："]}},
            r"query_length=30 of dataset 'other' is too short for the instruction '一二.* it takes 34 tokens",
        ),
        (
            {"instruction": {"query": "一二三四五" * 6 + "："}},
            r"query_length=30 of dataset 'other' is too short for the instruction '一二.* it takes 34 tokens",
        ),
        (
            {"query_length": 0},
            r"query_length of dataset 'other' of the mixture must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_lengths_that_cannot_be_are_refused_before_anything_is_read(
    make_run: Run, own: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_run(own=own)


def test_every_wording_of_the_run_must_fit_a_datasets_own_length(make_run: Run) -> None:
    model = {"instructions": {"query": ["一：", "一二三四五六七八："]}}
    with pytest.raises(InputError, match=r"query_length=10 of dataset 'other' is too short .* '一二.* takes 12 tokens"):
        make_run(model, {"query_length": 10})
    make_run(model, {"query_length": 10, "instruction": "none"})


def test_instructions_of_ones_own_go_from_the_yaml_to_the_saved_model(make_run: Run, tmp_path: Path) -> None:
    mine = {"query": "一二：", "document": "三四："}
    theirs = {"query": "五六：", "passage": "七八："}
    run = make_run({"instructions": mine, "include_instruction": False}, {"instruction": theirs})
    assert run.config.model.instructions == Instructions("一二：", "三四：")
    assert yaml.safe_load(yaml.safe_dump(dataclasses.asdict(run.config.model)))["instructions"] == mine
    found = batches(run)
    for name, texts in (("plain", ["一二：", "三四："]), ("other", ["五六：", "七八："])):
        for column, text in zip(("query", "positive"), texts, strict=True):
            ids = instruction_token_ids(run.model.tokenizer, text)
            assert (found[name][f"{column}_input_ids"][:, : len(ids)] == run.model[1]._prefixes.new_tensor(ids)).all()
            assert tuple(ids) in run.model[1].instruction_ids
    save_portable(run.model, tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    assert stored["prompts"]["query"] == "一二：" and stored["prompts"]["document"] == "三四："


def test_a_miner_reads_with_the_instructions_of_the_run_in_its_first_wording(
    make_run: Run, encoder_dir: Path, seen: list[tuple[tuple[int, ...], int]]
) -> None:
    wordings = {"instructions": {"query": ["一二：", "三四："]}}
    run = make_run(wordings, mining_model=str(encoder_dir), mining={"num_negatives": 1, "relative_margin": None})
    assert "negative" in run.train_dataset["plain"].column_names
    starts = {ids for ids, _ in seen}
    assert tuple(instruction_token_ids(run.model.tokenizer, "一二：")) in starts


def test_a_miner_keeps_its_own_instructions_and_positions(
    make_run: Run, make_model: Callable[..., Any], tmp_path: Path, seen: list[tuple[tuple[int, ...], int]]
) -> None:
    """A run of 60 tokens, a dataset of 50, and a miner that has positions for 48."""
    miner = make_model()
    encoder = miner[0].auto_model
    encoder.config.max_position_embeddings = 48
    encoder.embeddings.position_embeddings = nn.Embedding.from_pretrained(
        encoder.embeddings.position_embeddings.weight[:48].detach()
    )
    miner.prompts = {"query": "万千：", "document": "七八："}
    miner.save_pretrained(str(tmp_path / "miner"))
    run = make_run(
        {"instructions": {"query": "一二：", "document": "三四："}, "document_length": 60},
        {"document_length": 50},
        mining_model=str(tmp_path / "miner"),
        mining={"num_negatives": 1, "relative_margin": None},
    )
    assert "negative" in run.train_dataset["other"].column_names
    ids = miner.tokenizer.convert_tokens_to_ids
    assert set(seen) == {(tuple(ids(["[CLS]", *"万千："])), 48), (tuple(ids(["[CLS]", *"七八："])), 48)}


def test_a_miner_that_cuts_nothing_mines(make_run: Run, encoder_dir: Path, tmp_path: Path) -> None:
    tokenizer = SentenceTransformer(str(encoder_dir)).tokenizer.backend_tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)]).save_pretrained(str(tmp_path / "miner"))
    mining = {"num_negatives": 1, "relative_margin": None}
    run = make_run(own={"query_length": 20}, mining_model=str(tmp_path / "miner"), mining=mining)
    assert all("negative" in columns for columns in run.train_dataset.column_names.values())


def test_an_encoder_that_is_built_knows_the_texts_of_lists(make_run: Run, tmp_path: Path) -> None:
    rows = [{"query": f"数{n}", "positive": [f"江河{n}", f"湖海{n}"]} for n in NUMBERS]
    own = {"source": str(write_rows(tmp_path / "lists.jsonl", rows)), "positives": "list", "holdout": None}
    build = {"hidden_size": 16, "layers": 1, "heads": 2, "vocab_size": 100}
    run = make_run({"name_or_path": None, "build": build}, own)
    assert "[UNK]" not in run.model.tokenizer.tokenize("江河湖海")


def evaluated(model: SentenceTransformer, tasks: Path, output: Path) -> dict[str, set[str]]:
    """Evaluate on tasks; the texts that went through the encoder for each."""
    runner = pytest.importorskip("piccolo_st.evaluation.runner")
    from tests.evaluation.test_runner import Encoded

    encoded, seen = Encoded(model), {}

    def after(outcome: Any) -> None:
        seen[outcome.task.name] = set(encoded.texts)
        encoded.texts.clear()

    runner.evaluate(model, str(tasks), output=output, on_task=after)
    return seen


def test_a_task_in_several_wordings_goes_from_the_yaml_to_the_benchmark_and_the_card(
    make_run: Run, tmp_path: Path
) -> None:
    template = "查{task}："
    model = {"instructions": {"task": ["一二", "三四"], "template": template}, "include_instruction": False,
             "task_instructions": {"OwnSearch": {"task": "万千", "template": template}}}  # fmt: skip
    run = make_run(model, {"instruction": {"query": ["五六：", "七八：", "九十："], "document": "百："}})
    assert run.config.model.instructions == PhrasedInstructions("查一二：", "", ("查一二：", "查三四："), ("",))
    found, again = batches(run), batches(make_run(model, {"instruction": {"query": ["五六：", "七八：", "九十："]}}))
    drawn: dict[str, set[str]] = {}
    for name, wordings in (("plain", ["查一二：", "查三四："]), ("other", ["五六：", "七八：", "九十："])):
        starts = [tuple(instruction_token_ids(run.model.tokenizer, text)) for text in wordings]
        assert set(starts) <= set(run.model[1].instruction_ids)
        known = {
            tuple(run.model.tokenizer(text + pair["query"], truncation=True, max_length=30)["input_ids"]): text
            for pair in PAIRS
            for text in wordings
        }
        drawn[name] = {known[tuple(row)] for row in found[name]["query_input_ids"].tolist()}
        assert found[name]["query_input_ids"].tolist() == again[name]["query_input_ids"].tolist()
    assert drawn == {"plain": {"查一二：", "查三四："}, "other": {"五六：", "七八：", "九十："}}
    start = instruction_token_ids(run.model.tokenizer, "百：")
    assert (found["other"]["positive_input_ids"][:, : len(start)] == run.model[1]._prefixes.new_tensor(start)).all()
    text_ids = found["plain"]["query_text_id"].tolist()
    assert len(set(text_ids)) == len(text_ids), "of the text, whatever stands before it"

    run.train()
    stored = json.loads((tmp_path / "run" / "model" / "config_sentence_transformers.json").read_text("utf-8"))
    assert stored["prompts"] == {
        "query": "查一二：",
        "document": "",
        "OwnSearch-query": "查万千：",
        "OwnSearch-document": "",
    }
    saved = load_portable(tmp_path / "run" / "model", device="cpu")
    whole = saved.encode("查万千：天地")
    assert abs(whole - saved.encode("天地", prompt="查万千：")).max() < 1e-6, "found by the pooling in the text itself"

    seen = evaluated(saved, write_local_tasks(tmp_path / "tasks"), tmp_path / "results")

    def texts(file: str, *columns: str, before: str = "", length: int = 40) -> set[str]:
        rows = [json.loads(line) for line in (tmp_path / "tasks" / file).read_text("utf-8").splitlines()]
        values = [row[column] for row in rows for column in columns]
        plain = {text for value in values for text in (value if isinstance(value, list) else [value])}
        return {(before + text)[: length - 2] for text in plain}  # [CLS] and [SEP] beside them

    queries = texts("search/queries.jsonl", "text", before="查万千：", length=30)
    assert seen["OwnSearch"] == queries | texts("search/corpus.jsonl", "text")
    queries = texts("ranking.jsonl", "query", before="查一二：", length=30)
    assert seen["OwnRanking"] == queries | texts("ranking.jsonl", "positive", "negative")
    assert seen["OwnSts"] == texts("sts.jsonl", "sentence1", "sentence2")

    card = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    for said in ("查一二：", "task `一二` or `三四`", "OwnSearch: task `万千`"):
        assert said in card, said


def test_instructions_on_the_command_line(tmp_path: Path) -> None:
    path = ROOT / "recipes" / "configs" / "quickstart.yaml"
    for text, expected in (
        ("{query: '问：'}", Instructions("问：")),
        ("{task: 找答案}", Instructions("Instruct: 找答案\nQuery: ")),
        ("none", Instructions()),
        ("piccolo", Instructions("查询：", "结果：")),
        ("null", None),
    ):
        given = ["--model.instructions", text, "--train.output_dir", str(tmp_path)]
        assert parse_run(given, FinetuneConfig, path).model.instructions == expected


BAD = [
    ("picolo", r" must be a preset \(.*\) or instructions of your own, .*, got 'picolo'; did you mean piccolo\?$"),
    (
        "查询：",
        r" must be a preset \(.*\) or instructions of your own, .*, got '查询：'; known are bge-zh, e5, .*piccolo",
    ),
    ("7", r" must be a preset .*, got 7$"),
    ("[a]", r" must be a preset .*, got \['a'\]$"),
    ("{qurey: a}", r" must be a preset .*, got the keys \['qurey'\]$"),
    ("{task: a, template: 'b: '}", r" must have {task} in it, got 'b: '$"),
    ("{query: a, task: b}", r" must be a preset .*, got the keys \['query', 'task'\]$"),
    ("{query: 5}", r" must be a string, got 5; write '' for none$"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_is_no_instruction_is_refused_by_the_configuration(text: str, message: str) -> None:
    path = ROOT / "recipes" / "configs" / "quickstart.yaml"
    with pytest.raises(InputError, match="model.instructions" + message):
        parse_run(["--model.instructions", text], FinetuneConfig, path)


@pytest.mark.parametrize(("text", "message"), BAD[:1] + BAD[-2:])
def test_what_is_no_instruction_of_a_dataset_is_refused_everywhere(
    text: str, message: str, tmp_path: Path, encoder_dir: Path
) -> None:
    write_rows(tmp_path / "faq.jsonl", PAIRS)
    dataset = {"source": str(tmp_path / "faq.jsonl"), "task": "retrieval", "instruction": yaml.safe_load(text)}
    mixture = {"datasets": {"faq": dataset}}
    rule = "instruction of dataset 'faq' of .*" + message
    with pytest.raises(MixtureError, match=rule):
        load_mixture(mixture, cache_dir=tmp_path / "cache")
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump({"model": {"name_or_path": str(encoder_dir)}, "data": {"mixture": mixture},
                        "train": {"max_steps": 2}})
    )  # fmt: skip
    with pytest.raises(InputError, match=rule):
        show_plan(parse_run([str(path)], FinetuneConfig, path))
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(mixture))
    for step in ("check", "dedup", "filter", "mine"):
        with pytest.raises(InputError, match=rule):
            prepare([step, str(tmp_path / "mixture.yaml"), "--data.output", str(tmp_path / "out")])


@pytest.mark.parametrize("step", ["mine", "filter"])
def test_preparation_reads_what_training_reads(
    step: str, tmp_path: Path, make_model: Callable[..., Any], seen: list[tuple[tuple[int, ...], int]]
) -> None:
    make_model().save_pretrained(str(tmp_path / "model"))
    write_rows(tmp_path / "faq.jsonl", PAIRS)
    own = {"instruction": "piccolo", "query_length": 20, "document_length": 30}
    dataset = {"source": "faq.jsonl", "task": "retrieval", **own}
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"datasets": {"faq": dataset}}))
    further = {"mine": ["--mine.model", str(tmp_path / "model"), "--mine.settings", "{num_negatives: 1}"],
               "filter": ["--filter.model", str(tmp_path / "model"), "--filter.top_k", "2"]}[step]  # fmt: skip
    prepare(
        [step, str(tmp_path / "mixture.yaml"), "--data.output", str(tmp_path / "out"),
         "--data.cache", str(tmp_path / "cache"), *further]
    )  # fmt: skip
    ids = make_model().tokenizer.convert_tokens_to_ids
    assert set(seen) == {(tuple(ids(["[CLS]", *"查询："])), 20), (tuple(ids(["[CLS]", *"结果："])), 30)}
    left = yaml.safe_load((tmp_path / "out" / step / "mixture.yaml").read_text(encoding="utf-8"))["datasets"]["faq"]
    assert left["instruction"] == {"query": "查询：", "document": "结果："} and left["query_length"] == 20
