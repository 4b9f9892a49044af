"""A small random BERT whose vocabulary is learnt from the run's own text.

(1) learn a WordPiece vocabulary from the texts (``tokenizers``; each Chinese character stands alone, as in BERT);
(2) write it and a BERT of the asked size with random weights to a folder, which loads as any other checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from piccolo_st import cache
from piccolo_st.errors import InputError
from piccolo_st.modeling.instructions import Instructions
from piccolo_st.schema import Count, Natural, ShareBelowOne, Whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class EncoderSettings:
    """Size of an encoder to build.

    Args:
        vocab_size: most entries of the WordPiece vocabulary.
        min_frequency: a piece seen less often is left out.
        hidden_size: width, in units; a multiple of ``heads``.
        layers: transformer layers.
        heads: attention heads.
        intermediate_size: width of the feed-forward layers.
        max_positions: longest input, in tokens.
        dropout: probability in [0, 1), hidden and attention alike.
        seed: of the random weights.
    """

    vocab_size: Count = 8000
    min_frequency: Natural = 2
    hidden_size: Count = 256
    layers: Count = 4
    heads: Count = 4
    intermediate_size: Count = 1024
    max_positions: Count = 512
    dropout: ShareBelowOne = 0.1
    seed: Whole = 0

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise InputError(
                f"model.build.hidden_size must be a multiple of model.build.heads={self.heads}, got {self.hidden_size}"
            )


def _wordpiece(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    """A tokenizer with BERT's normalization and words, each Chinese character one; without a vocabulary, to train."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _learn_vocabulary(
    settings: EncoderSettings, texts: Sequence[str], specials: Sequence[str], always: Sequence[str]
) -> dict[str, int]:
    """Token -> id, the same whenever it is learnt from the same texts.

    The trainer of ``tokenizers`` goes through a hash table where characters are equally frequent and where it numbers
    the characters inside words, so that two processes learn different vocabularies. Here it is told both: which
    characters there are, and, after a first pass that finds them, those inside words in the place of special tokens.
    """
    from tokenizers import trainers

    normalize = _wordpiece().normalizer.normalize_str
    counts: Counter[str] = Counter()
    for character, count in Counter(chain.from_iterable(texts)).items():
        counts.update(dict.fromkeys("".join(normalize(character).split()), count))
    counts.update(dict.fromkeys(always, counts.total()))
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))

    def learn(first: Sequence[str]) -> dict[str, int]:
        known = alphabet[: max(settings.vocab_size - len(first), len(always))]
        tokenizer = _wordpiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=settings.vocab_size,
            min_frequency=settings.min_frequency,
            limit_alphabet=len(known),
            initial_alphabet=known,
            special_tokens=list(first),
            continuing_subword_prefix="##",
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer.get_vocab()

    inside = sorted(token for token in learn(specials) if len(token) == 3 and token.startswith("##"))
    return learn([*specials, *inside])


def build_encoder(settings: EncoderSettings, texts: Iterable[str], path: Path, always: Sequence[str] = ()) -> Path:
    """Learn a vocabulary from ``texts`` and write tokenizer and random BERT weights to ``path``.

    Args:
        settings: the size.
        texts: any text of the run; the more it resembles what will be encoded, the better the vocabulary.
        path: a directory, made here.
        always: strings whose characters enter the vocabulary whatever their frequency (the instructions).

    Returns:
        ``path``, which ``load_encoder`` and transformers' AutoModel read.
    """
    import torch
    from safetensors.torch import save_file
    from tokenizers import processors
    from transformers import BertConfig, BertModel, BertTokenizer

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = _learn_vocabulary(settings, list(texts), specials, sorted(set("".join(always)) - {" "}))
    wordpiece = _wordpiece(vocabulary)
    ends = [(token, specials.index(token)) for token in ("[CLS]", "[SEP]")]
    wordpiece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer = BertTokenizer(tokenizer_object=wordpiece, model_max_length=settings.max_positions)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(path)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.max_positions,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = BertModel(config)  # with the pooler that AutoModel expects, though nothing here uses it
    # BertModel.save_pretrained writes on the first rank alone, and this may be the first of another machine.
    config.architectures = [type(model).__name__]
    config.save_pretrained(path)
    save_file(model.state_dict(), path / "model.safetensors", {"format": "pt"})
    return path


def cached_encoder(
    settings: EncoderSettings, texts: Iterable[str], made_of: object, instructions: Iterable[Instructions]
) -> Path:
    """The folder of an encoder, built the first time that these settings, texts and instructions are seen.

    Args:
        settings: the size.
        texts: as for ``build_encoder``; read only where it is built.
        made_of: what the texts are, as a JSON value: equal for equal texts.
        instructions: their characters enter the vocabulary whatever their frequency.
    """
    always = sorted({text for one in instructions for texts in one.phrasings.values() for text in texts})
    key = cache.digest(["encoder", asdict(settings), made_of, always])
    return cache.entry(cache.default_cache(), key, lambda folder: build_encoder(settings, texts, folder, always))
