"""What other models make of a run's texts, before its first step: the guide and the teachers of the section loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import DatasetDict
from sentence_transformers import SentenceTransformer

from piccolo_st import cache
from piccolo_st.data import Mixture
from piccolo_st.errors import InputError, shown
from piccolo_st.losses import DistillationSettings, check_width
from piccolo_st.mining import StoredGuide, StoredTeachers, load_alike, store_guide
from piccolo_st.modeling import set_prompts
from piccolo_st.training.training_arguments import FinetuneConfig


@dataclass(frozen=True)
class Seen:
    """The ``guide`` and the ``teacher`` of PiccoloDataCollator, where there are any."""

    guide: StoredGuide | None = None
    teacher: StoredTeachers | None = None


def look(config: FinetuneConfig, mixture: Mixture, model: SentenceTransformer, train_dataset: DatasetDict) -> Seen:
    """Let the guide and the teachers embed the texts of the datasets that have them.

    Raises:
        InputError: one cannot be loaded or used, or a dataset names others.
    """
    return Seen(_guide(config, mixture, model, train_dataset), _teachers(config, mixture, model, train_dataset))


def _guide(
    config: FinetuneConfig, mixture: Mixture, model: SentenceTransformer, train_dataset: DatasetDict
) -> StoredGuide | None:
    """The guide of the retrieval sets that have one, which has embedded all of their texts.

    Raises:
        InputError: it cannot be loaded, or a dataset names one of its own.
    """
    guided = {}
    for name, dataset in train_dataset.items():
        spec = mixture.specs[name]
        given = spec.loss.get("guide", config.loss.guide)
        if given not in (None, config.loss.guide):
            raise InputError(
                f"loss.guide of dataset {name!r} must be empty or the run's, {config.loss.guide!r}, got {given!r}; a "
                "run has one guide, set in its section loss"
            )
        if given is not None and spec.task == "retrieval":
            guided[name] = dataset
    if not guided:
        return None
    return store_guide(_other(str(config.loss.guide), model, "loss.guide"), guided, _embeddings())


def _teachers(
    config: FinetuneConfig, mixture: Mixture, model: SentenceTransformer, train_dataset: DatasetDict
) -> StoredTeachers | None:
    """The teachers of the retrieval sets that have any, each of which has embedded all of their texts.

    Raises:
        InputError: one cannot be loaded, a dataset names others, or their embeddings have another width than the
            model's and are to be compared with them.
    """
    common, place = config.loss.distillation or {}, "loss.distillation.teachers"
    taught, cosine = {}, False
    for name, dataset in train_dataset.items():
        own = mixture.specs[name].loss.get("distillation", {})
        if mixture.specs[name].task != "retrieval" or not isinstance(own, Mapping):
            continue
        if (given := own.get("teachers")) and given != common.get("teachers"):
            raise InputError(
                f"{place} of dataset {name!r} must be empty, for none, or the run's, got {shown(given)}; a run has one "
                "set of teachers, given in its section loss"
            )
        settings = DistillationSettings.of(common, own, place=f"loss.distillation of dataset {name!r}")
        if settings.teachers:
            taught[name], cosine = dataset, cosine or bool(settings.cosine_weight)
    teachers = DistillationSettings.of(common).teachers if taught else None
    stored, width = [], 0
    for number, teacher in enumerate(teachers or (), start=1):
        other = _other(teacher.name_or_path, model, place)
        if teacher.instructions is not None:
            set_prompts(other, teacher.instructions)
        width += other.get_embedding_dimension() or 0
        if cosine and number == len(teachers or ()):  # before the last has embedded anything
            check_width(max(config.loss.matryoshka_dims or [model.get_embedding_dimension() or 0]), width)
        stored.append((teacher.weight, store_guide(other, taught, _embeddings())))
    return StoredTeachers(stored) if stored else None


def _other(name: str, model: SentenceTransformer, place: str) -> SentenceTransformer:
    """The model of that name, or the encoder itself."""
    return model if name == "self" else load_alike(name, place)


def _embeddings() -> Path:
    return cache.default_cache() / "embeddings"
