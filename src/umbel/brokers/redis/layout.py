"""The names of the keys, and what every script is told first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from umbel.brokers.redis.link import Link, Script, Word
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import ImproperlyConfigured
from umbel.interfaces import Clock, Outgoing, StoreLocation

STEPS: Final = (0, 3, 6, 9)  # the priorities that Celery keeps apart on Redis
NAMESPACE: Final = "umbel:"

RESERVE: Final = Script("common", "full", "give", "reserve", "reserve_only")
SETTLE: Final = Script("common", "full", "give", "reserve", "results", "settle")
BEGIN: Final = Script("common", "full", "results", "begin")
PUT: Final = Script("put")
PUBLISH: Final = Script("common", "give", "publish")
BIND: Final = Script("common", "full", "bind")
REGISTER: Final = Script("common", "full", "register")
RENEW: Final = Script("common", "full", "renew")
RELEASE: Final = Script("common", "full", "give", "release")
SUSPECTS: Final = Script("common", "suspects")
REAP: Final = Script("common", "full", "give", "reap")
PURGE: Final = Script("common", "purge")
COUNT_HELD: Final = Script("common", "count_held")
REVIVE: Final = Script("common", "give", "revive")
DISCARD: Final = Script("common", "discard")
WITHDRAW: Final = Script("common", "withdraw")
STORE: Final = Script("common", "full", "rows", "store")
PUBLISH_IF: Final = Script("common", "give", "rows", "publish_if")
RESULT: Final = Script("common", "full", "results", "result")
CHORD: Final = Script("common", "full", "results", "chord")
AUDIT: Final = Script("common", "results", "audit")


class Layout:
    """The keys of one namespace of one server. Immutable."""

    __slots__ = (
        "backoff",
        "clock",
        "head",
        "max_deliveries",
        "namespace",
        "prefix",
        "separator",
        "step_names",
        "steps",
    )

    def __init__(self, options: Mapping[str, Any], clock: Clock) -> None:
        self.prefix = str(options.get("global_keyprefix") or "")
        self.namespace = self.prefix + NAMESPACE
        self.separator = str(options.get("sep") or "\x06\x16")
        steps = sorted({int(step) for step in options.get("priority_steps") or STEPS})
        if steps[0] != 0:
            raise ImproperlyConfigured(f"priority_steps must start with 0, not {steps[0]}")
        self.step_names = [str(step) for step in steps]
        # The step of each priority from 0 to 9: the largest that is not above it.
        self.steps = [max(step for step in steps if step <= priority) for priority in range(10)]
        self.clock = None if clock is SYSTEM_CLOCK else clock
        limit = options.get("max_deliveries", 5)
        self.max_deliveries = 0 if limit is None else int(limit)
        self.backoff = [int(float(pause) * 1000) for pause in options.get("redelivery_backoff", (1, 5, 30, 120)) or ()]
        # With a clock of the server's own every script is told the same.
        self.head: list[Word] = [self.prefix, "", self.separator, self.max_deliveries]

    def told(self) -> list[Word]:
        """Return the first arguments of every script: prefix, time (empty: the server's), separator, limit."""
        if self.clock is None:
            return self.head.copy()
        return [self.prefix, f"{self.clock.time() * 1e6:.0f}", self.separator, self.max_deliveries]

    def key(self, name: str) -> str:
        """Return a key of our own."""
        return self.namespace + name

    def step(self, priority: int | None) -> int:
        """Return the step that a priority falls to."""
        return self.steps[min(max(priority or 0, 0), 9)]

    def list_key(self, queue: str, step: int | str = 0) -> str:
        """Return the key of Celery's list for one queue and step."""
        return f"{self.prefix}{queue}{self.separator}{step}" if int(step) else self.prefix + queue

    def list_keys(self, queue: str) -> list[str]:
        """Return the keys of all lists of a queue, the most urgent first."""
        return [self.list_key(queue, step) for step in self.step_names]

    def item(self, outgoing: Outgoing, raw: bytes, seen: str = "") -> tuple[str, str, bytes]:
        """Return the three arguments that tell a script about one message (see give.lua)."""
        if not (outgoing.not_before or outgoing.unique or outgoing.gate):
            step = self.steps[min(max(outgoing.priority or 0, 0), 9)]
            return self.list_key(outgoing.queue, step) if step else self.prefix + outgoing.queue, seen, raw
        ttl = outgoing.unique_ttl
        fields = (
            outgoing.queue,
            str(self.step(outgoing.priority)),
            seen,
            "" if outgoing.not_before is None else str(to_ms(outgoing.not_before)),
            outgoing.gate or "",
            outgoing.unique or "",
            "" if ttl is None else str(max(1, int(ttl * 1000))),
            outgoing.task_id,
        )
        if any("\0" in field for field in fields):
            raise ImproperlyConfigured(f"no name of task {outgoing.task_id!r} may hold a NUL character: {fields!r}")
        return "", "\0".join(fields), raw


def to_ms(moment: datetime) -> int:
    """Return milliseconds since the epoch, rounded up: never earlier than the moment."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return -int(-moment.timestamp() * 1000 // 1)


def from_ms(milliseconds: float | str | bytes) -> datetime:
    """Return the moment of milliseconds since the epoch."""
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)


class Results:
    """Where settle and begin write results: nothing, or a database and a prefix of the same server."""

    __slots__ = ("bound", "database", "prefix")

    def __init__(self) -> None:
        self.bound = False
        self.database: Word = ""  # empty: the broker's own
        self.prefix = ""

    def bind(self, location: StoreLocation | None, own: StoreLocation | None) -> bool:
        """Learn the location; return whether it is on the server ``own``."""
        self.bound = (
            location is not None
            and own is not None
            and location.scheme == own.scheme
            and bool(own.identity)
            and location.identity == own.identity
        )
        if self.bound and location is not None and own is not None:
            self.database = "" if location.database == own.database else location.database
            self.prefix = location.prefix
        return self.bound

    def task_key(self, task_id: str) -> str:
        """Return the key of a task's result."""
        return f"{self.prefix}celery-task-meta-{task_id}"

    def group_key(self, group_id: str) -> str:
        """Return the key of a group's description; those of its chord add a suffix."""
        return f"{self.prefix}celery-taskset-meta-{group_id}"


def lease_options(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return (ttl, heartbeat) in seconds; ImproperlyConfigured where one late beat would cost the lease."""
    ttl, heartbeat = float(options.get("lease_ttl", 30.0)), float(options.get("lease_heartbeat", 10.0))
    if ttl < 3 * heartbeat:
        raise ImproperlyConfigured(f"lease_ttl={ttl:g} must be at least three times lease_heartbeat={heartbeat:g}")
    return ttl, heartbeat


def run_id(link: Link) -> str:
    """Return what names the process of this server, or nothing where the server does not say."""
    reply = link.call("INFO", "server")
    match = re.search(r"run_id:(\w+)", reply.decode() if isinstance(reply, bytes) else str(reply))
    return match[1] if match else ""
