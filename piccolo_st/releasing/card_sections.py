"""The parts of a model card that sentence-transformers' own card does not have, as Markdown in Chinese and English.

Text in, text out: nothing here reads a file, a clock or the network, so the same input gives the same bytes. Each
part stands between two comment lines, by which :func:`replace_block` finds and renews it in a card that somebody has
edited since.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from piccolo_st.evaluation import RESCORED, Benchmark, ModelScores, VectorRow
from piccolo_st.releasing.model_use import ModelUse
from piccolo_st.releasing.use_it_in import use_it_in

_UNKNOWN = "–"
COMMENTS = re.compile(r"<!--[^>]*\n.*?-->\n?", re.S)
"""The comments of several lines in a card of sentence-transformers: forms for an author to fill in."""
_STOCK_USAGE = re.compile(r"^## Usage\n\n### Direct Usage \(Sentence Transformers\)\n.*?(?=^## |\Z)", re.M | re.S)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, marks, *rows])


def comparison_table(own: ModelScores, others: Sequence[ModelScores], benchmark: Benchmark) -> str:
    """The table of averages: the model itself in bold, every model in order of its average, best first."""
    counts = [f"{name} ({len(benchmark.of_type(name))})" for name in benchmark.types]
    header = ["Model", "Size (GB)", "Dimension", "Max tokens", f"Average ({len(benchmark.tasks)})", *counts]
    models = sorted([own, *others], key=lambda each: (-(each.averages.overall or 0.0), each.model))
    return markdown_table(header, [_cells(each, benchmark, bold=each is own) for each in models])


def _cells(scores: ModelScores, benchmark: Benchmark, bold: bool) -> list[str]:
    name = f"[{scores.model}](https://huggingface.co/{scores.model})" if "/" in scores.model else scores.model
    known = (scores.facts.get("size_gb"), scores.facts.get("dimension"), scores.facts.get("max_tokens"))
    facts = [_UNKNOWN if value is None else f"{value:g}" for value in known]
    numbers = [scores.averages.overall, *(scores.averages.by_type.get(name) for name in benchmark.types)]
    cells = [_UNKNOWN if value is None else f"{value:.2f}" for value in numbers]
    return [f"**{name}**", *facts, f"**{cells[0]}**", *cells[1:]] if bold else [name, *facts, *cells]


def evaluation_section(
    own: ModelScores,
    benchmark: Benchmark,
    others: Sequence[ModelScores] = (),
    content_hash: str | None = None,
    vectors: Sequence[VectorRow] = (),
) -> str:
    """The evaluation part: the table of averages, every task's main score, and whose results they are.

    Args:
        own: this model, perhaps with its averages alone.
        benchmark: the definition of tasks, main metrics and averages.
        others: models to compare it with, scored by the same definition.
        content_hash: of the model that was evaluated; stands in the card so that a release can check it.
        vectors: what came of searching with small vectors.
    """
    if not own.scores and own.averages.overall is None:
        return "## 评测 · Evaluation\n\n还没有评测结果。\n\nNot evaluated yet."
    count = len(benchmark.tasks)
    lines = [
        "## 评测 · Evaluation",
        "",
        f"任务与指标按 `{benchmark.name}` 的定义，单位为百分比；Average ({count}) 是 {count} 个任务得分的平均，"
        "不是各类型平均分的平均。",
        "",
        f"Tasks and metrics as `{benchmark.name}` defines them ({benchmark.description}), in percent. "
        f"Average ({count}) is the mean over the {count} tasks, not over the types.",
        "",
        comparison_table(own, others, benchmark),
    ]
    if own.scores:
        rows = [
            [task.name, task.type, task.subset, ", ".join(task.splits), task.card_metric, f"{score:.2f}"]
            for task in benchmark.tasks
            if (score := own.scores.get(task.name)) is not None
        ]
        table = markdown_table(["Task", "Type", "Subset", "Split", "Metric", "Score"], rows)
        lines += ["", f"<details><summary>每个任务的得分 · Scores by task ({len(rows)} / {count})</summary>", "", table]
        lines += ["", "</details>"]
        if own.averages.missing:
            lines += ["", f"没有结果的任务 · Not evaluated: {', '.join(own.averages.missing)}."]
    if vectors:
        lines += ["", vectors_section(vectors)]
    if content_hash:
        lines += ["", evaluated_mark(content_hash)]
    return "\n".join(lines)


_BINARY_SEARCH = """\
```python
from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss

mean = documents.mean(axis=0)  # documents, queries: embeddings of length 1, cut to the dimension first
bits = quantize_embeddings(documents - mean, "ubinary")
hits, _ = semantic_search_faiss(queries - mean, bits, corpus_precision="ubinary", top_k=10, rescore_multiplier=4)
```"""


def vectors_section(rows: Sequence[VectorRow]) -> str:
    """A table of searches with small vectors, a row for each size."""
    cells = [
        [
            f"{row.dimension}",
            row.precision,
            f"{row.size:,}",
            f"{row.score:.2f}",
            _UNKNOWN if row.share is None else f"{row.share:.1f}",
            _UNKNOWN if row.seconds is None else f"{row.seconds:.2g}",
        ]
        for row in rows
    ]
    header = ["Dimension", "Precision", "Bytes", "Retrieval", "% of float32", "Seconds (1,000 queries)"]
    return "\n\n".join(
        [
            "### 小向量 · Small vectors",
            "检索任务得分的平均。int8 按语料的取值范围量化；binary 每维一位，即是否大于语料在该维的均值：查询也减去"
            f"这个均值，先按位找，再用查询向量给最近的 {RESCORED} 个重新排序。",
            "The mean over the retrieval tasks. int8 is calibrated on the corpus. binary keeps one bit a dimension, "
            "whether it is above the corpus' mean: the mean is taken off the queries too, the search goes by bits, and "
            f"the nearest {RESCORED} are put in order with the query's own numbers. Every document is compared, with "
            "faiss, on the machine that evaluated.",
            markdown_table(header, cells),
            *([_BINARY_SEARCH] if any(row.precision == "binary" for row in rows) else []),
        ]
    )


def evaluated_mark(content_hash: str) -> str:
    """What :func:`evaluated_model` finds in a card, and its readers do not see."""
    return f"<!-- evaluated model: {content_hash} -->"


def evaluated_model(card: str) -> str | None:
    """The content hash of the model whose results a card shows, or None where the card does not say."""
    match = re.search(r"<!-- evaluated model: ([0-9a-f]{40}) -->", card)
    return match[1] if match else None


def usage_section(use: ModelUse) -> str:
    """How to use the model, without and with its instructions, in sentence-transformers and in other programs."""
    return f"{_with_sentence_transformers(use)}\n\n{use_it_in(use)}"


def _for_its_base(use: ModelUse) -> str:
    """What an adapter is for, in a sentence of each language; nothing for a whole model."""
    if not use.base:
        return ""
    base = f"[{use.base}](https://huggingface.co/{use.base})"
    at = f" (`{use.base_revision}`)" if use.base_revision else ""
    return f"""
这里只有适配器，不含基础模型 {base}{at} 的权重；sentence-transformers 6 和 PEFT 会一并下载它。

This is an adapter alone, without the weights of its base {base}{at}, which sentence-transformers 6 and PEFT
download with it.
"""


def _with_sentence_transformers(use: ModelUse) -> str:
    """Without instructions and, where the model has some, with its prompts and with them typed by hand."""
    load = f'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("{use.model_id}")\n'
    similarity = f"""\
## 使用 · Usage

```bash
pip install -U sentence-transformers{" peft" if use.base else ""}
```
{_for_its_base(use)}
### 相似度、聚类、分类 · Similarity, clustering, classification

两段文本地位相同时，不加指令。

No instruction where both texts play the same part.

```python
{load}sentences = ["今天天气怎么样", "今天的天气如何"]
embeddings = model.encode(sentences, normalize_embeddings=True)
similarities = embeddings @ embeddings.T
```"""
    query, document = use.instructions.query, use.instructions.document
    if not (query or document):
        return f"""\
{similarity}

这个模型没有指令：查询和段落也这样编码。

The model has no instructions: queries and passages are encoded in the same way."""
    return f"""\
{similarity}

### 检索与重排 · Retrieval and reranking

查询前加“{query}”，段落前加“{document}”。可以用模型自带的提示，也可以自己写在文本前面，在长度限制之内得到相同的向量。不要两种同时用。

A query starts with `{query}`, a passage with `{document}`. Use the prompts that come with the model, or type the
instruction before the text, not both; within the length limit the vectors are the same.

```python
{load}queries = ["什么时候下雪"]
passages = ["冬天冷的时候会下雪。", "春天花开了。"]

# 用模型自带的提示 · with the prompts of the model
query_embeddings = model.encode_query(queries, normalize_embeddings=True)
passage_embeddings = model.encode_document(passages, normalize_embeddings=True)
scores = query_embeddings @ passage_embeddings.T

# 自己写在文本前面 · typed before the text
query_embeddings = model.encode(["{query}" + query for query in queries], normalize_embeddings=True)
passage_embeddings = model.encode(["{document}" + text for text in passages], normalize_embeddings=True)
scores = query_embeddings @ passage_embeddings.T
```"""


def training_section(
    stages: Sequence[Mapping[str, object]],
    pictures: Sequence[str] = (),
    datasets: Sequence[Mapping[str, object]] = (),
    gains: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A table with one column per stage and one row per fact that any stage has, in the order they first occur.

    Args:
        stages: fact -> value, with the key "stage" for the column's title. Lists are joined with commas.
        pictures: paths of images below the model's directory.
        datasets: fact -> value of each dataset, all with the same facts, for a table with one row for each.
        gains: what was gained and lost; see :class:`piccolo_st.releasing.RunRecord`.
    """
    lines = ["## 训练 · Training"]
    if stages:
        facts = list(dict.fromkeys(key for stage in stages for key in stage if key != "stage"))
        titles = [str(stage.get("stage", f"{n}")) for n, stage in enumerate(stages, 1)]
        rows = [[fact, *(_text(stage.get(fact)) for stage in stages)] for fact in facts]
        lines += ["", markdown_table(["", *titles], rows)]
    if datasets:
        rows = [[_text(value) for value in dataset.values()] for dataset in datasets]
        lines += ["", "### 数据 · Data", "", markdown_table(list(datasets[0]), rows)]
    if gains:
        lines += ["", "### 得与失 · Gained and lost", "", _GAINS, "", _gains_table(gains)]
    for picture in pictures:
        lines += ["", f"![{picture.rsplit('/', 1)[-1].rsplit('.', 1)[0]}]({picture})"]
    return "\n".join(lines)


_GAINS = (
    "训练之前与之后，单位为百分比；区间是 95% 的成对自助法区间，不含 0 的差别才算数。\n\n"
    "Before and after training, in percent, with paired bootstrap intervals of 95%; a difference whose interval holds "
    "0 may be chance."
)


def _gains_table(gains: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            f"{row['of']}: {row['task']}",
            row["metric"] or _UNKNOWN,
            f"{row['before']:.2f}",
            f"{row['after']:.2f}",
            f"{row['after'] - row['before']:+.2f}",
            f"{row['low']:+.2f} to {row['high']:+.2f}",
        ]
        for row in gains
    ]
    return markdown_table(["Task", "Metric", "Before", "After", "Difference", "95% interval"], cells)


def _text(value: object) -> str:
    if value is None or value == "" or value == []:
        return _UNKNOWN
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def block(name: str, text: str) -> str:
    """The text between the two comment lines of a named block."""
    return f"<!-- begin {name}: written by piccolo_st, edits are lost -->\n{text}\n<!-- end {name} -->"


def replace_usage(card: str, text: str) -> str:
    """Renew the usage of a card: its block, or in place of the section that sentence-transformers writes for any model.

    That section names a placeholder, and ``encode_query`` also where there is no instruction. Anything else stays.
    """
    blind = COMMENTS.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), card)  # they hold headings as well
    stock = _STOCK_USAGE.search(blind)
    if stock and "<!-- begin usage:" not in card:
        return f"{card[: stock.start()]}{block('usage', text)}\n\n{card[stock.end() :]}"
    return replace_block(card, "usage", text)


def replace_block(card: str, name: str, text: str) -> str:
    """Renew a named block of a card, or, where the card has none, put it before its usage or at its end."""
    new = block(name, text)
    pattern = rf"<!-- begin {name}:.*?<!-- end {name} -->"
    if re.search(pattern, card, re.S):
        return re.sub(pattern, lambda _: new, card, count=1, flags=re.S)
    usage = re.search(r"^(<!-- begin usage|## .*(Usage|使用))", card, re.M)
    if usage:
        return f"{card[: usage.start()]}{new}\n\n{card[usage.start() :]}"
    return f"{card.rstrip()}\n\n{new}\n"
