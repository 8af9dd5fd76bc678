"""``python -m umbel.celery SCRIPT|-m MODULE|-c CODE ARGS...``: run a program written for Celery on Umbel."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

import click

from umbel.celery import install, switch_path

USAGE = """\
usage: python -m umbel.celery SCRIPT [ARGS...]
       python -m umbel.celery -m MODULE [ARGS...]
       python -m umbel.celery -c CODE [ARGS...]
       python -m umbel.celery --path

Runs a program that says "import celery" on Umbel, unchanged. --path prints a folder: with it in PYTHONPATH every
Python program does the same."""


def main(args: Sequence[str]) -> int:
    """Run the program, and return the exit code where there was none to run."""
    given = list(args)
    if given[:1] in (["-h"], ["--help"]):
        click.echo(USAGE)
        return 0
    if given == ["--path"]:
        click.echo(switch_path())
        return 0
    if not given or (given[0] in ("-m", "-c") and len(given) < 2) or (given[0][0] == "-" and given[0] not in _RUN):
        click.echo(USAGE, err=True)
        return 2
    how = given.pop(0) if given[0] in _RUN else ""
    what = given[0]
    if not how and not os.path.exists(what):
        click.echo(f"there is no file {what!r}; a module is given with -m", err=True)
        return 2
    install()
    sys.argv = ["-c", *given[1:]] if how == "-c" else given
    if how == "-c":
        code = compile(what, "<string>", "exec")
        exec(code, _fresh_main())  # nosec B102 # "python -c", from the same command line
    elif how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        # Python itself put the working directory there; of a folder or an archive runpy takes care.
        if os.path.isfile(what) and not sys.flags.safe_path:
            sys.path[0] = os.path.dirname(os.path.realpath(what))
        runpy.run_path(what, run_name="__main__")
    return 0


_RUN = ("-m", "-c")


def _fresh_main() -> dict[str, object]:
    # Tasks of the code say __main__ and must be found there.
    names = sys.modules["__main__"].__dict__
    for name in [name for name in names if name != "__builtins__"]:
        del names[name]
    names.update({"__name__": "__main__", "__spec__": None})
    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
