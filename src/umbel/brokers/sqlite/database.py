"""Opening the file, and the only way to read and write it.

Every write is one ``BEGIN IMMEDIATE`` transaction under the writer's lock (see :mod:`umbel.brokers.sqlite.shared`);
``busy_timeout`` is only the second net. Checkpoints happen under the same lock and never by themselves: SQLite 3.7.0 to
3.51.2 can corrupt a file when a checkpoint that resets the log races a writer (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

from umbel.brokers.sqlite.filesystem import file_system, free_space, refuse_network
from umbel.brokers.sqlite.migrations import SCHEMA, script
from umbel.brokers.sqlite.shared import Shared
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import BrokerError, ImproperlyConfigured, OperationalError, PublishUnknown
from umbel.interfaces import Clock, StoreLocation

APPLICATION_ID = 0x556D626C  # "Umbl"
WAL_LIMIT = 16 * 1024 * 1024  # a log of this size is copied into the database
_WAL_STEP = 1024 * 1024
_WAL_KEPT = WAL_LIMIT - _WAL_STEP  # what stays of it to be written over
_OLDEST = (3, 35, 0)  # RETURNING
# Where the same statement may well succeed later (https://sqlite.org/rescode.html).
_PASSING = (
    "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PROTOCOL", "SQLITE_NOMEM",
    "SQLITE_INTERRUPT", "SQLITE_SCHEMA",
)  # fmt: skip
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_PRAGMAS = (
    "wal_autocheckpoint = 0",
    f"journal_size_limit = {_WAL_KEPT}",
    "mmap_size = 0",
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "temp_store = MEMORY",
    "cache_size = -8000",
)


class Database:
    """A file and how to open it: an immutable value, safe to share."""

    __slots__ = ("clock", "network", "path", "synchronous", "timeout")

    def __init__(self, url: str, options: Mapping[str, Any], clock: Clock = SYSTEM_CLOCK) -> None:
        path, asked = _parse(url)
        self.path = os.path.realpath(path)
        self.clock = clock
        self.synchronous = str(asked.pop("synchronous", options.get("synchronous", "FULL"))).upper()
        self.network = str(asked.pop("network", options.get("network", "refuse")))
        self.timeout = float(asked.pop("timeout", options.get("socket_timeout") or 5.0))
        if self.synchronous not in ("NORMAL", "FULL"):
            raise ImproperlyConfigured(f"{url}: synchronous is {self.synchronous!r}; it can be FULL or NORMAL")
        if self.network not in ("refuse", "allow"):
            raise ImproperlyConfigured(f"{url}: network is {self.network!r}; it can be refuse or allow")
        if asked:
            known = "synchronous, network, timeout"
            raise ImproperlyConfigured(f"{url}: unknown option {sorted(asked)[0]!r}; there are: {known}")

    def location(self) -> StoreLocation:
        """Name the file so that broker and backend can tell whether theirs is the same."""
        return StoreLocation(scheme="sqlite", identity=self.path)

    def session(self, *, synchronous: str = "", patience: float = 0.0) -> Session:
        """Return a new connection. Creates the file and its folder if they are not there.

        ``patience`` is how many seconds a foreign program's lock is waited for, where that differs from our own.
        """
        return Session(self, synchronous or self.synchronous, patience or self.timeout)


def _parse(url: str) -> tuple[str, dict[str, str]]:
    scheme, _, rest = url.partition("://")
    name, _, query = rest.partition("?")
    if scheme != "sqlite" or not name.startswith("/") or len(name) < 2 or name.startswith("/:memory:"):
        raise ImproperlyConfigured(
            f"{url!r} names no file; write sqlite:///jobs.db for one in the working directory, "
            "sqlite:////var/lib/jobs.db for an absolute path, or memory:// for none"
        )
    return unquote(name[1:]), {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}


# -- errors ------------------------------------------------------------------------------------------------------


def _translated(error: sqlite3.Error, path: str) -> Exception:
    code = getattr(error, "sqlite_errorname", "") or ""
    if code == "SQLITE_NOTADB":
        return ImproperlyConfigured(f"{path} is not an SQLite database; move it away or choose another file")
    if code.startswith("SQLITE_CORRUPT"):
        return BrokerError(
            f"{path} is damaged ({error}); stop every worker, keep a copy, and rebuild it with sqlite3's .recover"
        )
    if code == "SQLITE_FULL":
        return OperationalError(f"{path}: the disk is full; nothing was changed")
    if code == "SQLITE_READONLY_DBMOVED":
        return BrokerError(f"{path} was moved or deleted while it was in use; start this process anew")
    if code.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return ImproperlyConfigured(f"{path}: {error}; let this user write the file and its folder")
    if code.startswith(_PASSING):
        return OperationalError(f"{path}: {error}")
    # Ours, or somebody else's, in the use of SQLite: the same statement would fail for ever.
    return BrokerError(f"{path}: {error}")


@contextlib.contextmanager
def translate(path: str) -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, path) from error
    except OSError as error:
        raise _refused(error, path) from error


def _refused(error: OSError, path: str) -> Exception:
    if error.errno in _DENIED:
        return ImproperlyConfigured(f"{path}: {error.strerror}; name a file that this user can write")
    return OperationalError(f"{path}: {error.strerror or error}")


# -- what a process shares, and what a fork ends -----------------------------------------------------------------

_shared: dict[str, Shared] = {}
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_opening = threading.RLock()  # taken before any session's own mutex
_forking: list[Session] = []
_abandoned: list[sqlite3.Connection] = []
_poisoned: set[str] = set()


def _before_fork() -> None:
    """Close every connection, for a while.

    A child that opens a file which its parent has open shares what SQLite remembers of the parent's locks, believes
    that it holds them, and can lose its log to the next process that closes. So no connection is open during a fork.
    """
    _opening.acquire()
    for session in list(_sessions):
        # Noted first: an error here must not leave a session that resume() would not let go.
        _forking.append(session)
        session.suspend()


def _after_fork_in_parent() -> None:
    for session in _forking:
        session.resume()
    _forking.clear()
    _opening.release()


def _after_fork_in_child() -> None:
    """Make what the parent had open unusable here. No lock of the parent's is touched: POSIX locks are its alone."""
    global _opening
    _opening = threading.RLock()
    for session in _forking:
        session.abandon()
    _forking.clear()
    for shared in _shared.values():
        shared.abandon()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _keep_for_ever(connection: sqlite3.Connection) -> None:
    """Never close the connection of a parent that forked inside a transaction: not even that is safe."""
    import ctypes

    # The list alone would be emptied when the interpreter ends, and the connection closed by that.
    _abandoned.append(connection)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _join(path: str) -> Shared:
    with _opening:
        if (shared := _shared.get(path)) is None:
            shared = _shared[path] = Shared(path)
        shared.users += 1
        return shared


def _leave(shared: Shared) -> None:
    with _opening:
        shared.users -= 1
        if not shared.users and _shared.get(shared.path) is shared:
            del _shared[shared.path]
            shared.close()


# -- connections -------------------------------------------------------------------------------------------------


class Transaction:
    """One write in progress. Its numbers are used if it commits, and given to somebody else if it does not."""

    __slots__ = ("_next", "_start", "execute", "executemany", "now")

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.now = now
        self._next = self._start = connection.execute("SELECT value FROM sequence").fetchone()[0] + 1

    def take(self, count: int = 1) -> int:
        """Return the first of so many numbers that nobody has had before."""
        first = self._next
        self._next += count
        return int(first)

    def finish(self) -> None:
        """Write down which numbers were taken."""
        if self._next != self._start:
            self.execute("UPDATE sequence SET value = ?", (self._next - 1,))


class Session:
    """One connection. Threads that share it take turns; it does not work in a forked child."""

    def __init__(self, database: Database, synchronous: str, patience: float) -> None:
        self.path = database.path
        self.clock = database.clock
        self.timeout = database.timeout
        self._synchronous = synchronous
        self._patience = patience
        self._mutex = threading.RLock()
        self._inherited = False
        self._closed = False
        self._connections = 0
        self._connection: sqlite3.Connection | None = None
        with _opening, translate(self.path):
            if self.path in _poisoned:
                raise BrokerError(f"{self.path}: this process was forked inside a transaction on it; start it anew")
            _prepare(database)
            self.shared = _join(self.path)
            try:
                self._connection = self._connect()
            except BaseException:
                _leave(self.shared)
                raise
            _sessions.add(self)

    def _connect(self) -> sqlite3.Connection:
        # cached_statements keeps every statement of the hot path prepared.
        connection = sqlite3.connect(
            self.path, timeout=self._patience, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            for pragma in (*_PRAGMAS, f"synchronous = {self._synchronous}"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            if not _is_ours(connection, self.path):
                with self.shared.writing(self.timeout):
                    _create(connection, self.path)
        except BaseException:
            connection.close()
            raise
        self._connections += 1
        return connection

    def _open(self) -> sqlite3.Connection:
        if self._inherited:
            raise BrokerError(f"{self.path} was opened before a fork and cannot be used after it; open it anew")
        if self._closed:
            raise BrokerError(f"{self.path}: this connection is closed; open() it again")
        if self._connection is None:  # a fork has been
            self._connection = self._connect()
        return self._connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for statements that only read. Fetch all rows: an open cursor holds back checkpoints."""
        with self._mutex, translate(self.path):
            yield self._open()

    def version(self) -> int:
        """Return a number that changes when another connection has committed."""
        with self.read() as connection:
            return int(connection.execute("PRAGMA data_version").fetchone()[0]) + (self._connections << 40)

    @contextlib.contextmanager
    def write(self, *, timeout: float | None = None, publishing: str = "") -> Iterator[Transaction]:
        """Run one transaction: all of it happens, or nothing if anything is raised.

        ``publishing`` names the task for the :exc:`PublishUnknown` of a commit whose fate cannot be known.
        """
        patience = self.timeout if timeout is None else timeout
        try:
            # Each of many threads that wait for a file must not also wait for all before it.
            if not self._mutex.acquire(timeout=patience):
                raise OperationalError(f"{self.path} was in use by other threads for {patience:g} s")
            with translate(self.path):
                connection = self._open()
                with self.shared.writing(patience):
                    try:
                        connection.execute("BEGIN IMMEDIATE")
                        transaction = Transaction(connection, self.clock.time())
                        yield transaction
                        transaction.finish()
                        self._commit(connection, publishing)
                    except BaseException:
                        if connection.in_transaction:
                            connection.execute("ROLLBACK")
                        raise
                    self._care_for_log(connection)
        finally:
            self._leave_turn()
        self.shared.ring()

    def _leave_turn(self) -> None:
        # Taking it once more succeeds if it is ours, and tells so without a flag that an exception could have skipped.
        if self._mutex.acquire(blocking=False):
            self._mutex.release()
            try:
                self._mutex.release()
            except RuntimeError:
                pass  # it was not ours, and nobody's

    def _commit(self, connection: sqlite3.Connection, publishing: str) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            # The frames may be in the log although they could not be synced: a recovery could bring them to light.
            if publishing and str(getattr(error, "sqlite_errorname", "")).startswith("SQLITE_IOERR"):
                raise PublishUnknown(publishing, f"{self.path}: {error}") from error
            raise

    def _care_for_log(self, connection: sqlite3.Connection) -> None:
        """Keep the log neither too long nor too short; the caller is the only writer.

        Syncing a file that grows costs twice as much as syncing one that is written over. So the log grows by steps of
        zeros, at which SQLite ends reading, and a checkpoint leaves it almost its whole length. It is longer than that
        only if it was filled since.
        """
        try:
            size = os.stat(f"{self.path}-wal").st_size
        except OSError:
            return
        if size >= max(WAL_LIMIT, self.shared.checkpoint_at):
            self._checkpoint(connection, size)
        elif size < _WAL_KEPT and size > self.shared.log_size():
            # The transaction is committed already, and this is a matter of speed.
            with contextlib.suppress(OSError), open(f"{self.path}-wal", "r+b", buffering=0) as log:
                if free_space(log.fileno()) >= 4 * WAL_LIMIT:
                    log.seek(size)
                    log.write(bytes(min(_WAL_STEP, _WAL_KEPT - size)))
                    self.shared.log_size(log.tell())
                elif size >= _WAL_STEP:
                    self._checkpoint(connection, size)
                    self.shared.log_size(size)

    def _checkpoint(self, connection: sqlite3.Connection, size: int) -> None:
        # Without waiting: if a reader stands in the way, we come back when the log is somewhat longer.
        try:
            _, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.OperationalError:
            frames, copied = 1, 0
        self.shared.checkpoint_at = 0 if frames == copied else size + WAL_LIMIT // 4

    def vacuum(self, pages: int = 1000) -> None:
        """Give free pages back to the file system once they are a large part of the file."""
        with self.read() as connection:
            free, count = (connection.execute(f"PRAGMA {of}").fetchone()[0] for of in ("freelist_count", "page_count"))
            if free > 4096 and free * 2 > count:
                with self.shared.writing(self.timeout):
                    connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()

    def suspend(self) -> None:
        """Close the connection for the time of a fork, and keep other threads out until :meth:`resume`."""
        self._mutex.acquire()
        connection = self._connection
        if connection is not None and not connection.in_transaction:
            self._connection = None
            self._end(connection)

    def resume(self) -> None:
        """Let other threads in again; the next of them opens the connection."""
        self._mutex.release()

    def abandon(self) -> None:
        """Make this session unusable in a forked child."""
        self._inherited = True
        self._mutex = threading.RLock()
        if self._connection is not None:
            _poisoned.add(self.path)
            _keep_for_ever(self._connection)

    @property
    def usable(self) -> bool:
        """Whether it is open, and was opened in this process."""
        return not (self._inherited or self._closed)

    def _end(self, connection: sqlite3.Connection) -> None:
        try:
            # The last one to close checkpoints and removes the log: that must not meet a writer.
            with self.shared.writing(self.timeout):
                connection.close()
        except OperationalError:
            connection.close()

    def close(self) -> None:
        """Close the connection. A second call does nothing, nor does one in a forked child."""
        with self._mutex:
            if not self.usable:
                return
            self._closed = True
            connection, self._connection = self._connection, None
            if connection is not None:
                self._end(connection)
        _leave(self.shared)


# -- making the file ---------------------------------------------------------------------------------------------


def _prepare(database: Database) -> None:
    path = database.path
    if sqlite3.sqlite_version_info < _OLDEST:
        raise ImproperlyConfigured(f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed")
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if database.network == "refuse":
            refuse_network(path, file_system(folder))
        # SQLite gives its log and index files the mode of the database, so only this one needs care. An existing
        # file must not be opened here: closing it would free the locks of this process's connections.
        if not os.path.exists(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not os.path.isdir(folder):
            raise ImproperlyConfigured(f"{folder} is not a folder, so {path} cannot be made") from None
    except OSError as error:
        raise _refused(error, path) from error
    if os.path.isdir(path):
        raise ImproperlyConfigured(f"{path} is a folder; name a file in it")
    if os.name == "posix" and os.stat(path).st_mode & stat.S_IWOTH:
        # Whoever writes to it decides which tasks run.
        raise ImproperlyConfigured(f"everybody may write to {path}; run: chmod o-w {path}")


def _is_ours(connection: sqlite3.Connection, path: str) -> bool:
    """Say whether the file has our tables; ImproperlyConfigured if it is someone else's or of a newer Umbel."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application == APPLICATION_ID:
        if version > SCHEMA:
            raise ImproperlyConfigured(
                f"{path} was written by a newer Umbel (schema {version}; this one knows {SCHEMA}); "
                "upgrade Umbel here or use another file"
            )
        return bool(version == SCHEMA)
    if application or connection.execute("SELECT EXISTS (SELECT 1 FROM sqlite_master)").fetchone()[0]:
        raise ImproperlyConfigured(f"{path} is a database of another program; use a file of its own")
    return False


def _create(connection: sqlite3.Connection, path: str) -> None:
    if _is_ours(connection, path):
        return  # someone else was faster
    # Of a file that is ours; a new one has none.
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if not version:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise ImproperlyConfigured(f"{path}: the file system cannot share memory, which a write-ahead log needs")
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script(version)}\nPRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {SCHEMA};\nCOMMIT;"
        )
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def boot() -> tuple[str, int]:
    """Return what names this run of the machine, and the milliseconds since it began, sleep included."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            name = file.read().strip()
    except OSError:
        name = ""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    seconds = time.clock_gettime(clock) if clock is not None else time.monotonic()
    return name, int(seconds * 1000)
