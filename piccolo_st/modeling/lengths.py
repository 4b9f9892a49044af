"""Two lengths: queries are cut at 64 tokens, documents at 512, the instruction is never cut.

sentence-transformers has both natively: ``Transformer.query_length`` and ``document_length``, which hold wherever the
task is known, that is in ``encode_query``, ``encode_document``, mteb, and in training for the columns that
``args.router_mapping`` names (``instructions.column_tasks`` makes it). Plain ``encode`` cuts at ``max_seq_length``.
The tokens of the instruction and the special tokens count toward the length. Texts of single datasets may be cut
elsewhere: the collator's ``max_length`` does it in training, ``other_lengths`` where they are encoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedTokenizerBase

from piccolo_st.errors import InputError
from piccolo_st.modeling.instructions import Instructions
from piccolo_st.modeling.positions import usable_positions


def set_lengths(model: SentenceTransformer, query_length: int = 64, document_length: int = 512) -> None:
    """Cut queries of ``model`` at ``query_length`` tokens and documents at ``document_length``.

    Its ``max_seq_length`` is raised to the longer of them: a saved model keeps no other length that every reader knows.
    Pretraining uses 128 for both, finetuning 64 and 512. Set the prompts first: they are what is checked.

    Args:
        model: its first module is a Transformer.
        query_length: tokens, instruction and special tokens included.
        document_length: the same for documents.

    Raises:
        TypeError: the first module is no Transformer with a tokenizer.
        InputError: as ``check_lengths``.
    """
    check_lengths(model, query_length, document_length)
    transformer = _transformer(model)
    transformer.query_length, transformer.document_length = query_length, document_length
    longest = max(model.max_seq_length or 0, query_length, document_length)
    # RoBERTa's config counts the padding rows, and ST believes it.
    model.max_seq_length = min(longest, usable_positions(transformer.auto_model) or longest)


def check_lengths(
    model: SentenceTransformer,
    query_length: int | None,
    document_length: int | None,
    instructions: Instructions | None = None,
    place: str = "",
) -> None:
    """Raise if ``model`` cannot be used with these lengths.

    Args:
        model: its first module is a Transformer.
        query_length, document_length: tokens; None: the model's own.
        instructions: what goes before the texts; None: the model's prompts.
        place: whose lengths they are, for messages, such as ``dataset 'faq'``; empty: the model's.

    Raises:
        TypeError: the first module is no Transformer with a tokenizer.
        InputError: a length is more than the encoder has positions for, or too short to hold its instruction and one
            token of text, or the tokenizer cuts on the left, where the instruction is.
    """
    transformer = _transformer(model)
    tokenizer = cast(PreTrainedTokenizerBase, transformer.tokenizer)
    if tokenizer.truncation_side != "right":
        raise InputError(
            f"the tokenizer cuts on the {tokenizer.truncation_side}, which cuts the instruction first; set "
            'model.tokenizer.truncation_side = "right"'
        )
    limit = usable_positions(transformer.auto_model)
    texts = {task: (text,) for task, text in model.prompts.items()} if instructions is None else instructions.phrasings
    for task, length in (("query", query_length), ("document", document_length)):
        length = getattr(transformer, f"{task}_length", None) if length is None else length
        if length is None:
            continue
        given = f"{task}_length={length}" + f" of {place}" * bool(place)
        if limit is not None and length > limit:
            raise InputError(
                f"{given} is more than the {limit} tokens that {type(transformer.auto_model).__name__} has "
                "positions for; lower it, or give it more with model.positions (extend_positions)"
            )
        for text in texts.get(task, ()):
            needed = len(tokenizer(text or "", padding=False, truncation=False)["input_ids"]) + 1
            if length < needed:
                raise InputError(
                    f"{given} is too short for the instruction {text!r}: with the special tokens and one token "
                    f"of text it takes {needed} tokens; raise {task}_length or shorten the instruction"
                )


@contextmanager
def other_lengths(
    model: SentenceTransformer, query_length: int | None = None, document_length: int | None = None
) -> Iterator[None]:
    """For a while, let ``encode_query`` and ``encode_document`` cut at other lengths; None: at the model's own.

    Raises:
        TypeError: a length is given, and the first module is no Transformer with a tokenizer.
    """
    if query_length is None and document_length is None:
        yield
        return
    transformer = _transformer(model)
    before = transformer.query_length, transformer.document_length
    transformer.query_length = before[0] if query_length is None else query_length
    transformer.document_length = before[1] if document_length is None else document_length
    try:
        yield
    finally:
        transformer.query_length, transformer.document_length = before


def _transformer(model: SentenceTransformer) -> Transformer:
    transformer = model[0]
    if not isinstance(transformer, Transformer) or getattr(transformer, "tokenizer", None) is None:
        raise TypeError(f"two lengths need a Transformer with a tokenizer as the first module, got {transformer}")
    return transformer
