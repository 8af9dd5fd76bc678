"""The shape of a workflow: what is drawn of it. Nodes, and what leads from one to another.

A node is a task, or many that are alike, or a step that was not sent yet. Many are one node where a group has more
members than anybody wants to see: tasks are alike if what leads to them is, and they are in one group or have one name.
All of it is made in time that grows with the number of tasks, and for the same tasks it is the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from umbel import states
from umbel.history.workflows import BAD, Member

#: A group of more members is one node, and so are more than so many nodes in a row where there are very many.
MOST_ALIKE: Final = 30
_LONGEST_RUN: Final = 12
#: The most nodes; what is beyond them is one more.
MOST_NODES: Final = 400
_NAMED: Final = 3


class Node(msgspec.Struct, kw_only=True):
    """What is drawn as one thing. Moments are seconds since the epoch; what was not told is None.

    ``id`` is that of the task, of the group, or of the step to come; ``states`` counts the tasks that the node stands
    for. ``waits`` says for steps to come, and for what waits behind a group, how many of how many tasks before it are
    done, and names some of the others.
    """

    kind: Literal["task", "many", "ahead"]
    id: str
    name: str
    states: Mapping[str, int]
    group: str | None = None
    sent: float | None = None
    started: float | None = None
    ended: float | None = None
    retries: int = 0
    critical: bool = False
    waits: str = ""
    doomed: bool = False  # a step that will not be sent, because of how something before it ended

    @property
    def count(self) -> int:
        """How many tasks it stands for."""
        return sum(self.states.values())

    @property
    def state(self) -> str:
        """The state that matters most of those of its tasks."""
        if self.kind == "ahead":
            return "NOT SENT"
        return next((state for state in _TELLING if self.states.get(state)), next(iter(self.states), states.PENDING))

    @property
    def running(self) -> bool:
        """Whether a task of it has not ended."""
        return self.kind != "ahead" and any(state not in states.READY_STATES for state in self.states)

    @property
    def label(self) -> str:
        """What it says below its name: the state of a task, ``7/10, 1 failed`` of many."""
        if self.kind == "ahead":
            return "will not run" if self.doomed else "not sent yet"
        return self.state if self.kind == "task" else progress(self.states)


#: In this order: of many tasks one that failed says most.
_TELLING: Final = ("FAILURE", "REJECTED", "RETRY", "STARTED", "RECEIVED", "PENDING", "REVOKED", "SUCCESS")


class Shape(msgspec.Struct, frozen=True):
    """Nodes in an order in which each comes after all that lead to it, and the edges between their places."""

    nodes: Sequence[Node]
    edges: Sequence[tuple[int, int]]


def progress(counts: Mapping[str, int]) -> str:
    """Return how far tasks in these states are.

    >>> progress({"SUCCESS": 7, "FAILURE": 1, "STARTED": 2})
    '7/10, 1 failed, 2 running'
    """
    known = [(counts.get(state, 0), word) for state, word in _WORDS]
    parts = [f"{counts.get(states.SUCCESS, 0):,}/{sum(counts.values()):,}"]
    return ", ".join([*parts, *(f"{count:,} {word}" for count, word in known if count)])


_WORDS: Final = (
    (states.FAILURE, "failed"), (states.REVOKED, "revoked"), (states.REJECTED, "rejected"),
    (states.RETRY, "to be retried"), (states.STARTED, "running"),
)  # fmt: skip


def shape_of(members: Sequence[Member], *, most_alike: int = MOST_ALIKE, most_nodes: int = MOST_NODES) -> Shape:
    """Return what to draw of these tasks."""
    family = _Family(members)
    for alike in (most_alike, min(most_alike, 8), 1):
        parts = family.parts(alike)
        if max(parts, default=0) < most_nodes:
            break
    else:
        parts = _bounded(family, parts, most_nodes)
    return family.drawn(parts)


class _Family:
    """The tasks of a workflow and its steps to come, by their places, in an order in which parents come first."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        places = {member.id: at for at, member in enumerate(members)}
        edges: set[tuple[int, int]] = set()
        for at, member in enumerate(members):
            if member.parent is not None and (parent := places.get(member.parent)) is not None:
                edges.add((parent, at))
        self.steps: list[tuple[str, str, str | None]] = []  # id, name and group of each step that was not sent
        self._look_ahead(places, edges)
        self.size = len(members) + len(self.steps)
        self._sort(edges)

    def _look_ahead(self, places: dict[str, int], edges: set[tuple[int, int]]) -> None:
        groups = {member.group_id for member in self.members if member.group_id}
        read: dict[str, list[dict[str, str]]] = {}
        for at, member in enumerate(self.members):
            if not member.ahead:
                continue
            steps = read.get(member.ahead)
            if steps is None:
                # All members of a chord say the same.
                steps = read[member.ahead] = json.loads(member.ahead)
            before: int | None = at
            for step in steps:
                if step["id"] in groups:
                    # It was sent: its members say themselves what comes after them.
                    before = None
                    continue
                place = places.get(step["id"])
                if place is None:
                    place = places[step["id"]] = len(self.members) + len(self.steps)
                    self.steps.append((step["id"], step["name"], step.get("group")))
                if before is not None:
                    edges.add((before, place))
                before = place

    def _sort(self, edges: set[tuple[int, int]]) -> None:
        """Find an order in which parents come first; what events say of a circle is not believed."""
        leads: list[list[int]] = [[] for _ in range(self.size)]
        left = [0] * self.size
        for start, end in sorted(edges):
            if start != end:
                leads[start].append(end)
                left[end] += 1
        self.parents: list[list[int]] = [[] for _ in range(self.size)]
        self.order: list[int] = []
        self.opened: set[int] = set()  # where a circle was opened
        placed = [False] * self.size
        todo = [at for at in range(self.size) if not left[at]]
        unsure = iter(range(self.size))
        while len(self.order) < self.size:
            if not todo:
                # Only circles are left: one is opened where its first task was heard of.
                todo.append(next(at for at in unsure if not placed[at]))
                left[todo[0]] = 0
                self.opened.add(todo[0])
            following = []
            for at in todo:
                placed[at] = True
                self.order.append(at)
                for end in leads[at]:
                    if not placed[end]:
                        self.parents[end].append(at)
                        left[end] -= 1
                        if not left[end]:
                            following.append(end)
            todo = following

    def parts(self, alike: int) -> list[int]:
        """Return for each place the node it is part of: more than so many that are alike are one node."""
        classes = [0] * self.size
        numbers: dict[tuple[object, ...], int] = {}
        for at in self.order:
            above = tuple(sorted({classes[parent] for parent in self.parents[at]}))
            name, group, told = self._about(at)
            # A task that was not sent is like others, but not like those that were.
            key: tuple[object, ...] = (above, told, group or None, "" if group else name)
            if at in self.opened:
                key = (at,)
            classes[at] = numbers.setdefault(key, len(numbers))
        sizes = Counter(classes)
        parts = [0] * self.size
        nodes: dict[tuple[bool, int], int] = {}
        for at in self.order:
            many = sizes[classes[at]] > alike
            parts[at] = nodes.setdefault((many, classes[at] if many else at), len(nodes))
        return parts

    def _about(self, at: int) -> tuple[str, str | None, bool]:
        if at < len(self.members):
            member = self.members[at]
            return member.name, member.group_id, True
        _, name, group = self.steps[at - len(self.members)]
        return name, group, False

    def edges(self, parts: Sequence[int]) -> list[tuple[int, int]]:
        """Return what leads from one node to another."""
        found = ((parts[parent], parts[at]) for at in self.order for parent in self.parents[at])
        return list(dict.fromkeys(edge for edge in found if edge[0] != edge[1]))

    def drawn(self, parts: Sequence[int]) -> Shape:
        """Return the shape in which these parts are nodes."""
        places: list[list[int]] = [[] for _ in range(max(parts, default=-1) + 1)]
        for at in self.order:
            places[parts[at]].append(at)
        critical = self._critical()
        doomed = self._doomed()
        nodes = []
        for each in places:
            told = [self.members[at] for at in each if at < len(self.members)]
            node = _node_of(told) if told else self._step_of(each)
            node.critical = not critical.isdisjoint(each)
            node.doomed = not told and any(at in doomed for at in each)
            before = {parent for at in each for parent in self.parents[at]}
            node.waits = self._waits(before) if node.kind == "ahead" and not node.doomed else ""
            nodes.append(node)
        return Shape(nodes, self.edges(parts))

    def _step_of(self, places: Sequence[int]) -> Node:
        id, name, group = self.steps[places[0] - len(self.members)]
        return Node(
            kind="ahead", id=id, name=name if len(places) == 1 else f"{name} ×{len(places):,}", states={}, group=group
        )

    def _waits(self, before: set[int]) -> str:
        told = [self.members[at] for at in sorted(before) if at < len(self.members)]
        left = [member for member in told if member.state not in states.READY_STATES]
        if not left or len(told) != len(before):
            return ""
        some = list(dict.fromkeys(member.name or member.id for member in left))
        names = ", ".join(some[:_NAMED]) + (" …" if len(some) > _NAMED else "")
        return (
            f"{len(told) - len(left):,}/{len(told):,}, waiting for {f'{len(left):,} ' if len(left) > 1 else ''}{names}"
        )

    def _doomed(self) -> set[int]:
        """Return the steps that will not be sent: something before them ended badly."""
        found: set[int] = set()
        for at in self.order:
            if at >= len(self.members) and any(
                parent in found or (parent < len(self.members) and self.members[parent].state in BAD)
                for parent in self.parents[at]
            ):
                found.add(at)
        return found

    def _critical(self) -> set[int]:
        """Return the tasks on the path that decided when all ended: back from the last one to end, each time to the
        latest of those before it. What still runs ends later than all that has ended.
        """
        known = range(len(self.members))
        at = max(known, key=lambda at: (*self._end(at), at), default=None)
        found: set[int] = set()
        while at is not None:
            found.add(at)
            before = [parent for parent in self.parents[at] if parent < len(self.members)]
            at = max(before, key=lambda at: (*self._end(at), at), default=None)
        return found

    def _end(self, at: int) -> tuple[bool, float]:
        member = self.members[at]
        if member.state not in states.READY_STATES:
            return True, member.began or 0.0
        return False, member.ended or member.started or member.began or 0.0


def _node_of(members: Sequence[Member]) -> Node:
    first = members[0]
    many = len(members) > 1
    names = dict.fromkeys(member.name for member in members)
    name = first.name if len(names) == 1 else ", ".join(list(names)[:_NAMED]) + (" …" if len(names) > _NAMED else "")
    groups = {member.group_id for member in members}
    return Node(
        kind="many" if many else "task",
        id=(first.group_id or first.id) if many and len(groups) == 1 else first.id,
        name=f"{name} ×{len(members):,}" if many else name,
        states=dict(Counter(member.state for member in members)),
        group=first.group_id if len(groups) == 1 else None,
        sent=_least(member.began for member in members),
        started=_least(member.started for member in members),
        ended=max((member.ended for member in members if member.ended is not None), default=None),
        retries=max(member.retries or 0 for member in members),
    )


def _least(moments: Iterator[float | None]) -> float | None:
    return min((each for each in moments if each is not None), default=None)


def _bounded(family: _Family, parts: Sequence[int], most: int) -> list[int]:
    """Return the parts with long rows of nodes put together, and what is still beyond the most as one node."""
    edges = family.edges(parts)
    size = max(parts) + 1
    leads: list[list[int]] = [[] for _ in range(size)]
    above: list[list[int]] = [[] for _ in range(size)]
    for start, end in edges:
        leads[start].append(end)
        above[end].append(start)
    runs: list[list[int]] = []
    inside: dict[int, list[int]] = {}
    # Nodes are numbered so that each comes after those that lead to it.
    for node in range(size):
        run = inside.get(above[node][0]) if len(above[node]) == 1 and len(leads[above[node][0]]) == 1 else None
        if run is None:
            runs.append(run := [])
        run.append(node)
        inside[node] = run
    new: dict[int, int] = {}
    for run in runs:
        middle = set(run[2:-2]) if len(run) > _LONGEST_RUN else set()
        for node in run:
            new[node] = run[2] if node in middle else node
    numbers: dict[int, int] = {}
    for node in range(size):
        numbers.setdefault(new[node], min(len(numbers), most - 1))
    return [numbers[new[part]] for part in parts]
