"""Merge checkpoints of one base into one model, by weights that are given or searched on a held-out task.

    python -m piccolo_st merge OUTPUT MODEL MODEL                            # the mean of two
    python -m piccolo_st merge OUTPUT MODEL MODEL --method slerp --weights 0.7,0.3
    python -m piccolo_st merge OUTPUT MODEL MODEL --method task_arithmetic --base BASE
    python -m piccolo_st merge OUTPUT MODEL BASE --task dev.yaml             # the weights that search best on dev.yaml

Tasks are named as evaluate names them. A search that was stopped goes on where it was. Needs pip install
"piccolo_st[merge]", and for a search "piccolo_st[eval]".
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from piccolo_st import experiments  # its names are loaded where they are used
from piccolo_st.config import OptionParser
from piccolo_st.errors import ConfigError


def parser() -> OptionParser:
    """The options of a merge."""
    options = OptionParser(
        "python -m piccolo_st merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("output", type=Path, help="folder of the merged model")
    options.add_argument("models", nargs="+", help="directories, or repositories on the Hub")
    options.add_argument("--method", choices=["linear", "slerp", "task_arithmetic"], default="linear")
    options.add_argument("--base", help="whose differences task_arithmetic adds up")
    options.add_argument("--weights", help="one for each model, such as 0.7,0.3; otherwise equal, or searched")
    options.add_argument("--task", nargs="+", default=[], help="search the weights on these; .yaml files or names")
    options.add_argument("--steps", type=int, default=10, help="a weight takes 0, 1/steps, ... 1 in the search")
    return options


def main(arguments: Sequence[str]) -> None:
    """Merge, and say where the result is."""
    options = parser().parse_args(arguments)
    if options.steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {options.steps}")
    try:
        weights = None if options.weights is None else [float(part) for part in options.weights.split(",")]
    except ValueError:
        raise ConfigError(f"--weights must be numbers, such as 0.7,0.3, got {options.weights!r}") from None
    import datasets

    datasets.disable_progress_bars()
    merge = experiments.Merge(tuple(options.models), options.method, options.base)
    experiments.merge_checkpoints(
        merge,
        options.output,
        weights=weights,
        tasks=options.task,
        steps=options.steps,
        say=lambda line: print(line, flush=True),
    )
    print(f"written: {options.output}; what it is made of: {options.output / 'merge.json'}")
