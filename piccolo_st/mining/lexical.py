"""An encoder that needs no training: a random projection of TF-IDF, as a stock SentenceTransformer.

ST's StaticEmbedding holds one random Gaussian vector a token, scaled by the square root of the token's inverse document
frequency. The inner product of two sums of such vectors is, up to noise of about 1/sqrt(dimensions), the sum of
tf x tf x idf over the shared tokens (a random projection: Johnson and Lindenstrauss 1984; Achlioptas 2003), so its
cosine ranks as TF-IDF does, in dense vectors that every dense search understands. Beside it stands BM25 over the same
kind of terms, for a first round of mining that counts exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from piccolo_st.errors import optional

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_RUNS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+|[^\W\u2e80-\U0003ffff]+")


def learn_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer for the lexical encoder where there is no model's: Chinese characters and whole Latin words."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    tokenizer = FastTokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]"], min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def lexical_encoder(
    texts: Sequence[str],
    tokenizer: Tokenizer | PreTrainedTokenizerFast | None = None,
    *,
    dimensions: int = 256,
    seed: int = 13,
) -> SentenceTransformer:
    """An untrained SentenceTransformer whose cosine ranks as TF-IDF does.

    Args:
        texts: where the document frequencies are counted.
        tokenizer: the run's own tokenizer, which is copied, not changed; None: one learned from the texts.
        dimensions: width of the vectors; the noise of a cosine is about 1 / sqrt(dimensions).
        seed: of the random vectors.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer as FastTokenizer

    tokenizer = tokenizer if tokenizer is not None else learn_tokenizer(texts)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    copy = FastTokenizer.from_str(backend.to_str())  # StaticEmbedding switches padding off in the one it is given
    copy.no_truncation()
    size = copy.get_vocab_size()
    frequency = np.zeros(size, dtype=np.int64)
    for start in range(0, len(texts), 10_000):
        for encoding in copy.encode_batch(list(texts[start : start + 10_000]), add_special_tokens=False):
            frequency[list(set(encoding.ids))] += 1
    idf = np.log1p(len(texts) / (1.0 + frequency))
    weights = np.random.default_rng(seed).standard_normal((size, dimensions), dtype=np.float32)
    weights *= np.sqrt(idf / dimensions).astype(np.float32)[:, None]
    return SentenceTransformer(modules=[StaticEmbedding(copy, embedding_weights=weights)], device="cpu")


def lexical_tokens(text: str) -> list[str]:
    """Terms for BM25: characters and their bigrams in Chinese, whole words elsewhere."""
    terms: list[str] = []
    for run in _RUNS.findall(text.lower()):
        if run[0] >= "\u2e80":
            terms += [*run, *(run[i : i + 2] for i in range(len(run) - 1))]
        else:
            terms.append(run)
    return terms


class Bm25:
    """BM25 over a corpus (bm25s; Robertson and Zaragoza 2009).

    Args:
        corpus: the texts to search among.

    Raises:
        MissingPackage: bm25s is not installed.
    """

    def __init__(self, corpus: Sequence[str]) -> None:
        with optional("BM25", "bm25s", "data"):
            from bm25s import BM25
        self.corpus = corpus
        self.index = BM25()
        self.index.index([lexical_tokens(text) for text in corpus], show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The numbers of the ``k`` texts that score highest for each query, best first, and their scores.

        Returns:
            Both (queries, k); -1 and NaN where no further text shares a term with the query.
        """
        tokens = [lexical_tokens(query) for query in queries]
        found, scores = self.index.retrieve(tokens, k=min(k, len(self.corpus)), show_progress=False)
        some = scores > 0
        return np.where(some, found, -1).astype(np.int64), np.where(some, scores, np.nan).astype(np.float32)
