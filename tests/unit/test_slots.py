"""What a process says about itself reaches its supervisor, through nothing but shared memory."""

from __future__ import annotations

import os

from umbel.worker.slots import SlotTable


def test_nothing_runs_at_first() -> None:
    assert SlotTable(1)[0].current() == (None, 0.0)


def test_started_is_seen_until_idle() -> None:
    slot = SlotTable(1)[0]
    slot.started("c1:7", 12.5)
    assert slot.current() == ("c1:7", 12.5)
    slot.started("c1:8-longer", 13.0)
    assert slot.current() == ("c1:8-longer", 13.0)
    slot.started("x", 14.0)
    assert slot.current() == ("x", 14.0)
    slot.idle()
    assert slot.current() == (None, 0.0)


def test_a_very_long_tag_does_not_reach_the_neighbour() -> None:
    table = SlotTable(2)
    table[1].started("mine", 1.0)
    table[0].started("é" * 500, 1.0)
    assert table[1].current() == ("mine", 1.0)


def test_what_a_child_writes_is_there_after_its_death() -> None:
    table = SlotTable(2)
    pid = os.fork()
    if pid == 0:
        table[1].started("tag", 3.0)
        table[1].count(2)
        table[1].count()
        os._exit(0)
    os.waitpid(pid, 0)
    assert table[0].current() == (None, 0.0)
    assert table[1].current() == ("tag", 3.0)
    assert table[1].processed() == 3
    table[1].clear()
    assert (table[1].current(), table[1].processed()) == ((None, 0.0), 0)


def test_the_supervisor_talks_back() -> None:
    slot = SlotTable(1)[0]
    assert (slot.valid_until, slot.recall) == (0.0, False)
    slot.renewed(77.0)
    slot.ask(True)
    assert (slot.valid_until, slot.recall) == (77.0, True)
