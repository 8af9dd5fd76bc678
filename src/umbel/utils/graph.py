"""A small directed graph: what called what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TextIO, TypeVar

from umbel.utils.text import one_line

N = TypeVar("N", bound=Hashable)


class DependencyGraph(Generic[N]):
    """Nodes, and for each the nodes that it leads to. Iterating yields the nodes in the order they were added."""

    def __init__(self, edges: Iterable[tuple[N, Iterable[N]]] = ()) -> None:
        self.adjacent: dict[N, list[N]] = {}
        for node, targets in edges:
            self.add_arc(node)
            for target in targets:
                self.add_edge(node, target)

    def add_arc(self, node: N) -> None:
        """Add a node without edges; one that is there stays as it is."""
        self.adjacent.setdefault(node, [])

    def add_edge(self, node: N, target: N) -> None:
        """Add an edge, and its ends where they are missing."""
        self.add_arc(target)
        self.adjacent.setdefault(node, []).append(target)

    def valency_of(self, node: N) -> int:
        """Return how many nodes can be reached from this one, itself included; 0 for an unknown node."""
        return len(self._reachable(node)) if node in self.adjacent else 0

    def topsort(self) -> list[N]:
        """Return the nodes so that each comes after all that it leads to. Raises :exc:`ValueError` for a cycle."""
        order: dict[N, None] = {}
        for start in self.adjacent:
            open_nodes: dict[N, Iterator[N]] = {} if start in order else {start: iter(self.adjacent[start])}
            while open_nodes:
                node = next(reversed(open_nodes))
                target = next((each for each in open_nodes[node] if each not in order), None)
                if target is None:
                    order[node] = None
                    del open_nodes[node]
                elif target in open_nodes:
                    raise ValueError(f"cycle through {target!r}")
                else:
                    open_nodes[target] = iter(self.adjacent[target])
        return list(order)

    def _reachable(self, start: N) -> set[N]:
        seen, todo = {start}, [start]
        while todo:
            for target in self.adjacent[todo.pop()]:
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    def edges(self) -> list[N]:
        """Return the nodes that lead somewhere."""
        return [node for node, targets in self.adjacent.items() if targets]

    def items(self) -> Iterable[tuple[N, list[N]]]:
        """Return pairs of a node and the nodes it leads to."""
        return self.adjacent.items()

    def to_dot(self, stream: TextIO) -> None:
        """Write the graph in Graphviz' language."""
        stream.write("digraph dependencies {\n")
        targets = Counter(target for each in self.adjacent.values() for target in each)
        for node, leads_to in self.adjacent.items():
            if not leads_to and not targets[node]:
                stream.write(f"    {_quoted(node)};\n")
            for target in leads_to:
                stream.write(f"    {_quoted(node)} -> {_quoted(target)};\n")
        stream.write("}\n")

    def __iter__(self) -> Iterator[N]:
        return iter(self.adjacent)

    def __getitem__(self, node: N) -> list[N]:
        return self.adjacent[node]

    def __len__(self) -> int:
        return len(self.adjacent)

    def __contains__(self, node: object) -> bool:
        return node in self.adjacent

    def __repr__(self) -> str:
        return "\n".join(f"{node}({len(targets)})" for node, targets in self.adjacent.items())


def _quoted(node: object) -> str:
    text = one_line(node).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
