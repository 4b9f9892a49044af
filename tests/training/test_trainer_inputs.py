"""What PiccoloTrainer and the collator are given: missing negatives, streams, model_init; and what comes out of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers.trainer_utils import HPSearchBackend

from piccolo_st import HomogeneousBatchSampler, PiccoloDataCollator, PiccoloLoss, PiccoloTrainer
from piccolo_st.batches import list_missing
from piccolo_st.errors import InputError
from piccolo_st.evaluation import RetrievalEvaluator
from piccolo_st.losses import DistillationLoss, OwnNegativesLoss
from piccolo_st.modeling import packs
from piccolo_st.modeling.packed.dropout import FastDropout
from piccolo_st.training.metrics import Meter
from piccolo_st.training.training_arguments import PiccoloTrainingArguments
from tests.conftest import CHARACTERS
from tests.helpers.ranks import run_ranks

ROWS = 16
TEXTS = [CHARACTERS[2 * row : 2 * row + 3 + row % 4] for row in range(2 * ROWS)]
SOME = [TEXTS[ROWS + row] if row % 3 == 1 else None for row in range(ROWS)]  # row 0, which ST looks at, has none
FULL = {"query": TEXTS[:ROWS], "positive": TEXTS[1 : ROWS + 1]}


def arguments(kind: type, folder: Any, **settings: Any) -> Any:
    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 1}
    defaults |= {"learning_rate": 1e-4, "warmup_steps": 0, "lr_scheduler_type": "constant", "weight_decay": 0.0}
    fixed = {"report_to": "none", "disable_tqdm": True}
    return kind(output_dir=str(folder), **fixed, **{**defaults, **settings})


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train(make_model: Callable[..., Any], data: Any, folder: Any, stock: bool = False, **settings: Any) -> list[float]:
    model = make_model()
    if stock:
        trainer = SentenceTransformerTrainer(
            model,
            arguments(SentenceTransformerTrainingArguments, folder, **settings),
            train_dataset=data,
            loss=PiccoloLoss(model),
            data_collator=PiccoloDataCollator(model.preprocess),
        )
    else:
        trainer = PiccoloTrainer(
            model, arguments(PiccoloTrainingArguments, folder, **settings), train_dataset=data, loss=PiccoloLoss(model)
        )
    return losses(trainer)


def test_scores_reach_the_loss_through_the_trainer(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """Ragged negatives of which one is drawn a visit; weights go another way than without the teacher."""
    negatives = [TEXTS[row : row + row % 3] for row in range(ROWS)]
    labels = [[5.0, *(float(place) for place in range(len(texts)))] for texts in negatives]
    data = Dataset.from_dict({**FULL, "negative": negatives, "label": labels})
    found = []
    for weight in (1.0, 50.0):
        model = make_model()
        loss = DistillationLoss(model, {"weight": weight, "temperature": 1.0})
        settings = arguments(PiccoloTrainingArguments, tmp_path / f"{weight:g}")
        trainer = PiccoloTrainer(model, settings, train_dataset=data, loss=loss)
        trainer.data_collator.num_negatives = 1
        found.append(losses(trainer))
    assert all(np.isfinite(found[0])) and all(high > low for low, high in zip(*found, strict=True))


# Missing negatives

MISSING = {
    "one column": {"negative": SOME},
    "numbered columns": {"negative_1": TEXTS[ROWS:], "negative_2": SOME},
    "a column of lists": {"negative": [None if text is None else [text, TEXTS[0]] for text in SOME]},
    "lists that miss texts": {"negative": [[TEXTS[3], text] for text in SOME]},
}


def as_lists(negatives: dict[str, list[Any]]) -> dict[str, list[list[str]]]:
    """What the columns mean, written without any None."""

    def texts(cell: Any) -> list[str]:
        return [text for text in (cell if isinstance(cell, list) else [cell]) if text is not None]

    return {name: [texts(cell) for cell in cells] for name, cells in negatives.items()}


@pytest.mark.parametrize("way", MISSING)
def test_missing_negatives_train_like_empty_lists(make_model: Callable[..., Any], tmp_path: Path, way: str) -> None:
    data = Dataset.from_dict({**FULL, **MISSING[way]})
    expected = train(make_model, Dataset.from_dict({**FULL, **as_lists(MISSING[way])}), tmp_path, stock=True)
    assert train(make_model, data, tmp_path) == pytest.approx(expected, rel=1e-4)
    assert train(make_model, list_missing(data), tmp_path, stock=True) == expected
    assert train(make_model, DatasetDict(faq=list_missing(data)), tmp_path) == pytest.approx(
        train(make_model, DatasetDict(faq=data), tmp_path), rel=1e-6
    )
    assert data[0]["query"] == TEXTS[0] and data.format["type"] is None  # the caller's dataset is as it was


def test_missing_negatives_are_evaluated(make_model: Callable[..., Any], tmp_path: Path) -> None:
    data = DatasetDict(faq=Dataset.from_dict({**FULL, "negative": SOME}))
    model = make_model()
    trainer = PiccoloTrainer(
        model,
        arguments(PiccoloTrainingArguments, tmp_path, prompts={"query": "查询："}),
        train_dataset=data,
        eval_dataset=data["faq"],
        loss=PiccoloLoss(model),
    )
    first = trainer.evaluate()["eval_loss"]
    assert first == pytest.approx(trainer.evaluate(data["faq"])["eval_loss"]) and first > 0


@pytest.mark.parametrize("setting", [{"prompts": {"query": "查询："}}, {"router_mapping": {"query": "query"}}])
def test_a_collator_that_lacks_what_the_arguments_have_is_refused(
    setting: dict[str, Any], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    model, [(name, value)] = make_model(), setting.items()
    given = {"train_dataset": Dataset.from_dict(FULL), "loss": PiccoloLoss(model)}
    args = arguments(PiccoloTrainingArguments, tmp_path, **setting)
    for kind in (PiccoloDataCollator, SentenceTransformerDataCollator):
        with pytest.raises(
            InputError, match=rf"the {name} of the arguments.*; give {kind.__name__} {name}=args.{name}"
        ):
            PiccoloTrainer(model, args, data_collator=kind(model.preprocess), **given)
        assert PiccoloTrainer(model, args, data_collator=kind(model.preprocess, **setting), **given)
    assert getattr(PiccoloTrainer(model, args, **given).data_collator, name) == value


def test_list_missing_follows_a_transform_and_leaves_whole_datasets_alone() -> None:
    data = Dataset.from_dict({**FULL, "negative": SOME, "label": [None, *range(ROWS - 1)]})
    changed = list_missing(data.with_transform(lambda rows: {**rows, "query": [text * 2 for text in rows["query"]]}))
    assert changed[0]["negative"] == [] and changed[1]["negative"] == [SOME[1]] and changed[0]["query"] == TEXTS[0] * 2
    assert changed[0]["label"] is None
    assert pickle.loads(pickle.dumps(list_missing(data)))[1]["negative"] == [SOME[1]]
    whole = Dataset.from_dict(FULL)
    assert list_missing(whole) is whole and list_missing("no dataset") == "no dataset"
    both = DatasetDict(one=whole)
    assert list_missing(both) is both


@pytest.mark.parametrize("column", ["query", "positive"])
def test_a_row_without_query_or_positive_is_named(make_model: Callable[..., Any], tmp_path: Path, column: str) -> None:
    texts = [*FULL[column][:-2], None, FULL[column][-1]]
    data = DatasetDict(faq=Dataset.from_dict({**FULL, column: texts}))
    message = rf"each row of dataset 'faq' must have a text in column '{column}', got None in 1 of 16 rows, .*row 14"
    with pytest.raises(InputError, match=message):
        train(make_model, data, tmp_path)
    kept = DatasetDict(faq=data["faq"].select(range(14)))
    assert list_missing(kept) is kept  # the row that misses it is not among these


def _ranks(rank: int, world: int, make_model: Callable[..., Any], negatives: Any, folder: str) -> list[float]:
    return train(make_model, Dataset.from_dict({**FULL, **negatives}), folder, per_device_train_batch_size=1)


@pytest.mark.parametrize("way", ["one column", "numbered columns"])
def test_a_rank_whose_rows_miss_their_negatives_goes_on_with_the_others(
    make_model: Callable[..., Any], tmp_path: Path, way: str
) -> None:
    """A batch of one row: at each step one rank has a negative, or several, that the other has not."""
    first, second = run_ranks(_ranks, 2, make_model, MISSING[way], str(tmp_path), timeout=120)
    assert len(first) == 4 and first == second and all(np.isfinite(first))


@pytest.mark.parametrize("bad", [None, "财经"])
def test_a_label_that_is_no_number_is_named(make_model: Callable[..., Any], bad: Any) -> None:
    rows = [{"query": "a", "positive": "b", "label": label} for label in (1.0, bad)]
    message = rf"row 1 of the batch must have a number as its 'label', got {bad!r}; drop .*class_encode_column"
    with pytest.raises(InputError, match=message):
        PiccoloDataCollator(make_model().preprocess)(rows)


def test_a_static_model_trains_and_is_watched_as_in_sts_trainer(encoder_dir: Path, tmp_path: Path) -> None:
    """70 rows, more than alignment looks at, and with fewer tokens in some than in others."""
    from tests.losses.test_first_modules import static

    texts = [CHARACTERS[row : row + 2 + row % 5] for row in range(71)]
    data = Dataset.from_dict({"query": texts[:70], "positive": texts[1:]})
    settings = {"per_device_train_batch_size": 70}
    expected = train(lambda: static(encoder_dir), data, tmp_path, stock=True, **settings)
    assert train(lambda: static(encoder_dir), data, tmp_path, **settings) == pytest.approx(expected, rel=1e-5)


# Streams


def test_a_stream_trains_as_in_sts_trainer_and_goes_on(make_model: Callable[..., Any], tmp_path: Path) -> None:
    def stream() -> Any:
        return Dataset.from_dict({**FULL, "negative": TEXTS[ROWS:]}).to_iterable_dataset()

    expected = train(make_model, stream(), tmp_path / "stock", stock=True)
    settings = {"save_strategy": "steps", "save_steps": 2, "batch_sampler": HomogeneousBatchSampler}
    assert train(make_model, stream(), tmp_path, **settings) == pytest.approx(expected, rel=1e-3)
    whole = train(
        make_model, stream(), tmp_path / "half", **{**settings, "max_steps": 2, "lr_scheduler_type": "constant"}
    )
    longer = {**settings, "accept_changes": True, "lr_scheduler_type": "constant"}
    assert train(make_model, stream(), tmp_path / "half", **longer)[:2] == whole
    assert train(make_model, stream(), tmp_path / "whole", **longer) == pytest.approx(
        train(make_model, stream(), tmp_path / "half", **longer), rel=1e-6
    )


def _stream(rank: int, world: int, make_model: Callable[..., Any], folder: str, settings: Any) -> list[float]:
    return train(make_model, Dataset.from_dict(FULL).to_iterable_dataset(), folder, **settings)


def test_ranks_read_a_stream_by_themselves_or_not_at_all(make_model: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(
        Exception, match=r"streamed train_dataset under 2 processes needs .*\"dispatch_batches\": False"
    ):
        run_ranks(_stream, 2, make_model, str(tmp_path), {}, timeout=120)
    alone = {"accelerator_config": {"dispatch_batches": False}, "max_steps": 2}
    first, second = run_ranks(_stream, 2, make_model, str(tmp_path), alone, timeout=120)
    assert len(first) == 2 and first == second


# model_init and hyperparameter search


def _search(kind: type, argument_kind: type, make_model: Callable[..., Any], folder: Path) -> Any:
    """What transformers' search with optuna does for each trial, without optuna, which is no dependency here."""
    trainer = kind(
        args=arguments(argument_kind, folder, save_strategy="steps", save_steps=2),
        train_dataset=Dataset.from_dict(FULL),
        loss=lambda model: PiccoloLoss(model),
        model_init=lambda trial=None: make_model(dropout=False),
    )
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, None
    trainer.hp_space = lambda trial: trial.params
    found = []
    for number, rate in enumerate((1e-5, 1e-3)):
        trainer.train(resume_from_checkpoint=None, trial=SimpleNamespace(number=number, params={"learning_rate": rate}))
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        model, trainer.model, trainer.model_wrapped = trainer.model, None, None
    return found, model


def test_a_search_over_learning_rates_gives_what_sts_trainer_gives(
    make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    expected, _ = _search(
        SentenceTransformerTrainer, SentenceTransformerTrainingArguments, make_model, tmp_path / "stock"
    )
    for _ in range(2):  # again in the same place: a trial never goes on from one of an earlier search
        found, model = _search(PiccoloTrainer, PiccoloTrainingArguments, make_model, tmp_path / "ours")
        assert packs(model) and any(isinstance(module, FastDropout) for module in model.modules())
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-2)
    assert found[0] != found[1]
    rates = []
    for number in range(2):
        folder = tmp_path / "ours" / f"run-{number}" / "checkpoint-4"
        assert (tmp_path / "stock" / f"run-{number}" / "checkpoint-4").is_dir() and folder.is_dir()
        rates += [
            float(line.split(":")[1].strip(" ,"))
            for line in (folder / "manifest.json").read_text().splitlines()
            if '"train.learning_rate"' in line
        ]
    assert rates == [1e-5, 1e-3]


# A loss that is 0


def test_a_dataset_that_teaches_nothing_is_refused(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = make_model()
    data = DatasetDict(faq=Dataset.from_dict({**FULL, "negative": SOME}), classes=Dataset.from_dict(FULL))
    loss = {name: OwnNegativesLoss(model) for name in data}
    trainer = PiccoloTrainer(model, arguments(PiccoloTrainingArguments, tmp_path), train_dataset=data, loss=loss)
    with pytest.raises(InputError, match=r"dataset 'classes', OwnNegativesLoss, .* no row has one; give it a column"):
        trainer.train()
    with pytest.raises(InputError, match=r"dataset 'train', PiccoloLoss, .* of all processes has 1; raise the batch"):
        train(make_model, Dataset.from_dict(FULL), tmp_path, per_device_train_batch_size=1)


def test_a_loss_that_stays_zero_is_told_once(
    make_model: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    data = DatasetDict(faq=Dataset.from_dict({**FULL, "negative": TEXTS[ROWS:]}), idle=Dataset.from_dict(FULL))
    loss = {"faq": PiccoloLoss(model), "idle": MultipleNegativesRankingLoss(model)}
    settings = arguments(PiccoloTrainingArguments, tmp_path, max_steps=90, per_device_train_batch_size=1)
    PiccoloTrainer(model, settings, train_dataset=data, loss=loss).train()
    (line,) = (record.getMessage() for record in caplog.records if "teaches nothing" in record.getMessage())
    assert "dataset 'idle' teaches nothing: its loss was exactly 0 in its last 20 micro-steps" in line
    assert "check its columns, loss and batch size" in line


def test_one_loss_that_is_not_zero_begins_the_count_anew() -> None:
    meter = Meter()
    for loss in [0.0] * 19 + [1e-30] + [0.0] * 19:
        meter.add_loss("faq", torch.tensor(loss))
        assert meter.newly_idle() == []
    meter.add_loss("faq", torch.tensor(0.0))
    assert meter.newly_idle() == ["faq"] and meter.newly_idle() == []


# What comes out


@pytest.fixture
def trained(make_model: Callable[..., Any], tmp_path: Path) -> PiccoloTrainer:
    model = make_model(dropout=True)
    loss = PiccoloLoss(model)
    data = Dataset.from_dict(FULL)
    trainer = PiccoloTrainer(model, arguments(PiccoloTrainingArguments, tmp_path), train_dataset=data, loss=loss)
    trainer.train()
    assert packs(trainer.model)  # with the defaults on a CPU
    return trainer


def test_what_a_loss_reads_keeps_its_precision_under_deepspeed(
    trained: PiccoloTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers casts every float of a batch to the engine's dtype; 7.53 would be 7.53125 in bfloat16."""
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(trained, "is_deepspeed_enabled", True)
    monkeypatch.setattr(trained, "accelerator", SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)))
    kept = ("label", "positive_score", "query_guide", "query_teacher")
    batch = {name: torch.tensor([7.53]) for name in (*kept, "other")}
    found = trained._prepare_input({**batch, "query_input_ids": torch.tensor([[1]])})
    assert {name: value.dtype for name, value in found.items()} == {
        **dict.fromkeys(kept, torch.float32),
        "other": torch.bfloat16,
        "query_input_ids": torch.int64,
    }
    assert found["positive_score"].item() == batch["positive_score"].item()


def test_a_trained_model_pickles_and_copies(trained: PiccoloTrainer) -> None:
    expected = trained.model.encode(TEXTS)
    for model in (pickle.loads(pickle.dumps(trained.model)), copy.deepcopy(trained.model)):
        assert packs(model)
        assert (model.encode(TEXTS) == expected).all()
    for part in (trained.loss, trained.data_collator):
        assert type(pickle.loads(pickle.dumps(part))) is type(part) is type(copy.deepcopy(part))


@pytest.mark.slow
def test_a_trained_model_encodes_in_two_processes(trained: PiccoloTrainer) -> None:
    expected = trained.model.encode(TEXTS)
    found = trained.model.encode(TEXTS, device=["cpu", "cpu"], chunk_size=4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_run_trains_the_same_with_and_without_evaluations(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """So a run that was cut short, with an evaluation at its end, goes on as if it had not been."""
    search = {"queries": {"q": TEXTS[0]}, "corpus": {"d": TEXTS[1], "e": TEXTS[5]}, "relevant": {"q": ["d"]}}

    def run(name: str, **settings: Any) -> list[float]:
        model = make_model(dropout=True)
        trainer = PiccoloTrainer(
            model,
            arguments(PiccoloTrainingArguments, tmp_path / name, **settings),
            train_dataset=Dataset.from_dict(FULL),
            loss=PiccoloLoss(model),
            evaluator=RetrievalEvaluator(**search) if settings else None,
        )
        found = losses(trainer)
        assert sum("eval_ndcg@10" in entry for entry in trainer.state.log_history) == (4 if settings else 0)
        return found

    assert run("without") == run("with", eval_strategy="steps", eval_steps=1)


def test_one_loss_over_several_datasets_knows_whose_a_batch_is(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """ST names the batches of a DatasetDict only for losses or prompts by dataset: limits and log lacked the name."""
    model, data = make_model(), DatasetDict({"a": Dataset.from_dict(FULL), "b": Dataset.from_dict(FULL)})
    limits = {"a": {"query": 3, "document": 3}, "b": {"query": 4, "document": 4}}
    collator = PiccoloDataCollator(model.preprocess, max_length=limits)
    settings = arguments(
        PiccoloTrainingArguments, tmp_path, multi_dataset_batch_sampler=HomogeneousBatchSampler, logging_steps=4
    )
    trainer = PiccoloTrainer(model, settings, train_dataset=data, loss=PiccoloLoss(model), data_collator=collator)
    widths = {batch["dataset_name"]: batch["query_input_ids"].shape[1] for batch in trainer.get_train_dataloader()}
    assert widths == {"a": 3, "b": 4}
    trainer.train()
    assert {name for entry in trainer.state.log_history for name in entry if name.startswith("loss_")} == {
        "loss_a", "loss_b",
    }  # fmt: skip
    assert trainer._row("b", 1)["query"] == FULL["query"][1]


def test_a_batch_without_a_name_says_that_limits_by_name_do_nothing(
    make_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    collator = PiccoloDataCollator(make_model().preprocess, phrasings={"a": {"query": ["问："]}})
    row = {"query": TEXTS[0], "positive": TEXTS[1]}
    with caplog.at_level("WARNING"):
        collator([{**row, "dataset_name": "a"}])
        assert not caplog.text
        collator([row])
    assert "phrasings of PiccoloDataCollator is given for datasets by name (a) and does nothing for a" in caplog.text


def test_an_evaluation_needs_no_rows_for_an_optimizer_step(make_model: Callable[..., Any], tmp_path: Path) -> None:
    sampler = partial(HomogeneousBatchSampler, accumulation_steps=2)
    settings = arguments(PiccoloTrainingArguments, tmp_path, batch_sampler=sampler, gradient_accumulation_steps=2)
    model, few = make_model(), Dataset.from_dict(FULL).select(range(6))
    trainer = PiccoloTrainer(
        model, settings, train_dataset=Dataset.from_dict(FULL), eval_dataset=few, loss=PiccoloLoss(model)
    )
    assert [len(batch["query_text_id"]) for batch in trainer.get_eval_dataloader()] == [6]
    assert len(trainer.get_train_dataloader()) == 4
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("kind", [PiccoloTrainer, SentenceTransformerTrainer])
def test_both_samplers_keep_the_last_rows(kind: Any, make_model: Callable[..., Any], tmp_path: Path) -> None:
    """check_dataloader advises to set both; the inner ones' drop_last, which is for accelerate, dropped the tails."""
    settings = arguments(
        PiccoloTrainingArguments if kind is PiccoloTrainer else SentenceTransformerTrainingArguments, tmp_path,
        batch_sampler=HomogeneousBatchSampler, multi_dataset_batch_sampler=HomogeneousBatchSampler,
    )  # fmt: skip
    model = make_model()
    data = DatasetDict({name: Dataset.from_dict(FULL).select(range(6)) for name in ("a", "b")})
    trainer = kind(
        model, settings, train_dataset=data, loss=PiccoloLoss(model),
        data_collator=PiccoloDataCollator(model.preprocess),
    )  # fmt: skip
    assert not trainer.get_train_dataloader().batch_sampler.plan.drop_last
