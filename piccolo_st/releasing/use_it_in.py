"""The card's part "Use it in": a snippet for each program that people run an embedding model with.

Every snippet has this model's own instructions, length, pooling and dimension, and gives vectors of length 1, so that
each gives what ``encode_query`` and ``encode_document`` give. A program that cannot do with the model has no snippet,
but a line that says why. Text in, text out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from piccolo_st.releasing.model_use import PASSAGE, QUERY, ModelUse, cut_in_words, lengths_in_words

_POOLING_CODE = {
    "mean": "mask = inputs['attention_mask'].unsqueeze(-1)\n    pooled = (hidden * mask).sum(1) / mask.sum(1)",
    "cls": "pooled = hidden[:, 0]",
    "lasttoken": "last = inputs['attention_mask'].sum(1) - 1\n    pooled = hidden[torch.arange(len(texts)), last]",
}
_FASTEMBED = {"mean": "MEAN", "cls": "CLS", "lasttoken": "LAST_TOKEN"}
_TRANSFORMERS_JS = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}
_NO_DENSE = "the model has a Dense module after pooling, which transformers alone does not load"
_NOT_POOLED = "instructions are left out of pooling, which needs sentence-transformers"
_NO_ONNX = "it needs onnx/model.onnx, which python -m piccolo_st release --onnx writes"
_NOT_KNOWN = "it has to be told how the model pools, which is not said here"
_NOT_WHOLE = "it loads whole models, and this is an adapter"


class Snippet(NamedTuple):
    """How a program uses the model: its code, or why there is none."""

    program: str
    language: str
    code: str
    why_not: str = ""


def use_it_in(use: ModelUse) -> str:
    """The section: what holds everywhere, a snippet for each program, and the programs it is no model for."""
    shown, left_out = [], []
    for snippet in snippets(use):
        if snippet.why_not:
            left_out.append(f"- {snippet.program}: {snippet.why_not}")
        else:
            code = f"```{snippet.language}\n{snippet.code}\n```"
            shown.append(f"<details><summary>{snippet.program}</summary>\n\n{code}\n\n</details>")
    cut, words = cut_in_words(use)
    vectors = f" {use.dimension} 维、长度为 1 的向量" if use.dimension else "长度为 1 的向量"
    english = f"vectors of {use.dimension} numbers" if use.dimension else "vectors"
    lines = [
        "### 在其他程序里使用 · Use it in",
        f"每段代码都得到{vectors}{cut}，与上面的一样。",
        f"Each gives {english} and of length 1{words}, the same as above.",
        *lengths_in_words(use),
        *shown,
    ]
    if left_out:
        lines.append("没有用法的程序 · No snippet for:\n\n" + "\n".join(left_out))
    return "\n\n".join(lines)


def snippets(use: ModelUse) -> Iterator[Snippet]:
    """A snippet for each program, in the order of the card."""
    yield Snippet("sentence-transformers", "python", _sentence_transformers(use))
    known = use.pooling in _POOLING_CODE
    pooled = "" if use.instructions_pooled else _NOT_POOLED
    pooled = pooled or ("" if known or use.pooling is None else f"it does not pool as this model does, {use.pooling}")
    plain = pooled or (_NO_DENSE if use.dense else "") or ("" if known else _NOT_KNOWN)
    yield Snippet("PEFT" if use.base else "transformers", "python", "" if plain else _transformers(use), plain)
    server = _NOT_WHOLE if use.base else pooled
    yield Snippet("text-embeddings-inference", "bash", _text_embeddings_inference(use), server)
    yield Snippet("vLLM", "bash", _vllm(use), server)
    yield Snippet("LangChain", "python", _langchain(use))
    yield Snippet("LlamaIndex", "python", _llama_index(use))
    yield Snippet("Haystack", "python", _haystack(use))
    yield Snippet("Chroma", "python", _chroma(use))
    onnx = server or ("" if known else plain) or ("" if use.onnx else _NO_ONNX)
    yield Snippet("fastembed", "python", "" if onnx else _fastembed(use), onnx)
    yield Snippet("transformers.js", "js", "" if onnx else _transformers_js(use), onnx)


def _quoted(text: str) -> str:
    """The text as a string of Python and JavaScript."""
    return json.dumps(text, ensure_ascii=False)


def _sentence_transformers(use: ModelUse) -> str:
    return f"""\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{use.model_id}")
query_embeddings = model.encode_query(["{QUERY}"], normalize_embeddings=True)
passage_embeddings = model.encode_document(["{PASSAGE}"], normalize_embeddings=True)"""


_IMPORT_PEFT = "\nfrom peft import PeftModel"


def _transformers(use: ModelUse) -> str:
    query, passage = map(_quoted, use.typed)
    pooled = _POOLING_CODE[use.pooling or ""].replace("'", '"')
    load = f'AutoModel.from_pretrained("{use.model_id}")'
    if use.base:
        at = f', revision="{use.base_revision}"' if use.base_revision else ""
        load = f'PeftModel.from_pretrained(AutoModel.from_pretrained("{use.base}"{at}), "{use.model_id}")'
    return f"""\
import torch{_IMPORT_PEFT if use.base else ""}
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{use.model_id}")
model = {load}.eval()


def embed(texts, max_length):
    inputs = tokenizer(
        texts, padding=True, padding_side="right", truncation=True, max_length=max_length, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    {pooled}
    return torch.nn.functional.normalize(pooled, dim=-1)


query_embeddings = embed([{query}], max_length={use.cuts[0]})
passage_embeddings = embed([{passage}], max_length={use.cuts[1]})"""


def _post(url: str, **content: object) -> str:
    body = shlex.quote(json.dumps(content, ensure_ascii=False))
    return f"curl {url} -H 'Content-Type: application/json' -d {body}"


def _text_embeddings_inference(use: ModelUse) -> str:
    query, passage = use.typed
    return f"""\
docker run -p 127.0.0.1:8080:80 ghcr.io/huggingface/text-embeddings-inference:cpu-1.9 \\
    --model-id {use.model_id} --dtype float32
{_post("127.0.0.1:8080/embed", inputs=[query], normalize=True, truncate=True)}
{_post("127.0.0.1:8080/embed", inputs=[passage], normalize=True, truncate=True)}"""


def _vllm(use: ModelUse) -> str:
    """With use_activation, without which vLLM normalises only what modules.json has a Normalize for.

    Without truncation_side: where it is given, even as what it is anyway, vLLM cuts the end token off as well.
    """
    query, passage = (
        _post(
            "127.0.0.1:8000/v1/embeddings",
            model=use.model_id,
            input=[text],
            truncate_prompt_tokens=cut or -1,
            use_activation=True,
        )
        for text, cut in zip(use.typed, use.cuts, strict=True)
    )
    return f"vllm serve {use.model_id} --runner pooling --dtype float32\n{query}\n{passage}"


def _langchain(use: ModelUse) -> str:
    query, document = (
        json.dumps({**use.options(task), "normalize_embeddings": 1}, ensure_ascii=False)[:-2] + "True}"
        for task in ("query", "document")
    )
    return f"""\
from langchain_huggingface import HuggingFaceEmbeddings

embeddings = HuggingFaceEmbeddings(
    model_name="{use.model_id}",
    encode_kwargs={document},
    query_encode_kwargs={query},
)
query_embeddings = [embeddings.embed_query("{QUERY}")]
passage_embeddings = embeddings.embed_documents(["{PASSAGE}"])"""


def _llama_index(use: ModelUse) -> str:
    given = {
        "query_instruction": use.instructions.query,
        "text_instruction": use.instructions.document,
    }
    options = "".join(f"\n    {name}={_quoted(text)}," for name, text in given.items() if text)
    return f"""\
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

embed_model = HuggingFaceEmbedding(
    model_name="{use.model_id}",{options}
    normalize=True,
)
query_embeddings = [embed_model.get_query_embedding("{QUERY}")]
passage_embeddings = embed_model.get_text_embedding_batch(["{PASSAGE}"])"""


def _haystack(use: ModelUse) -> str:
    query, document = (
        f"\n    encode_kwargs={json.dumps(options, ensure_ascii=False)}," if options else ""
        for options in (use.options("query"), use.options("document"))
    )
    module = "haystack_integrations.components.embedders.sentence_transformers"
    return f"""\
# pip install haystack-ai sentence-transformers-haystack
from haystack import Document
from {module} import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersTextEmbedder,
)

query_embedder = SentenceTransformersTextEmbedder(
    model="{use.model_id}",{query}
    normalize_embeddings=True,
)
document_embedder = SentenceTransformersDocumentEmbedder(
    model="{use.model_id}",{document}
    normalize_embeddings=True,
)
query_embeddings = [query_embedder.run("{QUERY}")["embedding"]]
documents = document_embedder.run([Document(content="{PASSAGE}")])["documents"]
passage_embeddings = [document.embedding for document in documents]"""


def _chroma(use: ModelUse) -> str:
    return f"""\
import chromadb
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{use.model_id}")
passages, queries = ["{PASSAGE}"], ["{QUERY}"]
passage_embeddings = model.encode_document(passages, normalize_embeddings=True)
query_embeddings = model.encode_query(queries, normalize_embeddings=True)

collection = chromadb.Client().create_collection(
    "passages", embedding_function=None, configuration={{"hnsw": {{"space": "cosine"}}}}
)
collection.add(ids=["0"], documents=passages, embeddings=passage_embeddings)
found = collection.query(query_embeddings=query_embeddings, n_results=1)"""


def _fastembed(use: ModelUse) -> str:
    query, passage = map(_quoted, use.typed)
    pooling = "PoolingType.DISABLED" if use.dense else f"PoolingType.{_FASTEMBED[use.pooling or '']}"
    output = '\n    output_name="sentence_embedding",' if use.dense else ""
    return f"""\
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

TextEmbedding.add_custom_model(
    model="{use.model_id}",
    sources=ModelSource(hf="{use.model_id}"),
    model_file="onnx/model.onnx",
    dim={use.dimension},
    pooling={pooling},{output}
    normalization=True,
)
model = TextEmbedding("{use.model_id}")
query_embeddings = list(model.embed([{query}]))
passage_embeddings = list(model.embed([{passage}]))"""


def _transformers_js(use: ModelUse) -> str:
    query, passage = map(_quoted, use.typed)
    if not use.dense:
        options = f'{{ pooling: "{_TRANSFORMERS_JS[use.pooling or ""]}", normalize: true }}'
        return f"""\
import {{ pipeline }} from "@huggingface/transformers";

const extractor = await pipeline("feature-extraction", "{use.model_id}", {{ dtype: "fp32" }});
const queryEmbeddings = await extractor([{query}], {options});
const passageEmbeddings = await extractor([{passage}], {options});"""
    return f"""\
import {{ AutoModel, AutoTokenizer }} from "@huggingface/transformers";

const tokenizer = await AutoTokenizer.from_pretrained("{use.model_id}");
const model = await AutoModel.from_pretrained("{use.model_id}", {{ dtype: "fp32" }});
const embed = async (texts) => {{
  const inputs = await tokenizer(texts, {{ padding: true, truncation: true }});
  return (await model(inputs)).sentence_embedding.normalize(2, -1);
}};
const queryEmbeddings = await embed([{query}]);
const passageEmbeddings = await embed([{passage}]);"""
