"""recipes/quickstart.ipynb, executed as a person does, from a small checkpoint."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from piccolo_st.modeling import EncoderSettings
from piccolo_st.modeling.tiny_bert import build_encoder
from tests.readme_commands import ROOT

NOTEBOOK = ROOT / "recipes" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_cell_but_the_installation_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    data = ROOT / "tests" / "data" / "faq" / "faq.csv"
    settings = EncoderSettings(vocab_size=2000, hidden_size=32, layers=1, heads=2, intermediate_size=64)
    texts = data.read_text(encoding="utf-8").splitlines()
    build_encoder(settings, [*texts, *["query: passage: "] * 9], tmp_path / "checkpoint")
    (tmp_path / "tests" / "data" / "faq").mkdir(parents=True)
    shutil.copy(data, tmp_path / "tests" / "data" / "faq")
    (tmp_path / "recipes").mkdir()

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "no outputs are kept that nobody measured"
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    [chosen] = [cell for cell in notebook.cells if 'os.environ["CHECKPOINT"]' in cell.source]
    for written, tried in (("intfloat/multilingual-e5-small", "../checkpoint"), ('"28"', '"2"')):
        assert written in chosen.source
        chosen.source = chosen.source.replace(written, tried)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    place = {"metadata": {"path": str(tmp_path / "recipes")}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()

    said = {
        cell.source: "".join(str(one.get("text", one.get("data", ""))) for one in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }

    def output(part: str) -> str:
        [found] = [text for source, text in said.items() if part in source]
        return found

    assert "第一次来图书馆" in output("prepare split") and "207" in output("prepare split")
    assert "faq-test" in output("--name faq/before") and "95% interval" in output("--compare")
    assert "step 2/2" in output("finetune") and "image/png" in output("Image(")
    assert "怎么续借 -> " in output("encode_query")
