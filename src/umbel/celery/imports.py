"""``celery.utils.imports``: finding and loading modules, and entry points."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from umbel.loading import cwd_in_path, import_from_cwd, symbol_by_name


class NotAPackage(Exception):
    """Raised for ``a.b`` where ``a`` is a module and no package."""


def instantiate(name: Any, *args: Any, **kwargs: Any) -> Any:
    """Make an instance of a class, or of what a name leads to."""
    return symbol_by_name(name)(*args, **kwargs)


def find_module(module: str, path: Any = None, imp: Callable[[str], ModuleType] = importlib.import_module) -> Any:
    """Return the spec of a module that may lie in the working directory; :exc:`NotAPackage` for a part of none."""
    with cwd_in_path():
        package, _, _ = module.rpartition(".")
        if package and not hasattr(imp(package), "__path__"):
            raise NotAPackage(package)
        return importlib.util.find_spec(module)


def reload_from_cwd(module: Any, reloader: Callable[[ModuleType], ModuleType] | None = None) -> ModuleType:
    """Load a module anew, also from the working directory."""
    with cwd_in_path():
        found = sys.modules.get(module) or import_from_cwd(module) if isinstance(module, str) else module
        return (reloader or importlib.reload)(found)


def module_file(module: ModuleType) -> str | None:
    """Return the source file of a module."""
    name = module.__file__
    return name[:-1] if name and name.endswith(".pyc") else name


def gen_task_name(app: Any, name: str, module_name: str | None) -> str:
    """Return the name that a function of this module gets as a task of the app."""
    return str(app.gen_task_name(name, module_name or "__main__"))


def load_extension_class_names(namespace: str) -> Iterator[tuple[str, str]]:
    """Yield name and value of each entry point of a group."""
    for point in importlib.metadata.entry_points(group=namespace):
        yield point.name, point.value


def load_extension_classes(namespace: str) -> Iterator[tuple[str, Any]]:
    """Yield name and object of each entry point of a group; one that cannot be imported is a warning."""
    for name, value in load_extension_class_names(namespace):
        try:
            found = symbol_by_name(value)
        except (ImportError, SyntaxError) as error:
            warnings.warn(f"cannot load {namespace} extension {value!r}: {error!r}", stacklevel=2)
        else:
            yield name, found


def entrypoints(namespace: str) -> list[tuple[Any, Any]]:
    """Return each entry point of a group with what it leads to."""
    return [(point, point.load()) for point in importlib.metadata.entry_points(group=namespace)]
