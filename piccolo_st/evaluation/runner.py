"""Evaluate a model on benchmarks: only what is missing is run, task by task, and every finished task is kept.

For each task and each size of vectors, in order:

(1) The main process reads the result file of this model's identity. A file that cannot be read is set aside under
    another name and said so; one of another revision of the data is not used. Splits that it has are not run again.
(2) The task's data is loaded, the main process first. Without a network this ends the evaluation with what to do;
    a single data set that cannot be had is noted as a failure and the next task follows, as is a task that another
    process is evaluating for the same result file.
(3) mteb evaluates the missing splits with :class:`~piccolo_st.evaluation.mteb_model.BenchmarkEncoder`. Every rank takes
    part in the encoding; every rank then scores, and only the main process keeps the scores.
(4) The examples, then the result file are written. An interruption loses the running task and nothing else: a result
    file torn in the middle is what (1) sets aside.

Each size starts from a fresh copy of the task, because mteb's random state belongs to the task object, and all
of them share one encoding.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import mteb
from accelerate.utils import broadcast_object_list, gather_object
from datasets.exceptions import DatasetNotFoundError
from mteb.abstasks.abstask import AbsTask
from mteb.cache import ResultCache
from mteb.results import TaskResult

from piccolo_st.distributed import process_state
from piccolo_st.errors import InputError, reason
from piccolo_st.evaluation import per_example
from piccolo_st.evaluation.benchmarks import BenchmarkTask
from piccolo_st.evaluation.loading import Loaded, load_model
from piccolo_st.evaluation.local_types import LocalTask
from piccolo_st.evaluation.mteb_model import BenchmarkEncoder
from piccolo_st.evaluation.results import ResultFile, from_mteb, task_scores
from piccolo_st.evaluation.scores import Evaluation
from piccolo_st.evaluation.small_vectors import FACTS, PRECISIONS, Precision
from piccolo_st.evaluation.tasks import TaskGroup, select
from piccolo_st.hub import from_cache_if_unreachable
from piccolo_st.modeling import Identity, InstructionSpec
from piccolo_st.ownership import own

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

Size: TypeAlias = tuple[int | None, Precision | None]
"""How large the vectors are that are scored: dimensions, None for all, and what a search keeps of each."""


@dataclass(frozen=True)
class TaskOutcome:
    """What :func:`evaluate` reports after each task, on the main process.

    Attributes:
        task: the task and the metric that counts.
        number, total: its place in its group, from 1.
        truncation: the number of dimensions scored, or None for all.
        precision: what a search keeps of each, or None for mteb's own search.
        score: the main score in percent; None for a failure.
        seconds: how long it took; None when the result was there already.
        note: why a result was not used, or why there is none.
    """

    task: BenchmarkTask
    number: int
    total: int
    truncation: int | None
    precision: Precision | None
    score: float | None
    seconds: float | None
    note: str = ""


def evaluate(
    model: SentenceTransformer | str | Path,
    benchmark: str | Sequence[str] = "c-mteb-35",
    *,
    output: str | Path = "results",
    name: str | None = None,
    revision: str | None = None,
    truncate_dim: int | Sequence[int] = (),
    precision: Precision | Sequence[Precision] = (),
    dtype: str | None = None,
    device: str | None = None,
    instructions: InstructionSpec | None = None,
    tokens_per_batch: int | None = None,
    overwrite: bool = False,
    on_task: Callable[[TaskOutcome], None] | None = None,
    progress: bool = False,
) -> list[Evaluation]:
    """Evaluate a model with mteb's own tasks and keep the results in mteb's layout.

    They are ``output/results/<org>__<name>/<revision>/<Task>.json``; truncations and dtypes are experiments below it.

    Args:
        model: a model, a directory, or a repository on the Hub.
        benchmark: names of benchmarks, tasks, task types or files of local tasks; see ``tasks.py``.
        output: folder of all results.
        name: ``org/name`` to store the results under; made from ``model`` by default.
        revision: branch, tag or commit of a repository.
        truncate_dim: score this number of leading dimensions, or these, each, from one encoding; by default all.
        precision: search with "float32", "int8" or "binary" vectors, or several of these, each, from the same encoding.
            Retrieval tasks only; see :mod:`piccolo_st.evaluation.small_vectors`.
        dtype: evaluate in "float16" or "bfloat16", whatever the weights are stored in.
        device: where to load a directory or repository to.
        instructions: in place of the model's own prompts: a preset's name or ``{"query": ..., "document": ...}``.
        tokens_per_batch: longest batch in tokens, padding included.
        overwrite: run every task again.
        on_task: called after each task and truncation, on the main process.
        progress: show a progress bar for every list of texts.

    Returns:
        One :class:`Evaluation` for every group of tasks, truncation and precision, groups first, on every rank.

    Raises:
        InputError: a name, row, truncation, text or embedding that cannot be used, or no Hub; what is finished stays.

    Example:
        >>> pairs = "sentence1,sentence2,score\\n天气,今天有雨,2\\n天气,水果,0\\n"
        >>> _ = Path("pairs.csv").write_text(pairs, encoding="utf-8")
        >>> _ = Path("mine.yaml").write_text("tasks: [{name: Pairs, type: STS, data: pairs.csv}]")
        >>> list(evaluate("runs/quickstart/model", "mine.yaml")[0].scores)
        ['Pairs']
    """
    truncate_dim = [truncate_dim] if isinstance(truncate_dim, int) else truncate_dim
    precision = [precision] if isinstance(precision, str) else precision
    groups = select(benchmark)
    tasks = [task for group in groups for task in group.tasks]
    for local in (task for task in tasks if isinstance(task, LocalTask)):
        local.read()  # a row that cannot be used is an error now, and not hours later behind other tasks
    loaded = load_model(model, name=name, revision=revision, device=device, dtype=dtype, instructions=instructions)
    sizes = [
        (one, small) for one in _truncations(loaded, truncate_dim) for small in _precisions(precision, groups, loaded)
    ]
    encoder = BenchmarkEncoder(
        loaded.model, loaded.identity, loaded.settings, tokens_per_batch=tokens_per_batch, progress=progress
    )
    encoder.remember = len(sizes) > 1 or any(len(task.eval_splits) > 1 for task in tasks)
    run = _Run(encoder, ResultCache(Path(output)), overwrite, on_task or (lambda outcome: None))
    return [evaluation for group in groups for evaluation in run.group(group, loaded.identity, sizes)]


def _truncations(loaded: Loaded, wanted: Sequence[int]) -> list[int | None]:
    whole = loaded.model.get_embedding_dimension() or 0
    bad = [dimension for dimension in wanted if not 1 <= dimension <= whole]
    if bad:
        raise InputError(f"truncate_dim must be between 1 and the model's {whole} dimensions, got {bad[0]}")
    return [None if dimension == whole else dimension for dimension in dict.fromkeys(wanted)] or [None]


def _precisions(wanted: Sequence[Precision], groups: Sequence[TaskGroup], loaded: Loaded) -> list[Precision | None]:
    if unknown := [one for one in wanted if one not in PRECISIONS]:
        raise InputError(f"precision must be of {', '.join(PRECISIONS)}, got {unknown[0]!r}")
    others = [task.name for group in groups for task in group.benchmark.tasks if task.type != "Retrieval"]
    if wanted and others:
        raise InputError(
            f"precision is that of a search, and for Retrieval tasks alone, got {others[0]}; name such tasks with "
            "--benchmark, or Retrieval for those of c-mteb-35"
        )
    similarity = loaded.model.similarity_fn_name
    if wanted and similarity not in ("cosine", "dot"):
        raise InputError(
            f"a search with a precision is by the cosine or the inner product, got a model whose similarity_fn_name is "
            f"{similarity!r}; evaluate it without precision"
        )
    return list(dict.fromkeys(wanted)) or [None]


class _Run:
    """The loop over tasks; see the module docstring for the steps."""

    def __init__(
        self, encoder: BenchmarkEncoder, cache: ResultCache, overwrite: bool, on_task: Callable[[TaskOutcome], None]
    ) -> None:
        self.encoder = encoder
        self.cache = cache
        self.overwrite = overwrite
        self.on_task = on_task
        self.state = process_state()

    def group(self, group: TaskGroup, identity: Identity, sizes: Sequence[Size]) -> Iterator[Evaluation]:
        results: dict[Size, dict[str, ResultFile]] = {size: {} for size in sizes}
        failures: dict[str, str] = {}
        for number, (definition, task) in enumerate(zip(group.benchmark.tasks, group.tasks, strict=True), start=1):
            for size, result, seconds, note in self.task(task, sizes):
                if result is None:
                    failures[definition.name] = note
                else:
                    results[size][definition.name] = result
                if self.state.is_main_process:
                    measured = from_mteb(result, group.benchmark) if result else []
                    score = task_scores(measured, group.benchmark).get(definition.name)
                    self.on_task(TaskOutcome(definition, number, len(group.tasks), *size, score, seconds, note))
        for size in sizes:
            self.encoder.truncate(*size)
            meta = self.encoder.mteb_model_meta
            folder = self.cache.get_task_result_path("any", meta).parent
            setting = dict(meta.experiment_kwargs or {})
            yield Evaluation(identity, setting, group.benchmark, results[size], folder, failures)

    def task(self, task: AbsTask, sizes: Sequence[Size]) -> Iterator[tuple[Size, ResultFile | None, float | None, str]]:
        """(size, result or None for a failure, seconds or None for a cached result, note) for each size."""
        self.encoder.forget()
        owned = ExitStack()
        found = {size: self._stored(task, size) for size in sizes}
        try:
            if any(missing for _, missing, _ in found.values()):
                if failure := self._own(task, sizes, owned) or self._load(task):
                    yield from ((size, None, None, failure) for size in sizes)
                    return
                for size, (_, _, note) in found.items():  # what another process has finished meanwhile
                    stored, missing, now = self._stored(task, size)
                    found[size] = stored, missing, now or note
            for size, (stored, missing, note) in found.items():
                if not missing:
                    assert stored is not None
                    yield size, cast(ResultFile, stored.to_dict()), None, note
                    continue
                start = time.monotonic()
                result = self._score(task, size, stored, missing)
                yield size, cast(ResultFile, result.to_dict()), time.monotonic() - start, note
        finally:
            owned.close()
            if task.data_loaded:
                task.unload_data()

    def _own(self, task: AbsTask, sizes: Sequence[Size], owned: ExitStack) -> str:
        """Let no other process score the task meanwhile; "" or who does already, on every rank."""
        problem = ""
        if self.state.is_main_process:
            for size in sizes:
                path = self._path(task, size)
                try:
                    owned.enter_context(own(path.with_name(f".{path.stem}.owner"), path, "output"))
                except InputError as error:
                    problem = str(error)
        return broadcast_object_list([problem])[0]

    def _path(self, task: AbsTask, size: Size) -> Path:
        self.encoder.truncate(*size)
        return self.cache.get_task_result_path(task.metadata.name, self.encoder.mteb_model_meta)

    def _stored(self, task: AbsTask, size: Size) -> tuple[TaskResult | None, list[str], str]:
        """Step (1): the result that can be used, the splits it lacks, and a note; the same on every rank."""
        path = self._path(task, size)
        answer: list[tuple[TaskResult | None, list[str], str] | None] = [None]
        if self.state.is_main_process:
            stored, note = _read(path, task)
            everything = self.overwrite or stored is None
            missing = list(task.eval_splits if everything or stored is None else stored.get_missing_evaluations(task))
            if stored is not None and size[1] is not None and (unmeasured := _unmeasured(stored, task, missing)):
                missing, note = missing + unmeasured, "the stored result does not say how large and fast vectors are"
            answer = [(stored, missing, note)]
        return broadcast_object_list(answer)[0]

    def _load(self, task: AbsTask) -> str:
        """Step (2): load the data on every rank, the main process first; "" or why that cannot be done.

        Raises:
            InputError: on every rank, when it failed on one for a reason that will not pass with the next task.
        """
        for turn in (True, False):
            problem = _load_data(task) if self.state.is_main_process is turn else None
            for found in filter(None, gather_object([problem])):
                if isinstance(found, InputError):
                    raise found
                return found
        return ""

    def _score(self, task: AbsTask, size: Size, stored: TaskResult | None, missing: list[str]) -> TaskResult:
        """Steps (3) and (4)."""
        self.encoder.truncate(*size)
        fresh = copy.copy(task)
        fresh.rng_state = copy.deepcopy(task.rng_state)
        fresh.np_rng = copy.deepcopy(task.np_rng)
        fresh.filter_eval_splits(missing)
        searched = task.metadata.type in per_example.RETRIEVAL_TYPES
        with tempfile.TemporaryDirectory() as folder:
            outcome = mteb.evaluate(
                self.encoder,
                fresh,
                co2_tracker=False,
                cache=None,
                encode_kwargs={"show_progress_bar": False},
                prediction_folder=None if searched else folder,
                show_progress_bar=False,
            )
            result = outcome.task_results[0]
            for split, entries in result.scores.items():
                for entry in entries:
                    facts = self.encoder.search_facts.get((split, entry["hf_subset"]), {})
                    cast(dict[str, object], entry).update(facts)
            arrays = per_example.collect(fresh, result.scores, Path(folder), self.encoder.retrieved)
        if stored is not None:
            result = stored.merge(result)
        if self.state.is_main_process:
            meta = self.encoder.mteb_model_meta
            path = self.cache.get_task_result_path(task.metadata.name, meta)
            examples = per_example.examples_path(path)
            if stored is None or not arrays:  # what is kept there is of other data, or of another metric
                examples.unlink(missing_ok=True)
            per_example.save(arrays, examples)
            self.cache.save_to_cache(result, meta, encode_kwargs={"tokens_per_batch": self.encoder.tokens_per_batch})
            result = TaskResult.from_disk(path)  # rounded, as every later run will read it
        return broadcast_object_list([result])[0]


def _read(path: Path, task: AbsTask) -> tuple[TaskResult | None, str]:
    """A result file, or None and why it cannot be used; a file that cannot be read is renamed."""
    if not path.exists():
        return None, ""
    try:
        result = TaskResult.from_disk(path, load_historic_data=False)
        if result.task_name != task.metadata.name:
            raise ValueError(f"it is a result of {result.task_name}")
    except (ValueError, OSError) as error:
        aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
        path.rename(aside)
        note = f"{path} could not be read and was set aside as {aside.name}; the task is evaluated again"
        logger.warning("%s. Reason: %s", note, reason(error))
        return None, note
    if result.dataset_revision != task.metadata.revision:
        note = f"the stored result is of data revision {result.dataset_revision[:8]}, now {task.metadata.revision[:8]}"
        return None, note
    return result, ""


def _unmeasured(stored: TaskResult, task: AbsTask, missing: Sequence[str]) -> list[str]:
    """The other splits, if mteb's own search made their results: evaluated without a precision, they have no facts."""
    return [
        split
        for split in task.eval_splits
        if split not in missing
        and not all(set(FACTS) <= set(one) for one in stored.scores[split] if one["hf_subset"] in task.hf_subsets)
    ]


def _load_data(task: AbsTask) -> str | InputError | None:
    """None when the data is there, or why this one data set cannot be had, or the error that ends the evaluation."""
    where = f"{task.metadata.dataset['path']} at revision {task.metadata.revision}"
    silent = ""
    try:
        with nullcontext("") if isinstance(task, LocalTask) else from_cache_if_unreachable() as silent:
            task.load_data()
    except DatasetNotFoundError as error:
        return f"the data of {task.metadata.name} ({where}) is not there or not open to you: {error}"
    except ConnectionError as error:
        return InputError(
            f"the data of {task.metadata.name} ({where}) is not in the local cache and the Hub cannot be reached "
            f"({silent or reason(error)}); results so far are kept, so run the same again with a network, with "
            "HF_ENDPOINT set to a mirror, or where the data has been downloaded before; local tasks need no network"
        )
    except InputError as error:
        return error
    return None
