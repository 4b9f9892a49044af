"""Prepare the data of a run: see what it holds, and make it better.

python -m piccolo_st prepare describe FILE... what a file holds, and the mixture that reads it; --model, --output
python -m piccolo_st prepare split CONFIG     rows of every dataset kept for a test, by seed; tasks.yaml for `evaluate`
python -m piccolo_st prepare check CONFIG     every row validated: faults, lengths, duplicates; a table and a picture
python -m piccolo_st prepare dedup CONFIG     no row twice or nearly so, and no text of an evaluation set
python -m piccolo_st prepare filter CONFIG    length, language, repetition; --filter.top_k 2 for consistency as in E5
python -m piccolo_st prepare mine CONFIG      hard negatives; --mine.model lexical, bm25, or a SentenceTransformer

CONFIG is a mixture file, or a file with the sections below, or the name of a shipped one; each step writes
OUTPUT/STEP/mixture.yaml, which is the CONFIG of the next step and the data.mixture of a training run. Stopped at any
point, the same command goes on. --data.mixture.root FOLDER says where the files of a mixture file lie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from piccolo_st.config import OptionParser, parse_run, read_yaml
from piccolo_st.curation import STEPS, PrepareConfig, describe, run_step
from piccolo_st.errors import ConfigError, nearest
from piccolo_st.shipped import find, shipped


def main(arguments: Sequence[str]) -> None:
    """Run the step that the first argument names."""
    step, *rest = arguments or ["--help"]
    if step in ("-h", "--help"):
        rest = ["--help"]
    elif step == "describe":
        options = OptionParser("python -m piccolo_st prepare describe", description=describe.__doc__)
        options.add_argument("sources", nargs="*", help="files, folders, globs, or ids of datasets on the Hub")
        options.add_argument("--model", help="whose tokenizer measures lengths; characters without")
        options.add_argument("--output", type=Path, help="write the mixture to this new file")
        given = options.parse_args(rest)
        return describe(given.sources, given.model, given.output)
    elif step not in STEPS:
        raise ConfigError(f"the first argument must be a step, got {step!r}{nearest(step, ['describe', *STEPS])}")
    if rest and not rest[0].startswith("-"):
        place = rest.pop(0)
        path = find(place)
        mixture = "datasets" in read_yaml(path)
        rest = ["--data.mixture", json.dumps({"file": place}), *rest] if mixture else [str(path), *rest]
    config = parse_run(rest, PrepareConfig, shipped()["prepare"], __doc__)
    run_step(step, config.data, getattr(config, step), config.executor)
