"""``model.preprocess`` for plain texts, without the detours: about half its time goes into lists of Python integers.

    (1) the first batch with a prompt, task and length limit is given to ``model.preprocess``, with a few awkward texts
        (empty, padded with spaces, over-long, special tokens) before it, and tokenized here as well;
    (2) where both agree in every key, number and type, later batches are tokenized here: by the same tokenizer, in its
        own threads, without offsets, and straight into one array;
    (3) where they do not (another modality, a chat template, flattened inputs, query expansion, ...), or where the
        model has no fast tokenizer, ``model.preprocess`` goes on doing it.

So nothing of ``preprocess`` is assumed, its length limits included: they are read off the over-long text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers.utils import logging

logger = logging.get_logger(__name__)

_AWKWARD = (
    "",
    " 两端有空格 \n",
    "Ａｂｃ ÀÉ 123 abc。",
    "[CLS] [SEP] [PAD] <s> </s>",
    "👋🏽\u200b\u3000\t",
    "很长 text 1 " * 2000,
)


@dataclass(frozen=True)
class _Recipe:
    """What was learned from preprocess for one (prompt, task, limit).

    Attributes:
        limit: tokens at which it cuts, or None if the over-long text was not cut.
        longest: tokens of the longest text that it was seen to leave whole.
        names: its arrays in their order: input_ids, attention_mask, token_type_ids.
        others: what it returns besides, the same for every batch.
    """

    limit: int | None
    longest: int
    names: tuple[str, ...]
    others: dict[str, object]


class FastPreprocess:
    """A faster ``preprocess`` with the same results.

    Args:
        preprocess: the ``preprocess`` method of a SentenceTransformer, or any other function with its signature, which
            is then simply called.
    """

    def __init__(self, preprocess: Callable[..., dict[str, Any]]) -> None:
        self.preprocess = preprocess
        tokenizer: Any = getattr(getattr(preprocess, "__self__", None), "tokenizer", None)
        self._backend: Any = None  # a Tokenizer, where preprocess has one to copy
        if isinstance(backend := getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
            # A copy: the limits set here must not end up in the tokenizer that is saved with the model.
            self._backend = Tokenizer.from_str(backend.to_str())
            self._backend.no_padding()
            self._pad_id, self._pad_type_id = tokenizer.pad_token_id or 0, tokenizer.pad_token_type_id
            self._padding_side, self._truncation_side = tokenizer.padding_side, tokenizer.truncation_side
        self._recipes: dict[tuple[str | None, str | None, int | None], _Recipe | None] = {}

    def __call__(
        self, texts: Sequence[str], prompt: str | None = None, task: str | None = None, max_length: int | None = None
    ) -> dict[str, object]:
        """Tokenize a column.

        Args:
            texts: n texts.
            prompt: put before each.
            task: "query", "document" or None; decides the length limit.
            max_length: overrides it.

        Returns:
            What ``preprocess`` returns, input_ids, attention_mask and so on of shape (n, longest text of the batch).
        """
        key = (prompt, task, max_length)
        if self._backend is not None and key not in self._recipes:
            self._recipes[key] = self._learn(list(texts), key)
        recipe = self._recipes.get(key)
        arrays = None if recipe is None else self._encode(texts, prompt, recipe)
        if recipe is None or arrays is None:
            return self._reference(list(texts), key)
        return {**arrays, **recipe.others}

    def _reference(self, texts: list[str], key: tuple[str | None, str | None, int | None]) -> dict[str, Any]:
        prompt, task, max_length = key
        # The limit only where there is one: a preprocess function need not take it.
        limits = {} if max_length is None else {"max_length": max_length}
        return self.preprocess(texts, prompt=prompt, task=task, **limits)

    def _learn(self, texts: list[str], key: tuple[str | None, str | None, int | None]) -> _Recipe | None:
        """Steps (1) and (2): how to do as preprocess does, or None."""
        texts = [*_AWKWARD, *texts]
        expected = self._reference(texts, key)
        names = tuple(name for name in expected if name in ("input_ids", "attention_mask", "token_type_ids"))
        others = {name: value for name, value in expected.items() if name not in names}
        if "input_ids" not in names or any(isinstance(value, torch.Tensor) for value in others.values()):
            return None
        width = expected["input_ids"].shape[-1]
        self._set_limit(None)
        longest = len(self._backend.encode((key[0] or "") + _AWKWARD[-1]))
        recipe = _Recipe(width if width < longest else None, longest, names, others)
        found = self._encode(texts, key[0], recipe)
        for name in names:
            if (
                found is None
                or found[name].dtype != expected[name].dtype
                or not torch.equal(found[name], expected[name])
            ):
                logger.warning_once(f"Tokenizing with model.preprocess: its {name} cannot be made in a faster way.")
                return None
        return recipe

    def _set_limit(self, limit: int | None) -> None:
        current = self._backend.truncation
        if limit is None:
            self._backend.no_truncation()
        elif current is None or current["max_length"] != limit:
            self._backend.enable_truncation(limit, direction=self._truncation_side)

    def _encode(self, texts: Sequence[str], prompt: str | None, recipe: _Recipe) -> dict[str, torch.Tensor] | None:
        """Tokenize, cut and pad n texts: int64 (n, longest). None if it is not known how preprocess cuts them."""
        self._set_limit(recipe.limit)
        encodings = self._backend.encode_batch_fast([prompt + text for text in texts] if prompt else list(texts))
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        if recipe.limit is None and lengths.max() > recipe.longest:
            return None
        columns = np.arange(lengths.max())
        if self._padding_side == "left":
            columns = columns[::-1]
        inside = columns < lengths[:, None]
        parts = {"input_ids": ("ids", self._pad_id), "token_type_ids": ("type_ids", self._pad_type_id)}
        arrays = {}
        for name in recipe.names:
            if name == "attention_mask":
                arrays[name] = torch.from_numpy(inside.astype(np.int64))
                continue
            part, padding = parts[name]
            array = np.full(inside.shape, padding, np.int64)
            values = chain.from_iterable(getattr(encoding, part) for encoding in encodings)
            array[inside] = np.fromiter(values, np.int64, int(lengths.sum()))
            arrays[name] = torch.from_numpy(array)
        return arrays
