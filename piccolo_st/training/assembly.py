"""The parts of a run, each made of its configuration and of the parts before it.

(1) ``load``: the mixture; the encoder, loaded, or built from the texts that it will be trained on; the training sets,
    with mined negatives where the configuration asks for them;
(2) ``make_trainer``: the sampler, the losses, the evaluators and the trainer that holds all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from datasets import DatasetDict
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import set_seed

from piccolo_st import cache
from piccolo_st.batches import HomogeneousBatchSampler
from piccolo_st.data import LABELLED_TASKS, DatasetSpec, Mixture, load_mixture
from piccolo_st.errors import InputError
from piccolo_st.evaluation import held_out_evaluators
from piccolo_st.losses import build_losses, scale_dimension
from piccolo_st.mining import check_dataset, dataset_limits, mine_mixture
from piccolo_st.modeling import (
    EncoderSettings,
    cached_encoder,
    content_hash,
    dataset_prompts,
    dataset_tasks,
    load_encoder,
    tokenizer_state,
)
from piccolo_st.training.arguments import FinetuneConfig
from piccolo_st.training.trainer import PiccoloTrainer


def load(config: FinetuneConfig) -> tuple[Mixture, SentenceTransformer, DatasetDict]:
    """Mixture, model and training sets. What takes long to make is kept on disk and found there the next time.

    Raises:
        InputError: one of them cannot be used.
    """
    mixture = load_mixture(config.mixture)
    model = _load_model(config, mixture)
    return mixture, model, _mine(config, mixture, model)


def _load_model(config: FinetuneConfig, mixture: Mixture) -> SentenceTransformer:
    """The encoder of a run, which can cut the texts of every dataset as the mixture asks.

    Raises:
        InputError: there is none of that name, or the section ``model`` or a dataset asks what it cannot do.
    """
    arguments = config.model
    own = [spec.instruction for spec in mixture.specs.values() if spec.instruction is not None]
    instructions = [arguments.instructions, *own]
    name = arguments.name_or_path
    if not name:
        if config.train.average_with_start:
            raise InputError(
                "train.average_with_start keeps a share of a checkpoint's weights and must be 0 for an encoder that is "
                f"built, got {config.train.average_with_start:g}; set model.name_or_path"
            )
        settings = arguments.build or EncoderSettings()
        name = str(cached_encoder(settings, _texts(mixture), mixture.fingerprint, instructions))
    with _blamed("model"):
        set_seed(config.train.seed)  # a layer that scales the dimension begins with random weights
        model = load_encoder(
            name,
            revision=arguments.revision,
            pooling=arguments.pooling,
            instructions=arguments.instructions,
            other_instructions=instructions,
            include_instruction=arguments.include_instruction,
            query_length=arguments.query_length,
            document_length=arguments.document_length,
            positions=arguments.positions,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            trust_remote_code=arguments.trust_remote_code,
            bidirectional=arguments.bidirectional,
            model_kwargs=arguments.model_kwargs,
            processor_kwargs=arguments.processor_kwargs,
        )
        if arguments.dimension is not None:
            scale_dimension(model, arguments.dimension)
        for spec in mixture.specs.values():
            check_dataset(model, spec)
        return model


def _texts(mixture: Mixture) -> Iterator[str]:
    """Every text of the training sets."""
    for dataset in mixture.train.values():
        for column, feature in dataset.features.items():
            if getattr(feature, "dtype", None) == "string":
                yield from dataset[column]


def _mine(config: FinetuneConfig, mixture: Mixture, model: SentenceTransformer) -> DatasetDict:
    """The training sets, with mined negatives where the run asks for them and the rows are (query, positive)."""
    miner: Any = config.data.mining_model
    if miner is None:
        return mixture.train
    if miner == "self":
        miner = model
    elif miner not in ("lexical", "bm25", "random"):
        own = dataclasses.asdict(config.model)
        kept = {name: own[name] for name in ("instructions", "query_length", "document_length")}
        miner = load_encoder(miner, place="data.mining_model", dtype="stored", **kept)
    made_of = tokenizer_state(model.tokenizer) if isinstance(miner, str) else content_hash(miner)
    return mine_mixture(
        mixture,
        miner,
        config.data.mining,
        cache.default_cache(),
        tokenizer=model.tokenizer,
        made_of=[config.data.mining_model, made_of, _settings(config)["model"]],
    )


def make_trainer(
    config: FinetuneConfig, mixture: Mixture, model: SentenceTransformer, train_dataset: DatasetDict
) -> PiccoloTrainer:
    """The trainer of a run, and in ``config.train`` what ST reads there and the configuration has elsewhere.

    Raises:
        InputError: the section ``loss`` or ``data`` asks what the datasets or the model cannot do.
    """
    data, arguments, columns = config.data, config.train, train_dataset.column_names
    specs = [mixture.specs[name] for name in train_dataset]
    own = {spec.name: spec.instruction for spec in specs if spec.instruction is not None}
    arguments.per_device_train_batch_size = data.batch_size
    arguments.prompts = dataset_prompts(columns, config.model.instructions, own)
    router_mapping: Any = dataset_tasks(columns)
    arguments.router_mapping = router_mapping
    arguments.multi_dataset_batch_sampler = partial(
        HomogeneousBatchSampler,
        accumulation_steps=arguments.gradient_accumulation_steps,
        mixing=data.mixing,
        weights=_weights(specs, data.mixing),
        exponent=data.mixing_exponent,
        repeats=[float(spec.repeats) for spec in specs],
        batch_multiples=[spec.batch_multiple for spec in specs],
        small_datasets=data.small_datasets,
        names=[spec.name for spec in specs],
    )
    evaluators = held_out_evaluators(
        mixture,
        batch_size=config.evaluation.batch_size,
        write_csv=False,
        accuracy_at_k=[1],
        precision_recall_at_k=[10],
        map_at_k=[100],
    )
    trainer = PiccoloTrainer(
        model=model,
        args=arguments,
        train_dataset=DatasetDict(train_dataset),
        loss=_losses(config, model, specs, columns),
        evaluator=evaluators or None,
    )
    collator: Any = trainer.data_collator
    collator.num_negatives = data.num_negatives
    collator.seed = arguments.seed
    collator.max_length = dataset_limits(specs)
    # What a checkpoint must agree with beside what the trainer sees. The batch size is there as that of all ranks.
    sections = _settings(config)
    sections["data"] |= {"mixture": mixture.fingerprint, "batch_size": None}
    trainer.run_configuration = {"configuration": sections}
    return trainer


def _weights(specs: Sequence[DatasetSpec], mixing: str) -> list[float] | None:
    """The shares of the datasets, if the run mixes by them.

    Raises:
        InputError: a weight is missing, or is there and would not be read.
    """
    for spec in specs:
        if mixing == "weights" and spec.weight is None:
            raise InputError(
                f"every dataset must have a weight where data.mixing is 'weights', got none for {spec.name!r}; "
                "give it one"
            )
        if mixing != "weights" and spec.weight is not None:
            raise InputError(
                f"dataset {spec.name!r} has the weight {spec.weight:g}, which data.mixing {mixing!r} does not read; "
                "set data.mixing to 'weights', or give the dataset `repeats`"
            )
    return [spec.weight for spec in specs if spec.weight is not None] or None


def _losses(
    config: FinetuneConfig,
    model: SentenceTransformer,
    specs: Sequence[DatasetSpec],
    columns: dict[str, list[str]],
) -> dict[str, nn.Module]:
    """The loss of each dataset; one of classes is told whether its rows have labels."""
    tasks = {}
    for spec in specs:
        labelled = spec.task in LABELLED_TASKS and "label" in columns[spec.name]
        tasks[spec.name] = (spec.task, {**spec.loss, "labelled": True} if labelled else spec.loss)
    with _blamed("loss"):
        return build_losses(model, tasks, **vars(config.loss))


@contextmanager
def _blamed(section: str) -> Iterator[None]:
    """Turn a part's ValueError into an InputError that names the section its argument came from."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"section {section!r}: {error}") from error


def _settings(config: FinetuneConfig) -> dict[str, dict[str, object]]:
    """The sections that decide what is learnt; of an encoder that is built, what the YAML says of it."""
    sections = {name: dataclasses.asdict(getattr(config, name)) for name in ("model", "data", "loss")}
    sections["model"]["build"] = config.resolved["model"]["build"]
    for name in ("attn_implementation", "trust_remote_code", "bidirectional", "model_kwargs", "processor_kwargs"):
        if not sections["model"][name]:
            del sections["model"][name]  # checkpoints from before these settings go on
    return sections
