"""Measure what each part of the recipe is worth: variants of one run, several seeds, one table and one picture.

python recipes/ablation.py --data.mixture.root ROOT               the variants of ablation-zh-mini.yaml
python recipes/ablation.py CONFIG.yaml --data.mixture.root ROOT --ablation.seeds "[1]"
python recipes/ablation.py CONFIG.yaml --only stock,full ...      some of them
python recipes/ablation.py CONFIG.yaml --table ...                the table of what is finished

A variant and seed that has a result for the same configuration is not run again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from piccolo_st.command import run_recipe
from piccolo_st.config import parse_overrides
from piccolo_st.errors import ConfigError
from piccolo_st.experiments import Ablation

DEFAULT = Path(__file__).parent / "configs" / "ablation-zh-mini.yaml"


def main(arguments: Sequence[str]) -> None:
    rest = list(arguments)
    if {"-h", "--help"} & set(rest):
        print(__doc__)
        sys.exit(0)
    path = Path(rest.pop(0)) if rest and not rest[0].startswith("-") else DEFAULT
    table = "--table" in rest and not rest.remove("--table")
    only = []
    if "--only" in rest:
        place = rest.index("--only")
        if not rest[place + 1 :]:
            raise ConfigError("--only needs the names of variants, got none; write --only stock,full")
        only = rest[place + 1].split(",")
        del rest[place : place + 2]
    ablation = Ablation(path, parse_overrides(rest))
    if not table:
        ablation.run(only, say=lambda line: print(line, flush=True))
    print(ablation.write())


if __name__ == "__main__":
    run_recipe(main)
