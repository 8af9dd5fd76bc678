"""The lease protocol, checked in every order of its steps: no clock keeps it safe, so reapers may strike at any moment.

The model has one step for each atomic step of the brokers, and a process's belief apart from the store's truth: a
consumer that was killed, paused or taken over goes on calling. Every state that can be reached is looked at.

    message    queue ──reserve──> held by i ──settle──> done        (or back: requeue, release, reap)
               ends  ──reserve──> held by i, with a verdict ──settle──> done; its body never runs
    consumer   new ──register──> live ──reap──> reaped ──last message moved──> gone
                                      `──release──> gone

:class:`Bug` names the rules that keep it safe; leaving out any one of them must be found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

import pytest

QUEUE, ENDS, DONE = "queue", "ends", "done"
NEW, LIVE, REAPED, GONE = "new", "live", "reaped", "gone"
WAITING, RUNNING = "waiting", "running"


class Bug(Enum):
    """One rule left out."""

    NONE = "none"
    RESERVE_UNCHECKED = "reserve does not ask whether the consumer is live"
    SETTLE_UNFENCED = "settle does not ask whether the consumer holds the message"
    RECORD_FIRST = "the record of a consumer is deleted before what it holds is moved"
    ONCE_FORGOTTEN = "what was begun once goes back to the queue when its process is lost"
    VERDICT_FORGOTTEN = "a message of the ends that is lost once more goes back to the queue"
    BEGIN_UNCHECKED = "begin does not ask whether the consumer holds the message"


class Item(NamedTuple):
    """The truth about one message, and what each process believes of it.

    A belief is nothing, ``waiting`` (reserved and not started) or ``running``. What must not happen is counted.
    """

    beliefs: tuple[str, ...]
    place: str = QUEUE  # or the number of the consumer that holds it
    once: bool = False  # begun with once: never to be run again
    verdict: bool = False
    settled: int = 0
    once_runs: int = 0

    def believed(self, i: int, what: str) -> Item:
        return self._replace(beliefs=(*self.beliefs[:i], what, *self.beliefs[i + 1 :]))


class State(NamedTuple):
    """All messages, and the record of each consumer in the store. Messages are alike, so their order says nothing."""

    items: tuple[Item, ...]
    records: tuple[str, ...]

    def item(self, index: int, changed: Item) -> State:
        return self._replace(items=(*self.items[:index], changed, *self.items[index + 1 :]))

    def record(self, i: int, record: str) -> State:
        return self._replace(records=(*self.records[:i], record, *self.records[i + 1 :]))

    def held(self, i: int) -> list[int]:
        return [number for number, item in enumerate(self.items) if item.place == str(i)]


Step = tuple[str, State]


class Protocol:
    """The steps, with one rule left out or none. ``whole``: begin with once, and verdicts, are among them."""

    def __init__(self, bug: Bug = Bug.NONE, *, whole: bool = True) -> None:
        self.bug = bug
        self.whole = whole

    def steps(self, state: State) -> Iterator[Step]:
        for i in range(len(state.records)):
            yield from self._store(state, i)
            if state.records[i] != NEW:
                yield from self._process(state, i)

    def _returned(self, item: Item, *, crashed: bool) -> Item:
        """Give a message back that nobody will settle: to its queue, or to the ends if it may not run (again)."""
        verdict = item.verdict and self.bug is not Bug.VERDICT_FORGOTTEN
        if crashed and item.once and self.bug is not Bug.ONCE_FORGOTTEN:
            verdict = True
        return item._replace(place=ENDS if verdict else QUEUE, verdict=verdict, once=False)

    def _store(self, state: State, i: int) -> Iterator[Step]:
        """What supervisors do with the record of consumer ``i``: its own, and reapers, at any time."""
        record, held = state.records[i], state.held(i)
        if record == NEW and NEW not in state.records[:i]:
            yield f"register {i}", state.record(i, LIVE)
        if record == LIVE:
            first = self.bug is Bug.RECORD_FIRST
            yield f"{'forget' if first else 'reap'} {i}", state.record(i, GONE if first else REAPED)
        if record == REAPED:
            for number in held:
                back = self._returned(state.items[number], crashed=True)
                yield f"move {number} from {i}", state.item(number, back)
            if not held:
                yield f"forget {i}", state.record(i, GONE)
        if record in (LIVE, REAPED):
            after = state.record(i, GONE)
            for number in held:
                after = after.item(number, self._returned(state.items[number], crashed=state.items[number].once))
            yield f"release {i}", after
            for number in held if self.whole else ():
                ended = state.items[number]._replace(place=ENDS, verdict=True, once=False)
                yield f"release {i}, {number} with a verdict", after.item(number, ended)

    def _process(self, state: State, i: int) -> Iterator[Step]:
        """What the process of consumer ``i`` does, by what it believes; it may be a zombie."""
        if state.records[i] == LIVE or self.bug is Bug.RESERVE_UNCHECKED:
            first = ENDS if any(item.place == ENDS for item in state.items) else QUEUE
            for number, item in enumerate(state.items):
                if item.place == first:
                    yield f"{i} reserves {number}", state.item(number, item._replace(place=str(i)).believed(i, WAITING))
        for number, item in enumerate(state.items):
            if item.beliefs[i] == WAITING:
                yield from ((name, state.item(number, after)) for name, after in self._start(item, i))
            if item.beliefs[i]:
                yield from ((name, state.item(number, after)) for name, after in self._end(item, i))
        if any(item.beliefs[i] for item in state.items):
            yield f"{i} is killed", state._replace(items=tuple(item.believed(i, "") for item in state.items))

    def _start(self, item: Item, i: int) -> Iterator[tuple[str, Item]]:
        running = item.believed(i, RUNNING)
        if item.place == str(i) and not item.verdict:
            yield f"{i} runs it", running
            if self.whole:
                yield f"{i} begins it once", running._replace(once=True, once_runs=item.once_runs + 1)
        elif item.place != str(i) and self.bug is Bug.BEGIN_UNCHECKED:
            yield f"{i} begins it once, too late", running._replace(once_runs=item.once_runs + 1)
        elif item.place != str(i):
            yield f"{i} may not begin it", item.believed(i, "")

    def _end(self, item: Item, i: int) -> Iterator[tuple[str, Item]]:
        after = item.believed(i, "")
        if item.place != str(i) and self.bug is not Bug.SETTLE_UNFENCED:
            yield f"{i} is refused", after
            return
        if item.beliefs[i] == RUNNING or item.verdict:
            yield f"{i} settles it", after._replace(place=DONE, settled=item.settled + 1, once=False)
        if item.beliefs[i] == WAITING and item.place == str(i):
            yield f"{i} requeues it", self._returned(after, crashed=False)


def violation(state: State) -> str:
    """Return what is wrong with a state, or nothing."""
    for number, item in enumerate(state.items):
        if item.settled > 1:
            return f"{number} was settled twice"
        if (item.place == DONE) != (item.settled == 1):
            return f"{number} was settled and is somewhere"
        if item.once_runs > 1:
            return f"{number} ran twice, and must run once at most"
        if item.place.isdigit() and state.records[int(item.place)] in (NEW, GONE):
            return f"{number} is held by {item.place}, whom nobody will ever look at"
        if item.place == QUEUE and item.verdict:
            return f"{number} has a verdict and may run"
    return ""


class Explored(NamedTuple):
    """What was found: the first violation and the steps to it, and how many states there are."""

    wrong: str
    steps: list[str]
    states: int
    reached: bool


def explore(
    messages: int, consumers: int, protocol: Protocol, goal: Callable[[State], bool] = lambda state: True
) -> Explored:
    """Visit every state, or as many as it takes to find one that is wrong."""
    first = State((Item(("",) * consumers),) * messages, (NEW,) * consumers)
    came: dict[State, tuple[str, State] | None] = {first: None}
    todo = deque([first])
    reached = False
    while todo:
        state = todo.popleft()
        reached = reached or goal(state)
        if wrong := violation(state):
            return Explored(wrong, trace(came, state), len(came), reached)
        for name, changed in protocol.steps(state):
            after = State(tuple(sorted(changed.items)), changed.records)
            if after not in came:
                came[after] = name, state
                todo.append(after)
    return Explored("", [], len(came), reached)


def trace(came: dict[State, tuple[str, State] | None], state: State) -> list[str]:
    steps = []
    while (step := came[state]) is not None:
        steps.append(step[0])
        state = step[1]
    return steps[::-1]


def test_nothing_goes_wrong_with_two_of_each() -> None:
    found = explore(2, 2, Protocol())
    assert not found.wrong, found.steps
    assert found.states > 1000


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("messages", "consumers", "whole"), [(3, 3, False), (3, 2, True), (2, 3, True)])
def test_nothing_goes_wrong_with_three(messages: int, consumers: int, whole: bool) -> None:
    found = explore(messages, consumers, Protocol(whole=whole))
    assert not found.wrong, found.steps
    print(f"\n{messages} messages, {consumers} consumers: {found.states} states")


@pytest.mark.parametrize("bug", [bug for bug in Bug if bug is not Bug.NONE], ids=lambda bug: bug.name.lower())
def test_each_rule_is_needed(bug: Bug) -> None:
    found = explore(2, 2, Protocol(bug))
    assert found.wrong, f"nothing goes wrong although {bug.value}"
    assert len(found.steps) <= 12


@pytest.mark.parametrize(
    "goal",
    [
        lambda state: all(item.place == DONE for item in state.items),
        lambda state: all(item.place == ENDS for item in state.items),
        lambda state: all(record == GONE for record in state.records),
        lambda state: all("running" in item.beliefs for item in state.items),
    ],
    ids=["all done", "all in the ends", "all gone", "all running"],
)
def test_the_model_gets_everywhere(goal: Callable[[State], bool]) -> None:
    assert explore(2, 2, Protocol(), goal).reached
