"""What is seen, as words and styles: the header, the rows of the tables, and all about one task.

A style is a name; what it looks like is the screen's to say. All text of strangers is made harmless here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from umbel import states
from umbel.cli.output import clean
from umbel.top.source import About, Crewed, Frame, Item, Queue
from umbel.utils.amounts import count, duration, rate
from umbel.utils.text import escape_controls

#: A piece of text and its style: "", "dim", "strong", "good", "odd", "bad" or "busy".
Words = tuple[str, str]
Line = list[Words]

#: The columns of the tables, and whether they hold numbers.
WORKERS: Final = (
    ("worker", False), ("state", False), ("slots", True), ("done", True), ("load", True), ("pool", False),
)  # fmt: skip
QUEUES: Final = (
    ("queue", False), ("state", False), ("waiting", True), ("scheduled", True), ("workers", True), ("in/s", True),
    ("out/s", True), ("dead", True),
)  # fmt: skip
TASKS: Final = (
    ("state", False), ("task", False), ("runtime", True), ("worker", False), ("at (UTC)", False), ("id", False),
)  # fmt: skip
_LEVELS: Final = {"ok": ("●", "good"), "warn": ("▲", "odd"), "fail": ("■", "bad"), "wait": ("…", "dim")}
_STATES: Final = {
    states.SUCCESS: "good", states.FAILURE: "bad", states.RETRY: "odd", states.REVOKED: "odd", states.REJECTED: "odd",
    states.STARTED: "busy",
}  # fmt: skip
_NAME: Final = 44
_LONGEST: Final = 4000


def heading(frame: Frame, *, app: str, paused: bool) -> list[Line]:
    """Return the header: how things are in one sentence, in numbers, and what else is to be known."""
    mark, style = _LEVELS[frame.verdict.level]
    first: Line = [(f"{mark} {frame.verdict.text}", f"{style} strong"), (f"   {clean(app)}", "dim")]
    if paused:
        first.append(("   PAUSED, p goes on", "odd strong"))
    tick = frame.tick
    parts = [
        f"{count(tick['waiting'])} waiting",
        f"{count(tick['scheduled'])} scheduled",
        f"{count(frame.running)} running",
        f"{rate(tick['done'])}/s finished",
        f"{rate(tick['failed'])}/s failed",
        f"{count(tick['workers'])} {'worker' if tick['workers'] == 1 else 'workers'} alive",
        *([f"{count(tick['lost'])} lost"] if tick["lost"] else []),
        *([f"{count(tick['dead'])} dead"] if tick["dead"] else []),
    ]
    notes = [note.text for note in frame.verdict.notes]
    if tick["problem"]:
        notes.insert(0, tick["problem"])
    return [first, [(" · ".join(parts), "")], *([[(clean(" ".join(notes)), "odd")]] if notes else [])]


def worker_cells(crewed: Crewed) -> list[Words]:
    """Return the row of a worker."""
    seen, slots = crewed.seen, crewed.made.slots
    busy = "–" if crewed.busy is None or not seen.alive else count(crewed.busy)
    return [
        (clean(seen.name), "" if seen.alive else "dim"),
        ("online", "good") if seen.alive else ("lost", "bad"),
        (busy if slots is None else f"{busy}/{slots}", "busy" if crewed.busy and seen.alive else ""),
        (count(seen.processed), ""),
        (f"{seen.load[0]:.2f}" if seen.load else "–", ""),
        (clean(crewed.made.pool) or "–", "dim"),
    ]


def queue_cells(queue: Queue) -> list[Words]:
    """Return the row of a queue."""
    depth = queue.depth
    silent = queue.readers == 0 and depth.ready
    return [
        (clean(depth.name), ""),
        ("paused", "odd") if queue.paused else ("unread", "bad") if silent else ("", ""),
        (count(depth.ready), "strong" if depth.ready else ""),
        (count(depth.scheduled), ""),
        (count(queue.readers), ""),
        (rate(queue.into), ""),
        (rate(queue.out), ""),
        (count(depth.dead), "odd" if depth.dead else "dim"),
    ]


def task_cells(item: Item) -> list[Words]:
    """Return the row of a task; what runs is timed up to now."""
    name = clean(item.name) or "–"
    runs = item.since is not None
    state = states.STARTED if runs else item.state
    took = max(time.time() - item.since, 0.0) if item.since is not None else item.runtime
    return [
        (clean(state), _STATES.get(state, "")),
        # Of names the end says more than the beginning.
        (name if len(name) <= _NAME else f"…{name[1 - _NAME :]}", ""),
        (duration(took), "busy" if runs else ""),
        (clean(item.worker) or "–", ""),
        (_clock(item.at), "dim"),
        (clean(item.id), "dim"),
    ]


def telling(about: About) -> Iterator[Line]:
    """Yield the lines about one task."""
    row, running, stored = about.row, about.running, about.stored
    name = (row.name if row is not None else "") or (running.name if running is not None else "")
    state = stored["state"] if stored is not None else row.state if row is not None else ""
    yield [(clean(name) or "(nobody told its name)", "strong")]
    yield [(clean(state or "PENDING"), _STATES.get(state, ""))]
    yield from _why(about)
    args = (row.args if row is not None else None) or (running.args if running is not None else None)
    kwargs = (row.kwargs if row is not None else None) or (running.kwargs if running is not None else None)
    yield []
    yield _field("args", args)
    if kwargs not in (None, "", "{}"):
        yield _field("kwargs", kwargs)
    if row is not None and row.queue:
        yield _field("queue", row.queue)
    if row is not None and (row.worker or row.client):
        yield _field("worker" if row.worker else "sent by", row.worker or row.client)
    if row is not None and row.runtime is not None:
        yield _field("runtime", duration(row.runtime))
    if row is not None and row.retries:
        yield _field("retries", row.retries)
    yield from _end(about, failed=state in states.EXCEPTION_STATES)
    yield from _timeline(about)
    for trouble in about.troubles:
        yield [(f"not known: {clean(trouble)}", "odd")]


def _why(about: About) -> Iterator[Line]:
    answer = about.answer
    if answer is None:
        return
    yield []
    yield [("why? ", "dim"), (clean(answer.text), "")]
    for advice in answer.advice:
        yield [(f"  → {clean(advice)}", "")]
    for unseen in answer.unseen:
        yield [(f"  (not known: {clean(unseen)})", "dim")]
    yield [(f"  $ {clean(about.line)}", "dim")]


def _end(about: About, *, failed: bool) -> Iterator[Line]:
    """Yield what it returned or raised, with the traceback of its last attempt."""
    row, stored = about.row, about.stored
    if failed or (row is not None and row.exception):
        error = stored["result"] if failed and stored is not None else row.exception if row is not None else None
        yield [("error    ", "dim"), (_cut(str(error)), "bad")]
    elif stored is not None and stored["state"] in states.READY_STATES:
        yield _field("result", stored["result"] if isinstance(stored["result"], str) else repr(stored["result"]))
    elif row is not None and row.result is not None:
        yield _field("result", row.result)
    elif stored is not None and stored["result"] is not None:
        yield _field("so far", repr(stored["result"]))
    traceback = about.attempts[-1].traceback if about.attempts else None
    if traceback:
        yield []
        for line in escape_controls(traceback[-_LONGEST:]).splitlines():
            yield [(line, "dim")]


def _timeline(about: About) -> Iterator[Line]:
    if about.timeline:
        yield []
        yield [("timeline (UTC)", "strong")]
    first = about.timeline[0].at if about.timeline else 0.0
    for each in about.timeline:
        ending = _STATES.get(each.kind.upper(), "bad" if each.kind == "failed" else "")
        detail = f"  {_cut(each.detail, 120)}" if each.detail else ""
        yield [
            (_clock(each.at), "dim"),
            (f"  +{duration(max(each.at - first, 0.0)):<7}", "dim"),
            (f" {clean(each.kind):<9}", "good" if each.kind == "succeeded" else ending),
            (f" {clean(each.worker)}{detail}", ""),
        ]


def _field(name: str, value: Any) -> Line:
    return [(f"{name:<8} ", "dim"), (_cut("–" if value is None else str(value)), "")]


def _cut(text: str, most: int = _LONGEST) -> str:
    return clean(text if len(text) <= most else f"{text[:most]}…")


def _clock(moment: float | None) -> str:
    """Return a moment in UTC; its day too if that is another one."""
    if moment is None:
        return "–"
    at, now = datetime.fromtimestamp(moment, UTC), datetime.now(UTC)
    return at.strftime("%H:%M:%S" if at.date() == now.date() else "%m-%d %H:%M:%S")


def done_line(line: str, text: str, *, good: bool) -> Line:
    """Return what an action did, behind the command line that does the same."""
    return [("$ ", "dim"), (clean(line), "strong"), (f"   {clean(text)}", "good" if good else "bad")]
