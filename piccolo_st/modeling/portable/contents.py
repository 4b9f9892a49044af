"""Which files of a model directory are published, and what must not be in them. Reads files, loads no model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import get_token

from piccolo_st.errors import InputError
from piccolo_st.redaction import SECRET_FORMS

# What a published model consists of. Anything else in the directory is named and has to be decided about.
EXPECTED = (
    "README.md", "LICENSE*", "NOTICE*", "config.json", "config_sentence_transformers.json", "modules.json",
    "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "*.spm", "sentencepiece*.model", "model.safetensors",
    "model-?????-of-?????.safetensors", "model.safetensors.index.json", "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors", "onnx/*.onnx", "onnx/*.onnx_data", "*.png", "assets/*", ".eval_results/*.yaml",
    "merge.json",  # what a merged model was made of
)  # fmt: skip
_OF_AN_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_LEFT_OUT = {".git", ".cache", "__pycache__"}  # folders of tools, never part of a model
_TEXT = (".json", ".md", ".txt", ".yaml", ".yml", ".py", ".cfg", ".toml", "")
_NOT_PROSE = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")  # any string may be a token there
_ABSOLUTE_PATH = re.compile(
    r"(?<![\w:/.~-])/(?:home|root|Users|mnt|tmp|var|srv|opt|data|scratch|workspace|nfs|private)/[\w.~-][^\s\"'`)<>,]*"
    r"|\b[A-Za-z]:\\{1,2}Users\\[^\s\"'`)<>,]*"
)
_SCANNED_BYTES = 50_000_000


def check_whole(model_dir: str | Path, adapter: bool = False) -> None:
    """Raise InputError for an adapter without the weights of its base; with ``adapter``, for anything else."""
    alone = (Path(model_dir) / _OF_AN_ADAPTER[0]).is_file()
    if alone and not adapter:
        raise InputError(
            f"a published model must hold all its weights, got an adapter alone in {model_dir}; give the whole "
            "model that its run left, the directory model beside it, or release the adapter itself with --adapter"
        )
    if adapter and not alone and Path(model_dir).is_dir():
        raise InputError(
            f"--adapter must be given with an adapter of PEFT, got {model_dir}, which holds no {_OF_AN_ADAPTER[0]}; "
            "give the directory adapter that a run with lora.rank left, or release the whole model without --adapter"
        )


def release_files(
    model_dir: str | Path, include: Sequence[str] = (), exclude: Sequence[str] = (), adapter: bool = False
) -> list[str]:
    """The paths to publish, relative to the model directory with forward slashes, sorted.

    Args:
        model_dir: the directory.
        include: patterns of files or folders to publish beyond :data:`EXPECTED`.
        exclude: patterns of files or folders to leave out.
        adapter: whether it is an adapter that is published, with PEFT's files in place of whole weights.

    Raises:
        InputError: there is no such directory, it holds the other of adapter and whole model, or files that belong to
            neither; the message names them.
    """
    check_whole(model_dir, adapter)
    chosen, strays = split_files(model_dir, (*include, *_OF_AN_ADAPTER) if adapter else include, exclude)
    if strays:
        shown = ", ".join(strays[:8]) + (f" and {len(strays) - 8} more" if len(strays) > 8 else "")
        raise InputError(
            f"{model_dir} holds files that do not belong to a published model: {shown}; leave them out with "
            "--exclude PATTERN, publish them with --include PATTERN, or save the model to an empty directory"
        )
    if not chosen:
        raise InputError(f"{model_dir} is empty; save the model there first")
    return chosen


def split_files(
    model_dir: str | Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """The files of a model directory that belong to a published model, and the others; see :func:`release_files`."""
    folder = Path(model_dir)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a directory; give the directory of a saved model")
    chosen: list[str] = []
    others: list[str] = []
    for path in sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()):
        if not (set(path.split("/")) & _LEFT_OUT or _matches(path, exclude)):
            (chosen if _matches(path, (*EXPECTED, *include)) else others).append(path)
    return chosen, others


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits the whole path or a folder above it; a star does not reach over a slash."""
    whole = PurePosixPath("/", path)
    return any(place.match(f"/{pattern}") for pattern in patterns for place in (whole, *whole.parents[:-1]))


def find_leaks(model_dir: str | Path, files: Sequence[str], paths: bool = True) -> Iterator[str]:
    """Secrets and absolute paths of this machine in the text files, as "file, line: what it looks like".

    The secret itself is never part of the text.

    Args:
        model_dir: the directory.
        files: paths below it.
        paths: whether absolute paths count.
    """
    token = get_token()
    for name in files:
        path = Path(model_dir) / name
        if path.suffix not in _TEXT or path.stat().st_size > _SCANNED_BYTES:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if token and token in line:
                yield f"{name}, line {number}: the token you are logged in with"
                continue
            for what, pattern in SECRET_FORMS.items():
                if re.search(pattern, line):
                    yield f"{name}, line {number}: {what}"
            if paths and Path(name).name not in _NOT_PROSE and (match := _ABSOLUTE_PATH.search(line)):
                yield f"{name}, line {number}: the path {match[0]} of this machine"
