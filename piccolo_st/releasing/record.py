"""What a run was: every setting and what was measured or counted, in two files of its directory.

    config.yaml  every setting of every section, also those that nobody typed; a recipe starts the same run from it
    run.json     versions, precision, hardware, losses, the rows of each dataset, steps, seconds, evaluations, the log

Both without secrets. The model card is made from this record and from nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from piccolo_st.cache import write_whole
from piccolo_st.config import read_yaml, to_yaml
from piccolo_st.data import DatasetReport, DatasetSpec
from piccolo_st.environment import versions
from piccolo_st.errors import InputError, shown
from piccolo_st.evaluation import evaluations
from piccolo_st.redaction import redact
from piccolo_st.stored import parse_json, read_json

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

CONFIGURATION, FACTS = "config.yaml", "run.json"
Values: TypeAlias = Mapping[str, Any]
"""Name -> a value as YAML and JSON have it."""
_LIFTED = ("source", "task", "revision", "licence", "note")  # of a dataset's settings


@dataclass(frozen=True)
class DatasetRecord:
    """What a dataset of a run was.

    Attributes:
        source, task, revision, licence, note: what the mixture says of it.
        used: rows that were trained on; 0 of one that was only evaluated on, or smaller than one batch.
        counts: rows read, kept, held out, and reason -> rows rejected; see ``data.report.DatasetReport``.
        settings: the mixture's other settings of it.
    """

    source: str | None = None
    task: str | None = None
    revision: str | None = None
    licence: str | None = None
    note: str | None = None
    used: int = 0
    counts: Values = field(default_factory=dict)
    settings: Values = field(default_factory=dict)

    @classmethod
    def of(cls, spec: DatasetSpec, report: DatasetReport, used: int) -> DatasetRecord:
        """From the mixture's report of it."""
        settings, counts = dataclasses.asdict(spec), report.as_dict()
        lifted = {name: settings.pop(name) for name in _LIFTED}
        for name in ("name", "task", "licence"):
            counts.pop(name, None)
            settings.pop(name, None)
        return cls(**lifted, used=used, counts=counts, settings=settings)


@dataclass(frozen=True)
class RunRecord:
    """What a run was; anything but the configuration may be unknown.

    Attributes:
        configuration: section -> setting -> value.
        stage: "pre-training" or "fine-tuning".
        versions: package -> version.
        precision: of the forward pass, and of the weights where that is another: "bf16".
        hardware: the device of a process: "NVIDIA A100-SXM4-40GB".
        engine: "one process", "DDP", "FSDP" or "DeepSpeed ZeRO-1".
        world_size: processes.
        losses: dataset -> its loss: "name", and its settings.
        mixture: the fingerprint of the data.
        datasets: name -> what it was.
        steps: optimizer steps.
        seconds: of training, over all the times that the run was started.
        content_hash: of the model that it left.
        evaluations: one mapping for each search of the held-out queries.
        gains: a mapping for each task that the start and the model it left were compared on: "of", the set of tasks,
            "task", "metric", "before", "after", and "low" and "high", the interval of the difference, in percent.
        measured: anything else, name -> value.
        log: the trainer's log history.
        signature: what decided its rows and numbers, dotted name -> value, by which the same run is known again.
    """

    configuration: Mapping[str, Values] = field(default_factory=dict)
    stage: str = "fine-tuning"
    versions: Mapping[str, str] = field(default_factory=versions)
    precision: str | None = None
    hardware: str | None = None
    engine: str | None = None
    world_size: int | None = None
    losses: Mapping[str, Values] = field(default_factory=dict)
    mixture: str | None = None
    datasets: Mapping[str, DatasetRecord] = field(default_factory=dict)
    steps: int | None = None
    seconds: float | None = None
    content_hash: str | None = None
    evaluations: Sequence[Mapping[str, float]] = ()
    gains: Sequence[Values] = ()
    measured: Values = field(default_factory=dict)
    log: Sequence[Values] = ()
    signature: Values = field(default_factory=dict)

    @classmethod
    def of(cls, configuration: Mapping[str, Values], trainer: Trainer, **facts: Any) -> RunRecord:
        """The record of a run that has ended.

        Args:
            configuration: ``Configuration.resolved``.
            trainer: which ran it; a ``transformers.Trainer``.
            facts: the fields that the trainer does not know.
        """
        losses = getattr(trainer, "loss", {})
        losses = losses if isinstance(losses, Mapping) else {"all": losses}
        return cls(
            configuration=configuration,
            precision=precision(trainer.args, cast(torch.nn.Module, trainer.model)),
            hardware=hardware(trainer.args.device),
            engine=engine(trainer),
            world_size=trainer.args.world_size,
            losses={name: _loss(loss) for name, loss in losses.items()},
            steps=trainer.state.global_step,
            evaluations=evaluations(trainer.state.log_history),
            log=trainer.state.log_history,
            **facts,
        )

    def write(self, folder: Path) -> None:
        """Write the two files, without secrets."""
        configuration, hidden = redact(self.configuration)
        head = ["Every setting of this run: the recipe that made it starts it again from this file."]
        if hidden:
            head.append(f"Left out, being secret: {', '.join(hidden)}; give it again, or log in with `hf auth login`.")
        text = to_yaml(json.loads(json.dumps(configuration, default=str)))
        write_whole(folder / CONFIGURATION, "".join(f"# {line}\n" for line in head) + text)
        facts = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        facts.pop("configuration")
        facts["datasets"] = {name: dataclasses.asdict(dataset) for name, dataset in self.datasets.items()}
        facts = redact(facts, mark="left out")[0]
        write_whole(folder / FACTS, json.dumps(facts, ensure_ascii=False, indent=2, default=str) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record in a run's directory.

        Raises:
            InputError: a file is missing or broken.
        """
        remedy = "name the output directory of a run that has ended"
        configuration = _sections(folder / CONFIGURATION, remedy)
        # What a record does not say of the versions, it does not know; this machine's are another's.
        facts = {"versions": {}, **read_json(folder / FACTS, dict[str, object], remedy)}
        return dataclasses.replace(
            parse_json(json.dumps(facts).encode(), cls, str(folder / FACTS), remedy), configuration=configuration
        )


def _sections(path: Path, remedy: str) -> dict[str, dict[str, object]]:
    if not path.exists():
        raise InputError(f"{path} does not exist; {remedy}")
    content = read_yaml(path)
    if wrong := [name for name, section in content.items() if not isinstance(section, dict | None)]:
        raise InputError(f"section {wrong[0]!r} in {path} must be a mapping, got {shown(content[wrong[0]])}; {remedy}")
    return {str(name): section if isinstance(section, dict) else {} for name, section in content.items()}


def precision(args: TrainingArguments, model: torch.nn.Module) -> str:
    """The precision of the forward pass, and that of the weights where it is another than usual."""
    passes = "fp16" if args.fp16 else "bf16" if args.bf16 else "fp32"
    weights = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()} - {"float32"})
    return f"{passes}, weights in {' and '.join(weights)}" if weights else passes


def hardware(device: torch.device) -> str:
    """The device of a process: the GPU's name, or the CPU's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_cpu()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _cpu() -> str:
    """The name of the CPU; ``platform.processor`` has none on most Linux systems."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def engine(trainer: Trainer) -> str:
    """How the processes train together."""
    if trainer.is_deepspeed_enabled:
        return f"DeepSpeed ZeRO-{getattr(trainer, 'zero_stage', None) or 0}"
    if trainer.is_fsdp_enabled:
        return "FSDP"
    return "DDP" if trainer.args.world_size > 1 else "one process"


def _loss(loss: torch.nn.Module) -> dict[str, object]:
    return {"name": type(loss).__name__, **getattr(loss, "get_config_dict", dict)()}
