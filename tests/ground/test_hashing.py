"""Hashes of texts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from piccolo_st.hashing import text_ids


def test_ids_are_equal_where_texts_are_and_the_same_in_every_process() -> None:
    texts = ["天气", "查询", "天气", "", "天气 "]
    ids = text_ids(texts)
    assert ids.dtype == np.int64 and ids.shape == (5,)
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 4
    code = f"from piccolo_st.hashing import text_ids; print(text_ids({texts!r}).tolist())"
    for hash_seed in ("1", "2"):
        output = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert output.stdout.strip() == str(ids.tolist())
