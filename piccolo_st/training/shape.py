"""The shape of an encoder: its weights, those of an adapter, and what one of its layers keeps for the backward pass.

With h, f, q and k the widths of a layer, its feed-forward, all its queries and all its keys, a layer keeps, of a token:

    BERT            8 h + 2 f: the inputs of its products and of its two LayerNorms, queries, keys, values and what
                    attention returns (fused attention keeps no scores), the feed-forward before and after GELU;
                    dropout keeps 3 masks of a byte a number
    ModernBERT      10 h + 4 f: rotated queries and keys beside it, a feed-forward with a gate
    a decoder       2 q + 2 k + 4 f; 3 h for each of the two RMSNorms before a product, of which one is always float32;
                    2 h for each one behind (Gemma); 2 q + 2 k where queries and keys are normed (Qwen3, Gemma3). Norms
                    that are not trained keep a number less; Gemma's keep float32 alone
    autocast        of float32 weights: what comes between products, and a norm reads, stays float32; each product makes
                    a half copy of its own of what it reads, and of its weights
    an adapter      its rank, in each layer that has one, and with dropout the input once more

Measured on encoders of all three kinds: tests/training/test_estimate.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from piccolo_st.errors import InputError
from piccolo_st.modeling import EncoderSettings, LoraSettings
from piccolo_st.training.sections import FinetuneSections

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FLOAT = 4
_NORMED_KEYS = ("qwen3", "gemma3_text")
_POST_NORMS = ("gemma2", "gemma3_text")


@dataclass(frozen=True)
class EncoderShape:
    """The numbers of an encoder that decide its size.

    Attributes:
        layers, hidden_size, heads, intermediate_size, vocab_size: as in its configuration.
        positions: rows of the position table.
        types: rows of the token type table.
        dropout: whether it trains with dropout.
        dimension: width of a linear layer behind the pooling; None: there is none.
        gated: whether the feed-forward has a gate, and there is no position table: ModernBERT, decoders.
        rms: whether its norms are RMSNorms, as in decoders.
        kv_heads, head_dim: of keys and values, and of each head; None: as many as heads, and an equal share.
        normed_keys: whether queries and keys are normed.
        post_norms: whether there are norms behind attention and feed-forward too.
    """

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int
    positions: int = 512
    types: int = 2
    dropout: bool = True
    dimension: int | None = None
    gated: bool = False
    rms: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None
    normed_keys: bool = False
    post_norms: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any], dimension: int | None = None) -> EncoderShape:
        """From a mapping as ``plan.encoder`` or ``model.build`` holds it; further keys of the latter are not read.

        Raises:
            InputError: a size is missing.
        """
        known = {item.name for item in fields(cls)}
        taken = {key: value for key, value in values.items() if key in known}
        needed = ("layers", "hidden_size", "heads", "intermediate_size", "vocab_size")
        if any(name not in taken for name in needed):
            raise InputError(
                f"the shape of the encoder must have {', '.join(needed)}, got {', '.join(values) or 'none'}; give all "
                "of them as plan.encoder, or a model that can be read"
            )
        taken["dropout"] = bool(taken.get("dropout", True))
        if "max_positions" in values:
            taken["positions"] = values["max_positions"]
        return cls(**{**taken, "dimension": dimension})

    @property
    def linears(self) -> list[tuple[str, int, int]]:
        """The linear layers of a layer: name, inputs, outputs."""
        h, f, (q, k) = self.hidden_size, self.intermediate_size, self._attention
        if self.rms:
            attention = [("q_proj", h, q), ("k_proj", h, k), ("v_proj", h, k), ("o_proj", q, h)]
            return [*attention, ("gate_proj", h, f), ("up_proj", h, f), ("down_proj", f, h)]
        if self.gated:
            return [("Wqkv", h, 3 * h), ("Wo", h, h), ("Wi", h, 2 * f), ("Wo", f, h)]
        return [*((name, h, h) for name in ("query", "key", "value", "dense")), ("dense", h, f), ("dense", f, h)]

    @property
    def _attention(self) -> tuple[int, int]:
        """Widths of all queries and of all keys."""
        head = self.head_dim or self.hidden_size // self.heads
        return head * self.heads, head * (self.kv_heads or self.heads)

    @property
    def parameters(self) -> int:
        """Weights of the encoder, the pooler that BERT carries along, and the layer behind the pooling."""
        h, products = self.hidden_size, sum(wide * high for _, wide, high in self.linears)
        dense = 0 if self.dimension is None else h * self.dimension + self.dimension
        if self.gated or self.rms:
            head = self.head_dim or h // self.heads
            norms = (4 if self.post_norms else 2) * h + 2 * head * self.normed_keys
            # A norm behind all layers; ModernBERT has one behind the embeddings, and its first layer one less.
            return self.vocab_size * h + self.layers * (products + norms) + h + dense
        embeddings = (self.vocab_size + self.positions + self.types) * h + 2 * h
        layer = products + sum(high for _, _, high in self.linears) + 4 * h
        return embeddings + self.layers * layer + h * h + h + dense

    def adapter(self, lora: LoraSettings) -> int:
        """Weights of an adapter; targets given as a pattern count as all."""
        return (lora.rank or 0) * self.layers * sum(wide + high for _, wide, high in self._targets(lora))

    def _targets(self, lora: LoraSettings) -> list[tuple[str, int, int]]:
        if isinstance(lora.targets, str):
            return self.linears
        named = [target.rpartition(".")[2] for target in lora.targets]
        return [one for one in self.linears if one[0] in named]

    def kept(
        self, tokens: int, width: int, checkpointing: bool, lora: LoraSettings | None = None, autocast: bool = False
    ) -> int:
        """Bytes that autograd keeps for ``tokens`` tokens where products are of numbers of ``width`` bytes."""
        h, layer = self.hidden_size, self._kept_by_layer(width, lora is not None, autocast)
        if lora is not None:
            targets = self._targets(lora)
            layer += len(targets) * (lora.rank or 0) * width
            layer += sum(wide for _, wide, _ in targets) * (width + 1) if lora.dropout else 0
        # What is pooled; where they are trained, the embeddings before and after their LayerNorm.
        ends = (3 if lora is None else 1) * h * width
        copied = width * sum(wide * high for _, wide, high in self.linears) if autocast else 0
        if checkpointing:
            return copied + tokens * (ends + self.layers * h * (_FLOAT if autocast else width) + layer)
        return self.layers * copied + tokens * (ends + self.layers * layer)

    def _kept_by_layer(self, width: int, frozen: bool, autocast: bool) -> int:
        """Bytes that a layer keeps of a token, without an adapter's."""
        h, f, (q, k) = self.hidden_size, self.intermediate_size, self._attention
        if not self.rms:
            norms = 2 * h * (_FLOAT - width) if autocast else 0
            copies = 2 * h * width if autocast and not self.gated else 0  # queries, keys and values are three products
            numbers = 10 * h + 4 * f if self.gated else 8 * h + 2 * f
            return numbers * width + norms + copies + (3 * h if self.dropout else 0)
        keys = 0 if frozen else _FLOAT if self.post_norms else width  # what a norm's own weight needs
        trained = 0 if frozen else _FLOAT if autocast else keys
        norms = 2 * h * (_FLOAT + trained) + (5 if autocast else 2) * h * width
        if self.post_norms:
            norms += 2 * h * (_FLOAT + trained)
        if self.normed_keys:
            norms += (q + k) * (_FLOAT + keys)
        return norms + (2 * q + 2 * k + 4 * f) * width

    def flops(self, tokens: int, length: float, forwards: int) -> float:
        """Floating-point operations of so many tokens in texts of a mean length: forward passes and one backward."""
        products = sum(wide * high for _, wide, high in self.linears) + 2 * length * self._attention[0]
        return 2.0 * tokens * self.layers * products * (forwards + 2)


def encoder_shape(config: FinetuneSections) -> EncoderShape:
    """The shape that ``plan.encoder``, ``model.build`` or the configuration of ``model.name_or_path`` says.

    Raises:
        InputError: none of them can be read.
    """
    shape = _given_shape(config)
    return replace(shape, positions=max(shape.positions, config.model.positions or 0))


def _given_shape(config: FinetuneSections) -> EncoderShape:
    model, plan = config.model, config.plan
    if plan.encoder:
        return EncoderShape.of(plan.encoder, model.dimension)
    if not model.name_or_path:
        return EncoderShape.of(vars(model.build or EncoderSettings()), model.dimension)
    from transformers import AutoConfig

    from piccolo_st.modeling import load_pretrained  # with torch, which a plan of a given shape does not need

    place = "the configuration of model.name_or_path"
    remedy = "give the encoder's shape as plan.encoder: {layers: ..., hidden_size: ...}"
    found = load_pretrained(
        AutoConfig.from_pretrained, model.name_or_path, place, remedy=remedy, revision=model.revision
    )
    return shape_of(found, model.dimension)


def shape_of(config: PretrainedConfig, dimension: int | None) -> EncoderShape:
    """The shape that an encoder's own configuration says.

    Raises:
        InputError: it does not say all of it.
    """
    found = config.get_text_config()
    names = {
        "layers": "num_hidden_layers", "hidden_size": "hidden_size", "heads": "num_attention_heads",
        "intermediate_size": "intermediate_size", "vocab_size": "vocab_size", "positions": "max_position_embeddings",
        "types": "type_vocab_size", "dropout": "hidden_dropout_prob", "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
    }  # fmt: skip
    there = {name: theirs for name, theirs in names.items() if hasattr(found, theirs)}
    values: dict[str, object] = {name: getattr(found, theirs) for name, theirs in there.items()}
    values["rms"] = hasattr(found, "rms_norm_eps")
    values["gated"] = values["rms"] or found.model_type == "modernbert"
    values["normed_keys"], values["post_norms"] = found.model_type in _NORMED_KEYS, found.model_type in _POST_NORMS
    values["dropout"] = bool(values.get("dropout", False))
    return EncoderShape.of(values, dimension)
