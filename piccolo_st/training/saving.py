"""SavingTrainer: SentenceTransformerTrainer whose checkpoints are complete, and say where in its run each stands.

(1) the position is a count of the batches that this rank has read; what draws them, and which mined negatives are in
    use, is part of it;
(2) ``_save_checkpoint`` lets the stock trainer write into a hidden folder, then seals and publishes it (see
    checkpoint.py). When one rank fails, all do, and the earlier checkpoints stay;
(3) it holds a portable model (``save_portable``), or the adapter that is trained, and nothing that would have to be
    unpickled to load it. Its weights are those that are trained, float32 where ZeRO computes with others, and so are
    the model's when ``train`` has ended.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import TrainOutput

from piccolo_st.batches import BatchPlan, HomogeneousBatchSampler, check_dataloader
from piccolo_st.mining import NegativesInUse
from piccolo_st.modeling import exchanged, problems, save_native, save_portable, wrapped
from piccolo_st.releasing import PortablePushes
from piccolo_st.training import checkpoint, disk, manifest, resume, zero
from piccolo_st.training.manifest import RunFacts
from piccolo_st.training.metrics import Batch
from piccolo_st.training.remining import ReminingCallback
from piccolo_st.turns import fail_together, on_first_rank

logger = logging.getLogger(__name__)


class SavingTrainer(PortablePushes, SentenceTransformerTrainer):
    """SentenceTransformerTrainer with complete checkpoints; see the module's docstring.

    Attributes:
        negatives: which mined negatives are in use, if they change while the run goes on; see ``remine``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.negatives: NegativesInUse | None = None
        self._called = time.perf_counter()
        self._seconds_before = 0.0  # of the run, when the checkpoint was written that it went on from
        self._plan: BatchPlan | None = None
        self._fingerprint: dict[str, object] = {}
        self._position = (0, 0)  # epoch, and batches of it that this rank has read
        self._dtypes: dict[str, torch.dtype] = {}  # of the weights, before an engine cast them
        self._writing: Path | None = None  # the hidden folder, while a checkpoint is being written

    # Step (1).

    @property
    def train_datasets(self) -> Mapping[str, Dataset | IterableDataset]:
        """The training sets by name; a single one is called ``train``."""
        return self.train_dataset if isinstance(self.train_dataset, Mapping) else {"train": self.train_dataset}

    @property
    def _streamed(self) -> bool:
        return isinstance(self.train_dataset, IterableDataset)  # and has no rows to draw

    @property
    def plan(self) -> BatchPlan:
        """The plan of the batches, which a HomogeneousBatchSampler has."""
        return self._plan if self._plan is not None else check_dataloader(self.get_train_dataloader()).plan

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """The training batches of this rank; with a HomogeneousBatchSampler they are checked against its plan."""
        dataloader = super().get_train_dataloader()
        multi = isinstance(self.train_dataset, Mapping)
        sampler = self.args.multi_dataset_batch_sampler if multi else self.args.batch_sampler
        if not self._streamed and getattr(sampler, "func", sampler) is HomogeneousBatchSampler:
            found = check_dataloader(dataloader)
            self._plan, found.in_use = found.plan, self.negatives
        return dataloader

    def remine(self, negatives: NegativesInUse) -> None:
        """Let the negatives change while the run goes on; its checkpoints hold which are in use."""
        self.negatives = negatives
        self.add_callback(ReminingCallback(negatives, lambda: self.plan, self._judging))

    @contextlib.contextmanager
    def _judging(self) -> Iterator[SentenceTransformer]:
        with self.encoding(), self.accelerator.autocast():
            yield self.model

    @contextlib.contextmanager
    def encoding(self) -> Iterator[None]:
        """Encode between two steps: the random numbers of training, from which an encoding draws, stay as they are."""
        kind = self.args.device.type
        with torch.random.fork_rng([self.args.device] if kind == "cuda" else [], device_type=kind):
            yield

    def remining_statistics(self) -> dict[str, float]:
        """What re-mining has done so far, and the share of the run's time that it took; empty without it."""
        if self.negatives is None:
            return {}
        share = self.negatives.seconds / max(self.seconds_so_far, 1e-9)
        return {**self.negatives.statistics(), "remining_time": round(share, 4)}

    def _run_epoch(self, *args: object, **kwargs: Any) -> None:
        first = kwargs["epoch"] == kwargs["epochs_trained"]
        self._position = (kwargs["epoch"], kwargs["steps_trained_in_current_epoch"] if first else 0)
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The stock step, counted."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._position = (self._position[0], self._position[1] + 1)
        return loss

    # Step (2).

    def _get_output_dir(self, trial: object) -> str:
        return str(self._writing) if self._writing is not None else super()._get_output_dir(trial)

    def _prepare_for_training(self, *args: Any) -> object:
        self._dtypes = {name: weight.dtype for name, weight in self.model.named_parameters()}
        return super()._prepare_for_training(*args)  # type: ignore[no-untyped-call]

    def _finalize_training(self, *args: Any) -> TrainOutput:
        for weight, name, value in self._cast_weights():
            setattr(weight, name, value)
        output: TrainOutput = super()._finalize_training(*args)  # type: ignore[no-untyped-call]
        return output

    def _cast_weights(self, keep: bool = True) -> list[tuple[nn.Parameter, str, Tensor]]:
        """What ZeRO trains in the place of weights that it has cast; see zero.py."""
        return zero.trained_weights(self.model, self._dtypes, keep) if self.zero_stage in (1, 2) else []

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The stock save_model; while a checkpoint is written, all ranks fail where the writing one does."""
        error: Exception | None = None
        try:
            with exchanged(self._cast_weights(self.args.should_save)):
                super().save_model(output_dir, _internal_call)
        except Exception as raised:
            if self._writing is None:
                raise
            error = raised
        if self._writing is not None:
            fail_together(error)  # now: the other ranks would wait for this one in what the stock trainer does next

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        output_dir, step = Path(self._get_output_dir(trial)), self.state.global_step
        try:
            folder = on_first_rank(lambda: checkpoint.begin(output_dir, step))
        except Exception as error:
            raise disk.cannot_write(output_dir, step, error) from error
        failure = self._write_parts(folder, model, trial)
        if failure is not None and self.is_deepspeed_enabled:
            # The others may wait for this rank inside DeepSpeed, and learn of its end from the broken connection.
            raise disk.cannot_write(output_dir, step, failure) from failure
        try:
            fail_together(failure)
            on_first_rank(lambda: self._finish(folder))
        except Exception as error:
            if self.is_world_process_zero():
                checkpoint.discard(folder)
            raise disk.cannot_write(output_dir, step, error) from error
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(output_dir / folder.name))

    def _write_parts(self, folder: Path, model: nn.Module, trial: object) -> Exception | None:
        """Let the stock trainer write this rank's parts; its error, if it had one."""
        self._writing = folder.parent
        try:
            engine = self.model_wrapped if self.is_deepspeed_enabled else None
            with zero.without_secrets(engine):
                super()._save_checkpoint(model, trial)
            if self.args.should_save:
                resume.save_loss(self.loss, folder)
                if self.negatives is not None:
                    self.negatives.save(folder)
        except Exception as error:
            return error
        finally:
            self._writing = None
            best = self.state.best_model_checkpoint
            if best is not None and Path(best) == folder:
                self.state.best_model_checkpoint = str(folder.parent.parent / folder.name)
        return None

    def _finish(self, folder: Path) -> None:
        """Seal, publish and rotate; on the first rank alone."""
        self.state.save_to_json(str(folder / "trainer_state.json"))  # again: the best one may have a new place
        facts = self._facts()
        manifest.seal(folder, facts, resume.expected_parts(facts, self.state.global_step))
        final = checkpoint.publish(folder)
        best = self.state.best_model_checkpoint
        checkpoint.rotate(final.parent, self.args.save_total_limit, [Path(best)] if best else [])

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing while the folder may still be renamed; ``_save_checkpoint`` pushes the final one."""

    def _facts(self) -> RunFacts:
        """What a checkpoint says about its run."""
        place: RunFacts = {"place": [*self._position]} if self._streamed else {}
        return {
            **place,
            "signature": self._fingerprint,
            "cursor": self._plan.cursor(*self._position) if self._plan is not None else None,
            "world_size": self.args.world_size,
            "engine": self._engine(),
            "scaler": getattr(self.accelerator, "scaler", None) is not None,
            "resumable": not self.args.save_only_model,
            "seconds": round(self.seconds_so_far, 1),
            "environment": resume.environment(self.args),
        }

    @property
    def signature(self) -> Mapping[str, object]:
        """The fingerprint of the run, once ``train`` has been called."""
        return self._fingerprint

    @property
    def seconds_so_far(self) -> float:
        """Seconds since ``train`` was called, and those that led to the checkpoint that it went on from."""
        return self._seconds_before + time.perf_counter() - self._called

    def _engine(self) -> str:
        if self.is_deepspeed_enabled:
            return f"DeepSpeed ZeRO-{self.zero_stage}"
        return "FSDP" if self.is_fsdp_enabled else resume.PLAIN

    @property
    def zero_stage(self) -> int | None:
        """The stage of DeepSpeed ZeRO, or None without DeepSpeed."""
        if not self.is_deepspeed_enabled:
            return None
        settings = self.accelerator.state.deepspeed_plugin.hf_ds_config.config
        return int(settings.get("zero_optimization", {}).get("stage", 0))

    # Step (3).

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # ST would save its own layout, the tokenizer a second time with this run's truncation baked in, and a pickle
        # of the arguments, and all that on every rank at once: transformers 5 comes here with each of them.
        if not self.args.should_save:
            return
        folder = output_dir if output_dir is not None else self.args.output_dir
        logger.info("Saving model checkpoint to %s", folder)
        # A card takes longer to write than a small model, and nobody reads that of a checkpoint unless it is pushed.
        adapter = self._writing is not None and wrapped(self.model)
        save = save_native if adapter or problems(self.model) else save_portable
        save(self.model, str(folder), create_model_card=self._writing is None or self.args.push_to_hub)
