"""Dead letters: why messages died, putting them back, also with other arguments, and discarding them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import click

from umbel.cli.output import Past
from umbel.dashboard.call_form import words
from umbel.dashboard.editing import Subject, edit_form, edit_preview, edit_send
from umbel.dashboard.page import Ask, Page, Reply
from umbel.dead import REASONS, DeadLetter
from umbel.history.editing import Editor

page = Page("dead", "Dead letters", path="/dead", key="d")

#: The most that one action changes, and that are counted.
MOST: Final = 10_000
_ONE_STEP: Final = "It keeps its id, and the letter is gone in the step in which the message is in the queue."
_TWO_STEPS: Final = (
    "It keeps its id, and is published before the letter is taken out: a crash in between leaves it in both places."
)
_FILTERS: Final = ("queue", "task", "reason", "since", "older")


@page.get("/dead")
def letters(ask: Ask) -> Reply:
    """List dead letters, those that fit the filter."""
    given = {name: ask.text(name, most=500) for name in _FILTERS}
    limit = ask.number("limit", 50, least=1, most=200)
    found = ask.app.dead.list(**_meant(ask, given), after=ask.text("after", most=600), limit=limit + 1)
    shown = found[:limit]
    return ask.render(
        "dead.html",
        letters=shown,
        more=shown[-1].id if len(found) > limit else "",
        given=given,
        narrowed=any(given.values()),
        limit=limit,
        queues=ask.app.broker.dead().queues(),
        reasons=REASONS,
        words=_words(given),
        most=MOST,
    )


@page.get("/dead/letter")
def letter(ask: Ask) -> Reply:
    """Show one dead letter."""
    found = _letter(ask, ask.text("id", most=600))
    args, kwargs, hidden = ask.app.dead.shown(found) or (None, None, True)
    readable = ask.app.dead.arguments(found) is not None
    return ask.render(
        "letter.html",
        letter=found,
        args=args,
        kwargs=kwargs,
        hidden=hidden,
        readable=readable,
        editable=readable and found.whole,
        headers=found.message.headers if found.message is not None and not hidden else None,
        size=len(found.raw),
    )


@page.post("/dead/requeue", "dead.requeue")
def requeue(ask: Ask) -> Reply:
    """Put letters back."""
    return _change(ask, "put back", ask.app.dead.requeue)


@page.post("/dead/discard", "dead.discard")
def discard(ask: Ask) -> Reply:
    """Delete letters."""
    return _change(ask, "discarded", ask.app.dead.discard)


@page.get("/dead/letter/edit")
def form(ask: Ask) -> Reply:
    """Show the form in which a letter is changed."""
    return edit_form(ask, _subject(ask, ask.text("id", most=600)))


@page.post("/dead/preview", "")
def preview(ask: Ask) -> Reply:
    """Show what a form changes, and the button that does it."""
    return edit_preview(ask, _subject(ask, ask.field("id", most=600)))


@page.post("/dead/edit", "dead.edit")
def edit(ask: Ask) -> Reply:
    """Put a letter back with other arguments."""
    subject = _subject(ask, ask.field("id", most=600))
    done = edit_send(ask, subject)
    if done.refusal:
        ask.refuse(409, "It is not there any more: somebody else has put it back, or discarded it.")
    return ask.done(f"{done.new_id} was put back, changed.", to="/dead", target=subject.id, count=1)


def _subject(ask: Ask, id: str) -> Subject:
    found = _letter(ask, id)
    editor = Editor(ask.app, None)
    return Subject(
        editor=editor,
        original=editor.of_letter(found),
        id=found.id,
        act="/dead/edit",
        preview="/dead/preview",
        back=("/dead", "Dead letters", "/dead/letter"),
        verb="Edit and put back",
        outcome=_ONE_STEP if ask.app.broker.features.guarded else _TWO_STEPS,
        line=lambda said: ask.site.command("dead", "requeue", found.id, *words(said, queue="--to")),
    )


def _letter(ask: Ask, id: str) -> DeadLetter:
    found: Sequence[DeadLetter] = ask.app.dead.named([id])
    if not found:
        ask.refuse(404, "There is no such dead letter; it may have been put back, or discarded.")
    return found[0]


def _change(ask: Ask, done: str, act: Callable[..., Sequence[DeadLetter]]) -> Reply:
    """Do it to the letters that the form names, or that fit its filter."""
    if ids := ask.fields("id"):
        found = ask.app.dead.named(ids)
        meant, target = len(set(ids)), ", ".join(ids)
    elif ask.optional("all"):
        given = {name: ask.optional(name, most=500) for name in _FILTERS}
        found = ask.app.dead.list(**_meant(ask, given), limit=MOST)
        meant, target = len(found), shlex.join(_words(given))
    else:
        ask.refuse(400, "Choose some letters first.")
    changed = act(*found)
    count = len(changed)
    left = meant - count
    why = f"; {left:,} were gone, or not whole" if left else ""
    text = f"{count:,} dead {'letter' if count == 1 else 'letters'} {done}{why}."
    return ask.done(text, to="/dead", target=target, count=count, **_kept(ask))


def _kept(ask: Ask) -> dict[str, str]:
    return {name: ask.optional(name, most=500) for name in _FILTERS}


def _meant(ask: Ask, given: dict[str, str]) -> dict[str, Any]:
    """Return what a filter means to ``app.dead.list``."""
    return {
        "queue": given["queue"] or None,
        "task": given["task"] or None,
        "reason": given["reason"] or None,
        "since": _moment(ask, given["since"]),
        "until": _moment(ask, given["older"]),
    }


def _moment(ask: Ask, text: str) -> datetime | None:
    if not text:
        return None
    try:
        moment: datetime = Past().convert(text, None, None)
        return moment
    except click.UsageError as error:
        ask.refuse(400, error.message)


def _words(given: dict[str, str]) -> list[str]:
    """Return the options of ``umbel dead`` that mean the same."""
    options = {"queue": "-Q", "task": "--task", "reason": "--reason", "since": "--since", "older": "--older-than"}
    found = [word for name, option in options.items() if given[name] for word in (option, given[name])]
    return found or ["--all"]
