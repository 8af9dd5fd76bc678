"""The overview: is all well, what is going on, and what fails."""

from __future__ import annotations

from typing import Final

from umbel.dashboard.grouping import group
from umbel.dashboard.page import Ask, Page, Reply
from umbel.dashboard.roll import roll
from umbel.dashboard.verdict import judge

page = Page("overview", "Overview", path="/", key="o")

_SHOWN: Final = 12
_ERRORS: Final = 5


@page.get("/")
def overview(ask: Ask) -> Reply:
    """Show how things are."""
    live = ask.site.live
    workers, queues = roll(live), live.queues
    busiest = sorted(queues, key=lambda each: (-each.ready, -each.scheduled, each.name))[:_SHOWN]
    return ask.render(
        "overview.html",
        tick=live.tick(),
        series=live.series(),
        verdict=judge(live, workers, queues),
        queues=busiest,
        workers=workers[:_SHOWN],
        errors=group(list(live.failures))[:_ERRORS],
    )
