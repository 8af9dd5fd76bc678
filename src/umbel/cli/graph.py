"""The ``graph`` command: the parts of a worker, and the workers of a cluster, in Graphviz' language.

``umbel -A proj graph workers | dot -Tsvg > workers.svg`` makes a picture of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import click

from umbel.cli.errors import EX_UNAVAILABLE, Trouble
from umbel.cli.options import Target, command, global_options
from umbel.utils.text import did_you_mean, one_line

Attributes = Mapping[str, str]

#: Part -> where it is, and the parts that it needs. The supervisor's, and those of each process that runs tasks.
WORKER: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    "Supervisor": (
        "umbel.worker.supervisor:Supervisor",
        ("LeaseKeeper", "Remote", "ProcessesDesk", "Enforcer", "Zygote"),
    ),
    "Remote": ("umbel.worker.remote:Remote", ("ProcessesDesk",)),
    "ProcessesDesk": ("umbel.worker.desk:ProcessesDesk", ()),
    "Enforcer": ("umbel.worker.enforcer:Enforcer", ()),
    "LeaseKeeper": ("umbel.worker.leases:LeaseKeeper", ()),
    "Zygote": ("umbel.worker.zygote:Zygote", ()),
}
CONSUMER: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    "Child": ("umbel.worker.process:Child", ("Engine", "Reporter", "Limiter", "TaskRunner")),
    "Engine": ("umbel.worker.engine:Engine", ("Hold", "Keeper", "ReadAhead", "TaskRunner")),
    "Keeper": ("umbel.worker.keeper:Keeper", ("Hold",)),
    "Hold": ("umbel.worker.holding:Hold", ("TaskRunner",)),
    "TaskRunner": ("umbel.worker.runner:TaskRunner", ("Admission", "Records")),
    "Admission": ("umbel.worker.admission:Admission", ("Records",)),
    "Records": ("umbel.worker.records:Records", ()),
    "ReadAhead": ("umbel.worker.readahead:ReadAhead", ()),
    "Limiter": ("umbel.worker.limits:Limiter", ()),
    "Reporter": ("umbel.worker.reporting:Reporter", ()),
}

_ARGUMENTS: Final = ("nodes", "threads", "broker", "backend", "generic", "enumerate", "wmax", "tmax")
_SUBSCRIPTS: Final = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

_PART: Final[Attributes] = {"style": "filled", "fillcolor": "aliceblue"}
_STEP: Final[Attributes] = {"style": "filled", "fillcolor": "lemonchiffon"}
_NODE: Final[Attributes] = {"style": "filled", "fillcolor": "honeydew"}
_THREAD: Final[Attributes] = {"shape": "oval", "fontsize": "10"}
_BROKER: Final[Attributes] = {"shape": "cylinder", "style": "filled", "fillcolor": "lightblue"}
_BACKEND: Final[Attributes] = {"shape": "folder", "style": "filled", "fillcolor": "wheat"}


class Drawing:
    """Nodes and arrows between them; an arrow to a node that was not added is not drawn."""

    def __init__(self) -> None:
        self._nodes: dict[str, Attributes] = {}
        self._arrows: list[tuple[str, str, Attributes]] = []

    def node(self, name: str, attributes: Attributes, **more: str) -> None:
        """Add a node."""
        self._nodes[name] = {**attributes, **more}

    def arrow(self, start: str, end: str, **attributes: str) -> None:
        """Add an arrow."""
        self._arrows.append((start, end, attributes))

    def lines(self) -> Iterator[str]:
        """Yield the lines of the graph."""
        yield "digraph dependencies {"
        yield '    node [shape="box", fontname="Helvetica"]'
        for name, attributes in self._nodes.items():
            yield f"    {_quoted(name)}{_listed(attributes)}"
        for start, end, attributes in self._arrows:
            if start in self._nodes and end in self._nodes:
                yield f"    {_quoted(start)} -> {_quoted(end)}{_listed(attributes)}"
        yield "}"


def _listed(attributes: Attributes) -> str:
    return f" [{', '.join(f'{name}={_quoted(value)}' for name, value in attributes.items())}]" if attributes else ""


def _quoted(text: str) -> str:
    return '"' + one_line(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


@click.group("graph")
@global_options()
def graph() -> None:
    """Draw the parts of a worker, or the workers, in Graphviz' language."""


# -- the parts of a worker -------------------------------------------------------------------------------------------


@command("bootsteps", short_help="Draw the parts of a worker, and your steps.")
@click.argument("kinds", nargs=-1, type=click.Choice(["worker", "consumer"], case_sensitive=False))
def bootsteps(target: Target, kinds: tuple[str, ...]) -> None:
    """Draw what a worker is made of; an arrow leads from a part to one that it needs.

    'worker' is the supervisor, 'consumer' each process that runs tasks; without an argument it is both. Steps of your
    own are those in app.steps; they run in the supervisor.
    """
    app = target.load(needed=False)
    for line in parts(app, kinds or ("worker", "consumer")).lines():
        click.echo(line)


def parts(app: Any, kinds: Iterable[str]) -> Drawing:
    """Return the drawing of a worker of this app."""
    drawing = Drawing()
    tables = {"worker": WORKER, "consumer": CONSUMER}
    for kind in kinds:
        for name, (_, needs) in tables[kind].items():
            drawing.node(name, _PART)
            for needed in needs:
                drawing.arrow(name, needed)
    # Which forks it.
    drawing.arrow("Child", "Zygote")
    # Asked for only if the app has it: making it ties it to every worker that starts here.
    steps = vars(app).get("steps", {})
    classes = [cls for kind in kinds for cls in sorted(steps.get(kind, ()), key=lambda cls: str(cls.name))]
    names = {str(cls.name): _alias(cls) for cls in classes}
    for cls in classes:
        drawing.node(_alias(cls), _STEP)
        drawing.arrow(_alias(cls), "Supervisor")
        for required in cls.requires:
            name = required.replace(":", ".") if isinstance(required, str) else str(required.name)
            drawing.arrow(_alias(cls), names.get(name, ""))
    return drawing


def _alias(cls: Any) -> str:
    return str(cls.label or str(cls.name).rpartition(".")[2])


# -- workers ---------------------------------------------------------------------------------------------------------


@command(
    "workers",
    short_help="Draw the workers, what they run and what they are connected to.",
    epilog="Example: umbel -A proj graph workers wmax:6 | dot -Tsvg > workers.svg",
)
@click.argument("arguments", nargs=-1, metavar="[NAME:VALUE]...")
def workers(target: Target, arguments: tuple[str, ...]) -> None:
    """Draw the workers that answer, or those that are named.

    \b
    nodes:w1,w2 threads:4,2   draw these, with so many slots; nobody is asked
    broker:URL backend:URL    in place of the app's
    generic                   say 'Broker (redis://)' in place of the URL
    enumerate                 call them Worker₁, Worker₂ and so on
    wmax:4 tmax:3             at most so many workers, and slots of each; 0 for all
    """
    given = _read(arguments)
    app = target.load(needed=not (target.broker or "nodes" in given))
    try:
        nodes = _named(given) if "nodes" in given else _answering(app)
    finally:
        app.close()
    for line in cluster(app, nodes, given).lines():
        click.echo(line)


def _read(arguments: Sequence[str]) -> dict[str, str]:
    found = {}
    for argument in arguments:
        name, _, value = argument.partition(":")
        if name not in _ARGUMENTS:
            raise click.UsageError(f"no such argument {name!r}{did_you_mean(name, _ARGUMENTS)}")
        found[name] = value
    if "threads" in found and "nodes" not in found:
        raise click.UsageError("threads: needs nodes:, which says whose they are")
    return found


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, "") or "0" if name in given else str(default)
    if not text.isdecimal() or text == "1":
        raise click.UsageError(f"{name}: must be 0, for all, or at least 2, and not {text!r}")
    return int(text)


def _named(given: Mapping[str, str]) -> list[tuple[str, int]]:
    names = [name for name in given["nodes"].split(",") if name]
    threads = [text for text in given.get("threads", "").split(",") if text]
    if threads and (len(threads) != len(names) or not all(text.isdecimal() for text in threads)):
        raise click.UsageError(f"threads: must be {len(names)} numbers with commas between them, one for each node")
    return list(zip(names, map(int, threads), strict=True)) if threads else [(name, 0) for name in names]


def _answering(app: Any) -> list[tuple[str, int]]:
    replies = app.control.inspect().stats()
    if not replies:
        raise Trouble("No nodes replied within time constraint", EX_UNAVAILABLE)
    return [(name, int(reply["pool"]["max-concurrency"])) for name, reply in sorted(replies.items())]


def cluster(app: Any, nodes: Sequence[tuple[str, int]], given: Mapping[str, str]) -> Drawing:
    """Return the drawing of workers, each with how many tasks it runs at once; ``given`` as on the command line."""
    from umbel.drivers import mask

    drawing = Drawing()
    most, enumerated = _number(given, "wmax", 4), "enumerate" in given
    slots_most = _number(given, "tmax", 3)
    places = {"Broker": given.get("broker") or app.urls.read, "Backend": given.get("backend") or app.urls.backend}
    shown = {}
    for kind, url in places.items():
        if url:
            text = mask(url)
            shown[kind] = f"{kind} ({text.partition('://')[0]}://)" if "generic" in given else text
            drawing.node(shown[kind], _BROKER if kind == "Broker" else _BACKEND)
    names = _abridged([name for name, _ in nodes], "Worker", most, enumerated)
    numbers = [count for _, count in nodes]
    if most and len(nodes) > most:
        numbers = [*numbers[: most - 1], numbers[-1]]
    thread = 0
    for name, count in zip(names, numbers, strict=True):
        drawing.node(name, _NODE)
        for place in dict.fromkeys(shown.values()):
            drawing.arrow(name, place)
        for label in _abridged([str(number) for number in range(count)], "P", slots_most, enumerated):
            thread += 1
            drawing.node(f"thr-{thread}", _THREAD, label=label)
            drawing.arrow(f"thr-{thread}", name, arrowhead="none")
    return drawing


def _abridged(names: list[str], word: str, most: int, enumerated: bool) -> list[str]:
    """Return the names, or numbers in their place; of more than ``most`` the last is shown, and how many are not."""
    count = len(names)
    if enumerated:
        names = [f"{word}{str(number).translate(_SUBSCRIPTS)}" for number in range(1, count + 1)]
    if not most or count <= most:
        return names
    left_out = str(count - (most - 1)).translate(_SUBSCRIPTS)
    return [*names[: most - 2], f"{word[0]}⎨…{left_out}⎬", names[-1]]


graph.add_command(bootsteps)
graph.add_command(workers)
