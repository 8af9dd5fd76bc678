"""Workflows: tasks that belong together, as a list; one of them as a graph and as bars over time."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from umbel.dashboard.graph import WIDTH, Bar, Layout, bars, lay_out, line
from umbel.dashboard.page import Ask, Page, Reply
from umbel.dashboard.showing import short
from umbel.history import BadQuery, History, Member, Workflow
from umbel.history.shape import Node, Shape, progress, shape_of
from umbel.history.workflows import MOST_MEMBERS, failed_leaves, unfinished

page = Page("workflows", "Workflows", key="f")

#: The most bars of a waterfall: first those on the critical path, then the longest.
MOST_BARS: Final = 60
_LONGEST: Final = 1000
_ROOM: Final = 26
#: Tasks sent once more in a second, as the command line does it unless it is told otherwise.
_RATE: Final = 50.0
#: Seconds after its last news in which a workflow that seems to have ended is still looked at anew.
_SETTLING: Final = 60.0


class Drawn(msgspec.Struct, frozen=True):
    """A node, where it is drawn, and where its link leads."""

    node: Node
    name: str
    x: float
    y: float
    href: str


class Timed(msgspec.Struct, frozen=True):
    """A node and its bar."""

    node: Node
    name: str
    bar: Bar | None
    href: str
    seconds: float | None


@page.get("/workflows")
def workflows(ask: Ask) -> Reply:
    """List the latest workflows, those with a task that fits the query."""
    query, limit = ask.text("q", most=_LONGEST), ask.number("limit", 50, least=1, most=500)
    after = ask.text("after", most=20)
    history: History | None = ask.site.recording.history
    rows: Sequence[Workflow] = ()
    following, cut, wrong = 0, False, ""
    if history is not None:
        try:
            found = history.workflows(query, after=int(after) if after.isdecimal() else 0, limit=limit)
            rows, following, cut = found.workflows, found.next, found.cut
        except BadQuery as error:
            wrong = str(error)
    return ask.render(
        "workflows.html",
        query=query,
        rows=rows,
        following=following,
        cut=cut,
        wrong=wrong,
        limit=limit,
        clock=time.time(),
        progress=progress,
        recording=ask.site.recording,
        status=400 if wrong else 200,
    )


@page.get("/workflow")
def workflow(ask: Ask) -> Reply:
    """Show one workflow."""
    found, members = _known(ask, ask.text("root", most=300))
    now = time.time()
    shape = shape_of(members)
    layout = lay_out(len(shape.nodes), shape.edges)
    hrefs = [_href(ask, found, node) for node in shape.nodes]
    timed = _timed(shape, hrefs, now)
    return ask.render(
        "workflow.html",
        found=found,
        progress=progress(found.states),
        duration=found.duration(now),
        moves=not found.ended or now - found.latest < _SETTLING,
        unread=found.total - len(members),
        layout=layout,
        width=WIDTH,
        drawn=[
            Drawn(node, _title(node), spot.x, spot.y, href)
            for node, spot, href in zip(shape.nodes, layout.spots, hrefs, strict=True)
        ],
        lines=_lines(shape, layout),
        timed=timed[:MOST_BARS],
        untimed=len(timed) - MOST_BARS,
        leaves=len(failed_leaves(members)),
        open=len(unfinished(members)),
    )


@page.post("/workflows/retry", "workflows.retry")
def retry(ask: Ask) -> Reply:
    """Send the failed leaves of a workflow once more."""
    id = ask.field("root", most=300)
    found, members = _known(ask, id)
    ids = failed_leaves(members)
    if not ids:
        return ask.done("Nothing of it failed that was not sent once more already.", to="/workflow", root=id, count=0)
    if not ask.site.recording.send_again(ids, _RATE):
        ask.refuse(409, "Other tasks are being sent once more; wait until that has ended, or stop it.")
    text = f"Sending {len(ids):,} failed {'task' if len(ids) == 1 else 'tasks'} once more."
    return ask.done(text, to="/workflow", target=found.id, count=len(ids), root=id)


@page.post("/workflows/cancel", "workflows.cancel")
def cancel(ask: Ask) -> Reply:
    """Revoke what has not ended of a workflow, and with ``terminate`` end what runs."""
    id = ask.field("root", most=300)
    found, members = _known(ask, id)
    ids = unfinished(members)
    terminate = bool(ask.optional("terminate"))
    if ids:
        ask.app.control.revoke(ids, terminate=terminate)
    text = f"{len(ids):,} {'task' if len(ids) == 1 else 'tasks'} revoked{' and terminated' if terminate else ''}."
    return ask.done(text, to="/workflow", target=found.id, count=len(ids), root=id)


# -- what is drawn -----------------------------------------------------------------------------------------------


def _known(ask: Ask, id: str) -> tuple[Workflow, Sequence[Member]]:
    history: History | None = ask.site.recording.history
    found = history.workflow(id) if history is not None and id else None
    if history is None or found is None:
        ask.refuse(404, "No workflow of this id was recorded: it is unknown, or its task has no relatives.")
    return found, history.members(found, limit=MOST_MEMBERS)


def _title(node: Node) -> str:
    """Return the name of a node as it fits into its box: of a long one the end says most."""
    text = short(node.name or node.id, 1000)
    return text if len(text) <= _ROOM else "…" + text[1 - _ROOM :]


def _href(ask: Ask, found: Workflow, node: Node) -> str:
    """Return where a node leads: to its task, or to the list of its tasks."""
    if node.kind == "task":
        return ask.url("/task", id=node.id)
    if node.kind == "ahead":
        return ""
    query = f"workflow:{shlex.quote(found.id)}"
    if node.group:
        narrow = f"{query} group:{shlex.quote(node.group)}"
        query = narrow if len(narrow) <= _LONGEST else query
    return ask.url("/tasks", q=query)


def _lines(shape: Shape, layout: Layout) -> list[tuple[str, str]]:
    """Return the paths of the edges and what they are, those on the critical path last, and so on top."""
    found = []
    for start, end in shape.edges:
        before, behind = shape.nodes[start], shape.nodes[end]
        kind = "critical" if before.critical and behind.critical else "ahead" if behind.kind == "ahead" else ""
        found.append((line(layout.spots[start], layout.spots[end]), kind))
    return sorted(found, key=lambda each: each[1] == "critical")


def _timed(shape: Shape, hrefs: Sequence[str], now: float) -> list[Timed]:
    """Return the bars, in the order of time; where there are too many, the most telling ones come first."""
    nodes = [(node, href) for node, href in zip(shape.nodes, hrefs, strict=True) if node.kind != "ahead"]
    drawn = bars([(node.sent, node.started, None if node.running else node.ended) for node, _ in nodes], now)
    timed = [
        Timed(node, _title(node), bar, href, _length(node, now)) for (node, href), bar in zip(nodes, drawn, strict=True)
    ]
    if len(timed) > MOST_BARS:
        timed.sort(key=lambda each: (not each.node.critical, -(each.seconds or 0.0)))
        timed[:MOST_BARS] = sorted(timed[:MOST_BARS], key=_by_start)
        return timed
    return sorted(timed, key=_by_start)


def _by_start(each: Timed) -> Any:
    return (each.bar is None, each.bar.start if each.bar is not None else 0.0)


def _length(node: Node, now: float) -> float | None:
    """Return for how long the tasks of a node ran, from the first start to the last end."""
    if node.started is None:
        return None
    end = now if node.running else node.ended
    return None if end is None else max(0.0, end - node.started)
