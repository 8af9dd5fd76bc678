"""Finding things by name: the app that ``-A`` means, the modules that hold tasks, a symbol in a module."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from umbel.exceptions import ImproperlyConfigured


@contextmanager
def cwd_in_path() -> Iterator[None]:
    """Let modules of the working directory be imported inside the block."""
    cwd = os.getcwd()
    if cwd in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, cwd)
    try:
        yield
    finally:
        # The block may have removed it itself.
        if cwd in sys.path:
            sys.path.remove(cwd)


def import_from_cwd(module: str) -> ModuleType:
    """Import a module that may lie in the working directory."""
    with cwd_in_path():
        return importlib.import_module(module)


def caller_file() -> str | None:
    """Return the file of the code that called into this package, or None where it has none (a shell)."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "umbel":
        frame = frame.f_back
    found: str | None = frame.f_globals.get("__file__") if frame is not None else None
    return found


def symbol_by_name(name: Any, *, importer: Callable[[str], Any] = importlib.import_module) -> Any:
    """Return what ``module:attr`` or ``module.attr`` names; anything but a string is returned as it is."""
    if not isinstance(name, str):
        return name
    module_name, colon, attribute = name.partition(":")
    if not colon:
        module_name, _, attribute = name.rpartition(".")
    if not module_name:
        return importer(name)
    value = importer(module_name)
    for part in filter(None, attribute.split(".")):
        value = getattr(value, part)
    return value


def find_app(name: str, app_class: type) -> Any:
    """Return the app that ``-A name`` means.

    ``module:attr`` is that attribute. ``module`` is its ``app`` or ``celery`` attribute, else the same of its
    submodule ``celery``, else the only app that it holds. ``module.attr`` is tried too. Looks in the working directory
    first, and leaves it on ``sys.path``: the worker's children and the app's own imports need it there.

    Raises :exc:`ImproperlyConfigured` saying what was looked for; an error inside the app's own modules is raised
    as it is.
    """
    cwd = os.getcwd()
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    module_name, colon, attribute = name.partition(":")
    if colon:
        return _checked(_attribute(_import(module_name, name), attribute, name), name, app_class)
    try:
        module: Any = _import(name, name)
    except ImproperlyConfigured:
        parent, _, attribute = name.rpartition(".")
        if not parent or not module_exists(parent):
            raise
        return _checked(_attribute(_import(parent, name), attribute, name), name, app_class)
    return _app_of(module, app_class) or _no_app(name)


def _app_of(module: ModuleType, app_class: type) -> Any:
    for attribute in ("app", "celery"):
        # A Flask project's ``app`` is no task queue; its ``celery`` is.
        found = getattr(module, attribute, None)
        if _is_app(found, app_class):
            return found
    if hasattr(module, "__path__") and module_exists(f"{module.__name__}.celery"):
        inner = _app_of(importlib.import_module(f"{module.__name__}.celery"), app_class)
        if inner is not None:
            return inner
    for attribute in ("app", "celery"):
        # A submodule that hides behind the name: package/app.py, package/celery.py
        found = getattr(module, attribute, None)
        if isinstance(found, ModuleType) and found is not module:
            inner = _app_of(found, app_class)
            if inner is not None:
                return inner
    return next((value for value in vars(module).values() if _is_app(value, app_class)), None)


def _is_app(value: Any, app_class: type) -> bool:
    # Not isinstance: a proxy such as current_app, imported by the module, would answer for the app behind it.
    return issubclass(type(value), app_class)


def _no_app(name: str) -> Any:
    raise ImproperlyConfigured(
        f"module {name!r} holds no app: it needs an attribute 'app' or 'celery', or name it: -A {name}:attribute"
    )


def _checked(value: Any, name: str, app_class: type) -> Any:
    if isinstance(value, ModuleType):
        return _app_of(value, app_class) or _no_app(name)
    if inspect.isfunction(value):
        value = value()
    if not _is_app(value, app_class):
        raise ImproperlyConfigured(f"{name!r} is a {type(value).__name__}, not an app")
    return value


def _attribute(module: ModuleType, attribute: str, name: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise ImproperlyConfigured(
                f"cannot find app {name!r}: {getattr(value, '__name__', value)!r} has no attribute {part!r}"
            ) from None
    return value


def _import(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not _is_prefix(error.name, module):
            raise  # the module is there; something that it imports is not
        raise ImproperlyConfigured(
            f"cannot find app {name!r}: there is no module {error.name!r} in {os.getcwd()} or on sys.path"
        ) from error


def _is_prefix(missing: str | None, module: str) -> bool:
    return missing is not None and (module == missing or module.startswith(missing + "."))


def module_exists(name: str) -> bool:
    """Say whether a module can be imported. Imports its parent packages, and raises what they raise."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if _is_prefix(error.name, name):
            return False
        raise
    except ValueError:  # a module without a spec, such as __main__
        return name in sys.modules


def import_modules(names: Iterable[str]) -> list[ModuleType]:
    """Import each once, in order, also from the working directory."""
    with cwd_in_path():
        return [importlib.import_module(name) for name in dict.fromkeys(names)]


def autodiscover(packages: Iterable[str], related_name: str | None) -> list[ModuleType]:
    """Import ``package.related_name`` of each package that has one, or the packages themselves for None.

    A package that does not exist, and an error inside a module, are raised: an import that fails silently is a task
    that no worker knows.
    """
    found: list[ModuleType] = []
    with cwd_in_path():
        for package in packages:
            if related_name is None:
                found.append(importlib.import_module(package))
                continue
            importlib.import_module(package)
            module = f"{package}.{related_name}"
            if module_exists(module):
                found.append(importlib.import_module(module))
    return found
