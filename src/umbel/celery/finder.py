"""How ``import celery`` comes to find Umbel: finders on ``sys.meta_path``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from os import PathLike
from types import CodeType, ModuleType
from typing import Any, Final

from umbel.celery.bridges import BRIDGES
from umbel.celery.pages import PAGES, Page, missing_home, not_yet
from umbel.celery.refusals import refusal
from umbel.celery.version import __version__ as celery_version
from umbel.utils.text import did_you_mean

_MAIN: Final = "from umbel.__main__ import main\nmain()\n"


class _PageLoader(Loader):
    """Makes the modules of the alias."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a page, or the very module of Umbel that stands behind this name."""
        home = PAGES[spec.name]
        if not isinstance(home, str):
            return Page(spec.name, f"Celery's {spec.name}, as Umbel has it.")
        module = importlib.import_module(home)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give a module of Umbel its own name back, which the import system has just written over."""
        if not isinstance(module, Page) and module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state

    def get_code(self, fullname: str) -> CodeType:
        """Return what ``python -m celery`` runs."""
        return compile(_MAIN if fullname == "celery.__main__" else "", f"<umbel's {fullname}>", "exec")

    def get_source(self, fullname: str) -> str:
        """Return no source: a traceback has nothing to show."""
        return ""

    def is_package(self, fullname: str) -> bool:
        """Say that every page is one."""
        return True


_loader: Final = _PageLoader()


def _spec_of(name: str) -> ModuleSpec:
    spec = ModuleSpec(name, _loader, origin="umbel", is_package=name != "celery.__main__")
    spec.submodule_search_locations = None if name == "celery.__main__" else []
    return spec


class CeleryFinder(MetaPathFinder):
    """Finds ``celery`` and all below it, before anybody else; nothing of the real one is ever imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the page of this name; raises :exc:`ImportError` for one that there is not, with what to do."""
        if fullname != "celery" and not fullname.startswith("celery."):
            return None
        reason = refusal(fullname)
        if reason is None and fullname in PAGES:
            home = missing_home(fullname)
            if home is None:
                return _spec_of(fullname)
            reason = f"{fullname}: {not_yet(home)}"
        if reason is not None:
            raise ImportError(reason, name=fullname)
        # Asked by ``from celery.x import name`` too, when the page has no such name.
        raise ImportError(_unknown(fullname), name=fullname)

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        """Yield what ``importlib.metadata`` says about ``celery``: the release whose names and wire these are."""
        if context is None or context.name is None or context.name.lower() == "celery":
            yield _CeleryDistribution()


def _unknown(fullname: str) -> str:
    parent, _, name = fullname.rpartition(".")
    page = sys.modules.get(parent)
    if isinstance(page, Page):
        try:
            getattr(page, name)
        except AttributeError as error:
            return str(error)
    known = [other for other in PAGES if other.startswith("celery.")]
    return f"Umbel has no module {fullname!r}{did_you_mean(fullname, known)}"


class _CeleryDistribution(Distribution):
    def read_text(self, filename: str) -> str | None:
        if filename not in ("METADATA", "PKG-INFO"):
            return None
        return f"Metadata-Version: 2.1\nName: celery\nVersion: {celery_version}\nSummary: Umbel, under Celery's name\n"

    def locate_file(self, path: str | PathLike[str]) -> Any:
        raise FileNotFoundError(f"there is no file {path} of the real celery here: umbel.celery is installed")


class FallbackFinder(MetaPathFinder):
    """Finds our small ``kombu`` and ``billiard``, after everybody else: real ones are used where they are."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the page of this name, if its package is ours."""
        top = fullname.partition(".")[0]
        if top not in ("kombu", "billiard"):
            return None
        if fullname != top and not isinstance(sys.modules.get(top), Page):
            return None
        if fullname in PAGES:
            return _spec_of(fullname)
        if fullname == top:
            return None
        parent, _, name = fullname.rpartition(".")
        if name in dir(sys.modules.get(parent)):
            return None
        raise ImportError(
            f"Umbel stands in for a small part of {top} and has no {fullname!r}; pip install {top} for all of it",
            name=fullname,
        )


class BridgeFinder(MetaPathFinder):
    """Loads the real ``kombu`` and ``billiard`` as they are, and then joins to Umbel what both must agree on."""

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the real module's spec, with a step after it; None where there is no real one."""
        if fullname not in BRIDGES or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy.discard(fullname)
        if spec is None or spec.loader is None or isinstance(spec.loader, _PageLoader):
            return None
        spec.loader = _Bridged(spec.loader, BRIDGES[fullname])
        return spec


class _Bridged(Loader):
    def __init__(self, real: Loader, bridge: Callable[[ModuleType], None]) -> None:
        self._real = real
        self._bridge = bridge

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        self._bridge(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
