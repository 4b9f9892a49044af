"""Checkpoints that load in whatever their users run.

What sentence-transformers (ST) 6 writes is not read by ST before 5.4 nor by text-embeddings-inference, and older vLLM
silently pools [CLS] from it. All of them read the layout of ST 3, and the newer keys beside it do no harm. So
``save_portable``

1. saves the model with ST into a folder beside the target, an adapter of PEFT merged into its base;
2. names ``sentence_transformers.models.*`` in modules.json; InstructionPooling becomes stock Pooling;
3. writes the pooling mode as ``pooling_mode_*`` flags and as ``pooling_mode``, and nothing but ``max_seq_length`` and
   ``do_lower_case`` into sentence_bert_config.json, where ST 3 to 5.3 stop at a key they do not know;
4. takes the truncation and padding of earlier calls out of tokenizer.json and tokenizer_config.json, and writes the
   latter, with the model's length, and config.json in words that transformers 4 knows;
5. casts the weights to ``dtype``;
6. and only then moves the files to the target.

That layout has no place for the lengths of queries and documents, which only ST 6 knows (:func:`keep_lengths` writes
them for it, and then no older one loads the checkpoint), nor for InstructionPooling. They are kept under "piccolo_st"
in config_sentence_transformers.json, which everybody else ignores, and ``load_portable`` puts them back. ``readers.py``
reads a checkpoint with the eyes of each of its users.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import load_file_path

from piccolo_st.errors import InputError
from piccolo_st.modeling.adapters import exchanged, merged
from piccolo_st.modeling.pooling import InstructionPooling
from piccolo_st.modeling.portable.checkpoint_files import LENGTHS, POOLING_FLAGS, JsonObject, older_rotary
from piccolo_st.modeling.portable.limits import pooling_modes, problems
from piccolo_st.modeling.positions import usable_positions
from piccolo_st.modeling.saved_adapters import adapter_state, check_adapter

STATE_KEY = "piccolo_st"
_LAST = ("modules.json", "config.json")
# What a folder of an older model may hold and the new one does not: other forms of the weights, module folders, and
# what was measured on it or what it was merged from, in files that do not name the model that they are of.
_STALE = (
    "model*.safetensors*", "pytorch_model*.bin*", "onnx", "openvino", "[0-9]_[A-Z]*", ".eval_results", "merge.json",
)  # fmt: skip


# Settings of one call, which transformers 4 kept in tokenizer_config.json, and by which fastembed cuts.
_OF_A_CALL = ("max_length", "truncation", "truncation_strategy", "stride", "padding", "pad_to_multiple_of")


def save_portable(
    model: SentenceTransformer,
    path: str | Path,
    dtype: torch.dtype | None = None,
    create_model_card: bool = True,
) -> None:
    """Save ``model`` to the folder ``path`` so that it loads everywhere, with the same embeddings.

    The model itself does not change. Other files in ``path`` (a trainer's, a README.md when no card is made) stay;
    those of an older model are replaced, and if that is interrupted the folder has no config.json and does not load.

    Args:
        model: Transformer, Pooling or InstructionPooling, and perhaps Dense and Normalize.
        path: created if needed.
        dtype: of the saved weights, torch.float16, bfloat16 or float32; None keeps what the model has.
        create_model_card: write ST's README.md as well.

    Raises:
        InputError: the model has a module or a setting this layout cannot express, or a weight that is too large for
            ``dtype``.

    Warns:
        UserWarning: instructions are excluded from pooling. Stock Pooling excludes them only where they are given as
            prompts; rows with a prefix typed by hand, and text-embeddings-inference and vLLM, pool them.

    Example:
        >>> import torch
        >>> from sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> save_portable(model, "half", torch.float16)
        >>> SentenceTransformer("half").dtype
        torch.float16
    """
    if found := problems(model):
        raise InputError("; ".join(found))
    _warn_of_excluded_instructions(model)
    with merged(model), _replacing(Path(path)) as fresh:
        with _own_storage(model):
            model.save_pretrained(str(fresh), create_model_card=create_model_card)
        _write_modules(model, fresh)
        _edit_json(fresh / "config_sentence_transformers.json", lambda config: _keep_state(model, config))
        _edit_json(fresh / "tokenizer.json", lambda config: config.update(truncation=None, padding=None))
        _edit_json(fresh / "tokenizer_config.json", lambda config: _plain_tokenizer_config(model, config))
        if dtype is not None:
            _cast(fresh, dtype)
        _edit_json(fresh / "config.json", lambda config: _plain_config(config, dtype or model.dtype))


def save_native(model: SentenceTransformer, path: str | Path, create_model_card: bool = True) -> None:
    """Save ``model`` to the folder ``path`` in sentence-transformers' own layout, for what ``save_portable`` refuses.

    Of a model with an adapter of PEFT the adapter alone is saved, with the name of its base. The rest is as there: the
    model does not change, an older model in ``path`` is replaced, InstructionPooling becomes stock Pooling that
    ``load_portable`` puts back.

    Args:
        model: any that ``model.save_pretrained`` saves.
        path: created if needed.
        create_model_card: write ST's README.md as well.
    """
    with _replacing(Path(path)) as fresh:
        with _own_storage(model), _stock_pooling(model) as state:
            model.save_pretrained(str(fresh), create_model_card=create_model_card)
        state |= adapter_state(model)
        if state:
            _edit_json(fresh / "config_sentence_transformers.json", lambda config: config.update({STATE_KEY: state}))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A folder beside ``path``; when the block ends without an error, its files move over what is in ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
        fresh = Path(name)
        yield fresh
        for file in fresh.rglob("*.safetensors"):  # safetensors lets nobody but their owner read them
            file.chmod((fresh / "modules.json").stat().st_mode)
        _move(fresh, path)


@contextmanager
def _stock_pooling(model: SentenceTransformer) -> Iterator[JsonObject]:
    """Inside, InstructionPooling is stock Pooling, which ST loads without further code; yields what that leaves out."""
    state: JsonObject = {}
    stock: list[tuple[object, str, object]] = []
    for name, module in model.named_children():
        if isinstance(module, InstructionPooling):
            state["pooling"] = module.get_config_dict()
            pooling = Pooling(module.embedding_dimension, module.pooling_mode, include_prompt=module.include_prompt)
            stock.append((model, name, pooling))
    with exchanged(stock):
        yield state


def _own_storage(model: SentenceTransformer) -> AbstractContextManager[None]:
    """Weights outside the encoders in storage of their own while they are saved.

    DeepSpeed keeps all weights in one buffer. transformers copes with that, but other modules save through safetensors,
    which refuses a part of a buffer.
    """
    encoders = {id(weight) for one in model.modules() if isinstance(one, Transformer) for weight in one.parameters()}
    weights = [weight for weight in model.parameters() if id(weight) not in encoders]
    parts = [weight for weight in weights if weight.untyped_storage().nbytes() > weight.nbytes]
    return exchanged([(weight, "data", weight.data.clone()) for weight in parts])


def load_portable(path: str | Path, **kwargs: Any) -> SentenceTransformer:
    """Load a checkpoint with what ``save_portable`` could only note: the two lengths and InstructionPooling.

    ``SentenceTransformer(path)`` loads it as well, with one length and stock Pooling. A checkpoint of another origin
    loads as it is.

    Args:
        path: a local folder.
        kwargs: for ``SentenceTransformer``.

    Example:
        >>> model = load_portable("runs/quickstart/model", device="cpu")
        >>> model.encode_query(["天气"]).shape == (1, model.get_embedding_dimension())
        True
    """
    model = SentenceTransformer(str(path), **kwargs)
    check_adapter(model, str(path))
    put_back_state(model, str(path))
    return model


def put_back_state(model: SentenceTransformer, name_or_path: str) -> None:
    """Give a model what ``save_portable`` noted of the checkpoint that it was loaded from, or is a copy of.

    Args:
        model: as ``SentenceTransformer`` loads it.
        name_or_path: a directory, or the id of a repository that has been downloaded.
    """
    file = load_file_path(name_or_path, "config_sentence_transformers.json", local_files_only=True)
    state = json.loads(Path(file).read_text(encoding="utf-8")).get(STATE_KEY, {}) if file else {}
    for name in LENGTHS:
        setattr(model[0], name, state.get(name, getattr(model[0], name, None)))
    if "pooling" in state:
        (place,) = (place for place, module in enumerate(model) if isinstance(module, Pooling))
        model[place] = InstructionPooling(**state["pooling"]).to(model.device)


def keep_lengths(path: str | Path, native: bool) -> None:
    """Say how a saved checkpoint carries the lengths of its queries and documents.

    Args:
        path: folder of a checkpoint, as ``save_portable`` writes it.
        native: where sentence-transformers 6 honours them in ``encode_query`` and ``encode_document``, and versions
            before it do not load the checkpoint. Otherwise where every version loads it and cuts both at one length,
            and :func:`load_portable` alone puts them back.

    Raises:
        InputError: the checkpoint has no such lengths.
    """
    folder = Path(path)
    config = folder / "sentence_bert_config.json"
    lengths = saved_lengths(folder)
    if native and not lengths:
        raise InputError(
            f"{folder} has no lengths of queries and documents to keep; set them with set_lengths, or train it"
        )
    if not lengths:
        return
    _edit_json(
        folder / "config_sentence_transformers.json", lambda content: content.setdefault(STATE_KEY, {}).update(lengths)
    )
    content = json.loads(config.read_text(encoding="utf-8"))
    for name in LENGTHS:
        content.pop(name, None)
    _write_json(config, content | (lengths if native else {}))


def saved_lengths(path: str | Path) -> dict[str, int]:
    """The lengths of queries and documents that a saved checkpoint carries, natively or for ``load_portable``."""
    found: dict[str, int] = {}
    for name in ("config_sentence_transformers.json", "sentence_bert_config.json"):
        file = Path(path) / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        content = content.get(STATE_KEY, {}) if name.startswith("config") else content
        found |= {one: content[one] for one in LENGTHS if content.get(one) is not None}
    return found


def _warn_of_excluded_instructions(model: SentenceTransformer) -> None:
    if not all(module.include_prompt for module in model if isinstance(module, Pooling)):
        warnings.warn(
            "this model excludes instructions from pooling. The saved stock Pooling does so for instructions given as "
            "a prompt (encode_query, encode(prompt_name=...)); it pools a prefix typed by hand, and "
            "text-embeddings-inference, vLLM and plain transformers pool every instruction",
            stacklevel=3,
        )


def _write_modules(model: SentenceTransformer, folder: Path) -> None:
    """Write modules.json and the config of every module (steps 2 and 3); weights stay where ST saved them."""
    entries = []
    for index, (name, module) in enumerate(model.named_children()):
        kind = "Pooling" if isinstance(module, Pooling) else type(module).__name__
        path = f"{index}_{kind}" if index else ""
        entries.append({"idx": index, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"})
        if isinstance(module, InstructionPooling):
            (folder / f"{index}_{type(module).__name__}").rename(folder / path)
        if isinstance(module, Pooling):
            _write_json(folder / path / "config.json", _pooling_config(module))
        elif isinstance(module, Transformer):
            lengths = {"max_seq_length": _length(model), "do_lower_case": False}
            _write_json(folder / "sentence_bert_config.json", lengths)  # lower-casing is in tokenizer.json
        elif isinstance(module, Dense):
            _edit_json(folder / path / "config.json", _forget_feature_names)
        elif isinstance(module, Normalize):
            (folder / path / "config.json").unlink()
    _write_json(folder / "modules.json", entries)


def _length(model: SentenceTransformer) -> int | None:
    """Where texts are cut: at most as many tokens as the encoder has positions for."""
    return min(
        filter(None, [model.max_seq_length, usable_positions(cast(Transformer, model[0]).auto_model)]), default=None
    )


def _pooling_config(module: Pooling) -> JsonObject:
    modes = pooling_modes(module)
    config: JsonObject = {"word_embedding_dimension": module.embedding_dimension}
    # Older vLLM takes the first key that is true for the pooling type, so the flags come before include_prompt.
    config |= {flag: mode in modes for mode, flag in POOLING_FLAGS.items()}
    if len(modes) == 1:
        config["pooling_mode"] = modes[0]
    return {**config, "include_prompt": module.include_prompt}


def _forget_feature_names(config: JsonObject) -> None:
    for name in ("module_input_name", "module_output_name"):
        config.pop(name, None)


def _keep_state(model: SentenceTransformer, config: JsonObject) -> None:
    """Note what only ``load_portable`` puts back."""
    state: JsonObject = {name: value for name in LENGTHS if (value := getattr(model[0], name)) is not None}
    for module in model:
        if isinstance(module, InstructionPooling):
            state["pooling"] = module.get_config_dict()
    if state:
        config[STATE_KEY] = state
    config["prompts"] = {name: text or "" for name, text in config["prompts"].items()}  # null stops a Rust reader


def _plain_config(config: JsonObject, dtype: torch.dtype | None) -> None:
    """The encoder's, in words of transformers 4 beside its own."""
    # transformers 5 writes and reads "dtype"; transformers 4 and servers read "torch_dtype".
    config["dtype"] = config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config |= older_rotary(config)
    if config.get("pad_token_id", 0) is None:  # as of Qwen3, whose published ones have no such key; null stops TEI
        del config["pad_token_id"]


def _plain_tokenizer_config(model: SentenceTransformer, config: JsonObject) -> None:
    """In words of transformers 4, without what an earlier call or place left there, and with the model's length."""
    for name in ("backend", "is_local", "local_files_only", *_OF_A_CALL):
        config.pop(name, None)
    if (length := _length(model)) is not None:
        config["model_max_length"] = length
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        # Which gives token_type_ids in transformers 4 unless it is told; ModernBERT takes none.
        config.setdefault("model_input_names", model.tokenizer.model_input_names)
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")


def _cast(folder: Path, dtype: torch.dtype) -> None:
    for file in folder.rglob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.to(dtype)
                if not torch.isfinite(tensors[name]).all() and torch.isfinite(tensor).all():
                    raise InputError(f"weight {name!r} has values that {dtype} cannot hold; save it as torch.float32")
        save_file(tensors, file, metadata={"format": "pt"})


def _move(fresh: Path, path: Path) -> None:
    """Move a complete model from ``fresh`` over what is in ``path``, two files last without which nothing loads."""
    path.mkdir(exist_ok=True)
    for name in _LAST:
        (path / name).unlink(missing_ok=True)
    for pattern in _STALE:
        for stale in path.glob(pattern):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for item in sorted(fresh.iterdir(), key=lambda item: _LAST.index(item.name) if item.name in _LAST else -1):
        if item.is_dir():
            shutil.rmtree(path / item.name, ignore_errors=True)
        item.replace(path / item.name)


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _edit_json(file: Path, edit: Callable[[JsonObject], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    _write_json(file, content)
