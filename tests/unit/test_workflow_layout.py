"""What is drawn of a workflow, and where: each task once, nothing over anything else, lines that lead down."""

from __future__ import annotations

import json
import random
import re
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.cli.workflow_text import ascii_lines, dot_lines, mermaid_lines
from umbel.dashboard.graph import COLUMNS, GAP, HEIGHT, WIDTH, bars, lay_out, line
from umbel.history.shape import MOST_ALIKE, Shape, progress, shape_of
from umbel.history.workflows import Member, failed_leaves, unfinished

Edges = list[tuple[int, int]]
BODY = json.dumps([{"id": "body", "name": "report"}])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, Edges]:
    count = draw(st.integers(1, 60))
    ends = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    return count, sorted({(min(pair), max(pair)) for pair in draw(st.lists(ends, max_size=120)) if len(set(pair)) > 1})


@given(graphs())
def test_nothing_overlaps_and_lines_lead_down(graph: tuple[int, Edges]) -> None:
    count, edges = graph
    layout = lay_out(count, edges)
    assert layout == lay_out(count, edges), "always alike"
    for start, end in edges:
        assert layout.spots[end].y >= layout.spots[start].y + HEIGHT, "each is below all that lead to it"
        numbers = [float(each) for each in re.findall(r"[-\d.]+", line(layout.spots[start], layout.spots[end]))]
        assert min(numbers) >= 0 and max(numbers) <= max(layout.width, layout.height)
    spots = sorted(layout.spots, key=lambda spot: (spot.y, spot.x))
    for before, behind in pairwise(spots):
        assert behind.y >= before.y + HEIGHT or behind.x >= before.x + WIDTH
    assert all(0 <= spot.x <= layout.width - WIDTH and spot.y + HEIGHT <= layout.height for spot in spots)
    assert layout.width <= COLUMNS * (WIDTH + GAP) + GAP, "as wide as a page at most"


def test_edges_that_lead_up_are_refused() -> None:
    for edge in ((1, 0), (0, 0), (0, 2), (-1, 1)):
        with pytest.raises(ValueError, match="from a lower number to a higher"):
            lay_out(2, [edge])
    assert lay_out(0, []).spots == []


def member(number: int, state: str = "SUCCESS", name: str = "pay", **fields: Any) -> Member:
    return Member(number=number, id=f"t{number}", name=name, state=state, **fields)


def family(chance: random.Random) -> list[Member]:
    """Anything that events may say, circles too."""
    count = chance.randint(1, 120)

    def some(choices: list[Any]) -> Any:
        return chance.choice([None, *choices])

    ids = [f"t{number}" for number in range(count + 3)]
    return [
        member(
            number,
            chance.choice(["SUCCESS", "FAILURE", "STARTED", "RECEIVED", "REVOKED", "WHATEVER"]),
            chance.choice("ab"),
            parent=some(ids),
            group_id=some(["g1", "g2"]),
            ahead=some([json.dumps([{"id": chance.choice(ids), "name": "x"} for _ in range(chance.randint(0, 3))])]),
            started=some([chance.uniform(0, 100)]),
            ended=some([chance.uniform(0, 100)]),
        )
        for number in range(count)
    ]


@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(3, 60))
@settings(max_examples=200, deadline=None)
def test_each_task_is_drawn_once(seed: int, alike: int, most: int) -> None:
    members = family(random.Random(seed))
    shape = shape_of(members, most_alike=alike, most_nodes=most)
    assert shape == shape_of(members, most_alike=alike, most_nodes=most)
    assert sum(node.count for node in shape.nodes) == len(members)
    assert len(shape.nodes) <= most
    assert all(start < end for start, end in shape.edges), "what leads to a node is before it"
    lay_out(len(shape.nodes), shape.edges)
    assert any(node.critical for node in shape.nodes)
    for draw in (ascii_lines, dot_lines, mermaid_lines):
        assert len(list(draw(shape))) >= len(shape.nodes)


def group(size: int, **fields: Any) -> list[Member]:
    return [member(number, group_id="g", **fields) for number in range(size)]


def test_a_large_group_is_one_node() -> None:
    assert len(shape_of(group(MOST_ALIKE)).nodes) == MOST_ALIKE
    (node,) = shape_of(group(MOST_ALIKE + 1)).nodes
    assert (node.kind, node.id, node.name, node.label) == ("many", "g", "pay ×31", "31/31")


def test_a_chord_says_whom_it_waits_for() -> None:
    members = [*group(7, ahead=BODY), *(member(7 + n, "STARTED", group_id="g", ahead=BODY) for n in range(3))]
    body = shape_of(members).nodes[-1]
    assert (body.kind, body.name, body.waits) == ("ahead", "report", "7/10, waiting for 3 pay")
    assert shape_of(members, most_alike=5).nodes[-1].waits == "7/10, waiting for 3 pay"
    assert "body" in unfinished(members)
    members[8].state = "FAILURE"
    body = shape_of(members).nodes[-1]
    assert body.doomed and body.label == "will not run" and not body.waits
    assert unfinished(members) == ["t7", "t9"]


def test_the_chains_of_a_large_group_are_one_chain() -> None:
    first = [member(number, group_id="g") for number in range(50)]
    second = [member(50 + number, name="mail", parent=f"t{number}") for number in range(50)]
    shape = shape_of(first + second)
    assert [node.name for node in shape.nodes] == ["pay ×50", "mail ×50"] and shape.edges == [(0, 1)]


def test_a_group_that_was_sent_is_no_step_any_more() -> None:
    ahead = [{"id": "g", "name": "group of 2"}, {"id": "body", "name": "report"}]
    first = member(0, "STARTED", ahead=json.dumps(ahead))
    assert [node.name for node in shape_of([first]).nodes] == ["pay", "group of 2", "report"]
    members = [member(n, "STARTED", parent="t0", group_id="g", ahead=BODY) for n in (1, 2)]
    shape = shape_of([first, *members])
    assert [node.kind for node in shape.nodes] == ["task", "task", "task", "ahead"]
    assert sorted(shape.edges) == [(0, 1), (0, 2), (1, 3), (2, 3)]


def test_the_critical_path_is_what_ended_last() -> None:
    members = [
        member(0, ended=10.0, ahead=json.dumps([{"id": "t3", "name": "sum"}])),
        member(1, ended=30.0, ahead=json.dumps([{"id": "t3", "name": "sum"}])),
        member(2, ended=20.0),
        member(3, name="sum", ended=40.0, parent="t0"),
    ]
    assert [node.critical for node in shape_of(members).nodes] == [False, True, False, True]
    members[2].state = "STARTED"
    assert [node.critical for node in shape_of(members).nodes] == [False, False, True, False], "it ends later than all"


def test_very_many_tasks_take_little_time() -> None:
    chain = [member(number, parent=f"t{number - 1}") for number in range(10_000)]
    began = time.process_time()
    assert [node.count for node in shape_of(chain).nodes] == [1, 1, 9996, 1, 1]
    star = [member(0), *(member(number, name=f"n{number}", parent="t0") for number in range(1, 10_000))]
    shape = shape_of(star)
    assert len(shape.nodes) == 400 and shape.nodes[-1].count == 9_601
    assert len(shape_of(group(10_000, ahead=BODY)).nodes) == 2
    lay_out(10_000, [(number, number + 1) for number in range(9_999)])
    lay_out(10_000, [(0, number) for number in range(1, 10_000)])
    list(ascii_lines(Shape(shape.nodes, shape.edges)))
    assert time.process_time() - began < 5.0, "a second where nobody else is busy"


def test_which_tasks_an_action_means() -> None:
    members = [
        member(0, "FAILURE"),
        member(1, "FAILURE", parent="t0"),
        member(2, "FAILURE", name="mail"),
        member(3, "SUCCESS", name="told of it", parent="t2"),
        member(4, "FAILURE", replay="t5"),
        member(5, "SUCCESS", parent="t4"),
        member(6, "FAILURE"),
        member(7, "SUCCESS", parent="t6"),
    ]
    expected = ["t1", "t2", "t6"]
    assert failed_leaves(members) == expected, "t0 failed because of t1, t4 was sent once more as t5, t7 is t6's child"
    assert unfinished(members) == []


def test_bars() -> None:
    found = bars([(0.0, 5.0, 10.0), (10.0, None, None), (None, None, None), (8.0, 2.0, 1.0)], 20.0)
    assert [each and (each.start, each.run, each.end) for each in found] == [
        (0.0, 0.25, 0.5), (0.5, 1.0, 1.0), None, (0.4, 0.4, 0.4),
    ]  # fmt: skip
    assert bars([(None, None, None)], 1.0) == [None] and bars([], 1.0) == []
    (point,) = bars([(5.0, 5.0, 5.0)], 99.0)
    assert point is not None and (point.start, point.end) == (0.0, 0.0)


def test_texts() -> None:
    hostile = member(0, name='"]; click n0 "javascript:x" <b>\x1b[2J\nn1')
    shape = shape_of([hostile])
    for text in ("\n".join(draw(shape)) for draw in (ascii_lines, dot_lines, mermaid_lines)):
        assert "\x1b" not in text
    (*_, mermaid, _, _) = mermaid_lines(shape)
    assert re.fullmatch(r'    n0\["[^"<>;\[\]]*(?:#\d+;[^"<>;\[\]]*)*"\]', mermaid), mermaid
    assert progress({"SUCCESS": 1200, "FAILURE": 1}) == "1,200/1,201, 1 failed"
    tree = [
        member(0, ended=1.0, started=0.5),
        member(1, parent="t0", name="left", ahead=BODY),
        member(2, "FAILURE", parent="t0", name="right", ahead=BODY, retries=2),
    ]
    assert list(ascii_lines(shape_of(tree))) == [
        "[x] pay  SUCCESS  500 ms *",
        "+- [x] left  SUCCESS",
        "+- [!] right  FAILURE  retry 2",
        "=> [.] report  will not run",
    ]
