"""What a command shows of its libraries: the bars that last, and no message that asks nothing of its reader.

By their own switches: tqdm reads its environment, and a logger its filters. A variable that the user set stays.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from functools import partial

# logger -> what is left out of it, and why
_LEFT_OUT = {
    "DeepSpeed": r"Setting accelerator to CPU",  # a run says what it computes on
    "transformers.trainer_utils": r"new PAD/BOS/EOS tokens that differ",  # a tokenizer's are the ones to keep
}
_UNREAD = re.compile(r"(^|\.)pooler\.|\.position_ids$")  # weights that no embedding is made of


def quieten() -> None:
    """Show bars of more than 3 s only, in a log one line of them in 15 s, and leave out what is known to say nothing.

    To be called before tqdm is imported.
    """
    os.environ.setdefault("TQDM_DELAY", "3")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "15")
        os.environ.setdefault("TQDM_MAXINTERVAL", "15")
    for name, pattern in _LEFT_OUT.items():
        logging.getLogger(name).addFilter(partial(_is_other, re.compile(pattern)))
    logging.getLogger("transformers.modeling_utils").addFilter(says_something)


def _is_other(left_out: re.Pattern[str], record: logging.LogRecord) -> bool:
    return left_out.search(record.getMessage()) is None


def says_something(record: logging.LogRecord) -> bool:
    """Whether a message is more than a report of weights that were missing or left over and that nothing reads."""
    rows = re.findall(r"^([^|\n]+?) *\|", record.getMessage(), re.MULTILINE)
    weights = [name for name in rows if name != "Key"]
    return not weights or not all(map(_UNREAD.search, weights))
