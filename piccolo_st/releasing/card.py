"""PiccoloModelCardData: sentence-transformers' model card with results, Chinese text and the facts of the training.

How a card comes about:

1. sentence-transformers collects what it collects for every model (architecture, datasets, losses, hyperparameters,
   logs, citations) and asks for ``to_dict``;
2. ``to_dict`` renders sentence-transformers' own template with it and cuts that into its sections;
3. it adds the model-index and the parts of :mod:`piccolo_st.releasing.card_sections`;
4. template.md puts those first, and every section of sentence-transformers that they do not stand for after them.

With a model attached (``SentenceTransformer(model_card_data=...)``) this happens at every save. Without one, from
facts that were written down, :func:`render_card` gives the card of a model whose weights are elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import jinja2
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling

from piccolo_st.evaluation import C_MTEB_35, Benchmark, ModelFacts, ModelScores, TaskResult, task_scores
from piccolo_st.modeling import Instructions, saved_instructions
from piccolo_st.releasing.card_sections import (
    COMMENTS,
    block,
    evaluation_section,
    training_section,
    usage_section,
)
from piccolo_st.releasing.eval_results import eval_results
from piccolo_st.releasing.model_use import ModelUse
from piccolo_st.releasing.record import RunRecord, Values
from piccolo_st.releasing.training_card import neutral

PLACEHOLDER_ID = "sentence_transformers_model_id"
"""What sentence-transformers writes in a usage snippet while it does not know the model's Hub id."""


@dataclass
class PiccoloModelCardData(SentenceTransformerModelCardData):
    """The data of a model card; every field of ``SentenceTransformerModelCardData`` and those below.

    Args:
        summary: paragraphs before the first heading, such as one in Chinese and one in English.
        results: evaluation results, see :func:`piccolo_st.evaluation.read_results`.
        benchmark: the definition by which they are averaged.
        reported: this model in the table where its averages are known and its results are not.
        comparison: other models in the table, scored by the same definition.
        content_hash: of the model that was evaluated.
        evaluation_notes: paragraphs after the evaluation part, such as where the scripts are that reproduce it.
        stages: one mapping of facts per training stage; see :func:`stage_facts`.
        pictures: images below the model's directory, such as the curves of the run.
        notes: paragraphs after the training part.
        hub_datasets: Hub ids of the training data, for the metadata.
        declared: facts about the architecture where no model is attached: ``output_dimensionality``,
            ``model_max_length``, ``query_length``, ``document_length``, ``size_gb``, ``pooling``.
        instructions: where no model is attached; otherwise they are the model's prompts.
        declared_base_model: Hub id of the encoder that training started from, where it cannot be looked up.
    """

    summary: Sequence[str] = ()
    results: Sequence[TaskResult] = ()
    benchmark: Benchmark = C_MTEB_35
    reported: ModelScores | None = None
    comparison: Sequence[ModelScores] = ()
    content_hash: str | None = None
    evaluation_notes: Sequence[str] = ()
    stages: Sequence[Mapping[str, object]] = ()
    pictures: Sequence[str] = ()
    notes: Sequence[str] = ()
    hub_datasets: Sequence[str] = ()
    declared: Values = field(default_factory=dict)
    instructions: Instructions = field(default_factory=Instructions)
    declared_base_model: str | None = None

    template_path: Path = field(default=Path(__file__).parent / "template.md", init=False, repr=False)

    def get_model_specific_metadata(self) -> dict[str, object]:
        """What sentence-transformers reads from the model, or else what was declared."""
        if self.model is not None:
            facts = super().get_model_specific_metadata()
            for name in ("query_length", "document_length"):  # a portable checkpoint is cut at one length; a release
                facts.pop(name, None)  # that has them natively says so in its usage
            return facts
        return {"similarity_fn_name": "Cosine Similarity", **self.declared}

    def run_usage_snippet(self) -> None:
        """Chinese examples for the widget and the snippet, where training data gave none."""
        if self.usage_examples is None:
            self.usage_examples = ["什么时候下雪", "冬天冷的时候会下雪。", "春天花开了。"]
        if self.model is not None:
            super().run_usage_snippet()

    def to_dict(self) -> dict[str, object]:
        """Everything the template and the metadata need; see the module docstring."""
        if self.results:
            self.add_tags("mteb")
        self.base_model = self.base_model or self.declared_base_model
        self.datasets = list(dict.fromkeys([*self.datasets, *self.hub_datasets]))
        data = super().to_dict()
        if self.results:
            name = (self.model_id or self.model_name or "").split("/")[-1]
            ours = eval_results_to_model_index(name, eval_results(self.results))
            theirs = [result for model in data.get("model-index", []) for result in model["results"]]
            ours[0]["results"] += theirs
            data["model-index"] = ours
        evaluation = evaluation_section(self.own_scores(), self.benchmark, self.comparison, self.content_hash)
        data["evaluation"] = block("evaluation", evaluation)
        data["usage"] = block("usage", usage_section(self._use()))
        data["training"] = block("training", training_section(self.stages, self.pictures))
        data["inherited"] = self._inherited(data)
        self._cached_dict = data
        return data

    def own_scores(self) -> ModelScores:
        """This model in the table of averages, computed from the results where there are any."""
        if self.reported is not None and not self.results:
            return self.reported
        if self.model is not None:
            facts = model_facts(self.model)
        else:
            names = {"size_gb": "size_gb", "dimension": "output_dimensionality", "max_tokens": "model_max_length"}
            facts = cast(ModelFacts, {fact: self.declared.get(name) for fact, name in names.items()})
        found = task_scores(self.results, self.benchmark)
        return ModelScores.of(self.model_id or str(self.model_name), found, self.benchmark, facts)

    def _use(self) -> ModelUse:
        """How the model is used, from the model or, without one, from what was declared."""
        model_id = self.model_id or PLACEHOLDER_ID
        if self.model is not None:
            return model_use(self.model, model_id)
        names = {"dimension": "output_dimensionality", "max_tokens": "model_max_length", "pooling": "pooling"}
        known = {fact: self.declared[name] for fact, name in names.items() if name in self.declared}
        return ModelUse(model_id, self.instructions, **known)

    def _inherited(self, data: Values) -> str:
        """The sections of sentence-transformers' card that this card does not replace, in their order."""
        template = Path(SentenceTransformerModelCardData.template_path).read_text(encoding="utf-8")
        rendered = jinja2.Template(template).render(card_data="", hf_emoji="🤗", **data)
        rendered = COMMENTS.sub("", rendered)  # cutting at headings would cut some in two
        sections = {
            text.split("\n", 1)[0].strip(): text.strip() for text in re.split(r"^## ", rendered, flags=re.M)[1:]
        }
        names = [name for name, text in sections.items() if name != "Usage" and re.search(r"\n[^#\s]", text)]
        if self.model is None:  # the others describe the machine that writes the card, or a run that nobody made
            names = ["Model Details"]
            architecture = r"^### Full Model Architecture\n.*?(?=^#|\Z)"
            sections["Model Details"] = re.sub(architecture, "", sections["Model Details"], flags=re.M | re.S).strip()
        return "\n\n".join(f"## {sections[name]}" for name in names)


def model_use(
    model: SentenceTransformer, model_id: str, onnx: bool = False, lengths: Mapping[str, int] | None = None
) -> ModelUse:
    """How a model is used, as plain sentence-transformers loads it.

    Args:
        model: so loaded.
        model_id: what the snippets load.
        onnx: whether its ONNX file is there.
        lengths: those of queries and documents that its checkpoint carries.
    """
    pooling = next((module for module in model if isinstance(module, Pooling)), None)
    return ModelUse(
        model_id,
        saved_instructions(model),
        dimension=model.get_embedding_dimension(),
        max_tokens=model.max_seq_length,
        pooling=str(pooling.pooling_mode) if pooling else "none",
        dense=any(isinstance(module, Dense) for module in model),
        instructions_pooled=pooling is None or pooling.include_prompt,
        onnx=onnx,
        native_lengths=getattr(model[0], "query_length", None) is not None,
        query_length=(lengths or {}).get("query_length"),
        document_length=(lengths or {}).get("document_length"),
    )


def model_facts(model: SentenceTransformer) -> ModelFacts:
    """What a card's table says of a model beside its scores; the size to two digits."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e9
    return ModelFacts(
        size_gb=float(f"{size:.2g}"), dimension=model.get_embedding_dimension(), max_tokens=model.max_seq_length
    )


def render_card(data: PiccoloModelCardData) -> str:
    """The whole card: metadata and text."""
    metadata = cast(ModelCardData, data)  # ModelCard asks for no more of it than to_yaml
    return ModelCard.from_template(metadata, template_path=str(data.template_path)).content


def stage_facts(record: RunRecord) -> dict[str, object]:
    """The facts of one training run for the training part of a card: those that are known, without machine paths."""
    names = ("model", "lora", "data", "loss", "train")
    sections: list[Values] = [record.configuration.get(name) or {} for name in names]
    model, lora, data, loss, train = sections
    batch, world, last = data.get("batch_size"), record.world_size, (record.log or [{}])[-1]
    used = {name: dataset.used for name, dataset in record.datasets.items() if dataset.used}
    values = {
        "stage": record.stage,
        "encoder": neutral(model.get("name_or_path")) or ("built from the data" if model.get("build") else None),
        "adapter": _adapter(lora),
        "data": [f"{name} ({rows:,})" for name, rows in used.items()],
        "samples": sum(used.values()),
        "query length": model.get("query_length"),
        "document length": model.get("document_length"),
        "instructions": _instructions(model.get("instructions")),
        "instructions of tasks": [
            f"{task}: {_instructions(own)}" for task, own in (model.get("task_instructions") or {}).items()
        ],
        "batch": f"{batch} x {world} = {batch * world}" if batch and world else batch,
        "gradient accumulation": train.get("gradient_accumulation_steps", 1) if record.world_size else None,
        "loss": list(dict.fromkeys(loss["name"] for loss in record.losses.values())),
        "temperature": loss.get("temperature"),
        "epochs": None if (train.get("max_steps") or 0) > 0 else train.get("num_train_epochs"),
        "steps": record.steps if record.steps is not None else last.get("step"),
        "learning rate": train.get("learning_rate"),
        "precision": record.precision,
        "hardware": record.hardware,
        "processes": f"{world}, {record.engine}" if world and record.engine else world,
        "seconds": record.seconds,
        "seed": train.get("seed"),
    }
    return {name: value for name, value in values.items() if value not in (None, [], "", 0)}


def _adapter(lora: Values) -> str | None:
    """What was trained in the place of all weights, in words."""
    rank, alpha, targets = lora.get("rank"), lora.get("alpha"), lora.get("targets") or "all-linear"
    if not rank:
        return None
    kind = "DoRA" if lora.get("use_dora") else "LoRA"
    places = targets if isinstance(targets, str) else ", ".join(targets)
    base = ", base in 4 bits" if lora.get("load_in_4bit") else ""
    return f"{kind} of rank {rank}, alpha {alpha or 2 * rank}, on {places}{base}"


def _instructions(value: str | Mapping[str, str | list[str]] | None) -> str | None:
    """Instructions as a configuration has them, a preset's name or a mapping, in words."""
    if not isinstance(value, Mapping):
        return value
    texts = {task: [text] if isinstance(text, str) else text for task, text in value.items() if text}
    # A line break would end the row of the table that this stands in.
    words = {task: " or ".join(f"`{text}`" for text in several) for task, several in texts.items()}
    return " ".join(f"{task} {text}" for task, text in words.items()).replace("\n", "\\n") or "none"


def dataset_facts(record: RunRecord) -> list[dict[str, object]]:
    """Where the rows of a run came from, one mapping for each dataset, for the training part of a card."""
    return [
        {
            "dataset": name,
            "source": neutral(dataset.source),
            "task": dataset.task,
            "read": dataset.counts.get("rows"),
            **{
                name.replace("_", " "): sum(dataset.counts.get(name, {}).values())
                for name in ("rejected", "left_out", "held_out")
            },
            "used": dataset.used,
            "licence": dataset.licence,
            "note": dataset.note,
        }
        for name, dataset in record.datasets.items()
    ]
