"""The ``shell`` command."""

from __future__ import annotations

import importlib
from typing import Any

import click

from umbel.cli.errors import EX_CONFIG, Trouble
from umbel.cli.options import Target, command


@command("shell")
@click.option("-I", "--ipython", "kind", flag_value="ipython", help="Use IPython.")
@click.option("-B", "--bpython", "kind", flag_value="bpython", help="Use bpython.")
@click.option("--python", "kind", flag_value="python", help="Use plain Python.")
@click.option("-T", "--without-tasks", is_flag=True, help="Do not add the tasks to the names.")
def shell(target: Target, kind: str | None, without_tasks: bool) -> None:
    """Start Python with ``app`` and the tasks of the app at hand."""
    app = target.load_tasks()
    names = namespace(app, tasks=not without_tasks)
    kinds = [kind] if kind else ["ipython", "bpython", "python"]
    for one in kinds:
        start = _STARTERS[one]
        try:
            start(names)
        except ModuleNotFoundError as error:
            if kind:
                raise Trouble(f"{kind} is not installed: pip install {kind}", EX_CONFIG) from error
        else:
            return


def namespace(app: Any, *, tasks: bool) -> dict[str, Any]:
    """Return the names that the shell knows: the app, the canvas, and each task by the last part of its name."""
    names: dict[str, Any] = {"app": app, "celery": app, "Task": app.Task}
    try:
        canvas = importlib.import_module("umbel.canvas")
    except ModuleNotFoundError:
        canvas = importlib.import_module("umbel.signatures")
    for word in ("chord", "group", "chain", "chunks", "xmap", "xstarmap", "signature"):
        if hasattr(canvas, word):
            names[word] = getattr(canvas, word)
    names["subtask"] = names["signature"]  # as it was called
    if tasks:
        for name, task in app.tasks.items():
            if not name.startswith("celery."):
                names[name.rpartition(".")[2]] = task
    return names


def _ipython(names: dict[str, Any]) -> None:
    importlib.import_module("IPython").start_ipython(argv=[], user_ns=names)


def _bpython(names: dict[str, Any]) -> None:
    importlib.import_module("bpython").embed(names)


def _python(names: dict[str, Any]) -> None:
    import code
    import contextlib

    with contextlib.suppress(ModuleNotFoundError):
        import readline
        import rlcompleter

        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    code.interact(banner="", local=names, exitmsg="")


_STARTERS = {"ipython": _ipython, "bpython": _bpython, "python": _python}
