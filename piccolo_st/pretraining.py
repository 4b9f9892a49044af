"""An encoder where there is no checkpoint to start from: masked language modelling on a mixture's own text.

What recipes/pretrain_encoder.py drives:

(1) load the mixture, whose held-out texts are gone already, and take each distinct text of its training sets once;
(2) learn a vocabulary from them and write a random BERT (``encoder.build_encoder``), or load the checkpoint named;
(3) tokenize, join ``[CLS] text [SEP]`` end to end in a random order, and cut into blocks of equal length, so that no
    step computes padding;
(4) mask and train with transformers' own collator and Trainer; only masked positions reach the vocabulary's softmax,
    which of a small encoder is most of the work;
(5) leave in the output directory: ``model/`` (encoder and tokenizer, what ``model.name_or_path`` of the other recipes
    takes), ``config.yaml``, ``run.json``, ``curves.png``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)

from piccolo_st import report
from piccolo_st.configuration import RunConfig
from piccolo_st.data import store
from piccolo_st.data.duplicates import text_identities
from piccolo_st.data.mixture import Mixture, load_mixture
from piccolo_st.encoder import EncoderSettings, build_encoder
from piccolo_st.errors import InputError, reason
from piccolo_st.instructions import resolve_instructions

_READ = 10_000  # rows read at a time


class MaskedPositions(nn.Module):
    """A masked language model whose vocabulary head sees the masked positions alone.

    Args:
        model: of BERT's kind: its two parts are the encoder and the head.

    Raises:
        InputError: a model of other parts.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        parts = list(model.children())
        if len(parts) != 2 or parts[0] is not model.base_model:
            raise InputError(
                f"model.name_or_path must be an encoder with a head, got a {type(model).__name__}; give a BERT, "
                "RoBERTa or ERNIE, or leave it empty to build one"
            )
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """The mean cross-entropy of the masked positions.

        Args:
            input_ids: (rows, length) int64.
            labels: (rows, length) int64, -100 where nothing is to be predicted.
            **inputs: anything else the encoder takes.
        """
        encoder, head = self.model.children()
        hidden = encoder(input_ids=input_ids, **inputs).last_hidden_state  # (rows, length, width)
        masked = labels != -100
        logits = head(hidden[masked])  # (masked positions, vocabulary)
        return {"loss": nn.functional.cross_entropy(logits.float(), labels[masked])}


class EncoderRun:
    """A pretraining of an encoder that is built and ready to train.

    Attributes:
        config: the parsed configuration.
        mixture: the data.
        trainer: transformers' Trainer.
        output: the run's directory.
    """

    def __init__(self, config: RunConfig) -> None:
        """Build the run.

        Args:
            config: parsed with ``arguments.ENCODER``.

        Raises:
            InputError: a model, dataset or setting that cannot be used.
        """
        self.config = config
        self.output = Path(config["train"].output_dir)
        if config["data"].mixture is None:
            raise InputError(f"{config.path} names no data; set data.mixture to a mixture file")
        with PartialState().main_process_first():
            self.mixture = load_mixture(config["data"].mixture)
            start = self._start()
            try:
                self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(start)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"model.name_or_path cannot be loaded, got {start!r}: {reason(error)}; give the directory of a "
                    "model, or the id of one on the Hub that this machine can reach"
                ) from error
            self.blocks = self._pack()
        set_seed(config["train"].seed)  # the head begins with random weights
        self.model = AutoModelForMaskedLM.from_pretrained(start)
        held = max(1, round(config["data"].held_out * len(self.blocks)))
        self.trainer = Trainer(
            MaskedPositions(self.model),
            config["train"],
            DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=config["data"].masked),
            train_dataset=self.blocks.select(range(held, len(self.blocks))),
            eval_dataset=self.blocks.select(range(held)),
            processing_class=self.tokenizer,
        )

    def describe(self) -> str:
        """What will run: size, text, steps."""
        arguments = self.trainer.args
        rows: Any = self.trainer.train_dataset
        held_out: Any = self.trainer.eval_dataset
        batch = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
        steps = arguments.max_steps
        if steps <= 0:
            steps = math.ceil(math.ceil(len(rows) / batch) * arguments.num_train_epochs)
        parameters = sum(parameter.numel() for parameter in self.model.base_model.parameters())
        length = self.config["data"].max_length
        return "\n".join(
            [
                f"encoder    {self.config['model'].name_or_path or 'built from the text'}, {parameters:,} parameters, "
                f"{len(self.tokenizer):,} pieces",
                f"text       {len(self.blocks):,} blocks of {length} tokens, {len(held_out)} held out",
                f"steps      {steps:,} of {batch} blocks, {batch * length:,} tokens",
                f"output     {self.output}",
            ]
        )

    def train(self) -> None:
        """Train, then write the encoder, the record and the picture."""
        start = time.perf_counter()
        self.trainer.train()
        loss = self.trainer.evaluate()["eval_loss"]
        seconds = time.perf_counter() - start
        if self.trainer.is_world_process_zero():
            self.model.base_model.save_pretrained(self.output / "model")
            self.tokenizer.save_pretrained(self.output / "model")
            history = self.trainer.state.log_history
            facts = {
                "seconds": round(seconds, 1),
                "mixture": self.mixture.fingerprint,
                "held_out_loss": loss,
                "log": history,
            }
            report.write_record(self.output, self.config.resolved, facts)
            report.picture(report.plot_curves, history, self.output / "curves.png", self.output.name)

    def summary(self) -> str:
        """Where the encoder is, and how well it guesses a masked token."""
        losses = [entry["eval_loss"] for entry in self.trainer.state.log_history if "eval_loss" in entry]
        return "\n".join(
            [
                f"held-out loss of a masked token: {' '.join(f'{loss:.3f}' for loss in losses)}",
                f"encoder   {self.output / 'model'}",
                f"use it    --model.name_or_path {self.output / 'model'}",
            ]
        )

    def say(self, text: str) -> None:
        """Print from the first rank."""
        if self.trainer.is_world_process_zero():
            print(f"\n{text}\n", flush=True)

    def _start(self) -> str:
        """The checkpoint named, or the random encoder of these settings and texts, built the first time."""
        arguments = self.config["model"]
        if arguments.name_or_path:
            return arguments.name_or_path
        settings = EncoderSettings.from_mapping(arguments.build or {})
        always = sorted(set(resolve_instructions(arguments.instructions).prompts.values()))
        key = store.digest(["encoder to pretrain", vars(settings), self.mixture.fingerprint, always])
        return str(
            store.entry(
                self.output / "built",
                key,
                lambda folder: build_encoder(settings, distinct_texts(self.mixture), folder, always),
            )
        )

    def _pack(self) -> Dataset:
        """Blocks of ``max_length`` tokens: {"input_ids": list}, in random order of the texts."""
        length = self.config["data"].max_length
        limit = getattr(self.tokenizer, "model_max_length", length)
        if length > limit:
            raise InputError(f"data.max_length must be at most the {limit} positions of the encoder, got {length}")
        texts = Dataset.from_generator(
            _rows, gen_kwargs={"mixture": self.mixture}, cache_dir=str(self.output / "built")
        )
        texts = texts.shuffle(seed=self.config["train"].seed).flatten_indices()
        # Longer texts are cut into several blocks, so the tokenizer's own limit does not count.
        tokenized = texts.map(
            lambda rows: {"input_ids": _joined(self.tokenizer, rows["text"], length)},
            batched=True,
            batch_size=_READ,
            remove_columns=["text"],
        )
        if len(tokenized) < 2:
            raise InputError(
                f"the mixture's text must fill at least 2 blocks of {length} tokens, got {len(tokenized)}; give more"
            )
        return tokenized


def _joined(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> list[list[int]]:
    """The texts' tokens end to end, in blocks of ``length``; what does not fill the last block is left out."""
    rows = tokenizer(texts, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    tokens = [token for row in rows for token in row]
    return [tokens[begin : begin + length] for begin in range(0, len(tokens) - length + 1, length)]


def _rows(mixture: Mixture) -> Iterator[dict[str, Any]]:
    for text in distinct_texts(mixture):
        yield {"text": text}


def distinct_texts(mixture: Mixture) -> Iterator[str]:
    """Each text of the training sets once, those in lists too; 8 bytes a distinct text are kept in memory."""
    seen: set[int] = set()
    for dataset in mixture.train.values():
        for rows in dataset.iter(_READ):
            for values in rows.values():
                texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
                if not texts or not isinstance(texts[0], str):
                    continue
                for text, identity in zip(texts, text_identities(texts).tolist(), strict=True):
                    if identity not in seen:
                        seen.add(identity)
                        yield text
