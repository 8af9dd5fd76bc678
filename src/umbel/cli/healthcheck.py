"""``umbel healthcheck``: for probes of containers. Imports neither the app nor click, so it answers at once.

It reads what the worker wrote about itself last (see :mod:`umbel.worker.health`); it asks nobody.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence

_USAGE = """\
Usage: umbel healthcheck [-n NODE] [--live] [--max-age SECONDS] [-q]

Say whether a worker on this machine consumes. For probes: it imports no app and asks no broker.

  -n, --hostname NODE  the worker's node name; not needed where one worker of this user runs
  --live               it is enough that the worker is alive, though it may not consume
  --max-age SECONDS    how old its last word may be (15)
  -q, --quiet          print nothing

Exit codes: 0 well, 1 not well, 2 usage, 69 no such worker.
"""
_TOO_OLD = 15.0


def main(args: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    try:
        options = _parse(list(args))
    except ValueError as error:
        print(f"{_USAGE}\nError: {error}", file=sys.stderr)
        return 2
    if options.help:
        print(_USAGE, end="")
        return 0
    code, text = check(options.node, live=options.live, max_age=options.max_age)
    if not options.quiet:
        print(text, file=sys.stdout if code == 0 else sys.stderr)
    return code


def check(node: str | None, *, live: bool, max_age: float) -> tuple[int, str]:
    """Return the exit code for a worker, and one line for people."""
    folder = _folder()
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".health"))
    except OSError:
        names = []
    wanted = f"{node.replace('/', '_')}.health" if node else None
    if wanted is not None and "@" not in wanted:
        names = [name for name in names if name.partition("@")[0] == node]
    elif wanted is not None:
        names = [name for name in names if name == wanted]
    if not names:
        return 69, f"no worker {node or ''} has left a word in {folder}".replace("  ", " ")
    if len(names) > 1:
        return 2, f"there are several workers, say which with -n: {', '.join(name[:-7] for name in names)}"
    try:
        with open(os.path.join(folder, names[0]), encoding="utf-8") as file:
            said = json.load(file)
        age = time.time() - float(said["at"])
        problems = [str(problem) for problem in said["problems"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return 69, f"{os.path.join(folder, names[0])} cannot be read: {error}"
    if age > max_age:
        return 1, f"{said.get('node')}: said nothing for {age:.0f} s"
    if problems and not live:
        return 1, f"{said.get('node')}: {'; '.join(problems)}"
    return 0, f"{said.get('node')}: OK"


class _Options:
    node: str | None = None
    live = False
    quiet = False
    help = False
    max_age = _TOO_OLD


def _parse(args: list[str]) -> _Options:
    options = _Options()
    while args:
        word = args.pop(0)
        name, _, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name in ("-h", "--help"):
            options.help = True
        elif name == "--live":
            options.live = True
        elif name in ("-q", "--quiet"):
            options.quiet = True
        elif name in ("-n", "--hostname", "--max-age"):
            value = value or (args.pop(0) if args else "")
            if not value:
                raise ValueError(f"{name} needs a value")
            if name == "--max-age":
                options.max_age = float(value)
            else:
                options.node = value
        else:
            raise ValueError(f"no such option {word}")
    return options


def _folder() -> str:
    # The same as umbel.worker.health.run_folder(), without what that imports; a test compares them.
    if given := os.environ.get("UMBEL_RUN_DIR"):
        return given
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(session, "umbel")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return os.path.join(tempfile.gettempdir(), f"umbel-{user}")
