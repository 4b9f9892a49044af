"""Run by any environment: mean pooling by hand, with transformers alone, compared with what was noted.

python with_transformers.py FOLDER NAME...
"""

import json
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

folder, names = sys.argv[1], sys.argv[2:]
differences = {}
for name in names:
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/{name}")
    model = AutoModel.from_pretrained(f"{folder}/{name}").eval().float()
    expected = np.load(f"{folder}/{name}.npz")
    worst = 0.0
    for kind, instruction in (("plain", ""), ("query", "查询："), ("document", "结果：")):
        texts = [instruction + text for text in expected["texts"].tolist()]
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        vectors = (hidden * mask).sum(1) / mask.sum(1)
        worst = max(worst, float(abs(vectors.numpy() - expected[kind]).max()))
    differences[name] = worst
assert "sentence_transformers" not in sys.modules
print(json.dumps({"versions": {"transformers": transformers.__version__}, "differences": differences}))
