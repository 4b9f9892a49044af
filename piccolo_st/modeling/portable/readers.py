"""Read a checkpoint with the eyes of each of those who would load it, without loading it.

Every check below states one expectation and returns the problems it finds. ``CONSUMERS`` says who expects what. The
expectations on sentence-transformers (ST) are those its versions 3.4, 4.1, 5.1, 5.7 and 6.2 were seen to have, and so
are those on langchain-huggingface 1.2, llama-index-embeddings-huggingface 0.8, sentence-transformers-haystack 2.0,
Chroma 1.5, fastembed 0.9, vLLM 0.32, transformers.js 4.3, infinity 0.0.78, which loads with ST 3 and calls the model
without its prompts, and OpenVINO, for which ST 6 has optimum-intel 2.2 convert the encoder, beside transformers 4 or 5
(tests/releasing/test_programs.py). The others come from their sources: text-embeddings-inference 1.9 from its router
and backends, which parse these files strictly; llama.cpp from convert_hf_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError, safe_open

from piccolo_st.errors import reason
from piccolo_st.modeling.portable.checkpoint_files import LENGTHS, POOLING_FLAGS, Checkpoint, older_rotary
from piccolo_st.modeling.portable.report import ConsumerReport

# Encoders whose table of positions begins with rows for padding; see positions.py.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")


def check_portable(path: str | Path) -> list[ConsumerReport]:
    """Check the checkpoint in the folder ``path`` for every consumer.

    A missing ONNX file is a problem for :data:`ONNX_READERS` alone.

    Raises:
        FileNotFoundError: ``path`` is no folder.

    Example:
        >>> [report.consumer for report in check_portable("runs/quickstart/model") if not report.ok]  # no ONNX file
        ['fastembed', 'transformers.js']
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no checkpoint to check: {path} is not a folder")
    checkpoint = Checkpoint(Path(path))
    reports = []
    for consumer, checks in CONSUMERS.items():
        problems = [problem for check in checks for problem in _found(check, checkpoint)]
        limits = [limit for check in LIMITS.get(consumer, ()) for limit in _found(check, checkpoint)]
        notes = [note for check in NOTES.get(consumer, ()) for note in _found(check, checkpoint)]
        reports.append(ConsumerReport(consumer, tuple(dict.fromkeys(problems)), tuple(limits), tuple(notes)))
    return reports


def _found(check: Check, files: Checkpoint) -> Problems:
    """What a check finds, or that the files hold what nobody foresaw."""
    try:
        yield from check(files)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        yield f"its configuration cannot be read ({type(error).__name__}: {reason(error)})"


Problems: TypeAlias = Iterator[str]


def _files(checkpoint: Checkpoint) -> Problems:
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json"]
    names += ["config_sentence_transformers.json"]
    for name in names:
        if not (checkpoint.path / name).exists():
            yield f"{name} is missing"
        elif not (checkpoint.modules if name == "modules.json" else checkpoint.json(name)):
            yield f"{name} is empty or not JSON"


def _weights(checkpoint: Checkpoint) -> Problems:
    index = checkpoint.json("model.safetensors.index.json")
    names = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
    dtypes = set()
    for name in names:
        try:
            with safe_open(checkpoint.path / name, framework="numpy") as file:
                dtypes |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118  (no mapping)
        except FileNotFoundError:
            yield f"{name} is missing"
        except SafetensorError as error:
            yield f"{name} is broken: {error}"
    spelled = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    floats = {dtype for dtype in dtypes if dtype.startswith(("F", "BF"))}
    if unusual := floats - set(spelled):
        yield (
            f"weights are {', '.join(sorted(unusual))}, not float16, bfloat16 or float32: save them with "
            "dtype=torch.float32"
        )
    elif len(floats) > 1:
        yield f"weights are of several types, {', '.join(sorted(floats))}"
    elif floats:
        (dtype,) = floats
        for key in ("dtype", "torch_dtype"):
            if checkpoint.config.get(key) not in (spelled[dtype], None):
                yield f"config.json says {key}={checkpoint.config[key]!r}, the weights are {spelled[dtype]}"


def _tokenizer(checkpoint: Checkpoint) -> Problems:
    tokenizer = checkpoint.json("tokenizer.json")
    for key in ("truncation", "padding"):
        if tokenizer.get(key) is not None:
            yield f"tokenizer.json has {key} baked in from an earlier call: {tokenizer[key]}"


def _tokenizer_of_transformers_4(checkpoint: Checkpoint) -> Problems:
    config = checkpoint.json("tokenizer_config.json")
    if config.get("tokenizer_class") == "TokenizersBackend":
        yield "tokenizer_config.json names TokenizersBackend, a class that only transformers 5 has"
    if isinstance(config.get("extra_special_tokens"), list):
        yield "tokenizer_config.json has extra_special_tokens as a list, which transformers 4 cannot read"


def _rotary_positions(checkpoint: Checkpoint) -> Problems:
    older = older_rotary(checkpoint.config)
    if missing := {name: value for name, value in older.items() if checkpoint.config.get(name) != value}:
        yield f"config.json has {missing} in rope_parameters alone, which only transformers 5 reads"


def _stock_modules(checkpoint: Checkpoint) -> Problems:
    for module in checkpoint.modules:
        if not module["type"].startswith("sentence_transformers."):
            yield f"modules.json has {module['type']}, which ST 6 loads only with trust_remote_code"
        if module["path"] and not (checkpoint.path / module["path"]).is_dir():
            yield f"the folder {module['path']} of modules.json is missing"


def _old_module_names(checkpoint: Checkpoint) -> Problems:
    for module in checkpoint.modules:
        if not module["type"].startswith("sentence_transformers.models."):
            yield f"modules.json has {module['type']}; only sentence_transformers.models.* is known everywhere"


def _native_lengths(checkpoint: Checkpoint) -> Problems:
    if found := sorted(set(LENGTHS) & set(checkpoint.lengths)):
        yield (
            f"sentence_bert_config.json has {found}, at which versions before 6 stop; "
            "python -m piccolo_st release --lengths portable takes them out"
        )


def _old_module_configs(checkpoint: Checkpoint) -> Problems:
    known = {"max_seq_length", "do_lower_case", "model_args", "tokenizer_args", "config_args", *LENGTHS}
    if unknown := sorted(set(checkpoint.lengths) - known):
        yield f"sentence_bert_config.json has {unknown}, at which ST 3 to 5.3 stop"
    known = {"word_embedding_dimension", "pooling_mode", "include_prompt", *POOLING_FLAGS.values()}
    if unknown := sorted(set(checkpoint.pooling) - known):
        yield f"the pooling config has {unknown}, at which ST 3 to 5.3 stop"
    if "word_embedding_dimension" not in checkpoint.pooling:
        yield "the pooling config has no word_embedding_dimension"


def _pooling(checkpoint: Checkpoint) -> Problems:
    pooling = checkpoint.pooling
    if wrong := [flag for flag in POOLING_FLAGS.values() if not isinstance(pooling.get(flag), bool)]:
        yield f"the pooling config has no true or false for {wrong}"
    named = pooling.get("pooling_mode")
    if named is not None and ([named] if isinstance(named, str) else list(named)) != checkpoint.modes:
        yield f"the pooling config says pooling_mode={named!r}, its flags say {checkpoint.modes}"
    dimensions = {pooling.get("word_embedding_dimension"), pooling.get("embedding_dimension")} - {None}
    if dimensions - {checkpoint.config.get("hidden_size")}:
        yield f"the pooling config has dimension {dimensions}, the encoder {checkpoint.config.get('hidden_size')}"


def _pooling_of_servers(checkpoint: Checkpoint) -> Problems:
    if len(checkpoint.modes) != 1 or checkpoint.modes[0] not in ("cls", "mean", "lasttoken"):
        yield f"it pools cls, mean or lasttoken, this model {checkpoint.modes}"


def _first_true_flag(checkpoint: Checkpoint) -> Problems:
    first = next((key for key, value in checkpoint.pooling.items() if value is True), None)
    if first not in POOLING_FLAGS.values():
        yield f"older versions take the first true key of the pooling config for the pooling type, which is {first!r}"


def _pooling_folder(checkpoint: Checkpoint) -> Problems:
    if not (checkpoint.path / "1_Pooling" / "config.json").exists():
        yield "1_Pooling/config.json is missing"


def _instructions_pooled(checkpoint: Checkpoint) -> Problems:
    if checkpoint.pooling.get("include_prompt") is False:
        yield "the model excludes instructions from pooling (include_prompt), which this consumer cannot"


def _dense(checkpoint: Checkpoint) -> Problems:
    if checkpoint.dense:
        yield "the model has a Dense module, which this consumer knows nothing of"


def _dense_in_onnx(checkpoint: Checkpoint) -> Problems:
    if checkpoint.dense and checkpoint.onnx_has("sentence_embedding") is False:
        yield (
            "onnx/model.onnx ends before the model's Dense module, which is lost where it is read: "
            "python -m piccolo_st release --onnx writes one that gives the sentence_embedding"
        )


def _dense_of_candle(checkpoint: Checkpoint) -> Problems:
    for config in checkpoint.dense:
        activation = str(config.get("activation_function", "")).rsplit(".", 1)[-1]
        if activation not in ("Tanh", "Identity"):
            yield f"the model's Dense module has {activation}; this consumer knows Tanh and Identity alone"
    if checkpoint.dense and any(_old_module_names(checkpoint)):
        yield "modules.json has types that this consumer does not know, and then it leaves the Dense module out"


def _dense_unless_in_onnx(checkpoint: Checkpoint) -> Problems:
    if checkpoint.onnx_has("sentence_embedding") is None:  # without the file it reads what the GPU build reads
        yield from _dense_of_candle(checkpoint)


def _dense_output(checkpoint: Checkpoint) -> Problems:
    if checkpoint.dense:
        yield "take the output sentence_embedding of onnx/model.onnx, which has been through the Dense module"


def _length_of_a_call(checkpoint: Checkpoint) -> Problems:
    found, length = checkpoint.json("tokenizer_config.json").get("max_length"), checkpoint.lengths.get("max_seq_length")
    if isinstance(found, int) and isinstance(length, int) and found < length:
        yield f"tokenizer_config.json has max_length={found}, where this consumer cuts; the model's length is {length}"


def _tokenizer_length(checkpoint: Checkpoint) -> Problems:
    found = checkpoint.json("tokenizer_config.json").get("model_max_length")
    length = checkpoint.lengths.get("max_seq_length")
    if isinstance(length, int) and found != length:
        yield f"tokenizer_config.json has model_max_length={found!r}, where this consumer cuts; the model's is {length}"


def _untold_instructions(checkpoint: Checkpoint) -> Problems:
    if checkpoint.instructions:
        yield f"it puts no instruction before a text unless it is told to: {checkpoint.instructions}"


def _one_length(checkpoint: Checkpoint) -> Problems:
    if found := {name: checkpoint.lengths[name] for name in LENGTHS if name in checkpoint.lengths}:
        yield (
            f"it cuts queries and passages at one length, and longer texts than {found} get other embeddings: cut them "
            "before it does, or python -m piccolo_st release --lengths portable cuts both at one length everywhere"
        )


def _half_precision(checkpoint: Checkpoint) -> Problems:
    yield "it computes in half precision unless it is told --dtype float32"


def _not_normalized(checkpoint: Checkpoint) -> Problems:
    if not any(module["type"].endswith(".Normalize") for module in checkpoint.modules):
        yield "its vectors have length 1 only where a request says use_activation, as modules.json has no Normalize"


def _lengths(checkpoint: Checkpoint) -> Problems:
    length, config = checkpoint.lengths.get("max_seq_length"), checkpoint.config
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        yield f"sentence_bert_config.json has max_seq_length={length!r}, not a positive integer"
    elif isinstance(positions := config.get("max_position_embeddings"), int):
        if config.get("model_type") in _OFFSET_POSITIONS:
            positions -= (config.get("pad_token_id") or 0) + 1
        if length > positions:
            yield f"max_seq_length={length} is more than the {positions} tokens the encoder has positions for"


def _lower_case_key(checkpoint: Checkpoint) -> Problems:
    if "do_lower_case" not in checkpoint.lengths:
        yield "sentence_bert_config.json has no do_lower_case, without which max_seq_length is ignored"


def _prompts(checkpoint: Checkpoint) -> Problems:
    if not isinstance(prompts := checkpoint.prompts.get("prompts"), dict):
        yield f"config_sentence_transformers.json has prompts={prompts!r}, not a mapping"
    elif wrong := sorted(name for name, text in prompts.items() if not isinstance(text, str)):
        yield f"the prompts {wrong} are no strings"
    if (name := checkpoint.prompts.get("default_prompt_name")) is not None:
        yield f"the default prompt {name!r} goes before the texts of every task; set default_prompt_name to null"


def _strict_config(checkpoint: Checkpoint) -> Problems:
    config = checkpoint.config
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or any(name.endswith("Classification") for name in architectures):
        yield f"config.json has architectures={architectures!r}, which is no embedding model"
    for key, left_out in (("max_position_embeddings", None), ("pad_token_id", 0)):
        if not isinstance(found := config.get(key, left_out), int) or found < 0:
            yield f"config.json has {key}={found!r}, not an integer of 0 or more"


def _onnx_file(checkpoint: Checkpoint) -> Problems:
    if not (checkpoint.path / "onnx" / "model.onnx").exists():
        yield "onnx/model.onnx is missing: python -m piccolo_st release --onnx writes it"


Check: TypeAlias = Callable[[Checkpoint], Problems]

_ST_6: tuple[Check, ...] = (_files, _tokenizer, _weights, _stock_modules, _prompts)
_ST_3: tuple[Check, ...] = (
    *_ST_6,
    _lengths,
    _pooling,
    _tokenizer_of_transformers_4,
    _rotary_positions,
    _old_module_names,
    _old_module_configs,
)
_SERVER: tuple[Check, ...] = (_files, _tokenizer, _lengths, _pooling, _pooling_of_servers, _instructions_pooled)
_TEI: tuple[Check, ...] = (*_SERVER, _weights, _rotary_positions, _pooling_folder, _prompts, _strict_config)
_ONNX: tuple[Check, ...] = (*_SERVER, _onnx_file, _dense_in_onnx, _tokenizer_length)

ONNX_READERS = ("fastembed", "transformers.js")
"""The consumers that read nothing but onnx/model.onnx."""
_ST_INSIDE = ("LangChain", "LlamaIndex", "Haystack", "Chroma")  # as new as is installed beside them

CONSUMERS: dict[str, tuple[Check, ...]] = {
    "sentence-transformers 3.x": _ST_3,
    "sentence-transformers 4.x": _ST_3,
    "sentence-transformers 5.x": _ST_3,
    "sentence-transformers 6.x": _ST_6,
    "transformers": (*_SERVER, _weights, _tokenizer_of_transformers_4, _rotary_positions, _tokenizer_length),
    "text-embeddings-inference": _TEI,
    "text-embeddings-inference on a CPU": (*_TEI, _dense_in_onnx),
    "vLLM": (
        *_SERVER,
        _weights,
        _tokenizer_of_transformers_4,
        _rotary_positions,
        _old_module_names,
        _first_true_flag,
        _lower_case_key,
    ),
    "llama.cpp and Ollama": (*_SERVER, _weights, _old_module_names),
    "infinity": (*_ST_3, _instructions_pooled),
    "OpenVINO": (*_ST_6, _tokenizer_of_transformers_4, _rotary_positions),
    **dict.fromkeys(_ST_INSIDE, _ST_6),
    "fastembed": (*_ONNX, _length_of_a_call),
    "transformers.js": _ONNX,
}
LIMITS: dict[str, tuple[Check, ...]] = {
    **{f"sentence-transformers {version}.x": (_native_lengths,) for version in (3, 4, 5)},
    "infinity": (_native_lengths,),
    "transformers": (_dense,),
    "text-embeddings-inference": (_dense_of_candle, _one_length),
    "text-embeddings-inference on a CPU": (_dense_unless_in_onnx, _one_length),
    "llama.cpp and Ollama": (_dense, _one_length),
    "LlamaIndex": (_one_length,),
    **dict.fromkeys(ONNX_READERS, (_one_length,)),
}
NOTES: dict[str, tuple[Check, ...]] = {
    "transformers": (_untold_instructions,),
    "text-embeddings-inference": (_untold_instructions, _half_precision),
    "text-embeddings-inference on a CPU": (_untold_instructions,),
    "vLLM": (_untold_instructions, _half_precision, _not_normalized),
    "llama.cpp and Ollama": (_untold_instructions,),
    "infinity": (_untold_instructions, _half_precision),
    **dict.fromkeys(_ST_INSIDE, (_untold_instructions,)),
    **dict.fromkeys(ONNX_READERS, (_untold_instructions, _dense_output)),
}
