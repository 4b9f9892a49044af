"""One owner of a run's output directory, whose ranks are one."""

from __future__ import annotations

from pathlib import Path

from piccolo_st.distributed import on_first_rank
from piccolo_st.ownership import Ownership
from piccolo_st.ownership import own as own_path


def own(output_dir: str | Path) -> Ownership:
    """Take a run's output directory; called on every rank, the first one owns it for all.

    Args:
        output_dir: made if needed.

    Raises:
        InputError: another process has it, or it cannot be made or written to; on every rank.
    """
    path = Path(output_dir).absolute() / ".owner"
    taken: list[Ownership] = []
    on_first_rank(lambda: taken.append(own_path(path, output_dir, "train.output_dir")))
    return taken[0] if taken else Ownership(path, None)
