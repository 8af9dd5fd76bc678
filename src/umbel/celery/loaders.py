"""``celery.loaders`` and ``app.loader``: importing the modules that hold tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Final

from umbel.celery.imports import find_module
from umbel.loading import autodiscover, import_from_cwd, symbol_by_name

DEFAULT_CONFIG_MODULE: Final = "celeryconfig"


class BaseLoader:
    """Imports for one app. The hooks are called by nobody: connect to the signals of the same moments."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self.app = app
        self.task_modules: set[str] = set()

    @property
    def conf(self) -> Any:
        """The app's settings."""
        return self.app.conf

    def now(self, utc: bool = True) -> Any:
        """Return the moment."""
        return self.app.now()

    def import_task_module(self, module: str) -> ModuleType:
        """Import a module of tasks."""
        self.task_modules.add(module)
        return self.import_from_cwd(module)

    def import_module(self, module: str, package: str | None = None) -> ModuleType:
        """Import a module."""
        import importlib

        return importlib.import_module(module, package)

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> ModuleType:
        """Import a module that may lie in the working directory."""
        return import_from_cwd(module)

    def import_default_modules(self) -> list[Any]:
        """Import what the settings and ``autodiscover_tasks`` name."""
        found: list[Any] = self.app.import_default_modules()
        return found

    @property
    def default_modules(self) -> tuple[str, ...]:
        """What the settings name."""
        return (*(self.conf.imports or ()), *(self.conf.include or ()))

    def config_from_object(self, obj: Any, silent: bool = False) -> bool:
        """Take the app's settings from an object."""
        self.app.config_from_object(obj, silent=silent)
        return True

    def autodiscover_tasks(self, packages: Iterable[str], related_name: str | None = "tasks") -> None:
        """Import the modules of tasks of these packages."""
        self.task_modules.update(module.__name__ for module in autodiscover(packages, related_name))

    def find_module(self, module: str) -> Any:
        """Return the spec of a module that may lie in the working directory."""
        return find_module(module)

    def read_configuration(self, env: str = "CELERY_CONFIG_MODULE") -> Mapping[str, Any]:
        """Return the settings."""
        return dict(self.conf)

    def on_task_init(self, task_id: str, task: Any) -> None:
        """Celery calls it before a task; Umbel sends ``task_prerun``."""

    def on_process_cleanup(self) -> None:
        """Celery calls it after a task; Umbel sends ``task_postrun``."""

    def on_worker_init(self) -> None:
        """Celery calls it in a new worker; Umbel sends ``worker_init``."""

    def on_worker_process_init(self) -> None:
        """Celery calls it in a new worker process; Umbel sends ``worker_process_init``."""

    def on_worker_shutdown(self) -> None:
        """Celery calls it at a worker's end; Umbel sends ``worker_shutdown``."""


class AppLoader(BaseLoader):
    """The loader of an app."""


class Loader(AppLoader):
    """The loader of an app that nobody configured."""


def get_loader_cls(loader: str) -> Any:
    """Return the class of a loader by its name or path."""
    return {"app": AppLoader, "default": Loader}.get(loader) or symbol_by_name(loader)


def autodiscover_tasks(packages: Iterable[str], related_name: str | None = "tasks") -> list[ModuleType]:
    """Import the modules of tasks of these packages and return them."""
    return autodiscover(packages, related_name)


def find_related_module(package: str, related_name: str | None) -> ModuleType | None:
    """Import one package's module of tasks; None where it has none."""
    found = autodiscover([package], related_name)
    return found[0] if found else None
