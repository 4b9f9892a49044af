"""The model as mteb sees it: an encoder of mteb's protocol around a SentenceTransformer.

It differs from mteb's own wrapper in five things:

(1) Identity: name and revision in its metadata are those of :mod:`piccolo_st.modeling.fingerprint`, and settings that
    change scores but not weights (truncation, precision, dtype) make an experiment of their own in mteb's layout.
(2) Instructions go to the queries and the documents of retrieval and reranking tasks and to nothing else. Texts of
    other tasks are encoded with an empty prompt, so that a ``default_prompt_name`` does not reach them either.
(3) A list of texts is encoded once per distinct text, sorted by length and cut by tokens instead of by rows; with
    several ranks each takes every n-th batch and all get all rows. On a CPU the batches run without padding, and
    side by side, one to a core: a core by itself is nearer to its peak than all of them at one small product.
(4) An embedding that is not finite ends the evaluation with the text that caused it.
(5) With ``remember``, the embeddings of the running task are kept, so that its second split or another truncation
    encodes nothing again. A truncated embedding is the head of the whole one, as in ``SentenceTransformer.encode``.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.search_wrappers import SearchEncoderWrapper
from mteb.types import PromptType
from tqdm.auto import tqdm

from piccolo_st.distributed import process_state
from piccolo_st.errors import InputError
from piccolo_st.evaluation.small_vectors import Precision, SmallVectorIndex
from piccolo_st.modeling import Identity, token_chunks, use_packing

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.search_encoder_index.search_backend_protocol import IndexEncoderSearchProtocol
    from mteb.types import Array, BatchedInput
    from sentence_transformers import SentenceTransformer
    from torch import Tensor
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

INSTRUCTED_TYPES = frozenset({"Retrieval", "Reranking"})
"""The task types whose queries and documents get an instruction."""

# Tokens in one forward pass. On a CPU the activations should stay in the cache; a GPU needs work for all its cores.
TOKENS_PER_BATCH = {"cpu": 2048}
TOKENS_PER_BATCH_ACCELERATOR = 32768
# Threads that encode side by side on a CPU; more would need a lot of memory and share the cores' cache.
MOST_LANES = 16


class BenchmarkEncoder(AbsEncoder):
    """A SentenceTransformer for ``mteb.evaluate``; see the module docstring.

    Args:
        model: the model, on its device and in the dtype to evaluate in.
        identity: name and revision to store results under.
        settings: what changes the scores without changing the weights, such as ``{"dtype": "bfloat16"}``.
        tokens_per_batch: longest batch, rows times length of its longest row; by default 2,048 on a CPU and 32,768 on
            an accelerator.
        remember: keep the embeddings until :meth:`forget`.
        progress: show a progress bar for every list of texts.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self,
        model: SentenceTransformer,
        identity: Identity,
        settings: Mapping[str, object] | None = None,
        *,
        tokens_per_batch: int | None = None,
        remember: bool = False,
        progress: bool = False,
    ) -> None:
        if model.device.type == "cpu":  # encoding is in float32, which no kernel on a GPU takes
            model = _sharing_copy(model)  # the caller may train on, with padding
            use_packing(model)
        self.model = model
        self.settings = dict(settings or {})
        self.remember = remember
        self.progress = progress
        self.tokens_per_batch = tokens_per_batch or TOKENS_PER_BATCH.get(
            model.device.type, TOKENS_PER_BATCH_ACCELERATOR
        )
        self.retrieved: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        self.search_facts: dict[tuple[str, str], dict[str, float]] = {}
        self._memory: dict[bytes, np.ndarray] = {}
        self._dimension: int | None = None
        self.small: SmallVectorIndex | None = None
        self._search = SearchEncoderWrapper(self)
        self.mteb_model_meta = ModelMeta.from_sentence_transformer_model(model).model_copy(
            update={
                "name": identity.name,
                "revision": identity.revision,
                "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
                "experiment_kwargs": self.settings or None,
            }
        )
        unused = [name for name in model.prompts if not _is_instruction_name(name) and model.prompts[name]]
        if unused:
            logger.warning("The prompts %s of the model are not used: only queries and documents get one.", unused)

    def truncate(self, dimension: int | None, precision: Precision | None = None) -> None:
        """Score the first ``dimension`` numbers of every embedding from now on, as an experiment of its own.

        Args:
            dimension: None: all of them.
            precision: search in an index that keeps this of the documents; None: mteb's own search, in float32.
        """
        self._dimension = dimension
        cosine = self.model.similarity_fn_name == "cosine"
        self.small = None if precision is None else SmallVectorIndex(precision, normalize=cosine)
        self._search = SearchEncoderWrapper(self, index_backend=cast("IndexEncoderSearchProtocol | None", self.small))
        small = {"precision": precision} if precision not in (None, "float32") else {}
        settings = {**self.settings, **({} if dimension is None else {"truncate_dim": dimension}), **small}
        self.mteb_model_meta = self.mteb_model_meta.model_copy(update={"experiment_kwargs": settings or None})

    def forget(self) -> None:
        """Drop the remembered embeddings and search results: call it between tasks."""
        self._memory.clear()
        self.retrieved.clear()

    def instruction(self, task: TaskMetadata, prompt_type: PromptType | None) -> str:
        """The text put before each input of this task, "" for none; prompts of single tasks have mteb's own keys."""
        if task.type not in INSTRUCTED_TYPES or prompt_type is None:
            return ""
        prompts = self.model.prompts
        name = get_prompt_name(prompts, task, prompt_type)
        if name is None and prompt_type is PromptType.document:
            name = next((candidate for candidate in ("passage", "corpus") if candidate in prompts), None)
        return prompts.get(name) or ""

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Encode the texts of one column of a task.

        Returns:
            float32 array of shape (texts, dimension), in the order of the texts.

        Raises:
            InputError: a text is not a string, or its embedding is not finite.
        """
        where = f"{task_metadata.name}, split {hf_split!r}" + (f", {prompt_type.value} texts" if prompt_type else "")
        texts = list(cast("Dataset", inputs.dataset)["text"][:])
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"{where}: row {row} must be a text, got {text!r}; correct the data or leave it out")
        prompt = self.instruction(task_metadata, prompt_type)
        role = prompt_type if task_metadata.type in INSTRUCTED_TYPES else None
        key = hashlib.sha256("\0".join([str(role), prompt, *texts]).encode("utf-8", "surrogatepass")).digest()
        if (embeddings := self._memory.get(key)) is None:
            embeddings = self._encode_texts(texts, role, prompt, where)
            if self.remember:
                self._memory[key] = embeddings
        return embeddings[:, : self._dimension]

    def _encode_texts(self, texts: Sequence[str], role: PromptType | None, prompt: str, where: str) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.model.get_embedding_dimension() or 0), dtype=np.float32)
        rows = list(dict.fromkeys(texts))
        position = {text: index for index, text in enumerate(rows)}
        limit = self._max_tokens(role)
        # An upper bound: a Chinese character is about a token, other text has fewer tokens than characters.
        lengths = [min(len(prompt) + len(row) + 2, limit) for row in rows]
        order = sorted(range(len(rows)), key=lambda index: -lengths[index])
        lanes = min(torch.get_num_threads(), MOST_LANES) if self.model.device.type == "cpu" else 1
        # So that a short list has a batch for every rank and thread.
        share = -(-sum(lengths) // (process_state().num_processes * lanes))
        ranges = token_chunks([lengths[index] for index in order], min(self.tokens_per_batch, share))
        batches = [order[begin:end] for begin, end in ranges]

        def embed(model: SentenceTransformer, batch: list[int]) -> np.ndarray:
            encode: Callable[..., Tensor] = model.encode
            if role is PromptType.query:
                encode = model.encode_query
            elif role is PromptType.document:
                encode = model.encode_document
            part = encode(
                [rows[index] for index in batch],
                prompt=prompt,
                batch_size=len(batch),
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            return part.float().cpu().numpy()

        with side_by_side(self.model, embed, lanes) as embed_all:
            embeddings = share_batches(batches, embed_all, len(rows), progress=where if self.progress else None)
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if bad.size:
            raise InputError(
                f"{where}: the embedding of {rows[bad[0]]!r} is not finite (NaN or infinity), and so are those of "
                f"{bad.size} of {len(rows)} texts; the weights are broken, or their numbers overflow in this dtype; "
                "try float32"
            )
        return embeddings[[position[text] for text in texts]]

    def _max_tokens(self, role: PromptType | None) -> int:
        module = self.model[0]
        own = getattr(module, f"{role.value}_length", None) if role else None
        return own or self.model.max_seq_length or 512

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """The model's own similarity, all pairs: (n, dimension) and (m, dimension) -> (n, m)."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """The model's own similarity, row by row: (n, dimension) twice -> (n,)."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)

    def index(self, corpus: Dataset, **kwargs: Any) -> None:
        """Take a corpus to search; mteb's own search does the work."""
        self._search.index(corpus, **kwargs)

    def search(self, queries: Dataset, *, hf_split: str, hf_subset: str, **kwargs: Any) -> dict[str, dict[str, float]]:
        """mteb's own search; the result is kept in ``retrieved`` so that single queries can be scored afterwards."""
        results = self._search.search(queries, hf_split=hf_split, hf_subset=hf_subset, **kwargs)
        self.retrieved[hf_split, hf_subset] = results
        self.search_facts[hf_split, hf_subset] = dict(self.small.facts) if self.small else {}
        return results


def _sharing_copy(model: SentenceTransformer) -> SentenceTransformer:
    """A copy with the same weights: what is set or installed in one, the other does not have."""
    # The card's data hold the trainer of a model that has just been trained.
    shared = (*model.parameters(), *model.buffers(), model.model_card_data)
    return copy.deepcopy(model, {id(one): one for one in shared})


def _is_instruction_name(name: str) -> bool:
    return name in ("query", "document", "passage", "corpus") or name.endswith(("-query", "-document"))


@contextmanager
def side_by_side(
    model: SentenceTransformer, embed: Callable[[SentenceTransformer, list[int]], np.ndarray], lanes: int
) -> Iterator[Callable[[Sequence[list[int]]], Iterator[np.ndarray]]]:
    """A function: batches -> what ``embed`` makes of each, in their order, ``lanes`` of them at a time.

    Every thread has a copy of the model that shares its weights, since a fast tokenizer takes one call at a time, and
    its share of torch's threads. Left early, what has not begun is not begun.
    """
    if lanes == 1:
        yield lambda batches: (embed(model, batch) for batch in batches)
        return
    threads = torch.get_num_threads()
    own = threading.local()

    def enter() -> None:
        torch.set_num_threads(threads // lanes)
        own.model = _sharing_copy(model)

    pool = ThreadPoolExecutor(lanes, initializer=enter)
    try:
        yield lambda batches: pool.map(lambda batch: embed(own.model, batch), batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what threads to come begin with


def share_batches(
    batches: Sequence[list[int]],
    embed: Callable[[Sequence[list[int]]], Iterator[np.ndarray]],
    rows: int,
    progress: str | None = None,
) -> np.ndarray:
    """Embed every batch once, each rank every n-th of them, and return all rows on every rank.

    A rank stops at its first batch that is not finite and fills up with NaN, so that a broken model is found after one
    batch, not after a corpus, and no rank waits for another in a collective.

    Args:
        batches: indices of rows; together each of ``range(rows)`` once, the same on every rank.
        embed: batches -> float32 (rows of the batch, dimension) of each.
        progress: the label of a progress bar on the main process; None for no bar.
    """
    state = process_state()
    mine = batches[state.process_index :: state.num_processes]
    parts: list[np.ndarray] = []
    with tqdm(total=sum(map(len, mine)), desc=progress, disable=progress is None or not state.is_main_process) as bar:
        for batch, part in zip(mine, embed(mine), strict=True):
            parts.append(part)
            bar.update(len(batch))
            if not np.isfinite(part).all():
                break
    shares = gather_object([parts])
    dimension = next(part.shape[1] for share in shares for part in share)
    embeddings = np.full((rows, dimension), np.nan, dtype=np.float32)
    for rank, share in enumerate(shares):
        for batch, part in zip(batches[rank :: state.num_processes], share, strict=False):
            embeddings[batch] = part
    return embeddings
