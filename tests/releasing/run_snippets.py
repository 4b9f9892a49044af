"""Run by an environment with some programs: the code of each for each kind of model, and the vectors that it gives.

python run_snippets.py CODES.json, a {kind: {program: code}} -> {kind: {program: [queries, passages] or an error}}
"""

import json
import sys

import numpy as np

with open(sys.argv[1], encoding="utf-8") as file:
    codes = json.load(file)
found: dict[str, dict[str, object]] = {}
for kind, programs in codes.items():
    for program, code in programs.items():
        names: dict[str, object] = {}
        try:
            exec(code, names)
        except Exception as error:
            found.setdefault(kind, {})[program] = f"{type(error).__name__}: {error}"
            continue
        vectors = [
            np.asarray(names[which], dtype=np.float64).tolist() for which in ("query_embeddings", "passage_embeddings")
        ]
        if program == "Chroma":
            assert names["found"]["documents"] == [names["passages"]]
            names["chromadb"].Client().delete_collection("passages")
        found.setdefault(kind, {})[program] = vectors
print(json.dumps(found))
