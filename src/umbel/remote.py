"""Exceptions on the wire: ``{"exc_type", "exc_message", "exc_module"}``, as Celery's result backends keep them.

What comes back is untrusted. Nothing is imported for it, and of a class found by name only the C code of its
built-in base is run, never its own ``__init__`` or ``__new__``.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from umbel import exceptions as ours
from umbel.exceptions import RemoteError, Retry, SecurityError
from umbel.jsoncodec import encode_text

_OUR_MODULE: Final = ours.__name__
_FOREIGN_HOMES: Final = frozenset({"celery.exceptions", "billiard.exceptions", "kombu.exceptions", _OUR_MODULE})
_HOME_OF: Final = {
    **dict.fromkeys(
        ("SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError", "Terminated"), "billiard.exceptions"
    ),
    **dict.fromkeys(
        ("OperationalError", "SerializationError", "EncodeError", "DecodeError", "ContentDisallowed"),
        "kombu.exceptions",
    ),
}
_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by Python code
_BUILD_ERRORS: Final = (TypeError, ValueError, LookupError, AttributeError)


def encode_exception(exc: BaseException) -> dict[str, Any]:
    """Return the exception as plain JSON values. Never raises: an argument that cannot be carried goes as its repr."""
    cls = type(exc)
    module = cls.__module__
    if module == _OUR_MODULE:
        module = _HOME_OF.get(cls.__name__, "celery.exceptions")
    return {"exc_type": cls.__qualname__, "exc_message": [_portable(arg) for arg in exc.args], "exc_module": module}


def decode_exception(payload: Any) -> BaseException:
    """Return the exception that a stored failure describes, without raising and without importing anything.

    The class is looked up among the modules already imported. One that is not there, or not under
    :exc:`Exception`, becomes a :exc:`RemoteError` with its name and text; a name that leads to something other than
    an exception becomes a :exc:`SecurityError`.
    """
    if isinstance(payload, BaseException):
        return payload
    if not isinstance(payload, dict) or not isinstance(payload.get("exc_type"), str):
        return RemoteError("Exception", _text(payload))
    name, module = payload["exc_type"], payload.get("exc_module")
    args = _arguments(payload.get("exc_message", ""))
    full_name = f"{module}.{name}" if isinstance(module, str) and module != "builtins" else name
    found = _find(module, name) if isinstance(module, str) else None
    if found is not None and not (_is_class(found) and issubclass(found, BaseException)):
        return SecurityError(f"a stored result names {full_name} as its exception, which is none; it was not called")
    if found is not None and issubclass(found, Exception):
        rebuilt = _rebuild(found, args)
        if rebuilt is not None:
            return rebuilt
    return RemoteError(full_name, ", ".join(map(_text, args)))


def _find(module: str, name: str) -> Any:
    """Return what the name leads to, or None."""
    if module in _FOREIGN_HOMES:
        known = vars(ours).get(name)
        if isinstance(known, type) and known.__module__ == _OUR_MODULE:
            return known
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        if found is None:
            return None
        # Not getattr: it would run a module's or a metaclass's __getattr__, which may import.
        found = _members(found).get(part)
    return found


def _is_class(found: Any) -> bool:
    # Not isinstance: it asks the object itself for its __class__.
    return issubclass(type(found), type)


def _members(owner: Any) -> Any:
    if _is_class(owner):
        return type.__getattribute__(owner, "__dict__")
    try:
        return object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return {}


def _rebuild(cls: type[Exception], args: tuple[Any, ...]) -> BaseException | None:
    try:
        if cls.__module__ == _OUR_MODULE:
            # Retry keeps its reason and moment as args, and takes a message before them.
            return Retry(None, *args) if cls is Retry and len(args) == 2 else cls(*args)
        base: Any = next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)
        exc = base.__new__(cls, *args)
        base.__init__(exc, *args)
    except _BUILD_ERRORS:
        return None
    return exc if isinstance(exc, BaseException) else None


def _arguments(message: Any) -> tuple[Any, ...]:
    return tuple(message) if isinstance(message, list | tuple) else (message,)


def _portable(value: Any) -> Any:
    try:
        encode_text(value)
    except Exception:  # user code: anything may come, and the failure of the task must still be told
        return _text(value)
    return value


def _text(value: Any) -> str:
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception as error:  # user code again
        return f"<unrepresentable {type(value).__name__}: {type(error).__name__}>"
