"""What a run says of its rows before it starts, as a person who fine-tunes on a file of their own reads it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

DIGITS = "一二三四五六七八九十"
NUMBERS = [a + b + c for a in DIGITS for b in DIGITS for c in "天月年"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, encoder_dir: Path, command: Run) -> Run:
    """Fine-tune on rows with nothing set but where things are: (exit code, standard output, standard error)."""

    def finetune(rows: list[dict[str, Any]], task: str = "retrieval", batch: int = 0, **settings: Any) -> Any:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
        own = {"source": "rows.jsonl", "task": task, **settings}
        content: dict[str, Any] = {
            "model": {"name_or_path": str(encoder_dir)},
            "data": {"mixture": {"root": str(tmp_path), "datasets": {"faq": own}}},
            "train": {"output_dir": tempfile.mkdtemp(dir=tmp_path), "max_steps": 1},
        }
        content["data"].update({"batch_size": batch} if batch else {})
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return command("finetune", path)

    return finetune


def test_a_run_says_what_became_of_every_row(run: Run) -> None:
    rows = [{"query": f"问{n}", "positive": None if i < 135 else f"答{n}"} for i, n in enumerate(NUMBERS)]
    code, out, err = run(rows, holdout={"queries": 20, "min_corpus": 50})
    assert code == 0, err
    (line,) = (line.split() for line in out.splitlines() if line.startswith("faq"))
    assert line[:7] == ["faq", "retrieval", "300", "135", "0", "20", "145"]
    assert "faq: 135 rows rejected: positive: null" in out
    assert "faq: 20 rows held out: of a held-out query" in out
    assert "none of them is searched, since train.eval_strategy is no" in out
    assert "warning: faq: 45% of its 300 rows are rejected" in out
    (place,) = (line.rpartition(": ")[2] for line in out.splitlines() if "the rejects, row by row" in line)
    assert len(Path(place).read_text(encoding="utf-8").splitlines()) == 135


def test_a_run_on_another_scale_of_scores_says_which(run: Run) -> None:
    rows = [{"sentence1": f"甲{n}", "sentence2": f"乙{n}", "score": min(i % 9, 4)} for i, n in enumerate(NUMBERS)]
    code, _, err = run(rows, "sts")
    assert code == 2 and "set `score_range: [0, 4]`" in err
    code, out, err = run([row for row in rows if row["score"] < 4], "sts")
    assert code == 0, err
    assert "warning: faq: its scores run from 0 to 3" in out and "set `score_range: [0, 3]`" in out
    code, out, err = run(rows, "sts", score_range=[0, 4])
    assert code == 0, err
    assert "warning: faq" not in out


def test_a_dataset_that_its_loss_cannot_learn_from_is_refused(run: Run) -> None:
    pairs = [{"query": f"问{n}", "positive": f"答{n}"} for n in NUMBERS]
    for own in ({}, {"negative": []}):
        code, _, err = run([{**row, **own} for row in pairs], "classification", columns={"query": "query"})
        assert code == 2, err
        assert "dataset 'faq', OwnNegativesLoss, compares each row with its own negatives" in err
        assert "give it a column of negatives" in err
    code, _, err = run(pairs, batch=1)
    assert code == 2 and "a batch of all processes has 1; raise the batch size (data.batch_size" in err, err
    scored = [{"sentence1": row["query"], "sentence2": row["positive"], "score": 1} for row in pairs]
    code, _, err = run(scored, "sts")
    assert code == 2 and "compares rows of different scores, and all rows have the same" in err, err


def test_the_table_says_where_negatives_come_from(run: Run) -> None:
    pairs = [{"query": f"问{n}", "positive": f"答{n}"} for n in NUMBERS]
    code, out, err = run([{**row, "negative": ["错"]} for row in pairs], "classification", columns={"query": "query"})
    assert code == 0 and "  own: 1  " in out, err
    code, out, err = run(pairs)
    assert code == 0 and "  in batch  " in out, err
