"""Looking at the broker and asking the workers: how much waits, for how long, and who reads which queue."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from umbel.exceptions import BrokerError, CeleryError, DecodeError, ImproperlyConfigured, OperationalError
from umbel.interfaces import Peeked, Place
from umbel.message import decode_envelope
from umbel.metrics.labels import OTHER, Labels

logger = logging.getLogger("umbel.metrics")

#: Seconds for which a look at the broker is good enough for everybody who asks.
FRESH: Final = 1.0
_ANSWER: Final = 1.0


class QueueLook(msgspec.Struct, frozen=True, kw_only=True):
    """One queue at one moment. None stands for what the broker does not tell."""

    name: str
    ready: int
    unacked: int | None
    scheduled: int | None
    dead: int
    oldest: float | None  # seconds for which the next message has waited, or was seen waiting
    paused: bool | None = False


class Readers(msgspec.Struct, frozen=True, kw_only=True):
    """Who reads which queue: workers and processes, by queue."""

    workers: Mapping[str, int] = {}
    processes: Mapping[str, int] = {}


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A periodic task that beat has seen: when it was sent last and is due next, in seconds since the epoch."""

    name: str
    sent: float | None
    due: float | None


class Survey:
    """What is seen of one broker and its workers. Safe to share between threads.

    ``sent_at`` returns when a task was sent (seconds since the epoch), if that was heard.
    """

    def __init__(self, app: Any, queues: Sequence[str], sent_at: Callable[[str], float | None]) -> None:
        self._app = app
        self.queues = tuple(queues)
        self._sent_at = sent_at
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._looks: list[QueueLook] | None = None
        self._first_seen: dict[str, tuple[str, float]] = {}
        #: Who read the queues when the workers were asked last.
        self.readers = Readers()
        self._names = Labels(limit=1000)
        #: The enabled periodic tasks, when they were looked at last.
        self.schedules: Sequence[Schedule] = ()

    def look(self) -> list[QueueLook] | None:
        """Return how the queues are now, or were less than :data:`FRESH` seconds ago; None if the broker is away."""
        with self._lock:
            if time.monotonic() - self._looked_at >= FRESH:
                try:
                    paused = self._paused()
                    self._looks = [self._look(queue, paused) for queue in self.queues]
                except (OperationalError, BrokerError) as error:
                    if self._looks is not None:
                        logger.warning("The broker cannot be looked at: %s", error)
                    self._looks = None
                self._looked_at = time.monotonic()
            return self._looks

    def _paused(self) -> Collection[str] | None:
        try:
            return set(self._app.queues.paused())
        except CeleryError as error:
            # It may be kept with the results, which can be away by themselves.
            logger.debug("Which queues are paused cannot be read: %s", error)
            return None

    def _look(self, queue: str, paused: Collection[str] | None) -> QueueLook:
        broker = self._app.broker
        # Such a broker tells of its own consumers alone, and to peek is to take and give back.
        blind = broker.features.lease == "connection"
        ready = broker.size(queue)
        return QueueLook(
            name=queue,
            ready=ready,
            unacked=None if blind else broker.size(queue, Place.HELD),
            scheduled=None if blind else broker.size(queue, Place.SCHEDULED),
            dead=broker.size(queue, Place.DEAD),
            oldest=self._oldest(queue, ready, blind),
            paused=None if paused is None else queue in paused,
        )

    def _oldest(self, queue: str, ready: int, blind: bool) -> float | None:
        if blind:
            return None
        if not ready:
            return 0.0
        peeked = self._app.broker.peek(queue, limit=1)
        if not peeked:
            return 0.0
        (message,) = peeked
        now: float = self._app.clock.time()
        if message.at is not None:
            return max(0.0, now - float(message.at.timestamp()))
        task_id = _id_of(message)
        since = self._sent_at(task_id)
        if since is None:
            known, since = self._first_seen.get(queue, ("", now))
            if known != task_id:
                since = now
                self._first_seen[queue] = task_id, since
        return max(0.0, now - since)

    def read_schedules(self) -> None:
        """Look at the periodic tasks. Where there is no place for them, or the broker is away, there are none."""
        try:
            lines = self._app.schedules.list()
        except (ImproperlyConfigured, OperationalError, BrokerError) as error:
            logger.debug("The schedules cannot be read: %s", error)
            self.schedules = ()
            return
        found = []
        for line in lines:
            # What no beat has taken up yet is not late.
            if line.version and line.entry.enabled and not line.unknown:
                name = self._names.learn(line.entry.name)
                try:
                    due = line.schedule.next_after(line.record.done, zone=self._app.timezone)
                # A schedule of the user's own may raise anything; the others are told still.
                except Exception as error:
                    logger.debug("The next time of %s cannot be told: %r", line.entry.name, error)
                    continue
                found.append(
                    Schedule(name=name, sent=line.record.last_run_at, due=None if due is None else due.timestamp())
                )
        self.schedules = [each for each in found if each.name != OTHER]

    def ask(self, tasks: Labels, *, processes: bool = False) -> None:
        """Ask the workers which queues they read and which tasks they have; ``processes``, also how many they are.

        Takes a second or two. A broker that is away is no error: then nothing new is learned.
        """
        try:
            inspect = self._app.control.inspect(timeout=_ANSWER)
            active = inspect.active_queues() or {}
            registered = inspect.registered() or {}
            stats = (inspect.stats() or {}) if processes else {}
        except (OperationalError, BrokerError) as error:
            logger.warning("The workers cannot be asked: %s", error)
            return
        for names in registered.values():
            for name in names if isinstance(names, list) else ():
                # Attributes of the task may follow it.
                tasks.learn(str(name).partition(" ")[0])
        workers: Counter[str] = Counter()
        pools: Counter[str] = Counter()
        for node, queues in active.items():
            for queue in queues if isinstance(queues, list) else ():
                name = queue.get("name") if isinstance(queue, dict) else None
                if name in self.queues:
                    workers[str(name)] += 1
                    pools[str(name)] += _processes(stats.get(node))
        self.readers = Readers(workers=workers, processes=pools)


def _id_of(message: Peeked) -> str:
    try:
        return str((message.message or decode_envelope(message.raw)).headers.get("id"))
    except DecodeError:
        return ""


def _processes(stats: Any) -> int:
    pool = stats.get("pool") if isinstance(stats, dict) else None
    found = pool.get("processes") if isinstance(pool, dict) else None
    return len(found) if isinstance(found, list | tuple) else 0
