"""What each setting of a run changes: the table of tests/recipes/test_every_key.py.

A row says another value of a key, and who must get something else then: a part of what ``observe`` sees of a run that
is built and ready to train, the plan of ``--plan``, or the lines that say what is not read. ``beside`` are settings
without which the key would not be read; both runs have them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """Another value of a key, and its effect.

    Attributes:
        value: what the key is set to.
        changes: what is another thing then: a key of ``observe``, or ``plan``.
        beside: further settings, dotted key -> value.
        refused: instead of ``changes``, the words of the refusal.
        at: the dotted key, where it is not section.name.
    """

    value: Any
    changes: str = ""
    beside: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    at: str = ""


FAQ, NEGATIVES, PAIRS, TOPICS = (f"data.mixture.datasets.{name}" for name in ("faq", "negatives", "pairs", "topics"))
WEIGHTS = [f"{dataset}.weight" for dataset in (FAQ, NEGATIVES, PAIRS, TOPICS)]
BUILT = {"model.name_or_path": None}
SELF = {"data.mining_model": "self"}
UNAWARE = {**SELF, "data.mining.relative_margin": None}  # to an untrained encoder every text is like every other
JUDGED = {**UNAWARE, "data.mining.judge": "encoder"}
LEXICAL = {"data.mining_model": "lexical"}
SCORED = {
    f"{NEGATIVES}.source": "scored.jsonl",
    f"{NEGATIVES}.columns": {"positive_score": "pos_scores", "negative_score": "neg_scores"},
}
LARGE = {"layers": 24, "hidden_size": 1024, "heads": 16, "intermediate_size": 4096, "vocab_size": 21128}
THROUGHPUT = {"plan.tokens_per_second": None, "plan.peak_tflops": 100, "plan.mfu": 0.5}

MODEL = {
    "name_or_path": Row(None, "model"),
    "revision": Row("main", "unread"),
    "build": Row({"layers": 1}, "model", BUILT),
    "pooling": Row("cls", "model"),
    "instructions": Row({"query": "一二：", "document": "三四："}, "batches"),
    "task_instructions": Row({"T2Retrieval": {"query": "一二："}}, "prompts"),
    "include_instruction": Row(False, "model"),
    "query_length": Row(8, "batches"),
    "document_length": Row(9, "batches"),
    "positions": Row(600, "model"),
    "dimension": Row(8, "model"),
    "dtype": Row("bfloat16", "model"),
    "attn_implementation": Row("eager", "model"),
    "trust_remote_code": Row(False, refused="contains custom code", beside={"model.name_or_path": "coded"}),
    "bidirectional": Row(True, "model"),
    "model_kwargs": Row({"add_pooling_layer": False}, "model"),
    "processor_kwargs": Row({"pad_token": "[MASK]"}, "batches"),
    "config_kwargs": Row({"hidden_dropout_prob": 0.25}, "model"),
}
RANK = {"lora.rank": 4}
LORA = {
    "rank": Row(4, "modules"),
    "alpha": Row(3.0, "adapter", RANK),
    "dropout": Row(0.25, "model", RANK),
    "targets": Row(["query"], "modules", RANK),
    "use_dora": Row(True, "modules", RANK),
    "load_in_4bit": Row(True, refused="needs a CUDA GPU", beside=RANK),
    "config": Row({"use_rslora": True}, "adapter", RANK),
}
DATA = {
    "mixture": Row(None, refused="names no data"),
    "batch_size": Row(4, "sampler"),
    "mining_model": Row("random", "rows"),
    "mining": Row({"num_negatives": 2}, "rows", LEXICAL),
    "remining": Row({}, "rows", LEXICAL),
    "mixing": Row("temperature", "sampler", {"data.mixing_exponent": 0.2}),
    "mixing_exponent": Row(0.2, "sampler", {"data.mixing": "temperature"}),
    "small_datasets": Row("repeat", "sampler", {f"{FAQ}.max_rows": 20, "data.batch_size": 16}),
    "num_negatives": Row(1, "batches"),
    "together": Row(["faq", "pairs"], "sampler", {"train.gradient_accumulation_steps": 2}),
}
LOSS = {
    "temperature": Row(0.5, "losses"),
    "directions": Row(["query_to_doc"], "losses"),
    "mask_duplicates": Row(False, "losses"),
    "false_negative_margin": Row(0.1, "losses"),
    "guide": Row("self", "batches"),
    "guide_margin": Row(0.1, "losses", {"loss.guide": "self"}),
    "guide_margin_strategy": Row("relative", "losses", {"loss.guide": "self"}),
    "hardness_strength": Row(5.0, "losses"),
    "hardness_mode": Row("all_negatives", "losses", {"loss.hardness_strength": 5.0}),
    "focal_gamma": Row(0.5, "losses"),
    "spread_weight": Row(1.0, "losses"),
    "spread_mean_weight": Row(1.0, "losses"),
    "mini_batch_size": Row(4, "losses"),
    "mini_batch_num_tokens": Row(64, "losses"),
    "chunk_tokens": Row(64, "losses"),
    "distillation": Row({"weight": 0.5}, "losses", SCORED),
    "quantised": Row(["int8", "binary"], "losses"),
    "matryoshka_dims": Row([32, 16], "losses"),
}
TAUGHT = {**SCORED, "loss.distillation": {}}
DISTILLATION = {
    "kind": Row("margin_mse", "losses", TAUGHT),
    "weight": Row(0.5, "losses", TAUGHT),
    "contrastive_weight": Row(0, "losses", TAUGHT),
    "temperature": Row(0.5, "losses", TAUGHT),
    "teacher_temperature": Row(5.0, "losses", TAUGHT),
    "matryoshka_weight": Row(0.5, "losses", {**TAUGHT, "loss.matryoshka_dims": [32, 16]}),
}


def seen_by(**teacher: object) -> dict[str, object]:
    """What is learnt from two teachers, the first of which is described."""
    return {"teachers": [{"name_or_path": "encoder", **teacher}, {"name_or_path": "self"}], "similarity_weight": 1.0}


OF_TEACHERS = "loss.distillation"
LOOKED_AT = {OF_TEACHERS: seen_by()}
ENCODER_ALONE = {OF_TEACHERS: {"teachers": [{"name_or_path": "encoder"}], "similarity_weight": 1.0}}
TEACHER = {
    "name_or_path": Row(seen_by(name_or_path="nowhere"), refused="loss.distillation.teachers", at=OF_TEACHERS),
    "weight": Row(seen_by(weight=3.0), "batches", LOOKED_AT, at=OF_TEACHERS),
    "instructions": Row(
        seen_by(instructions={"query": "一二：", "document": ""}), "batches", LOOKED_AT, at=OF_TEACHERS
    ),
}
DISTILLATION |= {
    "teachers": Row([{"name_or_path": "self"}], "batches", LOOKED_AT),
    "cosine_weight": Row(2.0, "losses", ENCODER_ALONE),
    "similarity_weight": Row(2.0, "losses", LOOKED_AT),
    "ranking_weight": Row(2.0, "losses", LOOKED_AT),
    "ranking_margin": Row(0.1, "losses", {OF_TEACHERS: {**LOOKED_AT[OF_TEACHERS], "ranking_weight": 1.0}}),
}
EVALUATION = {
    "batch_size": Row(7, "evaluators"),
    "general": Row(["nowhere.yaml"], refused="nowhere.yaml"),
}
TRAIN = {
    "output_dir": Row("elsewhere", "output"),
    "num_train_epochs": Row(2.0, "schedule", {"train.max_steps": -1}),
    "max_steps": Row(3, "schedule"),
    "eval_steps": Row(3, "arguments", {"train.eval_strategy": "steps"}),
    "learning_rate": Row(0.5, "arguments"),
    "warmup_steps": Row(0.5, "arguments"),
    "weight_decay": Row(0.5, "arguments"),
    "adam_beta1": Row(0.5, "arguments"),
    "adam_beta2": Row(0.5, "arguments"),
    "max_grad_norm": Row(0.5, "arguments"),
    "gradient_accumulation_steps": Row(2, "arguments"),
    "dataloader_num_workers": Row(2, "arguments"),
    "logging_steps": Row(3, "arguments"),
    "save_strategy": Row("epoch", "arguments"),
    "save_steps": Row(3, "arguments", {"train.save_strategy": "steps"}),
    "save_total_limit": Row(5, "arguments"),
    "resume": Row("never", "arguments"),
    "accept_changes": Row(True, "arguments"),
    "max_non_finite_steps": Row(7, "guard"),
    "max_seconds": Row(5.0, "arguments"),
    "fast_dropout": Row(False, "modules"),
    "packing": Row(False, "modules"),
    "activation_checkpointing": Row(True, "arguments"),
    "activation_checkpointing_kwargs": Row({"use_reentrant": True}, "arguments"),
    "report_to": Row("tensorboard", "section"),
    "cpu_threads": Row(2, "threads"),
    "average_with_start": Row(0.5, refused="must be 0 for an encoder that is built", beside=BUILT),
    "card_samples": Row(True, "card"),
}
PLAN = {
    "processes": Row(4, "plan"),
    "zero_stage": Row(0, "plan", {"plan.processes": 4, "plan.encoder": LARGE}),
    "gpu_memory_gib": Row(0.001, refused="must fit into"),
    "reserve": Row(0.999, refused="must fit into", beside={"plan.gpu_memory_gib": 1}),
    "encoder": Row(LARGE, "plan"),
    "negatives": Row(3, "plan"),
    "query_tokens": Row(3, "plan"),
    "document_tokens": Row(3, "plan"),
    "rows": Row(5000, "plan", {"train.max_steps": -1, "plan.rows": 999}),
    "tokens_per_second": Row(10, "plan"),
    "peak_tflops": Row(1, "plan", THROUGHPUT),
    "mfu": Row(0.1, "plan", THROUGHPUT),
}
DATASET = {
    "name": Row(1, refused="unknown key 'name'", at=f"{FAQ}.name"),
    "source": Row("other.jsonl", "rows"),
    "task": Row("classification", refused="needs a column", at=f"{PAIRS}.task"),
    "format": Row("tsv", refused="faq.jsonl"),
    "encoding": Row("gb18030", refused="of dataset 'faq' are faulty"),
    "split": Row("dev", refused="split of dataset 'faq' must be left out"),
    "revision": Row("abc", refused="revision of dataset 'faq' must be left out"),
    "subset": Row("zh", refused="subset of dataset 'faq' must be left out"),
    "corpus": Row("faq.jsonl", refused="names an unknown id"),
    "queries": Row("faq.jsonl", refused="queries of dataset 'faq' needs its corpus as well"),
    "columns": Row({"query": "positive", "positive": "query"}, "rows"),
    "preset": Row({"name": "classes", "negatives": 1}, "rows", at=f"{TOPICS}.preset"),
    "use": Row("evaluate", "rows", at=f"{PAIRS}.use"),
    "positives": Row("list", "rows", {f"{FAQ}.source": "listed.jsonl", f"{FAQ}.holdout": None}),
    "labels": Row(["山", "水"], "rows", at=f"{TOPICS}.labels"),
    "score_range": Row([0, 2], "rows", at=f"{PAIRS}.score_range"),
    "min_characters": Row(4, "rows", {f"{FAQ}.max_rejected": 1.0, f"{FAQ}.holdout": None}),
    "max_characters": Row(15, "rows", {f"{FAQ}.max_rejected": 1.0, f"{FAQ}.holdout": None}),
    "policy": Row("error", refused="policy 'error'", beside={f"{FAQ}.source": "faulty.jsonl"}),
    "max_rejected": Row(0.0, refused="more than max_rejected=0", beside={f"{FAQ}.source": "faulty.jsonl"}),
    "max_rows": Row(50, "rows"),
    "streaming": Row(True, refused="streaming of dataset 'faq' needs Parquet files"),
    "holdout": Row(None, "evaluators"),
    "mining": Row({"num_negatives": 2}, "rows", LEXICAL),
    "instruction": Row("none", "batches"),
    "weight": Row(9.0, "sampler", {"data.mixing": "weights", **dict.fromkeys(WEIGHTS, 1.0)}),
    "repeats": Row(3, "sampler"),
    "batch_multiple": Row(2.0, "sampler"),
    "query_length": Row(7, "batches"),
    "document_length": Row(8, "batches"),
    "loss": Row({"temperature": 0.3}, "losses"),
    "licence": Row("MIT", "report"),
    "note": Row("somebody's", "report"),
}
HOLDOUT = {
    "queries": Row(3, "evaluators"),
    "seed": Row(5, "evaluators"),
    "min_corpus": Row(10_000, refused="must search among at least 10000"),
    "max_corpus": Row(20, "evaluators"),
}
CLASSES = {f"{TOPICS}.preset": {"name": "classes"}}
RETRIEVAL = {f"{PAIRS}.task": "retrieval"}
NLI = {f"{FAQ}.source": "nli.jsonl", f"{FAQ}.holdout": None, f"{FAQ}.preset": {"name": "nli"}}
PRESET = {
    "name": Row("nli", refused="needs a column for 'premise'", at=f"{TOPICS}.preset.name", beside=CLASSES),
    "threshold": Row(
        0.1, "rows", {**RETRIEVAL, f"{PAIRS}.preset": {"name": "scored_pairs"}}, at=f"{PAIRS}.preset.threshold"
    ),
    "negatives": Row(0, "rows", {f"{TOPICS}.preset": {"name": "classes"}}, at=f"{TOPICS}.preset.negatives"),
    "neutral_as_negative": Row(True, "rows", NLI),
    "seed": Row(5, "rows", {f"{TOPICS}.preset": {"name": "classes"}}, at=f"{TOPICS}.preset.seed"),
}
MINING = {
    "num_negatives": Row(1, "rows", LEXICAL),
    "search": Row("queries", "rows", LEXICAL),
    "range_min": Row(5, "rows", UNAWARE),
    "range_max": Row(4, "rows", {**UNAWARE, "data.mining.sampling": "random"}),
    "max_score": Row(0.9, "rows", UNAWARE),
    "min_score": Row(0.99, "rows", UNAWARE),
    "absolute_margin": Row(0.1, "rows", UNAWARE),
    "relative_margin": Row(None, "rows", SELF),
    "sampling": Row("random", "rows", UNAWARE),
    "corpus": Row("corpus.jsonl", "mined", SELF),
    "use_faiss": Row(True, "mined", SELF),
    "seed": Row(5, "rows", {"data.mining_model": "random"}),
    "existing": Row("replace", "rows", {**LEXICAL, f"{FAQ}.source": "negatives.jsonl"}),
    "pool": Row(10, "mined", SELF),
    "shard_rows": Row(20, "mined", SELF),
    "batch_size": Row(9, "mined", SELF),
    "dimensions": Row(16, "mined", LEXICAL),
    "judge": Row("encoder", "mined", UNAWARE),
    "oversample": Row(9, "mined", JUDGED),
    "reranker_margin": Row(0.5, "rows", JUDGED),
}
REMINED = {**LEXICAL, "data.remining": {}}
REMINING = {  # what they do in a run: tests/mining/test_remining.py, tests/training/test_remining.py
    "every": Row(2, "report", REMINED),
    "share": Row(0.5, "report", {**REMINED, "data.remining": {"every": 1}}),
    "rule": Row("hardest", "remining", REMINED),
    "decline": Row(1.3, "remining", REMINED),
    "ceiling": Row(0.5, "remining", REMINED),
    "oversample": Row(2, "rows", REMINED),
}
ENCODER = {
    "vocab_size": Row(20, "model", BUILT),
    "min_frequency": Row(5000, "model", BUILT),
    "hidden_size": Row(16, "model", BUILT),
    "layers": Row(1, "model", BUILT),
    "heads": Row(2, "model", BUILT),
    "intermediate_size": Row(24, "model", BUILT),
    "max_positions": Row(80, "model", BUILT),
    "dropout": Row(0.3, "model", BUILT),
    "seed": Row(5, "model", BUILT),
}
# Fields of the parent class with a value of another kind than the generic test would give them.
INHERITED: dict[str, Any] = {
    "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}, "optim": "sgd", "optim_args": "a=1",
    "optim_target_modules": "all-linear", "eval_strategy": "steps", "logging_strategy": "epoch", "log_level": "error",
    "log_level_replica": "error", "hub_strategy": "end", "accelerator_config": {"even_batches": False},
    "liger_kernel_config": {"rope": False}, "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "debug": "underflow_overflow", "dataloader_multiprocessing_context": "spawn",
    "metric_for_best_model": "loss",
}  # fmt: skip
# Fields of the parent class that need hardware, software or other processes, and what they are handed to unread.
ELSEWHERE = {
    "bf16", "fp16", "tf32", "fsdp", "fsdp_config", "deepspeed", "parallelism_config", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "local_rank", "use_cpu", "ddp_backend",
    "dataloader_pin_memory", "dataloader_prefetch_factor", "load_best_model_at_end", "greater_is_better",
    "full_determinism", "learning_rate_mapping", "eval_on_start", "gradient_checkpointing",
    "save_on_each_node", "hub_token",
}  # fmt: skip
