"""A file that an older Umbel made is brought up to date when it is opened, and keeps what it holds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from umbel.brokers.sqlite import SqliteBroker
from umbel.brokers.sqlite.migrations import SCHEMA, script
from umbel.interfaces import Dead, Place, Settlement
from umbel.testing.broker_base import bodies, outgoing

# What each step added, taken away again; the newest first.
BACKWARDS = {
    4: "DROP INDEX pairs_expiring;",
    3: "ALTER TABLE messages DROP COLUMN due;",
    2: "ALTER TABLE messages DROP COLUMN log; ALTER TABLE dead DROP COLUMN traceback;",
}


def edit(path: Path, statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(statements)
    connection.close()


def columns(path: Path) -> dict[str, list[tuple[str, str]]]:
    connection = sqlite3.connect(path)
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {
        table: sorted((row[1], row[2]) for row in connection.execute(f"PRAGMA table_info({table})")) for table in tables
    }
    found["indexes"] = sorted(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index'").fetchall())
    connection.close()
    return found


def made(url: str) -> SqliteBroker:
    broker = SqliteBroker(url)
    broker.open()
    return broker


@pytest.mark.parametrize("version", range(1, SCHEMA))
def test_an_older_file_is_brought_up_to_date(version: int, sqlite_url: str, sqlite_path: Path) -> None:
    broker = made(sqlite_url)
    broker.publish([outgoing(b"1"), outgoing(b"2")])
    leases = broker.leases()
    consumer = broker.consumer(leases.register("n"), ["q"])
    (held,) = consumer.reserve(1)
    consumer.settle([Settlement(delivery=held, how=Dead("rejected", "before"))])
    for each in (consumer, leases, broker):
        each.close()
    newest = columns(sqlite_path)
    for step in range(SCHEMA, version, -1):
        edit(sqlite_path, BACKWARDS[step])
    edit(sqlite_path, f"PRAGMA user_version = {version}")
    assert columns(sqlite_path) != newest

    broker = made(sqlite_url)
    assert columns(sqlite_path) == newest
    (letter,) = broker.dead().page("q")
    assert (bodies([letter]), letter.detail, letter.traceback, list(letter.crashes)) == ([b"1"], "before", "", [])
    broker.dead().revive("q", {letter.key: None})
    assert bodies(broker.peek("q")) == [b"2", b"1"] and broker.size("q", Place.DEAD) == 0
    second = made(sqlite_url)  # finds nothing to do
    assert second.size("q") == 2
    second.close()
    broker.close()


def test_every_step_is_there() -> None:
    assert all(script(version) for version in range(SCHEMA))
    assert script(SCHEMA) == ""
