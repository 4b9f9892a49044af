"""What an accepted change asks of the optimizer when a run goes on from a checkpoint.

torch keeps rates, decay and betas beside the moments, and a schedule the rates that it began at: all of them are the
checkpoint's once it is loaded. So

    (1) ``own_settings`` notes this run's before;
    (2) ``put_back`` gives them their place again after; the moments and the step stay the checkpoint's;
    (3) moments are found by the place of their weights in groups, so ``check_groups`` refuses other groups.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from piccolo_st.training.manifest import CheckpointError

_MAPPING = "trainer.arguments.learning_rate_mapping"


def check_groups(before: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Check that two runs group their weights alike.

    Args:
        before, now: the fingerprints of a checkpoint and of the run that goes on from it.

    Raises:
        CheckpointError: their ``learning_rate_mapping`` have other patterns.
    """
    old, new = (sorted(json.loads(str(side.get(_MAPPING, "{}")))) for side in (before, now))
    if old != new:
        raise CheckpointError(
            f"train.learning_rate_mapping must have the patterns of the checkpoint, {old or 'none'}, by which the "
            f"optimizer's moments are kept, got {new or 'none'}; change the rates alone, or start from the "
            "checkpoint's weights with model.name_or_path in another train.output_dir"
        )


def own_settings(optimizer: Optimizer, named: Collection[str]) -> list[dict[str, object]]:
    """What the arguments say of each group of weights; what an optimizer itself keeps there is no setting.

    Args:
        optimizer: with its schedule made.
        named: the settings that the arguments give it.
    """
    names = {*named, "weight_decay", "initial_lr", "lr"} - {"params"}
    return [{name: value for name, value in group.items() if name in names} for group in optimizer.param_groups]


def put_back(own: Sequence[Mapping[str, object]], optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Give the optimizer this run's settings, and the rate that its schedule has for the step it stands at.

    A schedule that is no function of the step, such as one that follows the loss, begins anew at this run's rate.

    Args:
        own: of ``own_settings``.
        optimizer, schedule: as the checkpoint left them.
    """
    groups = optimizer.param_groups
    for group, settings in zip(groups, own, strict=True):
        group.update(settings)
    state = schedule.state_dict()
    if isinstance(schedule, LambdaLR):
        for group, factor in zip(groups, schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
        state["base_lrs"] = [group["initial_lr"] for group in groups]
    schedule.load_state_dict({**state, "_last_lr": [group["lr"] for group in groups]})
