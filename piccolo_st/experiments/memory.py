"""The highest memory of this process while something ran, as Linux counts it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """A context whose peak of resident memory is ``mib`` afterwards; None where the system does not tell."""

    def __init__(self) -> None:
        self.mib: int | None = None

    def __enter__(self) -> PeakMemory:
        with suppress(OSError):
            _RESET.write_text("5", encoding="ascii")  # forget the peak so far
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
            self.mib = int(found[1]) // 1024 if found else None
