"""The table at the end of ``make faults``: what each scenario did, and what came of it."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass

import pytest

HEAD = ("scenario", "load", "faults", "lost", "repeats", "bound", "recovered in")
_rows: list[Row] = []


@dataclass
class Row:
    """One scenario. ``lost`` must be 0 and ``repeats`` at most ``bound``; ``recovered`` is in seconds."""

    scenario: str
    load: str = ""
    faults: str = ""
    lost: int | None = None
    repeats: int | None = None
    bound: int | None = None
    recovered: float | None = None

    def check(self) -> None:
        """Fail unless the promise was kept."""
        assert self.lost == 0, f"{self.lost} tasks were lost"
        assert self.repeats is not None and self.bound is not None
        assert self.repeats <= self.bound, f"{self.repeats} bodies ran again; {self.bound} may"

    def cells(self) -> tuple[str, ...]:
        took = "-" if self.recovered is None else f"{self.recovered:.1f} s"
        numbers = ("-" if number is None else str(number) for number in (self.lost, self.repeats, self.bound))
        return (self.scenario, self.load, self.faults, *numbers, took)


@pytest.fixture
def chance() -> random.Random:
    """What is left to chance. ``UMBEL_FAULT_SEED`` repeats a run."""
    seed = int(os.environ.get("UMBEL_FAULT_SEED") or time.time_ns() % 10**6)
    print(f"\nUMBEL_FAULT_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    """This test's line in the table."""
    made = Row(request.node.name.removeprefix("test_"))
    _rows.append(made)
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    filled = [row.cells() for row in _rows if row.load]
    if not filled:
        return
    widths = [max(len(line[column]) for line in [HEAD, *filled]) for column in range(len(HEAD))]
    terminalreporter.write_sep("=", "what the faults did")
    for line in [HEAD, *filled]:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
