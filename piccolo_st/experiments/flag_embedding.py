"""The same rows and checkpoint trained by FlagEmbedding, in a Python environment of its own.

Its versions of transformers and datasets are not this package's, so it runs as a process of another interpreter:

    python -m venv FLAG && FLAG/bin/pip install "FlagEmbedding==1.4.2" "transformers<5" "datasets<4.5"
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from piccolo_st.data import Mixture
from piccolo_st.errors import InputError
from piccolo_st.experiments.stock import start_model
from piccolo_st.modeling import load_encoder, saved_instructions
from piccolo_st.schema import Positive
from piccolo_st.training import FinetuneConfig


@dataclass(frozen=True)
class FlagEmbeddingOptions:
    """How FlagEmbedding trains.

    Attributes:
        python: the interpreter of its environment.
        temperature: of its loss; its own default is 0.02.
        same_dataset: whether a batch is of one dataset.
    """

    python: str = "python"
    temperature: Positive = 0.02
    same_dataset: bool = True


def train_flag_embedding(
    config: FinetuneConfig, mixture: Mixture, options: FlagEmbeddingOptions, folder: Path
) -> SentenceTransformer:
    """Train with ``FlagEmbedding.finetune.embedder.encoder_only.base``: one negative a row, mean pooling, unit vectors.

    Args:
        config: parsed with ``FinetuneConfig``; of its section ``loss`` nothing is used.
        mixture: that of the configuration; rows without a negative get another row's positive, drawn by seed.
        options: interpreter and loss.
        folder: where its data, log and checkpoint go.

    Raises:
        InputError: the other interpreter cannot run it; the message has the end of its output.
    """
    start, data, trained = folder / "start", folder / "data", folder / "trained"
    _copy_checkpoint(Path(str(config.model.name_or_path)), start)
    data.mkdir(parents=True, exist_ok=True)
    for name, dataset in mixture.train.items():
        _write_rows(dataset, data / f"{name}.jsonl", config.train.seed)
    instructions = config.model.instructions or saved_instructions(start_model(config))
    prompts, warmup = instructions.prompts, config.train.warmup_steps
    arguments = {
        "model_name_or_path": start,
        "train_data": data,
        "train_group_size": 2,
        "query_max_len": config.model.query_length,
        "passage_max_len": config.model.document_length,
        "same_dataset_within_batch": options.same_dataset,
        "sentence_pooling_method": "mean",
        "normalize_embeddings": True,
        "temperature": options.temperature,
        "output_dir": trained,
        "max_steps": config.train.max_steps,
        "per_device_train_batch_size": config.data.batch_size,
        "learning_rate": config.train.learning_rate,
        "warmup_ratio": warmup if warmup < 1 else warmup / config.train.max_steps,
        "bf16": config.train.bf16,
        "seed": config.train.seed,
        "use_cpu": config.train.use_cpu,
        "save_strategy": "no",
        "report_to": "none",
        "query_instruction_for_retrieval": prompts["query"],
        "passage_instruction_for_retrieval": prompts["document"],
    }
    run_module(options.python, "FlagEmbedding.finetune.embedder.encoder_only.base", arguments, folder / "log.txt")
    return load_encoder(
        str(trained),
        pooling="mean",
        instructions=instructions,
        query_length=config.model.query_length,
        document_length=config.model.document_length,
    )


def run_module(python: str, module: str, arguments: Mapping[str, object], log: Path) -> None:
    """Run a module by another interpreter to its end, its output in a log; empty arguments are left out.

    Raises:
        InputError: there is no such interpreter, or it ended with an error.
    """
    given = [text for name, value in arguments.items() if value != "" for text in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("w", encoding="utf-8") as output:
        try:
            ran = subprocess.run(
                [python, "-m", module, *given], stdout=output, stderr=subprocess.STDOUT, env=environment
            ).returncode
        except OSError as error:
            raise InputError(
                f"options.python of the trainer flag_embedding must be an interpreter that has FlagEmbedding, got "
                f"{python!r}: {error.strerror}; give the path of its environment's python"
            ) from error
    if ran != 0:
        end = " | ".join(deque(log.read_text(encoding="utf-8", errors="replace").splitlines(), maxlen=3))
        raise InputError(
            f"{module} under {python} ended with {ran}: {end}; see {log}, and give options.python an environment that "
            "has it"
        )


def _copy_checkpoint(source: Path, target: Path) -> None:
    """The checkpoint, with a tokenizer whose class is known to a transformers of before 5 as well."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _write_rows(dataset: Dataset, path: Path, seed: int) -> None:
    """Rows as FlagEmbedding reads them: query, pos (a list), neg (a list, never empty)."""
    generator, positives = random.Random(seed), dataset["positive"]
    with path.open("w", encoding="utf-8") as file:
        for row in dataset:
            negatives = row.get("negative") or [generator.choice(positives)]
            negatives = negatives if isinstance(negatives, list) else [negatives]
            line = {"query": row["query"], "pos": [row["positive"]], "neg": negatives}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
