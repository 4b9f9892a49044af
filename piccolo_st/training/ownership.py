"""One owner of a run's output directory, whose ranks are one, and one directory for all of them."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from piccolo_st.errors import InputError
from piccolo_st.ownership import Ownership, owner_of
from piccolo_st.ownership import own as own_path
from piccolo_st.turns import fail_together, on_first_rank

#: Seconds in which a file of the first rank must be seen from every machine: NFS remembers a directory for up to 60.
SEEN_WITHIN = 70.0


def own(output_dir: str | Path) -> Ownership:
    """Take a run's output directory; called on every rank, the first one owns it for all.

    Args:
        output_dir: made if needed.

    Raises:
        InputError: another process has it, it cannot be made or written to, or a rank sees another directory there; on
            every rank.
    """
    path = Path(output_dir).absolute() / ".owner"
    taken: list[Ownership] = []

    def take() -> str:
        taken.append(own_path(path, output_dir, "train.output_dir"))
        return owner_of(path)

    first = on_first_rank(take)
    fail_together(_elsewhere(path, first))
    return taken[0] if taken else Ownership(path, None)


def _elsewhere(path: Path, first: str) -> InputError | None:
    """What is wrong where the owner's file does not appear on this rank's machine: all write parts of a checkpoint."""
    end = time.monotonic() + SEEN_WITHIN
    while owner_of(path) != first:
        if time.monotonic() > end:
            return InputError(
                f"train.output_dir must be one directory for all machines, got {path.parent}, where host "
                f"{socket.gethostname()} does not find what {first} wrote; name one on a file system that all share"
            )
        time.sleep(0.1)
    return None
