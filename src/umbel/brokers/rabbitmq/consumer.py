"""One consumer is one connection with one channel, and they are its lease: when they end, what it held goes back.

::

    no connection ──any call──> connected ──error, close, silence──> no connection (its holds are gone)

A tag names the connection too, so an acknowledgement is never sent on another one, where the same number would mean
another message. What was acknowledged before it ran comes to nobody again, so it stays held. Heartbeats are sent by a
thread, also while user code runs; while C code keeps Python from running, the server waits for two intervals and then
takes the connection for dead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from umbel.brokers.rabbitmq.frames import Content
from umbel.brokers.rabbitmq.held import Held
from umbel.brokers.rabbitmq.intake import ANSWER, Intake
from umbel.brokers.rabbitmq.link import Bell, Channel, ChannelClosed, unreachable
from umbel.brokers.rabbitmq.messages import message_of, priority_of
from umbel.brokers.rabbitmq.notes import Notes
from umbel.brokers.rabbitmq.posting import Addresses
from umbel.brokers.rabbitmq.settling import Settler
from umbel.brokers.rabbitmq.started import Aside, verdict_of
from umbel.brokers.rabbitmq.topology import Topology
from umbel.exceptions import ImproperlyConfigured, OperationalError
from umbel.interfaces import Begin, Consumer, Delivery, Settled, Settlement, Verdict, VerdictKind

logger = logging.getLogger("umbel.brokers.rabbitmq")

BATCH_BYTES: Final = 1024 * 1024
_STALE: Final = 0.1  # seconds that what has arrived may wait to be reserved
_UNHEARD: Final = 30.0  # seconds between looks at a connection without heartbeats


class RabbitConsumer(Consumer):
    """See :class:`umbel.interfaces.Consumer`. Locked against the thread that keeps the connection alive."""

    def __init__(
        self,
        addresses: Addresses,
        topology: Topology,
        notes: Notes,
        settler: Settler,
        *,
        id: str,
        queues: Sequence[str],
        max_deliveries: int | None,
        backoff: Sequence[float],
        consumer_timeout: float | None,
    ) -> None:
        """``settler`` publishes what settlements carry; ``backoff`` are the seconds before the 3rd, 4th, … delivery
        of what kills its process."""
        self.id = id
        self._name = addresses.name
        self._intake = Intake(addresses, topology, id=id, queues=queues, timeout=consumer_timeout)
        self._notes = notes
        self._settler = settler
        self._max_deliveries = max_deliveries
        self._backoff = tuple(backoff)
        self._aside = Aside(id)
        self._lock = threading.RLock()
        self._bell = Bell()
        self._held: dict[int, Held] = {}
        self._acked: dict[str, Held] = {}  # what was acknowledged before it ran, by its tag
        self._fence = 0
        self._keeper: threading.Thread | None = None
        self._look = threading.Event()  # for the keeper: something may have to go back, or the connection is new
        self._waiting = False
        self._moved_at = 0.0  # when something was last reserved or settled, on the monotonic clock
        self._closed = False
        self._ended = threading.Event()

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """Do it under the lock; an error of this connection ends its holds, and one of a publisher's does not."""
        with self._lock:
            if self._closed:
                raise OperationalError("this consumer is closed")
            try:
                return action()
            except (OperationalError, ChannelClosed) as error:
                if not self._intake.alive:
                    self._lose()
                if isinstance(error, ChannelClosed):
                    raise unreachable(self._name, error) from error
                raise

    def _open(self) -> Channel:
        """Return the channel, connecting first if there is none."""
        born = self._intake.born
        channel = self._intake.open()
        if self._intake.born != born:
            # How often it wants to hear from us is the server's to say.
            self._start_keeper()
            self._look.set()
        return channel

    def _lose(self) -> None:
        if self._held:
            logger.warning("%d messages that were held by a lost connection are delivered again", len(self._held))
        self._held.clear()
        self._intake.lose()

    # -- reserving -----------------------------------------------------------------------------------------------

    def reserve(self, limit: int) -> Sequence[Delivery]:
        """Take up to ``limit`` messages."""
        if limit <= 0:
            return ()
        deliveries: Sequence[Delivery] = self._guarded(lambda: self._reserve(limit))
        return deliveries

    def _reserve(self, limit: int) -> list[Delivery]:
        intake = self._intake
        self._moved_at = time.monotonic()
        self._open()
        intake.read()
        taken: list[Delivery] = []
        if self._take(taken, limit):
            asking = intake.ask_one() if limit == 1 else intake.ask_many(lambda: limit - len(taken), BATCH_BYTES)
            for _ in asking:
                if not self._take(taken, limit):
                    break
        if taken:
            # Whoever waits at several queues would hold what comes to the others while it works on this.
            intake.unsubscribe(quorum=len(taken) < limit)
            if intake.exposed():
                self._look.set()
        return taken

    def _take(self, taken: list[Delivery], limit: int) -> bool:
        """Move what has arrived into the batch; return whether it may still grow."""
        size = sum(len(each.raw) for each in taken)
        arrived = self._intake.arrived
        while arrived:
            if len(taken) >= limit:
                return False
            queue, content = arrived[0]
            # What comes again may kill its process again: it is reserved alone, so that nothing shares its fate.
            again = content.args[2]
            if taken and (again or size + len(content.body) > BATCH_BYTES):
                return False
            delivery = self._delivery(queue, content)
            if delivery is None:
                continue
            taken.append(delivery)
            size += len(content.body)
            if again:
                return False
        return len(taken) < limit

    def _delivery(self, queue: str, content: Content) -> Delivery | None:
        """Hold the first that has arrived; None if it has killed so many processes that it is to come later.

        After an error it still is the first that has arrived.
        """
        _, number, again, _, _ = content.args
        message, deliveries = message_of(content, queue)
        key = Notes.key(queue, message)
        count, verdict = deliveries + 1, verdict_of(content)
        if again:
            left, left_verdict = self._notes.begin(key, self.id, deliveries, arrived_at=self._intake.times[0])
            count, verdict = count + left, verdict or left_verdict
        if verdict is None and self._max_deliveries is not None and count > self._max_deliveries:
            verdict = Verdict(kind=VerdictKind.MAX_DELIVERIES, detail=f"after {self._max_deliveries} deliveries")
        held = Held(
            tag=f"{self._intake.born}.{number}.{key}",
            number=number,
            queue=queue,
            message=message,
            count=count,
            priority=priority_of(message.properties),
            note=key if again or deliveries else "",
        )
        # What comes back the first time may only have been given back, and goes on at once.
        if again and verdict is None and count > max(deliveries + 1, 2) and self._postponed(held):
            return None
        self._intake.take()
        self._held[number] = held
        self._fence = max(self._fence + 1, time.time_ns() // 1000)
        return Delivery(
            tag=held.tag,
            queue=queue,
            raw=content.body,
            message=message,
            count=count,
            fence=self._fence,
            redelivered=again or deliveries > 0,
            verdict=verdict,
        )

    def _postponed(self, held: Held) -> bool:
        if not self._backoff:
            return False
        pause = self._backoff[min(held.count - 3, len(self._backoff) - 1)]
        if pause <= 0 or not self._settler.postpone(held, pause):
            return False
        # Published first: a crash in between doubles it, and loses nothing.
        self._intake.take()
        self._intake.end([held.number])
        return True

    def watch(self, queues: Sequence[str]) -> None:
        """Read these queues from the next reserve on; what is held stays held."""
        if not queues:
            raise ImproperlyConfigured("a consumer needs at least one queue")
        try:
            self._guarded(lambda: self._intake.watch(queues))
        except OperationalError as error:
            # The next connection reads them: what it is to read is known.
            logger.debug("other queues are read once the broker can be reached: %s", error)

    def wait(self, timeout: float) -> bool:
        """Block until a message has arrived, :meth:`wake` is called, or the timeout (seconds) has passed."""
        try:
            if self._guarded(self._ready_to_wait) or timeout <= 0:
                return bool(self._intake.arrived) or self._bell.rung()
            deadline = time.monotonic() + timeout
            while (left := deadline - time.monotonic()) > 0:
                if not self._intake.pause(left, self._bell):
                    # Lost meanwhile: the next call finds out more.
                    return True
                if self._guarded(self._read_on) or self._bell.rung():
                    return True
        finally:
            self._waiting = False
        return False

    def _ready_to_wait(self) -> bool:
        self._open()
        self._intake.read()
        if self._intake.arrived:
            return True
        self._intake.wait_for_any()
        self._waiting = True
        return bool(self._intake.arrived)

    def _read_on(self) -> bool:
        self._intake.read()
        return bool(self._intake.arrived) or self._intake.lacking

    def wake(self) -> None:
        """End a :meth:`wait` of another thread, or the next one."""
        self._bell.ring()

    # -- ending holds --------------------------------------------------------------------------------------------

    def find(self, tag: str) -> Held | None:
        """Return what a tag names, if this connection still holds it, or it was acknowledged before it ran."""
        if (acked := self._acked.get(tag)) is not None:
            return acked
        born, _, rest = tag.partition(".")
        number = rest.partition(".")[0]
        return self._held.get(int(number)) if born == self._intake.born and number.isdecimal() else None

    def begin(self, batch: Sequence[Begin]) -> Collection[str]:
        """Return the tags that are not held. What must not run twice is acknowledged now, before it runs."""
        lost: list[str] = self._guarded(lambda: self._begin(batch))
        return lost

    def _begin(self, batch: Sequence[Begin]) -> list[str]:
        self._intake.read()
        lost: list[str] = []
        once: dict[str, Held] = {}
        for each in batch:
            held = self.find(each.delivery.tag)
            if held is None:
                lost.append(each.delivery.tag)
            elif each.once and not held.acked:
                once[each.delivery.tag] = held
        if once:
            self._begin_once(once)
        return lost

    def _begin_once(self, once: Mapping[str, Held]) -> None:
        channel = self._open()
        self._aside.prepare(channel)
        copies = [self._aside.copy(channel, tag, held.queue, held.message, held.priority) for tag, held in once.items()]
        self._intake.end([held.number for held in once.values()], first=b"".join(copies))
        for held in once.values():
            held.acked = True
            self._acked[held.tag] = self._held.pop(held.number)

    def settle(self, batch: Sequence[Settlement], *, reserve: int = 0) -> Settled:
        """End the holds: what follows is published and confirmed first, then all is acknowledged in one write."""
        settled: Settled = self._guarded(lambda: self._settle(batch, reserve))
        return settled

    def _settle(self, batch: Sequence[Settlement], reserve: int) -> Settled:
        refused: set[str] = set()
        if batch:
            # A connection that is known to be lost must not publish what follows from messages it no longer holds.
            self._intake.read()
            refused, done, back = self._settler.conclude(self.find, batch)
            ended = [held.number for held in done if not held.acked]
            if ended or back:
                self._intake.end(ended, [held.number for held in back], more=reserve > 0)
            early = [self._acked.pop(held.tag) for held in done if held.acked]
            for held in (*done, *back):
                if not held.acked:
                    self._held.pop(held.number, None)
            if early and not self._acked:
                self._clear_aside()
            self._tidy(done, back)
        return Settled(refused=refused, deliveries=self._reserve_after(reserve) if reserve > 0 else ())

    def _clear_aside(self) -> None:
        if not self._intake.alive:
            return  # copies of what has ended harm nobody: the next of its kind takes them along, or the release does
        try:
            self._aside.clear(self._open())
        except (OperationalError, ChannelClosed) as error:
            # What was settled is settled. The next call meets the error if it is still there.
            logger.debug("what was put aside could not be cleared: %s", error)

    def _tidy(self, done: Sequence[Held], back: Sequence[Held]) -> None:
        try:
            for held in back:
                if held.note:
                    self._notes.take_back(held.note)
                else:
                    self._notes.gave_back(Notes.key(held.queue, held.message))
            self._notes.end([held.note for held in done if held.note])
        except (OperationalError, ChannelClosed) as error:
            # The holds are ended; what is noted of them goes by itself.
            logger.debug("notes of deliveries could not be taken away: %s", error)

    def _reserve_after(self, limit: int) -> Sequence[Delivery]:
        try:
            return self._reserve(limit)
        except (OperationalError, ChannelClosed) as error:
            # What was settled is settled. The next call meets the error if it is still there.
            logger.debug("nothing could be reserved after a settlement: %s", error)
            if not self._intake.alive:
                self._lose()
            return ()

    # -- the thread beside ---------------------------------------------------------------------------------------

    def _start_keeper(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="umbel-rabbitmq", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        while not self._closed:
            heartbeat = self._intake.heartbeat
            woken = self._look.wait(min(heartbeat / 4, _UNHEARD) if heartbeat else _UNHEARD)
            if woken and not self._closed:
                self._look.clear()
                self._ended.wait(_STALE)
            if self._closed:
                return
            with self._lock:
                self._tend()
                if woken and not self._waiting and self._intake.exposed():
                    self._look.set()

    def _tend(self) -> None:
        intake = self._intake
        try:
            intake.read()
            intake.tend(time.monotonic())
            if self._waiting and (intake.arrived or intake.lacking):
                # It was read here, so the connection does not wake whoever waits for it.
                self._bell.ring()
            # Who takes one after the other will come to them; to give them back is dear, for each is then noted alone.
            idle_since = max(intake.times[0], self._moved_at) if intake.arrived else 0.0
            if intake.arrived and time.monotonic() - idle_since >= _STALE and not self._waiting:
                intake.give_back_arrived()
        except (OperationalError, ChannelClosed) as error:
            logger.warning("consumer: Connection to broker lost: %s", error)
            self._lose()
            # Whoever waits must connect anew.
            self._bell.ring()

    def close(self) -> None:
        """Close the connection; the server takes back what is held. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._ended.set()
        self._look.set()
        self._bell.ring()
        with self._lock:
            self._held.clear()
            self._acked.clear()
            self._intake.lose(orderly=True)
        if self._keeper is not None:
            self._keeper.join(ANSWER)
        self._bell.close()

    def holding(self) -> Mapping[str, Held]:
        """Return what is held, by tag."""
        with self._lock:
            return {held.tag: held for held in (*self._held.values(), *self._acked.values())}
