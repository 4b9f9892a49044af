"""PiccoloTrainer: SentenceTransformerTrainer with Piccolo's collator, sampler, reading, logs and saving.

Only what ST's trainer cannot be told by its arguments stands here:

    (1) each batch is read at once from one Arrow table (``homogeneous_dataloader``), and the dataloader is checked
        against the plan before the first step;
    (2) what the losses count (masked false negatives) and the loss of each dataset enter the trainer's logs, and so
        every tracker;
    (3) the progress bar says which dataset the step came from;
    (4) a checkpoint holds a portable model (``save_portable``) and nothing that would have to be unpickled to load it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_callback import ProgressCallback

from piccolo_st.arguments import PiccoloTrainingArguments
from piccolo_st.data.collator import PiccoloDataCollator
from piccolo_st.data.reading import homogeneous_dataloader
from piccolo_st.data.sampler import HomogeneousBatchSampler, check_dataloader
from piccolo_st.portable import save_portable

logger = logging.getLogger(__name__)


class PiccoloTrainer(SentenceTransformerTrainer):
    """SentenceTransformerTrainer for Piccolo; see the module's docstring for what it adds.

    It takes the arguments of SentenceTransformerTrainer. ``args.multi_dataset_batch_sampler`` should be
    HomogeneousBatchSampler (or a partial of it); any other sampler of ST works and loses reading at once.
    """

    training_args_class = PiccoloTrainingArguments
    data_collator_class = PiccoloDataCollator

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step_dataset: str | None = None
        # dataset -> [sum of losses, steps] since the last log; sums stay on the device until then.
        self._dataset_losses: dict[str, list[Any]] = defaultdict(lambda: [0.0, 0])
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(_DatasetProgressCallback(self))

    def _build_dataloader(self, dataset: Any, batch_size: int, dataset_kind: str) -> DataLoader:
        dataloader = super()._build_dataloader(dataset, batch_size, dataset_kind)
        return homogeneous_dataloader(dataloader) if dataset_kind == "train" else dataloader

    def get_train_dataloader(self) -> DataLoader:
        """The training batches of this rank; with a HomogeneousBatchSampler they are checked against its plan."""
        dataloader = super().get_train_dataloader()
        sampler = self.args.multi_dataset_batch_sampler
        if getattr(sampler, "func", sampler) is HomogeneousBatchSampler:
            check_dataloader(dataloader)
        return dataloader

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """ST's compute_loss; remembers the dataset and adds the loss to that dataset's account."""
        name = inputs.get("dataset_name")
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            loss = result[0] if isinstance(result, tuple) else result
            self.step_dataset = name
            account = self._dataset_losses[name or "train"]
            account[0] = account[0] + loss.detach()
            account[1] += 1
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean loss of each dataset and the losses' own statistics beside a training loss.

        The numbers are this rank's; ranks share a dataset at every step, so rank 0 knows all of them.
        """
        if "loss" in logs:
            if len(self._dataset_losses) > 1:
                for name, (total, steps) in sorted(self._dataset_losses.items()):
                    logs[f"loss_{name}"] = round(float(total) / steps, 4)
            self._dataset_losses.clear()
            logs.update(self._loss_statistics())
        super().log(logs, start_time)

    def _loss_statistics(self) -> dict[str, float]:
        """What the losses counted since the last log, averaged over the losses that counted it."""
        losses = self.loss.values() if isinstance(self.loss, dict) else [self.loss]
        found: dict[str, list[float]] = defaultdict(list)
        for loss in losses:
            for module in loss.modules():
                if hasattr(module, "pop_statistics"):
                    for key, value in module.pop_statistics().items():
                        found[key].append(value)
        return {key: round(sum(values) / len(values), 4) for key, values in found.items()}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # ST would save its own layout, the tokenizer a second time with this run's truncation baked in, and a pickle
        # of the arguments. Only rank 0 comes here.
        folder = output_dir if output_dir is not None else self.args.output_dir
        logger.info("Saving model checkpoint to %s", folder)
        save_portable(self.model, folder)


class _DatasetProgressCallback(ProgressCallback):
    """The progress bar, with the name of the dataset that the step came from behind it."""

    def __init__(self, trainer: PiccoloTrainer) -> None:
        super().__init__()
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the dataset's name, then let the bar advance."""
        if self.training_bar is not None and self.trainer.step_dataset:
            self.training_bar.set_postfix_str(self.trainer.step_dataset, refresh=False)
        super().on_step_end(args, state, control, **kwargs)
