"""A training run from its configuration to its checkpoint: what the commands pretrain and finetune drive.

(1) load the mixture; build or load the encoder; mine hard negatives (assembly.py); ask a guide and teachers about the
    texts (onlookers.py). The first rank does it, the others then find the results on disk;
(2) make sampler, losses, evaluators and the PiccoloTrainer around them (assembly.py);
(3) say what will run (summary.py); train, searching the held-out queries before, during and after;
(4) average the weights with those that the run started from, where that is asked for, and search once more; compare
    with the start on general tasks, where some are named (forgetting.py);
(5) leave in the output directory: ``model/`` (portable), ``config.yaml``, ``run.json``, ``curves.png``; of a run that
    trained an adapter, ``model/`` with it merged, and ``adapter/``.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from piccolo_st import tables
from piccolo_st.evaluation import plot_curves
from piccolo_st.modeling import save_native, wrapped
from piccolo_st.releasing import DatasetRecord, RunRecord, add_training
from piccolo_st.training.assembly import load, make_trainer
from piccolo_st.training.forgetting import Forgetting
from piccolo_st.training.guards import check_trackers
from piccolo_st.training.left import holds, saved_hash, what_was_left
from piccolo_st.training.ownership import own
from piccolo_st.training.settings import check_here, check_room
from piccolo_st.training.summary import describe, summarize
from piccolo_st.training.training_arguments import FinetuneConfig
from piccolo_st.turns import first_rank_first, on_first_rank


class TrainingRun:
    """A run that is built and ready to train.

    Attributes:
        config: the parsed configuration.
        mixture: the data.
        model: the encoder.
        train_dataset: the training sets, with their mined negatives.
        trainer: the trainer that holds all of it.
        output: the run's directory.
    """

    def __init__(self, config: FinetuneConfig) -> None:
        """Build the run.

        Args:
            config: of stage 1 or 2.

        Raises:
            InputError: a model, dataset, setting or output directory that cannot be used.
        """
        check_here(config.train)
        check_trackers(config.train.report_to or ())
        self._forgetting = Forgetting(config)
        self.config = config
        self.output = Path(str(config.train.output_dir))
        self._owned = own(self.output)
        self.mixture, self.model, self.train_dataset, seen, negatives = first_rank_first(lambda: load(config))
        on_first_rank(lambda: check_room(config.train, self.model, self.output))
        self._start: list[torch.Tensor] = []
        if config.train.average_with_start:
            self._start = [weight.detach().to("cpu", copy=True) for weight in self.model.parameters()]
        self.trainer = make_trainer(config, self.mixture, self.model, self.train_dataset, seen, negatives)
        self.trainer.left = partial(what_was_left, self.output, config.resolved)

    def describe(self) -> str:
        """What will run: steps, batch, precision and processes; of each dataset, what became of its rows."""
        return describe(self.config, self.mixture, self.train_dataset, self.trainer)

    def train(self) -> None:
        """Train, then write the model, the record and the picture; push the model where that was asked for.

        A run that had ended before is left as it is. The output directory is given up.
        """
        with self._owned:
            self._forgetting.score_start(self.mixture, self.model)
            self.trainer.train()
            left = on_first_rank(self._left) if self.trainer.finished_before else None
            if left is None:
                self._average_with_start()
                self._leave(self.trainer.seconds_so_far)
            else:
                self.trainer.state.log_history = left  # with the search of the average
                self._forgetting.score_end(self.mixture, self.output / "model")  # found where it was kept
            if self.trainer.args.push_to_hub:
                self.trainer.push_saved(self.output / "model", "End of training")

    @torch.no_grad()
    def _average_with_start(self) -> None:
        """Step (4): every weight becomes ``share * start + (1 - share) * trained``; checkpoints keep the trained."""
        if self._start:
            for weight, start in zip(self.model.parameters(), self._start, strict=True):
                weight.lerp_(start.to(weight), self.config.train.average_with_start)
            if self.trainer.evaluator is not None and self.trainer.args.eval_strategy != "no":
                self.trainer.evaluate()

    def _left(self) -> list[dict[str, Any]] | None:
        """The log of the record, where the output directory holds it and its model as this run left them."""
        try:
            record = RunRecord.read(self.output)
        except (OSError, ValueError):  # InputError among them
            return None
        log = json.loads(json.dumps(self.trainer.state.log_history))
        left = record.log[: len(log)] == log and holds(self.output, self.config.resolved, record)
        return [dict(entry) for entry in record.log] if left else None

    def _leave(self, seconds: float) -> None:
        """Write the model, its card, the record and the picture; no rank ends before all of it is there."""
        folder = self.output / "model"
        self.trainer.save_model(str(folder), _internal_call=True)
        if wrapped(self.model):
            on_first_rank(lambda: save_native(self.model, self.output / "adapter", create_model_card=False))

        self._forgetting.score_end(self.mixture, folder)

        def write() -> None:
            record = RunRecord.of(
                self.config.resolved,
                self.trainer,
                stage=self.config.data.STAGE,
                seconds=round(seconds, 1),
                mixture=self.mixture.fingerprint,
                datasets=self._datasets(),
                measured=self.trainer.remining_statistics(),
                content_hash=saved_hash(self.output, self.config.resolved),
                gains=self._forgetting.rows(),
                signature=self.trainer.signature,
            )
            record.write(self.output)
            tables.picture(plot_curves, record.log, self.output / "curves.png", self.output.name)
            add_training(folder, self.output)

        on_first_rank(write)

    def _datasets(self) -> dict[str, DatasetRecord]:
        """What each dataset of the mixture was."""
        skipped = self.trainer.plan.skipped
        used = {name: len(dataset) for name, dataset in self.train_dataset.items() if name not in skipped}
        reports = self.mixture.report.datasets
        return {n: DatasetRecord.of(spec, reports[n], used.get(n, 0)) for n, spec in self.mixture.specs.items()}

    def summary(self) -> str:
        """What was gained and lost, where everything is, and the lines that search with the model."""
        return "\n\n".join([*self._forgetting.tables(), summarize(self.config, self.mixture, self.trainer)])

    def say(self, text: str) -> None:
        """Print from the first rank."""
        if self.trainer.is_world_process_zero():
            print(f"\n{text}\n", flush=True)
