"""Adapters of PEFT in folders: what one notes of its base, and how a model gets one back.

(1) a checkpoint of a model with an adapter (``save_native``) holds the adapter and names its base; ``adapter_state`` is
    what it notes beside that, by which ``check_adapter`` knows the base again. ``load_trained`` puts one back into the
    model that is being trained, without a second base in memory;
(2) a directory with an adapter is a model like any other: ``settle_adapter`` merges it into its base, or goes on
    training it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piccolo_st.errors import InputError
from piccolo_st.modeling.adapters import LoraSettings, encoder_of, quantized, wrapped
from piccolo_st.modeling.fingerprint import sampled_hash
from piccolo_st.stored import read_json

if TYPE_CHECKING:
    from peft import PeftConfig
    from sentence_transformers import SentenceTransformer
    from torch import nn

_STATE = "config_sentence_transformers.json"
_OF_ADAPTERS = ("lora_", ".modules_to_save.")  # in the names of their weights


def has_adapter(name_or_path: str, revision: str | None = None, local_files_only: bool = False) -> bool:
    """Whether a directory or a repository on the Hub holds an adapter of PEFT."""
    from transformers.utils.peft_utils import find_adapter_config_file

    found = find_adapter_config_file(name_or_path, revision=revision, local_files_only=local_files_only)
    return found is not None


# Step (1).


@dataclass(frozen=True)
class _Noted:
    """``adapter_state``, read back."""

    base: tuple[str, str] | None = None
    bidirectional: bool = False


@dataclass(frozen=True)
class _State:
    piccolo_st: _Noted = _Noted()


@dataclass(frozen=True)
class _Module:
    """An entry of modules.json."""

    idx: int
    path: str


def adapter_state(model: SentenceTransformer) -> dict[str, object]:
    """What a folder with the adapter of ``model`` notes of its base, as JSON; empty without an adapter."""
    if not wrapped(model):
        return {}
    encoder = encoder_of(model).get_base_model()
    state: dict[str, object] = {} if quantized(encoder) else {"base": _base(encoder)}
    if getattr(encoder.config, "is_causal", None) is False:  # which stands in the config.json of a whole model
        state["bidirectional"] = True
    return state


def _base(encoder: nn.Module) -> tuple[str, str]:
    """Dtype and hash of an encoder's weights without its adapters'."""
    weights = [
        (name, one) for name, one in encoder.state_dict().items() if not any(own in name for own in _OF_ADAPTERS)
    ]
    return str(weights[0][1].dtype), sampled_hash(weights)


def check_adapter(model: SentenceTransformer, folder: str, revision: str | None = None) -> None:
    """Let a model that was just loaded with an adapter be what was saved.

    transformers 5.24 leaves the magnitudes of DoRA at random, so PEFT reads the adapter once more; the base is compared
    with the one that the adapter was trained on, if that is noted, and sees what that one saw.

    Args:
        model: as ``SentenceTransformer`` loads it; without an adapter it stays as it is.
        folder: a directory or Hub id.
        revision: of the latter.

    Raises:
        InputError: the base is another.
    """
    encoder = encoder_of(model)
    if not getattr(encoder, "peft_config", None):
        return
    from peft.utils import load_peft_weights, set_peft_model_state_dict
    from transformers.utils.hub import cached_file

    noted, file = _Noted(), cached_file(folder, _STATE, revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is not None:
        noted = read_json(Path(file), _State, "put it back as it was saved").piccolo_st
    before, now = noted.base, None if quantized(encoder) else _base(encoder)
    if before and now and before[0] == now[0] and before != now:
        raise InputError(
            f"the adapter in {folder} was trained on other weights than those of its base, "
            f"{encoder.config.name_or_path}, as they are now; put that base back, or take the whole model of its run"
        )
    if noted.bidirectional:
        encoder.config.is_causal = False
    weights = load_peft_weights(folder, device="cpu", revision=revision)
    [name] = encoder.peft_config
    own = {key.removeprefix("base_model.model."): one for key, one in weights.items()}
    set_peft_model_state_dict(encoder, own, adapter_name=name)


def load_trained(model: SentenceTransformer, folder: Path) -> bool:
    """Put what a checkpoint of ``model`` holds back into it: its adapter, and the weights of the modules behind it.

    Returns:
        False, and nothing is done, for a model whose encoder stands in no wrapper of PEFT.
    """
    if not wrapped(model):
        return False
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(encoder_of(model), load_peft_weights(str(folder), device="cpu"))
    for entry in read_json(folder / "modules.json", list[_Module], "take another checkpoint")[1:]:
        module: Any = model[entry.idx]
        if module.state_dict():
            module.load_torch_weights(str(folder), subfolder=entry.path, model=module)
    return True


# Step (2).


def settle_adapter(
    model: SentenceTransformer,
    name_or_path: str,
    settings: LoraSettings | None,
    revision: str | None,
    options: Mapping[str, object],
) -> None:
    """Merge the adapter of a model that has just been loaded with one into its base, or go on training it.

    sentence-transformers loads such a base at its newest revision, and in a form that PEFT neither trains nor merges;
    here it is loaded as the adapter names it.

    Args:
        model: loaded from ``name_or_path``.
        name_or_path: a directory or Hub id with an adapter.
        settings: of the adapter, to go on training it; None: to merge it.
        revision: of the adapter.
        options: for ``from_pretrained`` of the base.

    Raises:
        InputError: the adapter does not fit its base, or is not as ``settings`` say.
    """
    from peft import PeftConfig, PeftModel

    first: Any = model[0]
    both_ways = getattr(first.model.config, "is_causal", None) is False  # as check_adapter found it noted
    kind, config = type(first.model), PeftConfig.from_pretrained(name_or_path, revision=revision)
    first.model = None  # before there are two
    base = kind.from_pretrained(config.base_model_name_or_path, revision=config.revision, **options)
    if both_ways:
        base.config.is_causal = False
    if settings is None:
        encoder = PeftModel.from_pretrained(base, name_or_path, revision=revision)
        first.model = encoder.merge_and_unload(safe_merge=True).requires_grad_()
        return
    for name, value in _differing(config, settings, base):
        raise InputError(
            f"the adapter in {name_or_path} is trained further as it is, with {name} {getattr(config, name)!r}, got "
            f"{value!r}; set that, or train another adapter on the whole model that its run left"
        )
    first.model = PeftModel.from_pretrained(base, name_or_path, revision=revision, is_trainable=True)


def _differing(config: PeftConfig, settings: LoraSettings, base: nn.Module) -> Iterator[tuple[str, object]]:
    """Fields of an adapter that ``settings`` have otherwise, with their value."""
    for name, value in settings.fields(base).items():
        own = getattr(config, name, None)
        same = own == (set(value) if isinstance(own, set) and isinstance(value, list) else value)
        if not same and name not in ("task_type", "exclude_modules") and value != "all-linear":
            yield name, value
