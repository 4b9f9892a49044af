"""evaluate(): what text is encoded, under which identity results are kept, and what is run again."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mteb")

import mteb
from datasets import Dataset
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

import piccolo_st.evaluation
from piccolo_st.errors import InputError
from piccolo_st.evaluation import per_example
from piccolo_st.evaluation.local_tasks import load_local_tasks
from piccolo_st.evaluation.mteb_model import BenchmarkEncoder, share_batches, side_by_side
from piccolo_st.evaluation.runner import TaskOutcome, evaluate
from piccolo_st.evaluation.tasks import select
from piccolo_st.modeling.fingerprint import Identity, content_hash
from piccolo_st.modeling.packed.packing import use_packing
from piccolo_st.ownership import own
from tests.helpers.evaluation_data import write_local_tasks
from tests.helpers.forked import forked, kill
from tests.helpers.ranks import run_ranks

PROMPTS = {"query": "查询：", "document": "结果："}
SIX = ("OwnSearch", "OwnRanking", "OwnSts", "OwnPairs", "OwnTopics", "OwnGroups")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of six local tasks."""
    return write_local_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def model(make_model: Callable[..., SentenceTransformer]) -> SentenceTransformer:
    model = make_model(query_length=16, document_length=48)
    model.prompts = dict(PROMPTS)
    return model


def shift(model: SentenceTransformer, seed: int = 1) -> SentenceTransformer:
    """Change the weights: another model with the same card and the same base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


class Encoded:
    """Counts and decodes what really reaches the encoder: the tokens of every forward pass."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.texts: list[str] = []
        tokenizer = model.tokenizer
        use_packing(model)  # now, so that the rows it checks itself with are not counted

        def record(module: torch.nn.Module, inputs: tuple[dict[str, Any], ...]) -> None:
            rows = tokenizer.batch_decode(inputs[0]["input_ids"], skip_special_tokens=True)
            self.texts += [row.replace(" ", "") for row in rows]

        model[0].register_forward_pre_hook(record, prepend=True)  # before the rows are packed


def run(model: Any, tasks: Path | str, output: Path, **kwargs: Any) -> tuple[dict[str, float], list[TaskOutcome]]:
    """Scores of one evaluation and the outcomes reported."""
    outcomes: list[TaskOutcome] = []
    evaluation, *_ = evaluate(model, str(tasks), output=output, on_task=outcomes.append, **kwargs)
    return evaluation.scores, outcomes


# --- instructions and encoding


def test_instructions_reach_the_queries_and_passages_of_search_and_nothing_else(
    model: SentenceTransformer, tasks: Path, tmp_path: Path
) -> None:
    model.default_prompt_name = "query"  # which stock mteb lets through to every other task
    model.prompts |= {"STS": "查询：", "Classification": "查询：", "OwnPairs": "结果："}  # as are these
    seen: dict[str, list[str]] = {}
    encoded = Encoded(model)

    def after(outcome: TaskOutcome) -> None:
        seen[outcome.task.name] = encoded.texts[:]
        encoded.texts.clear()

    evaluate(model, str(tasks), output=tmp_path, on_task=after)

    folder = tasks.parent
    corpus = [json.loads(line)["text"] for line in (folder / "search/corpus.jsonl").read_text("utf-8").splitlines()]
    queries = [json.loads(line)["text"] for line in (folder / "search/queries.jsonl").read_text("utf-8").splitlines()]
    cut = {text: text[: 16 - 5] for text in queries}  # [CLS] 查 询 ： ... [SEP] in 16 tokens
    cut |= {text: text[: 48 - 5] for text in corpus}
    expected = {"查询：" + cut[text] for text in queries} | {"结果：" + cut[text] for text in corpus}
    assert set(seen["OwnSearch"]) == expected
    assert {text[:3] for text in seen["OwnRanking"]} == {"查询：", "结果："}
    rows = [json.loads(line) for line in (folder / "sts.jsonl").read_text("utf-8").splitlines()]
    assert set(seen["OwnSts"]) == {row[key] for row in rows for key in ("sentence1", "sentence2")}
    for name in ("OwnSts", "OwnPairs", "OwnTopics", "OwnGroups"):
        assert seen[name] and not any(text.startswith(("查询", "结果")) for text in seen[name]), name


def test_instructions_of_single_tasks_go_before_the_general_ones(
    model: SentenceTransformer, tasks: Path, tmp_path: Path
) -> None:
    model.prompts["OwnSearch-query"] = "学法："
    encoded = Encoded(model)

    evaluate(model, str(tasks), output=tmp_path)

    assert sum(text.startswith("学法：") for text in encoded.texts) == 8  # the queries of OwnSearch
    assert any(text.startswith("查询：") for text in encoded.texts)  # those of OwnRanking


def test_other_instructions_are_another_model(model: SentenceTransformer, tasks: Path, tmp_path: Path) -> None:
    own, none = (
        evaluate(model, str(tasks), output=tmp_path, instructions=instructions)[0] for instructions in (None, "none")
    )

    assert own.identity.revision != none.identity.revision
    assert own.scores["OwnSts"] == none.scores["OwnSts"]
    assert own.scores["OwnSearch"] != none.scores["OwnSearch"]


def test_scores_are_those_of_stock_mteb(model: SentenceTransformer, tasks: Path, tmp_path: Path) -> None:
    scores, _ = run(model, tasks, tmp_path)

    for definition, task in load_local_tasks(tasks):
        stock = mteb.evaluate(SentenceTransformerEncoderWrapper(model), task, cache=None, show_progress_bar=False)
        values = stock.task_results[0].scores["test"][0]
        assert scores[definition.name] == pytest.approx(100 * values[definition.metric], abs=2e-4), definition.name


def encode_column(encoder: BenchmarkEncoder, task: str, texts: list[str], role: PromptType | None = None) -> np.ndarray:
    loader = DataLoader(Dataset.from_dict({"text": texts}))
    metadata = mteb.get_task(task).metadata
    return encoder.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=role)


def test_every_text_is_encoded_once_and_comes_back_in_its_place(model: SentenceTransformer) -> None:
    texts = ["天气今明", "雨", "天气今明", "山川河海" * 9, "猫狗", "雨"]
    encoded = Encoded(model)
    encoder = BenchmarkEncoder(model, Identity("a/b", "0" * 40, "0" * 40), tokens_per_batch=12)

    found = encode_column(encoder, "STSB", texts)

    assert sorted(encoded.texts) == sorted(set(texts))
    assert np.allclose(found, model.encode(texts), atol=1e-6)


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Three threads to torch, for code that gives each of its own threads one: none runs an operation on several."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def test_batches_side_by_side_make_the_same_vectors(
    model: SentenceTransformer, three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["天地山川河海风雨云春夏秋冬猫狗鱼鸟"[: 1 + place % 17] * (1 + place % 3) for place in range(200)]
    texts = list(dict.fromkeys(texts))
    seen: set[tuple[str, int, int]] = set()  # thread, its threads, the address of its weights
    stock = SentenceTransformer.encode_document

    def encode(self: SentenceTransformer, *args: Any, **kwargs: Any) -> Any:
        weights = self[0].model.embeddings.word_embeddings.weight.data_ptr()
        seen.add((threading.current_thread().name, torch.get_num_threads(), weights))
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(SentenceTransformer, "encode_document", encode)
    model.model_card_data.trainer = threading.Lock()  # as a trainer, nothing to be copied
    encoder = BenchmarkEncoder(model, Identity("a/b", "0" * 40, "0" * 40), tokens_per_batch=40)

    found = encode_column(encoder, "T2Retrieval", texts, PromptType.document)

    torch.set_num_threads(1)
    assert len({thread for thread, _, _ in seen}) == 3
    assert {threads for _, threads, _ in seen} == {1} and len({weights for _, _, weights in seen}) == 1
    monkeypatch.undo()
    model.model_card_data.trainer = None
    assert np.allclose(found, model.encode_document(texts), atol=1e-6)


@pytest.mark.parametrize("interrupted", [False, True])
def test_whatever_ends_side_by_side_begins_no_more_batches_and_gives_the_threads_back(
    model: SentenceTransformer, three_threads: None, interrupted: bool
) -> None:
    done: list[int] = []

    def embed(model: SentenceTransformer, batch: list[int]) -> np.ndarray:
        done.append(batch[0])
        if batch == [3] and not interrupted:
            raise MemoryError("batch 3")
        time.sleep(0.01)
        return np.zeros((1, 2), dtype=np.float32)

    batches = [[row] for row in range(500)]
    with (
        pytest.raises(KeyboardInterrupt if interrupted else MemoryError),
        side_by_side(model, embed, lanes=3) as embed_all,
    ):
        if interrupted:
            parts = embed_all(batches)  # kept, as the traceback of an interrupt keeps what it ended
            next(parts)
            raise KeyboardInterrupt
        share_batches(batches, embed_all, len(batches))

    assert 1 <= len(done) < 100
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3, "threads to come begin with the number of a lane"


def test_what_is_remembered_of_queries_is_not_taken_for_documents(model: SentenceTransformer) -> None:
    model.prompts = {}
    texts = ["天气今明" * 8]  # longer than a query, shorter than a document
    encoder = BenchmarkEncoder(model, Identity("a/b", "0" * 40, "0" * 40), remember=True)

    query, document, again = (
        encode_column(encoder, "T2Retrieval", texts, role)
        for role in (PromptType.query, PromptType.document, PromptType.query)
    )

    assert np.allclose(query, model.encode_query(texts), atol=1e-6)
    assert np.allclose(document, model.encode_document(texts), atol=1e-6)
    assert not np.allclose(query, document, atol=1e-3) and np.array_equal(query, again)


def test_a_row_that_is_no_text_is_named(model: SentenceTransformer) -> None:
    encoder = BenchmarkEncoder(model, Identity("a/b", "0" * 40, "0" * 40))

    with pytest.raises(InputError, match=r"STSB, split 'test': row 1 must be a text, got None"):
        encode_column(encoder, "STSB", ["天", None])  # type: ignore[list-item]


def test_truncations_are_scored_from_one_encoding(model: SentenceTransformer, tasks: Path, tmp_path: Path) -> None:
    encoded = Encoded(model)
    whole, _ = run(model, tasks, tmp_path / "whole")
    once = len(encoded.texts)
    encoded.texts.clear()

    evaluations = evaluate(model, str(tasks), output=tmp_path / "all", truncate_dim=[8, 16, 32])

    assert len(encoded.texts) == once
    assert [dict(evaluation.settings) for evaluation in evaluations] == [{"truncate_dim": 8}, {"truncate_dim": 16}, {}]
    assert evaluations[2].scores == whole
    (alone,) = evaluate(model, str(tasks), output=tmp_path / "all", truncate_dim=8)  # and one may stand for itself
    assert (alone.settings, alone.scores) == (evaluations[0].settings, evaluations[0].scores)
    model.truncate_dim = 8  # the same truncation as sentence-transformers does it
    truncated, _ = run(model, tasks, tmp_path / "alone")
    assert evaluations[0].scores == pytest.approx(truncated, abs=2e-4)
    assert evaluations[0].scores != pytest.approx(whole, abs=0.1)


def test_bfloat16_is_a_setting_of_the_same_revision(model: SentenceTransformer, tasks: Path, tmp_path: Path) -> None:
    revision = content_hash(model)

    (evaluation,) = evaluate(model, str(tasks), output=tmp_path, dtype="bfloat16")

    assert model.dtype == torch.bfloat16
    assert evaluation.identity.revision == revision
    assert evaluation.settings == {"dtype": "bfloat16"}
    assert evaluation.folder == tmp_path / "results/local__in-memory" / revision / "experiments/dtype_bfloat16"
    assert (evaluation.folder / "OwnSts.json").exists()


def test_an_embedding_that_is_not_finite_stops_and_names_the_text(
    model: SentenceTransformer, tasks: Path, tmp_path: Path
) -> None:
    identifier = model.tokenizer.convert_tokens_to_ids("狗")
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[identifier] = float("nan")

    with pytest.raises(
        InputError, match=r"OwnSearch, split 'test'.*the embedding of '[^']*狗[^']*' is not finite"
    ) as error:
        evaluate(model, str(tasks), output=tmp_path)

    assert "float32" in str(error.value)
    assert not list(tmp_path.rglob("OwnSearch.json"))


# --- what is kept and what is run again


def test_two_unnamed_models_never_share_a_result(
    make_model: Callable[..., SentenceTransformer], tasks: Path, tmp_path: Path
) -> None:
    first, second = make_model(), shift(make_model())

    scores = [run(model, tasks, tmp_path)[0] for model in (first, second)]

    assert all(scores[0][name] != scores[1][name] for name in ("OwnSearch", "OwnSts", "OwnGroups"))
    assert len({path.parent for path in tmp_path.rglob("OwnSts.json")}) == 2


def test_only_what_is_missing_or_torn_is_run(model: SentenceTransformer, tasks: Path, tmp_path: Path) -> None:
    before, _ = run(model, tasks, tmp_path)
    encoded = Encoded(model)

    after, outcomes = run(model, tasks, tmp_path)

    assert (after, encoded.texts) == (before, [])
    assert [outcome.task.name for outcome in outcomes] == list(SIX)
    assert all(outcome.seconds is None for outcome in outcomes)
    (missing,), (torn,) = (tmp_path.rglob(f"{name}.json") for name in ("OwnPairs", "OwnSts"))
    missing.unlink()
    torn.write_bytes(torn.read_bytes()[:200])

    after, outcomes = run(model, tasks, tmp_path)

    assert after == before
    again = {outcome.task.name: outcome.note for outcome in outcomes if outcome.seconds is not None}
    assert list(again) == ["OwnSts", "OwnPairs"] and not again["OwnPairs"]
    assert "could not be read and was set aside as OwnSts.json.unreadable-" in again["OwnSts"]
    assert len(list(torn.parent.glob("OwnSts.json.unreadable-*"))) == 1


def test_changed_data_is_another_task(
    model: SentenceTransformer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tasks = write_local_tasks(tmp_path_factory.mktemp("changing"))
    before, _ = run(model, tasks, tmp_path)
    lines = (tasks.parent / "sts.jsonl").read_text("utf-8").splitlines()
    (tasks.parent / "sts.jsonl").write_text("\n".join(lines[:20]) + "\n", "utf-8")

    after, outcomes = run(model, tasks, tmp_path)

    (again,) = [outcome for outcome in outcomes if outcome.seconds is not None]
    assert again.task.name == "OwnSts" and "the stored result is of data revision" in again.note
    assert after["OwnSts"] != before["OwnSts"]


def test_no_examples_stay_of_other_data_or_of_another_metric(
    model: SentenceTransformer,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = write_local_tasks(tmp_path_factory.mktemp("changing"))
    run(model, tasks, tmp_path)
    (path,) = tmp_path.rglob("examples/OwnSts.npz")
    arrays = per_example.load(path)
    per_example.save({"older/default": arrays["test/default"]}, path)
    lines = (tasks.parent / "sts.jsonl").read_text("utf-8").splitlines()
    (tasks.parent / "sts.jsonl").write_text("\n".join(lines[:20]) + "\n", "utf-8")
    run(model, tasks, tmp_path)
    assert set(per_example.load(path)) == {"test/default"}

    monkeypatch.setattr(per_example, "collect", lambda *_: {})  # as for a metric that is no mean over examples
    run(model, tasks, tmp_path, overwrite=True)
    assert not path.exists()


def test_overwriting_runs_everything_and_keeps_other_splits(
    model: SentenceTransformer, tasks: Path, tmp_path: Path
) -> None:
    before, _ = run(model, tasks, tmp_path)
    (path,) = tmp_path.rglob("OwnSts.json")
    content = json.loads(path.read_text("utf-8"))
    content["scores"]["older"] = content["scores"]["test"]
    path.write_text(json.dumps(content), "utf-8")

    after, outcomes = run(model, tasks, tmp_path, overwrite=True)

    assert after == before and all(outcome.seconds is not None for outcome in outcomes)
    assert set(json.loads(path.read_text("utf-8"))["scores"]) == {"test", "older"}


def test_a_killed_evaluation_goes_on_with_the_task_it_was_at(
    model: SentenceTransformer, tasks: Path, tmp_path: Path
) -> None:
    expected, _ = run(model, tasks, tmp_path / "whole")
    child = os.fork()
    if child == 0:  # killed in the encoding of the third task
        done: list[TaskOutcome] = []

        def die(*_: Any) -> None:
            if len(done) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        model[0].register_forward_hook(die)
        evaluate(model, str(tasks), output=tmp_path / "killed", on_task=done.append)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert {path.stem for path in (tmp_path / "killed").rglob("Own*.json")} == set(SIX[:2])

    scores, outcomes = run(model, tasks, tmp_path / "killed")

    assert scores == expected
    assert [outcome.task.name for outcome in outcomes if outcome.seconds is None] == list(SIX[:2])


def test_results_are_in_the_layout_that_mteb_reads(model: SentenceTransformer, tasks: Path, tmp_path: Path) -> None:
    scores, _ = run(model, tasks, tmp_path, name="sensenova/piccolo-test")

    cache = mteb.ResultCache(tmp_path)
    stored = cache.load_task_result("OwnSts", "sensenova/piccolo-test", content_hash(model))

    assert stored is not None
    assert 100 * stored.get_score() == pytest.approx(scores["OwnSts"])
    folder = tmp_path / "results/sensenova__piccolo-test" / content_hash(model)
    assert {"model_meta.json", "run_settings.jsonl", "OwnSearch.json"} <= {path.name for path in folder.iterdir()}


# --- several ranks


def _evaluate_on_a_rank(
    rank: int, world: int, source: str, tasks: str, output: str
) -> tuple[dict[str, float], int, int]:
    model = SentenceTransformer(source, device="cpu")
    encoded = Encoded(model)
    outcomes: list[TaskOutcome] = []
    (evaluation,) = evaluate(model, tasks, output=output, on_task=outcomes.append)
    return evaluation.scores, len(encoded.texts), len(outcomes)


def test_two_ranks_share_the_encoding_and_agree_with_one(
    model: SentenceTransformer, tasks: Path, tmp_path: Path
) -> None:
    model.save_pretrained(str(tmp_path / "model"))

    (alone,) = run_ranks(_evaluate_on_a_rank, 1, str(tmp_path / "model"), str(tasks), str(tmp_path / "one"))
    first, second = run_ranks(_evaluate_on_a_rank, 2, str(tmp_path / "model"), str(tasks), str(tmp_path / "two"))

    assert first[0] == second[0] == pytest.approx(alone[0], abs=2e-4)
    assert first[1] + second[1] == alone[1]  # every text once
    assert min(first[1], second[1]) > 0.3 * alone[1]
    assert (first[2], second[2]) == (6, 0)  # the main process reports


# --- names and what cannot be had


def test_names_become_groups_with_one_definition_each() -> None:
    first, selection = select(["c-mteb-35", "Clustering", "T2Retrieval", "STS22:zh-en"])

    assert first.benchmark.name == "c-mteb-35" and len(first.tasks) == 35
    names = [task.metadata.name for task in selection.tasks]
    assert names[-2:] == ["T2Retrieval", "STS22"] and len(names) == 6
    assert selection.tasks[-1].hf_subsets == ["zh-en"]
    multilingual = {task.metadata.name: (task.hf_subsets, list(task.eval_splits)) for task in first.tasks}
    assert multilingual["MassiveIntentClassification"] == (["zh-CN"], ["test"])
    assert multilingual["MultilingualSentiment"] == (["default"], ["validation"])


@pytest.mark.parametrize("names", [["STS22:zh", "STS22:zh-en"], ["STS", "STS22:zh-en"]])
def test_two_subsets_of_a_task_do_not_replace_each_other(names: list[str]) -> None:
    with pytest.raises(InputError, match=r"one subset of STS22, got 'zh' and 'zh-en'; evaluate them in two commands"):
        select(names)
    assert len(select(["STS", "STS22", "STS22:zh"])[0].tasks) == 8, "the same twice is one"


def test_no_network_says_what_to_do(
    model: SentenceTransformer, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "empty")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(InputError, match=r"the data of STSB \(mteb/STSB at revision e036.* the Hub cannot be reached"):
        evaluate(model, [str(tasks), "STSB"], output=tmp_path)

    assert len(list(tmp_path.rglob("Own*.json"))) == 6  # what was finished before is kept


def test_a_task_is_scored_by_one_process_until_that_is_killed(
    model: SentenceTransformer, tasks: Path, tmp_path: Path
) -> None:
    [first] = evaluate(model, str(tasks), output=tmp_path)
    (first.folder / "OwnSts.json").unlink()
    with forked(lambda: own(first.folder / ".OwnSts.owner", first.folder, "output")) as pid:
        start = time.monotonic()
        [second] = evaluate(model, str(tasks), output=tmp_path)
        assert time.monotonic() - start < 5
        assert set(second.failures) == {"OwnSts"} and len(second.scores) == 5
        assert f"OwnSts.json is being written to by process {pid} on host" in second.failures["OwnSts"]
        kill(pid)
        [third] = evaluate(model, str(tasks), output=tmp_path)
    assert third.scores == first.scores and not third.failures
    assert not list(first.folder.glob(".*"))


def test_a_model_that_is_not_there(tmp_path: Path, tasks: Path) -> None:
    with pytest.raises(InputError, match=r"the model cannot be loaded, got 'nobody/nothing'"):
        evaluate("nobody/nothing", str(tasks), output=tmp_path)


def test_without_mteb_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "piccolo_st.evaluation.tasks")

    with pytest.raises(ImportError, match=r'evaluation on tasks needs mteb; run: pip install "piccolo_st\[eval\]"'):
        piccolo_st.evaluation.select  # noqa: B018
