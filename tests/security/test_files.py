"""S27-S29: the files of a worker, in folders where somebody else may have been first."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from umbel.brokers.sqlite import SqliteBroker
from umbel.brokers.sqlite.database import APPLICATION_ID, Database
from umbel.cli.daemon import pidfile
from umbel.cli.errors import Trouble
from umbel.exceptions import BrokerError, ImproperlyConfigured, OperationalError
from umbel.testing.broker_base import outgoing
from umbel.utils.files import open_private
from umbel.utils.log import PrivateFileHandler

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
root_only = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to become another user")

STRANGER = 65534


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as /tmp is."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture(autouse=True)
def mask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def append(path: Path, text: str = "line") -> None:
    with open(path, "a", opener=open_private) as file:
        file.write(text)


def strangers(path: Path) -> Path:
    """Make a link or a file somebody else's."""
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    return path


# -- S27: log files ----------------------------------------------------------------------------------------------


def test_s27_a_log_file_is_its_owners_alone_also_after_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    handler = PrivateFileHandler(str(path))
    record = logging.LogRecord("x", logging.INFO, "f", 1, "hello", None, None)
    handler.emit(record)
    path.rename(tmp_path / "worker.log.1")
    handler.emit(record)
    handler.close()
    assert [mode(path), mode(tmp_path / "worker.log.1")] == [0o600, 0o600]
    assert path.read_text() == "hello\n"


def test_s27_a_log_file_that_is_there_keeps_its_mode_and_a_link_of_ours_is_followed(shared: Path) -> None:
    target = shared / "target"
    target.write_text("")
    target.chmod(0o640)
    (shared / "link").symlink_to(target)
    append(shared / "link")
    assert (target.read_text(), mode(target)) == ("line", 0o640)


@root_only
def test_s27_what_a_stranger_put_there_is_refused(shared: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    link, file, pipe, hard = (shared / name for name in ("link", "file", "pipe", "hard"))
    link.symlink_to(precious)
    strangers(link)
    file.write_text("")
    strangers(file)
    os.mkfifo(pipe)
    strangers(pipe)
    os.link(precious, hard)
    dangling = shared / "dangling"
    dangling.symlink_to(tmp_path / "new")
    strangers(dangling)
    for path in (link, file, pipe, hard, dangling):
        with pytest.raises(PermissionError):
            append(path)
    assert precious.read_text() == ""
    assert not (tmp_path / "new").exists()


@root_only
def test_s27_a_link_that_appears_between_look_and_open_is_not_followed(shared: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    pid = os.fork()
    if not pid:
        os.chdir(shared)
        os.setuid(STRANGER)
        while True:
            for step in (lambda: os.symlink("../precious", "worker.log"), lambda: os.unlink("worker.log")):
                with contextlib.suppress(OSError):
                    step()
    made = 0
    try:
        for _ in range(5000):
            with contextlib.suppress(OSError):
                append(shared / "worker.log")
                made += 1
                (shared / "worker.log").unlink()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert precious.read_text() == ""
    assert made


def test_s27_a_worker_with_such_a_log_file_says_so_in_one_line(shared: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs to make somebody else's file")
    (tmp_path / "app.py").write_text("from umbel import Umbel\napp = Umbel('x', broker='memory://')\n")
    log = shared / "worker.log"
    log.write_text("")
    strangers(log)
    command = [sys.executable, "-m", "umbel", "-A", "app", "worker", "-P", "solo", "-f", str(log)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 78
    assert "somebody else's file" in done.stderr
    assert "Traceback" not in done.stderr


# -- S27: pid files ----------------------------------------------------------------------------------------------


def test_s27_a_pidfile_is_made_anew_and_follows_nothing(tmp_path: Path) -> None:
    precious, path = tmp_path / "precious", tmp_path / "worker.pid"
    precious.write_text("not a pid")
    path.symlink_to(precious)
    with pidfile(str(path)):
        assert not path.is_symlink()
        assert (path.read_text(), mode(path)) == (f"{os.getpid()}\n", 0o600)
    assert precious.read_text() == "not a pid"
    assert not path.exists()
    path.symlink_to(tmp_path / "missing")
    with pidfile(str(path)):
        assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("content", [b"", b"x", b"-1", b"0", b"\xff", b"9" * 5000, b"1e3", None])
def test_s27_a_pidfile_with_nonsense_or_a_pipe_in_its_place_is_replaced(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "worker.pid"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_s27_a_folder_in_its_place_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "worker.pid"
    path.mkdir()
    with pytest.raises(Trouble, match="--pidfile"), pidfile(str(path)):
        pass


def test_s27_of_many_that_start_at_once_one_gets_the_pidfile(tmp_path: Path) -> None:
    code = """
        import sys, time
        from umbel.cli.daemon import pidfile
        try:
            with pidfile(sys.argv[1]):
                print("mine", flush=True)
                sys.stdin.read()
        except Exception:
            print("taken", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "worker.pid")]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(4)
    ]
    try:
        said = [process.stdout.readline().strip() for process in started if process.stdout]
    finally:
        for process in started:
            process.communicate()
    assert sorted(said) == ["mine", "taken", "taken", "taken"]


def test_s27_a_number_that_another_process_got_meanwhile_is_no_owner(tmp_path: Path) -> None:
    path = tmp_path / "worker.pid"
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            path.write_text(f"{stranger.pid}\n")
            with pytest.raises(Trouble, match="already running"), pidfile(str(path)):
                pass
            # As it would be if the file had been there before the process: written an hour ago.
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
            with pidfile(str(path)):
                assert path.read_text() == f"{os.getpid()}\n"
        finally:
            stranger.kill()


def test_s27_who_holds_the_lock_is_the_owner_whatever_the_clocks_say(tmp_path: Path) -> None:
    path = tmp_path / "worker.pid"
    code = """
        import sys
        from umbel.cli.daemon import pidfile
        with pidfile(sys.argv[1]):
            print("mine", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"
        # The clock was set forward by an hour since: the file looks older than its own process.
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
        with pytest.raises(Trouble, match=f"pid: {owner.pid}"), pidfile(str(path)):
            pass
        owner.communicate()
    assert not path.exists()


def test_s27_the_child_of_an_owner_does_not_keep_the_pidfile(tmp_path: Path) -> None:
    path = tmp_path / "worker.pid"
    code = """
        import os, sys, time
        from umbel.cli.daemon import pidfile
        with pidfile(sys.argv[1]):
            if not os.fork():
                time.sleep(60)
                os._exit(0)
            os.kill(os.getpid(), 9)
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(path)], start_new_session=True)
    try:
        owner.wait(30)
        with pidfile(str(path)):
            assert path.read_text() == f"{os.getpid()}\n"
    finally:
        os.killpg(owner.pid, signal.SIGKILL)


@root_only
def test_s27_the_pidfile_of_a_stranger_is_read_and_never_written_through(shared: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("1\n")
    path = shared / "worker.pid"
    path.symlink_to(precious)
    strangers(path)
    with pidfile(str(path)):
        assert not path.is_symlink()
    assert precious.read_text() == "1\n"


@root_only
def test_s27_a_pidfile_in_a_race_with_links_writes_nowhere_else(shared: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    pid = os.fork()
    if not pid:
        os.chdir(shared)
        os.setuid(STRANGER)
        while True:
            for step in (lambda: os.symlink("../precious", "worker.pid"), lambda: os.unlink("worker.pid")):
                with contextlib.suppress(OSError):
                    step()
    made = 0
    try:
        for _ in range(2000):
            with contextlib.suppress(Trouble), pidfile(str(shared / "worker.pid")):
                made += 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert precious.read_text() == ""
    assert made


# -- S28: the SQLite file ----------------------------------------------------------------------------------------


def test_s28_only_the_owner_can_read_it_whatever_the_mask(tmp_path: Path) -> None:
    broker = SqliteBroker(f"sqlite:///{tmp_path}/new/jobs.db")
    broker.open()
    broker.publish([outgoing()])
    files = {path.name: mode(path) for path in (tmp_path / "new").iterdir()}
    assert set(files.values()) == {0o600}, files
    assert mode(tmp_path / "new") == 0o700
    broker.close()


def test_s28_a_file_that_everybody_can_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(b"")
    path.chmod(0o666)
    with pytest.raises(ImproperlyConfigured, match="chmod"):
        SqliteBroker(f"sqlite:///{path}").open()
    path.chmod(0o660)
    broker = SqliteBroker(f"sqlite:///{path}")
    broker.open()
    broker.close()


def test_s28_the_connection_trusts_nothing_in_the_file(tmp_path: Path) -> None:
    session = Database(f"sqlite:///{tmp_path}/jobs.db", {}).session()
    with session.read() as connection:
        assert [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in
                ("trusted_schema", "cell_size_check", "mmap_size")] == [0, 1, 0]  # fmt: skip
        with pytest.raises(sqlite3.Error):
            connection.execute("SELECT load_extension('x')")
    session.close()


def test_s28_a_hostile_file_with_triggers_and_views_runs_no_code(tmp_path: Path) -> None:
    path, canary = tmp_path / "jobs.db", tmp_path / "canary"
    broker = SqliteBroker(f"sqlite:///{path}")
    broker.open()
    broker.close()
    hostile = sqlite3.connect(path)
    hostile.create_function("make_canary", 0, canary.mkdir)
    tables = [name for (name,) in hostile.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name "
                                                  "NOT LIKE 'sqlite_%'")]  # fmt: skip
    assert tables
    for name in tables:
        for event in ("INSERT", "UPDATE"):
            hostile.execute(f"CREATE TRIGGER evil_{name}_{event} AFTER {event} ON {name} BEGIN "
                            f"SELECT load_extension('{canary}'); END")  # fmt: skip
    hostile.commit()
    hostile.close()
    again = SqliteBroker(f"sqlite:///{path}")
    with pytest.raises((BrokerError, OperationalError, ImproperlyConfigured)):
        again.open()
        again.publish([outgoing()])
    again.close()
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_s28_a_file_that_is_no_database_or_damaged_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises((ImproperlyConfigured, BrokerError)):
        SqliteBroker(f"sqlite:///{path}").open()
    assert path.read_bytes() == content


def test_s28_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE message (id INTEGER)")
    other.commit()
    other.close()
    path.chmod(0o600)
    with pytest.raises(ImproperlyConfigured, match="another program"):
        SqliteBroker(f"sqlite:///{path}").open()
    assert APPLICATION_ID


# -- S29: privileges ---------------------------------------------------------------------------------------------

DROP = """
    import json, os, sys
    from umbel.cli.daemon import drop_privileges
    os.setgroups([0, 4, 24])
    drop_privileges(*[word or None for word in sys.argv[1:]])
    back = []
    for step in (lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
        try:
            step()
            back.append(True)
        except PermissionError:
            back.append(False)
    print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), back, os.umask(0)]))
"""


@root_only
@pytest.mark.parametrize("uid", ["nobody", str(STRANGER)])
def test_s29_the_rights_of_root_are_given_up_for_good(uid: str) -> None:
    import json

    command = [sys.executable, "-c", textwrap.dedent(DROP), uid, "", "077"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    users, groups, others, back, umask = json.loads(done.stdout)
    assert users == [STRANGER] * 3
    assert 0 not in groups + others
    assert len(set(groups)) == 1
    assert others == [groups[0]]
    assert back == [False] * 4
    assert umask == 0o77


def test_s29_who_is_not_root_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        code = (
            "import grp, os, pwd; from umbel.cli.daemon import drop_privileges\n"
            f"os.setgid({STRANGER}); os.setuid({STRANGER}); drop_privileges('root', None, None)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
        assert "need to be started as root" in done.stderr
    else:
        from umbel.cli.daemon import drop_privileges

        with pytest.raises(Trouble, match="started as root"):
            drop_privileges("root", None, None)


def test_s29_an_unknown_user_is_an_error_in_one_line() -> None:
    from umbel.cli.daemon import drop_privileges

    calls: list[tuple[Any, Any]] = [("no-such-user", None), (None, "no-such-group"), ("4294967294", None)]
    for uid, gid in calls:
        with pytest.raises(Trouble, match="--uid/--gid"):
            drop_privileges(uid, gid, None)
