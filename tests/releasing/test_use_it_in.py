"""Every snippet of a card is for its model; what cannot do with the model has none, and a reason."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from piccolo_st.modeling import check_portable, keep_lengths, save_portable
from piccolo_st.modeling.lengths import set_lengths
from piccolo_st.releasing import prepare_card
from piccolo_st.releasing.card import PiccoloModelCardData
from piccolo_st.releasing.model_use import QUERY
from piccolo_st.releasing.use_it_in import snippets, use_it_in
from tests.releasing.kinds import KINDS, ONNX, TOLERANCE, ModelMaker, expected, longer, save, shown, use_of


@pytest.mark.parametrize("kind", KINDS)
def test_snippets_are_for_this_model(make_model: ModelMaker, tmp_path: Path, kind: str) -> None:
    folder = save(make_model, kind, tmp_path)
    use = use_of(folder)
    found = shown(use)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"last_hidden_state sentence_embedding")
    reports = {report.consumer: report for report in check_portable(folder)}
    assert set(found) == KINDS[kind][2]
    assert set(shown(use_of(folder, onnx=False))) == KINDS[kind][2] - ONNX
    for program, has in {snippet.program: not snippet.why_not for snippet in snippets(use)}.items():
        if program in reports:  # both say the same of every program
            other = [limit for limit in reports[program].limits if "at one length" not in limit]  # the card says it
            assert has == (not reports[program].problems and not other), (program, reports[program])
    left_out = {snippet.program for snippet in snippets(use) if snippet.why_not}
    text = use_it_in(use)
    assert all(f"- {program}: " in text for program in left_out) and text.count("<details>") == len(found)
    for server, field in (("text-embeddings-inference", "inputs"), ("vLLM", "input")):
        if server not in found:
            continue
        requests = [json.loads(shlex.split(line)[-1]) for line in found[server].code.splitlines() if "curl" in line]
        assert [request[field] for request in requests] == [[text] for text in use.typed]
        assert not any("truncation_side" in request for request in requests), "vLLM then cuts the end token off"
        assert all("use_activation" in request for request in requests) == (server == "vLLM"), "of length 1"
        cuts = [request.get("truncate_prompt_tokens") for request in requests]
        assert cuts == ([None, None] if server != "vLLM" else [16, 48] if kind == "native" else [512, 512])
    for program in {"sentence-transformers", "transformers"} & set(found):
        names: dict[str, Any] = {}
        exec(longer(found[program].code), names)
        for vectors, right in zip(
            (names["query_embeddings"], names["passage_embeddings"]), expected(folder), strict=True
        ):
            assert abs(np.asarray(vectors) - right).max() < TOLERANCE[kind]
    if not any(use.instructions.prompts.values()):
        assert not any(word in code.code for word in ('prompt"', "instruction=") for code in found.values())


@pytest.mark.parametrize("native", [True, False])
def test_the_card_promises_the_lengths_that_its_reader_gets(
    make_model: ModelMaker, tmp_path: Path, native: bool
) -> None:
    model = make_model()
    model.model_card_data = PiccoloModelCardData(model_name="tiny", local_files_only=True)
    model.model_card_data.register_model(model)
    set_lengths(model, 16, 48)
    save_portable(model, tmp_path)
    promised = "Maximum Query Length"
    assert promised not in (tmp_path / "README.md").read_text(encoding="utf-8")
    if native:
        keep_lengths(tmp_path, native=True)
    prepare_card(tmp_path, "org/name")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert promised not in card and ("of queries cut at 16 and passages at 48 tokens" in card) is native
    said = "older versions do not load the model" if native else "these programs cut both at 512. `piccolo_st.modeling"
    assert said in card and ('"task": "query"' in card) is native
    stock = SentenceTransformer(str(tmp_path), device="cpu")
    cut = np.array_equal(stock.encode_query(longer(QUERY)), stock.encode_query(longer(QUERY) + "猫"))
    assert cut is native
