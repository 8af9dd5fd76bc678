"""The audit log: who changed what."""

from __future__ import annotations

from umbel.dashboard.page import Ask, Page, Reply

page = Page("audit", "Audit", key="a")


@page.get("/audit")
def audit(ask: Ask) -> Reply:
    """Show the latest actions."""
    limit, wanted = ask.number("limit", 100, least=1, most=500), ask.text("filter").lower()
    entries = ask.site.audit.entries()
    if wanted:
        entries = [
            each
            for each in entries
            if any(wanted in text.lower() for text in (each.who, each.where, each.action, each.target, each.outcome))
        ]
    return ask.render("audit.html", entries=entries[:limit], wanted=wanted, durable=ask.site.audit.durable)
