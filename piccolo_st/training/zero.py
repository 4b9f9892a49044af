"""DeepSpeed ZeRO: checkpoints for another number of processes, and the weights that a run in half precision trains.

Under ZeRO each process writes its part of the float32 weights and of the optimizer's moments, and DeepSpeed loads them
with as many processes only. Its *universal checkpoint* holds them by parameter, for any number:

    (1) ``universal`` lets DeepSpeed convert a checkpoint into a folder that exists while the run loads it;
    (2) ``load_universal`` lets DeepSpeed's engine read one. It restores what the optimizer trains and nothing else, so
        frozen weights and buffers must come from the model in the checkpoint.

Numbers are moved, not computed: converted and loaded again by as many processes, a run goes on bit for bit.

In bf16 or fp16 DeepSpeed casts the model in place. What its optimizer trains are the float32 weights, in parts:

    (3) ``trained_weights`` joins them, for what is saved and what is left.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from piccolo_st.distributed import get_rank
from piccolo_st.redaction import redact
from piccolo_st.training import checkpoint
from piccolo_st.training.manifest import Checkpoint, CheckpointError
from piccolo_st.turns import fail_together, on_first_rank

if TYPE_CHECKING:
    import torch
    from accelerate.utils import DeepSpeedPlugin
    from deepspeed import DeepSpeedEngine
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

#: The stages whose checkpoints can be converted; stage 0 has no parts and stage 3 other ones.
CONVERTIBLE = ("DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2")


def deepspeed_classes() -> list[type]:
    """The classes that stand in DeepSpeed's own checkpoints."""
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [loss_scaler.LossScaler, loss_scaler.DynamicLossScaler, ZeroStageEnum, fragment_address]


@contextmanager
def without_secrets(engine: DeepSpeedEngine | None) -> Iterator[None]:
    """Inside, the configuration that a DeepSpeed engine writes into each of its parts holds none, as a tracker's key.

    Args:
        engine: its ``config`` is exchanged; None without DeepSpeed.
    """
    whole = getattr(engine, "config", None)
    if engine is not None:
        engine.config = redact(whole, mark="left out")[0]
    try:
        yield
    finally:
        if engine is not None:
            engine.config = whole


@contextmanager
def universal(found: Checkpoint, output_dir: Path) -> Iterator[Path]:
    """Step (1): a checkpoint in universal form; every rank enters, the first one converts.

    Args:
        found: a complete checkpoint of an engine in ``CONVERTIBLE``. It stays as it is.
        output_dir: of the run, on a file system that all ranks share. The folder takes about as much room as the
            checkpoint's parts, for a moment twice as much.

    Yields:
        The folder that DeepSpeed's engine and transformers can load.

    Raises:
        CheckpointError: it cannot be converted or written; on every rank.
    """
    name = on_first_rank(lambda: _convert(found, output_dir))
    try:
        yield Path(name)
        fail_together(None)  # every rank has read it
    finally:
        if get_rank() == 0:
            shutil.rmtree(name, ignore_errors=True)


def _convert(found: Checkpoint, output_dir: Path) -> str:
    from deepspeed.checkpoint import ds_to_universal

    folder = checkpoint.scratch(output_dir, found.step)
    tag = f"global_step{found.step}"
    settings = Namespace(
        input_folder=str(found.path / tag),
        output_folder=str(folder / f"{tag}_universal"),
        num_extract_workers=1,  # in this process, where what may be unpickled is limited
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    logger.info("converting %s for another number of processes, in %s", found.path, folder)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ds_to_universal.main(settings)
        for file in found.path.glob("scheduler.pt"):
            shutil.copyfile(file, folder / file.name)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        logger.debug("%s", said.getvalue())
        raise CheckpointError(
            f"{found.path} could not be converted for another number of processes: {type(error).__name__}: {error}; "
            f"go on with {found.run['world_size']} processes, as it was written"
        ) from error
    return str(folder)


@contextmanager
def load_universal(plugin: DeepSpeedPlugin) -> Iterator[None]:
    """Step (2): inside, an engine that is built from a DeepSpeedPlugin loads universal checkpoints."""
    config = plugin.deepspeed_config
    before = config.get("checkpoint")
    config["checkpoint"] = {**(before or {}), "load_universal": True}
    try:
        yield
    finally:
        if before is None:
            del config["checkpoint"]
        else:
            config["checkpoint"] = before


def trained_weights(
    model: nn.Module, dtypes: Mapping[str, torch.dtype], keep: bool = True
) -> list[tuple[nn.Parameter, str, Tensor]]:
    """Step (3): each weight that DeepSpeed has cast, the name ``data``, and what is to stand there.

    Every rank comes here while the engine is there.

    Args:
        model: inside the engine.
        dtypes: of its weights, as they were before the engine was made.
        keep: whether this rank wants them; the others only take part.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    found = []
    for name, weight in model.named_parameters():
        dtype = dtypes.get(name, weight.dtype)
        if weight.dtype != dtype:
            whole = safe_get_full_fp32_param(weight)  # None: it is not trained
            if keep:
                found.append((weight, "data", (weight.detach() if whole is None else whole).to(dtype)))
    return found
