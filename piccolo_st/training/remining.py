"""Re-mining in a run: at the end of some steps coming rows' negatives are judged by the model as it is then.

Every rank encodes its share of the rows and gathers the others' scores, so that all of them go on with the same state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from piccolo_st.batches import BatchPlan
from piccolo_st.distributed import gather_rows, get_rank, get_world_size
from piccolo_st.errors import InputError
from piccolo_st.mining import NegativesInUse, due


class ReminingCallback(TrainerCallback):
    """Judges the negatives of coming rows.

    Args:
        negatives: the run's, which its checkpoints hold.
        plan: gives the plan of its batches.
        encoding: in which its model, which it gives, may encode.
    """

    def __init__(
        self,
        negatives: NegativesInUse,
        plan: Callable[[], BatchPlan],
        encoding: Callable[[], AbstractContextManager[SentenceTransformer]],
    ) -> None:
        self.negatives, self.plan, self.encoding = negatives, plan, encoding

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Refuse to read batches further ahead than a judgement holds.

        Raises:
            InputError: naming the settings.
        """
        check_ahead(args, self.negatives.settings.ahead(self.plan()))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Judge, if it is time to."""
        plan, settings = self.plan(), self.negatives.settings
        if state.global_step % settings.interval(plan):
            return
        begin = state.global_step + settings.ahead(plan)
        end = min(begin + settings.interval(plan), state.max_steps)
        if begin >= end:
            return
        start = time.perf_counter()
        with self.encoding() as model:
            for dataset, rows in self._due(plan, begin, end).items():
                self._judge(self.negatives.names[dataset], rows, model, args.device)
        self.negatives.held_from = begin
        self.negatives.seconds += time.perf_counter() - start

    def _due(self, plan: BatchPlan, begin: int, end: int) -> dict[int, NDArray[np.int64]]:
        """Rows of every dataset that is re-mined, of some perhaps none, in one order."""
        found = due(plan, begin, end, self.negatives.settings.share)
        names = self.negatives.names
        return {
            index: found.get(index, np.empty(0, np.int64))
            for index in range(len(names))
            if names[index] in self.negatives.datasets
        }

    def _judge(self, name: str, rows: NDArray[np.int64], model: SentenceTransformer, device: torch.device) -> None:
        own, settings, world = self.negatives.datasets[name], self.negatives.settings, get_world_size()
        mine = rows[get_rank() :: world]
        scores, right = own.judge(model, mine, settings)
        parts = gather_rows(torch.from_numpy(np.column_stack([scores, right])).to(device))
        found = np.empty((len(rows), scores.shape[1] + 1), np.float32)
        found[np.concatenate([np.arange(rank, len(rows), world) for rank in range(world)])] = (
            parts[0].rows.cpu().numpy()
        )
        self.negatives.judged += int((~np.isnan(found[:, :-1])).sum())
        self.negatives.replaced += own.update(rows, found[:, :-1], found[:, -1], settings)


def check_ahead(args: TrainingArguments, ahead: int) -> None:
    """Refuse workers that read batches of steps for which the negatives are not known yet.

    Raises:
        InputError: naming the settings.
    """
    workers = args.dataloader_num_workers
    read = workers * (args.dataloader_prefetch_factor or 2) if workers else 0
    needed = 2 + read // args.gradient_accumulation_steps
    if ahead < needed:
        raise InputError(
            f"data.remining needs batches to be read at most {ahead} optimizer steps ahead, got {needed} with "
            f"train.dataloader_num_workers {workers}; use fewer of them, or raise data.remining.every"
        )
