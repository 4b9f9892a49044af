"""The hybrid: each task's loss with its weight, against references written out, and all of it in ST's trainer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from piccolo_st import HomogeneousBatchSampler, PiccoloDataCollator
from piccolo_st.losses import (
    OwnNegativesLoss,
    PiccoloLoss,
    ScoredPairsLoss,
    SINCERELoss,
    build_losses,
    scale_dimension,
)
from piccolo_st.losses.hybrid import WeightedLoss
from piccolo_st.modeling import ONNX_READERS, check_portable, save_portable

TEXTS = ["今天下雨", "明天天气好", "猫", "大狗和小猫", "红黄蓝绿", "山川河海"]


def columns(model: Any, owners: list[int]) -> list[dict[str, torch.Tensor]]:
    features = [dict(model.preprocess(TEXTS[:3])), dict(model.preprocess(TEXTS[3:]))]
    if owners:
        negatives = dict(model.preprocess([TEXTS[(2 * i + 1) % 6] for i in range(len(owners))]))
        features.append({**negatives, "owner": torch.tensor(owners)})
    return features


@pytest.mark.parametrize("owners", [[0, 0, 2], [1], []])
def test_own_negatives_are_the_softmax_written_out(make_model: Callable[..., Any], owners: list[int]) -> None:
    model = make_model().double()
    features = columns(model, owners)
    loss = OwnNegativesLoss(model, temperature=0.07)(features)
    embedded = [torch.nn.functional.normalize(model(dict(f))["sentence_embedding"], dim=-1) for f in features]
    expected = []
    for i in range(3):
        scores = [embedded[0][i] @ embedded[1][i]]
        scores += [embedded[0][i] @ embedded[2][k] for k, owner in enumerate(owners) if owner == i]
        scores = torch.stack(scores) / 0.07
        expected.append(torch.logsumexp(scores, 0) - scores[0])
    reference = torch.stack(expected).mean()
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=1e-12)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(reference, parameters, allow_unused=True)
    assert any(w is not None and w.abs().max() > 1e-6 for w in wanted) or not owners, "nothing to compare"
    for one, other in zip(found, wanted, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_scored_pairs_equal_st(make_model: Callable[..., Any]) -> None:
    model = make_model().double()
    features, scores = columns(model, []), torch.tensor([0.2, 0.9, 0.2])
    expected = CoSENTLoss(model, scale=10.0)([dict(f) for f in features], scores)
    features[0]["text_id"] = torch.arange(3)  # the loss's own key, which no model may see
    loss = ScoredPairsLoss(model, temperature=0.1, chunk_tokens=8)
    torch.testing.assert_close(loss(features, scores), expected, rtol=1e-10, atol=1e-12)
    assert expected > 1e-3
    assert loss.get_config_dict()["chunk_tokens"] == 8
    for labels in (None, scores[:2]):
        with pytest.raises(ValueError, match=r"two columns of texts and a score for each row, got 2 columns, 3 rows"):
            loss(features, labels)


def test_labelled_classes_take_the_options_of_retrieval(make_model: Callable[..., Any]) -> None:
    model = make_model()
    tasks = {"a": ("classification", {"labelled": True}), "b": ("classification", {}), "c": ("retrieval", {})}
    losses = build_losses(model, tasks, temperature=0.01, mini_batch_size=3, directions=["query_to_doc"])
    assert isinstance(losses["a"], SINCERELoss) and not isinstance(losses["c"], SINCERELoss)
    assert (losses["a"].temperature, losses["a"].mini_batch_size) == (0.05, 3)
    assert isinstance(losses["b"], WeightedLoss) and isinstance(losses["b"].loss, OwnNegativesLoss)
    weighted = build_losses(model, {"a": ("clustering", {"labelled": True, "weight": 0.5, "temperature": 0.1})})["a"]
    assert (weighted.weight, weighted.loss.temperature) == (0.5, 0.1)
    with pytest.raises(ValueError, match=r"loss of dataset 'a': unknown key 'labelled'; known are chunk_tokens, temp"):
        build_losses(model, {"a": ("sts", {"labelled": True})})


def test_a_dense_layer_scales_the_dimension(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = make_model().double()
    scale_dimension(model, 56)
    scale_dimension(model, 56)  # once is enough
    assert (len(model), model.get_embedding_dimension()) == (3, 56)
    loss = build_losses(model, {"a": "retrieval"}, matryoshka_dims=[56, 28])["a"]
    assert isinstance(loss, MatryoshkaLoss)
    loss(columns(model, [0, 2]), None).backward()
    assert model[2].linear.weight.grad.norm() > 0
    model.save(str(tmp_path))
    again = type(model)(str(tmp_path), device="cpu")
    scale_dimension(again, 56)
    assert len(again) == 3
    expected = model.encode(TEXTS)
    assert again.encode(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert expected.shape == (6, 56)
    with pytest.raises(ValueError, match=r"the dimension must be at least 1, got 0"):
        scale_dimension(model, 0)


def test_a_dense_layer_goes_before_the_normalize_of_a_published_model(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_model()
    named = {"transformer": made[0], "pooler": made[1], "normalizer": Normalize()}
    model = type(made)(modules=OrderedDict(named), device="cpu")
    assert list(dict(model.named_children())) == list(named), "as some repositories call theirs"
    for _ in range(2):  # once is enough
        scale_dimension(model, 64)
    assert [type(module) for module in model] == [type(made[0]), type(made[1]), Dense, Normalize]
    loss = build_losses(model, {"a": "retrieval"}, matryoshka_dims=[64, 32])["a"]
    loss(columns(model, [0, 2]), None).backward()
    assert model[2].linear.weight.grad.norm() > 0
    save_portable(model, tmp_path)
    plain = type(model)(str(tmp_path), device="cpu")
    vectors = plain.encode(TEXTS)
    assert vectors.shape == (6, 64)
    assert vectors == pytest.approx(model.encode(TEXTS), abs=1e-6)
    assert (vectors**2).sum(axis=1) == pytest.approx([1.0] * 6, abs=1e-5)
    reports = [report for report in check_portable(tmp_path) if report.consumer not in ONNX_READERS]
    assert not [problem for report in reports for problem in report.problems]
    scale_dimension(plain, 64)
    assert len(plain) == 4


def test_each_task_gets_its_loss_weight_and_temperature(make_model: Callable[..., Any]) -> None:
    model = make_model()
    tasks = {
        "search": "retrieval",
        "own": ("retrieval", {"temperature": 0.02, "weight": 0.5}),
        "graded": "sts",
        "equal": ("pair", {"temperature": 0.1, "weight": 1.0}),
        "topic": "classification",
    }
    losses = build_losses(model, tasks, temperature=0.03, directions=("query_to_doc",))
    assert list(losses) == list(tasks)
    assert isinstance(losses["search"], PiccoloLoss) and losses["search"].temperature == 0.03
    own = losses["own"]
    assert isinstance(own, WeightedLoss) and own.weight == 0.5 and own.loss.temperature == 0.02
    assert own.loss.directions == ("query_to_doc",)
    graded = losses["graded"]
    assert isinstance(graded, WeightedLoss) and isinstance(graded.loss, CoSENTLoss)
    assert (graded.weight, graded.loss.scale) == (0.04, pytest.approx(20.0))
    assert isinstance(losses["equal"], CoSENTLoss) and losses["equal"].scale == pytest.approx(10.0)
    topic = losses["topic"]
    assert isinstance(topic.loss, OwnNegativesLoss) and (topic.weight, topic.loss.temperature) == (0.2, 0.05)


def test_every_loss_cuts_its_passes_at_the_tokens_of_all(make_model: Callable[..., Any]) -> None:
    tasks = {
        "pairs": "retrieval",
        "graded": "sts",
        "topics": "classification",
        "labels": ("classification", {"labelled": True}),
    }
    losses = build_losses(make_model(), tasks, chunk_tokens=64)
    inner = {
        name: getattr(loss, "loss", loss) if isinstance(loss, WeightedLoss) else loss for name, loss in losses.items()
    }
    assert {name: loss.chunk_tokens for name, loss in inner.items()} == dict.fromkeys(tasks, 64)


def test_the_weight_scales_the_loss(make_model: Callable[..., Any]) -> None:
    model = make_model()
    plain, weighted = OwnNegativesLoss(model), WeightedLoss(OwnNegativesLoss(model), 0.25)
    features = columns(model, [0, 1, 2])
    torch.testing.assert_close(weighted(features), plain(features) * 0.25)


def test_all_tasks_alternate_in_the_stock_trainer(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model = make_model(dropout=True)
    words = [a + b for a in "天地人山川" for b in "红黄蓝绿白"][:24]
    data = DatasetDict(
        search=Dataset.from_dict({"query": words, "positive": words[::-1]}),
        ragged=Dataset.from_dict(
            {"query": words, "positive": words[::-1], "negative": [words[: i % 3] for i in range(24)]}
        ),
        graded=Dataset.from_dict({"sentence1": words, "sentence2": words[::-1], "label": [i / 24 for i in range(24)]}),
        topic=Dataset.from_dict(
            {"query": words, "positive": words[::-1], "negative": [words[i : i + 2] for i in range(24)]}
        ),
    )
    tasks = {"search": "retrieval", "ragged": "retrieval", "graded": "sts", "topic": "classification"}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=1,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        multi_dataset_batch_sampler=HomogeneousBatchSampler,
    )
    before = [p.detach().clone() for p in model.parameters()]
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        loss=build_losses(model, tasks, matryoshka_dims=[32, 8]),
        data_collator=PiccoloDataCollator(model.preprocess),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12 and all(loss == loss and loss > 0 for loss in losses)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ({}, {}, r"needs at least one dataset"),
        ({"a": "retreival"}, {}, r"loss of dataset 'a': the task must be one of retrieval, sts, .* got 'retreival'"),
        ({"a": ("sts", {"margin": 1})}, {}, r"dataset 'a': unknown key 'margin'; known are chunk_tokens, temper"),
        ({"a": ("retrieval", {"wieght": 1})}, {}, r"dataset 'a': unknown key 'wieght'; did you mean weight\?"),
        ({"a": ("sts", {"weight": 0})}, {}, r"dataset 'a': weight must be a positive number, got 0"),
        ({"a": ("pair", {"weight": "high"})}, {}, r"dataset 'a': weight must be a positive number, got 'high'"),
        ({"a": ("clustering", {"labeled": True})}, {}, r"dataset 'a': unknown key 'labeled'; did you mean labelled\?"),
        ({"a": ("classification", {"temperature": -1})}, {}, r"dataset 'a': temperature must be a positive number"),
        ({"a": "retrieval"}, {"matryoshka_dims": [64]}, r"dataset 'a': Dimensions in matryoshka_dims cannot exceed"),
    ],
)  # fmt: skip
def test_bad_settings_name_the_dataset(
    make_model: Callable[..., Any], tasks: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_losses(make_model(), tasks, **options)
