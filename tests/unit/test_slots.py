"""What a process says about itself reaches its supervisor, through nothing but shared memory, and back."""

from __future__ import annotations

import os

import pytest

from umbel.worker.slots import ASKED, RECALLED, RING, Slot, SlotTable, boot_time


def tags(slot: Slot) -> list[str]:
    return [each.tag for each in slot.running()]


def unsettled(slot: Slot) -> list[str]:
    return [each.tag for each in slot.executions()]


def test_nothing_runs_at_first() -> None:
    slot = SlotTable(1)[0]
    assert (slot.executions(), slot.batch(), slot.processed()) == ([], [], 0)


def test_what_runs_is_described() -> None:
    slot = SlotTable(1)[0]
    assert slot.started("7", 12.5, task_id="id-1", task="shop.charge", hard=3.0, hard_at=15.5, behind=4)
    (seen,) = slot.running()
    assert (seen.tag, seen.task_id, seen.task) == ("7", "id-1", "shop.charge")
    assert (seen.since, seen.hard, seen.hard_at, seen.behind) == (12.5, 3.0, 15.5, 4)
    assert slot.still(seen)
    slot.behind(0)
    assert slot.running()[0].behind == 0
    slot.ended()
    assert not slot.still(seen) and tags(slot) == []


def test_what_ended_counts_as_started_until_it_is_settled() -> None:
    slot = SlotTable(1)[0]
    for tag in "ab":
        slot.started(tag, 1.0)
        slot.ended()
    slot.started("c", 1.0)
    assert (tags(slot), unsettled(slot)) == (["c"], ["a", "b", "c"])
    slot.settled()  # while c runs: its own outcome is still to come
    assert unsettled(slot) == ["c"]
    slot.ended()
    assert unsettled(slot) == ["c"]
    slot.settled()
    assert unsettled(slot) == []


def test_the_entries_are_used_again() -> None:
    slot = SlotTable(1)[0]
    for number in range(3 * RING + 5):
        slot.started(str(number), 1.0)
        slot.ended()
        if number % 50 == 0:
            slot.settled()
    slot.started("last", 1.0)
    assert unsettled(slot)[-2:] == [str(3 * RING + 4), "last"]
    slot.settled()
    assert unsettled(slot) == ["last"]


def test_where_many_run_at_once_each_has_its_entry() -> None:
    slot = SlotTable(1, 8)[0]
    for index, tag in enumerate("abc"):
        assert slot.started(tag, float(index + 1), index=index)
    slot.ended(1)
    assert (tags(slot), unsettled(slot)) == (["a", "c"], ["a", "b", "c"])
    slot.free([1])
    assert unsettled(slot) == ["a", "c"]
    slot.started("d", 5.0, index=1)
    assert tags(slot) == ["a", "c", "d"]


def test_an_execution_that_ended_is_not_mistaken_for_the_next() -> None:
    slot = SlotTable(1, 1)[0]
    slot.started("a", 1.0)
    (first,) = slot.running()
    slot.ended()
    slot.started("a", 1.0)
    assert not slot.still(first) and slot.still(slot.running()[0])


def test_long_texts_do_not_reach_the_neighbour() -> None:
    table = SlotTable(2, 2)
    table[1].started("mine", 1.0)
    table[0].started("t", 1.0, task_id="i" * 36, task="é" * 500)
    table[0].started("é" * 500, 1.0)
    table[0].reserved([str(number) for number in range(10_000)])
    assert tags(table[1]) == ["mine"]
    assert table[0].running()[0].task_id == "i" * 36
    assert table[0].batch()[:3] == ["0", "1", "2"] and len(table[0].batch()) > 1000
    assert table[0].batch()[-1] == str(len(table[0].batch()) - 1)


@pytest.mark.parametrize("task_id", ["i" * 36, "i" * 255, "é" * 255, "€" * 255, ""])
def test_the_task_is_named_whatever_its_id_is(task_id: str) -> None:
    """The name says whether a task may run again whose process died; the tag says which one it was."""
    name = "shop.orders.tasks.send_the_invoice_to_everybody"
    slot = SlotTable(1, 2)[0]
    slot.started("c1-0123456789abcdef:4711", 1.0, task_id=task_id, task=name)
    (seen,) = slot.running()
    assert (seen.tag, seen.task) == ("c1-0123456789abcdef:4711", name)
    assert seen.task_id == task_id if task_id.isascii() else task_id.startswith(seen.task_id[:100])


@pytest.mark.parametrize("close", ["gate", "asked", "recalled", "expired"])
def test_nothing_starts_behind_a_gate_a_recall_or_a_lease_that_is_over(close: str) -> None:
    slot = SlotTable(1)[0]
    if close == "gate":
        slot.shut(True)
    elif close == "expired":
        slot.renewed(boot_time() - 0.001)
    else:
        slot.recall(ASKED if close == "asked" else RECALLED)
    assert not slot.started("a", 1.0)
    assert unsettled(slot) == []
    assert (slot.gated, slot.expired) == (close in ("gate", "asked"), close == "expired")
    slot.shut(False)
    slot.dropped()
    slot.renewed(boot_time() + 60)
    assert slot.started("a", 1.0)


def test_what_a_child_writes_is_there_after_its_death() -> None:
    table = SlotTable(2)
    pid = os.fork()
    if pid == 0:
        table[1].started("tag", 3.0)
        table[1].count(2)
        table[1].count()
        os._exit(0)
    os.waitpid(pid, 0)
    assert tags(table[0]) == []
    assert tags(table[1]) == ["tag"]
    assert table[1].processed() == 3
    table[1].clear()
    assert (table[1].executions(), table[1].processed()) == ([], 0)
