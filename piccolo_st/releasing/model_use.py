"""What whoever runs a model has to know of it, and its lengths in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from piccolo_st.modeling import Instructions

QUERY, PASSAGE = "什么时候下雪", "冬天冷的时候会下雪。"
"""What the snippets of a card encode."""


@dataclass(frozen=True)
class ModelUse:
    """What whoever runs a model has to know of it.

    Attributes:
        model_id: what the snippets load.
        instructions: what goes before queries and passages; both are empty where it has none.
        dimension: of its vectors; None: not known.
        max_tokens: where texts are cut, instruction and special tokens included; None: not known.
        pooling: "mean", "cls", "lasttoken" or another; None: not known.
        dense: whether a Dense module follows the pooling.
        instructions_pooled: False where pooling leaves the instruction's tokens out.
        onnx: whether onnx/model.onnx comes with it.
        query_length, document_length: where it was trained with queries and documents cut; None: as all texts.
        native_lengths: whether sentence-transformers 6 cuts there by itself.
        base, base_revision: what it is an adapter for, and the commit, if it is known; empty for a whole model.
    """

    model_id: str
    instructions: Instructions = field(default_factory=Instructions)
    dimension: int | None = None
    max_tokens: int | None = None
    pooling: str | None = None
    dense: bool = False
    instructions_pooled: bool = True
    onnx: bool = False
    query_length: int | None = None
    document_length: int | None = None
    native_lengths: bool = False
    base: str = ""
    base_revision: str | None = None

    @property
    def typed(self) -> tuple[str, str]:
        """A query and a passage with their instructions typed before them."""
        return self.instructions.query + QUERY, self.instructions.document + PASSAGE

    @property
    def cuts(self) -> tuple[int | None, int | None]:
        """Where queries and passages are cut by what loads it without more code."""
        if not self.native_lengths:
            return self.max_tokens, self.max_tokens
        return self.query_length or self.max_tokens, self.document_length or self.max_tokens

    def options(self, task: str) -> dict[str, object]:
        """What sentence-transformers' ``encode`` has to be told to do what encode_query or encode_document does."""
        text = self.instructions.prompts[task]
        return {**({"prompt": text} if text else {}), **({"task": task} if self.native_lengths else {})}


def cut_in_words(use: ModelUse) -> tuple[str, str]:
    """Where texts are cut, as the end of a Chinese and of an English sentence; both empty where it is not known."""
    query, document = use.cuts
    if query is None:
        return "", ""
    if query == document:
        return f"，最长 {query} 个词元", f", of texts cut at {query} tokens"
    words = f", of queries cut at {query} and passages at {document} tokens"
    return f"，查询最长 {query}、段落最长 {document} 个词元", words


def lengths_in_words(use: ModelUse) -> list[str]:
    """What the lengths of the training mean where the model is used; nothing where they are those of all texts."""
    all_texts = use.max_tokens
    query, document = use.query_length or all_texts, use.document_length or all_texts
    if query == document == all_texts:
        return []
    if use.native_lengths:
        return [
            "这两种长度由 sentence-transformers 6 的 `encode_query` 和 `encode_document` 执行，"
            "更早的版本不能加载这个模型。"
            f"LlamaIndex、text-embeddings-inference、fastembed、transformers.js 把两者都截到 {all_texts}。",
            "`encode_query` and `encode_document` of sentence-transformers 6 cut there; older versions do not load the "
            f"model. LlamaIndex, text-embeddings-inference, fastembed and transformers.js cut both at {all_texts}.",
        ]
    return [
        f"训练时查询截到 {query}、段落截到 {document} 个词元；这些程序把两者都截到 {all_texts}。"
        "`piccolo_st.modeling.portable.load_portable` 恢复训练时的长度。",
        f"In training, queries were cut at {query} and passages at {document} tokens; these programs cut both at "
        f"{all_texts}. `piccolo_st.modeling.portable.load_portable` puts the lengths of the training back.",
    ]
