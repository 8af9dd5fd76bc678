"""Remote control commands: the table of them, and how to add your own.

A command is a function of the worker's state and its arguments, decorated with :func:`control_command` (it changes
something) or :func:`inspect_command` (it only tells). It runs in the supervisor, beside the tasks, and what it
returns must fit into JSON. An exception is told to the caller as ``{"error": repr}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class controller_info_t(NamedTuple):
    """What is known of a command."""

    alias: str | None
    type: str
    visible: bool
    default_timeout: float
    help: str
    signature: str | None
    args: Sequence[tuple[str, Callable[[Any], Any] | None]] | None
    variadic: str | None


class _Table(MutableMapping[str, Callable[..., Any]]):
    """The commands by name and alias, shared by all workers of the process."""

    data: ClassVar[dict[str, Callable[..., Any]]] = {}
    meta: ClassVar[dict[str, controller_info_t]] = {}

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.data[name]

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        self.data[name] = function

    def __delitem__(self, name: str) -> None:
        del self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


class Panel(_Table):
    """The registry of commands: :attr:`data` has the functions, :attr:`meta` what is known of each."""

    @classmethod
    def register(cls, function: Any = None, /, **options: Any) -> Any:
        """Register a function; with options it returns the decorator that does."""
        return cls._register(**options) if function is None else cls._register(**options)(function)

    @classmethod
    def _register(
        cls,
        name: str | None = None,
        alias: str | None = None,
        type: str = "control",
        visible: bool = True,
        default_timeout: float = 1.0,
        help: str | None = None,
        signature: str | None = None,
        args: Sequence[tuple[str, Callable[[Any], Any] | None]] | None = None,
        variadic: str | None = None,
    ) -> Callable[[F], F]:
        def decorate(function: F) -> F:
            title = name or function.__name__
            text = help or (function.__doc__ or "").strip().split("\n")[0]
            cls.data[title] = function
            cls.meta[title] = controller_info_t(alias, type, visible, default_timeout, text, signature, args, variadic)
            if alias:
                cls.data[alias] = function
            return function

        return decorate


def control_command(**options: Any) -> Callable[[F], F]:
    """Register a command that changes something.

    ``args`` are its positional arguments on the command line, as pairs of name and type; ``variadic`` names the one
    that takes the rest; ``signature`` is how help shows them.
    """
    return Panel._register(type="control", **options)


def inspect_command(**options: Any) -> Callable[[F], F]:
    """Register a command that only tells something; the options are those of :func:`control_command`."""
    return Panel._register(type="inspect", **options)


def ok(value: Any) -> dict[str, Any]:
    """Return the reply of a command that was carried out."""
    return {"ok": value}


def nok(value: Any) -> dict[str, Any]:
    """Return the reply of a command that could not be."""
    return {"error": value}
