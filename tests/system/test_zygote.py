"""The zygote forks on request, tells how each child ended, and takes all of them with it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from support import eventually
from umbel.worker.zygote import Event, Exited, Forked, Zygote, ZygoteLost


def obey(payload: bytes, sock: socket.socket) -> int:
    """The child of these tests: say something, wait for a word, end as told."""
    sock.sendall(payload + b":" + str(os.getpid()).encode())
    word = sock.recv(100)
    if word == b"raise":
        raise RuntimeError("as asked")
    return int(word or b"99")


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    made = Zygote.start(obey)
    yield made
    made.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def next_event(zygote: Zygote) -> Event:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        select.select([zygote], [], [], 1.0)
        if events := zygote.events():
            assert len(events) == 1
            return events[0]
    raise AssertionError("nothing happened")


def test_a_child_says_hello_and_its_exit_is_told(zygote: Zygote) -> None:
    sock = zygote.fork(7, b"hello")
    forked = next_event(zygote)
    assert isinstance(forked, Forked) and forked.key == 7
    assert sock.recv(100) == f"hello:{forked.pid}".encode()
    sock.sendall(b"3")
    assert next_event(zygote) == Exited(forked.pid, 3)
    assert sock.recv(100) == b""
    sock.close()


def test_a_signal_and_an_error_are_told_apart(zygote: Zygote) -> None:
    codes = []
    for _ in range(2):
        with zygote.fork(0, b"") as sock:
            forked = next_event(zygote)
            assert isinstance(forked, Forked)
            if codes:
                sock.sendall(b"raise")
            else:
                zygote.kill(forked.pid, signal.SIGKILL)
            exited = next_event(zygote)
            assert isinstance(exited, Exited)
            codes.append(exited.code)
    assert codes == [-signal.SIGKILL, 70]


def test_a_pid_that_is_no_child_is_never_signalled(zygote: Zygote) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    zygote.kill(bystander.pid, signal.SIGKILL)
    with zygote.fork(0, b"") as sock:
        next_event(zygote)
        sock.sendall(b"0")
        next_event(zygote)
    assert bystander.poll() is None
    bystander.communicate(b"\n", timeout=10)
    assert bystander.returncode == 0


def test_children_end_with_the_zygote(zygote: Zygote) -> None:
    socks = [zygote.fork(key, b"") for key in range(3)]
    for sock in socks:
        assert sock.recv(100)
    os.kill(zygote.pid, signal.SIGKILL)
    for sock in socks:
        sock.settimeout(10)
        assert sock.recv(100) == b""
        sock.close()
    gone: list[ZygoteLost] = []

    def lost() -> bool:
        try:
            zygote.events()
        except ZygoteLost as error:
            gone.append(error)
        return bool(gone)

    eventually(lost)
    with pytest.raises(ZygoteLost):
        zygote.fork(0, b"")


def test_stop_signals_to_the_whole_group_do_not_end_it(zygote: Zygote) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        os.kill(zygote.pid, number)
    with zygote.fork(0, b"") as sock:
        forked = next_event(zygote)
        assert isinstance(forked, Forked)
        assert sock.recv(100)
        os.kill(forked.pid, signal.SIGINT)
        sock.sendall(b"5")
        assert next_event(zygote) == Exited(forked.pid, 5)


# Without the kernel's help, as on other platforms: the zygote has to see for itself that it is alone.
KILLED = """
import os, signal, sys
from umbel.worker import zygote

zygote.c_library = lambda: None

def child(payload, sock):
    sock.recv(1)
    return 0

made = zygote.Zygote.start(child)
socks = [made.fork(key, b"") for key in range(2)]
pids = []
while len(pids) < 2:
    pids += [event.pid for event in made.events()]
print(made.pid, *pids, flush=True)
if sys.argv[1] == "unread":
    made.kill(pids[0], signal.SIGKILL)
    import select
    select.select([made], [], [])
else:
    made._sock.sendall(b"\\0\\0")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("left", ["unread", "half a request"])
def test_a_killed_supervisor_takes_all_with_it_and_nothing_is_said(left: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, left], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    for pid in map(int, done.stdout.split()):
        eventually(lambda pid=pid: not alive(pid))  # type: ignore[misc]
