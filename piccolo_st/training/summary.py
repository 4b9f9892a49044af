"""What a run tells the user: before it starts, what will run; when it has ended, what came of it and where it is."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import DatasetDict

from piccolo_st.data import Mixture, RetrievalHoldout
from piccolo_st.distributed import missing_processes
from piccolo_st.evaluation import before_and_after
from piccolo_st.losses.needs import negatives_from
from piccolo_st.modeling import packs, weights_in_words
from piccolo_st.training.arguments import FinetuneConfig
from piccolo_st.training.trainer import PiccoloTrainer
from piccolo_st.training.unread import unread

_SHOWN = 40  # characters of a text in the snippet, which is to be read


def describe(config: FinetuneConfig, mixture: Mixture, train_dataset: DatasetDict, trainer: PiccoloTrainer) -> str:
    """What will run: steps, batch, precision and processes; of each dataset, what became of its rows."""
    plan, arguments, model = trainer.plan, config.train, config.model
    accumulated = arguments.gradient_accumulation_steps
    steps, names = plan.steps() // accumulated, list(train_dataset)
    further: dict[str, dict[str, str | int]] = {
        "negatives": {name: negatives_from(trainer.loss[name], data) for name, data in train_dataset.items()},
        "steps an epoch": dict(zip(names, map(int, plan.steps_per_dataset), strict=True)),
        "samples a step": {name: int(n) * plan.world_size for name, n in zip(names, plan.device_rows, strict=True)},
    }
    total = arguments.max_steps if arguments.max_steps > 0 else int(steps * arguments.num_train_epochs)
    effective = plan.world_size * config.data.batch_size * accumulated
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    precision = "fp16" if arguments.fp16 else "bf16" if arguments.bf16 else "fp32"
    engine = "DeepSpeed" if trainer.is_deepspeed_enabled else "plain" if plan.world_size == 1 else "DDP"
    held = [f"{len(h.queries):,} queries among {len(h.corpus):,} texts ({n})" for n, h in mixture.holdouts.items()]
    lines = [
        f"model      {model.name_or_path or 'built from the data'}, {parameters:,} parameters",
        f"weights    {weights_in_words(trainer.model, model.revision)}",
        f"steps      {total:,} of {effective:,} samples ({config.data.batch_size} x {plan.world_size} processes x "
        f"{accumulated} accumulated), {steps:,} an epoch",
        f"compute    {arguments.device.type}, {precision}, {engine}, {plan.world_size} process(es)"
        f"{', rows without padding' if packs(trainer.model) else ''}",
        f"lengths    query {model.query_length}, passage {model.document_length}",
        f"held out   {'; '.join(held) or 'nothing'}",
        f"output     {Path(str(arguments.output_dir))}",
    ]
    if warning := missing_processes():
        lines.append(f"processes  {warning}")
    if plan.skipped:
        lines.append(f"skipped    {', '.join(plan.skipped)}: smaller than one batch over all processes")
    lines += [f"not read   {line}" for line in unread(config, mixture.specs.values())]
    return "\n".join([*lines, "", mixture.report.text(further)])


def summarize(config: FinetuneConfig, mixture: Mixture, trainer: PiccoloTrainer) -> str:
    """The table before and after, where everything is, and the lines that search with the model."""
    state, output = trainer.state, Path(str(config.train.output_dir))
    folder, curves = output / "model", output / "curves.png"
    lines = [before_and_after(state.log_history)]
    if trainer.out_of_time and state.global_step < state.max_steps:
        limit = f"train.max_seconds={config.train.max_seconds:g}"
        more = "the same command without it (or PICCOLO_ST_MAX_SECONDS) goes on from there"
        lines.append(f"\nended      at step {state.global_step:,} of {state.max_steps:,}, after {limit}; {more}")
    lines += ["", f"model     {folder}"]
    lines += [f"curves    {curves}"] if curves.is_file() else []
    lines.append(f"record    {output / 'config.yaml'}, run.json")
    if mixture.holdouts:
        lines += ["", "Search with it:", "", *_snippet(folder, next(iter(mixture.holdouts.values())))]
    return "\n".join(lines).lstrip("\n")


def _snippet(folder: Path, held: RetrievalHoldout) -> list[str]:
    """Three lines of Python that search a held-out query's answer among other texts."""
    query, relevant = next(iter(held.relevant.items()))
    answer = held.corpus[min(relevant)]
    others = sorted((text for text in held.corpus.values() if text != answer), key=len)[len(held.corpus) // 4 :][:2]
    texts = json.dumps([text[:_SHOWN] for text in (others[0], answer, others[1])], ensure_ascii=False)
    return [
        "from sentence_transformers import SentenceTransformer",
        f"model = SentenceTransformer({json.dumps(str(folder))})",
        f"print(model.similarity(model.encode_query({json.dumps(held.queries[query][:_SHOWN], ensure_ascii=False)}), "
        f"model.encode_document({texts})))",
    ]
