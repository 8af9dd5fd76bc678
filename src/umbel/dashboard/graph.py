"""Where the nodes of a graph are drawn, and the bars of a waterfall. Pure: numbers in, numbers out.

Nodes are put into layers, each below all that lead to it. A layer of many has several rows, so that no drawing is
wider than a page; lines to and from its rows run in the lanes between its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

#: The size of a node and the room between nodes, in pixels, and the most nodes in a row.
WIDTH: Final = 220
HEIGHT: Final = 46
GAP: Final = 24
ROW_GAP: Final = 18
LAYER_GAP: Final = 44
COLUMNS: Final = 4
_MARGIN: Final = 16  # room for the lane on the left of the first column


class Spot(msgspec.Struct, frozen=True):
    """Where a node is: its upper left corner. ``first`` and ``last`` say if its row is that of its layer."""

    x: float
    y: float
    first: bool
    last: bool


class Layout(msgspec.Struct, frozen=True):
    """The places of the nodes, in their order, and the size of the drawing."""

    spots: Sequence[Spot]
    width: float
    height: float


class Bar(msgspec.Struct, frozen=True):
    """A bar of a waterfall, in parts of a whole from 0 to 1: it waits from ``start``, runs from ``run`` to ``end``."""

    start: float
    run: float
    end: float


def lay_out(count: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """Return where to draw so many nodes. Edges must lead from a lower number to a higher one.

    No two nodes overlap, each is below all that lead to it, and the same graph is always drawn alike.
    """
    parents: list[list[int]] = [[] for _ in range(count)]
    for start, end in edges:
        if not 0 <= start < end < count:
            raise ValueError(f"edge {start} -> {end}: edges lead from a lower number to a higher one below {count}")
        parents[end].append(start)
    depth = [0] * count
    layers: list[list[int]] = []
    for node in range(count):
        depth[node] = max((depth[parent] + 1 for parent in parents[node]), default=0)
        if depth[node] == len(layers):
            layers.append([])
        layers[depth[node]].append(node)
    _untangle(layers, parents)
    columns = min(COLUMNS, max(map(len, layers), default=1))
    width = columns * (WIDTH + GAP) - GAP + 2 * _MARGIN
    spots = [Spot(0.0, 0.0, first=True, last=True)] * count
    y = float(_MARGIN)
    for layer in layers:
        broad = min(COLUMNS, len(layer))
        left = (width - broad * (WIDTH + GAP) + GAP) / 2
        rows = -(-len(layer) // broad)
        for at, node in enumerate(layer):
            row, column = divmod(at, broad)
            spots[node] = Spot(
                left + column * (WIDTH + GAP), y + row * (HEIGHT + ROW_GAP), first=row == 0, last=row == rows - 1
            )
        y += rows * (HEIGHT + ROW_GAP) - ROW_GAP + LAYER_GAP
    return Layout(spots, float(width), y - LAYER_GAP + _MARGIN if layers else 2.0 * _MARGIN)


def _untangle(layers: Sequence[list[int]], parents: Sequence[Sequence[int]]) -> None:
    """Order each layer by the middle of those that lead to its nodes, so that few lines cross."""
    middle: dict[int, float] = {}
    for layer in layers:
        ideal = {
            node: sum(middle[parent] for parent in parents[node]) / len(parents[node]) if parents[node] else 0.5
            for node in layer
        }
        layer.sort(key=lambda node: (ideal[node], node))
        for at, node in enumerate(layer):
            middle[node] = (at + 0.5) / len(layer)


def line(start: Spot, end: Spot) -> str:
    """Return the path of an edge, in SVG's language: out of a node below, and into the other one from above."""
    x, y = start.x + WIDTH / 2, start.y + HEIGHT
    goal, into = end.x + WIDTH / 2, end.y
    parts = [f"M{x:g} {y:g}"]
    if not start.last:
        # Down its lane, past the rows below it: the lane is on the left of its column.
        lane = start.x - GAP / 2
        y = _bend(parts, x, y, lane, y + ROW_GAP)
        x = lane
    if not end.first:
        lane = end.x - GAP / 2
        middle = max(y, into - ROW_GAP - HEIGHT - ROW_GAP)
        if start.last:
            middle = max(y, min(middle, y + LAYER_GAP))
        y = _bend(parts, x, y, lane, middle)
        x = lane
        parts.append(f"V{into - ROW_GAP:g}")
        y = into - ROW_GAP
    elif into - y > LAYER_GAP:
        parts.append(f"V{into - LAYER_GAP:g}")
        y = into - LAYER_GAP
    _bend(parts, x, y, goal, into)
    return " ".join(parts)


def _bend(parts: list[str], x: float, y: float, to: float, below: float) -> float:
    half = (y + below) / 2
    parts.append(f"C{x:g} {half:g} {to:g} {half:g} {to:g} {below:g}")
    return below


def bars(times: Sequence[tuple[float | None, float | None, float | None]], until: float) -> list[Bar | None]:
    """Return the bars of a waterfall; None for what has no time.

    :param times: for each when it was sent, started and ended.
    :param until: where what has not ended is cut: seconds since the epoch, as all times.
    """
    known = [each for triple in times for each in triple if each is not None]
    if not known:
        return [None] * len(times)
    least, most = min(known), max(*known, until if any(triple[2] is None for triple in times) else known[0])
    whole = (most - least) or 1.0

    def part(moment: float) -> float:
        return min(1.0, max(0.0, (moment - least) / whole))

    found: list[Bar | None] = []
    for sent, started, ended in times:
        begun = next((each for each in (sent, started, ended) if each is not None), None)
        if begun is None:
            found.append(None)
            continue
        end = max(part(begun), part(ended if ended is not None else until))
        run = part(started) if started is not None else end if ended is None else part(begun)
        found.append(Bar(part(begun), min(max(part(begun), run), end), end))
    return found
