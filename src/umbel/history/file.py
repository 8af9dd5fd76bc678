"""Opening the history's file, and the only way to read and write it.

The file has a rollback journal and not a write-ahead log: it needs no shared memory, has no checkpoint that could race
a writer (https://sqlite.org/wal.html says which releases that can damage), and with one writer that commits a few times
a second its readers wait milliseconds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from importlib import resources
from typing import Final

from umbel.exceptions import ImproperlyConfigured, OperationalError

APPLICATION_ID: Final = 0x556D6268  # "Umbh"
SCHEMA: Final = 3
_PATIENCE: Final = 10.0
_PASSING: Final = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_NOMEM")


class HistoryFile:
    """One file. Threads take turns at writing, and share one connection for reading; after a fork it opens anew."""

    def __init__(self, path: str) -> None:
        """Open it, and make it and its folder if they are not there.

        Raises :exc:`ImproperlyConfigured` if it is no history or cannot be written, :exc:`OperationalError` otherwise.
        """
        self.path = os.path.realpath(path)
        self._writing, self._reading = threading.RLock(), threading.RLock()
        self._pid = os.getpid()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None  # which file the connections are of
        with self._translated():
            self._writer = self._connect()

    def _connect(self) -> sqlite3.Connection:
        _make(self.path)
        self._opened = _which(self.path)
        connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA cache_size = -16000")
            connection.execute("PRAGMA trusted_schema = OFF").fetchall()
            connection.execute("PRAGMA temp_store = MEMORY")
            _create(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _after_fork(self) -> None:
        # The parent's connections must be neither used nor closed here.
        if self._pid != os.getpid():
            _inherited.extend(each for each in (self._writer, self._reader) if each is not None)
            self._writer = self._reader = None
            self._writing, self._reading = threading.RLock(), threading.RLock()
            self._pid = os.getpid()

    def _after_deletion(self) -> None:
        # It may be deleted at any time: what is written from then on is in a new one.
        if self._opened is not None and _which(self.path) != self._opened:
            self.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give a connection for statements that only read. Fetch all rows inside: an open cursor keeps writers out."""
        self._after_fork()
        self._after_deletion()
        with self._reading, self._translated():
            if self._reader is None:
                self._reader = self._connect()
            yield self._reader

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction: all of it happens, or nothing if anything is raised."""
        self._after_fork()
        self._after_deletion()
        with self._writing, self._translated():
            if self._writer is None:
                self._writer = self._connect()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections. A second call does nothing; what uses it afterwards opens it again."""
        self._after_fork()
        with self._writing, self._reading:
            for connection in (self._writer, self._reader):
                if connection is not None:
                    connection.close()
            self._writer = self._reader = None
            self._opened = None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = str(getattr(error, "sqlite_errorname", "") or "")
            if name == "SQLITE_NOTADB" or name.startswith("SQLITE_CORRUPT"):
                raise ImproperlyConfigured(
                    f"the history {self.path} cannot be read ({error}); it may be deleted: only the past is lost"
                ) from error
            if name.startswith(_PASSING):
                raise OperationalError(f"the history {self.path}: {error}") from error
            raise ImproperlyConfigured(f"the history {self.path}: {error}") from error
        except OSError as error:
            raise ImproperlyConfigured(
                f"the history {self.path}: {error.strerror or error}; name a file that this user can write"
            ) from error


_inherited: list[sqlite3.Connection] = []


def _which(path: str) -> tuple[int, int] | None:
    """Return what tells this file from another one of its name, or None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make(path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        # What tasks were called with is for nobody else to read.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    if os.path.isdir(path):
        raise ImproperlyConfigured(f"{path} is a folder; name a file in it")
    if os.name == "posix" and os.stat(path).st_mode & stat.S_IWOTH:
        raise ImproperlyConfigured(f"everybody may write to the history {path}; run: chmod o-w {path}")


def _version(connection: sqlite3.Connection, path: str) -> int:
    """Return the schema of a history, 0 for a file that is empty yet."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION_ID:
        if version > SCHEMA:
            raise ImproperlyConfigured(
                f"the history {path} was written by a newer Umbel (schema {version}; this one knows {SCHEMA}); "
                "upgrade Umbel here or use another file"
            )
        return int(version)
    if application or connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_master)").fetchone()[0]:
        raise ImproperlyConfigured(f"{path} is a database of another program; give the history a file of its own")
    return 0


def _create(connection: sqlite3.Connection, path: str) -> None:
    if _version(connection, path) == SCHEMA:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have been faster.
        if (version := _version(connection, path)) != SCHEMA:
            names = [f"migrate_{step}.sql" for step in range(version, SCHEMA)] if version else ["schema.sql"]
            for statement in itertools.chain.from_iterable(map(_statements, names)):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(name: str) -> list[str]:
    text = resources.files("umbel.history").joinpath(name).read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]
