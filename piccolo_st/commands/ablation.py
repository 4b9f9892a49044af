"""Measure what each part of the recipe is worth: variants of one run, several seeds, one table and one picture.

python -m piccolo_st ablation --data.mixture.root ROOT               the variants of ablation-zh-mini
python -m piccolo_st ablation CONFIG --data.mixture.root ROOT --ablation.seeds "[1]"
python -m piccolo_st ablation CONFIG --only stock,mined ...      some of them
python -m piccolo_st ablation CONFIG --table ...                the table of what is finished

CONFIG is the path of a YAML file or the name of a shipped one. A variant and seed that has a result for the same
configuration is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence

from piccolo_st import experiments  # its names are loaded where they are used
from piccolo_st.config import asks_for_help, parse_overrides
from piccolo_st.errors import ConfigError
from piccolo_st.shipped import find


def main(arguments: Sequence[str]) -> None:
    """Run the variants that have no result yet, and print the table."""
    rest = list(arguments)
    if asks_for_help(rest):
        print(__doc__)
        return
    path = find(rest.pop(0) if rest and not rest[0].startswith("-") else "ablation-zh-mini")
    table = "--table" in rest
    rest = [argument for argument in rest if argument != "--table"]
    only = []
    if "--only" in rest:
        place = rest.index("--only")
        if not rest[place + 1 :]:
            raise ConfigError("--only needs the names of variants, got none; write --only stock,mined")
        only = rest[place + 1].split(",")
        del rest[place : place + 2]
    ablation = experiments.Ablation(path, parse_overrides(rest))
    if not table:
        ablation.run(only, say=lambda line: print(line, flush=True))
    print(ablation.write())
