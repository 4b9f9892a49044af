"""Check a saved model, show what releasing it would change on the Hub, and with --push release it.

    python -m piccolo_st release MODEL_DIR ORG/NAME                         # checks and a dry run; nothing is sent
    python -m piccolo_st release MODEL_DIR ORG/NAME --fill-card --run-dir RUN # finish the card first: README.md
    python -m piccolo_st release MODEL_DIR ORG/NAME --onnx                  # with onnx/model.onnx, written and compared
    python -m piccolo_st release MODEL_DIR ORG/NAME --results results/results/org__name/REVISION --compare ROWS.yaml
    python -m piccolo_st release MODEL_DIR ORG/NAME --push --tag v1.0       # private; one commit, verified, tagged
    python -m piccolo_st release MODEL_DIR ORG/NAME --push --public
    python -m piccolo_st release RUN/adapter ORG/NAME --adapter --fill-card --run-dir RUN # a LoRA adapter, not merged
    python -m piccolo_st release MODEL_DIR ORG/NAME --push --space          # and a page to search with it, as a Space

Interrupted or refused at any point, the same command goes on from there. Log in with `hf auth login` or set HF_TOKEN.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from piccolo_st import evaluation, modeling, releasing  # their names are loaded where they are used
from piccolo_st.config import OptionParser
from piccolo_st.errors import ConfigError
from piccolo_st.evaluation import C_MTEB_35, Benchmark
from piccolo_st.shipped import find


def parser() -> OptionParser:
    """The options of a release."""
    options = OptionParser(
        "python -m piccolo_st release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("model_dir", type=Path, help="directory of a saved model")
    options.add_argument("repo_id", help="where it goes: org/name")
    options.add_argument("--push", action="store_true", help="release; otherwise show what would happen")
    options.add_argument(
        "--public", dest="private", action="store_false", help="make the repository public once the release is verified"
    )
    options.add_argument("--revision", default="main", help="branch to release to")
    options.add_argument(
        "--pull-request", dest="create_pr", action="store_true", help="open a pull request instead of committing"
    )
    options.add_argument("--tag", help="tag for the commit, such as v1.0")
    options.add_argument("--message", help="title of the commit")
    options.add_argument("--parent", help="refuse unless the branch is still at this commit")
    options.add_argument("--include", nargs="+", default=[], help="patterns of further files to publish")
    options.add_argument("--exclude", nargs="+", default=[], help="patterns of files to leave out")
    options.add_argument("--delete", nargs="+", default=[], help="patterns of remote files to delete")
    options.add_argument(
        "--adapter", action="store_true", help="release an adapter as it is, for its base, not the whole model"
    )
    options.add_argument("--foreign-results", action="store_true", help="publish results that name no model")
    options.add_argument("--timeout", type=float, help="seconds that the Hub may be silent, by default 60")
    options.add_argument("--deadline", type=float, help="seconds for all requests; by default 600, and 4 for every MB")
    options.add_argument(
        "--onnx",
        nargs="?",
        const="float32",
        choices=["float32", "int8"],
        help="write onnx/model.onnx first, compared with torch; int8: and onnx/model_quantized.onnx, a quarter of it",
    )
    options.add_argument(
        "--lengths",
        choices=["native", "portable"],
        help="of queries and documents: honoured by sentence-transformers 6, and older ones do not load it; or loaded "
        "by all, which cut both at one length, as every model is saved",
    )
    space = options.add_argument_group("a page to search with the model, as a Space; see python -m piccolo_st demo")
    space.add_argument("--space", nargs="?", const="", help="release it too; its org/name, by default the model's")
    space.add_argument("--corpus", help="its texts: text file or BEIR folder; the quickstart's definitions by default")
    space.add_argument("--limit", type=int, default=1000, help="texts at most, evenly drawn; embedded at every start")
    card = options.add_argument_group("the card, changed on disk before the checks")
    card.add_argument("--fill-card", action="store_true", help="write the usage of the model by the repository's id")
    card.add_argument("--license", help="identifier of its license, such as mit")
    card.add_argument("--language", nargs="+", help="its languages, such as zh")
    card.add_argument("--results", type=Path, help="folder of result files, named after the model's content hash")
    card.add_argument("--benchmark", default=C_MTEB_35.name, help="definition of the results' averages, or .yaml")
    card.add_argument("--compare", help="YAML file of rows to compare with, or c-mteb-35")
    card.add_argument("--run-dir", type=Path, help="output directory of the run, for the training part")
    return options


_OF_WHOLE_MODELS = ("onnx", "lengths", "space")


def definition(name: str) -> Benchmark:
    """The benchmark of that name, or that a file of local tasks (.yaml) defines."""
    if not name.endswith((".yaml", ".yml")):
        return evaluation.get_benchmark(name)
    return evaluation.select(name)[0].benchmark


def main(arguments: Sequence[str]) -> None:
    """Check, show what would change, and with --push release."""
    options = parser().parse_args(arguments)
    from piccolo_st.demo.corpus import read_corpus, thin_out  # once the command line is understood: they take seconds
    from piccolo_st.demo.space import release_space

    modeling.check_whole(options.model_dir, options.adapter)  # before anything is written into it
    if options.adapter and (more := [f"--{name}" for name in _OF_WHOLE_MODELS if getattr(options, name) is not None]):
        raise ConfigError(
            f"--adapter must come without what needs a whole model, got {' and '.join(more)}; leave that out, or "
            "release the model that its run left"
        )
    if options.lengths:
        modeling.keep_lengths(options.model_dir, native=options.lengths == "native")
    if options.onnx:  # before the card, which says how to use it
        modeling.export_onnx(options.model_dir, int8=options.onnx == "int8")
    metadata = {key: value for key in ("license", "language") if (value := getattr(options, key))}
    if options.fill_card or options.results or options.run_dir or metadata:
        benchmark = definition(options.benchmark)
        releasing.prepare_card(
            options.model_dir,
            options.repo_id,
            results=options.results,
            benchmark=benchmark,
            comparison=evaluation.read_rows(find(options.compare), benchmark) if options.compare else (),
            run_dir=options.run_dir,
            metadata=metadata,
        )
    texts = thin_out(read_corpus(options.corpus), options.limit) if options.space is not None else []
    given = vars(options)  # options of a release have the names of its fields
    kind = releasing.ReleaseOptions
    whole = kind(**{one.name: given[one.name] for one in fields(kind) if given.get(one.name) is not None})
    releasing.release(options.model_dir, options.repo_id, whole)
    if options.space is not None:
        print()
        release_space(
            options.repo_id,
            texts,
            kind(push=whole.push, private=whole.private, timeout=whole.timeout, deadline=whole.deadline),
            space_id=options.space or None,
            model_revision=options.tag or options.revision,
        )


def card(arguments: Sequence[str]) -> None:
    """Write the README.md of folders of data files; with ``--check`` exit with 1 where one is not what its data say."""
    options = OptionParser("python -m piccolo_st card", description="Write the README.md of folders with a card.yaml.")
    options.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a folder with a card.yaml")
    options.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a card would change")
    chosen = options.parse_args(arguments)
    stale = 0
    for folder in chosen.folders:
        text = releasing.card_from_folder(folder)
        path = folder / "README.md"
        same = path.exists() and path.read_text(encoding="utf-8") == text
        if not same and not chosen.check:
            path.write_text(text, encoding="utf-8")
        stale += chosen.check and not same
        print(f"{path}: {'unchanged' if same else 'out of date' if chosen.check else 'written'}")
    if stale:
        sys.exit(1)
