"""What may be chosen of the losses. Nothing here imports torch: what only looks at a configuration reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, get_args

from piccolo_st.modeling import Instructions, WrittenInstructions
from piccolo_st.schema import NotNegative, Overlaid, Positive, ShareBelowOne, read_by, setting

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

HardnessMode = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]

MarginStrategy = Literal["absolute", "relative"]

SmallPrecision = Literal["int8", "binary"]


@dataclass(frozen=True)
class TeacherSettings:
    """A model whose embeddings are learnt from, and how much it counts beside others."""

    name_or_path: str = field(
        metadata={"help": "Hub id or directory of a sentence-transformers model, or self: the encoder before the run."}
    )
    weight: Positive = setting(1.0, "Its share of the teachers' similarity.")
    instructions: Annotated[Instructions | None, read_by(Instructions.if_any, str | WrittenInstructions | None)] = (
        setting(None, "How it wants its texts, as model.instructions; empty: as its own prompts say.")
    )

    def __post_init__(self) -> None:
        """Raises ValueError where the encoder itself would be read in two ways."""
        if self.name_or_path == "self" and self.instructions is not None:
            raise ValueError("instructions of the teacher self must be empty, which has those of the run; remove them")


@dataclass(frozen=True)
class DistillationSettings(Overlaid):
    """What is learnt from a teacher's scores, from teachers' embeddings and from the model's own widest embedding."""

    PLACE: ClassVar[str] = "distillation"

    kind: Literal["kl", "margin_mse"] = setting(
        "kl", "kl: the softmax over a row's own texts; margin_mse: how far each negative is below."
    )
    weight: NotNegative = setting(1.0, "Of the teacher's term; 0: no scores are needed.")
    contrastive_weight: NotNegative = setting(1.0, "Of the contrastive term beside it; 0: the teacher alone.")
    temperature: Positive | None = setting(
        None, "The student's cosines are divided by this; empty: kl that of the contrastive term, else 1."
    )
    teacher_temperature: Positive = setting(1.0, "The teacher's scores are divided by this, as suits their spread.")
    teachers: list[TeacherSettings] | None = setting(
        None,
        "Models whose embeddings of the texts, put one after the other, are learnt from; each embeds every "
        "text once, before the first step.",
    )
    cosine_weight: NotNegative = setting(
        0.0, "Of the term that moves an embedding to the teachers', which needs their width; e.g. 10."
    )
    similarity_weight: NotNegative = setting(
        0.0, "Of the term that makes a batch's texts as similar as the teachers find them, e.g. 200."
    )
    ranking_weight: NotNegative = setting(
        0.0, "Of the term that puts a batch's pairs of texts in the teachers' order, e.g. 20."
    )
    ranking_margin: ShareBelowOne = setting(0.015, "How far apart it moves two pairs that the teachers tell apart.")
    matryoshka_weight: NotNegative = setting(
        0.0, "Of the term by which each smaller of loss.matryoshka_dims learns the similarities of the largest."
    )

    def __post_init__(self) -> None:
        """Raises ValueError where teachers teach nothing, or nobody teaches."""
        weights = (self.cosine_weight, self.similarity_weight, self.ranking_weight)
        if bool(self.teachers) != any(weights):
            raise ValueError(
                "teachers need a cosine_weight, similarity_weight or ranking_weight above 0 and these need teachers, "
                f"got {len(self.teachers or ())} teachers and {', '.join(f'{one:g}' for one in weights)}; set both or "
                "neither"
            )

    @property
    def needs_no_scores(self) -> bool:
        """Whether it says something of rows without a teacher's scores."""
        return bool(self.teachers or self.matryoshka_weight)
