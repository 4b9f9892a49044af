"""Two lengths: queries are cut at 64 tokens, documents at 512, the instruction is never cut.

sentence-transformers has both natively: ``Transformer.query_length`` and ``document_length``, which hold wherever the
task is known, that is in ``encode_query``, ``encode_document``, mteb, and in training for the columns that
``args.router_mapping`` names (``instructions.column_tasks`` makes it). Plain ``encode`` cuts at ``max_seq_length``.
The tokens of the instruction and the special tokens count toward the length.
"""

from __future__ import annotations

from collections.abc import Iterable

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from piccolo_st.errors import InputError
from piccolo_st.instructions import Instructions, InstructionSpec, resolve_instructions
from piccolo_st.positions import usable_positions


def set_lengths(
    model: SentenceTransformer,
    query_length: int = 64,
    document_length: int = 512,
    extra_instructions: Iterable[InstructionSpec] = (),
) -> None:
    """Cut queries of ``model`` at ``query_length`` tokens and documents at ``document_length``.

    Pretraining uses 128 for both, finetuning 64 and 512. Set the prompts first: they are what is checked.

    Args:
        model: its first module is a Transformer.
        query_length: tokens, instruction and special tokens included.
        document_length: the same for documents.
        extra_instructions: instructions beyond the model's prompts that will be used (of single datasets, say) and
            have to fit as well.

    Raises:
        TypeError: the first module is no Transformer with a tokenizer.
        InputError: a length is more than the encoder has positions for, or too short to hold an instruction and one
            token of text, or the tokenizer cuts on the left, where the instruction is.
    """
    transformer = model[0]
    tokenizer = getattr(transformer, "tokenizer", None)
    if not isinstance(transformer, Transformer) or tokenizer is None:
        raise TypeError(f"two lengths need a Transformer with a tokenizer as the first module, got {transformer}")
    if tokenizer.truncation_side != "right":
        raise InputError(
            f"the tokenizer cuts on the {tokenizer.truncation_side}, which cuts the instruction first; set "
            'model.tokenizer.truncation_side = "right"'
        )
    limit = usable_positions(transformer.auto_model)
    own = Instructions(model.prompts.get("query") or "", model.prompts.get("document") or "")
    used = [own, *map(resolve_instructions, extra_instructions)]
    for name, length, texts in (
        ("query_length", query_length, [instructions.query for instructions in used]),
        ("document_length", document_length, [instructions.document for instructions in used]),
    ):
        if limit is not None and length > limit:
            raise InputError(
                f"{name}={length} is more than the {limit} tokens that {type(transformer.auto_model).__name__} has "
                "positions for; lower it, or give it more with model.positions (extend_positions)"
            )
        for text in texts:
            needed = len(tokenizer(text, padding=False, truncation=False)["input_ids"]) + 1
            if length < needed:
                raise InputError(
                    f"{name}={length} is too short for the instruction {text!r}: with the special tokens and one token "
                    f"of text it takes {needed} tokens; raise {name} or shorten the instruction"
                )
    transformer.query_length, transformer.document_length = query_length, document_length
    if limit is not None and (model.max_seq_length is None or model.max_seq_length > limit):
        model.max_seq_length = limit  # RoBERTa's config counts the padding rows, and ST believes it
