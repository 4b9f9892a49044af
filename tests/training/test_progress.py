"""What a run and a command show while they work."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from piccolo_st.commands.quiet import says_something
from piccolo_st.training.progress import log_lines

REPORT = """BertModel LOAD REPORT from: model
Key                 | Status  |
--------------------+---------+-
pooler.dense.weight | \x1b[31mMISSING\x1b[0m |
{further}
Notes:
- MISSING:\tthose params were newly initialized because missing from the checkpoint."""


def test_the_loss_of_each_dataset_has_a_line_of_its_own() -> None:
    logs = {"loss": 2.3456789, "grad_norm": 1.0, "epoch": 0.5, "loss_faq": 2.0, "loss_词典": 3.0, "masked": 4.0}
    assert log_lines(20, 1000, logs) == [
        "step 20/1,000  loss 2.346  grad_norm 1  masked 4",
        "               loss_faq 2  loss_词典 3",
    ]


def test_a_search_is_read_in_percent_with_its_interval() -> None:
    logs = {"eval_faq_ndcg@10": 0.5, "eval_faq_ndcg@10_low": 0.4, "eval_faq_ndcg@10_high": 0.6, "eval_faq_recall@10": 1}
    logs |= {"eval_b_ndcg@10": 0.25, "eval_runtime": 3.0, "epoch": 1}
    assert log_lines(5, 10, logs) == [
        "step 5/10  faq: nDCG@10 50.00 (40.00 to 60.00), recall@10 100.00",
        "step 5/10  b: nDCG@10 25.00",
    ]


@pytest.mark.parametrize(("further", "said"), [("", False), ("encoder.layer.{0, 1}.bias | MISSING |", True)])
def test_weights_that_nothing_reads_are_not_reported(further: str, said: bool) -> None:
    record = logging.makeLogRecord({"msg": REPORT.format(further=further)})
    assert says_something(record) is said
    assert says_something(logging.makeLogRecord({"msg": "a | b"})) and says_something(logging.makeLogRecord({}))


def test_only_bars_that_last_are_shown() -> None:
    code = (
        "from piccolo_st.commands.quiet import quieten; quieten(); from tqdm.auto import tqdm\n"
        "list(tqdm(range(9), desc='short')); bar = tqdm(total=2, desc='long')\n"
        "bar.start_t -= 9; bar.last_print_t -= 99; bar.update(2); bar.close()\n"
        "import logging; logging.basicConfig(); logger = logging.getLogger('DeepSpeed')\n"
        "logger.warning('Setting accelerator to CPU. If you'); logger.warning('other')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "short" not in ran.stderr and "long" in ran.stderr
    assert "Setting accelerator" not in ran.stderr and "other" in ran.stderr
