"""What an ablation compares: the sections of its YAML, and what each variant runs with once `after` is followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from piccolo_st.config import merge, read_yaml
from piccolo_st.errors import InputError, nearest, shown
from piccolo_st.experiments.flag_embedding import FlagEmbeddingOptions
from piccolo_st.experiments.stock import StockOptions
from piccolo_st.schema import Whole, build

Sections: TypeAlias = dict[str, Any]
"""Of a run's configuration: name -> the mapping that YAML has there; or dotted keys -> values."""

TrainerName = Literal["piccolo_st", "sentence_transformers", "flag_embedding", "none"]
OPTIONS: dict[str, type[StockOptions] | type[FlagEmbeddingOptions]] = {
    "sentence_transformers": StockOptions,
    "flag_embedding": FlagEmbeddingOptions,
}


@dataclass(frozen=True)
class AblationSettings:
    """What is compared, and where the results go.

    Attributes:
        output_dir: where runs, the tables and the picture go.
        seeds: each variant runs once with each.
        root: where relative paths of ``tasks`` start; None: the mixture's root.
        tasks: local tasks, as in a file of them, or those of a file, ``{file: TASKS.yaml, only: [NAMES]}``; ``group``
            says which mean each is part of.
        against: the variant that all others are compared with; None: each with what it comes after.
    """

    output_dir: str = "runs/ablation"
    seeds: tuple[Whole, ...] = (1, 2, 3)
    root: str | None = None
    tasks: tuple[Mapping[str, object], ...] = ()
    against: str | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"ablation.seeds must be different numbers, at least one, got {list(self.seeds)}")


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: its key in the YAML and its directory.
        label: what the table calls it.
        after: the variant it changes; None: the sections of the file.
        trainer: who trains; none: nobody, the checkpoint is scored as it is; None: as ``after``, else piccolo_st.
        options: of a trainer that is not piccolo_st, over those of ``after``.
        set: dotted keys of the sections -> values.
        stage1: dotted keys for a stage 1 run whose model this one starts from; None: as ``after`` is; {}: none.
    """

    name: str
    label: str = ""
    after: str | None = None
    trainer: TrainerName | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    set: Mapping[str, object] = field(default_factory=dict)
    stage1: Mapping[str, object] | None = None


@dataclass(frozen=True)
class ResolvedVariant:
    """What one variant runs with, once the chain of ``after`` is followed."""

    variant: Variant
    trainer: TrainerName
    options: Mapping[str, object]
    sections: Sections
    stage1: Sections | None


def read_variants(
    path: Path, overrides: Mapping[str, object]
) -> tuple[AblationSettings, dict[str, ResolvedVariant], Sections]:
    """The settings, the variants by name, and the sections that the first of them starts from.

    Raises:
        InputError: an unknown key, a variant that follows none or itself, or two of one label.
    """
    content = merge(read_yaml(path), overrides)
    own = {name: content.pop(name, None) or {} for name in ("ablation", "variants")}
    settings = build(AblationSettings, own["ablation"], f"section 'ablation' of {path}")
    if not isinstance(own["variants"], Mapping):
        raise InputError(f"variants of {path} must be a mapping of names to variants, got {shown(own['variants'])}")
    variants = {
        name: build(Variant, given, f"variant {name!r} of {path}", name=name) for name, given in own["variants"].items()
    }
    if not variants:
        raise InputError(f"{path} has no variants; give `variants` at least one")
    by_label: dict[str, str] = {}
    for name, variant in variants.items():
        label = variant.label.strip() or name
        other = by_label.setdefault(label, name)
        if other != name:
            raise InputError(f"labels of {path} must differ, {name!r} and {other!r} are both {label!r}; change one")
    if settings.against is not None and settings.against not in variants:
        raise InputError(
            f"ablation.against of {path} must be a variant, got {settings.against!r}"
            f"{nearest(settings.against, list(variants))}"
        )
    resolved = {name: _resolve(name, variants, content, path, ()) for name in variants}
    return settings, resolved, content


def _resolve(
    name: str, variants: Mapping[str, Variant], base: Sections, path: Path, through: tuple[str, ...]
) -> ResolvedVariant:
    variant = variants[name]
    if name in through:
        raise InputError(f"variant {name!r} of {path} comes after itself; change `after`")
    if variant.after is None:
        before = ResolvedVariant(variant, "piccolo_st", {}, base, None)
    elif variant.after in variants:
        before = _resolve(variant.after, variants, base, path, (*through, name))
    else:
        raise InputError(
            f"`after` of variant {name!r} of {path} must be a variant, got {variant.after!r}"
            f"{nearest(variant.after, list(variants))}"
        )
    stage1 = before.stage1 if variant.stage1 is None else dict(variant.stage1) or None
    trainer = variant.trainer or before.trainer
    options = {**(before.options if trainer == before.trainer else {}), **variant.options}
    if trainer in OPTIONS:
        build(OPTIONS[trainer], options, f"`options` of variant {name!r} of {path}")
    elif options:
        raise InputError(
            f"`options` of variant {name!r} of {path} must be empty for the trainer {trainer}, got "
            f"{shown(dict(options))}; give it `trainer: sentence_transformers` or flag_embedding"
        )
    return ResolvedVariant(variant, trainer, options, merge(before.sections, variant.set), stage1)
