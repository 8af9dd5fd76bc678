"""What there is to see in the terminal, and what can be done from there; it knows nothing of the screen."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from umbel import states
from umbel.cli.tasks import result_of, stored_meta
from umbel.dashboard.live import Depth, Live
from umbel.dashboard.recording import Recording
from umbel.dashboard.roll import Seen, roll
from umbel.dashboard.verdict import Verdict, judge
from umbel.exceptions import CeleryError
from umbel.history import Attempt, BadQuery, Happening, TaskRow
from umbel.history.replay import Replayer
from umbel.top.crew import Crew, Made, Running, moment_of
from umbel.top.flow import Flow
from umbel.why import Answer, why

_SHOWN: Final = 200
_ASK_EVERY: Final = 2.0
_LOOKING: Final = 3.0


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One task of the list. Moments are seconds since the epoch; ``since`` is set while it runs."""

    id: str
    name: str
    state: str
    worker: str = ""
    at: float | None = None
    runtime: float | None = None
    since: float | None = None


class Crewed(msgspec.Struct, frozen=True, kw_only=True):
    """One worker: what was heard of it, how it is made, and how many tasks it runs (None: not known)."""

    seen: Seen
    made: Made
    busy: int | None


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """One queue: its size, how many workers read it (None: not known), messages a second in and out."""

    depth: Depth
    paused: bool
    readers: int | None
    into: float | None
    out: float | None


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """All that the screen shows at one moment, except the chosen task. ``wrong`` says what is wrong with the filter."""

    verdict: Verdict
    tick: dict[str, Any]
    running: int
    workers: Sequence[Crewed]
    queues: Sequence[Queue]
    tasks: Sequence[Item]
    wrong: str = ""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one task. ``troubles`` say what could not be looked at."""

    id: str
    line: str
    row: TaskRow | None = None
    running: Running | None = None
    stored: dict[str, Any] | None = None
    answer: Answer | None = None
    timeline: Sequence[Happening] = ()
    attempts: Sequence[Attempt] = ()
    troubles: Sequence[str] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more will be told of it."""
        stored = self.stored is not None and self.stored["state"] in states.READY_STATES
        return stored or (self.row is not None and self.row.ready)


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an action, and the command line that does the same."""

    line: str
    text: str
    good: bool = True


class Source:
    """Hears, samples and asks from :meth:`start` to :meth:`stop`. Safe to share between threads; most methods block.

    :param line: the words of a command line that reach this app: ``["umbel", "-A", "proj"]``.
    """

    def __init__(self, app: Any, line: Sequence[str] = ("umbel",), *, every: float = 1.0) -> None:
        self._app = app
        self._line = list(line)
        self._began = time.monotonic()
        self.live = Live(app)
        self.recording = Recording(app, self.live)
        self.crew = Crew(app, self.live, every=max(every, _ASK_EVERY))
        self._flow = Flow(app)
        self.live.listeners.append(self._flow.heard)

    def start(self) -> None:
        """Begin to hear, to sample, to ask and to record. To be called once."""
        self._began = time.monotonic()
        self.recording.start()
        self.live.start()
        self.crew.start()

    def stop(self) -> None:
        """End all of that. A second call does nothing."""
        self.crew.stop()
        self.live.stop()
        self.recording.stop()

    def line(self, *words: str) -> str:
        """Return the command line that does the same as a key."""
        return shlex.join([*self._line, *words])

    # -- looking -------------------------------------------------------------------------------------------------

    def frame(self, query: str = "", keep: str = "") -> Frame:
        """Return what there is to see now, with the tasks that fit the query, and the one to keep if that is known."""
        live = self.live
        seen, depths = roll(live), list(live.queues)
        workers = [self._crewed(each) for each in seen]
        tasks, wrong = self._tasks(query, keep)
        return Frame(
            verdict=self._verdict(seen, depths),
            tick=live.tick(),
            running=sum(each.busy or 0 for each in workers if each.seen.alive),
            workers=workers,
            queues=[self._queue(each, seen) for each in depths],
            tasks=tasks,
            wrong=wrong,
        )

    def _verdict(self, seen: list[Seen], depths: list[Depth]) -> Verdict:
        if not seen and not self.live.problem and time.monotonic() - self._began < _LOOKING:
            # A Celery worker is only known once it has told of itself.
            return Verdict("wait", "Looking for workers and queues.")
        return judge(self.live, seen, depths)

    def _crewed(self, seen: Seen) -> Crewed:
        running = self.crew.running.get(seen.name)
        busy = len(running) if running is not None else seen.active
        return Crewed(seen=seen, made=self.crew.made.get(seen.name, Made("", None)), busy=busy)

    def _queue(self, depth: Depth, workers: Sequence[Seen]) -> Queue:
        readers = sum(depth.name in each.queues for each in workers if each.alive)
        into, out = self._flow.per_second(depth.name)
        # Of Celery's workers nobody knows what they read without asking each.
        known = readers if depth.served is not None else None
        return Queue(depth=depth, paused=depth.name in self.crew.paused, readers=known, into=into, out=out)

    def _tasks(self, query: str, keep: str) -> tuple[list[Item], str]:
        """Return what runs, and behind it the latest; and what is wrong with the query."""
        running = {each.id: each for told in self.crew.running.values() for each in told}
        history, wrong = self.recording.history, ""
        if history is None:
            items = [] if query else self._heard(running)
            trouble = self.recording.trouble
            wrong = f"Nothing is recorded, so there is no filter: {trouble}" if trouble else ""
        else:
            try:
                rows = list(history.tasks(query, limit=_SHOWN).tasks)
                kept = history.task(keep) if keep and all(row.id != keep for row in rows) else None
            except (BadQuery, CeleryError) as error:
                return [], " ".join(str(error).split())
            items = [
                Item(
                    id=row.id,
                    name=row.name,
                    state=row.state,
                    worker=row.worker or "",
                    at=row.at,
                    runtime=row.runtime,
                    since=self._since(running.get(row.id), row.state, row.worker, row.started),
                )
                for row in [*rows, *([kept] if kept is not None else [])]
            ]
        if not query:
            known = {each.id for each in items}
            items += [
                Item(id=each.id, name=each.name, state=states.STARTED, worker=each.worker, since=each.since)
                for each in running.values()
                if each.id not in known
            ]
        # What has run longest comes first, and then the latest.
        first = sorted((each for each in items if each.since is not None), key=lambda each: each.since or 0.0)
        return [*first, *(each for each in items if each.since is None)], wrong

    def _heard(self, running: Mapping[str, Running]) -> list[Item]:
        """Return the latest tasks that events told of since the start, for where no history can be kept."""
        found = []
        for id, task in self.live.state.tasks_by_time(limit=_SHOWN):
            worker = str(task.worker.hostname) if task.worker is not None else ""
            found.append(
                Item(
                    id=id,
                    name=str(task.name or ""),
                    state=task.state,
                    worker=worker,
                    at=moment_of(task.timestamp),
                    runtime=moment_of(task.runtime),
                    since=self._since(running.get(id), task.state, worker, moment_of(task.started)),
                )
            )
        return found

    def _since(self, running: Running | None, state: str, worker: str | None, started: float | None) -> float | None:
        """Return since when a task runs, None if it does not."""
        if state in states.READY_STATES:
            return None
        if running is not None:
            return running.since if running.since is not None else started
        if state != states.STARTED or started is None or worker not in self.live.alive:
            return None
        # A worker that replied and did not name it was killed since, or has ended it a moment ago; unless it began
        # after that.
        return None if worker in self.crew.running and time.time() - started > 2 * self.crew.every else started

    def about(self, id: str) -> About:
        """Return all that is known of one task; to find where it is may take some seconds."""
        found: dict[str, Any] = {}
        troubles: list[str] = []
        history = self.recording.history

        def look(what: str, find: Any) -> None:
            try:
                found[what] = find()
            except CeleryError as error:
                troubles.append(" ".join(str(error).split())[:300])
            # Messages and results come from strangers: what cannot be read must not end the screen.
            except Exception as error:
                troubles.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

        if history is not None:
            look("row", lambda: history.task(id))
            look("timeline", lambda: history.timeline(id))
            look("attempts", lambda: history.attempts(id))
        running = next((each for told in self.crew.running.values() for each in told if each.id == id), None)
        look("stored", lambda: self._stored(id, found.get("row"), running))
        look("answer", lambda: why(self._app, id, history=history))
        return About(
            id=id, line=self.line("tasks", "why", id), running=running, troubles=list(dict.fromkeys(troubles)), **found
        )

    def _stored(self, id: str, *told: TaskRow | Running | None) -> dict[str, Any] | None:
        meta = stored_meta(self._app, id)
        return None if meta is None else result_of(self._app, meta, told)

    # -- doing ---------------------------------------------------------------------------------------------------

    def retry_line(self, id: str) -> str:
        """Return the command line of :meth:`retry`."""
        return self.line("tasks", "retry", id)

    def retry(self, id: str) -> Done:
        """Send a task once more."""
        line = self.retry_line(id)
        try:
            done = Replayer(self._app, self.recording.history).one(id)
        except CeleryError as error:
            return _failed(line, error)
        if done.refusal:
            return Done(line=line, text=f"Not sent: {done.refusal}.", good=False)
        if done.new_id == id:
            return Done(line=line, text="Its dead letter was put back into its queue.")
        return Done(line=line, text=f"Sent once more as {done.new_id}.")

    def revoke_line(self, id: str, *, terminate: bool = False) -> str:
        """Return the command line of :meth:`revoke`."""
        return self.line("tasks", "revoke", id, *(["--terminate"] if terminate else []))

    def revoke(self, id: str, *, terminate: bool = False) -> Done:
        """Tell workers not to start a task, and with ``terminate`` end it where it runs."""
        line = self.revoke_line(id, terminate=terminate)
        try:
            self._app.control.revoke([id], terminate=terminate)
        except CeleryError as error:
            return _failed(line, error)
        return Done(line=line, text="Revoked, and ended where it runs." if terminate else "Revoked.")

    def enable_events_line(self) -> str:
        """Return the command line of :meth:`enable_events`."""
        return self.line("control", "enable_events")

    def enable_events(self) -> Done:
        """Have the workers tell of their tasks."""
        line = self.enable_events_line()
        try:
            replies = self._app.control.enable_events(reply=True) or []
        except CeleryError as error:
            return _failed(line, error)
        if not replies:
            return Done(line=line, text="No worker replied.", good=False)
        return Done(
            line=line, text=f"{len(replies)} {'worker tells' if len(replies) == 1 else 'workers tell'} of tasks."
        )


def _failed(line: str, error: Exception) -> Done:
    return Done(line=line, text=" ".join(str(error).split())[:300], good=False)
