"""Cards of folders: written from data files, or renewed with the results of an evaluation.

A folder of data files (model_cards/NAME) holds ``card.yaml``, whose keys are the fields of PiccoloModelCardData
(``comparison`` names a YAML file of rows, ``like`` another card.yaml, whose keys hold where this one has none), and
where results are known ``results.jsonl`` or a folder ``results`` of mteb's files. ``card_from_folder`` makes the
README.md from them and from nothing else, so data and card cannot drift apart unnoticed.

A model directory already has a README.md, written when the model was saved and perhaps edited since. ``add_results``
puts results into its metadata and its evaluation part and leaves the rest as it is; ``prepare_card`` does that and
whatever else a release asks of a card.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer

from piccolo_st.config import load_yaml, read_yaml
from piccolo_st.errors import InputError, nearest, reason
from piccolo_st.evaluation import (
    C_MTEB_35,
    Benchmark,
    ModelScores,
    TaskResult,
    VectorRow,
    get_benchmark,
    read_results,
    read_rows,
    read_vector_rows,
    task_scores,
)
from piccolo_st.modeling import content_hash, load_pretrained, resolve_instructions, saved_lengths
from piccolo_st.releasing.adapter_card import ALONE, MERGED, fill_card, is_of_the_run, read_adapter
from piccolo_st.releasing.card import (
    PLACEHOLDER_ID,
    PiccoloModelCardData,
    dataset_facts,
    model_facts,
    model_use,
    render_card,
    stage_facts,
)
from piccolo_st.releasing.card_sections import (
    evaluated_mark,
    evaluation_section,
    replace_block,
    replace_usage,
    training_section,
    usage_section,
)
from piccolo_st.releasing.checks import PROBES
from piccolo_st.releasing.eval_results import eval_result_files, eval_results
from piccolo_st.releasing.record import RunRecord
from piccolo_st.shipped import find


def card_from_folder(folder: str | Path) -> str:
    """The card that the data files of a folder describe.

    Raises:
        InputError: card.yaml is missing or has a key that no field has; a results file is broken.
    """
    folder = Path(folder)
    path = folder / "card.yaml"
    content = read_yaml(path)
    if "like" in content:
        content = {**read_yaml(folder / str(content.pop("like"))), **content}
    known = [item.name for item in dataclasses.fields(PiccoloModelCardData) if item.init]
    values: dict[str, Any] = {"local_files_only": True, "generate_widget_examples": False}
    for key, value in content.items():
        if key not in known:
            raise InputError(f"unknown key {key!r} in {path}{nearest(key, known)}")
        values[key] = value
    values["benchmark"] = get_benchmark(values.get("benchmark", C_MTEB_35.name))
    values["instructions"] = resolve_instructions(values.get("instructions", "none"))
    if "comparison" in values:
        rows = read_rows(find(values["comparison"], folder), values["benchmark"])
        values["comparison"] = [row for row in rows if row.model != content.get("model_id")]
        values["reported"] = next((row for row in rows if row.model == content.get("model_id")), None)
    for name in ("results", "results.jsonl"):
        if (folder / name).exists():
            values["results"] = read_results(folder / name)
    return render_card(PiccoloModelCardData(**values))


def add_results(
    model_dir: str | Path,
    results: Sequence[TaskResult],
    own: ModelScores,
    benchmark: Benchmark = C_MTEB_35,
    *,
    evaluated: str,
    comparison: Sequence[ModelScores] = (),
    vectors: Sequence[VectorRow] = (),
) -> None:
    """Write results into the README.md and the ``.eval_results`` files of a model directory.

    Args:
        model_dir: the directory; its README.md has to exist.
        results: what was measured, see :func:`read_results`. They replace results of an earlier evaluation.
        own: the scores of these results, by the Hub id under which the model is or will be published.
        benchmark: the definition by which they are averaged.
        evaluated: the content hash of the evaluated model; a release compares it with what it is about to publish.
        comparison: other models in its table, scored by the same definition.
        vectors: what came of searching with small vectors; see :func:`piccolo_st.evaluation.read_vector_rows`.

    Raises:
        InputError: there is no README.md, or its metadata cannot be read.
    """
    card = _load_card(Path(model_dir))
    data = cast(ModelCardData, card.data)
    data.model_name = own.model.split("/")[-1]
    others = [result for result in data.eval_results or [] if not result.dataset_name.startswith("MTEB ")]
    data.eval_results = eval_results(results) + others
    data.tags = list(dict.fromkeys([*(data.tags or []), "mteb"]))
    section = evaluation_section(own, benchmark, comparison, evaluated, vectors)
    card.text = replace_block(card.text, "evaluation", section).replace(PLACEHOLDER_ID, own.model)
    (Path(model_dir) / "README.md").write_text(str(card), encoding="utf-8")
    for old in (Path(model_dir) / ".eval_results").glob("*.yaml"):
        entries = load_yaml(old)
        if isinstance(entries, list) and any((entry.get("source") or {}).get("name") == "mteb" for entry in entries):
            old.unlink()
    for name, text in eval_result_files(results, benchmark).items():
        file = Path(model_dir) / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


def add_training(model_dir: str | Path, run_dir: str | Path) -> None:
    """Write what the run was that trained a model into its README.md, from the run's record, and its curves beside it.

    Of a run that left another model, such as this one in another precision, only the facts are written, not the gains
    and the curves: they were measured on that one.

    Args:
        model_dir: the saved model; its README.md has to exist.
        run_dir: the output directory of the run, with ``config.yaml``, ``run.json`` and perhaps ``curves.png``.

    Raises:
        InputError: a file is missing or broken.
    """
    folder, record, pictures = Path(model_dir), RunRecord.read(Path(run_dir)), []
    card = _load_card(folder)
    facts, adapter, evaluated = stage_facts(record), read_adapter(folder) is not None, record.content_hash
    if "adapter" in facts:
        facts["adapter"] = f"{facts['adapter']}, {ALONE if adapter else MERGED}"
    trusted = bool(record.configuration.get("model", {}).get("trust_remote_code"))  # which the run had to ask for
    model = load_pretrained(SentenceTransformer, str(folder), "the model", device="cpu", trust_remote_code=trusted)
    own = content_hash(model)
    same = is_of_the_run(model, Path(run_dir), evaluated, list(PROBES)) if adapter else own == evaluated
    if not same:
        print(f"left out: gains and curves of {run_dir}, since {folder} is not known to be the model that it left")
    elif (Path(run_dir) / "curves.png").exists():
        shutil.copyfile(Path(run_dir) / "curves.png", folder / "curves.png")
        pictures.append("curves.png")
    section = training_section([facts], pictures, dataset_facts(record), record.gains if same else ())
    if same and evaluated:  # what the run measured at its end, it measured on this model
        section += f"\n\n{evaluated_mark(own)}"
        card.text = card.text.replace(evaluated_mark(evaluated), evaluated_mark(own))
    card.text = replace_block(card.text, "training", section)
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def prepare_card(
    model_dir: str | Path,
    model_id: str,
    *,
    results: str | Path | None = None,
    benchmark: Benchmark = C_MTEB_35,
    comparison: Sequence[ModelScores] = (),
    run_dir: str | Path | None = None,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Make the card of a saved model ready for its release: usage by its id, metadata, training facts, results.

    Args:
        model_dir: the saved model; its README.md changes.
        model_id: the Hub id under which it will be published.
        results: the folder of its result files, ``.../org__name/REVISION``. The revision has to be the content hash
            of this model, so another model's results are refused.
        benchmark: the definition by which they are averaged.
        comparison: other models in its table, scored by the same definition.
        run_dir: the output directory of the run that trained it, with ``config.yaml``, ``run.json`` and ``curves.png``.
        metadata: fields of the card's metadata to set, such as license and language.

    Raises:
        InputError: a file is missing or broken, or the results belong to another model or to another benchmark.
    """
    folder = Path(model_dir)
    card, adapter = _load_card(folder), read_adapter(folder)
    if adapter:
        card = fill_card(card, adapter, folder, Path(run_dir) if run_dir is not None else None)
    model = load_pretrained(SentenceTransformer, str(folder), "the model", device="cpu")
    evaluated = content_hash(model)
    measured, scores = _results_of(folder, evaluated, Path(results), benchmark) if results is not None else ([], {})
    for key, value in (metadata or {}).items():
        card.data[key] = value
    onnx = (folder / "onnx" / "model.onnx").exists()
    use = model_use(model, model_id, onnx, saved_lengths(folder))
    if adapter:
        use = dataclasses.replace(use, base=adapter.base_model_name_or_path, base_revision=adapter.revision)
    card.text = replace_usage(card.text, usage_section(use))
    card.text = card.text.replace(PLACEHOLDER_ID, model_id)
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    if run_dir is not None:
        add_training(folder, run_dir)
    if results is None:
        return
    own = ModelScores.of(model_id, scores, benchmark, model_facts(model))
    others = [row for row in comparison if row.model != model_id]
    vectors = read_vector_rows(results, benchmark)
    add_results(folder, measured, own, benchmark, evaluated=evaluated, comparison=others, vectors=vectors)


def _results_of(
    folder: Path, evaluated: str, results: Path, benchmark: Benchmark
) -> tuple[list[TaskResult], dict[str, float]]:
    """What was measured on the model in a folder, of that content hash, and what counts of it for the benchmark."""
    if results.name != evaluated:
        raise InputError(
            f"the results in {results} belong to the model with the content hash {results.name[:12]}, {folder} "
            f"has {evaluated[:12]}; evaluate this directory, and give the folder named after its hash"
        )
    measured = read_results(results, benchmark)
    scores = task_scores(measured, benchmark)
    if not scores:
        found = ", ".join(sorted({one.dataset_name.removeprefix("MTEB ") for one in measured}))
        raise InputError(
            f"{results} must hold a whole task of {benchmark.name}, got only {found}; name the benchmark or the file "
            "of tasks that the results are of with --benchmark"
        )
    return measured, scores


def _load_card(folder: Path) -> ModelCard:
    path = folder / "README.md"
    if not path.is_file():
        raise InputError(f"{folder} has no README.md; save the model with its card first")
    try:
        return ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"the metadata of {path} cannot be read: {reason(error)}") from None
