"""Evaluate a model on C-MTEB or on tasks of your own, or compare two evaluated models.

    python -m piccolo_st evaluate MODEL                                      # the 35 tasks of the Piccolo cards
    python -m piccolo_st evaluate MODEL --benchmark "MTEB(cmn, v1)"          # mteb's 31 tasks and main scores of today
    python -m piccolo_st evaluate MODEL --benchmark STS T2Retrieval my.yaml  # a type, a task, local tasks
    python -m piccolo_st evaluate MODEL --truncate_dim 256,512,1024          # several dimensions from one encoding
    python -m piccolo_st evaluate MODEL --benchmark Retrieval --precision float32,int8,binary --truncate_dim 512,256
    python -m piccolo_st launch evaluate MODEL --dtype bfloat16              # the GPUs share the encoding
    python -m piccolo_st evaluate --compare results/results/org__a/REVISION results/results/org__b/REVISION
    python -m piccolo_st evaluate --compare A B --benchmark own.yaml general.yaml  # what was forgotten

Stopped at any point, the same command goes on with the task it was at. Prints a line for every task, then a table by
type, and writes the table as JSON and a picture beside the results. Options may stand in a YAML file (--config; the
shipped one is called evaluate). Needs pip install "piccolo_st[eval]".
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from piccolo_st import evaluation  # its names are loaded where they are used, some of them with mteb
from piccolo_st.config import OptionParser, read_value, read_yaml
from piccolo_st.errors import ConfigError, InputError, nearest
from piccolo_st.evaluation import Benchmark
from piccolo_st.modeling import Instructions
from piccolo_st.shipped import find
from piccolo_st.tables import table


def parser() -> OptionParser:
    """The options; a YAML file of --config may set them as well."""
    options = OptionParser(
        "python -m piccolo_st evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("model", nargs="?", help="directory, or repository on the Hub")
    options.add_argument("--config", help="YAML file with any of the options below")
    options.add_argument("--benchmark", nargs="+", default=["c-mteb-35"], help="benchmarks, types, tasks, .yaml files")
    options.add_argument("--output", type=Path, default=Path("results"), help="folder of all results")
    options.add_argument("--name", help="org/name to keep the results under")
    options.add_argument("--revision", help="branch, tag or commit of a repository")
    options.add_argument("--truncate_dim", default="", help="dimensions to score, such as 256,512,1024")
    options.add_argument("--precision", default="", help="of vectors to search with, such as float32,int8,binary")
    options.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="dtype to encode in")
    options.add_argument("--device", help="cpu, cuda, cuda:1")
    options.add_argument(
        "--instructions",
        help="in place of the model's own prompts: a preset (piccolo, none), or {query: ..., document: ...}",
    )
    options.add_argument("--tokens_per_batch", type=int, help="longest batch in tokens, padding included")
    options.add_argument("--overwrite", action="store_true", help="run every task again")
    options.add_argument(
        "--reference",
        nargs="+",
        default=[],
        help="results to stand beside: .jsonl, card, folder; rows: .yaml, c-mteb-35",
    )
    options.add_argument("--compare", nargs=2, metavar=("A", "B"), help="folders of two models' results")
    options.add_argument("--resamples", type=int, default=1000, help="bootstrap draws of --compare")
    return options


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line over the YAML file of --config; a key that is no option raises with the nearest one."""
    options = parser()
    given = options.parse_args(arguments).config
    if given is not None:
        config = find(given)
        content = read_yaml(config)
        known = [action.dest for action in options._actions if action.dest not in ("help", "config")]
        for key in content:
            if key not in known:
                raise ConfigError(f"unknown key {key!r} in {config}{nearest(key, known)}")
        options.set_defaults(**content)
    parsed = options.parse_args(arguments)
    if (parsed.model is None) == (parsed.compare is None):
        raise ConfigError("name a model to evaluate, or two folders of results with --compare")
    if (given := parsed.instructions) is not None:
        given = read_value(given, "--instructions") if isinstance(given, str) else given
        parsed.instructions = Instructions.from_plain(given, "--instructions")
    parsed.reference = [find(path) for path in parsed.reference]
    return parsed


def dimensions(text: str | int | Sequence[int]) -> list[int]:
    """The numbers of "256,512", 256 or [256, 512]."""
    parts = text.split(",") if isinstance(text, str) else text if isinstance(text, Sequence) else [text]
    try:
        return [int(part) for part in parts if str(part).strip()]
    except ValueError:
        raise ConfigError(f"--truncate_dim must be whole numbers, such as 256,512,1024, got {text!r}") from None


def words(text: str | Sequence[str]) -> list[Any]:
    """The words of "float32,int8", or of a list."""
    return [word.strip() for word in text.split(",") if word.strip()] if isinstance(text, str) else list(text)


def show(outcome: evaluation.TaskOutcome) -> None:
    """One line of the table, as soon as it is known."""
    place, label = f"[{outcome.number}/{outcome.total}]", outcome.task.label
    label += f" {outcome.truncation}d" if outcome.truncation else ""
    label += f" {outcome.precision}" if outcome.precision else ""
    score = "failed" if outcome.score is None else f"{outcome.score:.2f}"
    time = "kept" if outcome.seconds is None else f"{outcome.seconds:.1f} s"
    print(f"{place:>8} {outcome.task.type:<18} {label:<38} {outcome.task.metric:<16} {score:>6}  {time}", flush=True)
    if outcome.note:
        print(f"{'':>8} {outcome.note}", flush=True)


def reference(path: Path, benchmark: Benchmark) -> list[evaluation.ModelScores]:
    """The models of a file of results, or of a YAML file of averages, that are scored by this definition."""
    if path.suffix in (".yaml", ".yml"):
        return evaluation.read_rows(path, benchmark)
    found = evaluation.task_scores(evaluation.read_results(path, benchmark), benchmark)
    models = [evaluation.ModelScores.of(path.resolve().parent.name, found, benchmark)] if found else []
    if not models:
        print(f"left out: {path} has nothing that is scored by the definition of {benchmark.name}")
    return models


def report(group: Sequence[evaluation.Evaluation], references: Sequence[Path], output: Path) -> None:
    """Table, JSON and picture of one group of tasks; each setting of the model is a column, then the references."""
    benchmark = group[0].benchmark
    models = [each.model_scores for each in group]
    for path in references:
        models += reference(path, benchmark)
    print(f"\n{evaluation.score_table(models, benchmark)}")
    base = group[0].folder.parent.parent if group[0].settings else group[0].folder
    dtype = cast("str | None", group[0].settings.get("dtype"))
    if rows := evaluation.read_vector_rows(base, benchmark, dtype):
        print(f"\n{vector_table(rows)}")
    stem = f"{benchmark.name}--{group[0].identity.name.replace('/', '__')}--{group[0].identity.revision[:8]}"
    folder = output / "tables"
    for each in group:
        setting = "".join(f"--{key}-{value}" for key, value in each.settings.items())
        print(f"written: {each.save(folder / f'{stem}{setting}.json')}")
        for task, failure in each.failures.items():
            print(f"failed: {task}: {failure}")
    try:
        print(f"written: {evaluation.plot_evaluations(models, benchmark, folder / f'{stem}.png')}")
    except InputError as error:
        print(f"no picture: {error}")


def vector_table(rows: Sequence[evaluation.VectorRow]) -> str:
    """Small vectors, a row for each size."""
    header = ["dimension", "precision", "bytes", "score", "% of float32", "s for 1,000 queries"]
    cells = [
        [one.dimension, one.precision, one.size, one.score, "" if one.share is None else one.share,
         "" if one.seconds is None else one.seconds]
        for one in rows
    ]  # fmt: skip
    return f"search with small vectors, mean over the retrieval tasks\n{table(header, cells)}"


def main(arguments: Sequence[str]) -> None:
    """Evaluate a model, or compare two."""
    options = parse(arguments)
    if options.compare:
        a, b = options.compare
        print(f"A is {a}\nB is {b}")
        for group in evaluation.select(options.benchmark):
            print(evaluation.compare_models(a, b, group.benchmark, resamples=options.resamples).table())
        return
    import datasets  # once the command line is understood: it takes seconds

    from piccolo_st.distributed import process_state

    datasets.disable_progress_bars()
    for module in (r"mteb\.", r"sklearn\."):
        warnings.filterwarnings("ignore", module=module)
    logging.getLogger("mteb").setLevel(logging.ERROR)
    evaluations = evaluation.evaluate(
        options.model,
        options.benchmark,
        output=options.output,
        name=options.name,
        revision=options.revision,
        truncate_dim=dimensions(options.truncate_dim),
        precision=words(options.precision),
        dtype=options.dtype,
        device=options.device,
        instructions=options.instructions,
        tokens_per_batch=options.tokens_per_batch,
        overwrite=options.overwrite,
        on_task=show,
        progress=os.isatty(2),
    )
    if not process_state().is_main_process:
        return
    for name in dict.fromkeys(each.benchmark.name for each in evaluations):
        report([each for each in evaluations if each.benchmark.name == name], options.reference, options.output)
    failed = {task for each in evaluations for task in each.failures}
    if failed:
        raise InputError(f"{len(failed)} tasks have no result: {', '.join(sorted(failed))}; the reasons stand above")
