"""A soak of two minutes (tests/soak.py), and that a seed draws the same rounds again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import soak


def test_a_seed_draws_the_same_rounds_and_all_kinds_of_events() -> None:
    drawn = [soak.draw(7, number) for number in range(40)]
    assert drawn == [soak.draw(7, number) for number in range(40)]
    assert drawn != [soak.draw(8, number) for number in range(40)]
    assert {event.what for one in drawn for event in one.events} == {*soak.SIGNALS, "disk"}
    assert {(one.case.world, one.case.engine) for one in drawn} >= {(1, "ddp"), (2, "ddp"), (1, "zero1"), (2, "zero1")}
    assert any(one.elastic for one in drawn)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_minutes_of_disturbed_runs_are_equal() -> None:
    """In a process of its own: pytest's streams would take what the runs' logs are searched for."""
    command = [sys.executable, "-m", "tests.soak", "--hours", "0.033", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 not equal" in done.stdout
