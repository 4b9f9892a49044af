"""What a run is held against: the same rows and encoder trained by sentence-transformers alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from datasets import Dataset, DatasetDict, concatenate_datasets
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import CachedGISTEmbedLoss, MultipleNegativesRankingLoss
from torch import nn
from transformers import set_seed

from piccolo_st.data import Mixture
from piccolo_st.modeling import Instructions, dataset_prompts, load_encoder, saved_instructions
from piccolo_st.schema import Positive
from piccolo_st.training import FinetuneConfig, own


@dataclass(frozen=True)
class StockOptions:
    """How sentence-transformers trains.

    Attributes:
        loss: MultipleNegativesRankingLoss, or CachedGISTEmbedLoss with the untrained encoder as its guide.
        scale: what the loss multiplies similarities by; GIST's temperature is its inverse.
        batch_sampler: sentence-transformers' name of it.
        concatenated: train on one dataset of all pairs, shuffled, in place of one dataset after another. Negatives are
            left out: not all datasets have them, and the stock collator reads one set of columns.
    """

    loss: Literal["MultipleNegativesRankingLoss", "CachedGISTEmbedLoss"] = "MultipleNegativesRankingLoss"
    scale: Positive = 20.0
    batch_sampler: Literal["batch_sampler", "no_duplicates"] = "batch_sampler"
    concatenated: bool = False


def start_model(config: FinetuneConfig) -> SentenceTransformer:
    """The checkpoint that a configuration starts from, with its instructions and lengths."""
    model = load_encoder(
        str(config.model.name_or_path),
        revision=config.model.revision,
        pooling=config.model.pooling,
        instructions=config.model.instructions,
        query_length=config.model.query_length,
        document_length=config.model.document_length,
        positions=config.model.positions,
        dtype=config.model.dtype,
    )
    if config.model.instructions is None:
        config.model.instructions = saved_instructions(model)
    return model


def train_stock(config: FinetuneConfig, mixture: Mixture, options: StockOptions | None = None) -> SentenceTransformer:
    """Train as sentence-transformers' documentation does: its trainer, loss, collator and samplers.

    The rows are the same. Lists of negatives become as many columns as every row of the dataset can fill, which is the
    form that the stock collator reads.

    Args:
        config: parsed with ``FinetuneConfig``; of its section ``loss`` nothing is used.
        mixture: that of the configuration.
        options: loss and sampler.
    """
    options = options or StockOptions()
    arguments = copy.copy(config.train)
    arguments.per_device_train_batch_size = config.data.batch_size
    arguments.batch_sampler = options.batch_sampler
    set_seed(arguments.seed)
    model = start_model(config)
    model.max_seq_length = config.model.document_length  # what the stock collator cuts at
    instructions = config.model.instructions or Instructions()  # settled by start_model
    prompts: dict[str, str] | dict[str, dict[str, str]]
    rows: Dataset | DatasetDict
    if options.concatenated:
        rows = concatenate_datasets(
            [dataset.select_columns(["query", "positive"]) for dataset in mixture.train.values()]
        )
        prompts = dataset_prompts({"all": rows.column_names}, instructions)["all"]
    else:
        limit = config.data.num_negatives
        rows = DatasetDict({name: _flat(dataset, limit) for name, dataset in mixture.train.items()})
        prompts = dataset_prompts(rows.column_names, instructions)
    arguments.prompts = prompts
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=rows, loss=_loss(config, model, options)
    )
    with own(str(arguments.output_dir)):
        trainer.train()
    return model


def _loss(config: FinetuneConfig, model: SentenceTransformer, options: StockOptions) -> nn.Module:
    if options.loss == "MultipleNegativesRankingLoss":
        return MultipleNegativesRankingLoss(model, scale=options.scale)
    guide = start_model(config)
    guide.max_seq_length = config.model.document_length
    return CachedGISTEmbedLoss(model, guide, temperature=1 / options.scale)


def _flat(dataset: Dataset, limit: int | None) -> Dataset:
    """The dataset with its list of negatives as columns ``negative_1`` to ``negative_n``, or without it."""
    if not isinstance(dataset[0].get("negative"), list):
        return dataset
    count = min(len(texts) for texts in dataset["negative"])
    count = count if limit is None else min(count, limit)
    columns = {name: dataset[name] for name in ("query", "positive")}
    for place in range(count):
        columns[f"negative_{place + 1}"] = [texts[place] for texts in dataset["negative"]]
    return Dataset.from_dict(columns)
