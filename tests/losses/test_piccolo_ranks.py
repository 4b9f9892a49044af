"""PiccoloLoss on real gloo ranks: values, gradients and trained weights equal those of one process."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import GlobalOrthogonalRegularizationLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.nn.parallel import DistributedDataParallel

from piccolo_st.losses import HardnessMode, MarginStrategy, PiccoloLoss
from tests.conftest import CHARACTERS
from tests.helpers.ranks import run_ranks
from tests.losses.reference import naive_loss

HAN = [character for character in dict.fromkeys(CHARACTERS) if "一" <= character <= "鿿"]
CACHING = [{}, {"mini_batch_size": 2}, {"mini_batch_num_tokens": 20}]


def text(number: int) -> str:
    """A text of 1 to 12 characters; equal numbers, equal texts."""
    return "".join(HAN[(number * 7 + 13 * k * k) % len(HAN)] for k in range(1 + number * 5 % 12))


def load(path: str) -> SentenceTransformer:
    transformer = Transformer(path)
    return SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")], device="cpu"
    )


# Rows of the global batch: query, positive, hard negatives. Rows 1 and 6 ask the same, rows 2 and 5 have one positive,
# a hard negative of row 4 is row 0's positive, and row 7's positive is row 3's query: on 2 and on 4 ranks these meet
# across ranks.
ROWS = [
    (0, 20, [40, 41]),
    (1, 21, []),
    (2, 22, []),
    (3, 23, []),
    (4, 24, [20, 42, 43]),
    (5, 22, [44]),
    (1, 26, []),
    (7, 3, [45, 46]),
]


def features(model: Any, rows: list[tuple[int, int, list[int]]]) -> list[dict[str, Any]]:
    """As the collator makes them: a ragged column that no row of the rank fills is left out."""
    columns = [[text(row[0]) for row in rows], [text(row[1]) for row in rows]]
    owner = [index for index, row in enumerate(rows) for _ in row[2]]
    if owner:
        columns.append([text(number) for row in rows for number in row[2]])
    batch = [dict(model.preprocess(column)) for column in columns]
    if owner:
        batch[2]["owner"] = torch.tensor(owner)
    return batch


def share(rank: int, sizes: tuple[int, ...]) -> list[tuple[int, int, list[int]]]:
    first = sum(sizes[:rank])
    return ROWS[first : first + sizes[rank]]


def one_step(rank: int, world: int, path: str, sizes: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
    model = load(path).double()
    batch = features(model, share(rank, sizes))
    loss = PiccoloLoss(model, temperature=0.05, **settings)
    if world > 1:
        loss.model = DistributedDataParallel(model, find_unused_parameters=True)
    values = []
    for _ in range(2):  # a second step meets DistributedDataParallel's state after the first
        model.zero_grad()
        value = loss(batch, None)
        value.backward()
        values.append(value.item())
    with torch.no_grad():
        evaluated = loss(batch, None).item()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"values": [*values, evaluated], "gradient": gradient, "statistics": loss.pop_statistics()}


@pytest.mark.parametrize("settings", [*CACHING, {"chunk_tokens": 12}, {"chunk_tokens": None}])
@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2), (5, 3)])
def test_the_gradient_is_that_of_the_global_batch(
    encoder_dir_no_dropout: Path, sizes: tuple[int, ...], settings: dict[str, Any]
) -> None:
    """Ranks with other numbers of rows, hard negatives (none on rank 1 of 4) and chunks included."""
    path = str(encoder_dir_no_dropout)
    (alone,) = run_ranks(one_step, 1, path, (8,), settings)
    results = run_ranks(one_step, len(sizes), path, sizes, settings, timeout=60)
    assert alone["gradient"].norm() > 1e-3
    for step in range(3):
        mean = sum(result["values"][step] for result in results) / len(sizes)
        assert mean == pytest.approx(alone["values"][step], rel=1e-12)
    for result in results:
        assert (result["gradient"] - alone["gradient"]).norm() <= 1e-10 * alone["gradient"].norm()
    masked = sum(result["statistics"]["masked_duplicates"] * size for result, size in zip(results, sizes, strict=True))
    assert masked / 8 == pytest.approx(alone["statistics"]["masked_duplicates"])
    assert masked > 8


class Given(torch.nn.Module):
    """A model that was handed its embeddings."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features


def random_case(seed: int, world: int) -> dict[str, Any]:
    """Embeddings of every rank with owners, texts that repeat across ranks, and settings."""
    choose = random.Random(seed)
    sizes = [choose.randint(1, 4) for _ in range(world)]
    owners = [[row for row in range(size) for _ in range(choose.choice([0, 0, 1, 3]))] for size in sizes]
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    texts = lambda count: [choose.randrange(3 * world) for _ in range(count)]  # noqa: E731
    return {
        "guides": [(draw(n, 3), draw(n, 3), draw(len(o), 3)) for n, o in zip(sizes, owners, strict=True)],
        "embeddings": [(draw(n, 5), draw(n, 5), draw(len(o), 5)) for n, o in zip(sizes, owners, strict=True)],
        "texts": [(texts(n), texts(n), texts(len(o))) for n, o in zip(sizes, owners, strict=True)],
        "owners": owners,
        "settings": {
            "temperature": choose.choice([0.02, 0.1]),
            "directions": (
                "query_to_doc",
                *(d for d in ("query_to_query", "doc_to_query", "doc_to_doc") if choose.random() < 0.5),
            ),
            "false_negative_margin": choose.choice([None, 0.2]),
            "hardness_mode": choose.choice(get_args(HardnessMode)),
            "hardness_strength": choose.choice([0.0, 9.0]),
            "focal_gamma": choose.choice([0.0, 0.5]),
            "guide": choose.choice([None, "guide"]),
            "guide_margin": choose.choice([0.0, 0.3]),
            "guide_margin_strategy": choose.choice(get_args(MarginStrategy)),
            "spread_weight": choose.choice([0.0, 1.0]),
            "spread_mean_weight": choose.choice([0.0, 2.0]),
        },
    }


def random_steps(rank: int, world: int, seeds: list[int]) -> list[tuple[float, list[torch.Tensor]]]:
    results = []
    for seed in seeds:
        case = random_case(seed, world)
        leaves = [x.requires_grad_() for x in case["embeddings"][rank]]
        columns = [
            {"sentence_embedding": x, "text_id": torch.tensor(t, dtype=torch.int64), "guide": g}
            for x, t, g in zip(leaves, case["texts"][rank], case["guides"][rank], strict=True)
        ]
        columns[2]["owner"] = torch.tensor(case["owners"][rank], dtype=torch.int64)
        loss = PiccoloLoss(Given(), **case["settings"])
        value = loss(columns if case["owners"][rank] else columns[:2], None)
        value.backward()
        results.append((value.item(), [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]))
    return results


@pytest.mark.parametrize("world", [1, 2, 4])
def test_random_batches_equal_the_naive_formula(world: int) -> None:
    seeds = list(range(100 * world, 100 * world + 25))
    results = run_ranks(random_steps, world, seeds)
    for number, seed in enumerate(seeds):
        case = random_case(seed, world)
        settings = dict(case["settings"])
        settings["margin"] = settings.pop("false_negative_margin")
        settings["hardness"] = settings.pop("hardness_mode"), settings.pop("hardness_strength")
        margin = settings.pop("guide_margin"), settings.pop("guide_margin_strategy")
        guides = [torch.cat([rank[kind] for rank in case["guides"]]) for kind in range(3)]
        settings["guide"] = None if settings["guide"] is None else (guides, *margin)
        spread = [settings.pop("spread_mean_weight"), settings.pop("spread_weight")]
        leaves = [[part.requires_grad_() for part in rank] for rank in case["embeddings"]]
        q, p, h = (torch.cat([rank[kind] for rank in leaves]) for kind in range(3))
        texts = [[text for rank in case["texts"] for text in rank[kind]] for kind in range(3)]
        starts = [sum(len(rank[0]) for rank in leaves[:r]) for r in range(world)]
        owner = [o + start for start, owners in zip(starts, case["owners"], strict=True) for o in owners]
        expected = naive_loss(q, p, h, owner, query_ids=texts[0], document_ids=texts[1] + texts[2], **settings)
        terms = GlobalOrthogonalRegularizationLoss(torch.nn.Identity(), aggregation="sum")
        for weight, term in zip(spread, terms.compute_loss_from_embeddings([q, p]).values(), strict=True):
            expected = expected + weight * term
        expected.backward()
        values = [results[rank][number][0] for rank in range(world)]
        assert sum(values) / world == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)
        for rank in range(world):
            for leaf, gradient in zip(leaves[rank], results[rank][number][1], strict=True):
                wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                # Averaging over the ranks divides by their number.
                assert (gradient / world - wanted).norm() <= 1e-12 * (1 + wanted.norm())


def on_its_own(rank: int, world: int, path: str) -> float:
    loss = PiccoloLoss(load(path), gather_across_devices=False)
    return loss(features(loss.model, share(rank, (4, 4))), None).item()


def test_without_gathering_each_rank_is_on_its_own(encoder_dir_no_dropout: Path) -> None:
    path = str(encoder_dir_no_dropout)
    loss = PiccoloLoss(load(path))
    expected = [loss(features(loss.model, share(rank, (4, 4))), None).item() for rank in range(2)]
    assert run_ranks(on_its_own, 2, path) == pytest.approx(expected)


def differ(rank: int, world: int, path: str, kind: str) -> None:
    model = load(path)
    rows = share(rank, (4, 4))
    batch = features(model, rows)
    settings: dict[str, Any] = {}
    if kind == "temperature":
        settings["temperature"] = 0.01 + rank
    if kind == "text_id" and rank:
        for column in batch:
            column["text_id"] = torch.arange(len(column["input_ids"]))
    if kind == "columns":
        batch = [dict(model.preprocess([text(0), text(1)])) for _ in range(3 + rank)]
    if kind == "fault" and rank:
        batch[1] = dict(model.preprocess([text(3)]))
    if kind == "owner" and rank:
        batch[2]["owner"] = batch[2]["owner"] + 2
    loss = PiccoloLoss(model, **settings)
    if kind == "evaluation" and rank:
        with torch.no_grad():
            loss(batch, None)
    loss(batch, None)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("temperature", r"temperature is 0\.01 on rank 0, 1\.01 on rank 1"),
        ("text_id", r"what texts are compared by is tokens on rank 0, text_id on rank 1"),
        ("columns", r"the number of columns is 3 on rank 0, 4 on rank 1"),
        ("fault", r"the fault of the columns is None on rank 0, there must be one positive for each query.* on rank 1"),
        ("owner", r"'owner' must name one of the 4 rows of the batch, 0 to 3, got 5 for hard negative 4 on rank 1"),
        ("evaluation", r"whether gradients are wanted is True on rank 0, False on rank 1"),
    ],
)
def test_a_difference_between_ranks_is_an_error_on_each(encoder_dir_no_dropout: Path, kind: str, message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        run_ranks(differ, 2, str(encoder_dir_no_dropout), kind, timeout=20)
    for rank in (0, 1):
        assert re.search(rf"rank {rank} of 2 raised ValueError: .*{message}", str(error.value)), str(error.value)


def train(
    rank: int, world: int, path: str, output: str, batch_size: int, settings: dict[str, Any], extra: dict[str, Any]
) -> dict[str, Any]:
    """Train for 6 steps on triplets with the stock trainer and return its weights and logged losses."""
    if "deepspeed" in extra:  # with use_cpu a configuration alone is ignored; `accelerate launch` sets this as well
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    torch.manual_seed(0)
    model = load(path)
    numbers = list(range(24))
    data = {
        "query": [text(n) for n in numbers],
        "positive": [text(n + 30) for n in numbers],
        "negative": [text(n + 60) for n in numbers],
    }
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=output,
            per_device_train_batch_size=batch_size,
            num_train_epochs=2,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
            **extra,
        ),
        train_dataset=Dataset.from_dict(data),
        loss=PiccoloLoss(model, temperature=0.05, **settings),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
        "losses": losses,
        "stage": getattr(trainer.model_wrapped, "zero_optimization_stage", lambda: None)(),
    }


def assert_trained_alike(alone: dict[str, Any], results: list[dict[str, Any]], untrained: SentenceTransformer) -> None:
    before = torch.cat([p.detach().flatten() for p in untrained.parameters()])
    assert len(alone["losses"]) == 6
    assert (alone["weights"] - before).abs().max() > 1e-3
    for result in results:
        assert (result["weights"] - alone["weights"]).abs().max() <= 1e-6
        assert result["losses"] == pytest.approx(alone["losses"], rel=1e-4)


@pytest.mark.parametrize("settings", CACHING[:2])
def test_two_ranks_train_the_weights_of_one(
    encoder_dir_no_dropout: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = str(encoder_dir_no_dropout)
    (alone,) = run_ranks(train, 1, path, str(tmp_path / "1"), 8, settings, {})
    results = run_ranks(train, 2, path, str(tmp_path / "2"), 4, settings, {})
    assert_trained_alike(alone, results, load(path))


def zero(stage: int, **options: Any) -> dict[str, Any]:
    return {
        "deepspeed": {
            "zero_optimization": {"stage": stage, **options},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "train_batch_size": "auto",
            "zero_allow_untested_optimizer": True,
        }
    }


@pytest.mark.slow
@pytest.mark.parametrize("settings", CACHING[:2])
def test_two_zero1_ranks_train_the_weights_of_one(
    encoder_dir_no_dropout: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    pytest.importorskip("deepspeed")
    path = str(encoder_dir_no_dropout)
    (alone,) = run_ranks(train, 1, path, str(tmp_path / "1"), 8, settings, {})
    results = run_ranks(train, 2, path, str(tmp_path / "2"), 4, settings, zero(1), timeout=250)
    assert [result["stage"] for result in results] == [1, 1]
    assert_trained_alike(alone, results, load(path))


@pytest.mark.slow
def test_early_reduction_is_refused_with_caching_only(encoder_dir_no_dropout: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    path, cached = str(encoder_dir_no_dropout), {"mini_batch_size": 2}
    results = run_ranks(train, 2, path, str(tmp_path), 4, {}, zero(2), timeout=250)
    assert [result["stage"] for result in results] == [2, 2]
    for options, named in (
        ({"stage": 2}, "stage 2:"),
        ({"stage": 1, "overlap_comm": True}, "stage 1 with overlap_comm"),
    ):
        with pytest.raises(RuntimeError, match=rf"rank 1 of 2 raised ValueError: gradient caching .* this is {named}"):
            run_ranks(train, 2, path, str(tmp_path), 4, cached, zero(**options), timeout=250)
