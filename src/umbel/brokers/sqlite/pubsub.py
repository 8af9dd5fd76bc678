"""Remote control and events: a table of notes that every listener reads from where it began."""

from __future__ import annotations

import time
from collections import deque

from umbel.brokers.sqlite.database import Database, Session
from umbel.interfaces import PubSub, Subscription
from umbel.message import Message, decode_envelope, encode_envelope

_KEPT = 60.0  # seconds; a listener that is further behind misses notes, as with every broker
_SHORTEST, _LONGEST = 0.001, 0.05
_PAGE = 200


def matches(pattern: str, routing_key: str) -> bool:
    """Say whether a routing key fits a topic pattern: ``*`` is one word, ``#`` any number of them.

    >>> matches("worker.#", "worker.heartbeat"), matches("worker.#", "workers.x"), matches("task.*", "task")
    (True, False, False)
    """
    return pattern == "#" or _fits(pattern.split("."), routing_key.split("."))


def _fits(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_fits(pattern[1:], words[skip:]) for skip in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _fits(pattern[1:], words[1:])


class SqlitePubSub(PubSub):
    """Publishes through the connection it is given. Safe to share between threads."""

    def __init__(self, database: Database, session: Session) -> None:
        self._database = database
        self._session = session

    def publish(self, exchange: str, message: Message, *, routing_key: str = "") -> None:
        """Send to all present subscribers of the exchange whose pattern matches."""
        raw = encode_envelope(message)
        with self._session.write() as tx:
            tx.execute("INSERT INTO notes VALUES (?, ?, ?, ?, ?)", (tx.take(), exchange, routing_key, raw, tx.now))
            tx.execute(
                "DELETE FROM notes WHERE number IN (SELECT number FROM notes ORDER BY number LIMIT 8) "
                "AND published_at <= ?",
                (tx.now - _KEPT,),
            )

    def subscribe(self, exchange: str, *, pattern: str = "#") -> Subscription:
        """Start listening; what is published after this returns is received."""
        return SqliteSubscription(self._database, exchange, pattern)


class SqliteSubscription(Subscription):
    """One listener with a connection of its own. Owned by one thread."""

    def __init__(self, database: Database, exchange: str, pattern: str) -> None:
        self._exchange = exchange
        self._pattern = pattern
        self._found: deque[Message] = deque()
        self._session = database.session()
        self._waker = self._session.shared.waker()
        self._version = 0
        with self._session.read() as connection:
            (self._seen,) = connection.execute("SELECT value FROM sequence").fetchone()

    def receive(self, *, timeout: float) -> Message | None:
        """Return the next message, or None when the timeout (seconds) has passed."""
        deadline = time.monotonic() + timeout
        pause = _SHORTEST
        self._waker.sleeping = True
        try:
            while not self._found and not self._read():
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                rung = self._waker.sleep(min(pause, left))
                pause = _SHORTEST if rung else min(pause * 1.5, _LONGEST)
            return self._found.popleft()
        finally:
            self._waker.sleeping = False

    def _read(self) -> bool:
        version = self._session.version()
        if version == self._version:
            return False
        while True:
            with self._session.read() as connection:
                rows = connection.execute(
                    "SELECT number, exchange, routing_key, raw FROM notes WHERE number > ? ORDER BY number LIMIT ?",
                    (self._seen, _PAGE),
                ).fetchall()
            for number, exchange, routing_key, raw in rows:
                self._seen = number
                if exchange == self._exchange and matches(self._pattern, routing_key):
                    self._found.append(decode_envelope(raw))
            if len(rows) < _PAGE or self._found:
                # Read on next time, if this page was full.
                self._version = version if len(rows) < _PAGE else 0
                return bool(self._found)

    def close(self) -> None:
        """Stop listening."""
        self._session.shared.dismiss(self._waker)
        self._session.close()
