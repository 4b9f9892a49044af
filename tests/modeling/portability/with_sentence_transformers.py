"""Run by an older environment: load every checkpoint of a folder and print how far its embeddings are from those noted.

python with_sentence_transformers.py FOLDER NAME...
"""

import json
import sys

import numpy as np
import sentence_transformers
import torch
import transformers

folder, names = sys.argv[1], sys.argv[2:]
differences = {}
for name in names:
    model = sentence_transformers.SentenceTransformer(f"{folder}/{name}", device="cpu").float()
    expected = np.load(f"{folder}/{name}.npz")
    texts = expected["texts"].tolist()
    got = {kind: model.encode(texts, prompt_name=kind) for kind in ("query", "document")}
    got["plain"] = model.encode(texts)
    differences[name] = max(float(abs(vectors - expected[kind]).max()) for kind, vectors in got.items())
    with open(f"{folder}/{name}/sentence_bert_config.json") as file:
        assert model.max_seq_length == json.load(file)["max_seq_length"], name
versions = {module.__name__: module.__version__ for module in (sentence_transformers, transformers, torch)}
print(json.dumps({"versions": versions, "differences": differences}))
