"""What a run tells the user: before it starts, what will run; when it has ended, what came of it and where it is."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import DatasetDict

from piccolo_st.data import Mixture, RetrievalHoldout, StreamedTable
from piccolo_st.distributed import missing_processes
from piccolo_st.evaluation import before_and_after
from piccolo_st.losses import PiccoloLoss
from piccolo_st.losses.needs import negatives_from
from piccolo_st.modeling import packs, weights_in_words
from piccolo_st.training.trainer import PiccoloTrainer
from piccolo_st.training.training_arguments import FinetuneConfig
from piccolo_st.training.unread import unread

_SHOWN = 16  # characters of a text in the snippet, whose lines are to fit a terminal's 80 columns


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
    if held and arguments.eval_strategy == "no" and not arguments.eval_on_start:
        held.append("none of them is searched, since train.eval_strategy is no: set it to steps or epoch")
    lines = [
        f"model      {model.name_or_path or 'built from the data'}, {parameters:,} parameters",
        f"weights    {weights_in_words(trainer.model, model.revision)}",
        *_adapter(config, trainer),
        f"steps      {total:,} of {effective:,} samples ({config.data.batch_size} x {plan.world_size} processes x "
        f"{accumulated} accumulated), {steps:,} an epoch",
        f"compute    {arguments.device.type}, {precision}, {engine}, {plan.world_size} process(es)"
        f"{', rows without padding' if packs(trainer.model) else ''}",
        *_mini_batches(config, trainer),
        f"lengths    query {model.query_length}, passage {model.document_length}",
        f"held out   {'; '.join(held) or 'nothing'}",
        f"output     {Path(str(arguments.output_dir))}",
    ]
    lines += _remining(trainer, total)
    if warning := missing_processes():
        lines.append(f"processes  {warning}")
    if plan.skipped:
        lines.append(f"skipped    {', '.join(plan.skipped)}: smaller than one batch over all processes")
    if streamed := {n: len(d.data.group_rows) for n, d in train_dataset.items() if isinstance(d.data, StreamedTable)}:
        groups = ", ".join(f"{name} ({number:,} row groups)" for name, number in streamed.items())
        lines.append(f"streamed   {groups}: read where they lie, nothing copied")
    lines += [f"not read   {line}" for line in unread(config, mixture.specs.values())]
    return "\n".join([*lines, "", mixture.report.text(further)])


def _mini_batches(config: FinetuneConfig, trainer: PiccoloTrainer) -> list[str]:
    """What gradient caching was left to the machine."""
    if config.loss.mini_batch_num_tokens != "auto":
        return []
    modules = (module for loss in trainer.loss.values() for module in loss.modules())
    tokens = max((one.mini_batch_num_tokens or 0 for one in modules if isinstance(one, PiccoloLoss)), default=0)
    said = f"{tokens:,} tokens at a time, which fit the GPU" if tokens else "none: a batch fits, or there is no GPU"
    return [f"caching    {said} (loss.mini_batch_num_tokens: auto)"]


def _adapter(config: FinetuneConfig, trainer: PiccoloTrainer) -> list[str]:
    """What is trained of a model with an adapter."""
    if config.lora.rank is None:
        return []
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    return [f"adapter    LoRA of rank {config.lora.rank}: {trained:,} weights are trained, the others stay"]


def _remining(trainer: PiccoloTrainer, total: int) -> list[str]:
    """When the negatives of a row are judged again, where they are."""
    if trainer.negatives is None:
        return []
    settings, plan = trainer.negatives.settings, trainer.plan
    interval, first = settings.interval(plan), settings.interval(plan) + settings.ahead(plan)
    if first >= total:
        return [
            f"re-mined   never: what is judged first, after step {interval:,}, holds from step {first:,} on; lower "
            "data.remining.every"
        ]
    return [
        f"re-mined   after every {interval:,} steps, {settings.share:.0%} of the rows to come, first those of step "
        f"{first:,}; of their own negatives, below, the first of each row are in use at first"
    ]


def summarize(config: FinetuneConfig, mixture: Mixture, trainer: PiccoloTrainer) -> str:
    """The table before and after, where everything is, and the lines that search with the model."""
    state, output = trainer.state, Path(str(config.train.output_dir))
    folder, curves = output / "model", output / "curves.png"
    averaged = bool(config.train.average_with_start)  # and searched once more
    lines = [before_and_after(state.log_history, None if averaged else trainer.best_loaded)]
    if trainer.out_of_time and state.global_step < state.max_steps:
        limit = f"train.max_seconds={config.train.max_seconds:g}"
        more = "the same command without it (or PICCOLO_ST_MAX_SECONDS) goes on from there"
        lines.append(f"\nended      at step {state.global_step:,} of {state.max_steps:,}, after {limit}; {more}")
    if told := trainer.remining_statistics():
        lines.append(
            f"\nre-mined  {told['negatives_replaced']:,} of the {told['negatives_judged']:,} judged negatives "
            f"gave their places to others, in {told['remining_time']:.1%} of the time"
        )
    lines += ["", f"model     {folder}"]
    lines += [f"adapter   {output / 'adapter'}"] if config.lora.rank is not None else []
    lines += [f"curves    {curves}"] if curves.is_file() else []
    lines.append(f"record    {output / 'config.yaml'}, run.json")
    if mixture.holdouts:
        held, trusted = next(iter(mixture.holdouts.values())), config.model.trust_remote_code
        lines += ["", "Search with it:", "", *_snippet(folder, held, trusted)]
    return "\n".join(lines).lstrip("\n")


def _snippet(folder: Path, held: RetrievalHoldout, trusted: bool) -> list[str]:
    """Lines of Python that search a held-out query's answer among other texts."""
    query, relevant = next(iter(held.relevant.items()))
    answer = held.corpus[min(relevant)]
    others = sorted((text for text in held.corpus.values() if text != answer), key=len)[len(held.corpus) // 4 :][:2]
    texts = [json.dumps(text[:_SHOWN], ensure_ascii=False) for text in (others[0], answer, others[1])]
    return [
        "from sentence_transformers import SentenceTransformer",
        f"model = SentenceTransformer({json.dumps(str(folder))}{', trust_remote_code=True' * trusted})",
        f"query = model.encode_query({json.dumps(held.queries[query][:_SHOWN], ensure_ascii=False)})",
        "texts = [",
        *(f"    {text}," for text in texts),
        "]",
        "print(model.similarity(query, model.encode_document(texts)))",
    ]
