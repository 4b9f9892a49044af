"""Prepare the data of a run: see what it holds, and make it better.

python recipes/prepare.py check CONFIG     every row validated: rows, faults, lengths, duplicates; a table and a picture
python recipes/prepare.py dedup CONFIG     no row twice or nearly so, and no text of an evaluation set
python recipes/prepare.py filter CONFIG    length, language, repetition; --filter.top_k 2 for consistency as in E5
python recipes/prepare.py mine CONFIG      hard negatives; --mine.model lexical, bm25, or a SentenceTransformer

CONFIG is a mixture file, or a file with the sections below; each step writes OUTPUT/STEP/mixture.yaml, which is the
CONFIG of the next step and the data.mixture of a training run. Stopped at any point, the same command goes on.
--data.mixture.root FOLDER says where the files of a mixture file lie.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from piccolo_st.command import run_recipe
from piccolo_st.config import parse_run, read_yaml
from piccolo_st.curation import SECTIONS, STEPS, run_step
from piccolo_st.errors import ConfigError, nearest

CONFIG = Path(__file__).parent / "configs" / "prepare.yaml"


def main(arguments: Sequence[str]) -> None:
    step, *rest = arguments or ["--help"]
    if step in ("-h", "--help"):
        rest = ["--help"]
    elif step not in STEPS:
        raise ConfigError(f"the first argument must be a step, got {step!r}{nearest(step, list(STEPS))}")
    if rest and not rest[0].startswith("-") and "datasets" in read_yaml(Path(rest[0])):
        rest = ["--data.mixture", json.dumps({"file": rest[0]}), *rest[1:]]
    config = parse_run(rest, SECTIONS, CONFIG, __doc__)
    run_step(step, config["data"], config[step], config["executor"])


if __name__ == "__main__":
    run_recipe(main)
