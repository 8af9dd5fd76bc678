"""The tasks of an app by name, and how a function gets its task's name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from umbel.exceptions import NotRegistered


class TaskRegistry(dict[str, Any]):
    """Task name -> task. Asking for an unknown name raises :exc:`NotRegistered`."""

    NotRegistered = NotRegistered

    #: Called with a name that is not here; may register the task and return it.
    fallback: Callable[[str], Any] | None = None

    def __missing__(self, key: str) -> Any:
        task = self.fallback(key) if self.fallback is not None else None
        if task is None:
            raise NotRegistered(key)
        return task

    def register(self, task: Any) -> None:
        """Add a task, or an instance of a task class, under its name."""
        if inspect.isclass(task):
            task = task()
        if not task.name:
            raise ValueError(f"task class {type(task).__name__!r} has no name; set its 'name' attribute")
        self[task.name] = task

    def unregister(self, name: Any) -> None:
        """Remove a task by its name or itself. Raises :exc:`NotRegistered` if it is not here."""
        try:
            self.pop(getattr(name, "name", name))
        except KeyError:
            raise NotRegistered(name) from None

    def regular(self) -> dict[str, Any]:
        """Return the tasks, without those that are only a schedule entry."""
        return {name: task for name, task in self.items() if getattr(task, "type", "regular") == "regular"}

    def periodic(self) -> dict[str, Any]:
        """Return the tasks that are a schedule entry of their own."""
        return {name: task for name, task in self.items() if getattr(task, "type", "regular") == "periodic"}

    def nearest(self, name: str) -> str | None:
        """Return the registered name that looks most like this one, for error messages."""
        return next(iter(get_close_matches(name, self, n=1)), None)


def gen_task_name(main: str | None, name: str, module_name: str | None) -> str:
    """Return ``module.name``, with the app's name in place of a module that runs as a script.

    >>> gen_task_name("shop", "charge", "shop.tasks")
    'shop.tasks.charge'
    >>> gen_task_name("shop", "charge", "__main__")
    'shop.charge'
    """
    module_name = module_name or "__main__"
    module = sys.modules.get(module_name)
    if module is not None:
        module_name = module.__name__
    if module_name == "__main__" and main:
        module_name = main
    return f"{module_name}.{name}"


def qualname(value: Any) -> str:
    """Return the full name of a function, class or instance's class."""
    if not hasattr(value, "__qualname__"):
        value = type(value)
    return f"{value.__module__}.{value.__qualname__}"
