"""What the dashboard knows of now and of the last quarter of an hour: one receiver of events, and one sampler.

Two threads serve all browsers: one listens to events, the other asks the broker for the sizes of its queues every two
seconds. Nothing is asked of workers, and nothing is kept beyond the process.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, TypeGuard

import msgspec

from umbel.dashboard.measures import Rates, Trend
from umbel.events.state import Latest
from umbel.exceptions import BrokerError, CeleryError, OperationalError
from umbel.history.fingerprint import Fingerprint, fingerprint_of
from umbel.interfaces import Place
from umbel.pausing import Pause, Paused
from umbel.utils.priority import give_way

logger = logging.getLogger("umbel.dashboard")

_EVERY: Final = 2.0
_PRESENCE_EVERY: Final = 10.0
_MOST_QUEUES: Final = 200
_LONGEST_QUEUE: Final = 255  # bytes
_MOST_WORKERS: Final = 1000
_MOST_FAILURES: Final = 2000
_KEEP_LOST: Final = 3600.0
_LONGEST: Final = 20_000
_LARGEST: Final = 10**15
#: Seconds between two tries to hear events: at first, and at most.
_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One failed attempt, as its event told it."""

    at: float
    task: str
    task_id: str
    exception: str
    traceback: str
    worker: str
    cause: Fingerprint


class Depth(msgspec.Struct, kw_only=True):
    """How many messages a queue has, and where it is going."""

    name: str
    ready: int = 0
    scheduled: int = 0
    held: int = 0
    dead: int = 0
    per_second: float | None = None  # by how much ``ready`` changes
    served: bool | None = None  # by a living worker; None where that is not known
    paused: Pause | None = None

    @property
    def drain(self) -> float | None:
        """Seconds until it is empty if all goes on so; None where it does not shrink."""
        if not self.ready or self.per_second is None or self.per_second >= -0.01:
            return None
        return self.ready / -self.per_second


class Live:
    """See the module. :meth:`start` may be called often; all else may be read from any thread."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.state = app.events.State(max_tasks_in_memory=2000, max_workers_in_memory=_MOST_WORKERS)
        self.rates = Rates()
        self.failures: deque[Failure] = deque(maxlen=_MOST_FAILURES)
        #: Called with each event, in the receiver's thread. They must be quick, and raise nothing.
        self.listeners: list[Callable[[dict[str, Any]], object]] = []
        #: Why the broker cannot be asked, or "".
        self.away = ""
        #: Why no events are heard, or "".
        self.deaf = ""
        self.queues: list[Depth] = []
        self.presence: dict[str, dict[str, Any]] = {}
        self._trends: dict[str, Trend] = {}
        self._processed: Latest[int] = Latest(_MOST_WORKERS)
        self._sent_to: set[str] = set()
        self._left_out: Latest[None] = Latest(_MOST_QUEUES)
        self._pause = _PAUSE
        self._heard_tasks_at = 0.0
        self._presence_at = float("-inf")
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._receiver: Any = None

    def start(self) -> None:
        """Start the threads, once."""
        if self._threads or self._stopped.is_set():
            return
        with self._lock:
            if not self._threads:
                if self._app.autofinalize:
                    # In an application around us nobody may have needed its tasks yet, and they say what is sensitive.
                    self._app.finalize()
                for name, run in (("events", self._listen), ("sampler", self._sample_on)):
                    self._threads.append(threading.Thread(target=run, name=f"umbel-dashboard-{name}", daemon=True))
                for thread in self._threads:
                    thread.start()

    def stop(self) -> None:
        """End the threads, and wait for them. A second call does nothing."""
        self._stopped.set()
        if (receiver := self._receiver) is not None:
            receiver.should_stop = True
        for thread in self._threads:
            thread.join(timeout=5.0)

    # -- what was heard ------------------------------------------------------------------------------------------

    def event(self, event: dict[str, Any]) -> None:
        """Take in one event. Anybody may have sent it: what makes no sense in it counts as not said."""
        queue, event = event.get("queue"), _written(event)
        self.state.event(event)
        kind = str(event.get("type", ""))
        now = time.time()
        if kind.startswith("task-"):
            if kind != "task-sent":
                self._heard_tasks_at = now
            elif len(self._sent_to) < _MOST_QUEUES and _may_name_queue(queue):
                self._sent_to.add(queue)
            self.rates.count(kind.removeprefix("task-"), now)
            if kind == "task-failed":
                self.failures.append(_failure(event, self.state, now))
        elif kind == "worker-heartbeat":
            self._count_processed(str(event.get("hostname")), event.get("processed"), now)
        for listener in self.listeners:
            listener(event)

    def _count_processed(self, node: str, processed: Any, now: float) -> None:
        if not _whole(processed):
            return
        before = self._processed.get(node)
        self._processed[node] = processed
        if before is not None and processed >= before:
            self.rates.count("processed", now, processed - before)

    @property
    def problem(self) -> str:
        """What keeps it from knowing how things are, or ""."""
        return self.away or self.deaf

    @property
    def hears_tasks(self) -> bool:
        """Whether a worker has told of a task in the last minute, so that its events are on."""
        return time.time() - self._heard_tasks_at < 60

    @property
    def heard_processed(self) -> bool:
        """Whether heartbeats told that tasks ran in the last half minute."""
        return self.rates.per_second("processed") > 0

    @property
    def dead(self) -> int:
        """How many dead letters there are."""
        return sum(each.dead for each in self.queues)

    @property
    def workers(self) -> list[Any]:
        """The workers that were heard of, those that live first."""
        now = time.time()
        found = [
            each
            for each in list(self.state.workers.values())
            if each.alive or (each.heartbeats and now - each.heartbeats[-1] < _KEEP_LOST)
        ]
        return sorted(found, key=lambda each: (not each.alive, str(each.hostname)))

    @property
    def alive(self) -> set[str]:
        """The names of the workers that live."""
        return {str(each.hostname) for each in self.workers if each.alive} | set(self.presence)

    @property
    def lost(self) -> list[str]:
        """The names of workers that fell silent without saying goodbye."""
        return [str(each.hostname) for each in self.workers if not each.alive and each.hostname not in self.presence]

    def tick(self) -> dict[str, Any]:
        """Return what changes from second to second."""
        queues = self.queues
        done = "succeeded" if self.hears_tasks else "processed"
        return {
            "at": time.time(),
            "problem": self.problem,
            "waiting": sum(each.ready for each in queues),
            "scheduled": sum(each.scheduled for each in queues),
            "dead": sum(each.dead for each in queues),
            "running": sum(each.active for each in self.workers if each.alive and _whole(each.active)),
            "workers": len(self.alive),
            "lost": len(self.lost),
            "done": self.rates.per_second(done),
            "failed": self.rates.per_second("failed"),
            "failures": self.rates.total("failed"),
            "bucket": self.rates.latest(self.hears_tasks),
        }

    def series(self) -> dict[str, Any]:
        """Return the last quarter of an hour, for charts."""
        return self.rates.series(self.hears_tasks)

    # -- the threads ---------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        give_way()
        while not self._stopped.is_set():
            receiver = self._receiver = self._app.events.Receiver(handlers={"*": self._guarded})
            receiver.wakeup_workers = functools.partial(self._subscribed, receiver.wakeup_workers)
            receiver.should_stop = self._stopped.is_set()
            try:
                receiver.capture()
            except (OperationalError, BrokerError) as error:
                self.deaf = f"No events are heard: {' '.join(str(error).split())[:300]}"
                logger.warning("%s", self.deaf)
            # The outer wall of this thread: a driver's mistake is no reason to show old news for ever.
            except Exception:
                self.deaf = "No events are heard: the receiver failed, and starts anew; see the log"
                logger.exception("The event receiver failed and starts anew")
            self._stopped.wait(self._pause)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _subscribed(self, wake: Callable[[Any], object], channel: Any = None) -> None:
        """Note that events are heard from here on, and ask the workers to tell of themselves."""
        # capture() ends at an outage alone, and what comes after this one is another.
        self._pause, self.deaf = _PAUSE, ""
        wake(channel)

    def _guarded(self, event: dict[str, Any]) -> None:
        # Events come from strangers, and may say anything.
        try:
            self.event(event)
        except Exception:
            logger.exception("An event could not be read: %.200r", event)

    def _sample_on(self) -> None:
        while not self._stopped.is_set():
            try:
                self.sample()
                self.away = ""
            except (OperationalError, BrokerError) as error:
                self.away = f"The broker cannot be reached: {' '.join(str(error).split())[:300]}"
            except Exception:
                logger.exception("The sampler failed and goes on")
            self._stopped.wait(_EVERY)

    def sample(self) -> None:
        """Ask the broker for the sizes of its queues, and for who is registered."""
        now = time.monotonic()
        if now - self._presence_at >= _PRESENCE_EVERY:
            self.presence = self._present()
            self._presence_at = now
        served = {queue for about in self.presence.values() for queue in about["queues"]}
        found, paused = [], self._paused()
        names, refused = self._names(paused), None
        for name in names:
            try:
                depth = self.measure(name)
            except OperationalError:
                raise
            # A name that the broker cannot carry, or that is not ours to look at, must not hide the others.
            except (CeleryError, ValueError) as error:
                self._leave_out(name, error)
                refused = error
                continue
            trend = self._trends.setdefault(name, Trend())
            trend.add(now, depth.ready)
            depth.per_second = trend.slope()
            depth.served = name in served if served else None
            depth.paused = paused.get(name)
            found.append(depth)
        if refused is not None and not found:
            raise refused
        self._trends = {name: trend for name, trend in self._trends.items() if name in names}
        self.queues = found
        self.rates.backlog(sum(each.ready for each in found), time.time())

    def _leave_out(self, name: str, error: Exception) -> None:
        self._sent_to.discard(name)
        if name not in self._left_out:
            self._left_out[name] = None
            logger.warning("The queue %.255r is left out: %s", name, error)

    def measure(self, name: str) -> Depth:
        """Return the size of one queue now."""
        broker = self._app.broker
        return Depth(
            name=name,
            ready=broker.size(name),
            scheduled=broker.size(name, Place.SCHEDULED),
            held=broker.size(name, Place.HELD),
            dead=broker.size(name, Place.DEAD),
        )

    def _paused(self) -> Paused:
        try:
            found: Paused = self._app.queues.paused()
        except CeleryError as error:
            # It may be kept with the results, which can be away by themselves.
            logger.debug("Which queues are paused cannot be read: %s", error)
            return {}
        return found

    def _names(self, paused: Collection[str]) -> Sequence[str]:
        known = self._app.queues.routed() | set(paused) | set(self._app.broker.dead().queues())
        known.update(queue for about in self.presence.values() for queue in about["queues"])
        # Of very many those come first that not just anybody can name.
        return sorted([*sorted(known), *sorted(self._sent_to - known)][:_MOST_QUEUES])

    def _present(self) -> dict[str, dict[str, Any]]:
        from umbel.worker.leases import PRESENCE

        store = self._app.broker.store()
        if store is None:
            return {}
        return {_text(key.removeprefix(PRESENCE)): _about(stored.value) for key, stored in store.scan(PRESENCE)}


def _about(value: bytes) -> dict[str, Any]:
    """Return what a worker keeps of itself in the store, with the names of its queues."""
    try:
        found = msgspec.json.decode(value)
    except (msgspec.MsgspecError, ValueError):
        found = {}
    about = found if isinstance(found, dict) else {}
    queues = about.get("queues")
    return {**about, "queues": [each for each in queues if _may_name_queue(each)] if isinstance(queues, list) else []}


def _may_name_queue(name: Any) -> TypeGuard[str]:
    """Say whether this is a name, in characters that can be written and not more than AMQP has room for."""
    try:
        return isinstance(name, str) and 0 < len(name.encode()) <= _LONGEST_QUEUE
    except UnicodeEncodeError:
        return False


def _whole(value: Any) -> TypeGuard[int]:
    """Say whether this is a count of something."""
    return type(value) is int and 0 <= value < _LARGEST


def _written(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event with halves of characters written out: neither a page nor a file can hold them."""
    return {_text(name): _text(value) for name, value in event.items()}


def _text(value: Any) -> Any:
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _failure(event: dict[str, Any], state: Any, now: float) -> Failure:
    task_id = str(event.get("uuid", ""))[:300]
    task = state.tasks.get(task_id)
    exception, traceback = str(event.get("exception", ""))[:_LONGEST], str(event.get("traceback") or "")[-_LONGEST:]
    return Failure(
        at=now,
        task=str((task.name if task is not None else None) or event.get("name") or "")[:1000],
        task_id=task_id,
        exception=exception,
        traceback=traceback,
        # Once, and not each time that somebody looks.
        cause=fingerprint_of(exception, traceback),
        worker=str(event.get("hostname", ""))[:300],
    )
