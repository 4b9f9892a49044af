"""What a run gained and what it lost elsewhere: general tasks and its own held-out queries, at its start and its end.

(1) ``score_start``: before the first step the encoder is scored on the tasks of ``evaluation.general`` and searches the
    held-out queries. The results stay in the output directory, in ``general``, where a run that goes on finds them;
(2) ``score_end``: the same of the model that the run leaves, as it was saved and as ``load_portable`` loads it: texts
    are cut and pooled as at the start;
(3) both are compared example by example, with paired bootstrap intervals (evaluation/bootstrap.py).
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from piccolo_st import evaluation  # what needs mteb is loaded where it is used
from piccolo_st.data import Mixture
from piccolo_st.distributed import process_state
from piccolo_st.errors import InputError
from piccolo_st.evaluation import Benchmark, Comparison, compare_examples, search_held_out
from piccolo_st.modeling import load_portable, load_pretrained
from piccolo_st.training.training_arguments import FinetuneConfig
from piccolo_st.turns import on_first_rank

logger = logging.getLogger(__name__)


class Forgetting:
    """The comparison of a run's start and end; nothing happens where ``evaluation.general`` is empty.

    Args:
        config: of the run.

    Raises:
        InputError: a name among those tasks is unknown.
    """

    def __init__(self, config: FinetuneConfig) -> None:
        general = config.evaluation.general or []
        self._names = [general] if isinstance(general, str) else general
        self._batch_size, self._trusted = config.evaluation.batch_size, config.model.trust_remote_code
        self._folder = Path(str(config.train.output_dir)) / "general"
        self._start: list[tuple[Benchmark, Path]] = []
        self._compared: list[Comparison] = []
        if self._names:
            evaluation.select(self._names)

    def score_start(self, mixture: Mixture, model: SentenceTransformer) -> None:
        """Step (1), which leaves the random numbers of training as they are.

        Raises:
            InputError: the tasks cannot be scored.
        """
        if self._names:
            with _random_numbers_kept(model.device):
                self._start = self._score(mixture, model, "run/start")

    def score_end(self, mixture: Mixture, folder: Path) -> None:
        """Steps (2) and (3); what fails is told, since the model is there."""
        if not self._start:
            return
        try:
            on_first_rank(lambda: None)  # none reads what the first has not written
            device, trusted = str(process_state().device), self._trusted
            place = "the model that was left"
            model = load_pretrained(load_portable, str(folder), place, device=device, trust_remote_code=trusted)
            end = self._score(mixture, model, "run/end")
            pairs = zip(self._start, end, strict=True)
            self._compared = [compare_examples((before, after), group) for (group, before), (_, after) in pairs]
        except InputError as error:
            logger.warning("what the run gained and lost is not known: %s", error)

    def _score(self, mixture: Mixture, model: SentenceTransformer, name: str) -> list[tuple[Benchmark, Path]]:
        """Each group of tasks, the run's own first, and where the examples of this model are."""
        with warnings.catch_warnings():  # of mteb's own code, as evaluate's command does
            for module in (r"mteb\.", r"sklearn\."):
                warnings.filterwarnings("ignore", module=module)
            evaluations = evaluation.evaluate(model, self._names, output=self._folder, name=name)
        for task, why in {task: why for each in evaluations for task, why in each.failures.items()}.items():
            logger.warning("%s of evaluation.general has no result and is not compared: %s", task, why)
        found = [(each.benchmark, each.folder) for each in evaluations]
        if not mixture.holdouts:
            return found
        folder = self._folder / "held-out" / evaluations[0].identity.revision / mixture.fingerprint
        held_out = on_first_rank(lambda: search_held_out(mixture, model, folder, self._batch_size))
        return [(held_out, folder), *found]

    def rows(self) -> list[dict[str, str | float]]:
        """What :class:`piccolo_st.releasing.RunRecord` keeps as ``gains``."""
        return [
            {"of": group.benchmark.name, "task": row.task, "metric": row.metric, "before": row.a, "after": row.b,
             "low": row.low, "high": row.high}
            for group in self._compared for row in group.differences
        ]  # fmt: skip

    def tables(self) -> list[str]:
        """The same for a terminal, a table for each group of tasks."""
        return [group.table("before", "after") for group in self._compared]


@contextmanager
def _random_numbers_kept(device: torch.device) -> Iterator[None]:
    """mteb's tasks seed all generators, and an encoding draws from torch's."""
    plain, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type):
        yield
    random.setstate(plain)
    np.random.set_state(numpys)
