"""What a run is held against: the same rows and encoder trained by sentence-transformers alone."""

from __future__ import annotations

import copy

from datasets import Dataset, DatasetDict, concatenate_datasets
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import set_seed

from piccolo_st.data import Mixture, load_mixture
from piccolo_st.modeling import load_encoder
from piccolo_st.training import FinetuneConfig, own


def train_stock(config: FinetuneConfig, concatenated: bool = False) -> tuple[Mixture, SentenceTransformer]:
    """Train as sentence-transformers' documentation does: its trainer, loss, collator and default samplers.

    The rows are the same. Lists of negatives become as many columns as every row of the dataset can fill, which is the
    form that the stock collator reads.

    Args:
        config: parsed with ``FinetuneConfig``; the section ``loss`` and the instructions are not used.
        concatenated: put all pairs into one dataset, whose batches are then drawn from everything at once. Negatives
            are left out: not all datasets have them, and the stock collator reads one set of columns.
    """
    arguments, model_arguments = config.train, config.model
    mixture = load_mixture(config.mixture)
    arguments.per_device_train_batch_size = config.data.batch_size
    set_seed(arguments.seed)
    model = load_encoder(
        str(model_arguments.name_or_path),
        revision=model_arguments.revision,
        pooling=model_arguments.pooling,
        instructions="none",
        query_length=model_arguments.query_length,
        document_length=model_arguments.document_length,
        positions=model_arguments.positions,
        dtype=model_arguments.dtype,
    )
    model.max_seq_length = model_arguments.document_length  # what the stock collator cuts at
    rows: Dataset | DatasetDict
    if concatenated:
        rows = concatenate_datasets(
            [dataset.select_columns(["query", "positive"]) for dataset in mixture.train.values()]
        )
    else:
        limit = config.data.num_negatives
        rows = DatasetDict({name: _flat(dataset, limit) for name, dataset in mixture.train.items()})
    trainer = SentenceTransformerTrainer(
        model=model,
        args=copy.copy(arguments),
        train_dataset=rows,
        loss=MultipleNegativesRankingLoss(model),
    )
    with own(arguments.output_dir):
        trainer.train()
    return mixture, model


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
