"""Whether a run may go on from a checkpoint, and what a checkpoint must hold for that.

(1) a checkpoint carries the *fingerprint* of its run (fingerprint.py) and the *cursor*: the samples that all ranks have
    seen (``BatchPlan.cursor``), which means the same place for any number of processes;
(2) ``decide`` compares the two runs. Equal fingerprints go on, bit for bit with as many processes as before. Another
    number of processes with the same global batch goes on with the same rows at each step. Anything else that
    differs is an error that names it, unless the run says that it accepts changes;
(3) a file that is whole can still hold what no trainer wrote. ``check_complete`` reads the state of the trainer and
    opens what is pickled before anything is loaded, and ``loading`` turns what fails later into one sentence.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from sentence_transformers.base.model import BaseModel
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_pt_utils import safe_globals
from typing_extensions import Required, TypedDict

from piccolo_st.errors import InputError, reason
from piccolo_st.mining import NEGATIVES, NegativesInUse
from piccolo_st.schema import Natural
from piccolo_st.stored import read_json
from piccolo_st.training.accepted import check_groups
from piccolo_st.training.fingerprint import changes, differences, roundings
from piccolo_st.training.manifest import Checkpoint, CheckpointError, RunFacts, lacking

logger = logging.getLogger(__name__)

#: The engine of one process and of DistributedDataParallel, whose checkpoints are the same.
PLAIN = "torch"

_SHOWN_CHANGES = 6
_LOSS = "loss.safetensors"


def environment(args: TrainingArguments) -> dict[str, object]:
    """What the last bits of a result depend on beside the fingerprint."""
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


def words(configuration: Mapping[str, object]) -> Words:
    """The words for a run: whoever brings no configuration has written the arguments in Python."""
    return COMMAND_LINE if configuration else PYTHON


def another_run(place: Path, changed: Sequence[str], to: str, spelled: Words, last: str = "") -> CheckpointError:
    """What is said where a place is of another run.

    Args:
        place: a checkpoint, or the directory of a run.
        changed: what differs, in words.
        to: what undoing the change is for.
        spelled: the remedies.
        last: a further remedy.
    """
    more, ended = len(changed) - _SHOWN_CHANGES, ", which has ended" if to == "load its model" else ""
    shown = "; ".join([*changed[:_SHOWN_CHANGES], *([f"and {more} more"] if more > 0 else [])])
    return CheckpointError(
        f"{place} is of another run{ended}: {shown}; undo the change to {to}, or keep both runs with another "
        f"{spelled.output}, or start anew here with {spelled.never} (earlier checkpoints are kept aside)"
        + (f", or {last}" if last else "")
    )


def decide(
    found: Checkpoint,
    now: RunFacts,
    accept_changes: bool,
    elastic: Collection[str] = (PLAIN,),
    spelled: Words = COMMAND_LINE,
    finished: bool = False,
) -> None:
    """Check that a run may go on from a checkpoint; log what will differ though it may.

    Args:
        found: the checkpoint.
        now: what this run would write into its own.
        accept_changes: whether a changed fingerprint is only a warning.
        elastic: engines whose checkpoints another number of processes can read.
        spelled: the remedies.
        finished: whether no step is left to train.

    Raises:
        CheckpointError: the fingerprints differ, and that is not accepted or nothing is left to train with it; or the
            checkpoint's optimizer state is in parts for other ranks.
    """
    before = found.run
    if not before.get("resumable") and not finished:
        raise CheckpointError(
            f"{found.path} holds a model but no optimizer state (train.save_only_model), so training cannot go on "
            "from it; start from its weights with model.name_or_path, in another train.output_dir"
        )
    changed = changes(before["signature"], now["signature"])
    if changed and (finished or not accept_changes):
        raise another_run(
            found.path,
            changed,
            "load its model" if finished else "go on",
            spelled,
            ("train more steps or epochs than it had" if finished else "go on with the change")
            + f" with {spelled.accept}",
        )
    if finished:
        return
    check_groups(before["signature"], now["signature"])
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
        elsewhere = differences(before["environment"], now["environment"])
        for difference in [*elsewhere, *roundings(before["signature"], now["signature"])]:
            logger.warning("going on, though perhaps not bit for bit: %s", difference)


def expected_parts(run: RunFacts, step: int) -> list[str]:
    """The files without which a run cannot go on from a checkpoint, as patterns inside it; none if it never can."""
    if not run.get("resumable"):
        return []
    world_size, engine = run["world_size"], run["engine"]
    parts = ["modules.json", "trainer_state.json"]
    parts += ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    if engine.startswith("DeepSpeed"):
        shards = f"global_step{step}"
        parts += ["latest", f"{shards}/mp_rank_00_model_states.pt"]
        if not engine.endswith("-0"):
            parts += [f"{shards}/*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(world_size)]
        return parts
    return [*parts, "optimizer.pt", "scheduler.pt", *(["scaler.pt"] if run["scaler"] else [])]


class _State(TypedDict, total=False):
    """What going on needs of transformers' TrainerState."""

    global_step: Required[Natural]
    epoch: float | None
    max_steps: Natural
    total_flos: float
    num_input_tokens_seen: float
    train_batch_size: Natural | None
    log_history: Required[list[dict[str, object]]]
    best_metric: float | None
    best_global_step: Natural | None
    best_model_checkpoint: str | None
    stateful_callbacks: dict[str, object]


def check_complete(found: Checkpoint, classes: Collection[type] = ()) -> None:
    """Check that a checkpoint has all the parts that its run needs, and that they hold what a trainer writes.

    Args:
        found: the checkpoint.
        classes: what may be rebuilt from its pickles beside tensors and numbers.

    Raises:
        CheckpointError: naming what it lacks, or the file that cannot be used.
    """
    if not found.run.get("resumable"):
        return
    place, whole = f"the checkpoint {found.path}", "the checkpoint is not whole"
    if unsaid := [name for name in ("signature", "world_size", "engine", "scaler", "cursor") if name not in found.run]:
        raise CheckpointError(f"{place} is not whole: its manifest does not say the {', '.join(unsaid)} of its run")
    parts = expected_parts(found.run, found.step)
    if missing := lacking(found.files, parts):
        raise CheckpointError(f"{place} is not whole: {', '.join(missing)} is missing")
    state = read_json(found.path / "trainer_state.json", _State, whole, CheckpointError)
    if state["global_step"] != found.step:
        raise CheckpointError(
            f"{place} is not whole: its trainer_state.json is of step {state['global_step']}, and its manifest of "
            f"{found.step}"
        )
    with safe_globals(), torch.serialization.safe_globals([*classes]):
        for path in sorted(path for part in parts for path in found.path.glob(part) if path.suffix in (".pt", ".pth")):
            with loading(path):
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # mapped, tensors cost nothing


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Turn what fails while a checkpoint, or a part of one, is loaded into a CheckpointError."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError, dist.DistError):
        raise
    except Exception as error:
        refused = isinstance(error, pickle.UnpicklingError) and "weights only" in str(error).lower()
        why = "it holds more than numbers, which is not run" if refused else f"{type(error).__name__}: {reason(error)}"
        raise CheckpointError(
            f"{path} cannot be loaded: {why}; go on from another checkpoint, and delete this one"
        ) from error


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


def load_negatives(negatives: NegativesInUse | None, folder: Path) -> None:
    """Put back which mined negatives are in use, if they change in this run.

    Raises:
        ValueError: they are those of other datasets.
    """
    if negatives is not None and (folder / NEGATIVES).exists():
        negatives.load(folder)
    elif negatives is not None:  # a run that re-mines from here on, and has said that it accepts that
        logger.warning("%s does not say which mined negatives are in use; the first of each row are", folder)


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
def weights_only(allowed: list[type]) -> Iterator[None]:
    """Inside, every ``torch.load`` of this process, also DeepSpeed's, refuses a file that would run code.

    Args:
        allowed: classes that may be rebuilt nevertheless.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals([*allowed]):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
