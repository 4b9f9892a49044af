"""An encoder that needs no training: a random projection of TF-IDF, as a stock SentenceTransformer.

ST's StaticEmbedding holds one random Gaussian vector a token, scaled by the square root of the token's inverse document
frequency. The inner product of two sums of such vectors is, up to noise of about 1/sqrt(dimensions), the sum of
tf x tf x idf over the shared tokens (a random projection: Johnson and Lindenstrauss 1984; Achlioptas 2003), so its
cosine ranks as TF-IDF does, in dense vectors that every dense search understands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


def lexical_encoder(
    tokenizer: Tokenizer | PreTrainedTokenizerFast, texts: Sequence[str], *, dimensions: int = 256, seed: int = 13
) -> SentenceTransformer:
    """An untrained SentenceTransformer whose cosine ranks as TF-IDF does.

    Args:
        tokenizer: the run's own tokenizer; it is copied, not changed.
        texts: where the document frequencies are counted.
        dimensions: width of the vectors; the noise of a cosine is about 1 / sqrt(dimensions).
        seed: of the random vectors.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer as FastTokenizer

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
