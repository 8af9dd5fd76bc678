"""The ``multi`` command: several workers in the background, by name.

Names and options become one worker command for each node: :func:`plan_nodes` is pure and does all of that.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from umbel.cli.daemon import living_owner
from umbel.cli.errors import EX_FAILED
from umbel.cli.options import Target, own_command
from umbel.utils.nodenames import gethostname, host_format, nodesplit
from umbel.utils.text import expand

_OURS: Final = ("--prefix", "--suffix", "--range-prefix", "--hostname", "-n", "--cmd", "--append")
_FLAGS: Final = {"--nosplash", "--quiet", "-q", "--verbose", "--no-color"}
#: Worker options that take no value, so that the word behind one is a name.
_NO_VALUE: Final = {"-E", "-B", "-C", "-D", "-q"}
_LOOK_EVERY: Final = 0.2
_HELP: Final = """\
Start, stop and look after several workers.

\b
  umbel multi start 3 -A proj -c 4               celery1, celery2 and celery3
  umbel multi start mail video -A proj           named workers
  umbel multi start 5 -A proj -Q:1-3 mail -Q:4,5 video -c:1 10
  umbel multi restart 3 -A proj --pidfile=run/%n.pid --logfile=log/%n%I.log
  umbel multi stop 3 --pidfile=run/%n.pid
  umbel multi stopwait 3 --pidfile=run/%n.pid    waits until they have ended
  umbel multi kill | names | show | expand TEMPLATE | get NODE

Options that are not multi's own go to each worker; with :1-3, :1,2 or :name behind, to some of them. Long options
with a value are written with '='. Pid and log files are in the working directory unless --pidfile and --logfile say
otherwise; %n is the name and %h the host. A signal for stop and restart is given as -TERM or -QUIT.
"""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One worker: its name, the words that start it, and where its files are."""

    name: str
    argv: list[str]
    pidfile: str
    logfile: str

    @property
    def pid(self) -> int | None:
        """The process that has its file; None where that one has ended, whoever got its number since."""
        return living_owner(self.pidfile)

    def send(self, number: int) -> bool:
        """Send a signal; say whether it arrived."""
        pid = self.pid
        if pid is None or pid <= 1:
            return False
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


class Words(msgspec.Struct):
    """What the words of the command line are: names, options for all, options for some, and the rest after ``--``."""

    names: list[str] = msgspec.field(default_factory=list)
    options: dict[str, str | None] = msgspec.field(default_factory=dict)
    some: dict[str, dict[str, str | None]] = msgspec.field(default_factory=dict)
    rest: list[str] = msgspec.field(default_factory=list)
    signum: int = signal.SIGTERM


def read_words(words: Sequence[str]) -> Words:
    """Tell the words apart.

    >>> found = read_words(["2", "-c", "3", "-c:1", "10", "--pidfile=%n.pid"])
    >>> found.names, found.options, found.some
    (['2'], {'-c': '3', '--pidfile': '%n.pid'}, {'1': {'-c': '10'}})
    """
    found = Words()
    left = [word for word in words if word]
    while left:
        word = left.pop(0)
        if word == "--":
            found.rest, left = left, []
            continue
        if not word.startswith("-"):
            found.names.append(word)
            continue
        value: str | None = None
        if word.startswith("--"):
            word, equals, text = word.partition("=")
            value = text if equals else None
        elif (number := _signal(word)) is not None:
            found.signum = number
            continue
        elif word.partition(":")[0] not in _NO_VALUE and left and not left[0].startswith("-"):
            value = left.pop(0)
        option, colon, some = word.partition(":")
        (found.some.setdefault(some, {}) if colon else found.options)[option] = value
    return found


def _signal(word: str) -> int | None:
    name = word[1:].upper()
    if name.isdecimal():
        return int(name)
    found = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", None)
    return int(found) if isinstance(found, signal.Signals) and len(name) > 1 else None


def plan_nodes(words: Words, command: Sequence[str]) -> list[Node]:
    """Return the workers that the words name. Raises :exc:`click.UsageError`."""
    options = dict(words.options)
    host = options.pop("--hostname", None) or options.pop("-n", None) or gethostname()
    prefix, suffix = options.pop("--prefix", None) or "", options.pop("--suffix", None)
    range_prefix = options.pop("--range-prefix", None) or "celery"
    command = shlex.split(options.pop("--cmd", None) or "") or command
    append = shlex.split(options.pop("--append", None) or "")
    names = words.names
    if len(names) == 1 and names[0].isdecimal():
        names, prefix = [str(number) for number in range(1, int(names[0]) + 1)], range_prefix
    if not names:
        raise click.UsageError("say which workers: a number, or their names")
    own: dict[str, dict[str, str | None]] = {}
    for some, given in words.some.items():
        for name in _meant(some, names):
            own.setdefault(name, {}).update(given)
    full = {name: _full_name(name, prefix, host if suffix is None else suffix.strip("\"'")) for name in names}
    return [_node(full[name], {**options, **own.get(name, {})}, command, [*words.rest, *append]) for name in names]


def _full_name(name: str, prefix: str, host: str) -> str:
    return host_format(name if "@" in name else f"{prefix}{name}@{host}")


def _meant(some: str, names: Sequence[str]) -> Iterator[str]:
    """Yield the names that ``1-3``, ``1,2`` or ``name`` stand for; a number is a place in the list."""
    for part in some.split(","):
        first, dash, last = part.partition("-")
        if dash and first.isdecimal() and last.isdecimal():
            yield from names[int(first) - 1 : int(last)]
        elif part in names:
            yield part
        elif part.isdecimal() and 1 <= int(part) <= len(names):
            yield names[int(part) - 1]
        elif known := [name for name in names if name.partition("@")[0] == part]:
            yield from known
        else:
            raise click.UsageError(f"no worker is meant by {part!r}; there are: {', '.join(names)}")


def _node(name: str, options: dict[str, str | None], command: Sequence[str], rest: Sequence[str]) -> Node:
    pidfile = _path(options.pop("--pidfile", None) or options.pop("-p", None) or "%n.pid", name)
    logfile = _path(options.pop("--logfile", None) or options.pop("-f", None) or "%n%I.log", name)
    words = [*command, "worker", "--detach", "-n", name, f"--pidfile={pidfile}", f"--logfile={logfile}"]
    for option, value in options.items():
        text = None if value is None else template(value, name)
        if text is None:
            words.append(option)
        else:
            words += [f"{option}={text}"] if option.startswith("--") else [option, text]
    return Node(name=name, argv=[*words, *(template(word, name) for word in rest)], pidfile=pidfile, logfile=logfile)


def _path(text: str, name: str) -> str:
    return os.path.expanduser(template(text, name))


def template(text: str, name: str) -> str:
    """Expand ``%n``, ``%h`` and ``%d`` for a node; ``%i`` and ``%I`` are for its processes to expand.

    >>> template("run/%n%I.log", "w1@box")
    'run/w1%I.log'
    """
    short, host = nodesplit(name)
    values = {"n": short or "", "N": short or "", "h": name, "p": name, "d": host, "i": "%i", "I": "%I"}
    return expand(text, dict(values))


class Multi:
    """Carries out one command on a number of nodes; each method returns the exit code."""

    def __init__(self, *, quiet: bool, color: bool) -> None:
        self._quiet = quiet
        self._color = color

    def _note(self, text: str, *, newline: bool = True) -> None:
        if not self._quiet:
            click.echo(text, nl=newline)

    def _word(self, good: bool, text: str = "") -> str:
        word = text or ("OK" if good else "FAILED")
        return click.style(word, fg="green" if good else "red") if self._color else word

    def start(self, nodes: Sequence[Node], signum: int) -> int:
        """Start them, one after the other."""
        self._note("> Starting nodes...")
        codes = [self._start(node) for node in nodes]
        return int(any(codes))

    def _start(self, node: Node) -> int:
        self._note(f"\t> {node.name}: ", newline=False)
        for file in (node.pidfile, node.logfile):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        code = subprocess.run(node.argv, check=False, stdin=subprocess.DEVNULL).returncode
        self._note(self._word(not code))
        if code:
            self._note(f"* Child terminated with exit code {code}; see {node.logfile}")
        return code

    def stop(self, nodes: Sequence[Node], signum: int) -> int:
        """Ask them to stop."""
        self._signal(nodes, signum)
        return 0

    def stopwait(self, nodes: Sequence[Node], signum: int) -> int:
        """Ask them to stop and wait until they have."""
        self._wait(self._signal(nodes, signum))
        return 0

    def restart(self, nodes: Sequence[Node], signum: int) -> int:
        """Stop those that run, wait, and start them all."""
        self._wait(self._signal(nodes, signum))
        return self.start(nodes, signum)

    def kill(self, nodes: Sequence[Node], signum: int) -> int:
        """End them at once."""
        self._signal(nodes, signal.SIGKILL)
        return 0

    def names(self, nodes: Sequence[Node], signum: int) -> int:
        """Print their names."""
        click.echo("\n".join(node.name for node in nodes))
        return 0

    def show(self, nodes: Sequence[Node], signum: int) -> int:
        """Print the commands that start them."""
        click.echo("\n".join(shlex.join(node.argv) for node in nodes))
        return 0

    def _signal(self, nodes: Sequence[Node], signum: int) -> list[tuple[Node, int]]:
        name = signal.Signals(signum).name.removeprefix("SIG")
        self._note("> Stopping nodes...")
        reached = []
        for node in nodes:
            pid = node.pid
            if pid is not None and node.send(signum):
                self._note(f"\t> {node.name}: {name} -> {pid}")
                reached.append((node, pid))
            else:
                self._note(f"> {node.name}: {self._word(False, 'DOWN')}")
        return reached

    def _wait(self, nodes: Sequence[tuple[Node, int]]) -> None:
        left = list(nodes)
        if left:
            self._note(f"> Waiting for {len(left)} node(s) -> {', '.join(str(pid) for _, pid in left)}...")
        while left:
            time.sleep(_LOOK_EVERY)
            for node, pid in list(left):
                if node.pid != pid or not node.send(0):
                    self._note(f"\t> {node.name}: {self._word(True)}")
                    left.remove((node, pid))


@click.command(
    "multi",
    help=_HELP,
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"], "max_content_width": 100},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND NODES [OPTIONS]")
@click.pass_context
def multi(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Start several workers."""
    target = ctx.ensure_object(Target) if ctx.parent is None else ctx.find_root().ensure_object(Target)
    flags = _FLAGS & set(words)
    given = [word for word in words if word not in flags]
    if not given or given[0] in ("-h", "help"):
        click.echo(ctx.get_help())
        return
    name, *rest = given
    tool = Multi(
        quiet=bool({"--quiet", "-q"} & flags) or target.quiet, color="--no-color" not in flags and not target.no_color
    )
    if name in ("expand", "get"):
        if not rest:
            raise click.UsageError(f"{name} needs {'a template' if name == 'expand' else 'the name of a node'}")
        wanted, *rest = rest
        ctx.exit(_look_up(name, wanted, plan_nodes(read_words(rest), _command(target))))
    run = getattr(tool, {"stop_verify": "stopwait"}.get(name, name), None)
    if name.startswith("_") or run is None:
        raise click.UsageError(f"Invalid command: {name}")
    found = read_words(rest)
    ctx.exit(run(plan_nodes(found, _command(target)), found.signum))


def _look_up(name: str, wanted: str, nodes: Sequence[Node]) -> int:
    if name == "expand":
        click.echo("\n".join(template(wanted, node.name) for node in nodes))
        return 0
    for node in nodes:
        if wanted in (node.name, nodesplit(node.name)[0]):
            click.echo(shlex.join(node.argv))
            return 0
    return EX_FAILED


def _command(target: Target) -> list[str]:
    """Return the words that start the command, with the global options that stood before ``multi``."""
    words = own_command()
    for option, name, value in (
        ("-A", "app", target.app_name),
        ("-b", "broker", target.broker),
        ("--result-backend", "result_backend", target.result_backend),
        ("--config", "config", target.config),
        ("--workdir", "workdir", target.workdir),
    ):
        # Workers inherit the environment. In their words, which all users can read, its passwords have no place.
        if name in target.given and value:
            words += [option, value]
    return words
