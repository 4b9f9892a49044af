"""The errors that a person can cause: what is done, and the sentence that answers it, by the module that finds it.

A row's sentence has the parts that must stand in it: the rule, the value, the place and the remedy; … is any words
between them, such as those of another library. TMP is the row's own directory, ENCODER a tiny encoder, MODEL a saved
model. A row without a code is a call from Python that raises a ValueError or TypeError; all others end a command line
(or a call in its place) with that code.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from piccolo_st.__main__ import dispatch

ROOT = Path(__file__).parent.parent.parent
DIGITS = "一二三四五六七八九十"
NUMBERS = [a + b for a in DIGITS for b in DIGITS]
FAQ = [{"query": f"数{n}", "positive": f"{n}的结果"} for n in NUMBERS]
PAIRS = [
    {"sentence1": n, "sentence2": m, "score": float(n[0] == m[0])} for n, m in zip(NUMBERS, NUMBERS[5:], strict=False)
]


def jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# Data that rows plant.
STS = {"name": "Own", "type": "STS", "data": "pairs.jsonl"}
BEIR = {
    "beir/corpus.jsonl": jsonl([{"_id": "d1", "text": "猫"}, {"_id": "d2", "text": "狗"}]),
    "beir/queries.jsonl": jsonl([{"_id": "q1", "text": "鱼"}]),
}
SEARCH = {"name": "Own", "type": "Retrieval", "data": "beir"}
JUDGED = "query-id\tcorpus-id\tscore\n"
OTHER_LABELS = [{"text": "猫", "label": "a"}, {"text": "狗", "label": "a"}, {"text": "鱼", "label": "a"}]


class World:
    """Where a row acts: a directory of its own with a small run in it, and models that all rows share."""

    def __init__(self, tmp: Path, encoder: Path, model: Path, patch: pytest.MonkeyPatch) -> None:
        self.tmp, self.encoder, self.model, self.patch = tmp, encoder, model, patch
        self.write("faq.jsonl", jsonl(FAQ))
        self.write("pairs.jsonl", jsonl(PAIRS))
        self.write(
            "mixture.yaml",
            {
                "datasets": {
                    "faq": {"source": "faq.jsonl", "task": "retrieval"},
                    "pairs": {"source": "pairs.jsonl", "task": "sts"},
                }
            },
        )
        self.write(
            "run.yaml",
            {
                "model": {"name_or_path": str(encoder), "query_length": 16, "document_length": 32},
                "data": {"mixture": {"file": str(tmp / "mixture.yaml")}, "batch_size": 8},
                "train": {"output_dir": str(tmp / "run"), "max_steps": 2, "save_strategy": "no",
                          "disable_tqdm": True},
            },
        )  # fmt: skip

    def write(self, name: str, content: Any) -> Path:
        """Write text, bytes, or anything else as YAML; or let the content write itself."""
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else yaml.safe_dump(content, allow_unicode=True)
            path.write_text(text, encoding="utf-8")
        return path

    def named(self, text: str) -> str:
        """The text with its place holders filled in."""
        return (
            text.replace("TMP", str(self.tmp)).replace("ENCODER", str(self.encoder)).replace("MODEL", str(self.model))
        )

    def without(self, *packages: str) -> None:
        """Let a package be as if it were not installed."""
        for package in packages:
            self.patch.setitem(sys.modules, package, None)
        if "mteb" in packages:  # the one that modules of ours import at their top, which would not miss it any more
            self.patch.delitem(sys.modules, "piccolo_st.evaluation.runner", raising=False)


Act = Callable[[World], Any]


@dataclass(frozen=True)
class Row:
    """One error: what is done, the parts of what is said, and the exit code."""

    name: str
    act: Act
    sentence: str
    code: int | None = 2


def run(name: str, *arguments: str, files: Mapping[str, Any] | None = None, without: Sequence[str] = ()) -> Act:
    """A command line; ``files`` are planted first, ``without`` are packages that are not there."""

    def act(world: World) -> Any:
        for path, content in (files or {}).items():
            world.write(path, content)
        world.without(*without)
        return dispatch([name, *(world.named(argument) for argument in arguments)])

    return act


def finetune(*arguments: str, **options: Any) -> Act:
    return run("finetune", "TMP/run.yaml", *arguments, **options)


def ablation(content: Any, *arguments: str, without: Sequence[str] = ()) -> Act:
    return run("ablation", "TMP/ablation.yaml", *arguments, files={"ablation.yaml": content}, without=without)


def faq(*fields: str, rows: Any = None, files: Mapping[str, Any] | None = None, without: Sequence[str] = ()) -> Act:
    """The fine-tuning run with its dataset 'faq' changed: ``"field=value"``, and other rows."""
    planted = {
        **(files or {}),
        **({} if rows is None else {"faq.jsonl": rows if isinstance(rows, str) else jsonl(rows)}),
    }
    flags = [field if field[:2] == "--" else f"--data.mixture.datasets.faq.{field}" for field in fields]
    return finetune(*flags, files=planted, without=without)


def prepare(step: str, *arguments: str, **options: Any) -> Act:
    return run("prepare", step, "TMP/mixture.yaml", "--data.output", "TMP/out", *arguments, **options)


def tasks(*entries: Mapping[str, Any], files: Mapping[str, Any] | None = None, model: str = "TMP/nowhere") -> Act:
    """The evaluation of local tasks; what is wrong with them is said before the model is loaded."""
    planted = {"own.yaml": {"tasks": list(entries)}, **(files or {})}
    return run("evaluate", model, "--benchmark", "TMP/own.yaml", "--output", "TMP/results", files=planted)


def call(function: str, *arguments: Any, without: Sequence[str] = (), **options: Any) -> Act:
    """A call of ``package.module:function``; arguments that are functions get the World and give the value."""

    def value(argument: Any, world: World) -> Any:
        if isinstance(argument, str):
            return world.named(argument)
        return argument(world) if callable(argument) else argument

    def act(world: World) -> Any:
        world.without(*without)
        module, _, names = function.partition(":")
        target: Any = importlib.import_module(f"piccolo_st.{module}")
        for name in names.split("."):
            target = getattr(target, name)
        return target(
            *(value(argument, world) for argument in arguments),
            **{name: value(argument, world) for name, argument in options.items()},
        )

    return act


# What rows of the table take as arguments.


def model(world: World, **settings: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(world.model), device="cpu")
    for name, value in settings.items():
        setattr(loaded[0], name, value)
    return loaded


def wrapped_encoder(world: World) -> Any:
    import torch

    loaded = model(world)
    loaded[0].auto_model = torch.nn.Sequential(loaded[0].model)  # as get_peft_model wraps it
    return loaded


def tokenizer(world: World) -> Any:
    return model(world).tokenizer


def endless_tokenizer(world: World) -> Any:
    """One that ends texts with no special token, and has none to end them with."""
    from tokenizers import processors

    found = tokenizer(world)
    found.backend_tokenizer.post_processor = processors.ByteLevel()
    found.eos_token = None
    return found


def without_positions(world: World) -> Any:
    loaded = model(world)
    loaded[0].auto_model.embeddings.position_embeddings = None  # as an encoder with rotary ones
    return loaded


def static(world: World) -> Any:
    """A fine-tuning run without instructions, of a model that looks its tokens' embeddings up."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    SentenceTransformer(modules=[StaticEmbedding(tokenizer(world), embedding_dim=4)]).save(str(world.tmp / "static"))
    return finetune("--model.name_or_path", "TMP/static", "--model.instructions", "none")(world)


def broken_weights(world: World) -> str:
    """A saved model whose embeddings are NaN."""
    loaded = model(world)
    loaded[0].auto_model.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    loaded.save_pretrained(str(world.tmp / "broken"))
    return str(world.tmp / "broken")


def dataset(**columns: Any) -> Callable[[World], Any]:
    from datasets import Dataset

    return lambda world: Dataset.from_dict(columns)


def own_negatives_loss(world: World) -> Any:
    from piccolo_st.losses import OwnNegativesLoss

    return OwnNegativesLoss(model(world))


def distil(text: str) -> Act:
    """A batch of one pair without scores."""

    def act(world: World) -> Any:
        from piccolo_st.losses import DistillationLoss

        loaded = model(world)
        return DistillationLoss(loaded)([dict(loaded.preprocess([text])) for _ in range(2)])

    return act


def benchmark(world: World) -> Any:
    from piccolo_st.evaluation import C_MTEB_35

    return C_MTEB_35


def shape(*sizes: int, dtype: str = "float32") -> Callable[[World], Any]:
    def build(world: World) -> Any:
        import torch

        return torch.zeros(sizes, dtype=getattr(torch, dtype))

    return build


def collator(**options: Any) -> Callable[[World], Any]:
    def build(world: World) -> Any:
        from piccolo_st import PiccoloDataCollator

        return PiccoloDataCollator(model(world).preprocess, **options)

    return build


def collate(*rows: Mapping[str, Any]) -> Act:
    return lambda world: collator()(world)(rows)


def batch(**options: Any) -> Act:
    """A sampler over two datasets of 20 and 30 rows."""

    def act(world: World) -> Any:
        from torch.utils.data import ConcatDataset

        from piccolo_st import HomogeneousBatchSampler

        parts = [dataset(query=["数"] * rows)(world) for rows in (20, 30)]
        return HomogeneousBatchSampler(ConcatDataset(parts), **{"batch_size": 4, **options})

    return act


def checkpoint(manifest: Any = None, name: str = "checkpoint-3", **files: str) -> Act:
    """Going on from a checkpoint with such a manifest and files."""
    path = f"ckpt/{name}/"
    planted: dict[str, Any] = {path + file.replace("__", "."): text for file, text in files.items()}
    planted[path + "config.json"] = "{}"
    if manifest is not None:
        planted[path + "manifest.json"] = manifest if isinstance(manifest, str) else json.dumps(manifest)

    def act(world: World) -> Any:
        from piccolo_st.training.manifest import verify

        for file, content in planted.items():
            world.write(file, content)
        return verify(world.tmp / "ckpt" / name)

    return act


def found(world: World, **run: Any) -> Any:
    from piccolo_st.training.manifest import Checkpoint

    before = {"resumable": True, "signature": {"seed": 1}, "engine": "plain", "world_size": 1, "environment": {}}
    return Checkpoint(world.tmp / "run" / "checkpoint-3", 3, {**before, **run})


def decide(before: Mapping[str, Any], now: Mapping[str, Any]) -> Act:
    def act(world: World) -> Any:
        from piccolo_st.training.resume import decide

        return decide(found(world, **before), {**found(world).run, **now}, accept_changes=False)

    return act


def relevant(**relevant: Any) -> Act:
    return call("evaluation.in_training:RetrievalEvaluator", {"q": "猫"}, {"d": "狗"}, relevant, "faq")


def examples(value: Sequence[float], ids: Sequence[str]) -> Callable[[Path], None]:
    """The stored examples of a result, as a file that writes itself."""

    def write(path: Path) -> None:
        import numpy as np

        from piccolo_st.evaluation import per_example

        arrays = {"dev/default": {"id": np.array(ids), "value": np.array(value)}}
        path.write_text(json.dumps({"task_name": path.stem}))
        per_example.save(arrays, per_example.examples_path(path))

    return write


def parquet(**columns: Any) -> Callable[[Path], None]:
    """Columns as a file that writes itself."""

    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)

    return write


def own_samplers(world: World) -> list[Any]:
    from torch.utils.data import BatchSampler, SequentialSampler

    return [BatchSampler(SequentialSampler([1, 2]), 1, False)]


def training_arguments(world: World, **settings: Any) -> Any:
    """Training arguments, with settings that would start something if they were given at once."""
    from piccolo_st.training.training_arguments import PiccoloTrainingArguments

    arguments = PiccoloTrainingArguments(output_dir=str(world.tmp))
    for name, value in settings.items():
        setattr(arguments, name, value)
    return arguments


def pool(**features: Any) -> Act:
    """The pooling without instructions, of embeddings of four tokens."""

    def act(world: World) -> Any:
        from piccolo_st import InstructionPooling

        pooling = InstructionPooling(8, include_instruction=False, instruction_ids=[[1]])
        given = {"token_embeddings": shape(1, 4, 8), "attention_mask": shape(1, 4), **features}
        return pooling({name: value(world) for name, value in given.items()})

    return act


def two_encoders(world: World) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=[model(world)[0], model(world)[0]], device="cpu")


def space_without_gradio(world: World) -> Any:
    """The files of a Space where gradio, whose version they name, is not installed."""
    from importlib.metadata import PackageNotFoundError

    from piccolo_st.demo import space

    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    world.patch.setattr(space, "version", version)
    return space.space_files("org/name", ["猫"])


def leaking(world: World) -> str:
    """A saved model whose card has a token in it."""
    shutil.copytree(world.model, world.tmp / "leaking")
    world.write("leaking/README.md", "hf_" + "a" * 34)
    return str(world.tmp / "leaking")
