"""Modules that exist in name only: what Celery's module names hold, found where Umbel has it.

A *page* is one such module. Its names are looked up at each use and never copied, so that a name whose home appears
later, or is patched in a test, is found as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from umbel.celery.refusals import NOT_YET, refusal
from umbel.celery.surface import CELERY
from umbel.celery.surface_kombu import KOMBU
from umbel.utils.text import did_you_mean

#: Every module of the alias.
PAGES: Final[dict[str, dict[str, str] | str]] = {**CELERY, **KOMBU}


class NotInUmbel(AttributeError):
    """Raised for a name that Celery has and Umbel has not, or that neither has. It says what to do instead."""


class Page(ModuleType):
    """One module of the alias. Setting an attribute puts it here, before what is found elsewhere."""

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return exported(self.__name__)
        if name.startswith("__") and name.endswith("__") and name not in names_of(self.__name__):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return find(self.__name__, name)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *names_of(self.__name__)})


_names: Final[dict[str, Mapping[str, list[tuple[str, str]]]]] = {}


def names_of(module: str) -> Mapping[str, list[tuple[str, str]]]:
    """Return the listed names of a page, each with the modules and attributes that may stand behind it."""
    known = _names.get(module)
    if known is None:
        found: dict[str, list[tuple[str, str]]] = {}
        for home, words in homes_of(module).items():
            for word in words.split():
                name, _, target = word.partition("=")
                found.setdefault(name, []).append((home, target or name))
        known = _names[module] = found
    return known


def homes_of(module: str) -> Mapping[str, str]:
    """Return the modules of Umbel behind a page."""
    page = PAGES[module]
    return {page: ""} if isinstance(page, str) else page


def exported(module: str) -> list[str]:
    """Return what ``from module import *`` binds: the listed names that are there."""
    return [name for name in names_of(module) if _there(module, name)]


def _there(module: str, name: str) -> bool:
    try:
        find(module, name)
    except AttributeError:
        return False
    return True


def find(module: str, name: str) -> Any:
    """Return what a name of a page stands for. Raises :exc:`NotInUmbel`, saying what to do instead."""
    reason = refusal(f"{module}.{name}")
    if reason is not None:
        raise NotInUmbel(reason)
    if name in names_of(module):
        for home, attribute in names_of(module)[name]:
            value = _attribute(home, attribute)
            if value is not _NOTHING:
                return value
        raise NotInUmbel(f"{module}.{name}: {not_yet(home)}")
    if f"{module}.{name}" in PAGES:
        return importlib.import_module(f"{module}.{name}")
    for home in homes_of(module):
        value = _attribute(home, name)
        if value is not _NOTHING:
            return value
    below = [other.rpartition(".")[2] for other in PAGES if other.rpartition(".")[0] == module]
    near = did_you_mean(name, [*names_of(module), *below])
    raise NotInUmbel(f"module {module!r}, which is Umbel's here, has no attribute {name!r}{near}")


def not_yet(home: str) -> str:
    """Say what to do about a name whose module of Umbel is not there."""
    return NOT_YET.get(home) or "this version of Umbel does not have it yet"


def missing_home(module: str) -> str | None:
    """Return one of the modules behind a page if none of them is there; without any the page is of no use."""
    homes = list(homes_of(module))
    return homes[0] if homes and not any(_exists(home) for home in homes) else None


def _exists(home: str) -> bool:
    try:
        return importlib.util.find_spec(home) is not None
    except ModuleNotFoundError:
        return False


_NOTHING: Final = object()


def _attribute(home: str, attribute: str) -> Any:
    try:
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name is not None and (home == error.name or home.startswith(error.name + ".")):
            return _NOTHING
        raise
    return getattr(module, attribute, _NOTHING)
