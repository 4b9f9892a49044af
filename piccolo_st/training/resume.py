"""Where a run goes on, and whether it may: pure functions over what a checkpoint says and what the run is now.

(1) a run has a *signature*: everything that decides its rows and its arithmetic, as flat JSON;
(2) a checkpoint carries the signature of its run and the *position*: the samples that all ranks have seen
    (``BatchPlan.cursor``), which means the same place for any number of processes;
(3) ``decide`` compares the two. Equal signatures go on, bit for bit with as many processes as before. Another
    number of processes with the same global batch goes on with the same rows at each step. Anything else that
    differs is an error that names it, unless the run says that it accepts changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset
from safetensors.torch import load_file, save_file
from sentence_transformers.base.model import BaseModel
from torch import nn

from piccolo_st.redaction import redact
from piccolo_st.training.checkpoint import Checkpoint, CheckpointError

logger = logging.getLogger(__name__)

# Training arguments that change a weight. What only changes logs, evaluation or when a checkpoint is written is absent.
_DECISIVE = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "learning_rate",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "optim_args",
    "seed",
    "warmup_steps",
    "weight_decay",
)
_SAMPLED_ROWS = 256
_SHOWN = 6  # changes

_LOSS = "loss.safetensors"

#: The engine of one process and of DistributedDataParallel, whose checkpoints are the same.
PLAIN = "torch"


def signature(args: Any, plan: Mapping[str, Any], data: Mapping[str, str], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides a run's rows and arithmetic, save the number of processes.

    Args:
        args: the training arguments.
        plan: ``BatchPlan.signature()``, or what stands in for it with another sampler.
        data: dataset name -> fingerprint.
        extra: sections of the configuration that the trainer does not see, such as the loss's.

    Returns:
        Dotted name -> a JSON value; a checkpoint holds it, so that no secret is among them.
    """
    train = {name: getattr(args, name) for name in _DECISIVE}
    for name in ("fast_dropout", "packing"):  # stock arguments have no such fields
        train[name] = getattr(args, name, False)
    # In-batch negatives come from one micro-step of all ranks.
    train["rows of a micro-step"] = args.world_size * args.per_device_train_batch_size
    sections = {"plan": plan, "data": data, "train": train, **extra}
    return redact(json.loads(json.dumps(dict(_flat(sections)), default=str)), mark="left out")[0]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _flat(child, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two signatures differ in, in words."""
    names = sorted({*before, *now})
    return [
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in names
        if before.get(name) != now.get(name) or (name in before) != (name in now)
    ]


def data_fingerprints(datasets: Dataset | DatasetDict | IterableDataset) -> dict[str, str]:
    """A hash of each dataset: its columns, its size and rows spread evenly over it. Reads at most 256 rows.

    Of a streamed dataset it is a hash of the columns alone.
    """
    parts = datasets if isinstance(datasets, Mapping) else {"train": datasets}
    return {name: _fingerprint(dataset) for name, dataset in parts.items()}


def _fingerprint(dataset: Dataset | IterableDataset) -> str:
    size, rows = -1, dict[str, Any]()
    if isinstance(dataset, Dataset):
        dataset = dataset.with_format(None)  # without the transform that adds the dataset's name
        size = len(dataset)
        count = min(size, _SAMPLED_ROWS)
        rows = dataset[[index * (size - 1) // max(count - 1, 1) for index in range(count)]] if size else {}
    content = json.dumps([sorted(dataset.column_names), size, rows], sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def environment(args: Any) -> dict[str, Any]:
    """What the last bits of a result depend on beside the signature."""
    import sentence_transformers
    import transformers

    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "device": device,
        "threads": torch.get_num_threads() if args.device.type == "cpu" else None,
    }


@dataclass(frozen=True)
class Words:
    """How whoever started the run writes the remedies."""

    never: str = "--train.resume never"
    accept: str = "--train.accept_changes true"
    output: str = "train.output_dir"


COMMAND_LINE = Words()
#: Of a script that makes the trainer itself.
PYTHON = Words('resume="never" of the arguments', "accept_changes=True", "output_dir")


def words(configuration: Mapping[str, Any]) -> Words:
    """The words for a run: whoever brings no configuration has written the arguments in Python."""
    return COMMAND_LINE if configuration else PYTHON


RENAMED = {"OtherClassesLoss": "SINCERELoss"}
"""What older checkpoints call a class -> its name."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two signatures differ in, in words.

    What only one of them has of the trainer's facts is no difference: a version knows facts that another does not.
    """
    before = {name: RENAMED.get(value, value) if isinstance(value, str) else value for name, value in before.items()}
    both = before.keys() & now.keys()
    sides = [
        {name: value for name, value in side.items() if name in both or not name.startswith("trainer.")}
        for side in (before, now)
    ]
    return differences(*sides)


def decide(
    found: Checkpoint,
    now: Mapping[str, Any],
    accept_changes: bool,
    elastic: Collection[str] = (PLAIN,),
    spelled: Words = COMMAND_LINE,
    finished: bool = False,
) -> None:
    """Check that a run may go on from a checkpoint; log what will differ though it may.

    Args:
        found: the checkpoint.
        now: what this run would write into its own: ``signature``, ``world_size``, ``engine``, ``environment``.
        accept_changes: whether a changed signature is only a warning.
        elastic: engines whose checkpoints another number of processes can read.
        spelled: the remedies.
        finished: whether no step is left to train.

    Raises:
        CheckpointError: the signatures differ, and that is not accepted or nothing is left to train with it; or the
            checkpoint's optimizer state is in parts for other ranks.
    """
    before = found.run
    if not before.get("resumable"):
        raise CheckpointError(
            f"{found.path} holds a model but no optimizer state (train.save_only_model), so training cannot go on "
            "from it; start from its weights with model.name_or_path, in another train.output_dir"
        )
    changed = changes(before["signature"], now["signature"])
    if changed and (finished or not accept_changes):
        shown = "; ".join(changed[:_SHOWN]) + (f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")
        raise CheckpointError(
            f"{found.path} is of another run{', which has ended' if finished else ''}: {shown}; undo the change to "
            f"{'load its model' if finished else 'go on'}, or keep both runs with another {spelled.output}, or start "
            f"anew here with {spelled.never} (earlier checkpoints are kept aside), or "
            + ("train more steps or epochs than it had" if finished else "go on with the change")
            + f" with {spelled.accept}"
        )
    for change in changed:
        logger.warning("going on with a change that was accepted: %s", change)
    if before["engine"] != now["engine"]:
        raise CheckpointError(
            f"{found.path} was written under {before['engine']} and this run is {now['engine']}, whose optimizer state "
            f"has another form; go on under {before['engine']}, or start from the checkpoint's weights with "
            "model.name_or_path in another train.output_dir"
        )
    if before["world_size"] != now["world_size"]:
        if now["engine"] not in elastic:
            raise CheckpointError(
                f"{found.path} was written by {before['world_size']} processes and there are {now['world_size']}; the "
                f"optimizer state of {now['engine']} is in one part for each process, and can be cut anew only for "
                f"{', '.join(elastic)}; go on with {before['world_size']} processes, or start from the checkpoint's "
                "weights with model.name_or_path in another train.output_dir"
            )
        logger.warning(
            "%s was written by %s processes and there are %s: each step reads the same rows, but dropout is drawn "
            "anew and sums are rounded in another order",
            found.path,
            before["world_size"],
            now["world_size"],
        )
    else:
        for difference in differences(before["environment"], now["environment"]):
            logger.warning("going on, though perhaps not bit for bit: %s", difference)


def expected_parts(world_size: int, engine: str, step: int, scaler: bool) -> list[str]:
    """The files without which a run cannot go on, as patterns inside a checkpoint."""
    parts = ["modules.json", "trainer_state.json"]
    parts += ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    if engine.startswith("DeepSpeed"):
        shards = f"global_step{step}"
        parts += ["latest", f"{shards}/mp_rank_00_model_states.pt"]
        if not engine.endswith("-0"):
            parts += [f"{shards}/*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(world_size)]
        return parts
    return [*parts, "optimizer.pt", "scheduler.pt", *(["scaler.pt"] if scaler else [])]


def complete_for(found: Checkpoint, parts: list[str]) -> None:
    """Check that a checkpoint has all ``parts``.

    Raises:
        CheckpointError: naming those it lacks.
    """
    missing = [part for part in parts if not any(found.path.glob(part))]
    if missing:
        raise CheckpointError(f"the checkpoint {found.path} is not whole: {', '.join(missing)} is missing")


def save_loss(losses: nn.Module | Mapping[str, nn.Module], folder: Path) -> None:
    """Write the weights that the losses train beside the model, such as a classifier's, if they have any."""
    if weights := _loss_weights(losses):
        save_file({name: weight.detach().cpu().clone() for name, weight in weights.items()}, folder / _LOSS)


def load_loss(losses: nn.Module | Mapping[str, nn.Module], folder: Path) -> None:
    """Put back what ``save_loss`` wrote.

    Raises:
        CheckpointError: the losses have other weights than those written, or of other shapes.
    """
    weights = _loss_weights(losses)
    if not (folder / _LOSS).exists() and weights:  # as version 0.1.0 left it
        logger.warning("%s does not hold the losses' own weights, which begin anew: %s", folder, ", ".join(weights))
        return
    written = load_file(folder / _LOSS) if (folder / _LOSS).exists() else {}
    shapes, known = ({name: tuple(one.shape) for name, one in found.items()} for found in (written, weights))
    if shapes != known:
        raise CheckpointError(
            f"{folder} holds the weights {shapes or 'none'} of losses, and the losses of this run have "
            f"{known or 'none'}; go on with the losses it had"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(written[name])


def _loss_weights(losses: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Trained weights of the losses, save those of models in them: the trained one, and guides, which stay."""
    found: dict[str, nn.Parameter] = {}
    for name, loss in (losses if isinstance(losses, Mapping) else {"loss": losses}).items():
        of_models = {id(one) for part in loss.modules() if isinstance(part, BaseModel) for one in part.parameters()}
        for part, one in loss.named_parameters():
            if one.requires_grad and id(one) not in of_models:
                found[f"{name}.{part}"] = one
    return found


@contextmanager
def weights_only(allowed: list[Any]) -> Iterator[None]:
    """Inside, every ``torch.load`` of this process, also DeepSpeed's, refuses a file that would run code.

    Args:
        allowed: classes that may be rebuilt nevertheless.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
