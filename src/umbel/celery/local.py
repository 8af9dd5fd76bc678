"""``celery.local``: objects that stand for others."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from umbel.utils.proxy import Proxy


class PromiseProxy(Proxy):
    """Stands for what the function returns, which is called once, at the first use."""

    __slots__ = ("__found", "__then")

    def __init__(
        self, local: Callable[..., Any], args: Any = (), kwargs: Any = None, name: str | None = None, **more: Any
    ) -> None:
        found: list[Any] = []
        then: list[Callable[[Any], Any]] = []

        def once() -> Any:
            if not found:
                found.append(local(*args, **(kwargs or {})))
                while then:
                    then.pop(0)(found[0])
            return found[0]

        object.__setattr__(self, "_PromiseProxy__found", found)
        object.__setattr__(self, "_PromiseProxy__then", then)
        super().__init__(once, **({"__name__": name} if name else {}), **more)

    def __evaluated__(self) -> bool:
        """Say whether the function was called."""
        return bool(object.__getattribute__(self, "_PromiseProxy__found"))

    def __then__(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function with the object as soon as it is there."""
        if self.__evaluated__():
            return fun(self._get_current_object(), *args, **kwargs)
        return object.__getattribute__(self, "_PromiseProxy__then").append(lambda found: fun(found, *args, **kwargs))

    def __maybe_evaluate__(self) -> Any:
        return self._get_current_object()


def maybe_evaluate(obj: Any) -> Any:
    """Return what a proxy stands for, and anything else as it is."""
    return obj._get_current_object() if issubclass(type(obj), PromiseProxy) else obj


def try_import(module: str, default: Any = None) -> Any:
    """Import a module, or return the default where there is none."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return default


def getappattr(path: list[str]) -> Any:
    """Return an attribute of the current app by its path."""
    from umbel.current import get_current_app

    found = get_current_app()
    for part in path:
        found = getattr(found, part)
    return found


class class_property:
    """A property of the class itself."""

    def __init__(self, getter: Any = None, setter: Any = None) -> None:
        self._get = getter.__func__ if isinstance(getter, classmethod) else getter
        self._set = setter

    def __get__(self, obj: Any, type: Any = None) -> Any:
        return self._get(type if type is not None else obj.__class__)

    def __set__(self, obj: Any, value: Any) -> Any:
        return self if obj is None else self._set(obj.__class__, value)

    def setter(self, setter: Any) -> class_property:
        """Return the property with a way to set it."""
        return type(self)(self._get, setter)


def reclassmethod(method: Any) -> Any:
    """Return the class method of a bound one."""
    return classmethod(method.__func__ if hasattr(method, "__func__") else method)
