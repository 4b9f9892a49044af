"""A small training run that tests interrupt, resume and compare; in process, on forked ranks, or killed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# All that a run imports is imported here, once, and not again in every forked rank.
import torch
import yaml
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import TrainerCallback

from piccolo_st.batches import HomogeneousBatchSampler
from piccolo_st.losses import PiccoloLoss
from piccolo_st.modeling.adapters import LoraSettings, add_lora
from piccolo_st.training.trainer import PiccoloTrainer
from piccolo_st.training.training_arguments import PiccoloTrainingArguments

ROOT = Path(__file__).parent.parent.parent
# The DeepSpeed settings of the recipes, as JSON.
LAUNCHER = ROOT / "recipes" / "accelerate" / "cpu_zero1.yaml"
ZERO1 = yaml.safe_load(LAUNCHER.read_text(encoding="utf-8"))["deepspeed_config"]["deepspeed_config_file"]
# As `accelerate launch --config_file recipes/accelerate/cpu_zero1.yaml` sets it.
ZERO1_ENVIRONMENT = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": ZERO1,
    "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file,zero3_init_flag",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_MIXED_PRECISION": "no",
}

# One query in a dataset; the texts differ in length, so that batches are padded.
WORDS = "天地山川河海风雨云春夏秋冬猫狗鱼鸟花草树木红黄蓝绿白黑"


@dataclass(frozen=True)
class Case:
    """One kind of run.

    Attributes:
        world: processes.
        engine: "ddp" (or one process alone) or "zero1".
        batch_size: rows of a device and micro-step.
        accumulation: micro-steps of an optimizer step.
        rows: of the larger dataset.
        options: further training arguments.
        loss: further options of PiccoloLoss.
        lora: an adapter is trained, and not the weights.
        streamed: the rows of the first dataset are read as a stream.
    """

    world: int = 1
    engine: str = "ddp"
    batch_size: int = 4
    accumulation: int = 1
    rows: int = 24
    options: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    streamed: bool = False

    @property
    def name(self) -> str:
        accumulated = f", {self.accumulation} accumulated" if self.accumulation > 1 else ""
        engine = "alone" if self.world == 1 and self.engine == "ddp" else self.engine
        return f"{self.world} x {engine}{accumulated}{', LoRA' * self.lora}{', streamed' * self.streamed}"


def make_datasets(rows: int = 24) -> DatasetDict:
    """Two datasets, pairs and triplets, of ``rows`` and half as many rows."""

    def text(index: int, length: int) -> str:
        return "".join(WORDS[(index * 7 + place * (index % 5 + 1)) % len(WORDS)] for place in range(length))

    pairs = {
        "query": [text(index, 2 + index % 3) for index in range(rows)],
        "positive": [text(index, 5 + index % 7) for index in range(rows)],
    }
    triplets = {name: [value[::-1] for value in values[: rows // 2]] for name, values in pairs.items()}
    triplets["negative"] = [text(index + 11, 6) for index in range(rows // 2)]
    return DatasetDict(pairs=Dataset.from_dict(pairs), triplets=Dataset.from_dict(triplets))


def make_trainer(encoder: Path, output: Path, case: Case, **options: Any) -> PiccoloTrainer:
    """A PiccoloTrainer of a run of three epochs with dropout."""
    torch.manual_seed(0)
    transformer = Transformer(str(encoder))
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")], device="cpu"
    )
    if case.lora:
        add_lora(model, LoraSettings(rank=4))
    datasets = options.pop("datasets", None) or make_datasets(case.rows)
    evaluator = options.pop("evaluator", None)
    loss_class = options.pop("loss_class", PiccoloLoss)
    settings: dict[str, Any] = {
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "logging_steps": 20,
        "save_steps": 4,
        "disable_tqdm": True,
        "cpu_threads": 1,
        "dataloader_pin_memory": False,
    }
    if case.engine == "zero1":
        os.environ |= ZERO1_ENVIRONMENT
    if case.streamed:  # of which ST reads one, and for so many steps as it is told
        rows = case.world * case.batch_size * case.accumulation
        settings |= {"max_steps": 3 * case.rows // rows, "accelerator_config": {"dispatch_batches": False}}
    arguments = PiccoloTrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=case.batch_size,
        gradient_accumulation_steps=case.accumulation,
        multi_dataset_batch_sampler=partial(
            HomogeneousBatchSampler, accumulation_steps=case.accumulation, names=list(datasets)
        ),
        **{**settings, **case.options, **options},
    )
    losses = {name: loss_class(model, temperature=0.05, **case.loss) for name in datasets}
    if case.streamed:
        stream = datasets["pairs"].to_iterable_dataset()
        return PiccoloTrainer(model=model, args=arguments, train_dataset=stream, loss=losses["pairs"])
    return PiccoloTrainer(model=model, args=arguments, train_dataset=datasets, loss=losses, evaluator=evaluator)


def record_rows(trainer: Any) -> list[tuple[int, str, tuple[int, ...]]]:
    """A list that fills with (optimizer step, dataset, rows of this rank) as it trains; a stream tells none."""
    seen: list[tuple[int, str, tuple[int, ...]]] = []
    stock = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows = tuple(inputs["row_ids"].tolist()) if "row_ids" in inputs else ()
        seen.append((trainer.state.global_step, inputs.get("dataset_name", ""), rows))
        return stock(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    return seen


def at_step(trainer: Any, step: int, action: Callable[[], object]) -> None:
    """Let something happen as a step begins."""

    class At(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                action()

    trainer.add_callback(At())


def stop_after(trainer: Any, step: int) -> None:
    """Let a trainer end after a step as if it had been killed there: no save, no error."""

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= step:
                control.should_training_stop = True
                control.should_save = False

    trainer.add_callback(Stop())


def tensor_hash(value: torch.Tensor) -> str:
    """SHA-256 of a tensor, bit for bit."""
    return hashlib.sha256(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def weights_hash(model: Any) -> str:
    """SHA-256 of all weights, bit for bit."""
    hashes = [f"{name} {tensor_hash(value)}" for name, value in sorted(model.state_dict().items())]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def train(rank: int, world: int, encoder: str, output: str, case: Case, stop: int | None = None, **options: Any) -> Any:
    """Train on one rank; (hash of the weights, rows seen, last step)."""
    trainer = make_trainer(Path(encoder), Path(output), case, **options)
    seen = record_rows(trainer)
    if stop is not None:
        stop_after(trainer, stop)
    trainer.train()
    return weights_hash(trainer.model), seen, trainer.state.global_step


def train_with(rank: int, world: int, encoder: str, output: str, case: Case, options: dict[str, Any]) -> Any:
    """``train`` with its options in one mapping, as run_ranks hands them over."""
    return train(rank, world, encoder, output, case, **options)
