"""Hashes of texts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa

from piccolo_st.hashing import text_hashes, text_ids


def test_hashes_are_equal_where_texts_are_and_the_same_in_every_process() -> None:
    texts = ["天气", "查询", "天气", "", None, "天气 "]
    hashes = text_hashes(texts)
    assert hashes.dtype == np.uint64 and hashes.shape == (6,)
    assert text_ids(texts[:4]).tolist() == hashes[:4].view(np.int64).tolist()
    assert hashes[0] == hashes[2] and hashes[3] == hashes[4]
    assert len(set(hashes.tolist())) == 4
    assert (text_hashes(texts, 1) != hashes).all()
    assert (text_hashes(pa.array(texts)) == hashes).all()
    code = f"from piccolo_st.hashing import text_hashes; print(text_hashes({texts!r}).tolist())"
    for hash_seed in ("1", "2"):
        output = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert output.stdout.strip() == str(hashes.tolist())
