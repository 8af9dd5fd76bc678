"""What the attribute ``sensitive`` of a task keeps out of everything that shows a call to people.

The message and the stored result hold the values all the same: the task needs them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

from umbel.exceptions import ImproperlyConfigured
from umbel.saferepr import saferepr

HIDDEN: Final = "***"


class _Hidden:
    """Shows as ``***`` without quotes, which no value of the user's does."""

    def __repr__(self) -> str:
        return HIDDEN


_hidden: Final = _Hidden()


class Veil:
    """Shows the calls of one task. Safe to share between threads."""

    __slots__ = ("_known", "_names", "_others", "_places", "_rest", "everything")

    def __init__(self, task: Any, names: frozenset[str] | None) -> None:
        """Hide the parameters of these names, or with None all of them and the result.

        Raises :exc:`ImproperlyConfigured` for a name that is no parameter.
        """
        self.everything = names is None
        self._names = frozenset() if names is None else names
        parameters = list(inspect.signature(task.run).parameters.values())
        kinds = {each.name: each.kind for each in parameters}
        self._known = frozenset(kinds)
        extra = [name for name, kind in kinds.items() if kind == inspect.Parameter.VAR_KEYWORD]
        if not extra and not self._names <= self._known:
            wrong = ", ".join(map(repr, sorted(self._names - self._known)))
            raise ImproperlyConfigured(
                f"task {task.name}: sensitive names {wrong}, which is no parameter of it; it has {', '.join(kinds)}"
            )
        placed = [each.name for each in parameters if each.kind in _BY_PLACE]
        self._places = frozenset(at for at, name in enumerate(placed) if name in self._names)
        # All of *args, from which place on; and all of **kwargs.
        self._rest = next((len(placed) for name in self._names if kinds.get(name) == _VAR_POSITIONAL), None)
        self._others = any(name in self._names for name in extra)

    def values(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, mark: Any = HIDDEN) -> Any:
        """Return the arguments as a list and a dictionary with ``***`` where something is hidden."""
        shown = [mark if self._hides_place(at) else value for at, value in enumerate(args or ())]
        return shown, {name: mark if self._hides(name) else value for name, value in (kwargs or {}).items()}

    def reprs(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> tuple[str, str]:
        """Return what stands for the arguments in ``argsrepr`` and ``kwargsrepr``."""
        if self.everything:
            return HIDDEN, HIDDEN
        shown, named = self.values(args, kwargs, _hidden)
        return saferepr(tuple(shown) if isinstance(args, tuple) else shown), saferepr(named)

    def _hides_place(self, at: int) -> bool:
        return self.everything or at in self._places or (self._rest is not None and at >= self._rest)

    def _hides(self, name: str) -> bool:
        return self.everything or name in self._names or (self._others and name not in self._known)


_BY_PLACE: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VAR_POSITIONAL: Final = inspect.Parameter.VAR_POSITIONAL


def veil_of(task: Any) -> Veil | None:
    """Return what hides parts of a task's calls, or None where nothing is hidden, as of a task that is not known."""
    sensitive = getattr(task, "sensitive", False)
    if not sensitive:
        return None
    kept = task.__dict__.get("_veil")
    if kept is not None and kept[0] == sensitive:
        return kept[1]  # type: ignore[no-any-return]
    names = None if sensitive is True else frozenset((sensitive,) if isinstance(sensitive, str) else sensitive)
    veil = Veil(task, names)
    task._veil = sensitive, veil
    return veil


def shown_call(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call as people may see them: ``***`` for what the task's ``sensitive`` hides."""
    veil = veil_of(task)
    if veil is None:
        return list(args), dict(kwargs)
    shown, named = veil.values(args, kwargs)
    return shown, named
