"""Settings that nothing reads beside the others that are set: each is told in one line before anything is trained.

They are told and not refused, because a command line is laid over a file: ``--data.mining_model null`` leaves the
file's ``data.mining`` without a reader, and that is no mistake. A setting counts as set where its value is not the
default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from piccolo_st.data import LABELLED_TASKS, SCORE_ROLES, SCORED_TASKS, DatasetSpec
from piccolo_st.training.sections import FinetuneSections

Rule = tuple[tuple[str, ...], Callable[[Any], str]]
"""Keys, and why nothing reads them beside the other settings; an empty string: they are read."""


def _tracked(config: FinetuneSections) -> bool:
    trackers: object = config.train.report_to
    return trackers not in (None, "none", [], ["none"])


RUN: tuple[Rule, ...] = (
    (("model.build",), lambda c: "model.name_or_path is set" if c.model.name_or_path else ""),
    (
        ("model.revision",),
        lambda c: "" if _on_the_hub(c.model.name_or_path) else "model.name_or_path is no id on the Hub",
    ),
    (
        ("lora.alpha", "lora.dropout", "lora.targets", "lora.use_dora", "lora.load_in_4bit", "lora.config"),
        lambda c: "lora.rank is empty" if c.lora.rank is None else "",
    ),
    (("data.mining", "data.remining"), lambda c: "" if c.data.mining_model else "data.mining_model is empty"),
    (("data.mixing_exponent",), lambda c: "" if c.data.mixing == "temperature" else "data.mixing is another"),
    (("train.num_train_epochs",), lambda c: "train.max_steps is set" if c.train.max_steps > 0 else ""),
    (
        ("train.save_steps", "train.save_total_limit", "train.save_only_model"),
        lambda c: "train.save_strategy is no" if c.train.save_strategy == "no" else "",
    ),
    (
        ("train.eval_steps", "train.eval_delay"),
        lambda c: "train.eval_strategy is no" if c.train.eval_strategy == "no" else "",
    ),
    (
        ("evaluation.batch_size",),
        lambda c: ""
        if c.train.eval_strategy != "no" or c.train.eval_on_start or c.evaluation.general
        else "nothing is evaluated",
    ),
    (("loss.hardness_mode",), lambda c: "" if c.loss.hardness_strength else "loss.hardness_strength is 0"),
    (
        ("loss.guide_margin", "loss.guide_margin_strategy"),
        lambda c: "" if c.loss.guide is not None else "loss.guide is empty",
    ),
    (
        ("loss.chunk_tokens",),
        lambda c: "gradient caching cuts the rows"
        if c.loss.mini_batch_size is not None or c.loss.mini_batch_num_tokens not in (None, "auto")
        else "",
    ),
    (
        ("train.activation_checkpointing_kwargs",),
        lambda c: "" if c.train.activation_checkpointing else "train.activation_checkpointing is off",
    ),
    (
        ("train.hub_model_id", "train.hub_token", "train.hub_private_repo", "train.hub_strategy", "train.hub_revision",
         "train.hub_always_push"),
        lambda c: "" if c.train.push_to_hub else "train.push_to_hub is off",
    ),
    (
        ("train.run_name", "train.project", "train.trackio_space_id", "train.trackio_bucket_id",
         "train.trackio_static_space_id"),
        lambda c: "" if _tracked(c) else "train.report_to names no tracker",
    ),
)  # fmt: skip

# A plan is for another machine.
ON_DEVICE: tuple[Rule, ...] = (
    (
        ("train.packing",),
        lambda c: "" if c.train.device.type in ("cpu", "cuda") else f"the run is on {c.train.device.type}",
    ),
    (
        ("train.fast_dropout", "train.cpu_threads"),
        lambda c: "" if c.train.device.type == "cpu" else f"the run is on {c.train.device.type}",
    ),
)

PLAN: tuple[Rule, ...] = (
    (("plan.rows",), lambda c: "train.max_steps is set" if c.train.max_steps > 0 else ""),
    (("plan.reserve",), lambda c: "" if c.plan.gpu_memory_gib is not None else "plan.gpu_memory_gib is empty"),
    (
        ("plan.peak_tflops", "plan.mfu"),
        lambda c: "plan.tokens_per_second is set" if c.plan.tokens_per_second is not None
        else "" if c.plan.peak_tflops is not None and c.plan.mfu is not None
        else "they are read together, and one is empty",
    ),
)  # fmt: skip


def _preset(spec: DatasetSpec) -> str | None:
    return None if spec.preset is None else spec.preset.name


def _scored(spec: DatasetSpec) -> bool:
    return _preset(spec) == "scored_pairs" or (spec.task in SCORED_TASKS and spec.preset is None)


def _labelled(spec: DatasetSpec) -> bool:
    return spec.task in LABELLED_TASKS or _preset(spec) in ("nli", "classes")


DATASET: tuple[Rule, ...] = (
    (
        ("weight", "repeats", "batch_multiple", "loss", "mining", "positives"),
        lambda s: "it is for evaluation alone" if s.use == "evaluate" else "",
    ),
    (
        ("mining",),
        lambda s: "" if s.task == "retrieval" else f"it is for {s.task}, and negatives are mined for retrieval",
    ),
    (("mining",), lambda s: "rows that list their positives are not mined" if s.positives == "list" else ""),
    (
        ("score_range",),
        lambda s: "" if _scored(s) else "its rows have no scores",
    ),
    (("labels",), lambda s: "" if _labelled(s) else "its rows have no classes"),
    (
        ("query_length",),
        lambda s: "its texts are cut at document_length" if s.task in SCORED_TASKS else "",
    ),
    (
        ("positives",),
        lambda s: "" if s.task == "retrieval" or "query" in s.columns else f"a row for {s.task} has no positives",
    ),
)

DATASET_IN_RUN: tuple[Rule, ...] = (
    (("mining",), lambda c: "" if c.data.mining_model else "data.mining_model is empty"),
)

LOSS_OF_ALL = ("mini_batch_size", "mini_batch_num_tokens", "chunk_tokens", "quantised", "matryoshka_dims")
"""What the losses of other tasks than retrieval read of the section ``loss``."""

PRESET: Mapping[str, tuple[str, ...]] = {
    "nli": ("neutral_as_negative",),
    "classes": ("negatives", "seed"),
    "scored_pairs": ("threshold",),
}
"""What each preset reads beside its name."""

_ENCODERS = {"lexical": True, "bm25": False, "random": False}  # who searches embeddings; a model does
_SCORES = {**_ENCODERS, "bm25": True}

MINING: Mapping[str, Callable[[str], bool]] = {
    "use_faiss": lambda miner: _ENCODERS.get(miner, True),
    **dict.fromkeys(
        ("max_score", "min_score", "absolute_margin", "relative_margin"), lambda miner: _SCORES.get(miner, True)
    ),
    **dict.fromkeys(("range_min", "range_max", "sampling"), lambda miner: miner != "random"),
    "dimensions": lambda miner: miner == "lexical",
    "batch_size": lambda miner: miner not in _ENCODERS,
}
"""Which miners read a setting of mining; all of them read those that are not here."""


def unread(config: FinetuneSections, specs: Iterable[DatasetSpec] = (), plan: bool = False) -> list[str]:
    """``key: why``, for every setting that is set and that nothing reads.

    Args:
        config: of stage 1 or 2.
        specs: of its datasets.
        plan: whether the section ``plan`` is being read.
    """
    sections = {
        f"{name}.{key}": value for name in config.sections() for key, value in _set(getattr(config, name)).items()
    }
    typed = {f"{name}.{key}" for name, section in config.resolved.items() for key in section}
    found = list(_told((*RUN, *(PLAN if plan else ON_DEVICE)), config, sections.keys() & typed))
    specs = list(specs)
    found += _of_retrieval(specs, sections.keys() & typed)
    found += _of_mining(config, "data.mining", config.data.mining)
    remining = config.data.remining or {}
    if remining.get("rule") == "hardest":
        found += [f"{key} of data.remining: its rule is hardest" for key in ("decline", "ceiling") if key in remining]
    for spec in specs:
        own = _set(spec)
        found += _of_mining(config, f"mining of dataset {spec.name!r}", spec.mining)
        told = [*_told(DATASET, spec, own), *_told(DATASET_IN_RUN, config, own)]
        if config.loss.distillation is None and spec.loss.get("distillation") is None and spec.task == "retrieval":
            scores = [role for role in SCORE_ROLES if role in spec.columns and spec.preset is None]
            told += [f"columns.{role}: loss.distillation is empty" for role in scores]
        if spec.preset is not None:
            name = spec.preset.name
            further = [key for key in _set(spec.preset) if key not in ("name", *PRESET[name])]
            told += [f"preset.{key}: the preset {name} does not read it" for key in further]
        keys = {line.partition(":")[0]: line for line in reversed(told)}  # one reason is enough
        found += [f"{line} (dataset {spec.name!r})" for line in reversed(keys.values())]
    return found


def _of_retrieval(specs: Sequence[DatasetSpec], present: Collection[str]) -> list[str]:
    """Settings of the loss that reach no dataset: none is for retrieval, or each that is has set them to null."""
    if not specs:
        return []
    own = [spec.loss for spec in specs if spec.task == "retrieval" and spec.use == "train"]
    keys = (key for key in present if key.startswith("loss.") and key.removeprefix("loss.") not in LOSS_OF_ALL)
    idle = [key for key in sorted(keys) if all(one.get(key.removeprefix("loss."), key) is None for one in own)]
    return [f"{key}: no retrieval dataset is trained with it" for key in idle]


def _of_mining(config: FinetuneSections, place: str, settings: Mapping[str, object] | None) -> list[str]:
    given = config.data.mining_model
    miners = [given] if isinstance(given, str) else given or []
    keys = [key for key in settings or {} if miners and key in MINING and not any(map(MINING[key], miners))]
    told = [f"{key} of {place}: data.mining_model {given} does not read it" for key in keys]
    of_judge = {"oversample", "reranker_margin"} & set(settings or {}) if not (settings or {}).get("judge") else set()
    return told + [f"{key} of {place}: there is no judge" for key in sorted(of_judge) if miners]


def _told(rules: Iterable[Rule], about: FinetuneSections | DatasetSpec, present: Iterable[str]) -> Iterator[str]:
    present = set(present)
    for keys, why in rules:
        if set(keys) & present and (words := why(about)):
            yield from (f"{key}: {words}" for key in keys if key in present)


def _set(section: Any) -> dict[str, Any]:
    """The fields of a dataclass that have another value than their default."""
    values = {}
    for item in dataclasses.fields(section):
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if (value := getattr(section, item.name)) != default:
            values[item.name] = value
    return values


def _on_the_hub(name: str | None) -> bool:
    return bool(name) and not Path(str(name)).exists()
