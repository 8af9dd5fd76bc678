"""A workflow as text: lines for a terminal, Graphviz' language, and Mermaid's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from umbel.cli.graph import Drawing
from umbel.cli.output import clean, seconds
from umbel.history.shape import Node, Shape

_MARKS: Final = {
    "SUCCESS": "x", "FAILURE": "!", "RETRY": "~", "STARTED": ">", "REVOKED": "-", "REJECTED": "-", "NOT SENT": ".",
}  # fmt: skip
_ROOT: Final = -1


def ascii_lines(shape: Shape) -> Iterator[str]:
    """Yield a line for each node, what comes later below; what runs side by side stands behind ``+-``.

    ``=>`` is what waits for more than one of those above it, and ``*`` marks the critical path.
    """
    children, joins = _tree(shape)
    todo = [(node, *_start(children[_ROOT], node, "")) for node in reversed(children[_ROOT])]
    while todo:
        node, lead, indent = todo.pop()
        arrow = "=> " if node in joins and lead.endswith("+- ") else ""
        yield f"{lead[:-3] + arrow if arrow else lead}{_line(shape.nodes[node])}"
        below = children.get(node, [])
        todo += [(each, *_start(below, each, indent)) for each in reversed(below)]


def _start(siblings: Sequence[int], node: int, indent: str) -> tuple[str, str]:
    """Return what stands before the line of a node, and before the lines of what is below it."""
    if len(siblings) == 1:
        return indent, indent
    return f"{indent}+- ", f"{indent}{'   ' if node == siblings[-1] else '|  '}"


def _tree(shape: Shape) -> tuple[dict[int, list[int]], set[int]]:
    """Return for each node those that come after it alone or after all its branches, and which wait for several."""
    over: dict[int, int] = {}
    depth = {_ROOT: 0}
    parents: dict[int, list[int]] = {}
    for start, end in shape.edges:
        parents.setdefault(end, []).append(start)
    children: dict[int, list[int]] = {_ROOT: []}
    for node in range(len(shape.nodes)):
        above = parents.get(node, [])
        meeting = above[0] if above else _ROOT
        for other in above[1:]:
            while meeting != other:
                if depth[meeting] >= depth[other]:
                    meeting = over[meeting]
                else:
                    other = over[other]
        over[node], depth[node] = meeting, depth[meeting] + 1
        children.setdefault(meeting, []).append(node)
    return children, {node for node, above in parents.items() if len(above) > 1}


def _line(node: Node) -> str:
    parts = [f"[{_MARKS.get(node.state, ' ')}] {clean(node.name or node.id)}", clean(node.waits or node.label)]
    if node.retries:
        parts.append(f"retry {node.retries}")
    if (length := ran(node)) is not None:
        parts.append(seconds(length))
    return "  ".join(parts) + (" *" if node.critical else "")


def ran(node: Node) -> float | None:
    """Return for how many seconds a node's tasks ran, from the first start to the last end or to now."""
    if node.started is None:
        return None
    end = time.time() if node.running else node.ended
    return None if end is None else max(0.0, end - node.started)


def dot_lines(shape: Shape) -> Iterator[str]:
    """Yield the lines of a graph for Graphviz."""
    drawing = Drawing()
    for at, node in enumerate(shape.nodes):
        style = {"style": "dashed"} if node.kind == "ahead" else {}
        width = {"penwidth": "2"} if node.critical else {}
        drawing.node(f"n{at}", {}, label=_label(node), **style, **width)
    for start, end in shape.edges:
        critical = shape.nodes[start].critical and shape.nodes[end].critical
        drawing.arrow(f"n{start}", f"n{end}", **({"penwidth": "2"} if critical else {}))
    yield from drawing.lines()


def mermaid_lines(shape: Shape) -> Iterator[str]:
    """Yield the lines of a flowchart for Mermaid."""
    yield "flowchart TD"
    for at, node in enumerate(shape.nodes):
        yield f'    n{at}["{_entities(_label(node))}"]'
    for start, end in shape.edges:
        arrow = "-.->" if shape.nodes[end].kind == "ahead" else "-->"
        yield f"    n{start} {arrow} n{end}"
    if critical := [f"n{at}" for at, node in enumerate(shape.nodes) if node.critical]:
        yield "    classDef critical stroke-width:3px"
        yield f"    class {','.join(critical)} critical"


def _label(node: Node) -> str:
    return clean(f"{node.name or node.id} ({node.waits or node.label})")


def _entities(text: str) -> str:
    """Return a text with all that could mean something to Mermaid, or to the page that it is on, as numbers."""
    return "".join(char if char.isalnum() or char in " ._-/,():×" else f"#{ord(char)};" for char in text)
