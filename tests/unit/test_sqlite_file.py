"""The SQLite driver's file: what it makes, what it refuses, and what a crash or a fork leaves of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from umbel.backends.sqlite import SqliteBackend
from umbel.brokers.sqlite import SqliteBroker
from umbel.brokers.sqlite.database import WAL_LIMIT, Database, Session
from umbel.brokers.sqlite.filesystem import file_system, refuse_network
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import BrokerError, ImproperlyConfigured, OperationalError
from umbel.interfaces import Leases, Place
from umbel.testing import FakeClock
from umbel.testing.broker_base import bodies, outgoing

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


@pytest.fixture
def broker(sqlite_url: str) -> Iterator[SqliteBroker]:
    broker = SqliteBroker(sqlite_url)
    broker.open()
    yield broker
    broker.close()


@pytest.fixture
def session(sqlite_url: str) -> Iterator[Session]:
    session = Database(sqlite_url, {}).session()
    yield session
    session.close()


def pragma(session: Session, name: str) -> object:
    with session.read() as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- making it ---------------------------------------------------------------------------------------------------


@posix
def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "jobs.db"
    old = os.umask(0)
    try:
        broker = SqliteBroker(f"sqlite:///{path}")
        broker.open()
        broker.publish([outgoing()])
    finally:
        os.umask(old)
    names = {file.name: mode(file) for file in path.parent.iterdir()}
    assert names == dict.fromkeys(["jobs.db", "jobs.db-wal", "jobs.db-shm", "jobs.db.lock", "jobs.db.workers"], 0o600)
    assert mode(path.parent) == 0o700
    broker.close()


def test_a_relative_path_is_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database("sqlite:///a%20b.db", {})
    monkeypatch.chdir("/")
    assert database.path == str(tmp_path / "a b.db")
    assert Database(f"sqlite:///{tmp_path}/a%20b.db", {}).location() == database.location()


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite://host/jobs.db", "sqlite:///:memory:", "redis:///jobs.db"]
    + [f"sqlite:///jobs.db?{query}" for query in ("sync=FULL", "synchronous=OFF", "network=maybe")],
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ImproperlyConfigured):
        SqliteBroker(url)


def test_durable_by_default(session: Session) -> None:
    assert pragma(session, "synchronous") == 2
    assert pragma(session, "journal_mode") == "wal"
    assert pragma(session, "auto_vacuum") == 2
    assert pragma(session, "wal_autocheckpoint") == 0
    assert pragma(session, "mmap_size") == 0


def test_less_durable_if_asked(sqlite_url: str) -> None:
    for session in (
        Database(f"{sqlite_url}?synchronous=normal", {}).session(),
        Database(sqlite_url, {"synchronous": "NORMAL"}).session(),
    ):
        assert pragma(session, "synchronous") == 1
        session.close()


# -- refusing it -------------------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused(sqlite_path: Path, sqlite_url: str) -> None:
    SqliteBackend(sqlite_url).open()
    _edit(sqlite_path, "PRAGMA user_version = 99")
    with pytest.raises(ImproperlyConfigured, match=r"newer Umbel \(schema 99"):
        SqliteBroker(sqlite_url).open()


def _edit(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_another_programs_database_is_refused(sqlite_path: Path, sqlite_url: str) -> None:
    _edit(sqlite_path, "CREATE TABLE mine (a)")
    with pytest.raises(ImproperlyConfigured, match="another program"):
        SqliteBroker(sqlite_url).open()


def test_what_is_no_database_is_refused(sqlite_path: Path, sqlite_url: str) -> None:
    sqlite_path.write_bytes(b"this is a letter to my grandmother, and no database at all " * 20)
    with pytest.raises(ImproperlyConfigured, match="not an SQLite database"):
        SqliteBroker(sqlite_url).open()
    assert sqlite_path.read_bytes().startswith(b"this is a letter")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="is a folder"):
        SqliteBroker(f"sqlite:///{tmp_path}").open()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ImproperlyConfigured, match="file"):
        SqliteBroker(f"sqlite:///{tmp_path}/file/jobs.db").open()


def test_a_network_file_system_is_refused() -> None:
    for kind in ("nfs4", "cifs", "9p"):
        with pytest.raises(ImproperlyConfigured, match=kind):
            refuse_network("jobs.db", kind)
    for kind in ("ext4", "overlay", "tmpfs", ""):
        refuse_network("jobs.db", kind)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_kind_of_file_system_is_known(tmp_path: Path) -> None:
    assert file_system("/proc") == "proc"
    assert file_system(str(tmp_path / "absent")) == ""


def test_a_transaction_of_the_callers_is_refused(broker: SqliteBroker) -> None:
    with pytest.raises(ImproperlyConfigured):
        broker.publish([outgoing()], transaction=object())
    assert broker.size("q") == 0


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        ("SELECT * FROM nothing", ()),
        ("SELEKT 1", ()),
        ("SELECT ?", ()),
        ("SELECT ?", (object(),)),
        ("SELECT CAST(x'ff' AS TEXT)", ()),
        ("INSERT INTO groups VALUES ('g', x'00', NULL), ('g', x'00', NULL)", ()),
    ],
)
def test_what_no_retry_can_help_is_not_called_unreachable(
    session: Session, statement: str, parameters: tuple[object, ...]
) -> None:
    with pytest.raises(BrokerError) as caught, session.write() as tx:
        tx.execute(statement, parameters).fetchall()
    assert not isinstance(caught.value, OperationalError)


def test_a_file_that_may_only_be_read_is_a_matter_of_configuration(session: Session) -> None:
    with session.read() as connection:
        connection.execute("PRAGMA query_only = ON")
    with pytest.raises(ImproperlyConfigured, match="let this user write"), session.write() as tx:
        tx.execute("INSERT INTO groups VALUES ('g', x'00', NULL)")


def test_a_damaged_file_is_not_tried_again(sqlite_path: Path, sqlite_url: str) -> None:
    broker = SqliteBroker(sqlite_url)
    broker.open()
    broker.close()
    content = bytearray(sqlite_path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    sqlite_path.write_bytes(content)
    with pytest.raises(BrokerError, match=r"damaged.*\.recover") as caught:
        broker.open()
        broker.publish([outgoing()])
    assert not isinstance(caught.value, OperationalError)
    broker.close()


def test_what_another_program_holds_may_be_tried_again(sqlite_path: Path, sqlite_url: str) -> None:
    session = Database(f"{sqlite_url}?timeout=0.05", {}).session()
    with contextlib.closing(sqlite3.connect(sqlite_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked"), session.write():
            pass
        other.execute("ROLLBACK")
    with session.write():
        pass
    session.close()


# -- writing it --------------------------------------------------------------------------------------------------


def test_a_transaction_that_fails_leaves_nothing(session: Session) -> None:
    with pytest.raises(ZeroDivisionError), session.write() as tx:
        tx.execute("INSERT INTO groups VALUES ('g', x'00', NULL)")
        raise ZeroDivisionError
    with session.write() as tx:
        assert tx.execute("SELECT count(*) FROM groups").fetchone() == (0,)


def test_numbers_are_never_used_twice(session: Session, sqlite_url: str) -> None:
    other = Database(sqlite_url, {}).session()
    taken = []
    for writer in (session, other, session):
        with writer.write() as tx:
            first = tx.take(3)
            taken += [first, first + 1, first + 2, tx.take()]
    other.close()
    assert len(set(taken)) == 12


def test_a_thread_inside_a_transaction_cannot_start_another(session: Session, broker: SqliteBroker) -> None:
    """As a signal handler would that publishes."""
    with session.write() as tx:
        tx.execute("INSERT INTO groups VALUES ('g', x'00', NULL)")
        with pytest.raises(OperationalError, match="this very thread"):
            broker.publish([outgoing()])
    with session.read() as connection:
        assert connection.execute("SELECT count(*) FROM groups").fetchone() == (1,)
    broker.publish([outgoing()])


@posix
def test_a_writer_that_stands_still_is_not_waited_for_for_ever(sqlite_path: Path, sqlite_url: str) -> None:
    import fcntl

    broker = SqliteBroker(sqlite_url, options={"publish_timeout": 0.02})
    broker.open()
    with open(f"{sqlite_path}.lock", "rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with pytest.raises(OperationalError, match="being written"):
            broker.publish([outgoing()])
    broker.publish([outgoing()])
    assert broker.size("q") == 1
    broker.close()


HOLDER = """
import sys
from umbel.brokers.sqlite.shared import Shared

with Shared(sys.argv[1]).writing(5.0):
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells who holds a lock")
def test_a_writer_that_is_stopped_is_named(sqlite_path: Path, sqlite_url: str) -> None:
    broker = SqliteBroker(sqlite_url, options={"publish_timeout": 0.05})
    broker.open()
    command = [sys.executable, "-c", HOLDER, str(sqlite_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"writing\n"
        with pytest.raises(OperationalError, match=rf"which is pid {holder.pid} \((running|waiting)"):
            broker.publish([outgoing()])
        os.kill(holder.pid, signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)
        try:
            with pytest.raises(OperationalError, match=rf"pid {holder.pid} \(stopped\); let that go on \(SIGCONT\)"):
                broker.publish([outgoing()])
        finally:
            os.kill(holder.pid, signal.SIGCONT)
    broker.publish([outgoing()])
    assert broker.size("q") == 1
    broker.close()


def test_the_log_is_kept_short(broker: SqliteBroker, sqlite_path: Path) -> None:
    log = sqlite_path.with_name(f"{sqlite_path.name}-wal")
    for _ in range(30):
        broker.publish([outgoing(b"x" * 1024 * 1024)])
        assert log.stat().st_size < WAL_LIMIT + 3 * 1024 * 1024
    assert broker.size("q") == 30
    assert broker.purge("q") == 30
    broker.close()
    assert not log.exists()


def test_a_closed_one_says_so(sqlite_url: str) -> None:
    session = Database(sqlite_url, {}).session()
    session.close()
    session.close()
    with pytest.raises(BrokerError, match="closed") as caught, session.read():
        pass
    assert not isinstance(caught.value, OperationalError)  # which would be tried again for ever
    with pytest.raises(BrokerError, match="closed"), session.write():
        pass


# -- forks -------------------------------------------------------------------------------------------------------


def in_child(check: Callable[[], object]) -> int:
    """Fork, run the check in the child, and return its exit status: 0 if it raised nothing."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            check()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@posix
def test_nothing_that_was_opened_before_a_fork_works_after_it(broker: SqliteBroker, sqlite_path: Path) -> None:
    leases = broker.leases()
    consumer = broker.consumer(leases.register("node"), ["q"])
    broker.publish([outgoing(b"1")])

    def check() -> None:
        for use in (
            lambda: broker.publish([outgoing(b"2")]),
            lambda: consumer.reserve(1),
            lambda: leases.register("node"),
        ):
            with pytest.raises(BrokerError, match="fork"):
                use()
        for inherited in (consumer, leases):
            inherited.close()
        broker.open()
        broker.publish([outgoing(b"3")])
        broker.close()

    assert in_child(check) == 0
    assert list(leases.suspects()) == []
    assert bodies(consumer.reserve(5)) == [b"1", b"3"]
    broker.publish([outgoing(b"4")])
    assert bodies(consumer.reserve(5)) == [b"4"]
    consumer.close()
    leases.close()
    broker.close()
    connection = sqlite3.connect(sqlite_path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@posix
def test_a_fork_inside_a_transaction_ends_the_file_for_the_child(session: Session, sqlite_url: str) -> None:
    def check() -> None:
        with pytest.raises(BrokerError, match="inside a transaction"):
            Database(sqlite_url, {}).session()

    with session.write() as tx:
        tx.execute("INSERT INTO groups VALUES ('g', x'00', NULL)")
        assert in_child(check) == 0
    with session.read() as connection:
        assert connection.execute("SELECT count(*) FROM groups").fetchone() == (1,)


@posix
def test_versions_of_two_connections_are_not_mixed_up(session: Session) -> None:
    before = session.version()
    assert in_child(lambda: None) == 0
    assert session.version() != before


@posix
def test_a_forked_child_does_not_keep_its_parent_alive(broker: SqliteBroker, sqlite_url: str) -> None:
    """The lock of a consumer belongs to the process that registered it, and to no child of that."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        own = SqliteBroker(sqlite_url).leases()
        id = own.register("node")
        grandchild = os.fork()
        if not grandchild:
            signal.pause()
        os.write(writing, f"{grandchild} {id}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    grandchild_pid, _, id = os.read(reading, 200).decode().partition(" ")
    leases = broker.leases()
    assert [suspect.id for suspect in leases.suspects()] == [id]
    os.kill(int(grandchild_pid), signal.SIGKILL)
    leases.close()
    os.close(reading)
    os.close(writing)


# -- dead consumers ----------------------------------------------------------------------------------------------


@pytest.fixture
def leases(broker: SqliteBroker) -> Iterator[Leases]:
    leases = broker.leases()
    yield leases
    leases.close()


def test_the_living_are_no_suspects(broker: SqliteBroker, leases: Leases) -> None:
    leases.register("node")
    other = broker.leases()
    assert list(other.suspects()) == []
    other.close()


def test_a_dead_supervisor_is_known_at_once(broker: SqliteBroker, leases: Leases) -> None:
    dead = broker.leases()
    id = dead.register("node")
    consumer = broker.consumer(id, ["q"])
    contents = [b"%d" % number for number in range(300)]
    broker.publish([outgoing(content) for content in contents])
    assert len(consumer.reserve(300)) == 300
    dead.close()
    (suspect,) = leases.suspects()
    assert (suspect.id, suspect.node, suspect.beat) == (id, "node", 1)
    first = leases.reap(suspect)
    assert (first.moved, first.left) == (256, 44)
    assert [again.id for again in leases.suspects()] == [id]
    assert list(leases.renew([id])) == [id]
    assert leases.reap(suspect).left == 0
    assert list(leases.suspects()) == []
    heir = broker.consumer(leases.register("node"), ["q"])
    again = heir.reserve(300)
    assert bodies(again) == contents
    assert {(held.count, held.redelivered) for held in again} == {(2, True)}
    heir.close()
    consumer.close()


def test_a_beat_seen_before_a_renewal_never_reaps(broker: SqliteBroker, leases: Leases) -> None:
    dead = broker.leases()
    id = dead.register("node")
    dead.close()
    (old,) = leases.suspects()
    assert list(leases.renew([id])) == []
    assert leases.reap(old).moved == 0
    (new,) = leases.suspects()
    assert new.beat == old.beat + 1
    leases.reap(new)
    assert list(leases.suspects()) == []


def test_the_living_are_not_reaped(broker: SqliteBroker, leases: Leases, session: Session) -> None:
    other = broker.leases()
    id = other.register("node")
    other.close()
    (suspect,) = leases.suspects()
    with session.read() as connection:
        (number,) = connection.execute("SELECT number FROM consumers WHERE id = ?", (id,)).fetchone()
    session.shared.claim(number)
    assert leases.reap(suspect).moved == 0
    assert list(leases.renew([id])) == []
    session.shared.disclaim(number)
    assert [again.id for again in leases.suspects()] == [id]


def test_another_run_of_the_machine_is_over(sqlite_path: Path, sqlite_url: str) -> None:
    broker = SqliteBroker(sqlite_url)
    leases = broker.leases()
    leases.register("node")
    leases.close()
    broker.close()
    _edit(sqlite_path, "UPDATE consumers SET boot = 'another'")
    leases = broker.leases()
    assert [suspect.node for suspect in leases.suspects()] == ["node"]
    leases.close()
    broker.close()


@posix
def test_one_that_stands_still_is_a_suspect_after_its_lease(sqlite_url: str) -> None:
    """Its process lives and keeps its lock, but shows no new beat."""
    order = {"driver": "umbel.brokers.sqlite:SqliteBroker", "url": sqlite_url, "mode": "hold", "queue": "q"}
    broker = SqliteBroker(sqlite_url, options={"lease_ttl": 0.001})
    broker.publish([outgoing(b"x")])
    patient = SqliteBroker(sqlite_url).leases()
    leases = broker.leases()
    command = [sys.executable, "-m", "umbel.testing.peer", json.dumps({**order, "options": {}})]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        id = json.loads(peer.stdout.readline())
        os.kill(peer.pid, signal.SIGSTOP)
        assert list(patient.suspects()) == []
        (suspect,) = leases.suspects()
        assert (suspect.id, leases.reap(suspect).moved) == (id, 1)
        peer.kill()
    assert broker.size("q") == 1
    for opened in (leases, patient, broker):
        opened.close()


# -- times -------------------------------------------------------------------------------------------------------


def test_old_task_ids_are_forgotten(sqlite_path: Path, sqlite_url: str, clock: FakeClock) -> None:
    broker = SqliteBroker(sqlite_url, clock=clock)
    for _ in range(20):
        broker.publish([outgoing() for _ in range(100)])
        clock.advance(60)
    broker.close()
    connection = sqlite3.connect(sqlite_path)
    assert connection.execute("SELECT count(*) FROM seen").fetchone()[0] <= 400
    connection.close()


def test_dead_letters_survive_a_restart(sqlite_url: str) -> None:
    for _ in range(2):
        broker = SqliteBroker(sqlite_url, clock=SYSTEM_CLOCK)
        broker.publish([outgoing()])
        broker.close()
    assert broker.size("q") == 2
    assert broker.size("q", Place.DEAD) == 0
    broker.close()


def test_what_is_over_in_the_store_goes_with_what_is_written(sqlite_path: Path, sqlite_url: str) -> None:
    clock = FakeClock()
    broker = SqliteBroker(sqlite_url, clock=clock)
    broker.open()
    store = broker.store()
    for number in range(300):
        store.put(f"revoked:{number}", b"", ttl=10)
    store.put("kept", b"")
    clock.advance(11)
    for number in range(30):
        store.put(f"revoked:new{number}", b"", ttl=10)
    broker.close()
    connection = sqlite3.connect(sqlite_path)
    assert connection.execute("SELECT count(*) FROM pairs").fetchone() == (31,)
    connection.close()
