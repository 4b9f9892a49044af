"""Prepare the data of a run: see what it holds, and make it better.

python -m piccolo_st prepare describe FILE... what it holds, the mixture that reads it; --output, --encoding, --model
python -m piccolo_st prepare split CONFIG     rows of every dataset kept for a test, by seed; tasks.yaml for `evaluate`
python -m piccolo_st prepare check CONFIG     every row validated: faults, lengths, duplicates; a table and a picture
python -m piccolo_st prepare dedup CONFIG     no row twice or nearly so, and no text of an evaluation set
python -m piccolo_st prepare filter CONFIG    length, language, repetition; --filter.top_k 2 for consistency as in E5
python -m piccolo_st prepare mine CONFIG      hard negatives; --mine.model lexical, bm25, or a SentenceTransformer
python -m piccolo_st prepare score CONFIG     a cross-encoder's scores to learn from; --score.model, loss.distillation

CONFIG is a mixture file, or a file with the sections below, or the name of a shipped one; each step writes
OUTPUT/STEP/mixture.yaml, which is the CONFIG of the next step and the data.mixture of a training run. Stopped at any
point, the same command goes on. --data.mixture.root FOLDER says where the files of a mixture file lie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from piccolo_st import curation  # its names are loaded where they are used
from piccolo_st.config import OptionParser, asks_for_help, parse_run, read_yaml, usage
from piccolo_st.errors import ConfigError, nearest
from piccolo_st.shipped import find, schema, shipped

_DESCRIBE = "Look at files, say what they hold, and write the mixture that reads them."


def main(arguments: Sequence[str]) -> None:
    """Run the step that the first argument names."""
    step, *rest = arguments or ["--help"]
    if step == "describe":
        options = OptionParser("python -m piccolo_st prepare describe", description=_DESCRIBE)
        options.add_argument("sources", nargs="*", help="files, folders, globs, or ids of datasets on the Hub")
        options.add_argument("--model", help="whose tokenizer measures lengths; characters without")
        options.add_argument("--output", type=Path, help="write the mixture to this new file")
        options.add_argument("--corpus", help="where the documents stand that the rows name by id")
        options.add_argument("--queries", help="where the queries stand that the rows name by id")
        options.add_argument("--encoding", help="of their text, as Python names it: gb18030, utf-16; UTF-8 without")
        given = options.parse_args(rest)
        texts = {name: place for name in ("corpus", "queries") if (place := getattr(given, name))}
        return curation.describe(given.sources, given.model, given.output, texts, given.encoding)
    if asks_for_help([step, *rest]):
        print(usage(schema("prepare")["properties"], shipped()["prepare"], __doc__))
        return
    if step not in curation.STEPS:
        known = ["describe", *curation.STEPS]
        raise ConfigError(f"the first argument must be a step, got {step!r}{nearest(step, known)}")
    if rest and not rest[0].startswith("-"):
        place = rest.pop(0)
        path = find(place)
        mixture = "datasets" in read_yaml(path)
        rest = ["--data.mixture", json.dumps({"file": place}), *rest] if mixture else [str(path), *rest]
    config = parse_run(rest, curation.PrepareConfig, shipped()["prepare"])
    curation.run_step(step, config.data, getattr(config, step), config.executor)
