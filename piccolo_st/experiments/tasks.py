"""The tasks that variants are scored on, with the group whose mean each is part of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from piccolo_st.cache import write_whole
from piccolo_st.config import load_yaml, to_yaml
from piccolo_st.errors import InputError, shown
from piccolo_st.experiments.variants import AblationSettings, Sections

#: The group of tasks that name none, and of the mixture's held-out searches.
HELD_OUT = "held out"


@dataclass(frozen=True)
class ScoredTask:
    """One task.

    Attributes:
        group: the mean that it is part of.
        entry: what a file of local tasks says of it, with paths that hold anywhere.
    """

    group: str
    entry: Mapping[str, object]

    @property
    def name(self) -> str:
        """Its name in results."""
        return str(self.entry.get("name"))


def read_tasks(settings: AblationSettings, sections: Sections, place: Path) -> tuple[ScoredTask, ...]:
    """The tasks of ``ablation.tasks``, those of other files among them.

    Raises:
        InputError: an entry or a file of tasks is not of that form, or a name occurs twice.
    """
    mixture = (sections.get("data") or {}).get("mixture")
    root = Path(settings.root or (mixture.get("root") if isinstance(mixture, Mapping) else None) or ".").resolve()
    tasks = tuple(task for entry in settings.tasks for task in _read(entry, root, place))
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"each of ablation.tasks of {place} must have a name of its own, got {name!r} twice")
    return tasks


def _read(entry: Mapping[str, object], root: Path, place: Path) -> Iterator[ScoredTask]:
    group = str(entry.get("group", HELD_OUT))
    own = {key: value for key, value in entry.items() if key != "group"}
    if "file" not in own:
        yield ScoredTask(group, _absolute(own, root))
        return
    path = Path(str(own.pop("file"))).expanduser().resolve()
    only = own.pop("only", None)
    content = load_yaml(path)
    found = content.get("tasks") if isinstance(content, Mapping) else None
    if own or not isinstance(found, list) or not (only is None or isinstance(only, list)):
        raise InputError(
            f"an entry of ablation.tasks of {place} with a file must be {{file: TASKS.yaml, group: NAME, only: "
            f"[NAMES]}}, and the file must hold `tasks`, got {shown(dict(entry))}"
        )
    for task in found:
        if only is None or task.get("name") in only:
            yield ScoredTask(group, _absolute(task, path.parent))


def _absolute(entry: Mapping[str, object], root: Path) -> dict[str, object]:
    return {key: str(root / str(value)) if key in ("data", "train") else value for key, value in entry.items()}


def write_tasks(tasks: Sequence[ScoredTask], path: Path) -> None:
    """Write them as a file of local tasks."""
    content = {"tasks": [dict(task.entry) for task in tasks]}
    write_whole(path, to_yaml(content))
