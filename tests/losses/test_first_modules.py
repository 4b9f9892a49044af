"""PiccoloLoss over first modules whose features are not (rows, tokens), and inside ST's layer-wise wrappers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    CoSENTLoss,
    Matryoshka2dLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import (
    BoW,
    Dense,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from piccolo_st import PiccoloDataCollator, PiccoloLoss
from piccolo_st.losses import OwnNegativesLoss, ScoredPairsLoss, SINCERELoss
from piccolo_st.losses.choices import DIRECTIONS
from piccolo_st.modeling import packs, use_packing
from tests.conftest import CHARACTERS
from tests.losses.test_piccolo import NEGATIVES, POSITIVES, QUERIES, assert_same, preprocess, run

COLUMNS = [QUERIES, POSITIVES, *NEGATIVES]


def stock(model: Any, temperature: float = 0.05) -> MultipleNegativesRankingLoss:
    return MultipleNegativesRankingLoss(model, scale=1 / temperature, directions=DIRECTIONS, partition_mode="joint")


def spaced(columns: list[list[str]]) -> list[list[str]]:
    return [[" ".join(text) for text in texts] for texts in columns]


def static(encoder_dir: Path) -> SentenceTransformer:
    tokenizer = Transformer(str(encoder_dir)).tokenizer
    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


def routed(encoder_dir: Path) -> SentenceTransformer:
    transformer = Transformer(str(encoder_dir))
    documents = [transformer, Pooling(transformer.get_embedding_dimension()), Dense(32, 8)]
    return SentenceTransformer(modules=[Router.for_query_document([static(encoder_dir)[0]], documents)], device="cpu")


def words(encoder_dir: Path) -> SentenceTransformer:
    torch.manual_seed(0)
    weights = torch.randn(len(CHARACTERS), 8).numpy()
    embeddings = WordEmbeddings(
        WhitespaceTokenizer(list(CHARACTERS), stop_words=set()), weights, update_embeddings=True
    )
    return SentenceTransformer(modules=[embeddings, Pooling(8)], device="cpu")


def bag(encoder_dir: Path) -> SentenceTransformer:
    torch.manual_seed(0)
    module = BoW(list(CHARACTERS))
    return SentenceTransformer(modules=[module, Dense(module.get_embedding_dimension(), 8)], device="cpu")


@pytest.mark.parametrize("chunk_tokens", ["auto", 24])
@pytest.mark.parametrize("build", [static, routed, words, bag])
def test_every_first_module_gives_sts_loss(
    encoder_dir_no_dropout: Path, build: Callable[[Path], SentenceTransformer], chunk_tokens: Any
) -> None:
    model = build(encoder_dir_no_dropout).train()
    columns = COLUMNS if build in (static, routed) else spaced(COLUMNS)
    tasks = ["query", "document", "document", "document"]
    features = [
        {**model.preprocess(texts, task=task), "task": task} for texts, task in zip(columns, tasks, strict=True)
    ]
    got = run(PiccoloLoss(model, 0.05, chunk_tokens=chunk_tokens), features)
    assert_same(got, run(stock(model), features), 1e-5)


def test_static_rows_are_told_apart_by_their_tokens(encoder_dir_no_dropout: Path) -> None:
    model = static(encoder_dir_no_dropout)
    columns = [["猫", "狗", "猫"], ["是猫", "是狗", "也是猫"]]
    loss = PiccoloLoss(model)
    run(loss, preprocess(model, *columns))
    by_tokens = loss.pop_statistics()["masked_duplicates"]
    collator = PiccoloDataCollator(model.preprocess)
    batch = collator([{"query": query, "positive": positive} for query, positive in zip(*columns, strict=True)])
    run(loss, SentenceTransformerTrainer.collect_features(None, batch)[0])
    assert by_tokens == loss.pop_statistics()["masked_duplicates"] > 0


class Flat(torch.nn.Module):
    """A first module that hands on all tokens of its rows in one line, under names of its own."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        rows = features["tokens"].float().split(features["sizes"].tolist())
        return {**features, "sentence_embedding": torch.stack([row.mean().expand(4) for row in rows])}


def test_rows_that_cannot_be_counted_are_named_or_counted_by_the_collator() -> None:
    model = SentenceTransformer(modules=[Flat()], device="cpu")
    column = {"tokens": torch.arange(9), "sizes": torch.tensor([3, 2, 4])}
    with pytest.raises(ValueError, match=r"one embedding for each row, got 6 .* 18 rows .*'sizes', 'tokens'.*collate"):
        PiccoloLoss(model)([dict(column), dict(column)])
    counted = {**column, "text_id": torch.arange(3)}
    assert torch.isfinite(PiccoloLoss(model)([dict(counted), {**counted, "text_id": torch.arange(3, 6)}]))


def test_images_are_never_sorted_apart_from_their_text() -> None:
    """Two columns of two rows; the first row of each has both images, so that an image goes by its place alone."""

    class Sum(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            images = features["pixel_values"].split(features["num_images_per_sample"].tolist())
            seen = torch.stack([image.sum(0) for image in images])
            text = (features["input_ids"] * features["attention_mask"]).sum(1, keepdim=True)
            return {**features, "sentence_embedding": seen + text}

    torch.manual_seed(0)
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    columns = [
        {
            "input_ids": mask * number,
            "attention_mask": mask,
            "pixel_values": torch.randn(2, 4),
            "num_images_per_sample": torch.tensor([2, 0]),
            "modality": ("image", "text"),
        }
        for number in (1, 2)
    ]
    model = SentenceTransformer(modules=[Sum()], device="cpu")
    expected = stock(model)([dict(column) for column in columns], None)
    torch.testing.assert_close(PiccoloLoss(model, 0.05)([dict(column) for column in columns]), expected)


WRAPPERS = {
    "AdaptiveLayerLoss": lambda model, loss: AdaptiveLayerLoss(model, loss, n_layers_per_step=-1),
    "Matryoshka2dLoss": lambda model, loss: Matryoshka2dLoss(
        model, loss, [32, 8], n_layers_per_step=-1, n_dims_per_step=-1
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("packing", [False, True])
def test_inside_layer_wise_losses_it_equals_st(make_model: Callable[..., Any], wrapper: str, packing: bool) -> None:
    model = make_model(pooling="cls").double().train()
    expected = run(WRAPPERS[wrapper](model, stock(model)), preprocess(model, *COLUMNS))
    assert use_packing(model) if packing else not packs(model)
    for inner in (stock(model), PiccoloLoss(model, 0.05)):
        assert_same(run(WRAPPERS[wrapper](model, inner), preprocess(model, *COLUMNS)), expected, 1e-5)
    features = preprocess(model, QUERIES, POSITIVES)
    for other in (SINCERELoss(model), OwnNegativesLoss(model), ScoredPairsLoss(model)):
        labels = torch.tensor([0, 1, 0, 1]) if isinstance(other, SINCERELoss) else torch.rand(4)
        assert torch.isfinite(WRAPPERS[wrapper](model, other)([dict(column) for column in features], labels))
    scores = torch.tensor([0.1, 0.9, 0.4, 0.7])
    torch.testing.assert_close(
        WRAPPERS[wrapper](model, ScoredPairsLoss(model, 0.05))([dict(column) for column in features], scores),
        WRAPPERS[wrapper](model, CoSENTLoss(model, scale=20))([dict(column) for column in features], scores),
    )


def test_layer_wise_losses_train_through_the_collator(make_model: Callable[..., Any], tmp_path: Path) -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"query": QUERIES, "positive": POSITIVES, "negative": NEGATIVES[0]})
    losses = []
    for inner in (stock, lambda model: PiccoloLoss(model, 0.05)):
        model = make_model()
        trainer = SentenceTransformerTrainer(
            model,
            SentenceTransformerTrainingArguments(
                output_dir=str(tmp_path), max_steps=2, report_to="none", save_strategy="no"
            ),
            train_dataset=data,
            loss=AdaptiveLayerLoss(model, inner(model), n_layers_per_step=-1),
            data_collator=PiccoloDataCollator(model.preprocess),
        )
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_gradient_caching_inside_a_layer_wise_loss_is_refused(make_model: Callable[..., Any]) -> None:
    model = make_model()
    with pytest.warns(UserWarning, match="AdaptiveLayerLoss is not compatible with PiccoloLoss"):
        loss = AdaptiveLayerLoss(model, PiccoloLoss(model, mini_batch_size=2))
    with pytest.raises(ValueError, match=r"AdaptiveLayerLoss .* gradient caching .*; leave mini_batch_size .* unset"):
        loss(preprocess(model, QUERIES, POSITIVES), None)
