"""Queues: how full they are, what is in them, pausing them, and emptying or moving what is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from umbel.contrib.migrate import move
from umbel.dashboard.live import Depth
from umbel.dashboard.ordering import told
from umbel.dashboard.page import Ask, Page, Reply
from umbel.dashboard.reading import shown
from umbel.dashboard.roll import roll
from umbel.exceptions import CeleryError, ImproperlyConfigured
from umbel.interfaces import Peeked, Place
from umbel.pausing import LONGEST, Pause

page = Page("queues", "Queues", key="q")

_PLACES: Final = ("ready", "scheduled")
_MOST_MOVED: Final = 10_000
_SHOWN: Final = 50
_MOST_SHOWN: Final = 200


@page.get("/queues")
def queues(ask: Ask) -> Reply:
    """List the queues."""
    return ask.render("queues.html", queues=ask.site.live.queues, readers=_readers(ask), longest=LONGEST)


@page.get("/queue")
def queue(ask: Ask) -> Reply:
    """Show one queue, and what is in it where that can be seen without taking it."""
    name = ask.text("name", most=500)
    if not name:
        ask.refuse(400, "Which queue?")
    place, limit = ask.choice("place", _PLACES), ask.number("limit", _SHOWN, least=1, most=_MOST_SHOWN)
    if _takes(ask):
        # A page is fetched by whoever looks, and again every three seconds.
        return _rendered(ask, name, "ready", limit, None)
    return _rendered(ask, name, place, limit, ask.app.broker.peek(name, place=Place(place), limit=limit))


@page.post("/queues/look", "queues.look")
def look(ask: Ask) -> Reply:
    """Show once what is in a queue of which a broker shows only what is taken."""
    name, given = ask.field("queue"), ask.field("limit", most=3)
    if not (given.isascii() and given.isdecimal()) or not 1 <= int(given) <= _MOST_SHOWN:
        ask.refuse(400, f"How many must be a number from 1 to {_MOST_SHOWN}.")
    peeked = ask.app.broker.peek(name, limit=int(given))
    count = len(peeked)
    how = "taken and given back" if _takes(ask) else "looked at"
    ask.outcome = f"{count:,} {'message was' if count == 1 else 'messages were'} {how}.", name, count
    return _rendered(ask, name, "ready", int(given), peeked)


def _takes(ask: Ask) -> bool:
    """Say whether to peek is to take and give back, so that a message comes to its worker as delivered before."""
    return bool(ask.app.broker.features.lease == "connection")


def _rendered(ask: Ask, name: str, place: str, limit: int, peeked: Sequence[Peeked] | None) -> Reply:
    """Show one queue; None is where nobody has looked into it."""
    depth = next((each for each in ask.site.live.queues if each.name == name), None)
    fresh: Depth = ask.site.live.measure(name)
    return ask.render(
        "queue.html",
        name=name,
        depth=fresh,
        drain=depth if depth is not None else fresh,
        place=place,
        limit=limit,
        messages=None if peeked is None else [shown(ask.app, each) for each in peeked],
        takes=_takes(ask),
        most_shown=_MOST_SHOWN,
        readers=_readers(ask).get(name, []),
        pause=_pause(ask, name, depth),
        others=[each.name for each in ask.site.live.queues if each.name != name],
        most=_MOST_MOVED,
        longest=LONGEST,
    )


def _pause(ask: Ask, name: str, sampled: Depth | None) -> Pause | None:
    """Return whether it is paused now, or if that cannot be read, was when that was looked at last."""
    try:
        found: Pause | None = ask.app.queues.paused().get(name)
    except CeleryError:
        # It may be kept with the results, which can be away by themselves.
        return sampled.paused if sampled is not None else None
    return found


def _readers(ask: Ask) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in roll(ask.site.live):
        for name in each.queues if each.alive else ():
            found.setdefault(name, []).append(each.name)
    return found


@page.post("/queues/pause", "queues.pause")
def pause(ask: Ask) -> Reply:
    """Have no worker fetch from a queue."""
    name, reason = ask.field("queue"), ask.optional("reason", most=LONGEST)
    with _possible(ask):
        ask.app.queues.pause(name, reason, by=ask.person.name or None)
    why = f", because {reason}" if reason else ""
    return ask.done(
        f"{name} is paused{why}. Workers heed it within about a second.", to="/queue", name=name, target=name
    )


@page.post("/queues/resume", "queues.resume")
def resume(ask: Ask) -> Reply:
    """Have workers fetch from a queue again."""
    name = ask.field("queue")
    with _possible(ask):
        done = ask.app.queues.resume(name)
    text = f"{name} is resumed." if done else f"{name} was not paused."
    return ask.done(text, to="/queue", name=name, target=name)


@contextmanager
def _possible(ask: Ask) -> Iterator[None]:
    try:
        yield
    except ImproperlyConfigured as error:
        ask.refuse(409, f"{error}.")
    except ValueError as error:
        ask.refuse(400, f"{error}.")


@page.post("/queues/purge", "queues.purge")
def purge(ask: Ask) -> Reply:
    """Discard what waits in a queue, delayed messages included."""
    name = ask.field("queue")
    count = sum(ask.app.broker.purge(name, place) for place in (Place.READY, Place.SCHEDULED))
    messages = "message was" if count == 1 else "messages were"
    return ask.done(f"{count:,} {messages} discarded.", to="/queue", name=name, target=name, count=count)


@page.post("/queues/move", "queues.move")
def move_messages(ask: Ask) -> Reply:
    """Move the messages that are ready in one queue to another."""
    name, to = ask.field("queue"), ask.field("to", most=500)
    if to == name:
        ask.refuse(400, "They are in that queue already.")
    given = ask.field("limit", most=6)
    if not given.isdecimal() or not 1 <= int(given) <= _MOST_MOVED:
        ask.refuse(400, f"How many must be a number from 1 to {_MOST_MOVED}.")
    task = ask.optional("task", most=500)

    def decide(body: Any, message: Any) -> str | None:
        return to if not task or body["task"] == task else None

    state = move(decide, app=ask.app, queues=[name], limit=int(given), timeout=0.0)
    count = state.filtered
    return ask.done(
        f"{count:,} {'message' if count == 1 else 'messages'} moved to {to}.",
        to="/queue", name=to, target=f"{name} -> {to}", count=count,
    )  # fmt: skip


@page.post("/queues/read", "queues.read")
def read(ask: Ask) -> Reply:
    """Have workers read a queue."""
    name, node = ask.field("queue"), ask.optional("worker", most=500)
    text, count = told(ask, ask.app.control.add_consumer, name, node=node)
    return ask.done(text, to="/queue", name=name, target=name, count=count)


@page.post("/queues/leave", "queues.leave")
def leave(ask: Ask) -> Reply:
    """Have workers stop reading a queue."""
    name, node = ask.field("queue"), ask.optional("worker", most=500)
    text, count = told(ask, ask.app.control.cancel_consumer, name, node=node)
    return ask.done(text, to="/queue", name=name, target=name, count=count)
