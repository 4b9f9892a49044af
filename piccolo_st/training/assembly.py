"""The parts of a run, each made of its configuration and of the parts before it.

(1) ``load``: the mixture; the encoder, loaded, or built from the texts that it will be trained on; the training sets,
    with mined negatives where the configuration asks for them, and which of these are used if they change; a guide's
    and teachers' embeddings of their texts;
(2) ``make_trainer``: the sampler, the losses, the evaluators and the trainer that holds all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from statistics import fmean
from typing import Any

from datasets import DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import SequentialEvaluator
from transformers import set_seed

from piccolo_st import cache
from piccolo_st.data import Mixture, load_mixture
from piccolo_st.distributed import process_state
from piccolo_st.errors import InputError
from piccolo_st.evaluation import held_out_evaluators
from piccolo_st.losses import scale_dimension
from piccolo_st.mining import (
    UNTRAINED,
    NegativesInUse,
    ReminingSettings,
    check_dataset,
    dataset_limits,
    load_alike,
    mine_mixture,
    negatives_in_use,
    read_at_most,
)
from piccolo_st.modeling import (
    PRESETS,
    EncoderSettings,
    cached_encoder,
    content_hash,
    dataset_phrasings,
    dataset_prompts,
    dataset_tasks,
    load_encoder,
    saved_instructions,
    set_prompts,
    tokenizer_state,
)
from piccolo_st.training.dataset_losses import dataset_losses
from piccolo_st.training.fitting import mini_batch_tokens
from piccolo_st.training.mixing import batch_sampler
from piccolo_st.training.onlookers import Seen, look
from piccolo_st.training.settings import check_searches
from piccolo_st.training.trainer import PiccoloTrainer
from piccolo_st.training.training_arguments import FinetuneConfig

# Settings that checkpoints did not have from the beginning, and what switches them on: where they are off, a checkpoint
# from before goes on.
_LATER = {
    "data": {"together": None},
    "model": dict.fromkeys(
        (
            "attn_implementation",
            "trust_remote_code",
            "bidirectional",
            "model_kwargs",
            "processor_kwargs",
            "config_kwargs",
            "task_instructions",
        )
    ),
    "loss": {
        **dict.fromkeys(("hardness_strength", "focal_gamma", "spread_weight", "spread_mean_weight", "guide")),
        "hardness_mode": "hardness_strength",
        "guide_margin": "guide",
        "guide_margin_strategy": "guide",
    },
}


def load(config: FinetuneConfig) -> tuple[Mixture, SentenceTransformer, DatasetDict, Seen, NegativesInUse | None]:
    """Mixture, model, training sets, what others see in them, their negatives if they change.

    What takes long is kept on disk and found there again.

    Raises:
        InputError: one of them cannot be used.
    """
    mixture = load_mixture(config.mixture)
    model = _load_model(config, mixture)
    train_dataset = _mine(config, mixture, model)
    remining, negatives = _remining(config), None
    if remining is not None:
        folder = cache.default_cache()
        negatives = negatives_in_use(mixture, train_dataset, model, config.data.mining, remining, folder)
    return mixture, model, train_dataset, look(config, mixture, model, train_dataset), negatives


def _load_model(config: FinetuneConfig, mixture: Mixture) -> SentenceTransformer:
    """The encoder of a run, which can cut the texts of every dataset as the mixture asks.

    Raises:
        InputError: there is none of that name, or the section ``model`` or a dataset asks what it cannot do.
    """
    arguments = config.model
    if config.lora.rank is not None:
        _check_lora(config)
    own = [spec.instruction for spec in mixture.specs.values() if spec.instruction is not None]
    name = arguments.name_or_path
    if not name:
        if config.train.average_with_start:
            raise InputError(
                "train.average_with_start keeps a share of a checkpoint's weights and must be 0 for an encoder that is "
                f"built, got {config.train.average_with_start:g}; set model.name_or_path"
            )
        settings = arguments.build or EncoderSettings()
        always = [arguments.instructions or PRESETS["piccolo"], *own]
        texts = chain.from_iterable(mixture.lists_of_texts())
        name = str(cached_encoder(settings, texts, [mixture.fingerprint, "texts in lists too"], always))
    with _blamed("model"):
        set_seed(config.train.seed)  # a layer that scales the dimension begins with random weights
        model = load_encoder(
            name,
            revision=arguments.revision,
            pooling=arguments.pooling,
            # An encoder that is built has none to be missed.
            instructions=arguments.instructions or (None if arguments.name_or_path else PRESETS["piccolo"]),
            other_instructions=own,
            task_instructions=arguments.task_instructions,
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
            config_kwargs=arguments.config_kwargs,
            lora=config.lora,
        )
        _settle_instructions(config, model)
        if arguments.dimension is not None:
            scale_dimension(model, arguments.dimension)
        for spec in mixture.specs.values():
            check_dataset(model, spec, arguments.instructions)
        return model


def _check_lora(config: FinetuneConfig) -> None:
    """Refuse what an adapter cannot be trained with, or not on this machine.

    Raises:
        InputError: naming the setting.
    """
    config.check_adapter()
    if config.lora.load_in_4bit and config.train.device.type != "cuda":
        raise InputError(
            "lora.load_in_4bit needs a CUDA GPU, since on a CPU bitsandbytes rounds the weights anew in an evaluation, "
            f"got {config.train.device.type}; set it to false"
        )


def _settle_instructions(config: FinetuneConfig, model: SentenceTransformer) -> None:
    """Where the configuration has no instructions, it has those of the model that was loaded with it from here on."""
    if config.model.instructions is None:
        own = config.model.instructions = saved_instructions(model)
        named = next((name for name, preset in PRESETS.items() if preset == own), None)
        config.resolved["model"]["instructions"] = named or own.prompts


def _mine(config: FinetuneConfig, mixture: Mixture, model: SentenceTransformer) -> DatasetDict:
    """The training sets, with mined negatives where the run asks for them and the rows are (query, positive)."""
    given = config.data.mining_model
    if not given:
        return mixture.train
    names = [given] if isinstance(given, str) else given
    miners: Any = [
        name if name in UNTRAINED else model if name == "self" else _load_miner(config, name, model) for name in names
    ]
    remining = _remining(config)
    made_of = [tokenizer_state(model.tokenizer) if isinstance(one, str) else content_hash(one) for one in miners]
    return mine_mixture(
        mixture,
        miners,
        config.data.mining,
        cache.default_cache(),
        tokenizer=model.tokenizer,
        made_of=[given, *made_of, _settings(config)["model"]],
        oversample=1 if remining is None else remining.oversample,
        say=print if process_state().is_main_process else lambda _: None,
    )


def _load_miner(config: FinetuneConfig, name: str, model: SentenceTransformer) -> SentenceTransformer:
    """A miner as it was saved: it has its own instructions, and the run's where it has none."""
    miner = load_alike(name, "data.mining_model")
    if not saved_instructions(miner).texts:
        set_prompts(miner, saved_instructions(model))
    read_at_most(miner, max(config.model.query_length, config.model.document_length), f"data.mining_model {name!r}")
    return miner


def _remining(config: FinetuneConfig) -> ReminingSettings | None:
    given = config.data.remining
    return None if given is None or not config.data.mining_model else ReminingSettings.of(given, place="data.remining")


def make_trainer(
    config: FinetuneConfig,
    mixture: Mixture,
    model: SentenceTransformer,
    train_dataset: DatasetDict,
    seen: Seen,
    negatives: NegativesInUse | None = None,
) -> PiccoloTrainer:
    """The trainer of a run, and in ``config.train`` what ST reads there and the configuration has elsewhere.

    Raises:
        InputError: the section ``loss``, ``data`` or ``train`` asks what the datasets or the model cannot do.
    """
    data, arguments, columns = config.data, config.train, train_dataset.column_names
    specs = [mixture.specs[name] for name in train_dataset]
    own = {spec.name: spec.instruction for spec in specs if spec.instruction is not None}
    instructions = config.model.instructions or PRESETS["piccolo"]  # settled when the model was loaded
    arguments.per_device_train_batch_size = data.batch_size
    arguments.prompts = dataset_prompts(columns, instructions, own)
    router_mapping: Any = dataset_tasks(columns)
    arguments.router_mapping = router_mapping
    arguments.multi_dataset_batch_sampler = batch_sampler(config, specs)
    evaluators = held_out_evaluators(
        mixture,
        batch_size=config.evaluation.batch_size,
        write_csv=False,
        accuracy_at_k=[1],
        precision_recall_at_k=[10],
        map_at_k=[100],
    )
    check_searches(arguments, evaluators)
    with _blamed("loss"):
        tokens = mini_batch_tokens(config, model, train_dataset)
        losses = dataset_losses(config, model, specs, columns, tokens)
    trainer = PiccoloTrainer(
        model=model,
        args=arguments,
        train_dataset=DatasetDict(train_dataset),
        loss=losses,
        evaluator=SequentialEvaluator(evaluators, main_score_function=fmean) if evaluators else None,
    )
    if negatives is not None:
        trainer.remine(negatives)
    collator: Any = trainer.data_collator
    collator.num_negatives = data.num_negatives
    collator.seed = arguments.seed
    collator.guide, collator.teacher = seen.guide, seen.teacher
    collator.max_length = dataset_limits(specs)
    collator.phrasings = dataset_phrasings(columns, instructions, own)
    # What a checkpoint must agree with beside what the trainer sees. The batch size is there as that of all ranks.
    sections = _settings(config)
    sections["data"] |= {"mixture": mixture.fingerprint, "batch_size": None}
    trainer.run_configuration = {"configuration": sections}
    return trainer


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
    names = ["model", "data", "loss", *(["lora"] if config.lora.rank is not None else [])]
    sections = {name: dataclasses.asdict(getattr(config, name)) for name in names}
    sections["model"]["build"] = config.resolved["model"]["build"]
    for section, later in _LATER.items():
        for name in [name for name, switch in later.items() if not sections[section][switch or name]]:
            del sections[section][name]
    for section, name in (("loss", "distillation"), ("data", "remining")):  # which {} switches on
        if sections[section][name] is None:
            del sections[section][name]
    return sections
