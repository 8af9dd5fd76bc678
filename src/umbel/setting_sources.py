"""Where settings come from: modules, classes, objects and dicts, each read into one layer of values."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from umbel import aliased
from umbel.exceptions import CeleryWarning, ImproperlyConfigured
from umbel.loading import import_from_cwd
from umbel.setting_names import canonical, check_unmixed, mistake, strip_namespace
from umbel.setting_rows import OLD_NAMES, ROWS
from umbel.setting_values import coerce


class Layer:
    """What one source says: our settings by name, read and checked, and everybody else's keys as they are."""

    __slots__ = ("foreign", "values")

    def __init__(self, values: dict[str, Any] | None = None, foreign: Mapping[str, Any] | None = None) -> None:
        self.values: dict[str, Any] = {} if values is None else values
        self.foreign: Mapping[str, Any] = {} if foreign is None else foreign


class _Attributes(Mapping[str, Any]):
    """An object's public attributes as a mapping, each read when it is asked for."""

    __slots__ = ("_object",)

    def __init__(self, obj: object) -> None:
        self._object = obj

    def __getitem__(self, name: str) -> Any:
        if name.startswith("_"):
            raise KeyError(name)
        try:
            return getattr(self._object, name)
        except AttributeError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return (name for name in dir(self._object) if not name.startswith("_"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read(source: Any, *, where: str, namespace: str | None, strict: bool, unmixed: bool = False) -> Layer:
    """Read a mapping or an object. Keys that are not ours are kept unread.

    A name that was surely meant to be ours and is not known raises :exc:`ImproperlyConfigured`; where ``strict`` is
    false it is a warning, and the key is kept. ``unmixed`` refuses old names beside new ones.
    """
    is_mapping = hasattr(source, "keys") and hasattr(source, "__getitem__") and not isinstance(source, type)
    items: Any = source if is_mapping else _Attributes(source)
    # Flask's and Django's own objects are read name by name: asking for a value may do work, or warn.
    names = [name for name in items.keys() if isinstance(name, str)]  # noqa: SIM118
    if unmixed and not namespace:
        known = [(name, canonical(name)) for name in names]
        check_unmixed([name for name, to in known if to and (is_mapping or not _is_code(items[name], to))], where)
    layer = Layer(foreign=items)
    ranks: dict[str, int] = {}
    for name in names:
        setting = canonical(name, namespace)
        if setting is None:
            advice = mistake(name, namespace)
            if advice is not None and (is_mapping or not _is_code(items[name], None)):
                _complain(f"unknown setting {name!r} in {where}; {advice}", strict)
        elif is_mapping or not _is_code(items[name], setting):
            rank = _rank(name, namespace)
            if rank >= ranks.get(setting, 0):
                layer.values[setting] = _read_value(setting, name, items[name], where)
                ranks[setting] = rank
    return layer


def _read_value(setting: str, name: str, value: Any, where: str) -> Any:
    row = ROWS[setting]
    # S3_BUCKET in a Flask configuration may be somebody else's, and does nothing here.
    if name.isupper() and not row.effect and not name.startswith(("CELERY", "BROKER_")):
        return value
    return coerce(row, value, given_as=name, where=where)


def _rank(name: str, namespace: str | None) -> int:
    # Of several spellings in one source: the namespace's, the new name, the old name, the others.
    if strip_namespace(name, namespace) is not None:
        return 4
    return 3 if name in ROWS else 2 if name in OLD_NAMES else 1


def _is_code(value: Any, setting: str | None) -> bool:
    # "from datetime import timezone" in a configuration module sets nothing.
    if isinstance(value, (ModuleType, property)):
        return True
    is_code = isinstance(value, (type, FunctionType, BuiltinFunctionType, MethodType))
    return is_code and (setting is None or ROWS[setting].type not in ("symbol", "any"))


def _complain(text: str, strict: bool) -> None:
    if strict and not aliased.active:
        raise ImproperlyConfigured(text)
    warnings.warn(text, CeleryWarning, stacklevel=2)


# -- finding them ----------------------------------------------------------------------------------------------------


def find(source: Any, *, silent: bool = False) -> tuple[Any, str]:
    """Return the mapping or object that a source names, and how to call it in messages.

    A string is ``module``, ``module:attribute`` or ``module.attribute``, looked for in the working directory too.
    With ``silent`` a source that cannot be imported is an empty one.
    """
    if not isinstance(source, str):
        return source, _describe(source)
    try:
        return _import(source), f"configuration {source!r}"
    except ImproperlyConfigured:
        if not silent:
            raise
    except (ImportError, AttributeError):
        if not silent:
            raise
    return {}, f"configuration {source!r}"


def _describe(source: Any) -> str:
    if isinstance(source, ModuleType):
        return f"configuration module {source.__name__!r}"
    if isinstance(source, type):
        return f"configuration class {source.__qualname__!r}"
    return f"a configuration {type(source).__name__}"


def _import(path: str) -> Any:
    name, colon, attribute = path.partition(":")
    try:
        found: Any = import_from_cwd(name)
    except ModuleNotFoundError as exc:
        if not _is_part(exc.name, name):
            raise  # the module is there; something that it imports is not
        parent, _, attribute = name.rpartition(".")
        if colon or not parent or not _is_module(parent) or exc.name != name:
            raise _missing(path, exc.name or name) from exc
        found = sys.modules[parent]
        if not hasattr(found, attribute):
            raise _missing(path, name) from exc
    for part in filter(None, attribute.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ImproperlyConfigured(
                f"cannot find configuration {path!r}: {name!r} has no attribute {part!r}; define it there"
            ) from None
    return found


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def _is_part(missing: str | None, name: str) -> bool:
    return missing is not None and (name == missing or name.startswith(missing + "."))


def _missing(path: str, module: str) -> ImproperlyConfigured:
    if path.endswith(".py"):
        advice = f"write the module's name, not its file's: {path.removesuffix('.py').replace('/', '.')!r}"
    else:
        advice = f"write it as in an import statement, and run from the folder that holds it (now: {os.getcwd()})"
    return ImproperlyConfigured(f"cannot find configuration {path!r}: there is no module {module!r}; {advice}")
