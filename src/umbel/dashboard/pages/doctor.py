"""The doctor: what could lose work or keep it waiting."""

from __future__ import annotations

from umbel.cli.doctor import examine
from umbel.dashboard.page import Ask, Page, Reply

page = Page("doctor", "Doctor", key="c")

_WORST_FIRST = ("fail", "warn", "ok")


@page.get("/doctor")
def doctor(ask: Ask) -> Reply:
    """Show what ``umbel doctor`` finds."""
    found = sorted(examine(ask.app), key=lambda each: _WORST_FIRST.index(each.level))
    counts = {level: sum(each.level == level for each in found) for level in _WORST_FIRST}
    return ask.render("doctor.html", findings=found, counts=counts)
