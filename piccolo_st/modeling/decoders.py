"""What a language model needs to embed text: a last token that is there in every text, and sight in both directions.

(1) ``lasttoken`` pooling takes the state of the last token. It should be the same token in every text, and stay where a
    text is cut: the tokenizer appends it itself then, after truncation (``append_end_token``).
(2) transformers' decoders see what follows a token where their configuration says ``is_causal: false``. Not every
    architecture reads it, so ``see_both_ways`` tries it: a later token must change an earlier state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from piccolo_st.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "今天天气"


def append_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let ``tokenizer`` end every text with its end-of-text token; one that ends them with a special token stays.

    It is saved with the tokenizer. Texts that are cut keep it: its place is counted before they are cut.

    Raises:
        InputError: the tokenizer has no such token, or its end cannot be set.
    """
    from tokenizers import processors

    if _ids(tokenizer)[-1:] and _ids(tokenizer)[-1] in tokenizer.all_special_ids:
        return
    name = type(tokenizer).__name__
    end, backend = tokenizer.eos_token, getattr(tokenizer, "backend_tokenizer", None)
    if end is None or backend is None:
        raise InputError(
            f"pooling lasttoken needs a tokenizer that ends texts with a token of its own, got {name} with the "
            f"end-of-text token {end!r}; set model.processor_kwargs.eos_token, or choose pooling mean"
        )
    wanted = [*_ids(tokenizer), tokenizer.eos_token_id]
    begin = list(tokenizer("", truncation=False)["input_ids"])  # <s>, or nothing
    names = [*tokenizer.convert_ids_to_tokens(begin), end]
    single = " ".join([*names[:-1], "$A", end])
    template = processors.TemplateProcessing(
        single=single,
        pair=f"{single} $B:1 {end}:1",
        special_tokens=list(zip(names, [*begin, tokenizer.eos_token_id], strict=True)),
    )
    before = backend.post_processor
    # tokenizers gives the second of two templates each part of the first one's as a text of its own.
    backend.post_processor = template if begin or before is None else processors.Sequence([before, template])
    if _ids(tokenizer) != wanted:
        raise InputError(
            f"pooling lasttoken needs {end!r} at the end of every text, which {name} does not append; choose pooling "
            "mean, or save a tokenizer that does (add_eos_token)"
        )


def _ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(_PROBE, padding=False, truncation=False)["input_ids"])


@torch.no_grad()
def see_both_ways(encoder: PreTrainedModel) -> None:
    """Let every token of ``encoder`` see the tokens after it; its configuration keeps that when it is saved.

    Raises:
        InputError: tried on two rows that differ in their last token, the first state stays the same.
    """
    encoder.config.is_causal = False
    rows = torch.arange(8, device=encoder.device).repeat(2, 1) % encoder.config.vocab_size
    rows[1, -1] += 1
    training = encoder.training
    states = encoder.eval()(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state
    encoder.train(training)
    if torch.equal(states[0, 0], states[1, 0]):
        raise InputError(
            f"model.bidirectional needs an encoder whose tokens see the ones after them with is_causal=False, got "
            f"{type(encoder).__name__}, in which a later token changes no earlier state; set it to false"
        )
