"""What a run will need: memory of a GPU, bytes on the wire, steps and hours, from its configuration alone.

P parameters of an encoder with L layers of width h and feed-forward width f, on W processes, b bytes a number:

    weights         b P          half under DeepSpeed with fp16 or bf16, else of model.dtype (autocast keeps them so;
                                 what is "stored" is not looked at, and counted as float32)
    gradients       b P, twice under DDP, which copies them into buckets
    optimizer       8 P          AdamW's two moments, under DeepSpeed with half weights 4 P more for float32 masters,
                                 2 b P where model.dtype is half; ZeRO-1: over W
    an adapter      (lora.rank) has gradients, moments and bytes on the wire of its own weights alone, in float32 but
                    under DeepSpeed with fp16 or bf16; the rest is P as above, in 4 bits 0.52 bytes for a number of a
                    linear layer. What DoRA keeps beside it is not counted
    activations     of the texts that one backward pass covers, T tokens (a step's, or with caching a mini-batch's):
                    what one layer keeps of a token (``shape.py``) times L; under autocast a half copy of the weights
                    besides. With checkpointing, all layers keep their h input numbers and one layer at a time the rest
    embeddings      of all ranks and their gradients, float32: the loss sees every row, tile by tile

    gradients, sent by a rank      2 (W-1)/W b P    ring all-reduce; ZeRO-1: reduce-scatter, then all-gather of weights
    embeddings, sent by a rank     2 (W-1)   of its own rows: all-gather forward, reduce-scatter backward

What it leaves out: the framework's own memory and fragmentation, for which ``reserve`` of the GPU is kept free. Tokens
are counted as if every text had its longest length unless ``query_tokens`` and ``document_tokens`` say the mean. Of
datasets with unlike lengths and ``batch_multiple`` the largest batch counts for memory; steps and hours are those of
their mean, since how many rows each has is not read.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

from piccolo_st.data import parse_mixture
from piccolo_st.errors import InputError
from piccolo_st.tables import table
from piccolo_st.training.arguments import PlanArguments
from piccolo_st.training.sections import FinetuneSections
from piccolo_st.training.shape import EncoderShape, encoder_shape
from piccolo_st.training.unread import unread

GIB = 1024**3
_FLOAT = 4
_FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)  # a number; a byte for 64 of them, and a float for 256 such bytes


@dataclass(frozen=True)
class Estimate:
    """What a run needs; sizes in bytes, of one process.

    Attributes:
        parameters: numbers of the model.
        trained: those of them, or of its adapter, that are trained.
        weights, gradients, optimizer, activations, embeddings: memory.
        gradients_sent, embeddings_sent: bytes that a process sends in one step, in ring collectives.
        steps, samples: of the whole run; a sample is a row.
        tokens_per_step: of one process.
        hours: at the throughput that ``assumption`` names; None if none was given.
        assumption: where the hours come from.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    embeddings: int
    gradients_sent: int
    embeddings_sent: int
    steps: int
    samples: int
    tokens_per_step: int
    hours: float | None
    assumption: str

    @property
    def memory(self) -> int:
        """Bytes of one process's GPU."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.embeddings

    def check(self, gpu_memory_gib: float, reserve: float) -> None:
        """Raise InputError if it does not fit a GPU of so many GiB, of which the share ``reserve`` stays free."""
        usable = gpu_memory_gib * (1 - reserve)
        if self.memory / GIB <= usable:
            return
        largest = max(("activations", "optimizer", "weights", "embeddings"), key=lambda name: getattr(self, name))
        remedy = {
            "activations": "set loss.mini_batch_num_tokens (or lower it), train.activation_checkpointing, or lower "
            "data.batch_size",
            "optimizer": "use ZeRO stage 1 (plan.zero_stage 1) on more processes",
            "weights": "train in fp16 or bf16 under DeepSpeed, or an adapter (lora.rank) on weights in model.dtype "
            "bfloat16 or in 4 bits, or take a smaller encoder",
            "embeddings": "lower data.batch_size, or use fewer processes",
        }[largest]
        raise InputError(
            f"the run must fit into {usable:.1f} GiB of each GPU, {gpu_memory_gib:g} GiB less a reserve of "
            f"{reserve:.0%}, "
            f"got {self.memory / GIB:.1f} GiB; most of it is {largest}, {getattr(self, largest) / GIB:.1f} GiB; "
            f"{remedy}"
        )

    def table(self) -> str:
        """The estimate as text."""
        names = ("weights", "gradients", "optimizer", "activations", "embeddings", "memory")
        memory = table(["memory of a process", "GiB"], [[name, getattr(self, name) / GIB] for name in names])
        sent = [["gradients and weights", self.gradients_sent / 1e6], ["embeddings", self.embeddings_sent / 1e6]]
        traffic = table(["sent by a process in a step", "MB"], sent)
        hours = "unknown; give plan.tokens_per_second, or plan.peak_tflops and plan.mfu"
        if self.hours is not None:
            hours = f"{self.hours:,.1f}, assuming {self.assumption}"
        lines = [
            f"parameters  {self.parameters:,}" + f", {self.trained:,} trained" * (self.trained != self.parameters),
            f"steps       {self.steps:,}, {self.samples:,} rows in all",
            f"tokens      {self.tokens_per_step:,} a step and process, at most",
            f"hours       {hours}",
        ]
        return "\n\n".join([memory, traffic, "\n".join(lines)])


def estimate(config: FinetuneSections, shape: EncoderShape) -> Estimate:
    """What a run needs.

    Args:
        config: of stage 1 or 2; its section ``plan`` says what no other section does.
        shape: of the encoder.

    Raises:
        InputError: neither ``train.max_steps`` nor ``plan.rows`` says how long the run is, or the mixture cannot be
            used.
    """
    loss, train, plan = config.loss, config.train, config.plan
    world, held, batch = plan.processes, _held(config, shape), _batch(config)
    tokens, texts = batch.tokens, 2 + plan.negatives
    covered, caching = batch.whole, loss.mini_batch_size is not None
    if loss.mini_batch_num_tokens == "auto":
        if plan.gpu_memory_gib is not None:
            fit = tokens_that_fit(config, shape, plan.gpu_memory_gib * GIB)
            check_room_for_a_text(config, fit, plan.gpu_memory_gib * GIB)
            covered, caching = min(covered, fit), fit < covered
    elif loss.mini_batch_num_tokens is not None:
        covered, caching = min(covered, max(loss.mini_batch_num_tokens, batch.longest)), True
    elif loss.mini_batch_size is not None:
        covered = min(covered, loss.mini_batch_size * batch.longest)
    checkpointing = bool(train.activation_checkpointing)

    samples_per_step = round(batch.mean_rows * world * train.gradient_accumulation_steps)
    if train.max_steps > 0:
        steps = train.max_steps
    elif plan.rows:
        steps = math.ceil(plan.rows * train.num_train_epochs / samples_per_step)
    else:
        raise InputError("the length of the run is unknown; set train.max_steps, or plan.rows to the mixture's rows")
    per_step = round(batch.mean_rows * tokens * train.gradient_accumulation_steps)
    seconds, assumption = None, ""
    if plan.tokens_per_second is not None:
        seconds = per_step / plan.tokens_per_second
        assumption = f"{plan.tokens_per_second:,.0f} tokens a second and process"
    elif plan.peak_tflops is not None and plan.mfu is not None:
        forwards = 1 + caching + checkpointing
        seconds = shape.flops(per_step, tokens / texts, forwards) / (plan.peak_tflops * 1e12 * plan.mfu)
        assumption = f"{plan.mfu:.0%} of {plan.peak_tflops:g} TFLOP/s, recomputation counted"
    return Estimate(
        parameters=shape.parameters,
        trained=held.trained,
        weights=held.weights,
        gradients=held.gradients + held.buckets,
        optimizer=held.optimizer,
        activations=_kept(config, shape, covered),
        embeddings=held.embeddings,
        gradients_sent=round(2 * (world - 1) / world * held.gradients),
        embeddings_sent=(world - 1) * held.embeddings // world * train.gradient_accumulation_steps,
        steps=steps,
        samples=steps * samples_per_step,
        tokens_per_step=batch.whole * train.gradient_accumulation_steps,
        hours=None if seconds is None else seconds * steps / 3600,
        assumption=assumption,
    )


def tokens_that_fit(config: FinetuneSections, shape: EncoderShape, free: float) -> int:
    """How many tokens one pass can have beside all else that a process keeps, in its longest batch.

    Args:
        config, shape: as of :func:`estimate`.
        free: bytes of the GPU that nobody has yet, the weights not there yet; ``plan.reserve`` of them stay free.
    """
    held = _held(config, shape)
    left = free * (1 - config.plan.reserve) - sum(
        (held.weights, held.gradients, held.buckets, held.optimizer, held.embeddings)
    )
    none, some = _kept(config, shape, 0), _kept(config, shape, 1000)
    return max(0, int(1000 * (left - none) / (some - none)))


def check_room_for_a_text(config: FinetuneSections, fit: int, free: float) -> None:
    """Raise InputError if the longest text has more tokens than fit into so many bytes."""
    longest = _batch(config).longest
    if fit < longest:
        raise InputError(
            f"loss.mini_batch_num_tokens auto needs room for one text of {longest} tokens beside weights, gradients "
            f"and optimizer, got {free / GIB:.1f} GiB, into which {fit:,} tokens would fit; take a larger GPU, "
            "or one that nobody else uses, or set train.activation_checkpointing"
        )


def tokens_of_a_batch(config: FinetuneSections) -> int:
    """Tokens of the largest batch, each text as long as ``plan`` says, or as it may be."""
    return _batch(config).whole


@dataclass(frozen=True)
class _Held:
    """What a process keeps however many tokens a pass has, in bytes, and how many weights are trained."""

    trained: int
    weights: int
    gradients: int
    buckets: int
    optimizer: int
    embeddings: int


def _held(config: FinetuneSections, shape: EncoderShape) -> _Held:
    plan, world = config.plan, config.plan.processes
    half = _half_weights(config)
    width, trained = _width(config), shape.parameters
    moment, trained_width, weights = _FLOAT if half else width, width, width * shape.parameters
    if config.lora.rank is not None:
        trained, trained_width = shape.adapter(config.lora), width if half else _FLOAT
        moment = _FLOAT
        if config.lora.load_in_4bit:
            linear = sum(wide * high for _, wide, high in shape.linears) * shape.layers
            weights = round(width * (shape.parameters - linear) + _FOUR_BITS * linear)
        weights += trained_width * trained
    masters = _FLOAT * trained if half else 0
    dimension = shape.dimension or shape.hidden_size
    return _Held(
        trained=trained,
        weights=weights,
        gradients=trained_width * trained,
        buckets=trained_width * trained if world > 1 and plan.zero_stage == 0 else 0,
        optimizer=(2 * moment * trained + masters) // (world if plan.zero_stage >= 1 else 1),
        embeddings=2 * world * _batch(config).rows * (2 + plan.negatives) * dimension * _FLOAT,
    )


def _half_weights(config: FinetuneSections) -> bool:
    return bool(config.plan.zero_stage > 0 and (config.train.fp16 or config.train.bf16))


def _width(config: FinetuneSections) -> int:
    """Bytes of a number of the weights."""
    return 2 if _half_weights(config) or config.model.dtype in ("bfloat16", "float16") else _FLOAT


def _kept(config: FinetuneSections, shape: EncoderShape, tokens: int) -> int:
    """Bytes that one backward pass over so many tokens needs."""
    train, width = config.train, _width(config)
    products = 2 if train.fp16 or train.bf16 else width
    lora = config.lora if config.lora.rank is not None else None
    return shape.kept(tokens, products, bool(train.activation_checkpointing), lora, autocast=products < width)


@dataclass(frozen=True)
class _Batch:
    """The batches of a process and micro-step, one a dataset.

    Attributes:
        tokens: of a row with all its texts, in the dataset whose rows are the longest.
        whole: tokens of the batch that has the most.
        rows: of the batch that has the most.
        mean_rows: over the datasets.
        longest: tokens of the longest text.
    """

    tokens: int
    whole: int
    rows: int
    mean_rows: float
    longest: int


def _batch(config: FinetuneSections) -> _Batch:
    """The batches; the mixture is parsed, its data are not read."""
    model, data, plan = config.model, config.data, config.plan
    specs = parse_mixture(data.mixture)[0].values() if data.mixture else ()
    own = [(s.query_length, s.document_length, s.batch_multiple) for s in specs if s.use == "train"]
    own = own or [(None, None, 1.0)]
    lengths = [(query or model.query_length, document or model.document_length) for query, document, _ in own]
    tokens = [_tokens(plan.query_tokens or one, plan.document_tokens or other, plan) for one, other in lengths]
    rows = [round(data.batch_size * multiple) for *_, multiple in own]
    return _Batch(
        tokens=max(tokens),
        whole=max(map(operator.mul, rows, tokens)),
        rows=max(rows),
        mean_rows=sum(rows) / len(rows),
        longest=max(map(max, lengths)),
    )


def _tokens(query: int, document: int, plan: PlanArguments) -> int:
    """Tokens of a row: its query, its positive and its negatives."""
    return query + document * (1 + plan.negatives)


def show_plan(config: FinetuneSections) -> str:
    """What a run needs, as text.

    Raises:
        InputError: the run does not fit the GPU, with the largest part and its remedy; it cannot be computed, or has an
            adapter beside settings that it cannot have.
    """
    config.check_adapter()
    found, plan = estimate(config, encoder_shape(config)), config.plan
    if plan.gpu_memory_gib is not None:
        found.check(plan.gpu_memory_gib, plan.reserve)
    specs = parse_mixture(config.data.mixture)[0].values() if config.data.mixture else ()
    return "\n".join([found.table(), *(f"not read    {line}" for line in unread(config, specs, plan=True))])
