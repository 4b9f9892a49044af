"""ResumableTrainer: a SavingTrainer (saving.py) whose runs survive being killed and go on exactly.

    (1) ``train`` looks for the newest complete checkpoint of the run's directory, checks that it belongs to this run,
        and goes on from it (``args.resume``). A finished run is loaded, not trained again;
    (2) the position is a count of samples over all ranks, and a missing part of a checkpoint is an error;
    (3) nothing of a checkpoint is unpickled freely, also not by DeepSpeed.

Exact means: the same weights, bit for bit, as a run that was never interrupted, with as many processes, on the same
machine and versions. On a GPU that also takes kernels that repeat themselves (train.full_determinism).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import TrainerState, set_seed
from transformers.trainer_utils import TrainOutput

from piccolo_st._version import __version__
from piccolo_st.distributed import agree, get_rank
from piccolo_st.errors import InputError
from piccolo_st.hashing import mix
from piccolo_st.modeling import bare_encoders, check_savable, load_trained, wrapped
from piccolo_st.releasing import RunRecord
from piccolo_st.training import accepted, checkpoint, fingerprint, manifest, resume, zero
from piccolo_st.training.manifest import Checkpoint, CheckpointError
from piccolo_st.training.metrics import Batch
from piccolo_st.training.ownership import own
from piccolo_st.training.saving import SavingTrainer
from piccolo_st.turns import on_first_rank

logger = logging.getLogger(__name__)


class ResumableTrainer(SavingTrainer):
    """SentenceTransformerTrainer with complete checkpoints and exact resume; see the module's docstring.

    ``args.resume`` (``auto``) and ``args.accept_changes`` (False) are read where the arguments have them.

    Attributes:
        run_configuration: sections of the configuration that decide the run and that the trainer does not see
            otherwise, as JSON; a checkpoint of a run with others is refused.
        left: given the fingerprint, the steps of the whole run, and whether a checkpoint of the last one is there, the
            record of the run if it has ended in the output directory without one; an error where another has.
        finished_before: whether ``train`` found the run at its end already, and trained nothing.
        best_loaded: the step of the best search, where its weights took the place of the last at the end of ``train``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run_configuration: Mapping[str, object] = {}
        self.left: Callable[[Mapping[str, object], int, bool], RunRecord | None] = lambda *of: None
        self.finished_before = False
        self.best_loaded: int | None = None
        self._resumed: Checkpoint | None = None
        self._own_settings: list[dict[str, object]] = []
        self._starting_weights = fingerprint.weights_fingerprint(self.model)

    # Step (1).

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: object = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or go on.

        Args:
            resume_from_checkpoint: None does what ``args.resume`` says; True demands a checkpoint in the output
                directory; False starts anew; a path names the checkpoint.
            trial: of ``hyperparameter_search``; each starts anew, in a directory of its own.
            ignore_keys_for_eval: of the stock trainer.

        Raises:
            CheckpointError: the checkpoint to go on from is broken, missing or of another run.
            InputError: another process writes to the output directory, or no checkpoint could hold the model.
        """
        with own(str(self.args.output_dir)):
            self._called, self.best_loaded = time.perf_counter(), None
            wanted = resume_from_checkpoint
            if wanted is None:
                wanted = False if trial is not None else getattr(self.args, "resume", "never")
            if trial is not None:  # the stock trainer sets arguments and model later than they are compared
                self._hp_search_setup(trial)
                if self.model is None:  # the search drops the model of the trial before
                    self.model = self.call_model_init(trial)
                self._starting_weights = fingerprint.weights_fingerprint(self.model)
            self._check_supported()
            steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
            self._fingerprint = fingerprint.run_fingerprint(
                self.args,
                self._plan.signature() if self._plan is not None else {},
                fingerprint.data_fingerprints(self.train_datasets),
                {**self.run_configuration, "trainer": fingerprint.trainer_fingerprint(self, self._starting_weights)},
            )
            self._compare_ranks()
            output_dir = Path(self._get_output_dir(trial))
            found = self._resumed = on_first_rank(lambda: self._find(wanted, output_dir, steps))
            self._seconds_before = 0.0 if found is None else float(found.run.get("seconds", 0.0))
            self.finished_before = found is not None and found.step >= steps
            if self.finished_before or (found is None and wanted == "auto"):
                left = on_first_rank(lambda: self.left(self._fingerprint, steps, self.finished_before))
                if left is not None:
                    return self._load_left(left, output_dir)
            if found is None:
                return super().train(None, trial, ignore_keys_for_eval)
            if self.finished_before:
                return self._load_finished(found)
            logger.info("going on from %s, step %d of %d", found.path, found.step, steps)
            on_start, self.args.eval_on_start = self.args.eval_on_start, False  # the run started long ago
            try:
                return super().train(str(found.path), trial, ignore_keys_for_eval)
            finally:
                self.args.eval_on_start = on_start

    def _check_supported(self) -> None:
        """Refuse a model that no checkpoint could hold."""
        on_first_rank(lambda: check_savable(self.model))

    def _compare_ranks(self) -> None:
        """Compare data, code and configuration before a rank could wait in vain for another."""
        # Not the weights: those of the first rank are what DistributedDataParallel gives to all.
        facts = {name: value for name, value in self._fingerprint.items() if not name.endswith("starting weights")}
        facts |= {f"columns of {name}": sorted(one.column_names) for name, one in self.train_datasets.items()}
        facts |= {"engine": self._engine(), "piccolo_st": __version__, "torch": torch.__version__}
        facts["parameters"] = sum(parameter.numel() for parameter in self.model.parameters())
        agree("the run", facts, self.args.device, remedy="start every process from the same files and configuration")

    def _find(self, wanted: str | bool, output_dir: Path, steps: int) -> Checkpoint | None:
        """The checkpoint to go on from, checked; None to start anew. Runs on the first rank alone."""
        checkpoint.recover(output_dir)
        if wanted is False or wanted == "never":
            aside = checkpoint.set_aside(output_dir)
            if aside is not None:
                logger.warning("starting anew; the checkpoints of the earlier run are now in %s", aside)
            return None
        words = resume.words(self.run_configuration)
        if isinstance(wanted, str) and wanted != "auto":
            found = manifest.verify(Path(wanted))
            self._check_complete(found)
        else:
            newest, skipped = checkpoint.newest_complete(output_dir, self._check_complete)
            for reason in skipped:
                logger.warning("passed over: %s", reason)
            if newest is None and (wanted is True or skipped):
                raise CheckpointError(
                    f"there is no complete checkpoint in {output_dir} to go on from"
                    + (f" ({'; '.join(skipped)})" if skipped else "")
                    + f"; start anew with {words.never}"
                )
            if newest is None:
                return None
            found = newest
        accept = bool(getattr(self.args, "accept_changes", False))
        elastic, ended = [resume.PLAIN, *zero.CONVERTIBLE], found.step >= steps
        resume.decide(found, self._facts(), accept, elastic, words, ended)
        return found

    def _check_complete(self, found: Checkpoint) -> None:
        resume.check_complete(found, zero.deepspeed_classes() if self.is_deepspeed_enabled else ())

    def _load_finished(self, found: Checkpoint) -> TrainOutput:
        """Take over the weights and the record of a run that has taken all its steps."""
        words = resume.words(self.run_configuration)
        logger.warning(
            f"{found.path} is the end of this run, so nothing is trained. To train again, use {words.never} or another "
            f"{words.output}; to train longer, raise the number of steps or epochs with {words.accept}"
        )
        self.state = TrainerState.load_from_json(str(found.path / "trainer_state.json"))
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None and Path(best).is_dir():
            self._load_best_model()
        else:
            self._tell_of_no_best()
            self._load_from_checkpoint(str(found.path))
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return TrainOutput(found.step, losses[-1] if losses else float("nan"), {})

    def _load_left(self, record: RunRecord, output_dir: Path) -> TrainOutput:
        """Take over the model and the log of a run that has ended and kept no checkpoint."""
        words = resume.words(self.run_configuration)
        logger.warning(
            f"{output_dir} holds what this run left, so nothing is trained. To train again, use {words.never} or "
            f"another {words.output}"
        )
        self.finished_before = True
        self.state.log_history = [{**entry} for entry in record.log]
        self.state.global_step = self.state.max_steps = record.steps or 0
        self._load_from_checkpoint(str(output_dir / ("adapter" if wrapped(self.model) else "model")))
        return TrainOutput(self.state.global_step, float("nan"), {})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The stock save_model, of a finished run too."""
        if self.finished_before and self.is_deepspeed_enabled:  # which was not started: nothing was trained
            self._save(output_dir or self.args.output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    # Step (2).

    def _init_training_state(self, max_steps: int, *args: object, **kwargs: object) -> tuple[int, int]:
        if self._resumed is None:
            started: tuple[int, int] = super()._init_training_state(max_steps, *args, **kwargs)
            return started
        with resume.loading(self._resumed.path):
            epoch, step = super()._init_training_state(max_steps, *args, **kwargs)
            resume.load_negatives(self.negatives, self._resumed.path)
        self.state.compute_steps(self.args, max_steps)  # the file has the intervals of the run before
        cursor = self._resumed.run["cursor"]
        if self._streamed and "place" in self._resumed.run:  # stock, the first pass over a stream is the only one
            epoch, read = self._resumed.run["place"]
            return epoch, 0 if self.args.ignore_data_skip else read
        if self._plan is None or cursor is None:
            return epoch, step
        epoch, step = self._plan.position(cursor)
        if step % self.args.gradient_accumulation_steps:
            raise InputError(
                f"{self._resumed.path} stands {step} batches into epoch {epoch}, which is inside an optimizer step of "
                f"{self.args.gradient_accumulation_steps}; go on with the train.gradient_accumulation_steps it had"
            )
        return epoch, step

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with resume.loading(Path(resume_from_checkpoint)):
            if not load_trained(self.model, Path(resume_from_checkpoint)):
                with bare_encoders(self.model):
                    super()._load_from_checkpoint(resume_from_checkpoint)
            resume.load_loss(self.loss, Path(resume_from_checkpoint))

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The stock create_scheduler, after which a checkpoint takes the place of the optimizer's settings."""
        schedule = super().create_scheduler(num_training_steps, optimizer)
        if self._resumed is not None and self.optimizer is not None:
            named = self.get_optimizer_cls_and_kwargs(self.args, self.model)[1]
            self._own_settings = accepted.own_settings(self.optimizer, named)
        return schedule

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with resume.loading(Path(str(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)
        optimizer, schedule, found = self.optimizer, self.lr_scheduler, self._resumed
        assert optimizer is not None and schedule is not None and found is not None
        if fingerprint.changes(found.run["signature"], self._fingerprint):
            accepted.put_back(self._own_settings, optimizer, schedule)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with resume.loading(Path(str(checkpoint))):
            super()._load_scaler(checkpoint)

    def _finalize_training(self, *args: Any) -> TrainOutput:
        if self.state.best_model_checkpoint is None:
            self._tell_of_no_best()
        # With a limit of 1 the stock trainer deletes here all checkpoints but the best: the one that a stopped run goes
        # on from, and the one by which a run is known to have ended. ``checkpoint.rotate`` has seen to the limit.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output: TrainOutput = super()._finalize_training(*args)
            return output
        finally:
            self.args.save_total_limit = limit

    def _tell_of_no_best(self) -> None:
        if self.args.load_best_model_at_end:
            logger.warning(
                "train.load_best_model_at_end loads the checkpoint of the best search, and there is none%s; the "
                "weights are those of the last step",
                f" of step {self.state.best_global_step}" if self.state.best_global_step else "",
            )

    def _load_best_model(self) -> None:
        # Not ST's, which logs what fails and leaves the last weights in the place of the best.
        best = Path(str(self.state.best_model_checkpoint))
        on_first_rank(lambda: self._check_best(best))
        self.best_loaded = manifest.step_of(best)
        self.model.model_card_data.set_best_model_step(self.best_loaded)
        self._load_from_checkpoint(str(best))

    @staticmethod
    def _check_best(best: Path) -> None:
        try:
            manifest.verify(best)
        except CheckpointError as error:
            raise CheckpointError(
                f"the best model cannot be loaded: {error}; to leave that of the last step, set "
                "train.load_best_model_at_end to false and start the run again"
            ) from error

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._resumed is None:
            return
        if self._resumed.run["world_size"] != self.args.world_size:
            # No generator of that run belongs to this rank; the one it gets depends on nothing that happened before.
            set_seed(mix(self.args.seed, self._resumed.step, self.args.world_size, get_rank()) % 2**32)
        else:
            with resume.loading(self._resumed.path):
                super()._load_rng_state(checkpoint)

    # Step (3).

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Batch], resume_from_checkpoint: str | None
    ) -> object:
        found = self._resumed
        with contextlib.ExitStack() as stack:
            if resume_from_checkpoint is not None:
                classes = zero.deepspeed_classes() if self.is_deepspeed_enabled else []
                stack.enter_context(resume.weights_only(classes))
            if found is not None and self.is_deepspeed_enabled and found.run["world_size"] != self.args.world_size:
                self._load_from_checkpoint(str(found.path))  # what is not trained, too
                stack.enter_context(zero.load_universal(self.accelerator.state.deepspeed_plugin))
                resume_from_checkpoint = str(
                    stack.enter_context(zero.universal(found, Path(str(self.args.output_dir))))
                )
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
