"""Every command of the package: ``python -m piccolo_st COMMAND``, or behind a launcher ``... launch COMMAND``.

A command's code stands in commands/, and is imported when the command is run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from piccolo_st.commands.exit import run_command
from piccolo_st.commands.quiet import quieten
from piccolo_st.errors import ConfigError, nearest

# command -> its function, and what it does
COMMANDS = {
    "launch": ("commands.launch.main", "another command in a process for each GPU, as accelerate launch does"),
    "finetune": ("commands.train.finetune", "train on labelled pairs and triplets, stage 2"),
    "pretrain": ("commands.train.pretrain", "train on pairs, stage 1"),
    "prepare": ("commands.prepare.main", "check, deduplicate and filter data, mine hard negatives"),
    "evaluate": ("commands.evaluate.main", "score a model on C-MTEB or your own tasks; compare two models"),
    "release": ("commands.release.main", "check a model, show what would change on the Hub, push it"),
    "card": ("commands.release.card", "write the README.md of folders with a card.yaml"),
    "configs": ("shipped.main", "list the shipped configurations, or say where one lies"),
    "merge": ("commands.merge.main", "one model out of several checkpoints of one base"),
    "demo": ("commands.demo.main", "a page to see a model search"),
    "ablation": ("commands.ablation.main", "measure what each part of a recipe is worth"),
}
USAGE = """usage: python -m piccolo_st COMMAND ...
       python -m piccolo_st launch COMMAND ...

{commands}

COMMAND --help says what it takes."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the first argument names, by default of the program's own command line; then exit."""
    run_command(dispatch, sys.argv[1:] if arguments is None else arguments)


def dispatch(arguments: Sequence[str]) -> None:
    """Hand the other arguments to the command that the first one names."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"{name:>10}  {does}" for name, (_, does) in COMMANDS.items())))
        return
    if name not in COMMANDS:
        raise ConfigError(f"the first argument must be a command, got {name!r}{nearest(name, list(COMMANDS))}")
    quieten()
    module, _, function = COMMANDS[name][0].rpartition(".")
    getattr(import_module(f"piccolo_st.{module}"), function)(rest)


if __name__ == "__main__":
    main()
