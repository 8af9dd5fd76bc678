"""Imports point down, there is no cycle, and a driver knows no other driver."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src" / "umbel"

LAYERS: list[set[str]] = [
    {"exceptions", "states", "clock", "retry", "message", "serialization", "compression", "remote",
     "bell", "saferepr", "jsoncodec", "envelope", "writing", "template", "signing", "aliased", "nesting", "spotting"},
    {"interfaces"},
    {"brokers", "backends"},
    {"settings", "setting_rows", "setting_values", "setting_names", "setting_sources", "drivers", "routing",
     "signals", "current", "context", "registry", "loading", "app", "configuring", "connecting", "connection_options",
     "splitting", "declaring", "defining", "bound", "handlers", "composing", "eager", "retrying", "task", "signatures",
     "canvas", "canvas_base", "canvas_chain", "canvas_chord", "canvas_group", "canvas_map", "lazylist", "stamping",
     "outbox", "collecting", "builtin_tasks", "components", "publishing", "result", "asyncresult", "resultbase",
     "groupresult", "listening", "meta", "waiting", "tracing", "progress", "watching",
     "schedules", "periodic", "security", "events", "control", "revoking", "pausing", "queues", "mailbox",
     "inspecting", "asyncio", "utils", "dead", "editing", "sensitive", "metrics", "background", "history"},
    {"worker", "beat", "why"},
    {"cli", "dashboard", "top", "testing", "contrib", "celery", "__main__"},
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found |= {prefix} | {f"{prefix}.{alias.name}" for alias in node.names}
    return {other for other in found if other.startswith("umbel.")}


def graph() -> dict[str, set[str]]:
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        edges[name] = set()
        for target in imports(name, path):
            while target not in known:
                target = target.rpartition(".")[0]
            if target not in (name, "umbel"):
                edges[name].add(target)
    return edges


def test_every_module_is_on_a_layer() -> None:
    assert [name for name in modules() if name != "umbel" and name.split(".")[1] not in LEVEL] == []


def test_imports_point_down() -> None:
    up = []
    for name, targets in graph().items():
        if name == "umbel":
            continue
        level = LEVEL[name.split(".")[1]]
        up += [f"{name} -> {other}" for other in targets if LEVEL[other.split(".")[1]] > level]
    assert up == []


def test_workers_know_no_concrete_driver() -> None:
    wrong = [
        f"{name} -> {other}"
        for name, targets in graph().items()
        if name != "umbel" and LEVEL[name.split(".")[1]] in (3, 4)
        for other in targets
        if other.startswith(("umbel.brokers", "umbel.backends"))
    ]
    assert wrong == []


def test_a_driver_imports_no_other_driver() -> None:
    wrong = []
    for name, targets in graph().items():
        parts = name.split(".")
        if len(parts) < 3 or parts[1] not in ("brokers", "backends"):
            continue
        for other in targets:
            its = other.split(".")
            # A result backend may share the connection code of the broker on the same kind of server.
            if len(its) >= 3 and its[1] in ("brokers", "backends") and its[2] != parts[2]:
                if its[2].partition("_")[0] != parts[2].partition("_")[0]:
                    wrong.append(f"{name} -> {other}")
    assert wrong == []


def test_no_import_cycles() -> None:
    edges = {name: set(targets) for name, targets in graph().items()}
    # A package is not in a cycle with its own modules only because they are inside it.
    while leaves := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for leaf in leaves:
            del edges[leaf]
    assert _cyclic(edges) == []


def _cyclic(edges: dict[str, set[str]]) -> list[str]:
    def reaches(start: str) -> bool:
        seen: set[str] = set()
        stack = list(edges[start])
        while stack:
            node = stack.pop()
            if node == start:
                return True
            if node not in seen:
                seen.add(node)
                stack.extend(edges.get(node, ()))
        return False

    return sorted(name for name in edges if reaches(name))
