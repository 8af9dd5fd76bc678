"""What the results of one task and of several have in common."""

from __future__ import annotations

from typing import Any

from umbel.current import join_denied

NO_BACKEND = "No result backend is configured.\nPlease see the documentation for more information."


class ResultBase:
    """Base of everything that stands for one or several tasks that were sent."""

    app: Any = None
    parent: Any = None


def assert_will_not_block() -> None:
    """Raise :exc:`RuntimeError` where waiting for a result is refused, that is inside a task."""
    if join_denied():
        raise RuntimeError(
            "Never call result.get() within a task!\n"
            "A task that waits for a task can use up every worker and wait for ever. Use a chain, a chord or a "
            "callback, or await the result in a coroutine task; if you are sure, get(disable_sync_subtasks=False)."
        )


def as_exception(value: Any) -> BaseException:
    """Return what can be raised for the result of a failed task."""
    return value if isinstance(value, BaseException) else Exception(value)


def control_of(app: Any) -> Any:
    """Return the app's remote control."""
    control = getattr(app, "control", None)
    if control is None:
        raise NotImplementedError("this app has no remote control, so tasks cannot be revoked through it")
    return control


def importable_class(result: Any) -> type[Any]:
    """Return the class to pickle a result with: that of an app is made at run time and cannot be found by name."""
    cls = type(result)
    return next(each for each in cls.__mro__ if each.__dict__.get("app") is None)
