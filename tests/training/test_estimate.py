"""The estimate of a run against what small runs take: parameters, optimizer, activations, bytes of collectives."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from datasets import Dataset, DatasetDict
from transformers import BertConfig, BertModel

from piccolo_st import distributed
from piccolo_st.config import parse_run
from piccolo_st.errors import InputError
from piccolo_st.modeling.adapters import LoraSettings
from piccolo_st.training import FinetuneConfig
from piccolo_st.training.estimate import Estimate, estimate, tokens_that_fit
from piccolo_st.training.fitting import mini_batch_tokens
from piccolo_st.training.shape import EncoderShape, encoder_shape
from piccolo_st.training.training_arguments import PiccoloTrainingArguments
from tests.conftest import build_encoder
from tests.helpers.architectures import DECODERS, saved_encoder, small_encoder
from tests.helpers.ranks import run_ranks

ROOT = Path(__file__).parent.parent.parent
HIDDEN, LAYERS, ROWS, LENGTH = 64, 3, 16, 48


def configured(tmp_path: Path, encoder: Path, *overrides: str) -> FinetuneConfig:
    """A run of 2 processes with texts of exactly LENGTH tokens."""
    content = {
        "model": {"name_or_path": str(encoder), "query_length": LENGTH, "document_length": LENGTH},
        "data": {"batch_size": ROWS},
        "train": {"max_steps": 5, "output_dir": str(tmp_path / "run")},
        "plan": {"processes": 2, "zero_stage": 0},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return parse_run([str(path), *overrides], FinetuneConfig, path)


def planned(tmp_path: Path, encoder: Path, *overrides: str) -> Estimate:
    """The estimate of it."""
    config = configured(tmp_path, encoder, *overrides)
    return estimate(config, encoder_shape(config))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_encoder(tmp_path_factory.mktemp("encoder"), hidden_size=HIDDEN, layers=LAYERS, dropout=0.0)


def test_parameters_are_counted_exactly(tmp_path: Path, encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from piccolo_st.losses import scale_dimension

    model = SentenceTransformer(modules=[Transformer(str(encoder)), Pooling(HIDDEN, "mean")], device="cpu")
    assert planned(tmp_path, encoder).parameters == sum(p.numel() for p in model.parameters())
    scale_dimension(model, 100)
    found = planned(tmp_path, encoder, "--model.dimension", "100").parameters
    assert found == sum(p.numel() for p in model.parameters())


def test_the_shape_of_bert_large() -> None:
    with torch.device("meta"):
        model = BertModel(
            BertConfig(
                vocab_size=21128, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
            )
        )
    shape = EncoderShape(layers=24, hidden_size=1024, heads=16, intermediate_size=4096, vocab_size=21128)
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def _run_step(
    rank: int, world: int, encoder: str, output: str, checkpointing: bool, mini_batch: int | None
) -> dict[str, Any]:
    """One step as the trainer does it under DDP: bytes kept by autograd, moments, and collectives, of this rank."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from torch.nn.parallel import DistributedDataParallel

    from piccolo_st.losses import PiccoloLoss
    from tests.benchmarks.test_memory_benchmark import SavedBytes

    model = SentenceTransformer(modules=[Transformer(encoder), Pooling(HIDDEN, "mean")], device="cpu").train()
    if checkpointing:
        model[0].auto_model.gradient_checkpointing_enable({"use_reentrant": False})
    sent = {"gradients": 0, "gathered": 0, "scattered": 0}

    def hook(state, bucket):  # DDP reads the annotations, which would be text here
        sent["gradients"] += bucket.buffer().numel() * bucket.buffer().element_size()
        work = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return work.then(lambda done: done.value()[0] / world)

    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    wrapped.register_comm_hook(None, hook)
    loss = PiccoloLoss(model, mini_batch_size=mini_batch, chunk_tokens=None)
    loss.model = wrapped
    gather, scatter = distributed._all_gather, distributed._reduce_scatter

    def count(name: str, collective: Any) -> Any:
        def counted(output: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            large = value if value.numel() > output.numel() else output
            if large.is_floating_point():
                sent[name] += large.numel() * large.element_size() * (world - 1) // world
            return collective(output, value, *args, **kwargs)

        return counted

    distributed._all_gather, distributed._reduce_scatter = count("gathered", gather), count("scattered", scatter)
    generator = torch.Generator().manual_seed(rank)
    columns = [
        {
            "input_ids": torch.randint(5, 60, (ROWS, LENGTH), generator=generator),
            "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.long),
            "token_type_ids": torch.zeros(ROWS, LENGTH, dtype=torch.long),
        }
        for _ in range(2)
    ]
    optimizer = torch.optim.AdamW(model.parameters())
    saved = SavedBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda holder: holder.tensor):
        value = loss(columns)
        value.backward()
    distributed._all_gather, distributed._reduce_scatter = gather, scatter
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    optimizer.step()
    moments = sum(v.nbytes for state in optimizer.state.values() for k, v in state.items() if k != "step")
    return {"kept": saved.highest, "moments": moments, **sent}


@pytest.mark.parametrize(
    ("checkpointing", "mini_batch"),
    [(False, None), (True, None), (False, 4)],
    ids=["plain", "checkpointing", "caching"],
)
def test_a_measured_step_is_what_was_planned(
    tmp_path: Path, encoder: Path, checkpointing: bool, mini_batch: int | None
) -> None:
    options = ["--train.activation_checkpointing", str(checkpointing).lower()]
    if mini_batch:
        options += ["--loss.mini_batch_size", str(mini_batch)]
    plan = planned(tmp_path, encoder, *options)
    measured = run_ranks(_run_step, 2, str(encoder), str(tmp_path), checkpointing, mini_batch)[0]
    assert measured["moments"] == plan.optimizer
    kept = plan.activations + plan.embeddings
    if checkpointing:  # the hooks do not see the one layer that is computed again inside the backward pass
        kept -= ROWS * 2 * LENGTH * (8 * HIDDEN + 2 * 2 * HIDDEN) * 4
    assert kept / 1.5 < measured["kept"] < 1.5 * kept, f"measured {measured['kept']:,}, planned {kept:,}"
    assert measured["gathered"] + measured["scattered"] == plan.embeddings_sent
    if mini_batch is None:  # DDP reduces the gradients of the last mini-batch's backward alone
        assert 2 * (2 - 1) / 2 * measured["gradients"] == plan.gradients_sent


@pytest.mark.parametrize("way", ["", "autocast", "half", "an adapter", "checkpointed"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3_text", "modernbert", "bert"])
def test_a_step_of_each_kind_is_planned(tmp_path: Path, name: str, way: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from piccolo_st.losses import PiccoloLoss
    from piccolo_st.modeling.adapters import add_lora
    from tests.benchmarks.test_memory_benchmark import SavedBytes

    sizes = {"head_dim": 24} if name in DECODERS else {}  # not hidden_size / heads, as Qwen3's
    encoder = small_encoder(name, hidden_size=HIDDEN, intermediate_size=160, num_hidden_layers=4, **sizes)
    folder = saved_encoder(tmp_path / "model", model=encoder)
    adapter, autocast = way in ("an adapter", "checkpointed"), way == "autocast"
    options = ["--lora.rank", "8"] if adapter else []
    if way == "checkpointed":
        options += ["--train.activation_checkpointing", "true"]
    if autocast:
        options += ["--train.bf16", "true"]
    if way == "half":
        options += ["--model.dtype", "bfloat16"]
    plan = planned(tmp_path, Path(folder), "--plan.processes", "1", *options)
    model = SentenceTransformer(modules=[Transformer(folder), Pooling(HIDDEN, "mean")], device="cpu").train()
    if way == "half":
        model = model.bfloat16()
    assert plan.parameters == sum(weight.numel() for weight in model.parameters())
    if adapter:
        pytest.importorskip("peft")
        add_lora(model, LoraSettings(rank=8))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert plan.trained == sum(weight.numel() for weight in trained)
    assert plan.weights == sum(weight.nbytes for weight in model.parameters())
    if way == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    generator, mask = torch.Generator().manual_seed(0), torch.ones(ROWS, LENGTH, dtype=torch.long)
    columns = [
        {"input_ids": torch.randint(5, 250, mask.shape, generator=generator), "attention_mask": mask} for _ in range(2)
    ]
    saved, optimizer = SavedBytes(model), torch.optim.AdamW(trained)
    with (
        torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda holder: holder.tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        PiccoloLoss(model, chunk_tokens=None)(columns).backward()
    used = {id(weight): weight for weight in trained if weight.grad is not None}
    optimizer.step()
    moments = sum(v.nbytes for state in optimizer.state.values() for k, v in state.items() if k != "step")
    unused = sum(weight.nbytes for weight in trained if id(weight) not in used)  # the pooler that BERT carries along
    kept = plan.activations + plan.embeddings
    if way == "checkpointed":  # the hooks do not see the one layer that is computed again inside the backward pass
        kept = plan.embeddings + ROWS * 2 * LENGTH * (1 + 4) * HIDDEN * 4
    needed, measured = kept + plan.optimizer + plan.gradients, saved.highest + moments + moments // 2 + 3 * unused
    print(f"{name}, {way or 'whole'}: planned {needed:,} bytes, measured {measured:,}")
    assert moments + 2 * unused == plan.optimizer
    apart = 1.2 if way == "checkpointed" else 1.05
    assert needed / apart < measured < apart * needed


@pytest.mark.parametrize("options", [[], ["--train.bf16", "true"], ["--train.activation_checkpointing", "true"]])
@pytest.mark.parametrize("mib", [8, 24])
def test_auto_is_what_fits_a_gpu(tmp_path: Path, encoder: Path, options: list[str], mib: int) -> None:
    gpu = ["--plan.gpu_memory_gib", str(mib / 1024), *options]
    whole = planned(tmp_path, encoder, *options)
    auto = planned(tmp_path, encoder, "--loss.mini_batch_num_tokens", "auto", *gpu)
    usable = 0.9 * mib * 2**20
    if mib == 24:
        assert auto == whole
        return
    assert usable - 20_000 < auto.memory <= usable  # a token more takes less than that
    assert auto.activations < whole.activations
    assert replace(auto, activations=whole.activations) == whole


def test_auto_on_a_gpu_counts_what_is_free_and_the_weights_that_are_there(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model = SentenceTransformer(modules=[Transformer(str(encoder)), Pooling(HIDDEN, "mean")], device="cpu")
    config = configured(tmp_path, encoder, "--loss.mini_batch_num_tokens", "auto", "--data.num_negatives", "1")
    negative = Dataset.from_dict({"query": ["问"], "positive": ["答"], "negatives": [["一", "二", "三"]]})
    data = DatasetDict({"few": Dataset.from_dict({"query": ["问"], "positive": ["答"]}), "many": negative})
    assert mini_batch_tokens(config, model, data) is None, "without a GPU"
    monkeypatch.setattr(PiccoloTrainingArguments, "device", torch.device("cuda", 0))
    free = {"driver": 40 << 20, "reserved": 3 << 20, "allocated": 1 << 20}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free["driver"], 80 << 30))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: free["reserved"])
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: free["allocated"])
    assert mini_batch_tokens(config, model, data) is None, "the batch fits"
    free["driver"] = 5 << 20
    plan = replace(config.plan, processes=1, negatives=1)
    fits = tokens_that_fit(replace(config, plan=plan), encoder_shape(config), 7 << 20)
    assert LENGTH < fits < ROWS * 3 * LENGTH
    assert mini_batch_tokens(config, model, data) == fits
    unlimited = replace(config, data=replace(config.data, num_negatives=None))
    free["driver"] = 25 << 20
    assert mini_batch_tokens(config, model, data) is None
    assert mini_batch_tokens(unlimited, model, data), "the rows bring three negatives"
    free["driver"] = 0
    with pytest.raises(InputError, match=rf"room for one text of {LENGTH} tokens.*got 0\.0 GiB, into which 0 tokens"):
        mini_batch_tokens(config, model, data)


def test_zero_and_half_precision(tmp_path: Path, encoder: Path) -> None:
    full = planned(tmp_path, encoder)
    half = planned(tmp_path, encoder, "--plan.zero_stage", "1", "--train.bf16", "true")
    assert full.optimizer == 8 * full.parameters and full.weights == 4 * full.parameters
    assert half.optimizer == 12 * full.parameters // 2 and half.weights == half.gradients == 2 * full.parameters
    assert half.gradients_sent == full.gradients_sent / 2 and half.embeddings_sent == full.embeddings_sent
    kept = planned(tmp_path, encoder, "--model.dtype", "bfloat16")
    assert kept.optimizer == 4 * full.parameters and 2 * kept.weights == kept.gradients == 4 * full.parameters  # DDP's


def test_steps_and_hours(tmp_path: Path, encoder: Path) -> None:
    rows = ["--train.max_steps", "-1", "--plan.rows", "3201", "--train.gradient_accumulation_steps", "2"]
    found = planned(tmp_path, encoder, *rows, "--plan.tokens_per_second", "1000")
    assert found.steps == 51 and found.samples == 51 * 64
    assert found.hours == pytest.approx(51 * 2 * ROWS * 2 * LENGTH / 1000 / 3600)
    assert "assuming 1,000 tokens a second and process" in found.table()
    with pytest.raises(InputError, match=r"the length of the run is unknown; set train\.max_steps, or plan\.rows"):
        planned(tmp_path, encoder, "--train.max_steps", "-1")


def _planned_with(tmp_path: Path, encoder: Path, datasets: dict[str, dict[str, Any]], *overrides: str) -> Estimate:
    own = {name: {"source": "rows.jsonl", "task": "retrieval", **one} for name, one in datasets.items()}
    return planned(tmp_path, encoder, "--data.mixture", json.dumps({"datasets": own}), *overrides)


def test_a_multiple_of_the_batch_is_planned_as_a_batch_of_that_size(tmp_path: Path, encoder: Path) -> None:
    rows = ["--plan.rows", "3200", "--train.max_steps", "-1", "--plan.tokens_per_second", "1000"]
    eightfold = _planned_with(tmp_path, encoder, {"one": {}}, *rows, "--data.batch_size", str(8 * ROWS))
    assert _planned_with(tmp_path, encoder, {"one": {"batch_multiple": 8}}, *rows) == eightfold

    # The largest batch has the most tokens, not rows: 32 of 10 tokens a text beside 16 of 48.
    short = {"query_length": 10, "document_length": 10, "batch_multiple": 2}
    mixed = _planned_with(tmp_path, encoder, {"short": short, "long": {}}, "--data.batch_size", str(ROWS))
    plain = _planned_with(tmp_path, encoder, {"long": {}})
    assert mixed.activations == plain.activations and mixed.embeddings == 2 * plain.embeddings
    assert mixed.tokens_per_step == plain.tokens_per_step and mixed.samples == plain.samples * 3 // 2
    both = {"long": {}, "far": {**short, "query_length": 2 * LENGTH}}
    assert _planned_with(tmp_path, encoder, both).tokens_per_step == 2 * ROWS * (2 * LENGTH + 10)

    gpu = ["--loss.mini_batch_num_tokens", "auto", "--plan.gpu_memory_gib", str(24 / 1024)]
    whole, cut = (_planned_with(tmp_path, encoder, {"one": one}, *gpu) for one in ({}, {"batch_multiple": 8}))
    assert whole.activations < cut.activations and cut.memory <= 0.9 * 24 * 2**20


def test_flops_are_six_for_each_weight_and_token() -> None:
    shape = EncoderShape(layers=24, hidden_size=1024, heads=16, intermediate_size=4096, vocab_size=21128)
    products = 24 * 12 * 1024 * 1024
    assert shape.flops(1000, 0, 1) == pytest.approx(6 * products * 1000)


Command = Callable[..., tuple[int, str, str]]


def test_plan_is_printed_and_nothing_is_made(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown, _ = command("pretrain", "pretrain-large", "--plan")
    assert code == 0
    for part in ("activations", "sent by a process in a step", "12,208", "assuming 35% of 312 TFLOP/s"):
        assert part in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--train.activation_checkpointing", "false"],
            "most of it is activations, .* GiB; set loss.mini_batch_num_tokens",
        ),
        (["--plan.gpu_memory_gib", "2"], r"must fit into 1.8 GiB of each GPU, 2 GiB less a reserve of 10%, got"),
        (
            ["--data.batch_size", "200000", "--loss.mini_batch_size", "8"],
            "most of it is embeddings, .* GiB; lower data.batch_size",
        ),
        (["--plan.encoder", "{layers: 2}"], "the shape of the encoder must have layers, .*, got layers"),
        (["--plan.encoder", "null"], "the configuration of model.name_or_path cannot be loaded"),
        (["--plan.zero_stage", "3"], "plan.zero_stage must be one of 0, 1, got 3"),
        (
            ["--lora.rank", "8", "--train.average_with_start", "0.5"],
            "average_with_start must be 0 with an adapter, .* got 0.5; write --train.average_with_start 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(command: Command, arguments: list[str], said: str) -> None:
    code, _, error = command("pretrain", "pretrain-large", "--plan", *arguments)
    assert code == 2 and re.search(said, error), error
