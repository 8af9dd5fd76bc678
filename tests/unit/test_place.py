"""What a supervisor tells a process arrives in whole lines, also when the process does not read for a while."""

from __future__ import annotations

import socket

import pytest

from umbel.worker.place import Place
from umbel.worker.process import Ask, Retire, Stop, encode_line
from umbel.worker.slots import SlotTable


@pytest.fixture
def place() -> Place:
    return Place(0, SlotTable(1, 2)[0])


def read(sock: socket.socket) -> bytes:
    sock.setblocking(False)
    data = b""
    try:
        while more := sock.recv(65536):
            data += more
    except BlockingIOError:
        pass
    return data


def test_nothing_is_lost_on_a_process_that_does_not_read(place: Place) -> None:
    ours, its = socket.socketpair()
    with ours, its:
        place.occupy("c", 1, ours)
        long = Retire("a long word " * 1000)
        lines = 100
        for _ in range(lines):
            place.send(long)
        place.send(Stop())
        heard = read(its)
        assert heard.count(b"\n") < lines
        # One that runs again reads, and hears the rest bit by bit.
        while more := (place.flush(), read(its))[1]:
            heard += more
        assert heard == encode_line(long) * lines + encode_line(Stop())
        place.send(Ask(1))
        assert read(its) == encode_line(Ask(1))


def test_nothing_is_left_for_the_next_process(place: Place) -> None:
    ours, its = socket.socketpair()
    with its:
        place.occupy("c", 1, ours)
        for _ in range(100):
            place.send(Retire("a long word " * 1000))
        place.vacate()
    ours, its = socket.socketpair()
    with ours, its:
        place.occupy("d", 2, ours)
        place.send(Ask(2))
        assert read(its) == encode_line(Ask(2))


def test_a_process_that_has_ended_is_told_nothing(place: Place) -> None:
    ours, its = socket.socketpair()
    its.close()
    with ours:
        place.occupy("c", 1, ours)
        for _ in range(3):
            place.send(Stop())
            place.flush()
