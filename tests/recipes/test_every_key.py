"""Every key has an effect: whoever reads it gets something else when it changes, or it is refused with a reason.

The table is tests/recipes/every_key.py. A setting without a row fails; so does a row whose setting changes nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantization
from torch import nn

from piccolo_st.config import parse_run
from piccolo_st.data.specs import DatasetSpec, HoldoutSpec, PresetSpec
from piccolo_st.errors import InputError
from piccolo_st.losses import DistillationSettings, PiccoloLoss, SINCERELoss, TeacherSettings
from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.remining import ReminingSettings
from piccolo_st.modeling.packed.packing import packs
from piccolo_st.modeling.tiny_bert import EncoderSettings
from piccolo_st.releasing import RunRecord
from piccolo_st.schema import build
from piccolo_st.training.estimate import show_plan
from piccolo_st.training.run import TrainingRun
from piccolo_st.training.training_arguments import FinetuneConfig, PiccoloTrainingArguments, PretrainConfig
from piccolo_st.training.unread import LOSS_OF_ALL, unread
from tests.recipes import every_key as table
from tests.recipes.every_key import FAQ, Row

NUMBERS = [a + b for a in "一二三四五六七八九十" for b in "一二三四五六七八九十"]
PACKAGE = Path(inspect.getfile(TrainingRun)).parent

SECTIONS = FinetuneConfig.sections()

# Where a group of settings stands in a configuration, the class that declares it, and its rows.
GROUPS: dict[str, tuple[str, type, dict[str, Row]]] = {
    "model": ("model", SECTIONS["model"], table.MODEL),
    "lora": ("lora", SECTIONS["lora"], table.LORA),
    "data": ("data", SECTIONS["data"], table.DATA),
    "loss": ("loss", SECTIONS["loss"], table.LOSS),
    "evaluation": ("evaluation", SECTIONS["evaluation"], table.EVALUATION),
    "train": ("train", PiccoloTrainingArguments, table.TRAIN),
    "plan": ("plan", SECTIONS["plan"], table.PLAN),
    "dataset": (FAQ, DatasetSpec, table.DATASET),
    "holdout": (f"{FAQ}.holdout", HoldoutSpec, table.HOLDOUT),
    "preset": (f"{FAQ}.preset", PresetSpec, table.PRESET),
    "mining": ("data.mining", MiningSettings, table.MINING),
    "remining": ("data.remining", ReminingSettings, table.REMINING),
    "distillation": ("loss.distillation", DistillationSettings, table.DISTILLATION),
    "teacher": ("loss.distillation.teachers", TeacherSettings, table.TEACHER),
    "build": ("model.build", EncoderSettings, table.ENCODER),
}
ROWS = [pytest.param(group, key, id=f"{group}.{key}") for group, (_, _, rows) in GROUPS.items() for key in rows]
COUNTS: Counter[str] = Counter()


def keys_of(cls: type) -> list[str]:
    """The settings a class declares; of the training arguments those of this package."""
    own = inspect.get_annotations(cls) if cls is PiccoloTrainingArguments else None
    return [item.name for item in dataclasses.fields(cls) if own is None or (item.name in own)]


def inherited() -> list[str]:
    return [
        f.name for f in dataclasses.fields(PiccoloTrainingArguments) if f.name not in keys_of(PiccoloTrainingArguments)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path) -> Path:
    """The data of all rows, and the run that each of them changes."""
    root = tmp_path_factory.mktemp("every-key")
    later = [*NUMBERS[7:], *NUMBERS[:7]]
    faq = [
        {"query": f"数{a}{'天' * (i % 5)}", "positive": f"{a}的结果fall{'地' * (i % 20)}"}
        for i, a in enumerate(NUMBERS)
    ]
    negatives = [[f"{b}的结果", f"{a}月"] for a, b in zip(NUMBERS, later, strict=True)]
    write(root / "faq.jsonl", faq)
    write(root / "other.jsonl", faq[:90])
    write(root / "corpus.jsonl", [{"text": f"{a}的月"} for a in NUMBERS])
    write(root / "listed.jsonl", [{**row, "positive": [row["positive"], row["positive"] + "水"]} for row in faq])
    write(root / "negatives.jsonl", [{**row, "negative": own} for row, own in zip(faq, negatives, strict=True)])
    scores = [{"pos_scores": [i / 10], "neg_scores": [1.0, -2.0]} for i in range(100)]
    write(root / "scored.jsonl", [{**row, "negative": own, **found}
                                  for row, own, found in zip(faq, negatives, scores, strict=True)])  # fmt: skip
    write(root / "faulty.jsonl", [{**row, "query": "" if i == 3 else row["query"]} for i, row in enumerate(faq)])
    shutil.copytree(encoder_dir, root / "encoder")
    shutil.copytree(encoder_dir, root / "coded")  # a checkpoint that brings its code
    config = json.loads((root / "coded" / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "coded", "auto_map": {"AutoConfig": "coded.Config", "AutoModel": "coded.Model"}}
    (root / "coded" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (root / "coded" / "coded.py").write_text(
        "from transformers import BertConfig, BertModel\n\n\n"
        "class Config(BertConfig):\n    model_type = 'coded'\n\n\n"
        "class Model(BertModel):\n    config_class = Config\n"
    )
    labels = ("entailment", "contradiction", "neutral")
    write(root / "nli.jsonl", [{"premise": f"天{a}", "hypothesis": f"{b}{k}", "label": k}
                               for a, b in zip(NUMBERS, later, strict=True) for k in labels])  # fmt: skip
    write(root / "pairs.jsonl", [{"sentence1": f"猫{a}", "sentence2": f"狗{b}", "score": (i % 3) / 2}
                                 for i, (a, b) in enumerate(zip(NUMBERS, later, strict=True))])  # fmt: skip
    write(root / "topics.jsonl", [{"text": f"{a}河", "label": "山水云"[i % 3]} for i, a in enumerate(NUMBERS)])
    datasets = {
        "faq": {"source": "faq.jsonl", "task": "retrieval",
                "holdout": {"queries": 5, "min_corpus": 10, "max_corpus": 30}},
        "negatives": {"source": "negatives.jsonl", "task": "retrieval"},
        "pairs": {"source": "pairs.jsonl", "task": "sts"},
        "topics": {"source": "topics.jsonl", "task": "classification"},
    }  # fmt: skip
    small = {"vocab_size": 300, "min_frequency": 1, "hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 32}
    content = {
        "model": {"name_or_path": str(encoder_dir), "query_length": 16, "document_length": 24, "build": small},
        "data": {"mixture": {"root": str(root), "datasets": datasets}, "batch_size": 8},
        "train": {"output_dir": str(root / "run"), "max_steps": 4, "save_strategy": "no"},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return root


def configure(files: Path, settings: dict[str, Any]) -> FinetuneConfig:
    arguments = [
        part for key, value in settings.items() for part in (f"--{key}", json.dumps(value, ensure_ascii=False))
    ]
    return parse_run([str(files / "run.yaml"), *arguments], FinetuneConfig, files / "run.yaml")


def simple(module: nn.Module, model: nn.Module) -> Any:
    """The settings of a loss and of the losses inside it."""
    own = {
        key: value for key, value in vars(module).items() if isinstance(value, int | float | str | list | tuple | None)
    }
    own |= {key: dataclasses.asdict(value) for key, value in vars(module).items() if dataclasses.is_dataclass(value)}
    inside = [simple(child, model) for child in module.children() if child is not model]
    return [type(module).__name__, own, inside]


def observe(run: TrainingRun, mined: list[Any]) -> dict[str, Any]:
    """What each part of a run got that is built and ready to train."""
    model, trainer = run.model, run.trainer
    sampler = trainer.get_train_dataloader().batch_sampler
    sampler = getattr(sampler, "batch_sampler", sampler)
    batches: dict[str, Any] = {}
    for batch in trainer.get_train_dataloader():
        plain = {key: value.tolist() if torch.is_tensor(value) else value for key, value in batch.items()}
        batches.setdefault(str(batch.get("dataset_name")), plain)
    state = {name: (tuple(w.shape), str(w.dtype), float(w.float().sum())) for name, w in model.state_dict().items()}
    dropouts = sorted(float(module.p) for module in model.modules() if isinstance(module, nn.Dropout))
    encoder = model[0].auto_model.config
    heads = [getattr(encoder, name, None) for name in ("num_attention_heads", "_attn_implementation", "is_causal")]
    searches = getattr(trainer.evaluator, "evaluators", [])
    return {
        "model": [state, dropouts, heads, model[1].get_config_dict(), len(model.tokenizer)],
        "prompts": dict(model.prompts),
        "adapter": [module.scaling for module in model.modules() if hasattr(module, "lora_A")],
        "modules": [[type(m).__name__ for m in model.modules()], packs(model)],
        "batches": batches,
        "sampler": {name: str(value) for name, value in vars(sampler).items() if name in ("plan", "batch_size")}
        | {"length": len(sampler), "names": sorted(batches), "signature": sampler.plan.signature()},
        "rows": {name: dataset[:] for name, dataset in run.train_dataset.items()},
        "losses": {name: simple(loss, model) for name, loss in trainer.loss.items()},
        "evaluators": [[e.name, e.batch_size, sorted(e.queries), sorted(e.corpus)] for e in searches],
        "arguments": {k: str(v) for k, v in trainer.args.to_dict().items() if "dir" not in k},
        "schedule": re.findall(r"steps +.*", run.describe()),
        "guard": trainer.guard.limit if hasattr(trainer.guard, "limit") else vars(trainer.guard).copy(),
        "output": str(run.output),
        "threads": torch.get_num_threads(),
        "card": [sorted(dataset) for dataset in run.trainer.model.model_card_data.train_datasets],
        "report": [str(run.mixture.report), run.describe()],
        "unread": unread(run.config, run.mixture.specs.values()),
        "mined": mined,
        "remining": trainer.negatives and dataclasses.asdict(trainer.negatives.settings),
    }  # fmt: skip


_SEEN: dict[str, dict[str, Any]] = {}


def built(files: Path, settings: dict[str, Any], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is seen of a run with these settings, built once."""
    name = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    if name not in _SEEN:
        mined: list[Any] = []
        encode, by_faiss = SentenceTransformer.encode_document, quantization.semantic_search_faiss

        def record(self: Any, texts: list[str], **kwargs: Any) -> Any:
            mined.append([len(texts), self.get_embedding_dimension(), kwargs.get("batch_size")])
            return encode(self, texts, **kwargs)

        def record_faiss(*args: Any, **kwargs: Any) -> Any:
            mined.append("faiss")
            return by_faiss(*args, **kwargs)

        patch.setattr(SentenceTransformer, "encode_document", record)
        patch.setattr(quantization, "semantic_search_faiss", record_faiss)
        patch.setattr("piccolo_st.mining.search.stored_embeddings", lambda folder, texts, encode: encode(list(texts)))
        given = {"train.output_dir": str(files / f"run-{len(_SEEN)}"), **settings}
        threads = torch.get_num_threads()
        try:
            _SEEN[name] = observe(TrainingRun(configure(files, given)), mined)
        finally:
            torch.set_num_threads(threads)
    return _SEEN[name]


@pytest.mark.parametrize(("group", "key"), ROWS)
def test_every_key_has_an_effect(group: str, key: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _, rows = GROUPS[group]
    row = rows[key]
    if group == "lora":
        pytest.importorskip("peft")
    monkeypatch.chdir(files)
    changed = {**row.beside, row.at or f"{place}.{key}": row.value}
    if row.refused:
        with pytest.raises(InputError, match=re.escape(row.refused)):
            if group == "plan":
                show_plan(configure(files, changed))
            else:
                TrainingRun(configure(files, {"train.output_dir": str(files / "refused"), **changed}))
        COUNTS["refused"] += 1
    elif row.changes == "section":
        kept = build(GROUPS[group][1], {"output_dir": str(files), key: row.value}, place)
        assert getattr(kept, key) in (row.value, [row.value])
        COUNTS["handed to transformers as it is"] += 1
    elif row.changes == "plan":
        assert show_plan(configure(files, row.beside)) != show_plan(configure(files, changed))
        COUNTS["took effect"] += 1
    else:
        before, after = built(files, row.beside, monkeypatch), built(files, changed, monkeypatch)
        assert before[row.changes] != after[row.changes]
        COUNTS["told that it is not read" if row.changes == "unread" else "took effect"] += 1


def test_caching_that_is_left_to_the_machine_is_told(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    plain = built(files, {}, monkeypatch)
    auto = built(files, {"loss.mini_batch_num_tokens": "auto"}, monkeypatch)
    assert auto["losses"] == plain["losses"], "without a GPU nothing is cached"
    assert re.search(r"caching +none: a batch fits, or there is no GPU", auto["report"][1])
    assert "caching" not in plain["report"][1]


def test_a_checkpoint_that_brings_its_code_is_run_where_it_is_trusted(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    tasks = {"tasks": [{"name": "Pairs", "type": "STS", "data": str(files / "pairs.jsonl")}]}
    (files / "general.yaml").write_text(yaml.safe_dump(tasks), encoding="utf-8")
    trusted = {"model.name_or_path": "coded", "model.trust_remote_code": True, "train.max_steps": 2}
    trusted |= {"train.output_dir": str(files / "trusted"), "evaluation.general": [str(files / "general.yaml")]}
    settings = configure(files, trusted)
    run = TrainingRun(settings)
    assert type(run.model[0].auto_model).__module__.startswith("transformers_modules.coded")
    run.train()
    assert f'SentenceTransformer("{files / "trusted" / "model"}", trust_remote_code=True)' in run.summary()
    again = TrainingRun(settings)
    again.train()
    record = RunRecord.read(files / "trusted")
    assert again.trainer.finished_before and record.content_hash
    assert {gain["task"] for gain in record.gains} >= {"faq", "Pairs"}


@pytest.mark.parametrize("key", inherited())
def test_an_inherited_key_arrives_or_is_refused(key: str, files: Path, tmp_path: Path) -> None:
    """Whoever reads a field of the parent class reads it off trainer.args, which are the section itself."""
    cls = PiccoloTrainingArguments
    if key in cls.REPLACED or key in cls.UNREAD:
        with pytest.raises(InputError, match=rf"train\.{key} "):
            configure(files, {f"train.{key}": 1})
        COUNTS["refused"] += 1
        return
    if key in table.ELSEWHERE:
        COUNTS["handed to transformers as it is"] += 1
        return
    field = next(item for item in dataclasses.fields(cls) if item.name == key)
    default = field.default
    value = table.INHERITED.get(key)
    if value is None:
        kind = str(field.type)
        value = not default if isinstance(default, bool) or "bool" in kind else 0.5 if "float" in kind else 3
        value = (
            "any"
            if not isinstance(value, bool) and "str" in kind and "float" not in kind and "int" not in kind
            else value
        )
    given = {"output_dir": str(tmp_path), key: value}
    found = getattr(build(cls, given, "train"), key)
    plain = getattr(build(cls, {"output_dir": str(tmp_path)}, "train"), key)
    assert found != plain, f"{key}={value!r} leaves {found!r}"
    COUNTS["took effect"] += 1


def test_the_section_is_what_the_trainer_reads(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    config = configure(files, {"train.output_dir": str(files / "read")})
    assert TrainingRun(config).trainer.args is config.train


def test_own_training_settings_are_read_somewhere() -> None:
    """What only a run to its end would show: tests/training/test_resume.py and others do; here, that somebody asks for
    it."""
    sources = {
        p.name: p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py") if p.name != "training_arguments.py"
    }
    for key in ("resume", "accept_changes", "max_non_finite_steps", "fast_dropout", "packing"):
        assert any(re.search(rf'args\.{key}\b|args, "{key}"|\["{key}"\]', text) for text in sources.values()), key


UNREAD = [
    ({"data.mining": {"num_negatives": 1}}, "data.mining: data.mining_model is empty"),
    ({"data.remining": {}}, "data.remining: data.mining_model is empty"),
    ({"data.mining_model": "random", "data.remining": {"rule": "hardest", "ceiling": 0.5}},
     "ceiling of data.remining: its rule is hardest"),
    ({"data.mining_model": "random", "data.mining": {"dimensions": 9}},
     "dimensions of data.mining: data.mining_model random does not read it"),
    ({f"{FAQ}.mining": {"seed": 2}}, "mining: data.mining_model is empty (dataset 'faq')"),
    ({"data.mining_model": "random", f"{FAQ}.mining": {"seed": 2}, f"{FAQ}.positives": "list"},
     "mining: rows that list their positives are not mined (dataset 'faq')"),
    ({f"{FAQ}.score_range": [0, 2]}, "score_range: its rows have no scores (dataset 'faq')"),
    ({f"{FAQ}.columns": {"label": "score"}}, "columns.label: loss.distillation is empty (dataset 'faq')"),
    ({f"{FAQ}.labels": ["a"]}, "labels: its rows have no classes (dataset 'faq')"),
    ({"data.mixture.datasets.pairs.query_length": 9},
     "query_length: its texts are cut at document_length (dataset 'pairs')"),
    ({"data.mixture.datasets.topics.preset": {"name": "classes", "threshold": 0.1}},
     "preset.threshold: the preset classes does not read it (dataset 'topics')"),
    ({"data.mixture.datasets.pairs.use": "evaluate", "data.mixture.datasets.pairs.repeats": 2},
     "repeats: it is for evaluation alone (dataset 'pairs')"),
    ({"data.mixing_exponent": 0.5}, "data.mixing_exponent: data.mixing is another"),
    ({"train.num_train_epochs": 3}, "train.num_train_epochs: train.max_steps is set"),
    ({"train.save_steps": 3}, "train.save_steps: train.save_strategy is no"),
    ({"train.hub_model_id": "a/b"}, "train.hub_model_id: train.push_to_hub is off"),
    ({"plan.rows": 10}, "plan.rows: train.max_steps is set"),
    ({"plan.mfu": 0.5}, "plan.mfu: they are read together, and one is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "line"), UNREAD, ids=[line for _, line in UNREAD])
def test_a_setting_that_nothing_reads_beside_the_others_is_told(
    settings: dict[str, Any], line: str, files: Path
) -> None:
    assert f"not read    {line}" in show_plan(configure(files, settings)).splitlines()
    assert line not in show_plan(configure(files, {}))


def test_what_only_retrieval_learns_from_is_told_where_nothing_is_for_retrieval(files: Path) -> None:
    teachers = {"teachers": [{"name_or_path": "self"}], "similarity_weight": 200}
    config = configure(files, {"loss.guide": "self", "loss.distillation": teachers, "loss.mini_batch_size": 4})
    faq, pairs = (DatasetSpec(task, source="", task=task) for task in ("retrieval", "sts"))
    without = dataclasses.replace(faq, loss={"guide": None, "distillation": None})
    told = [f"loss.{key}: no retrieval dataset is trained with it" for key in ("distillation", "guide")]
    for specs in ([pairs], [without, pairs], [dataclasses.replace(faq, use="evaluate"), pairs]):
        assert [
            line for line in unread(config, specs) if line.split(":")[0] in ("loss.distillation", "loss.guide")
        ] == told
    assert not set(told) & {*unread(config, [faq, without, pairs]), *unread(config)}
    of_retrieval = inspect.signature(PiccoloLoss).parameters.keys() - inspect.signature(SINCERELoss).parameters.keys()
    assert set(keys_of(SECTIONS["loss"])) - set(LOSS_OF_ALL) == of_retrieval | {"temperature", "distillation"}


def test_no_key_is_missing() -> None:
    missing = [f"{group}.{key}" for group, (_, cls, rows) in GROUPS.items() for key in keys_of(cls) if key not in rows]
    gone = [f"{group}.{key}" for group, (_, cls, rows) in GROUPS.items() for key in rows if key not in keys_of(cls)]
    assert not missing and not gone
    for name, cls in PretrainConfig.sections().items():  # stage 1 has other defaults of the same keys
        assert {f.name for f in dataclasses.fields(cls)} == {f.name for f in dataclasses.fields(SECTIONS[name])}
    rows = len(ROWS) + len(inherited())
    print(
        f"\n{rows} keys: " + ", ".join(f"{n} {what}" for what, n in COUNTS.most_common()) + f"; missing {len(missing)}"
    )
