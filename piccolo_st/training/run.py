"""A training run from its configuration to its checkpoint: what recipes/pretrain.py and recipes/finetune.py drive.

(1) load the mixture; build or load the encoder; mine hard negatives. The first rank does it, the others then find
    the results on disk;
(2) wire sampler, losses and evaluators into a PiccoloTrainer;
(3) say what will run; train, searching the held-out queries before, during and after;
(4) leave in the output directory: ``model/`` (portable), ``config.yaml``, ``run.json``, ``curves.png``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import set_seed

from piccolo_st import cache, tables
from piccolo_st.batches import HomogeneousBatchSampler, check_dataloader
from piccolo_st.data import LABELLED_TASKS, DatasetSpec, load_mixture
from piccolo_st.distributed import first_rank_first, missing_processes, on_first_rank
from piccolo_st.errors import InputError
from piccolo_st.evaluation import RetrievalEvaluator, comparison, held_out_evaluators, plot_curves
from piccolo_st.losses import build_losses, scale_dimension
from piccolo_st.losses.needs import negatives_from
from piccolo_st.mining import check_dataset, dataset_limits, mine_mixture
from piccolo_st.modeling import (
    EncoderSettings,
    Instructions,
    cached_encoder,
    content_hash,
    dataset_prompts,
    dataset_tasks,
    load_encoder,
    packs,
    tokenizer_state,
    weights_in_words,
)
from piccolo_st.releasing import DatasetRecord, RunRecord, add_training
from piccolo_st.training.arguments import FinetuneConfig
from piccolo_st.training.ownership import own
from piccolo_st.training.trainer import PiccoloTrainer
from piccolo_st.training.unread import unread


class TrainingRun:
    """A run that is built and ready to train.

    Attributes:
        config: the parsed configuration.
        mixture: the data.
        model: the encoder.
        trainer: the trainer that holds all of it.
        output: the run's directory.
    """

    def __init__(self, config: FinetuneConfig) -> None:
        """Build the run.

        Args:
            config: of stage 1 or 2 (``PretrainConfig``, ``FinetuneConfig``).

        Raises:
            InputError: a model, dataset, setting or output directory that cannot be used.
        """
        self.config = config
        self.output = Path(config.train.output_dir)
        self._owned = own(self.output)
        self.mixture = first_rank_first(lambda: load_mixture(config.mixture))
        self.model = first_rank_first(self._load_model)
        self.train_dataset = first_rank_first(self._mine)
        self.trainer = self._wire()

    def describe(self) -> str:
        """What will run: steps, batch, precision and processes; of each dataset, what became of its rows."""
        arguments, data = self.trainer.args, self.config.data
        plan = check_dataloader(self.trainer.get_train_dataloader()).plan
        names = list(self.train_dataset)
        losses: Any = self.trainer.loss
        further: dict[str, dict[str, Any]] = {
            "negatives": {name: negatives_from(losses[name], dataset) for name, dataset in self.train_dataset.items()},
            "steps an epoch": dict(zip(names, map(int, plan.steps_per_dataset), strict=True)),
            "samples a step": {name: int(n) * plan.world_size for name, n in zip(names, plan.device_rows, strict=True)},
        }
        steps = plan.steps() // arguments.gradient_accumulation_steps
        total = arguments.max_steps if arguments.max_steps > 0 else int(steps * arguments.num_train_epochs)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        precision = "fp16" if arguments.fp16 else "bf16" if arguments.bf16 else "fp32"
        engine = "DeepSpeed" if self.trainer.is_deepspeed_enabled else "plain" if plan.world_size == 1 else "DDP"
        held = [f"{len(h.queries):,} queries among {len(h.corpus):,} texts ({name})" for name, h in self.holdouts]
        effective = plan.world_size * data.batch_size * arguments.gradient_accumulation_steps
        lines = [
            f"model      {self.config.model.name_or_path or 'built from the data'}, {parameters:,} parameters",
            f"weights    {weights_in_words(self.model, self.config.model.revision)}",
            f"steps      {total:,} of {effective:,} samples ({data.batch_size} x {plan.world_size} processes x "
            f"{arguments.gradient_accumulation_steps} accumulated), {steps:,} an epoch",
            f"compute    {arguments.device.type}, {precision}, {engine}, {plan.world_size} process(es)"
            f"{', rows without padding' if packs(self.model) else ''}",
            f"lengths    query {self.config.model.query_length}, passage {self.config.model.document_length}",
            f"held out   {'; '.join(held) or 'nothing'}",
            f"output     {self.output}",
        ]
        if warning := missing_processes():
            lines.append(f"processes  {warning}")
        if plan.skipped:
            lines.append(f"skipped    {', '.join(plan.skipped)}: smaller than one batch over all processes")
        lines += [f"not read   {line}" for line in unread(self.config, self.mixture.specs.values())]
        return "\n".join([*lines, "", self.mixture.report.text(further)])

    def train(self) -> None:
        """Train, then write the model, the record and the picture; push the model where that was asked for.

        A run that had ended before is left as it is. The output directory is given up.
        """
        with self._owned:
            self._train()

    def _train(self) -> None:
        self.trainer.train()
        seconds = self.trainer.seconds_so_far
        if not (self.trainer.finished_before and on_first_rank(self._is_left)):
            self._leave(seconds)
        if self.trainer.args.push_to_hub:
            self.trainer.push_saved(self.output / "model", "End of training")

    def _is_left(self) -> bool:
        """Whether the output directory holds what this run left when it ended: its log, and the model of its record."""
        try:
            record = RunRecord.read(self.output)
            model = SentenceTransformer(str(self.output / "model"), device="cpu")
        except (OSError, ValueError):  # InputError among them
            return False
        log = json.loads(json.dumps(self.trainer.state.log_history))
        return record.log[: len(log)] == log and record.content_hash == content_hash(model)

    def _leave(self, seconds: float) -> None:
        """Write the model, its card, the record and the picture; no rank ends before all of it is there."""
        folder = self.output / "model"
        self.trainer.save_model(str(folder), _internal_call=True)

        def write() -> None:
            record = RunRecord.of(
                self.config.resolved,
                self.trainer,
                stage=self.config.data.STAGE,
                seconds=round(seconds, 1),
                mixture=self.mixture.fingerprint,
                datasets=self._datasets(),
                content_hash=content_hash(SentenceTransformer(str(folder), device="cpu")),
            )
            record.write(self.output)
            tables.picture(plot_curves, record.log, self.output / "curves.png", self.output.name)
            add_training(folder, self.output)

        on_first_rank(write)

    def _datasets(self) -> dict[str, DatasetRecord]:
        """What each dataset of the mixture was."""
        skipped = check_dataloader(self.trainer.get_train_dataloader()).plan.skipped
        used = {name: len(dataset) for name, dataset in self.train_dataset.items() if name not in skipped}
        reports = self.mixture.report.datasets
        return {n: DatasetRecord.of(spec, reports[n], used.get(n, 0)) for n, spec in self.mixture.specs.items()}

    def summary(self) -> str:
        """The table before and after, where everything is, and the lines that search with the model."""
        folder = self.output / "model"
        lines = [comparison(self.trainer.state.log_history), "", f"model     {folder}"]
        curves = self.output / "curves.png"
        lines += [f"curves    {curves}"] * curves.is_file() + [f"record    {self.output / 'config.yaml'}, run.json"]
        state, limit = self.trainer.state, self.config.train.max_seconds
        if self.trainer.out_of_time and state.global_step < state.max_steps:
            ended = f"at step {state.global_step:,} of {state.max_steps:,}, after train.max_seconds={limit:g}"
            more = "the same command without it (or PICCOLO_ST_MAX_SECONDS) goes on from there"
            lines.insert(1, f"\nended      {ended}; {more}")
        if self.holdouts:
            lines += ["", "Search with it:", "", *_snippet(folder, self.holdouts[0][1])]
        return "\n".join(lines).lstrip("\n")

    def say(self, text: str) -> None:
        """Print from the first rank."""
        if self.trainer.is_world_process_zero():
            print(f"\n{text}\n", flush=True)

    @property
    def holdouts(self) -> list[tuple[str, Any]]:
        """Name and content of every held-out retrieval set."""
        return list(self.mixture.holdouts.items())

    # Step (1): the model and the mined negatives.

    def _load_model(self) -> SentenceTransformer:
        arguments = self.config.model
        name = arguments.name_or_path
        if not name:
            settings = EncoderSettings.from_mapping(arguments.build or {})
            name = str(cached_encoder(settings, self._texts(), self.mixture.fingerprint, self._instructions()))
        with _blamed("model"):
            set_seed(self.config.train.seed)  # a layer that scales the dimension begins with random weights
            model = load_encoder(
                name,
                revision=arguments.revision,
                pooling=arguments.pooling,
                instructions=arguments.instructions,
                other_instructions=self._instructions(),
                include_instruction=arguments.include_instruction,
                query_length=arguments.query_length,
                document_length=arguments.document_length,
                positions=arguments.positions,
                dtype=arguments.dtype,
            )
            if arguments.dimension is not None:
                scale_dimension(model, arguments.dimension)
            for spec in self.mixture.specs.values():
                check_dataset(model, spec)
            return model

    def _instructions(self) -> list[Instructions]:
        """Of the run, and of the datasets that have their own."""
        own = [spec.instruction for spec in self.mixture.specs.values() if spec.instruction is not None]
        return [self.config.model.instructions, *own]

    def _texts(self) -> Iterator[str]:
        """Every text of the training sets."""
        for dataset in self.mixture.train.values():
            for column, feature in dataset.features.items():
                if getattr(feature, "dtype", None) == "string":
                    yield from dataset[column]

    def _mine(self) -> DatasetDict:
        """The training sets, with mined negatives where the run asks for them and the rows are (query, positive)."""
        data = self.config.data
        if data.mining_model is None:
            return self.mixture.train
        model: Any = data.mining_model
        if data.mining_model == "self":
            model = self.model
        elif data.mining_model not in ("lexical", "bm25", "random"):
            own = dataclasses.asdict(self.config.model)
            kept = {name: own[name] for name in ("instructions", "query_length", "document_length")}
            model = load_encoder(data.mining_model, place="data.mining_model", dtype="stored", **kept)
        made_of = tokenizer_state(self.model.tokenizer) if isinstance(model, str) else content_hash(model)
        return mine_mixture(
            self.mixture,
            model,
            data.mining,
            cache.default_cache(),
            tokenizer=self.model.tokenizer,
            made_of=[data.mining_model, made_of, dataclasses.asdict(self.config.model)],
        )

    # Step (2): the trainer.

    def _wire(self) -> PiccoloTrainer:
        data = self.config.data
        arguments = self.config.train
        columns = self.train_dataset.column_names
        specs = [self.mixture.specs[name] for name in self.train_dataset]
        own = {spec.name: spec.instruction for spec in specs if spec.instruction is not None}
        arguments.per_device_train_batch_size = data.batch_size
        arguments.prompts = dataset_prompts(columns, self.config.model.instructions, own)
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
        trainer = PiccoloTrainer(
            model=self.model,
            args=arguments,
            train_dataset=DatasetDict(self.train_dataset),
            loss=self._losses(specs),
            evaluator=self._evaluators() or None,
        )
        collator: Any = trainer.data_collator
        collator.num_negatives = data.num_negatives
        collator.seed = arguments.seed
        collator.max_length = dataset_limits(specs)
        # What a checkpoint must agree with beside what the trainer sees. The batch size is there as that of all ranks.
        sections = {name: dataclasses.asdict(getattr(self.config, name)) for name in ("model", "data", "loss")}
        sections["data"] |= {"mixture": self.mixture.fingerprint, "batch_size": None}
        trainer.run_configuration = {"configuration": sections}
        return trainer

    def _losses(self, specs: list[DatasetSpec]) -> dict[str, nn.Module]:
        loss = self.config.loss
        options = {item.name: getattr(loss, item.name) for item in dataclasses.fields(loss)}
        with _blamed("loss"):
            tasks = {spec.name: (spec.task, self._loss_options(spec)) for spec in specs}
            return build_losses(self.model, tasks, **options)

    def _loss_options(self, spec: DatasetSpec) -> dict[str, Any]:
        classes = spec.task in LABELLED_TASKS
        labelled = classes and "label" in self.train_dataset[spec.name].column_names
        return {**spec.loss, **({"labelled": True} if labelled else {})}

    def _evaluators(self) -> list[RetrievalEvaluator]:
        options: dict[str, Any] = {
            "batch_size": self.config.evaluation.batch_size,
            "write_csv": False,
            "accuracy_at_k": [1],
            "precision_recall_at_k": [10],
            "map_at_k": [100],
        }
        return held_out_evaluators(self.mixture, **options)


def _weights(specs: list[DatasetSpec], mixing: str) -> list[float] | None:
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


@contextmanager
def _blamed(section: str) -> Iterator[None]:
    """Turn a part's ValueError into an InputError that names the section its argument came from."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"section {section!r}: {error}") from error


def _snippet(folder: Path, held: Any) -> list[str]:
    """Three lines of Python that search a held-out query's answer among other texts."""
    query, relevant = next(iter(held.relevant.items()))
    answer = held.corpus[min(relevant)]
    others = sorted((text for text in held.corpus.values() if text != answer), key=len)[len(held.corpus) // 4 :][:2]
    texts = json.dumps([others[0], answer, others[1]], ensure_ascii=False)
    return [
        "from sentence_transformers import SentenceTransformer",
        f"model = SentenceTransformer({json.dumps(str(folder))})",
        f"print(model.similarity(model.encode_query({json.dumps(held.queries[query], ensure_ascii=False)}), "
        f"model.encode_document({texts})))",
    ]
