"""InstructionPooling: ST's Pooling, but the instruction is found in each row instead of once for the batch.

Stock Pooling can leave out a prompt only when ``encode`` was given it, and then the same number of tokens from every
row. A prefix typed by hand, or queries and documents in one batch, are pooled with their instruction whatever
``include_prompt`` says. Here:

1. Each instruction is a token prefix: the tokens a row with it begins with, [CLS] included (the same tokens that stock
   Pooling leaves out). ``instruction_token_ids`` makes it.
2. In every row the longest instruction that the row begins with is found, counted from the first token that is no
   padding; a row that begins with none has no instruction.
3. When instructions are excluded, those tokens leave the attention mask that stock Pooling sees, and stock Pooling
   does the rest; so do the tokens of a prompt that ``encode`` was given and that is none of the instructions. A row of
   which nothing would be left keeps all its tokens, so its vector stays finite.

The caller's tensors are never changed: gradient caching runs the same features twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sentence_transformer.modules.pooling import PoolingMode
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from piccolo_st.errors import InputError
from piccolo_st.modeling.batching import Features
from piccolo_st.modeling.instructions import Instructions, InstructionSpec, resolve_instructions


class InstructionPooling(Pooling):
    """Pool the tokens of each row, with or without the row's own instruction.

    With ``include_instruction=True``, or without instructions, it is stock Pooling.
    ``model.set_pooling_include_prompt`` switches it as well.

    Args:
        embedding_dimension: of a token embedding.
        pooling_mode: as stock Pooling: "mean", "cls", "weightedmean", "lasttoken", "max", "mean_sqrt_len_tokens", or
            a tuple of them. Without the instruction, "cls" is the first token after it.
        include_instruction: pool the instruction's tokens as well.
        instruction_ids: for each instruction the token ids a row with it begins with, leading special tokens
            included. One may be the beginning of another: the longest match counts.

    Raises:
        InputError: a prefix is empty.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> model[1] = InstructionPooling.from_tokenizer(
        ...     model.tokenizer, model.get_embedding_dimension(), ["查询：", "结果："], include_instruction=False
        ... )
        >>> bool((model.encode("查询：天气") == model.encode_query("天气")).all())  # by hand, or as the prompt
        True
    """

    config_keys = ["embedding_dimension", "pooling_mode", "include_instruction", "instruction_ids"]  # noqa: RUF012

    def __init__(
        self,
        embedding_dimension: int,
        pooling_mode: PoolingMode | tuple[PoolingMode, ...] | list[PoolingMode] = "mean",
        include_instruction: bool = True,
        instruction_ids: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(embedding_dimension, pooling_mode, include_prompt=include_instruction)
        self.instruction_ids = sorted({tuple(map(int, ids)) for ids in instruction_ids})
        if () in self.instruction_ids:
            raise InputError(
                f"instruction_ids must not hold an empty prefix, which every row begins with, got {instruction_ids!r}"
            )
        longest = max(map(len, self.instruction_ids), default=0)
        table = [[*ids, *[-1] * (longest - len(ids))] for ids in self.instruction_ids]
        # Not persistent: the state dict stays the one of a model with stock Pooling.
        prefixes = torch.tensor(table, dtype=torch.int64).view(len(table), longest)  # -1 past the end
        self.register_buffer("_prefixes", prefixes, persistent=False)

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        embedding_dimension: int,
        instructions: Iterable[str],
        pooling_mode: PoolingMode | tuple[PoolingMode, ...] | list[PoolingMode] = "mean",
        include_instruction: bool = True,
    ) -> InstructionPooling:
        """Build the layer from instruction texts; empty ones (no instruction) are skipped.

        Raises:
            InputError: instructions are to be excluded and there are none, or the tokenizer cannot tell rows with one
                of the instructions from others; see ``instruction_token_ids``.
        """
        ids = [instruction_token_ids(tokenizer, text) for text in instructions if text]
        if not include_instruction and not ids:
            raise InputError(
                "include_instruction=False needs the instructions to leave out, got none; name them, or use stock "
                "Pooling(include_prompt=False), which leaves out the prompt that encode was given"
            )
        return cls(embedding_dimension, pooling_mode, include_instruction, ids)

    @property
    def include_instruction(self) -> bool:
        """Whether the instruction's tokens are pooled. The same switch as ``include_prompt`` of stock Pooling."""
        return self.include_prompt

    @include_instruction.setter
    def include_instruction(self, value: bool) -> None:
        self.include_prompt = value

    def forward(self, features: Features, **kwargs: object) -> Features:
        """Add "sentence_embedding" (rows, dimension) to ``features``.

        Args:
            features: "token_embeddings" (rows, length, dimension), "input_ids" and "attention_mask" (rows, length);
                or, flattened, (1, tokens, dimension), (1, tokens) and "cu_seq_lens_q" (rows + 1,).

        Raises:
            InputError: instructions are to be excluded, and there are no input_ids to find them in or the encoder
                gives more or fewer token embeddings than it got tokens.
        """
        if self.include_prompt or not self.instruction_ids:
            return super().forward(features, **kwargs)
        if "input_ids" not in features:
            raise InputError(
                f"excluding instructions needs input_ids, got the features {sorted(features)}; use "
                "include_instruction=True for inputs that are not text"
            )
        shortened, weights, rows = self._flattened(features) if "cu_seq_lens_q" in features else self._padded(features)
        pooled = super().forward(shortened, **kwargs)["sentence_embedding"]
        modes = (self.pooling_mode,) if isinstance(self.pooling_mode, str) else self.pooling_mode
        if "weightedmean" in modes:
            # A token keeps the weight of its place in the whole row, as in stock Pooling, which here sees a shortened
            # row and counts from its beginning: so this part is made anew.
            parts = list(pooled.chunk(len(modes), dim=-1))
            parts[modes.index("weightedmean")] = _weighted_mean(shortened["token_embeddings"], weights, rows)
            pooled = torch.cat(parts, dim=-1)
        features["sentence_embedding"] = pooled
        return features

    def _padded(self, features: Features) -> tuple[Features, Tensor, None]:
        """Return the features with the instructions masked out, and each token's weight (rows, length) for step 3."""
        input_ids = features["input_ids"]
        rows, length = input_ids.shape
        if features["token_embeddings"].shape[1] != length:
            raise InputError(
                f"excluding instructions needs one token embedding for each of the {length} input_ids of a row, got "
                f"{features['token_embeddings'].shape[1]}; use include_instruction=True with this encoder"
            )
        mask = features.get("attention_mask", torch.ones_like(input_ids))  # (rows, length)
        # int32: onnxruntime has no argmax of int64.
        padding = mask.to(torch.int32).argmax(dim=1)  # (rows,) tokens of padding on the left
        starts = torch.arange(rows, device=mask.device) * length + padding
        excluded = self._excluded(features, starts, starts + mask.sum(dim=1))
        place = torch.arange(length, device=mask.device) - padding[:, None]  # (rows, length) place in the row
        kept = mask * (place >= excluded[:, None])
        shortened = {**features, "attention_mask": kept}
        shortened.pop("prompt_length", None)
        return shortened, kept * (place + 1), None

    def _flattened(self, features: Features) -> tuple[Features, Tensor, Tensor]:
        """Return the features without the instructions, and each left token's weight and row, both (tokens,)."""
        borders = features["cu_seq_lens_q"].long()
        starts, ends = borders[:-1], borders[1:]
        excluded = self._excluded(features, starts, ends)
        row = torch.repeat_interleave(torch.arange(len(starts), device=starts.device), ends - starts)
        place = torch.arange(len(row), device=starts.device) - starts[row]
        kept = place >= excluded[row]
        shortened = {name: features[name] for name in ("cls_token_embeddings",) if name in features}
        shortened["token_embeddings"] = features["token_embeddings"][:, kept]
        shortened["cu_seq_lens_q"] = torch.cat([borders[:1], (ends - starts - excluded).cumsum(0)])
        return shortened, place[kept] + 1, row[kept]

    def _excluded(self, features: Features, starts: Tensor, ends: Tensor) -> Tensor:
        """Return how many tokens of each row are left out, (rows,): its instruction, or the prompt that was given."""
        own = self._instruction_lengths(features["input_ids"].reshape(-1), starts, ends)
        # One number for all rows, in any of the shapes that stock Pooling takes: an int, (1,) or (rows,).
        prompt = torch.as_tensor(features.get("prompt_length", 0), device=own.device).reshape(-1)[:1]
        # By one token more, it is the row's own instruction with a blank at its end, which joins the text.
        return prompt.where((prompt > own + 1) & (prompt < ends - starts), own)

    def _instruction_lengths(self, input_ids: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Return how many tokens of each row are its instruction: (rows,).

        ``input_ids`` is flat, (tokens,); row i has the tokens from ``starts[i]`` up to, not including, ``ends[i]``.
        """
        places = starts[:, None] + torch.arange(self._prefixes.shape[1], device=starts.device)  # (rows, longest)
        window = input_ids[places.clamp(max=len(input_ids) - 1)].where(places < ends[:, None], -2)
        beyond = self._prefixes == -1  # (instructions, longest)
        matches = ((window[:, None] == self._prefixes) | beyond).all(dim=-1)  # (rows, instructions)
        lengths = (matches * (~beyond).sum(dim=-1)).amax(dim=-1)
        return lengths.where(lengths < ends - starts, 0)  # a row that is nothing else keeps its tokens


def _weighted_mean(token_embeddings: Tensor, weights: Tensor, rows: Tensor | None) -> Tensor:
    """Return the means (rows, dimension), weighted by place: over dim 1, or by row where the input is flattened."""
    weights = weights.unsqueeze(-1).to(torch.promote_types(token_embeddings.dtype, torch.float32))
    weighted = token_embeddings * weights
    if rows is None:
        total, weight = weighted.sum(dim=1), weights.sum(dim=1)
    else:
        count = int(rows[-1]) + 1  # every row has a token left, so the last token is of the last row
        total = weighted.new_zeros(count, weighted.shape[-1]).index_add(0, rows, weighted[0])
        weight = weights.new_zeros(count, 1).index_add(0, rows, weights)
    return (total / weight.clamp(min=1e-9)).to(token_embeddings.dtype)


def set_instruction_pooling(
    model: SentenceTransformer, instructions: InstructionSpec | Iterable[str], include_instruction: bool = True
) -> Pooling:
    """Put an InstructionPooling in the place of the model's Pooling, with the same pooling mode, and return it.

    What ``model.save_pretrained`` then writes, as in a checkpoint of a stock trainer, loads only with
    ``trust_remote_code=True`` where piccolo_st is installed; what ``save_portable`` writes loads everywhere.

    Args:
        model: its Pooling module is replaced.
        instructions: a preset's name, instructions, or every instruction text that rows may begin with (where
            datasets have different ones). Without any ("none", or only empty texts) the model gets stock Pooling.
        include_instruction: pool the instruction's tokens as well.

    Raises:
        InputError: the model has no Pooling module, or more than one; or as InstructionPooling.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> model = SentenceTransformer("runs/quickstart/model")
        >>> set_instruction_pooling(model, "piccolo", include_instruction=False)
        InstructionPooling({'embedding_dimension': ..., 'include_instruction': False, ...})
    """
    places = [place for place, module in enumerate(model) if isinstance(module, Pooling)]
    if len(places) != 1:
        names = [type(module).__name__ for module in model]
        raise InputError(f"the model must have exactly one Pooling module, got {names}")
    old = cast(Pooling, model[places[0]])
    given = (
        resolve_instructions(instructions).prompts.values()
        if isinstance(instructions, str | Instructions | Mapping)
        else instructions
    )
    texts = [text for text in given if text]
    pooling = (
        InstructionPooling.from_tokenizer(
            model.tokenizer, old.embedding_dimension, texts, old.pooling_mode, include_instruction
        )
        if texts
        else Pooling(old.embedding_dimension, old.pooling_mode, include_prompt=include_instruction)
    )
    model[places[0]] = pooling.to(model.device)
    return pooling


def instruction_token_ids(tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[int]:
    """Return the token ids every row with ``instruction`` begins with, leading special tokens ([CLS]) included.

    A tokenizer may join the end of the instruction with the beginning of the text (``"query" + "ing"``,
    or the blank at the end of ``"查询: "`` that SentencePiece moves to the next piece). So this takes the tokens that
    stay the same whatever follows, tried with Chinese, Latin, digits and a blank. A joined blank belongs to the text.

    Raises:
        InputError: the instruction is empty; its tokens change with the text that follows it; or it has characters
            the tokenizer does not know, for which any other unknown character could be taken.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, padding=False, truncation=False)["input_ids"])

    alone, around, unknown = encode(instruction), encode(""), tokenizer.unk_token_id
    # Qwen's unknown token is the one that texts end with as well.
    special = set(tokenizer.all_special_ids) - ({unknown} - set(around))
    if not set(alone) - special:
        raise InputError(f"the instruction {instruction!r} has no tokens; leave it out, or write one with text")
    if alone.count(unknown) > around.count(unknown):
        raise InputError(
            f"the instruction {instruction!r} has characters this tokenizer does not know; write it with characters of "
            "the vocabulary, since other unknown ones would be taken for it"
        )
    rows = [alone, *(encode(instruction + text) for text in ("今天", "的", "and", "ing", "s", "7", " a"))]
    stable = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))]
    if str(tokenizer.decode(alone[len(stable) :], skip_special_tokens=True)).strip() or not set(stable) - special:
        raise InputError(
            f"the tokens of the instruction {instruction!r} change with the text that follows, so no row can be told "
            "to begin with it; end it with a punctuation mark such as '：'"
        )
    return stable
