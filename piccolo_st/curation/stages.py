"""Work cut into stages of independent tasks that leave files: done once each, resumed where it stopped.

    (1) a step (dedup, mine, ...) is a list of stages; the tasks of a stage need only the stages before it;
    (2) a task that ends writes an empty marker file after its output; a task with a marker is not run again, so a run
        that was killed goes on where it stopped;
    (3) the same stages run in this process, or as datatrove pipelines: on several processes of this machine, on Slurm
        or on Ray. Tasks share nothing but the folder, which all machines must see.

A folder belongs to one input and one set of settings; with others it is refused instead of mixed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from piccolo_st.cache import PARTIAL, write_whole
from piccolo_st.errors import MixtureError, optional
from piccolo_st.schema import Count, setting
from piccolo_st.stored import read_json


@dataclass(frozen=True)
class Stage:
    """Tasks that may run in any order and at once.

    Attributes:
        name: letters and digits; it names the markers.
        tasks: how many.
        run: does task 0, 1, ... ``tasks - 1``; a picklable function that leaves its result in files.
    """

    name: str
    tasks: int
    run: Callable[[int], None]


@dataclass(frozen=True)
class ExecutorSettings:
    """Where tasks run.

    Attributes:
        kind: ``here`` (this process), or datatrove's ``local``, ``slurm`` or ``ray`` executor.
        workers: tasks at a time.
        options: further arguments of datatrove's executor; Slurm needs ``partition`` and ``time``.
    """

    kind: Literal["here", "local", "slurm", "ray"] = setting(
        "here", "Where tasks run: here, or datatrove's local, slurm or ray executor."
    )
    workers: Count = setting(1, "Tasks at a time.")
    options: dict[str, object] | None = setting(None, "Further arguments of datatrove's executor.")


def claim(folder: Path, identity: str, what: Mapping[str, object]) -> None:
    """Make ``folder`` the home of this input and these settings, or find that it is.

    Raises:
        MixtureError: it holds the work of others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    label = folder / "made_of.json"
    if label.is_file():
        remedy = "choose another `data.output` or delete the folder"
        if read_json(label, dict[str, object], remedy, MixtureError).get("identity") != identity:
            raise MixtureError(
                f"{folder} holds the output of another mixture or other settings (see {label}); {remedy}"
            )
        return
    if any(path.suffix != PARTIAL for path in folder.iterdir()):  # such is what a run killed here left
        raise MixtureError(
            f"{folder} must be empty or of this project's making, got other files; choose another `data.output`"
        )
    # Half a label, of a run killed here, would keep every later one out.
    write_whole(label, json.dumps({"identity": identity, **what}, ensure_ascii=False, indent=1))


def run_task(stage: Stage, folder: Path, task: int) -> bool:
    """Do one task unless its marker is there; returns whether it was done now."""
    marker = folder / ".done" / f"{stage.name}-{task:05d}"
    if marker.exists():
        return False
    stage.run(task)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return True


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    executor: ExecutorSettings | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Run the stages in order; returns whether all is done (a Slurm executor only submits).

    Raises:
        MissingPackage: datatrove is needed and not installed.
    """
    executor = executor or ExecutorSettings()
    if executor.kind != "here":
        return _run_with_datatrove(stages, folder, executor)
    for stage in stages:
        start = time.perf_counter()
        done = sum(run_task(stage, folder, task) for task in range(stage.tasks))
        before = f", {stage.tasks - done} done before" if done < stage.tasks else ""
        say(f"{stage.name}: {done} of {stage.tasks} tasks in {time.perf_counter() - start:.1f} s{before}")
    return True


def _run_with_datatrove(stages: Sequence[Stage], folder: Path, settings: ExecutorSettings) -> bool:
    with optional(f"executor {settings.kind!r}, unlike 'here',", "datatrove", "data"):
        from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
    classes = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}
    before = None
    for number, stage in enumerate(stages):
        given = {
            "workers": min(settings.workers, stage.tasks),
            "logging_dir": str(folder / ".logs" / f"{number}-{stage.name}"),
            **({"depends": before} if before is not None else {}),
            **({"job_name": f"piccolo-{stage.name}"} if settings.kind == "slurm" else {}),
            **(settings.options or {}),
        }
        try:
            before = classes[settings.kind](
                pipeline=[_Task(stage, folder)], tasks=stage.tasks, skip_completed=True, **given
            )
        except TypeError as error:  # an argument that it needs and has not, or has and does not know
            raise MixtureError(
                f"executor.options must suit datatrove's {settings.kind} executor, got {settings.options or {}}: "
                f"{error}"
            ) from error
        if settings.kind != "slurm":
            before.run()
            before = None
    if before is not None:
        before.run()  # submits the whole chain, each stage after the one it depends on
    return settings.kind != "slurm"


@dataclass
class _Task:
    """A stage as a step of a datatrove pipeline: rank is the task's number."""

    stage: Stage
    folder: Path

    def __call__(self, data: object = None, rank: int = 0, world_size: int = 1) -> object:
        run_task(self.stage, self.folder, rank)
        return data
