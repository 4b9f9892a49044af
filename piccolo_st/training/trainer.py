"""PiccoloTrainer: SentenceTransformerTrainer with Piccolo's collator, sampler, reading, guards and logs.

Only what ST's trainer cannot be told by its arguments stands here; saving.py and resumable.py add complete checkpoints
and exact resume.

    (1) each batch is read at once from one Arrow table (``homogeneous_dataloader``);
    (2) before each micro-step the ranks compare what they are about to do, and tell each other whether they were asked
        to stop or ``args.max_seconds`` have passed; after each optimizer step they judge its gradient (non_finite.py);
    (3) tokens, padding, the wait for data, the loss of each dataset, alignment and uniformity, and what the losses and
        guards count enter the trainer's logs, and so every tracker; what of it is shown says progress.py.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from accelerate.utils import DynamoBackend
from datasets import Dataset, DatasetDict, IterableDataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import SaveStrategy, TrainOutput

from piccolo_st.batches import HomogeneousBatchSampler, PiccoloDataCollator, homogeneous_dataloader, list_missing
from piccolo_st.distributed import agree
from piccolo_st.losses.needs import check_needs
from piccolo_st.modeling import compile_layers, use_fast_dropout, use_packing
from piccolo_st.releasing import TrainingCardCallback
from piccolo_st.training.guards import (
    StopSignals,
    TrainingStopped,
    caches_gradients,
    check_collator,
    check_stream,
    check_supported,
    lost_rank,
)
from piccolo_st.training.metrics import (
    IDLE_STEPS,
    Batch,
    Features,
    Meter,
    alignment_and_uniformity,
    embed,
)
from piccolo_st.training.non_finite import MicroStep, NonFiniteGuard, poison, rows_not_finite
from piccolo_st.training.progress import ReadableProgress
from piccolo_st.training.resumable import ResumableTrainer
from piccolo_st.training.training_arguments import PiccoloTrainingArguments

logger = logging.getLogger(__name__)


@runtime_checkable
class _Counts(Protocol):
    """A loss, or a part of one, that counts something between two logs."""

    def pop_statistics(self) -> dict[str, float]: ...


class PiccoloTrainer(ResumableTrainer):
    """SentenceTransformerTrainer for Piccolo; see the module's docstring for what it adds.

    It takes the arguments of SentenceTransformerTrainer. ``args.multi_dataset_batch_sampler`` should be
    HomogeneousBatchSampler (or a partial of it); any other sampler of ST works and loses reading at once.

    Raises:
        InputError: a ``data_collator`` is given without the prompts or the router_mapping of ``args``.

    Example:
        >>> from datasets import Dataset
        >>> from piccolo_st import PiccoloLoss
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> rows = {"query": ["春天", "猫吃什么", "水", "红花"], "positive": ["春天来了", "猫吃鱼", "水中有鱼", "花红"]}
        >>> args = PiccoloTrainingArguments("runs/mine", max_steps=2, per_device_train_batch_size=4, disable_tqdm=True)
        >>> trainer = PiccoloTrainer(model, args, train_dataset=Dataset.from_dict(rows), loss=PiccoloLoss(model))
        >>> trainer.train().global_step
        {'train_runtime': ...}
        2
    """

    training_args_class: Any = PiccoloTrainingArguments
    data_collator_class = PiccoloDataCollator
    model_card_callback_class = TrainingCardCallback
    _orders_steps = True  # what _build_dataloader is at: the only dataset to train on

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_collator(self.args, self.data_collator)
        self._speed_up(self.model)
        self.step_dataset: str | None = None
        self.signals = StopSignals()
        self.guard = NonFiniteGuard(getattr(self.args, "max_non_finite_steps", 3), Path(str(self.args.output_dir)))
        self.meter = Meter()
        self._stopping = self.out_of_time = False
        self._started: float | None = None
        self._last_features: Features = []
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ReadableProgress(lambda: self.step_dataset))
        self.add_callback(_BoundaryCallback(self))

    def call_model_init(self, trial: object = None) -> SentenceTransformer:
        """The stock call_model_init; each model that it builds is as fast as the first."""
        model = cast(SentenceTransformer, super().call_model_init(trial))
        if hasattr(self, "loss"):  # else the trainer is only being built
            self._speed_up(model)
        return model

    def _speed_up(self, model: SentenceTransformer) -> None:
        device, compiled = self.args.device.type, self.args.torch_compile
        if compiled and device == "cpu":  # accelerate compiles the whole model, which must be stock modules then
            return
        if device == "cpu" and getattr(self.args, "fast_dropout", False):
            use_fast_dropout(model)
        if getattr(self.args, "packing", False):
            use_packing(model, torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None)
        if compiled:
            compile_layers(model, backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode)
            self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO  # else all of it is compiled once more

    def preprocess_dataset(
        self, dataset: DatasetDict | Dataset | None = None, dataset_name: str | None = None
    ) -> DatasetDict | Dataset | None:
        """The stock preprocess_dataset, with columns of negatives that miss some as lists; see ``list_missing``."""
        if hasattr(dataset, "_sentence_transformers_preprocessed"):
            return dataset
        dataset = list_missing(dataset, self.data_collator.valid_label_columns)
        if isinstance(dataset, DatasetDict):  # whose parts ST gives their name in place: the caller's stay as they are
            dataset = DatasetDict({name: copy.copy(part) for name, part in dataset.items()})
        return super().preprocess_dataset(dataset, dataset_name)

    def _build_dataloader(
        self, dataset: Dataset | DatasetDict | IterableDataset, batch_size: int, dataset_kind: str
    ) -> DataLoader[Batch]:
        self._orders_steps = dataset_kind == "train" and not isinstance(dataset, DatasetDict)
        dataloader = super()._build_dataloader(dataset, batch_size, dataset_kind)
        return homogeneous_dataloader(dataloader) if dataset_kind == "train" else dataloader

    def get_batch_sampler(
        self, dataset: Dataset, batch_size: int, drop_last: bool, *args: Any, **options: Any
    ) -> BatchSampler | None:
        """The stock get_batch_sampler; but HomogeneousBatchSampler orders steps of training, over all datasets.

        An evaluation has no optimizer steps that its rows could fill, and of one among several datasets only the size
        of batches is wanted.
        """
        chosen = getattr(self.args.batch_sampler, "func", self.args.batch_sampler)  # of a partial
        if chosen is HomogeneousBatchSampler and not self._orders_steps:
            sampler = RandomSampler(cast(Sized, dataset), generator=options.get("generator"))
            return DefaultBatchSampler(sampler, batch_size=batch_size, drop_last=drop_last)
        return super().get_batch_sampler(dataset, batch_size, drop_last, *args, **options)

    def should_dataset_name_column_be_added(self, dataset: object, args: object, loss: object) -> bool:
        """For several always: by the name the collator finds limits and wordings, and the log its losses."""
        return isinstance(dataset, DatasetDict)

    # Step (2).

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: object = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or go on; see ResumableTrainer.

        Raises:
            InputError: a combination of settings that is known to fail, a dataset that its loss could learn nothing
                from, or a checkpoint that cannot be used.
            ValueError: the ranks do not run the same data, code and configuration.
            NonFiniteError: too many steps in a row had a loss or gradient that is not finite.
            LostRankError: another process has ended.
            TrainingStopped: SIGTERM or SIGINT arrived; a checkpoint was saved. It is a SystemExit with code 75.
        """
        self._stopping = self.out_of_time = False
        self._started = None
        with self.signals, lost_rank(lambda: self.state.global_step):
            output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self._stopping and self.state.global_step < self.state.max_steps:
            message = (
                f"stopped by {self.signals.received or 'a signal to another rank'} at step {self.state.global_step} of "
                f"{self.state.max_steps}; the same command goes on from the checkpoint that was saved"
            )
            logger.warning(message)
            raise TrainingStopped(message)
        return output

    def evaluate(
        self,
        eval_dataset: str | Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The stock evaluation, which leaves the random numbers of training as they are.

        An encoding draws from torch's generator, so a run with other or further evaluations would drop out others.
        """
        with self.encoding():
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The stock comparison with the best search so far; whether to save now, where ``save_strategy`` is best.

        The stock trainer then forgets that a save was asked for, as it is of a last step. And the best model can be
        loaded at the end only if it was saved, also where saves are rarer than searches.
        """
        asked, best = self.control.should_save, super()._determine_best_metric(metrics, trial)
        self.control.should_save = asked or (best and self.args.load_best_model_at_end)
        return best or asked

    def _check_supported(self) -> None:
        """Refuse what is known to fail, then what could not be saved."""
        cached = sorted({type(one).__name__ for one in self._loss_modules() if caches_gradients(one)})
        dtypes = {weight.dtype for weight in self.model.parameters() if weight.requires_grad}
        check_supported(self.args, self.zero_stage, cached, dtypes)
        if isinstance(self.train_dataset, IterableDataset):
            check_stream(self.args)
        super()._check_supported()

    def _compare_ranks(self) -> None:
        """Refuse a dataset that its loss could learn nothing from, then compare the ranks."""
        datasets = self.train_datasets
        rows = [self.args.train_batch_size] * len(datasets) if self._plan is None else self._plan.device_rows.tolist()
        for (name, dataset), count in zip(datasets.items(), rows, strict=True):
            loss = self.loss[name] if isinstance(self.loss, dict) else self.loss
            check_needs(name, loss, dataset, count, self.args.world_size)
        super()._compare_ranks()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | int | None]:
        """The stock reading of the next batches, timed."""
        start = time.perf_counter()
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.add_wait(time.perf_counter() - start)
        return batches

    def _prepare_input(self, data: Any) -> Any:
        """The stock _prepare_input, which casts every float to DeepSpeed's precision, but for what a loss reads."""
        prepared = super()._prepare_input(data)
        if isinstance(data, Mapping) and isinstance(prepared, dict):
            read = (key for key in data if key == "label" or key.endswith(("_score", "_guide", "_teacher")))
            prepared |= {key: data[key].to(self.args.device) for key in read if isinstance(data[key], Tensor)}
        return prepared

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The stock step, between what the ranks must agree on and what the guard must know."""
        name, rows = inputs.get("dataset_name"), inputs.get("row_ids")
        self.step_dataset = name
        # Of the texts the first two columns: the negatives of a batch may all be missing.
        columns = [
            *[key for key in inputs if key.endswith("_input_ids")][:2],
            *[key for key in inputs if key == "label"],
        ]
        facts = {"step": self.state.global_step, "dataset": name, "columns": columns}
        asked = agree("the step", facts, self.args.device, [self.signals.received is not None, self._time_is_up()])
        self._stopping = self._stopping or any(stop for stop, _ in asked)
        self.out_of_time = self.out_of_time or any(late for _, late in asked)
        loss = super().training_step(model, dict(inputs), num_items_in_batch)
        self.guard.add(MicroStep(name, rows, inputs, loss))
        self.meter.add_batch(inputs)
        self._last_features = self.collect_features(inputs)[0]
        return loss

    def _time_is_up(self) -> bool:
        """Whether ``args.max_seconds`` have passed since this start's first step began; of this rank's clock."""
        self._started = time.monotonic() if self._started is None else self._started
        limit = getattr(self.args, "max_seconds", None)
        return limit is not None and time.monotonic() - self._started >= limit

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, object]]:
        """ST's compute_loss, added to the losses of its dataset."""
        name = inputs.get("dataset_name") or "train"  # ST takes it out
        result = super().compute_loss(cast(BaseModel, model), inputs, return_outputs, num_items_in_batch)
        if not model.training:
            return result
        loss = result[0] if isinstance(result, tuple) else result
        self.meter.add_loss(name, loss)
        return (poison(loss), result[1]) if isinstance(result, tuple) else poison(loss)

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | Tensor | None = None) -> float | Tensor:
        norm: float | Tensor = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        step = self.state.global_step + 1
        if not self.guard.judge(step, norm, self._loss_scale(), self._suspects, self._row) and not self._scaled():
            model.zero_grad()  # without gradients the optimizer changes nothing
        return norm

    def _scaled(self) -> bool:
        """Whether a loss scaler, or DeepSpeed, skips steps by itself."""
        return self.is_deepspeed_enabled or getattr(self.accelerator, "scaler", None) is not None

    def _loss_scale(self) -> float | None:
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            return float(engine.optimizer.loss_scale) if self.args.fp16 else None
        scaler = getattr(self.accelerator, "scaler", None)
        return None if scaler is None else float(scaler.get_scale())

    @torch.no_grad()
    def _suspects(self, step: MicroStep) -> list[int]:
        """Rows of a micro-step whose label, or the embedding of one of whose texts, is not finite."""
        features, labels = self.collect_features(step.inputs)
        bad: set[int] = set()
        if isinstance(labels, Tensor) and labels.is_floating_point():
            bad.update(rows_not_finite(labels))
        training = self.model.training
        self.model.eval()
        for one in features:
            rows = rows_not_finite(embed(self.model, one))
            owner = one.get("owner")
            bad.update(rows if owner is None else (int(owner[row]) for row in rows))
        self.model.train(training)
        return sorted(bad)

    def _row(self, dataset: str | None, row: int) -> dict[str, object]:
        return self.train_datasets[dataset or "train"][row]

    # Step (3).

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what meter, losses and guard have counted beside a training loss."""
        if "loss" in logs:
            logs.update(self.meter.pop())
            logs.update(alignment_and_uniformity(self.model, self._last_features))
            logs.update(self._loss_statistics())
            logs.update(self.guard.pop_statistics())
            logs.update(self.remining_statistics())
        if ("loss" in logs or "train_loss" in logs) and self.is_world_process_zero():
            for name in self.meter.newly_idle():
                logger.warning(
                    "dataset %r teaches nothing: its loss was exactly 0 in its last %d micro-steps; its rows have no "
                    "negatives that the loss reads, all its labels are the same, a batch is too small, or the model "
                    "tells its texts apart already; check its columns, loss and batch size, or leave it out",
                    name,
                    IDLE_STEPS,
                )
        super().log(logs, start_time)

    def _loss_modules(self) -> Iterator[nn.Module]:
        losses = self.loss.values() if isinstance(self.loss, dict) else [self.loss]
        for loss in losses:
            yield from loss.modules()

    def _loss_statistics(self) -> dict[str, float]:
        """What the losses counted since the last log, averaged over the losses that counted it."""
        found: dict[str, list[float]] = defaultdict(list)
        for module in self._loss_modules():
            if isinstance(module, _Counts):
                for key, value in module.pop_statistics().items():
                    found[key].append(value)
        return {key: round(sum(values) / len(values), 4) for key, values in found.items()}


class _BoundaryCallback(TrainerCallback):
    """What happens at the boundary of a step."""

    def __init__(self, trainer: PiccoloTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save and end where a signal or the clock asks for it; save the end of a run that saves the best alone.

        The clock's last step is evaluated as any last one is. A signal's is not: whoever sent it may not wait for long.
        """
        if self.trainer.args.world_size == 1 and self.trainer.signals.received is not None:
            self.trainer._stopping = True
        if self.trainer._stopping or self.trainer.out_of_time:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = not self.trainer._stopping and args.eval_strategy != "no"
        elif args.save_strategy == SaveStrategy.BEST and state.global_step >= state.max_steps:
            control.should_save = True  # by which the run is known to have ended

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Nothing more where the run ends before its time: its last step has just been saved, which ends no epoch."""
        if self.trainer._stopping or self.trainer.out_of_time:
            control.should_save = control.should_evaluate = False
