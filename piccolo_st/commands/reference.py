"""Write recipes/REFERENCE.md and the JSON Schemas of recipes/configs, from the dataclasses that read configurations.

python -m piccolo_st.commands.reference     in a checkout, after a key, its help or its default has changed
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from piccolo_st.config import Configuration
from piccolo_st.curation import PrepareConfig
from piccolo_st.data import DatasetSpec
from piccolo_st.data.columns import ALIASES
from piccolo_st.data.layouts import LAYOUTS
from piccolo_st.data.shapes import SHAPES
from piccolo_st.data.specs import MixtureSpec
from piccolo_st.describe import JsonSchema, Key, json_schema, keys
from piccolo_st.evaluation.local_types import LocalTaskSpec
from piccolo_st.experiments.variants import AblationSettings, Variant
from piccolo_st.mining import MiningSettings
from piccolo_st.training import FinetuneConfig, PretrainConfig
from piccolo_st.training.described import LIBRARIES, made_of
from piccolo_st.training.sections import PretrainSections

RECIPES = Path(__file__).parents[2] / "recipes"

_INTRODUCTION = """# Every key of every configuration

Made by `python -m piccolo_st.commands.reference` from the code that reads them. `python -m piccolo_st finetune --help`
shows the same of the version that is installed. Inherited keys are those of
{versions}.

An editor that knows YAML schemas (VS Code with the YAML extension, any with yaml-language-server) completes keys and
underlines mistakes in a file that names its schema in the first line:

    # yaml-language-server: $schema=finetune.schema.json

The schemas lie in [configs](configs) and, in an installed package, beside `python -m piccolo_st configs quickstart`:
`finetune`, `pretrain`, `prepare`, `ablation`, `mixture` (a file of datasets) and `tasks` (evaluation tasks of one's
own). A key with a dot lies inside the one before the dot. On the command line, `--section.key value` sets one for once.
"""


_BY_ID = """Rows that name their texts, which stand elsewhere with an id each: of the corpus an id, a text and perhaps
a title, of the queries an id and a text. A judgement of a score above 0 is a row; documents judged 0 are negatives of
their query. A row that names an unknown id is rejected. `prepare describe FILE --corpus FILE --queries FILE` writes the
mixture.

A file of delimited text without a header is of texts `id, text` or `id, title, text`; of rows `query, document`,
`query, document, score`, TREC's four fields, or, with `triples` in its name, `query, positive, negative`.
"""

_SHAPES = """Of a dataset for `retrieval`, in JSON lines, JSON, Parquet, Arrow and on the Hub; in CSV and TSV
where all are texts or lists of texts. A passage is its title and its text, a conversation what is said in it. `columns`
names what is called otherwise. `python -m piccolo_st prepare describe FILE` shows the rows of a file as they will be
trained on, and writes the mixture that reads it. A row of CSV, TSV or `.xlsx` whose cell in the one column of negatives
is empty has no negative, as one with null elsewhere; any other text that is empty is a fault of its row.

A teacher's scores are read where `columns` names them: FlagEmbedding's with
`{positive_score: pos_scores, negative_score: neg_scores}`, sentence-transformers' with `{label: scores}`, a list of
the positive's and then each negative's, or of how far each negative is below the positive. A row without one finite
number for each text is rejected; what learns from them is `loss.distillation`.

The usual names, which need no `columns`, in the order in which they are looked for; of two columns with other names
`describe` writes the `columns`:
"""


def main() -> None:
    """Write every file."""
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


def files() -> dict[Path, str]:
    """Each file that is made, and what it must hold."""
    made = {
        RECIPES / "configs" / f"{name}.schema.json": json.dumps(schema, ensure_ascii=False, indent=1) + "\n"
        for name, schema in schemas().items()
    }
    return {**made, RECIPES / "REFERENCE.md": reference()}


def schemas() -> dict[str, JsonSchema]:
    """Kind of file -> its schema; mixtures and runs are referred to where they are a part of another."""
    mixture = json_schema(MixtureSpec)
    mixture["properties"]["defaults"]["anyOf"] = [{"$ref": "#/$defs/dataset"}]
    mixture["properties"]["defaults"].pop("additionalProperties")
    mixture["properties"]["datasets"]["additionalProperties"] = {
        "anyOf": [{"$ref": "#/$defs/dataset"}, {"type": "null"}]
    }
    mixture["$defs"] = {"dataset": _dataset()}
    task = json_schema(LocalTaskSpec)
    stage2 = {name: {"$ref": f"finetune.schema.json#/properties/{name}"} for name in FinetuneConfig.sections()}
    runs = {"finetune": _run(FinetuneConfig), "pretrain": _run(PretrainConfig), "prepare": _run(PrepareConfig)}
    own = PretrainSections.__annotations__
    runs["finetune"]["x-made-of"] = made_of()
    runs["pretrain"]["properties"] |= {name: other for name, other in stage2.items() if name not in own}
    settings = json_schema(AblationSettings)
    settings["properties"]["tasks"]["items"] = _scored_task(task)
    sections = {
        "ablation": settings,
        "variants": {"type": "object", "additionalProperties": _variant(), "description": "Rows of the table."},
        **stage2,
    }
    return {
        **runs,
        "ablation": _object("A stage 2 run, and what its variants change.", sections, ["variants"]),
        "mixture": mixture,
        "tasks": _object(
            "Evaluation tasks.", {"tasks": {"type": "array", "items": task, "description": "Each task."}}, ["tasks"]
        ),
    }


def _object(description: str, properties: Mapping[str, object], required: Sequence[str] = ()) -> JsonSchema:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _run(kind: type[Configuration]) -> JsonSchema:
    """Sections, each of which may be left empty."""
    sections = {name: json_schema(cls) | {"type": ["object", "null"]} for name, cls in kind.sections().items()}
    sections["data"]["properties"]["mixture"]["anyOf"][0] = {"$ref": "mixture.schema.json"}
    return _object((kind.__doc__ or "").strip(), sections)


def _dataset() -> JsonSchema:
    """A dataset where it is written: its name is its key, and a mixture that it changes may have said the rest."""
    schema = json_schema(DatasetSpec)
    del schema["properties"]["name"], schema["required"]
    schema["properties"]["mining"]["anyOf"][0] = json_schema(MiningSettings)
    return schema


def _scored_task(task: JsonSchema) -> JsonSchema:
    """A task of an ablation, or a file of some, with the group that it is part of."""
    text = {"type": "string"}
    further = {
        "group": {**text, "description": "The mean that it is part of."},
        "file": {**text, "description": "A file of tasks, in place of one."},
        "only": {"type": "array", "items": text, "description": "Names of those of the file that are scored; all."},
    }
    return {**task, "properties": {**task["properties"], **further}, "required": []}


def _variant() -> JsonSchema:
    schema = json_schema(Variant)
    del schema["properties"]["name"], schema["required"]
    return schema


def reference() -> str:
    """The tables, as Markdown."""
    versions = ", ".join(f"{name} {made_of()[name]}" for name in LIBRARIES)
    parts = [_INTRODUCTION.format(versions=versions)]
    parts += _sections("Fine-tuning: `finetune`", FinetuneConfig)
    parts += ["## Pretraining: `pretrain`\n", "The same keys, with other defaults of these:\n"]
    of_finetune = set(_keys(FinetuneConfig))
    parts += [_table(key for key in _keys(PretrainConfig) if key not in of_finetune)]
    parts += _part("## A mixture", json_schema(MixtureSpec))
    parts += _part("### A dataset of a mixture: `datasets.NAME`", _dataset())
    parts += ["### Shapes that are read as they are\n", _SHAPES, _names(), _shapes()]
    parts += ["### Data by id\n", _BY_ID, _markdown(("of", "what it is", "what names it"), LAYOUTS)]
    parts += _sections("Preparing data: `prepare`", PrepareConfig)
    parts += ["## Comparing variants: `ablation`\n", "The sections of `finetune`, and these:\n"]
    parts += _part("### ablation", json_schema(AblationSettings)) + _part("### variants.NAME", _variant())
    parts += _part("## Evaluation tasks of one's own: an item of `tasks`", json_schema(LocalTaskSpec))
    return "\n".join(parts)


def _names() -> str:
    found = [(role, ", ".join(f"`{name}`" for name in names)) for role, names in ALIASES.items()]
    return _markdown(("role", "columns"), [*found, ("negatives in several columns", "`negative_1`, `neg_2`, ...")])


def _shapes() -> str:
    cells = [(s.whose, f"`{s.row}`", s.query, s.positive, s.negative) for s in SHAPES]
    return _markdown(("of", "a row, or the file", "query", "positive", "negatives"), cells)


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]) + "\n"


def _keys(kind: type[Configuration]) -> list[Key]:
    return [key for name, cls in kind.sections().items() for key in keys(json_schema(cls), f"{name}.")]


def _sections(title: str, kind: type[Configuration]) -> list[str]:
    parts = [f"## {title}\n"]
    for name, cls in kind.sections().items():
        parts += _part(f"### {name}", json_schema(cls))
    return parts


def _part(title: str, schema: JsonSchema) -> list[str]:
    return [f"{title}\n", f"{schema['description']}\n", _table(keys(schema, ""))]


def _table(rows: Iterable[Key]) -> str:
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key in rows:
        about = key.help + (f" (Inherited from {key.parent}.)" if key.parent else "")
        default = "required" if key.default is None else f"`{key.default}`"
        cells = (f"`{key.name}`", key.kind, default, about)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
