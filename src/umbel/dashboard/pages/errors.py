"""Errors: failures put together by their cause."""

from __future__ import annotations

from umbel.dashboard.grouping import Cause, group
from umbel.dashboard.live import Failure
from umbel.dashboard.page import Ask, Page, Reply
from umbel.history import ErrorGroup
from umbel.history.fingerprint import Fingerprint

page = Page("errors", "Errors", key="e")

_MOST = 500


@page.get("/errors")
def errors(ask: Ask) -> Reply:
    """List the causes of what failed, as far as that was recorded."""
    wanted = ask.text("filter").lower()
    found = causes(ask)
    if wanted:
        found = [
            each for each in found if any(wanted in text.lower() for text in (each.title, each.frame, *each.tasks))
        ]
    shown = ask.number("limit", 100, least=1, most=500)
    return ask.render("errors.html", errors=found[:shown], wanted=wanted, hears=ask.site.live.hears_tasks)


@page.get("/error")
def error(ask: Ask) -> Reply:
    """Show one cause, and the latest failures that it had."""
    key = ask.text("id", most=64)
    found = next((each for each in causes(ask) if each.id == key), None)
    if found is None:
        ask.refuse(404, "No such error is known: none like it was recorded.")
    return ask.render("error_group.html", error=found)


def causes(ask: Ask) -> list[Cause]:
    """Return what is known of errors, the one that struck last first: from the history, and from just now."""
    found = {each.id: each for each in group(list(ask.site.live.failures))}
    history = ask.site.recording.history
    for recorded in history.errors(limit=_MOST) if history is not None else ():
        live = found.get(recorded.fingerprint)
        if live is None:
            found[recorded.fingerprint] = _cause(recorded)
        else:
            # What was heard a moment ago may not be written yet.
            live.count, live.first = max(live.count, recorded.count), min(live.first, recorded.first)
    return sorted(found.values(), key=lambda each: each.last, reverse=True)


def _cause(recorded: ErrorGroup) -> Cause:
    sample = Failure(
        at=recorded.latest,
        task=recorded.name,
        task_id=recorded.task,
        exception=recorded.exception,
        traceback=recorded.traceback or "",
        worker="",
        cause=Fingerprint(recorded.fingerprint, recorded.type, recorded.message, recorded.frame),
    )
    return Cause(
        id=recorded.fingerprint,
        type=recorded.type,
        message=recorded.message,
        frame=recorded.frame,
        count=recorded.count,
        first=recorded.first,
        last=recorded.latest,
        tasks=[recorded.name] if recorded.name else [],
        samples=[sample],
    )
