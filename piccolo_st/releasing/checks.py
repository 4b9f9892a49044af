"""What a model directory has to satisfy before it is published, one :class:`Check` each.

1. files: nothing but what a published model consists of; no secrets, no paths of this machine.
2. portable: every consumer that ``check_portable`` knows would load it (those that read nothing but an ONNX file only
   where there is one). One that knows nothing of the model's Dense module is named and does not stop a release.
3. loads, embeddings: stock sentence-transformers loads it; its embeddings are finite, not zero, of length 1 when
   normalised; and the same after it is saved and loaded again.
4. card: its metadata are complete and valid, it loads the model by the id it is published under, and its
   instructions are the model's prompts.
5. results: the results in the card and in .eval_results were measured on these weights.

Of an adapter that is released as it is, "base" stands in the place of "portable": others can load what it is for. Its
embeddings must be those that PEFT gives on the base, at the commit that it notes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from piccolo_st.errors import InputError, reason
from piccolo_st.modeling import (
    ONNX_READERS,
    PRESETS,
    check_portable,
    content_hash,
    find_leaks,
    load_pretrained,
    release_files,
    save_portable,
    settle_adapter,
)
from piccolo_st.releasing.adapter_card import MERGED, Adapter, base_problems, metadata_problems, read_adapter
from piccolo_st.releasing.card import PLACEHOLDER_ID
from piccolo_st.releasing.card_sections import evaluated_model

PROBES = (
    "今天天气怎么样",
    "查询：什么时候下雪",
    "结果：冬天冷的时候会下雪。",
    "Mixed 中英文 text, with numbers 123.",
    "长" * 600,
    "",
)
"""Texts whose embeddings are compared: both instructions, a text beyond 512 tokens, and an empty one."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check: its name, and what is wrong with the remedy; nothing wrong means passed.

    Attributes:
        name: what is checked.
        problems: each stops a release.
        note: what its reader should know besides.
    """

    name: str
    problems: tuple[str, ...] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it passed."""
        return not self.problems


@dataclass(frozen=True)
class ReleaseChecks:
    """The files that a release publishes, sorted paths below the model directory, and the outcome of every check."""

    files: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def problems(self) -> list[str]:
        """What stops the release."""
        return [problem for check in self.checks for problem in check.problems]

    def __str__(self) -> str:
        return "\n".join(
            f"{'ok  ' if check.ok else 'FAIL'} {check.name}" + f" ({check.note})" * bool(check.note)
            for check in self.checks
        )


def embed(path: str | Path) -> np.ndarray:
    """Embeddings of :data:`PROBES`, (len(PROBES), dimension) float32, by stock sentence-transformers on the CPU."""
    return _embed(SentenceTransformer(str(path), device="cpu"))


def check_release(
    model_dir: str | Path,
    repo_id: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    foreign_results: bool = False,
    adapter: bool = False,
) -> ReleaseChecks:
    """Run every check; see the module docstring.

    Args:
        model_dir: a saved model.
        repo_id: the id under which it will be published.
        include: see :func:`piccolo_st.modeling.portable.contents.release_files`.
        exclude: the same.
        foreign_results: accept results that name no model they were measured on.
        adapter: whether it is an adapter that is to be published as it is.
    """
    try:
        files = release_files(model_dir, include, exclude, adapter)
    except InputError as error:
        return ReleaseChecks((), (Check("files", (str(error),)),))
    return ReleaseChecks(tuple(files), tuple(_checks(Path(model_dir), files, repo_id, foreign_results)))


def _checks(folder: Path, files: Sequence[str], repo_id: str, foreign_results: bool) -> Iterator[Check]:
    yield Check("files", tuple(find_leaks(folder, files)))
    adapter = read_adapter(folder)
    if adapter:
        yield Check("base", tuple(base_problems(adapter, folder)))
    else:
        problems, limits = portable_problems(folder, onnx=any(name.startswith("onnx/") for name in files))
        remedy = "save the model with piccolo_st.save_portable"
        yield Check("portable", tuple(f"{problem}; {remedy}" for problem in problems), limits)
    try:
        model = SentenceTransformer(str(folder), device="cpu")
    except Exception as error:  # whatever stops it from loading is the finding
        yield Check("loads", (f"sentence-transformers cannot load it: {type(error).__name__}: {reason(error)}",))
        return
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    yield Check("loads", note=_what_it_is(adapter, text))
    vectors = _embed(model)
    other = _adapter_problems(folder) if adapter else _saving_problems(model, vectors)
    yield Check("embeddings", (*_embedding_problems(model, vectors), *other))
    yield Check("card", tuple(_card_problems(text, repo_id, model, adapter)))
    yield Check("results", tuple(_result_problems(text, files, model, foreign_results)))


def portable_problems(folder: Path, onnx: bool) -> tuple[list[str], str]:
    """Why some consumers would not load the model, each problem once, and, in a line, whom it is no model for.

    Args:
        folder: a saved model.
        onnx: whether those are among the consumers that read nothing but the ONNX file.
    """
    problems: dict[str, list[str]] = {}
    limits: dict[str, list[str]] = {}
    for report in check_portable(folder):
        if onnx or report.consumer not in ONNX_READERS:
            for said, where in ((report.problems, problems), (report.limits, limits)):
                for one in said:
                    where.setdefault(one, []).append(report.consumer)
    return (
        [f"{problem} (for {', '.join(consumers)})" for problem, consumers in problems.items()],
        "; ".join(f"not for {', '.join(consumers)}: {limit}" for limit, consumers in limits.items()),
    )


def _what_it_is(adapter: Adapter | None, card: str) -> str:
    """Which of the two that a run with an adapter leaves is released; nothing of a run without one."""
    if adapter is None:
        return "the whole model, with the adapter of its run merged" if MERGED in card else ""
    at = f" at {adapter.revision[:8]}" if adapter.revision else ""
    return f"an adapter alone, for {adapter.base_model_name_or_path}{at}; sentence-transformers 6 and PEFT load it"


def _embed(model: SentenceTransformer) -> np.ndarray:
    return np.asarray(model.encode(list(PROBES), show_progress_bar=False), dtype=np.float32)


def _embedding_problems(model: SentenceTransformer, vectors: np.ndarray) -> Iterator[str]:
    for text, vector in zip(PROBES, vectors, strict=True):
        if not np.isfinite(vector).all():
            yield f"the embedding of {text[:20]!r} has NaN or infinite numbers; the weights are broken"
        elif not vector.any():
            yield f"the embedding of {text[:20]!r} is zero"
    normalised = np.asarray(model.encode(list(PROBES), normalize_embeddings=True), dtype=np.float64)
    worst = float(np.abs(np.linalg.norm(normalised, axis=1) - 1).max())
    # Each number is rounded, and so was the length that it was divided by.
    if not worst < 2 * max(1e-3, torch.finfo(model.dtype or torch.float32).eps):
        yield f"normalised embeddings differ from length 1 by {worst:.1e}"


def _adapter_problems(folder: Path) -> Iterator[str]:
    """What stock sentence-transformers makes of an adapter, beside PEFT's own reading of it, both in float32."""
    options: Any = {"device": "cpu", "model_kwargs": {"dtype": "float32"}}
    stock = _embed(SentenceTransformer(str(folder), **options))
    try:
        model = load_pretrained(SentenceTransformer, str(folder), "the adapter", **options)
        settle_adapter(model, str(folder), None, None, {"dtype": "float32"})
    except InputError as error:
        yield str(error)
        return
    own = _embed(model)
    difference = float(np.abs(stock - own).max() / max(float(np.abs(own).max()), 1e-12))
    if not difference < 1e-4:
        yield (
            f"sentence-transformers gives other vectors for the adapter than PEFT, by {difference:.1e} of their size; "
            "release the whole model of the run, which has it merged"
        )


def _saving_problems(model: SentenceTransformer, before: np.ndarray) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="piccolo_st_release_") as folder:
        try:
            save_portable(model, folder, create_model_card=False)
            after = embed(folder)
        except InputError as error:
            yield f"it cannot be saved again: {error}"
            return
    if not np.array_equal(before, after, equal_nan=True):
        difference = float(np.abs(before - after).max())
        yield f"after saving and loading again the embeddings differ by up to {difference:.1e}"


def _card_problems(text: str, repo_id: str, model: SentenceTransformer, adapter: Adapter | None) -> Iterator[str]:
    if not text:
        yield "README.md is missing; save the model with its card"
        return
    try:
        card = ModelCard(text)
        data = card.data.to_dict()
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        yield f"the metadata of README.md cannot be read: {reason(error)}"
        return
    for key, example in (
        ("license", "mit"),
        ("language", "[zh]"),
        ("pipeline_tag", "sentence-similarity"),
        ("library_name", "sentence-transformers"),
    ):
        if not data.get(key):
            yield f"the metadata of README.md have no {key}; add for example {key}: {example}"
    if adapter:
        yield from metadata_problems(adapter, data)
    if PLACEHOLDER_ID in text:
        yield f"README.md loads {PLACEHOLDER_ID!r} instead of {repo_id!r}; fill it in with --fill-card"
    elif f'SentenceTransformer("{repo_id}"' not in text:
        yield f"README.md does not show how to load {repo_id!r} with SentenceTransformer"
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt and name in ("query", "document")}
    for name, prompt in prompts.items():
        if prompt not in text:
            yield f"the model's {name} prompt {prompt!r} does not occur in README.md"
    for prompt in sorted({*chain.from_iterable(preset.prompts.values() for preset in PRESETS.values())} - {""}):
        if prompt not in model.prompts.values() and any(f'"{prompt}"' in code for code in _snippets(text)):
            yield (
                f"README.md types the instruction {prompt!r}, but the model has no such prompt; set it with "
                "piccolo_st.modeling.set_prompts where it was trained with it, or renew the usage with --fill-card"
            )


def _snippets(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def _result_problems(
    text: str, files: Sequence[str], model: SentenceTransformer, foreign_results: bool
) -> Iterator[str]:
    in_card = bool(re.search(r"^model-index:", text, re.M))
    if foreign_results or not (in_card or any(name.startswith(".eval_results/") for name in files)):
        return
    where = "the card" if in_card else "the folder .eval_results"  # the card's mark holds for both
    evaluated, actual = evaluated_model(text), content_hash(model)
    if evaluated is None:
        yield (
            f"{where} has results that name no model they were measured on; add them with --results, or accept them as "
            "they are with --foreign-results"
        )
    elif evaluated != actual:
        yield (
            f"{where}'s results belong to the model {evaluated[:8]}, this one is {actual[:8]}; evaluate it and add "
            "its results with --results"
        )
