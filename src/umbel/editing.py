"""Other arguments for a call that was made before: what JSON makes of them, and the values that nobody is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from umbel.exceptions import DecodeError
from umbel.jsoncodec import json_dumps, json_loads
from umbel.sensitive import HIDDEN, Veil

#: The longest countdown of a call that is sent again, in seconds: ten years.
MOST_COUNTDOWN: Final = 10 * 365 * 86400.0
Arguments = tuple[Sequence[Any], Mapping[str, Any]]


class _Mark:
    """Stands where something is hidden; equal to nothing that a caller can give."""


_mark: Final = _Mark()


def as_carried(what: str, value: Any) -> Any:
    """Return a value as it comes out of a message in JSON, with kombu's tagged types restored.

    Raises :exc:`EncodeError` for what JSON has not, and ``ValueError`` for a tag that nobody knows here.
    """
    try:
        return json_loads(json_dumps(value))
    except DecodeError as error:
        raise ValueError(f"{what}: {error}") from error


def filled(veil: Veil | None, given: Arguments, original: Arguments | None) -> tuple[list[Any], dict[str, Any]]:
    """Return new arguments with the original's value wherever ``***`` stands for one that is hidden.

    It stands for that in its place alone, by position or by name. Raises ``ValueError`` for any other ``***``, unless
    the original has just this text there: it is a value that somebody was not shown, and not one to be sent.

    :param original: the arguments of the message itself; None where only a text of them was kept.
    """
    args, kwargs = list(given[0]), dict(given[1])
    hidden_args, hidden_kwargs = ([], {}) if veil is None else veil.values(args, kwargs, _mark)
    before, named = ((), {}) if original is None else original
    for at, value in enumerate(args):
        if value == HIDDEN:
            known = at < len(before)
            covered = at < len(hidden_args) and hidden_args[at] is _mark
            args[at] = _value(f"argument {at + 1}", known, covered, before[at] if known else None)
    for name, value in kwargs.items():
        if value == HIDDEN:
            known = name in named
            kwargs[name] = _value(f"argument {name!r}", known, hidden_kwargs.get(name) is _mark, named.get(name))
    return args, kwargs


def _value(which: str, known: bool, covered: bool, original: Any) -> Any:
    if known and (covered or original == HIDDEN):
        return original
    raise ValueError(
        f"{which} is ***, which stands for a value that is hidden, and there is none to be had for it; "
        "write the value itself"
    )


def checked_countdown(seconds: float | None) -> float | None:
    """Return a countdown in seconds. Raises ``ValueError`` unless it is from 0 to ten years."""
    if seconds is not None and not 0 <= seconds <= MOST_COUNTDOWN:
        raise ValueError(f"a countdown is a number of seconds from 0 to {MOST_COUNTDOWN:,.0f}, and not {seconds!r}")
    return seconds


def check_call(app: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` where the task is known here and does not take these arguments."""
    check = app.plan(name).check
    if check is not None:
        check(args, kwargs)
