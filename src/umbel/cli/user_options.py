"""Options of an app's own: what ``app.user_options`` adds to the commands."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import click

from umbel.cli.options import Target


def with_user_options(
    ctx: click.Context, name: str | None, command: click.Command | None, args: Sequence[str]
) -> click.Command | None:
    """Return the command with the options that the app adds to it, or as it is.

    Their values are in ``app.user_values`` when the command runs, and in the signal ``user_preload_options``.
    """
    if name not in ("worker", "beat", "events") or command is None:
        return command
    app = _peek(ctx, args)
    added = _options(app, name) if app is not None else []
    if not added:
        return command
    extended = copy.copy(command)
    extended.params = [*command.params, *added]
    own = {str(option.name) for option in added}
    original = command.callback
    assert original is not None

    @functools.wraps(original)
    def called(*positional: Any, **values: Any) -> Any:
        from umbel import signals

        app.user_values = {key: value for key, value in values.items() if key in own}
        signals.user_preload_options.send(sender=command, app=app, options=dict(values))
        return original(*positional, **{key: value for key, value in values.items() if key not in own})

    extended.callback = called
    return extended


def _peek(ctx: click.Context, args: Sequence[str]) -> Any:
    """Return the app, if it can be known before the command's own options are read."""
    target = ctx.ensure_object(Target)
    if target._app is not None:
        return target._app
    name = target.app_name or _after(args, ("-A", "--app"))
    if not name or target.workdir or _after(args, ("--workdir",)):
        return None
    from umbel.app import Umbel
    from umbel.loading import find_app

    try:
        return find_app(name, Umbel)
    # The wall around the modules of the user: what they raise is said when the command loads them.
    except Exception:
        return None


def _after(args: Sequence[str], names: Iterable[str]) -> str | None:
    for index, word in enumerate(args):
        for name in names:
            if word == name and index + 1 < len(args):
                return args[index + 1]
            if word.startswith(name + "=") or (len(name) == 2 and word.startswith(name) and len(word) > 2):
                return word[len(name) :].lstrip("=")
    return None


def _options(app: Any, name: str) -> list[click.Parameter]:
    if "user_options" not in vars(app):
        return []
    found = [*app.user_options.get("preload", ()), *app.user_options.get(name, ())]
    return [option for option in found if isinstance(option, click.Parameter)]
