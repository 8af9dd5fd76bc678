"""``celery.bin.base``: what options and commands of programs for Celery are made of."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import click

from umbel.cli.options import COMMA_LIST, CommaList, Target
from umbel.utils.log import mlevel


class CeleryOption(click.Option):
    """An option; ``help_group`` is accepted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.help_group = kwargs.pop("help_group", None)
        self.default_value_from_context = kwargs.pop("default_value_from_context", None)
        super().__init__(*args, **kwargs)


class CeleryCommand(click.Command):
    """A command."""


class CeleryDaemonCommand(CeleryCommand):
    """A command that may run in the background."""


CLIContext = Target
CommaSeparatedList = CommaList
COMMA_SEPARATED_LIST: Final = COMMA_LIST


class _Typed(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    def __init__(self, name: str, convert: Callable[[str], Any]) -> None:
        self.name = name
        self._convert = convert

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value; fails with what is wrong."""
        if not isinstance(value, str):
            return value
        try:
            return self._convert(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _json(kind: type) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(f"{text!r} is no {kind.__name__}")
        return value

    return convert


def _moment_or_number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text)


JSON_ARRAY: Final = _Typed("json array", _json(list))
JSON_OBJECT: Final = _Typed("json object", _json(dict))
ISO8601: Final = _Typed("iso-86091", datetime.fromisoformat)
ISO8601_OR_FLOAT: Final = _Typed("iso-86091 or float", _moment_or_number)
LOG_LEVEL: Final = _Typed("log level", mlevel)


def handle_preload_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function: the command line sends ``user_preload_options`` by itself."""

    @functools.wraps(f)
    def called(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)

    return called
