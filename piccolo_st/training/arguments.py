"""What the sections of a run's configuration hold: a dataclass for each, every key a field with its help.

sections.py puts them together for the two stages. The section ``train`` stands in training_arguments.py: its class is a
child of sentence-transformers', which takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator

from piccolo_st.errors import nearest
from piccolo_st.losses import DIRECTIONS, Direction, DistillationSettings, HardnessMode, MarginStrategy, SmallPrecision
from piccolo_st.mining import MiningSettings, ReminingSettings
from piccolo_st.modeling import PRESETS, EncoderSettings, Instructions, WrittenInstructions
from piccolo_st.schema import Count, Natural, NotNegative, Number, Positive, ShareBelowOne, part_of, read_by, setting

#: Environment variable: the ``train.max_seconds`` of every run that sets none.
TIME_LIMIT = "PICCOLO_ST_MAX_SECONDS"


def _by_task(value: object, place: str) -> object:
    """Instructions by the name of a task."""
    if not isinstance(value, Mapping):
        return value
    return {name: Instructions.from_plain(one, f"{place}.{name}") for name, one in value.items()}


#: What sentence-transformers' Pooling can do, which takes seconds to import.
Pooling: TypeAlias = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

_MINERS = ("lexical", "bm25", "random", "self")


def _miner(given: str | list[str] | None) -> str | list[str] | None:
    """A name that is none of these is a model's, unless it is one of these misspelt, or a switch."""
    for name in [given] if isinstance(given, str) else given or []:
        near = nearest(name, _MINERS)
        if name in ("yes", "no", "true", "false") or (name not in _MINERS and near.startswith("; did")):
            raise ValueError(f"must be one of {', '.join(_MINERS)}, or a model's directory or Hub id")
    return given


@dataclass
class ModelArguments:
    """What is trained: a checkpoint, or an encoder built from the run's own text."""

    name_or_path: str | None = setting(
        None, "Hub id or directory of a sentence-transformers or transformers model; overrides `build`."
    )
    revision: str | None = setting(None, "Branch, tag or commit of a Hub model.")
    build: EncoderSettings | None = setting(None, "The size of an encoder to build when name_or_path is empty.")
    pooling: Pooling | None = setting(None, "Pooling of a bare encoder; empty: mean, or the model's own.")
    instructions: Annotated[Instructions | None, read_by(Instructions.if_any, str | WrittenInstructions | None)] = (
        setting(
            None,
            f"A preset ({', '.join(PRESETS)}), or your own: {{query: ..., document: ...}} or {{task: ...}}; empty: "
            "those saved in the checkpoint, and where it has none, piccolo, with a warning.",
        )
    )
    task_instructions: Annotated[
        dict[str, Instructions] | None, read_by(_by_task, dict[str, str | WrittenInstructions] | None)
    ] = setting(None, "Instructions of single mteb tasks or types of task by name, saved as prompts mteb finds.")
    include_instruction: bool = setting(True, "Whether the instruction's own tokens are pooled.")
    query_length: Count = setting(64, "Longest query in tokens, instruction included.")
    document_length: Count = setting(512, "Longest passage in tokens, instruction included.")
    positions: Count | None = setting(
        None, "Tokens the encoder must take; a BERT or RoBERTa of fewer is extended; empty: its own."
    )
    dimension: Count | None = setting(None, "Width of the embeddings, through a linear layer; empty: the encoder's.")
    dtype: Literal["float32", "bfloat16", "float16", "stored"] = setting(
        "float32", "Of the weights trained and saved; stored: as they are in the checkpoint."
    )
    attn_implementation: str | None = setting(
        None, "Who computes attention: sdpa, eager, flash_attention_2, ...; empty: transformers' choice."
    )
    trust_remote_code: bool = setting(False, "Run the code that the checkpoint brings.")
    bidirectional: bool = setting(
        False, "Let the tokens of a decoder see those after them; refused where that does not work."
    )
    model_kwargs: dict[str, object] | None = setting(None, "Further arguments of from_pretrained of the encoder.")
    processor_kwargs: dict[str, object] | None = setting(None, "Arguments of from_pretrained of the tokenizer.")
    config_kwargs: dict[str, object] | None = setting(
        None, "What its config.json is to say instead, such as attention_probs_dropout_prob; it is saved."
    )


@dataclass
class DataArguments:
    """What it is trained on, and which rows stand together in a batch."""

    STAGE: ClassVar[str] = "fine-tuning"

    mixture: dict[str, object] | str | None = setting(
        None, "The data mixture: a YAML file, or the mapping itself; see recipes/REFERENCE.md."
    )
    batch_size: Count = setting(64, "Samples per device and step.")
    mining_model: Annotated[str | list[str] | None, AfterValidator(_miner)] = setting(
        None,
        "Who mines negatives before the run: lexical, bm25, random, self or a model, or a list of such; empty: nobody.",
    )
    mining: Annotated[dict[str, object] | None, part_of(MiningSettings)] = setting(
        None, "Settings of that mining; a dataset's own go over them."
    )
    remining: Annotated[dict[str, object] | None, part_of(ReminingSettings)] = setting(
        None, "Lets mined negatives change while the run goes on: {} for the defaults; empty: they stay."
    )
    mixing: Literal["proportional", "weights", "temperature"] = setting(
        "proportional", "How often each dataset comes; weights: as their `weight` says."
    )
    mixing_exponent: NotNegative = setting(1.0, "a in p ~ size^a; read only when mixing is temperature.")
    small_datasets: Literal["drop", "repeat", "error"] = setting(
        "drop", "What becomes of a dataset under one global batch; drop says so."
    )
    together: list[str] | None = setting(
        None,
        "Datasets that share each of their updates, whose losses have the weights of their `loss`; "
        "train.gradient_accumulation_steps is then a multiple of their number. An epoch is one of the longest.",
    )
    num_negatives: Count | None = setting(None, "Listed hard negatives used per row and visit; empty means all.")


@dataclass
class LossArguments:
    """The Piccolo loss (GTE's improved contrastive loss) and the hybrid around it."""

    temperature: Positive = setting(0.01, "Similarities are divided by this before the softmax.")
    directions: list[Direction] = setting(list(DIRECTIONS), "Terms of the softmax.")
    mask_duplicates: bool = setting(
        True, "Whether equal texts, but for case, width and blanks, are kept from standing against each other."
    )
    false_negative_margin: Number | None = setting(
        None, "Drop a negative more similar than the positive by over this; empty: keep all."
    )
    guide: str | None = setting(
        None,
        "A model whose false negatives are left out of retrieval (GISTEmbed), or self: the encoder before "
        "the run. It embeds every text once, before the first step.",
    )
    guide_margin: Number = setting(0.0, "How far below the positive the guide's similarity must stay.")
    guide_margin_strategy: MarginStrategy = setting(
        "absolute", "Whether that is a difference, or a share of the positive's similarity."
    )
    hardness_strength: NotNegative = setting(
        0.0, "So many times its similarity is added to a negative's logit, e.g. 5; 0: not."
    )
    hardness_mode: HardnessMode = setting("hard_negatives", "To which negatives' logits that is.")
    focal_gamma: NotNegative = setting(0.0, "Weighs each row by (1 - its positive's share) to this power, e.g. 0.5.")
    spread_weight: NotNegative = setting(
        0.0, "Of a term for the squared similarity of the batch's queries, and of its positives, e.g. 1."
    )
    spread_mean_weight: NotNegative = setting(0.0, "The same for the square of their mean similarity.")
    mini_batch_size: Count | None = setting(None, "Switches on gradient caching with this many rows at a time.")
    mini_batch_num_tokens: Count | Literal["auto"] | None = setting(
        None,
        "Switches on gradient caching with this many tokens at a time; auto: as many as fit into what is free of a "
        "GPU, less plan.reserve, and no caching where the longest batch fits whole, or without a GPU.",
    )
    chunk_tokens: Count | Literal["auto"] = setting(
        "auto",
        "Without caching, the largest forward pass in tokens, padding included, rows sorted by length; "
        "auto: as suits the device.",
    )
    distillation: Annotated[dict[str, object] | None, part_of(DistillationSettings)] = setting(
        None, "What datasets with a teacher's scores learn from them; a dataset's own `loss` goes over it."
    )
    quantised: list[SmallPrecision] | None = setting(
        None, "Precisions of a search trained beside float32, so that bytes or bits lose less by it."
    )
    matryoshka_dims: list[Count] | None = setting(None, "Embedding dimensions trained together (MRL), largest first.")


@dataclass
class EvaluationArguments:
    """The search over held-out queries; train.eval_steps says when."""

    batch_size: Count = setting(128, "Texts encoded at a time.")
    general: list[str] | str | None = setting(
        None,
        "Tasks of evaluate (names, types, YAML files) that tell what a run forgets: scored before its "
        "first step and with the model that it leaves, and compared; so are the held-out queries then.",
    )


@dataclass
class PlanArguments:
    """What --plan needs to know beside the other sections; a run reads `reserve` of it, for auto."""

    processes: Count = setting(1, "GPUs in all.")
    zero_stage: Literal[0, 1] = setting(1, "DeepSpeed ZeRO stage, 0 (DDP) or 1.")
    gpu_memory_gib: Positive | None = setting(None, "Memory of a GPU; what needs more is refused.")
    reserve: ShareBelowOne = setting(0.1, "Share of it kept for the framework.")
    encoder: dict[str, bool | int | float] | None = setting(
        None, "Shape of an encoder that cannot be read here: layers, hidden_size, heads, ..."
    )
    negatives: Natural = setting(0, "Hard negatives of a row.")
    query_tokens: Count | None = setting(None, "Mean tokens of a query; empty: its longest.")
    document_tokens: Count | None = setting(None, "Mean tokens of a passage; empty: its longest.")
    rows: Count | None = setting(None, "Rows of the mixture, where train.max_steps is not set.")
    tokens_per_second: Positive | None = setting(None, "Assumed throughput of a process.")
    peak_tflops: Positive | None = setting(None, "Peak of a GPU in the run's precision.")
    mfu: Positive | None = setting(None, "Assumed share of that peak.")
