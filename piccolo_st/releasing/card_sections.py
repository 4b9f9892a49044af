"""The parts of a model card that sentence-transformers' own card does not have, as Markdown in Chinese and English.

Text in, text out: nothing here reads a file, a clock or the network, so the same input gives the same bytes. Each
part stands between two comment lines, by which :func:`replace_block` finds and renews it in a card that somebody has
edited since.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from piccolo_st.evaluation import Benchmark, ModelScores
from piccolo_st.modeling import Instructions

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
    own: ModelScores, benchmark: Benchmark, others: Sequence[ModelScores] = (), content_hash: str | None = None
) -> str:
    """The evaluation part: the table of averages, every task's main score, and whose results they are.

    Args:
        own: this model, perhaps with its averages alone.
        benchmark: the definition of tasks, main metrics and averages.
        others: models to compare it with, scored by the same definition.
        content_hash: of the model that was evaluated; stands in the card so that a release can check it.
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
    if content_hash:
        lines += ["", evaluated_mark(content_hash)]
    return "\n".join(lines)


def evaluated_mark(content_hash: str) -> str:
    """What :func:`evaluated_model` finds in a card, and its readers do not see."""
    return f"<!-- evaluated model: {content_hash} -->"


def evaluated_model(card: str) -> str | None:
    """The content hash of the model whose results a card shows, or None where the card does not say."""
    match = re.search(r"<!-- evaluated model: ([0-9a-f]{40}) -->", card)
    return match[1] if match else None


def usage_section(model_id: str, instructions: Instructions) -> str:
    """How to use the model without instructions and, where it has some, with its prompts and with them typed by hand.

    Args:
        model_id: what the snippets load.
        instructions: what goes before queries and passages; both are empty where it has none.
    """
    load = f'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("{model_id}")\n'
    similarity = f"""\
## 使用 · Usage

```bash
pip install -U sentence-transformers
```

### 相似度、聚类、分类 · Similarity, clustering, classification

两段文本地位相同时，不加指令。

No instruction where both texts play the same part.

```python
{load}sentences = ["今天天气怎么样", "今天的天气如何"]
embeddings = model.encode(sentences, normalize_embeddings=True)
similarities = embeddings @ embeddings.T
```"""
    query, document = instructions.query, instructions.document
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
    stages: Sequence[Mapping[str, object]], pictures: Sequence[str] = (), datasets: Sequence[Mapping[str, object]] = ()
) -> str:
    """A table with one column per stage and one row per fact that any stage has, in the order they first occur.

    Args:
        stages: fact -> value, with the key "stage" for the column's title. Lists are joined with commas.
        pictures: paths of images below the model's directory.
        datasets: fact -> value of each dataset, all with the same facts, for a table with one row for each.
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
    for picture in pictures:
        lines += ["", f"![{picture.rsplit('/', 1)[-1].rsplit('.', 1)[0]}]({picture})"]
    return "\n".join(lines)


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
