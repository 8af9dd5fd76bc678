"""Looking for one task wherever it may be; what could not be looked at is noted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from umbel.exceptions import BrokerError, CeleryError
from umbel.history import History, TaskRow
from umbel.interfaces import Sighting
from umbel.meta import Meta, decoder
from umbel.pausing import Paused
from umbel.revoking import Revocations, shared_store


class Looking:
    """Looks for one task. ``unseen`` says what could not be looked at, ``searched`` whether the queues could."""

    def __init__(self, app: Any, task_id: str, history: History | None, timeout: float) -> None:
        self.app = app
        self.id = task_id
        self.timeout = timeout
        self.now: datetime = app.clock.now()
        self.unseen: list[str] = []
        self.searched = False
        self.row: TaskRow | None = history.task(task_id) if history is not None else None
        self._presence: dict[str, list[str]] | None = None
        self._paused: Paused | None = None

    def find(self) -> Sighting | None:
        """Return where the task's message is, if the broker can tell."""
        if not self.app.broker.features.finds:
            self.unseen.append("this broker does not show single messages, so nobody can look for one in a queue")
            return None
        try:
            found: Sighting | None = self.app.broker.find(self.id, self.queues())
        except TimeoutError as error:
            self.unseen.append(f"the queues were not looked through: {error}")
            return None
        self.searched = True
        return found

    def queues(self) -> list[str]:
        """Return the names of the queues where the task may be, its own first if that is known."""
        known = [self.row.queue] if self.row is not None and self.row.queue else []
        known += [queue.name for queue in self.app.queues()]
        read = (name for names in self.presence().values() for name in names)
        return list(dict.fromkeys([*known, *sorted(self.app.queues.routed()), *read, *sorted(self.paused())]))

    def presence(self) -> dict[str, list[str]]:
        """Return which of our workers are registered, and the queues that each reads."""
        if self._presence is None:
            self._presence = self.app.queues.readers()
        return self._presence

    def paused(self) -> Paused:
        """Return the paused queues, as far as that can be known."""
        if self._paused is None:
            try:
                self._paused = self.app.queues.paused()
            except CeleryError as error:
                self.unseen.append(f"which queues are paused could not be read: {' '.join(str(error).split())}")
                self._paused = {}
        return self._paused

    def readers(self, queue: str) -> dict[str, list[str]]:
        """Return which workers read which queues; those that only remote control knows are asked where it matters."""
        found = dict(self.presence())
        if not any(queue in queues for queues in found.values()):
            replies = self.ask(None, "active_queues") or {}
            for node, queues in replies.items():
                if isinstance(queues, list):
                    found[node] = [str(each.get("name")) for each in queues if isinstance(each, dict)]
        return found

    def ask(self, node: str | None, command: str, *args: Any) -> dict[str, Any] | None:
        """Ask one worker, or all, and return what those that answer in time say."""
        try:
            inspect = self.app.control.inspect(destination=[node] if node else None, timeout=self.timeout)
            found: dict[str, Any] | None = getattr(inspect, command)(*args)
        except BrokerError as error:
            self.unseen.append(f"workers could not be asked: {error}")
            return None
        return found

    def known_by_workers(self, node: str | None) -> tuple[str, str, dict[str, Any]] | None:
        """Return the worker that knows the task, what it says the task is, and what it tells of it."""
        for name, tasks in (self.ask(node, "query_task", self.id) or {}).items():
            told = tasks.get(self.id) if isinstance(tasks, dict) else None
            if isinstance(told, list | tuple) and len(told) == 2 and isinstance(told[1], dict):
                return name, str(told[0]), told[1]
        return None

    def meta(self) -> Meta | None:
        """Return the task's stored result, if there is one."""
        if self.app.backend is None:
            self.unseen.append("this app keeps no results, so it is not known whether the task has ended")
            return None
        try:
            payload = self.app.backend.fetch([self.id], timeout=self.timeout + 1.0).get(self.id)
            return decoder(self.app.conf)(payload) if payload is not None else None
        except CeleryError as error:
            self.unseen.append(f"the result could not be read: {' '.join(str(error).split())}")
            return None

    def revoked(self, stamps: Any) -> bool:
        """Say whether the task, or what carries these stamps, was revoked."""
        store = shared_store(self.app)
        if store is None:
            return False
        revocations = Revocations(store)
        revocations.read()
        return revocations.revoked.meets(self.id, stamps)

    def rate(self, task: Any, readers: Sequence[str]) -> str | None:
        """Return the rate limit of a task, as the app here knows it or else the workers."""
        known = self.app.registry.get(task)
        if known is not None and known.rate_limit:
            return str(known.rate_limit)
        for told in (self.ask(None, "registered", "rate_limit") or {}).values():
            for line in told if isinstance(told, list) else ():
                name, _, rest = str(line).partition(" [rate_limit=")
                if name == task and rest:
                    return rest.rstrip("]")
        return None

    def lost(self, seen: Sighting) -> str | None:
        """Return what is the matter with the consumer that holds the message, if something is."""
        if not seen.consumer:
            return None
        leases = self.app.broker.leases()
        try:
            for suspect in leases.suspects():
                if suspect.id == seen.consumer and (suspect.dead or suspect.age > 0):
                    return "is dead" if suspect.dead else f"has not been heard of for {suspect.age:.0f} s too long"
        finally:
            leases.close()
        return None
